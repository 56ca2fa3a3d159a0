"""Regressions in raw units in a simulation: with everything left at its default, in watts as in degrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_sim import simulate

Examples = tuple[NDArray[Any], NDArray[Any]]


def machines(level: float, spread: float, seed: int, count: int = 160) -> Examples:
    rng = np.random.default_rng(seed)
    rpm, oil = rng.normal(1480, 25, count), rng.normal(61, 6, count)
    return np.stack([rpm, oil], 1), level + spread * ((rpm - 1480) / 25 - (oil - 61) / 6 + rng.normal(0, 0.1, count))


@pytest.mark.parametrize(
    ("level", "spread", "mode"),
    [
        (3, 1, "federated"),
        (62, 6, "federated"),
        (48_000, 900, "federated"),
        (1e-4, 1e-5, "federated"),
        (1500, 50, "local"),
    ],
)
def test_a_target_in_raw_units_is_learned_with_the_defaults(level: float, spread: float, mode: str) -> None:
    clients = {f"s{i}": machines(level, spread, i) for i in range(6)}
    history = simulate("linear_regression", clients, rounds=10, evaluation=machines(level, spread, 99), normalise=mode)
    assert history.final["mean_squared_error"] < 0.05 * 2 * spread**2, "in the square of the raw unit"
    if mode == "federated":
        told = np.concatenate([target for _, target in clients.values()])
        assert history.weights["normalise/target_mean"][0] == pytest.approx(told.mean(), rel=1e-5)
        assert history.weights["normalise/target_scale"][0] == pytest.approx(1 / told.std(), rel=1e-3)
