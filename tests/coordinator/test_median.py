"""The coordinate-wise median."""

from __future__ import annotations

import numpy as np
import pytest
from pipelines import EDEN, SPEC, aggregator, drawn, moved, update

from edge_sdk.aggregation.algorithm import make_algorithm


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_it_is_the_median_of_each_coordinate_whatever_updates_weigh(count: int) -> None:
    deltas = drawn(count)
    found = moved(aggregator(algorithm=make_algorithm("median")), [update(d, 1 + 50 * i) for i, d in enumerate(deltas)])
    np.testing.assert_allclose(found, np.median(np.stack(deltas), axis=0), atol=1e-7)


def test_two_of_five_cannot_move_it_beyond_the_others() -> None:
    deltas = [*drawn(3), *(np.full(SPEC.size, 30.0, dtype=np.float32) for _ in range(2))]
    found = moved(aggregator(algorithm=make_algorithm("median")), [update(delta) for delta in deltas])
    honest = np.stack(deltas[:3])
    assert (found <= honest.max(axis=0)).all() and (found >= honest.min(axis=0)).all()


def test_rotated_updates_are_compared_in_the_models_own_coordinates() -> None:
    (delta,) = drawn(1)
    updates = [update(delta, codec=EDEN, seed=seed) for seed in range(9)]
    found = moved(aggregator(EDEN, algorithm=make_algorithm("median")), updates)
    assert np.linalg.norm(found - delta) < 0.5 * np.linalg.norm(delta)
