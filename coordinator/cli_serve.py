"""``edge-coordinator serve``: what it says while it runs, and how it stops."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

from coordinator.config import load_config
from coordinator.config.settings import database_path
from coordinator.setup import Prepared, make_service, prepare
from coordinator.store import RoundRecord
from edge_sdk.errors import ConfigurationError

__all__ = ["round_line", "serve"]

logger = logging.getLogger(__name__)

LEVELS: Final = ("debug", "info", "warning", "error")
VERDICTS: Final = ("counted", "late", "declined", "missing", "refused")


def serve(path: Path, *, linger_seconds: float | None, log_level: str) -> str | None:
    """Serves until the federation is finished or a signal asks to stop; call it on the main thread.

    Args:
        path: The configuration.
        linger_seconds: How long to answer devices after the end; None until stopped.
        log_level: One of ``LEVELS``.

    Returns:
        Why the federation is finished, None if it was stopped before.

    Raises:
        EdgeFedError: It cannot start, or cannot go on.
    """
    _configure_logging(log_level)
    prepared = prepare(load_config(path), wall=time.time, new_id=os.urandom)
    try:
        service = make_service(
            prepared,
            new_id=os.urandom,
            rng=np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(16), "little"))),
            wall=time.time,
            linger_seconds=linger_seconds,
            on_round=lambda record: logger.info("%s", round_line(record, prepared.program.metric)),
        )
        for line in _introduction(prepared):
            logger.info("%s", line)
        _on_signals(service.request_stop)
        service.run()
        return service.finished
    finally:
        prepared.store.close()


def round_line(record: RoundRecord, metric: str) -> str:
    """One line about a round that has ended.

    Args:
        record: The round.
        metric: Name of the program's metric.
    """
    summary = record.summary
    attempt = f" (attempt {record.attempt + 1})" if record.attempt else ""
    counts = ", ".join(f"{name} {summary.get(name, 0)}" for name in VERDICTS)
    parts = [f"round {record.number}{attempt} {record.phase}: {counts}"]
    if record.reason:
        parts.append(record.reason)
    metrics = summary.get("metrics", {})
    for name in ("train_loss", "loss", metric):
        if name in metrics:
            parts.append(f"{name} {metrics[name]:.4g}")
    up, dense = summary.get("bytes_up", 0), summary.get("bytes_up_dense", 0)
    parts.append(f"{up} bytes up" + (f", dense {dense} ({dense / up:.1f}x)" if up and dense else ""))
    if record.ended_at is not None and record.started_at is not None:
        parts.append(f"{max(0.0, record.ended_at - record.started_at):.1f} s")
    return "; ".join(parts)


def _introduction(prepared: Prepared) -> list[str]:
    config, program, store = prepared.config, prepared.program, prepared.store
    task, broker = prepared.task, prepared.broker
    lines = [
        f"federation {task.federation}, task {task.task}",
        f"model {program.name}: {program.spec.size} parameters, one dense update has {task.dense_bytes} bytes; "
        f"codec {config.codec.name}",
        f"broker {broker.address}" + (" with TLS" if broker.tls is not None else ""),
    ]
    record, checkpoint = store.open_round(task.task), store.latest_checkpoint(task.task)
    done = 0 if checkpoint is None else checkpoint.round
    if record is not None:
        where = f"goes on with round {record.number}, in {record.phase}"
    elif done:
        where = f"{done} rounds done, goes on with round {done + 1}"
    else:
        where = "new, begins with round 1" if prepared.is_new else "begins with round 1"
    return [*lines, f"database {database_path(config)}: {where}"]


def _configure_logging(level: str) -> None:
    if level not in LEVELS:
        raise ConfigurationError(f"--log-level {level}: is none of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _on_signals(stop: Callable[[], None]) -> None:
    """The first signal asks for a polite stop, the second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return

    def handler(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
