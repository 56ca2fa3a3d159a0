"""How many updates of a million parameters a coordinator takes: a flood of 2,000 through mosquitto.

Every device checks in, accepts, offers and uploads; only the 8 GB of downloads are left out (``shared_downloads``).
The CPU is that of the coordinator's whole process, user and system, all threads, from the first chunk that reaches it
to the moment when the last update is in the journal (``synchronous=FULL``) and in the sum. Acceptances, offers,
receipts and the retained JSON fall into that time too and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.federation import Federation
from benchmarks.figures import Figure, at_least, at_most, skipped
from benchmarks.vectors import GAUSSIAN_MODEL, MNIST_MODEL, real

__all__ = ["flood", "measure"]

UPDATES: Final = 2_000
FEW: Final = 100
RATE: Final = 1_000.0
MEGABYTES_MORE: Final = 20.0
SECONDS_MAX: Final = 300.0
RATE_NAME: Final = "coordinator: updates received, journalled, decoded and summed a CPU second"


def measure() -> list[Figure]:
    """Rates of Gaussian and real updates, and the memory that many updates take more than few."""
    many = flood(GAUSSIAN_MODEL, UPDATES)
    few = flood(GAUSSIAN_MODEL, FEW)
    figures = rates("Gaussian", many)
    vectors = real()
    if vectors is None:
        figures.append(skipped(f"{RATE_NAME}, MNIST", "1/s", f">= {RATE:g}"))
    else:
        figures += rates("MNIST", flood(MNIST_MODEL, UPDATES, vectors))
    more = (many["peak_bytes"] - few["peak_bytes"]) / 1e6
    return [
        *figures,
        at_most(f"coordinator: peak RSS, {UPDATES} updates - {FEW} updates", more, "MB", MEGABYTES_MORE),
        Figure(f"coordinator: peak RSS, {UPDATES} updates", many["peak_bytes"] / 1e6, "MB"),
    ]


def rates(vectors: str, told: Mapping[str, Any]) -> list[Figure]:
    """The promised rate, and that of the whole round from its start to its end."""
    marks = told["marks"]
    spent = marks["last_update"] - marks["first_chunk"]
    return [
        at_least(f"{RATE_NAME}, {vectors}", told["updates"] / spent, "1/s", RATE),
        Figure(f"coordinator: updates a CPU second of the whole round, {vectors}", _whole(told), "1/s"),
        Figure(
            f"coordinator: updates a wall second, {vectors}",
            told["updates"] / (marks["last_update_at"] - marks["first_chunk_at"]),
            "1/s",
        ),
    ]


def flood(
    model: Mapping[str, Any], devices: int, deltas: Sequence[NDArray[np.float32]] | None = None
) -> dict[str, Any]:
    """One round of so many updates; what the coordinator tells of it."""
    with Federation(model, goal_count=devices, rounds=1, window_seconds=1.0) as federation:
        coordinator = federation.serve()
        federation.fleet(devices, deltas=deltas, shared_downloads=True)
        told = coordinator.wait_for("round", SECONDS_MAX)
    if told["phase"] != "closed" or told["updates"] != devices:
        raise RuntimeError(f"the round did not take all updates: {told}")
    return told


def _whole(told: Mapping[str, Any]) -> float:
    return float(told["updates"] / (told["cpu"] - told["marks"]["start"]))
