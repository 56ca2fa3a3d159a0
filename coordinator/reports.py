"""What the database tells about a federation, as plain values that JSON can hold; also while it is being served."""

from __future__ import annotations

import contextlib
import fcntl
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from coordinator.config import FederationConfig
from coordinator.config.settings import database_path, stopping_rule
from coordinator.feature_notes import feature_notes
from coordinator.model_identity import stored_program
from coordinator.pipeline.metrics import CODEC_METRIC
from coordinator.round_life import ATTEMPTS_MAX, last_obstacle
from coordinator.stopping import Stopping
from coordinator.store import Checkpoint, DeviceRecord, RoundRecord, Store, StoreReader
from coordinator.task_settings import OPENING_ROUND, TRAINING
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["finite", "is_served", "round_rows", "rounds_report", "status_report"]

TRAFFIC: Final = ("bytes_up", "bytes_up_dense", "bytes_down", "bytes_down_dense")


def status_report(config: FederationConfig, *, devices_max: int = 10) -> dict[str, Any]:
    """The federation at a glance.

    Args:
        config: The configuration.
        devices_max: How many devices to list, those seen last first.

    Raises:
        StateError: There is no database yet, or it cannot be read.
    """
    path, task = database_path(config), config.federation.task
    with Store.open_readonly(path) as store:
        program = stored_program(store, task)
        checkpoint = store.latest_checkpoint(task)
        ended = store.rounds(task, sys.maxsize)
        totals: Counter[str] = Counter()
        for record in ended:
            totals.update({name: record.summary.get(name, 0) for name in TRAFFIC})
        return {
            "federation": config.federation.name,
            "task": task,
            "database": str(path),
            "served": is_served(path),
            "incarnation": store.incarnation,
            "model": program and {"name": program.name, "parameters": program.spec.size, "metric": program.metric},
            "completed": max(0, checkpoint.round) if checkpoint else 0,
            "rounds_max": config.stopping.rounds_max,
            "trouble": _trouble(config, store, checkpoint),
            "finished": None if program is None else _finished(config, ended, program.metric),
            "abandoned": sum(record.phase == "abandoned" for record in ended),
            "round": _open_round(config, store),
            "metrics": finite(checkpoint.metrics if checkpoint else {}),
            "features": _features(ended),
            "bytes": {name: totals[name] for name in TRAFFIC},
            "messages": store.counters(),
            "devices": _devices(store, devices_max),
        }


def rounds_report(config: FederationConfig, limit: int) -> list[dict[str, Any]]:
    """The last ``limit`` rounds that have ended, the oldest first, one flat row each.

    Raises:
        StateError: There is no database yet, or it cannot be read.
    """
    task = config.federation.task
    with Store.open_readonly(database_path(config)) as store:
        program = stored_program(store, task)
        metric = program.metric if program is not None else "accuracy"
        return round_rows(store.rounds(task, sys.maxsize), metric)[-limit:]


def round_rows(records: Iterable[RoundRecord], metric: str) -> list[dict[str, Any]]:
    """One flat row for each round that has ended, the oldest first.

    Args:
        records: Rounds, the newest first.
        metric: The name of the program's metric, which is a column's, too.
    """
    ended = [record for record in records if record.ended][::-1]
    codecs = sorted({name for record in ended for name in _codecs(record)})
    return [_row(record, metric, codecs) for record in ended]


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON knows; one that is not finite becomes None."""
    plain = dict(values)
    for name, value in values.items():
        with contextlib.suppress(TypeError):
            plain[name] = value if math.isfinite(value) else None
    return plain


def is_served(database: Path) -> bool:
    """Whether a coordinator holds the database now."""
    try:
        with Path(f"{database}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _codecs(record: RoundRecord) -> dict[str, int]:
    """How many updates came in which codec, where devices chose: ``codec_eden``, ``codec_dense``, ..."""
    metrics = record.summary.get("metrics", {})
    return {name: int(count) for name, count in metrics.items() if name.startswith(CODEC_METRIC)}


def _row(record: RoundRecord, metric: str, codecs: list[str]) -> dict[str, Any]:
    summary, metrics = record.summary, record.summary.get("metrics", {})
    seconds = None
    if record.started_at is not None and record.ended_at is not None:
        seconds = round(max(0.0, record.ended_at - record.started_at), 3)
    return {
        "round": record.number,
        "attempt": record.attempt,
        "purpose": summary.get("purpose", TRAINING),
        "phase": record.phase,
        "reason": record.reason,
        "invited": summary.get("invited", 0),
        **{name: summary.get(name, 0) for name in VERDICTS},
        **{name: summary.get(name, 0) for name in TRAFFIC},
        **finite({"train_loss": metrics.get("train_loss"), "loss": metrics.get("loss"), metric: metrics.get(metric)}),
        **{name: _codecs(record).get(name, 0) for name in codecs},
        "seconds": seconds,
    }


def _open_round(config: FederationConfig, store: StoreReader) -> dict[str, Any] | None:
    record = store.open_round(config.federation.task)
    if record is None:
        return None
    tickets = store.tickets(record.task, record.number, record.attempt)
    goal_count = config.selection.goal_count
    if record.number == OPENING_ROUND:
        goal_count = max(goal_count, config.model.normalise_minimum or 0)
    return {
        "number": record.number,
        "attempt": record.attempt,
        "purpose": record.summary.get("purpose", TRAINING),
        "phase": record.phase,
        "seconds_remaining": round(record.seconds_remaining, 1),
        "goal_count": goal_count,
        "minimum_count": config.selection.minimum_count,
        "checked_in": record.summary.get("checked_in", 0),
        "tickets": dict(sorted(Counter(ticket.state for ticket in tickets).items())),
    }


def _features(rounds: list[RoundRecord]) -> list[str]:
    """What the round of statistics has found remarkable; nothing where there was none."""
    opening = [record for record in rounds if record.number == OPENING_ROUND and record.closed]
    return [note for record in opening[:1] for note in feature_notes(record.summary)]


def _trouble(config: FederationConfig, store: StoreReader, checkpoint: Checkpoint | None) -> str:
    """What keeps the coming round from closing, and what to do; empty where nothing does."""
    number = checkpoint.round + 1 if checkpoint else 1
    obstacle = last_obstacle(store.rounds(config.federation.task, ATTEMPTS_MAX), number)
    return "" if obstacle is None else obstacle.sentence(number)


def _finished(config: FederationConfig, rounds: list[RoundRecord], metric: str) -> str | None:
    """Why it has ended, by today's configuration; the coordinator decides the same when it starts."""
    return Stopping(stopping_rule(config, metric)).replay(rounds)


def _devices(store: StoreReader, devices_max: int) -> dict[str, Any]:
    known = store.devices()
    latest = sorted(known, key=lambda device: device.last_seen, reverse=True)[:devices_max]
    return {"known": len(known), "latest": [_device(device) for device in latest]}


def _device(device: DeviceRecord) -> dict[str, Any]:
    return {
        "device": device.device,
        "last_seen": round(device.last_seen, 1),
        **{name: getattr(device, name) for name in VERDICTS},
        "instance_changes": device.instance_changes,
        "sdk": device.capabilities.get("sdk", ""),
        "engine": device.capabilities.get("engine", ""),
    }
