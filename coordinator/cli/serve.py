"""``edge-coordinator serve``: what it says while it runs, and how it stops."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

from coordinator.advice import Obstacle
from coordinator.config import load_tasks
from coordinator.config.settings import database_path
from coordinator.feature_notes import feature_notes
from coordinator.round_life import ATTEMPTS_MAX, last_obstacle
from coordinator.setup import Prepared, PreparedTask, make_service, prepare
from coordinator.store import RoundRecord, Store
from coordinator.task_settings import TRAINING
from edge_sdk.cli.sd_notify import sd_notify, watchdog_seconds
from edge_sdk.errors import ConfigurationError
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["RateLimitFilter", "round_line", "serve"]

logger = logging.getLogger(__name__)

LEVELS: Final = ("debug", "info", "warning", "error")


def serve(path: Path, *, linger_seconds: float | None, log_level: str, environment: Mapping[str, str]) -> str | None:
    """Serves until the federation is finished or a signal asks to stop; call it on the main thread.

    Args:
        path: The configuration.
        linger_seconds: How long to answer devices after the end; None until stopped.
        log_level: One of ``LEVELS``.
        environment: Of systemd: where it listens, and how often it wants to hear of us.

    Returns:
        Why the federation is finished, None if it was stopped before.

    Raises:
        EdgeFedError: It cannot start, or cannot go on.
    """
    _configure_logging(log_level)
    prepared = prepare(load_tasks(path), wall=time.time, new_id=os.urandom)
    metrics = {task.name: task.program.metric for task in prepared.tasks}
    told = _Systemd(environment)

    def on_round(record: RoundRecord) -> None:
        line = round_line(record, metrics[record.task])
        if len(metrics) > 1:
            line = f"task {record.task}: {line}"
        obstacle = Obstacle.of(record.summary)
        if obstacle is None or obstacle.is_new:  # that it fails once more, for the same reason, is no news
            logger.info("%s", line)
        sd_notify(f"STATUS={line}", environment)

    try:
        service = make_service(
            prepared,
            new_id=os.urandom,
            rng=np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(16), "little"))),
            wall=time.time,
            linger_seconds=linger_seconds,
            on_round=on_round,
            on_turn=told.on_turn,
        )
        for line in _introduction(prepared):
            logger.info("%s", line)
        with _on_signals(service.request_stop):
            sd_notify("READY=1", environment)
            service.run()
        sd_notify("STOPPING=1", environment)
        return service.finished
    finally:
        prepared.store.close()


class _Systemd:
    """Tells systemd that the loop is alive, as often as it wants to hear that."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._seconds = watchdog_seconds(environment, os.getpid())
        self._due = 0.0

    def on_turn(self) -> None:
        now = time.monotonic()
        if self._seconds is not None and now >= self._due:
            self._due = now + self._seconds / 3
            sd_notify("WATCHDOG=1", self._environment)


class RateLimitFilter(logging.Filter):
    """Lets so many records of one kind pass in a minute: whoever floods the coordinator does not fill the disk too.

    Args:
        lines_max: Records of one kind (one place in the code) that pass in ``SECONDS``.
    """

    SECONDS: Final = 60.0

    def __init__(self, lines_max: int = 30) -> None:
        super().__init__()
        self._lines_max = lines_max
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes; the first of a new minute says how many did not."""
        place = (record.pathname, record.lineno)
        began, seen = self._seen.get(place, (record.created, 0))
        if record.created - began >= self.SECONDS:
            if seen > self._lines_max:
                record.msg = f"{record.msg} (and {seen - self._lines_max} more of this kind)"
            began, seen = record.created, 0
        self._seen[place] = began, seen + 1
        return seen < self._lines_max


def round_line(record: RoundRecord, metric: str) -> str:
    """One line about a round that has ended.

    Args:
        record: The round.
        metric: Name of the program's metric.
    """
    summary = record.summary
    attempt = f" (attempt {record.attempt + 1})" if record.attempt else ""
    counts = ", ".join(f"{name} {summary.get(name, 0)}" for name in VERDICTS)
    metrics = summary.get("metrics", {})
    parts = [f"round {record.number}{attempt} {record.phase}: {counts}"]
    if summary.get("purpose", TRAINING) != TRAINING:
        devices = f" from {metrics['devices']:.0f} devices" if "devices" in metrics else ""
        parts = [f"round {record.number}{attempt}: {summary['purpose']}{devices}", f"{record.phase}: {counts}"]
    if record.reason:
        parts.append(record.reason)
    parts += feature_notes(summary)
    if metrics.get("missing"):
        parts.append(f"{metrics['missing']:.2%} of all values are missing")
    for name in ("train_loss", "loss", metric):
        if name in metrics:
            parts.append(f"{name} {metrics[name]:.4g}")
    up, dense = summary.get("bytes_up", 0), summary.get("bytes_up_dense", 0)
    parts.append(f"{up} bytes up" + (f", dense {dense} ({dense / up:.1f}x)" if up and dense else ""))
    if record.ended_at is not None and record.started_at is not None:
        parts.append(f"{max(0.0, record.ended_at - record.started_at):.1f} s")
    return "; ".join(parts)


def _introduction(prepared: Prepared) -> list[str]:
    broker, config = prepared.broker, prepared.tasks[0].config
    lines = [
        f"federation {config.federation.name}",
        f"broker {broker.address}" + (" with TLS" if broker.tls is not None else ""),
        f"database {database_path(config)}",
    ]
    return lines + [line for task in prepared.tasks for line in _introduction_of(task, prepared.store)]


def _introduction_of(task: PreparedTask, store: Store) -> list[str]:
    record, checkpoint = store.open_round(task.name), store.latest_checkpoint(task.name)
    done = 0 if checkpoint is None else checkpoint.round
    purpose = task.settings.in_round(done + 1).purpose
    of = "" if purpose == TRAINING else f", {purpose}"
    if record is not None:
        where = f"goes on with round {record.number}{of}, in {record.phase}"
    elif done > 0:
        where = f"{done} rounds done, goes on with round {done + 1}"
    else:
        where = f"{'new, ' if task.is_new else ''}begins with round {done + 1}{of}"
    program = task.program
    obstacle = last_obstacle(store.rounds(task.name, ATTEMPTS_MAX), done + 1)
    trouble = [] if obstacle is None else [f"task {task.name}: {obstacle.sentence(done + 1)}"]
    return [
        f"task {task.name}: model {program.name}, {program.spec.size} parameters, one dense update has "
        f"{task.settings.dense_bytes} bytes; codec {task.config.codec.name}; {where}",
        *trouble,
    ]


def _configure_logging(level: str) -> None:
    if level not in LEVELS:
        raise ConfigurationError(f"--log-level {level}: is none of {', '.join(LEVELS)}")
    handler, calm = logging.StreamHandler(sys.stderr), RateLimitFilter()
    handler.addFilter(
        lambda record: record.name == __name__ or calm.filter(record)
    )  # rounds may be as quick as they are
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal asks for a polite stop, the second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop()

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
