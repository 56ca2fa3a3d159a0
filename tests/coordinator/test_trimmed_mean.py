"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import numpy as np
import pytest
from pipelines import SPEC, aggregator, drawn, moved, update

from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.errors import ConfigurationError


@pytest.mark.parametrize(
    ("count", "fraction", "cut"), [(10, 0.2, 2), (5, 0.2, 1), (4, 0.2, 0), (7, 0.45, 3), (6, 0, 0)]
)
def test_it_is_the_mean_of_what_is_left_of_each_coordinate(count: int, fraction: float, cut: int) -> None:
    deltas = drawn(count)
    rule = make_algorithm("trimmed_mean", {"fraction": fraction})
    found = moved(aggregator(algorithm=rule), [update(delta, 1 + 50 * i) for i, delta in enumerate(deltas)])
    expected = np.sort(np.stack(deltas).astype(np.float64), axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_one_of_five_is_cut_off_by_default() -> None:
    deltas = [*drawn(4), np.full(SPEC.size, -30.0, dtype=np.float32)]
    found = moved(aggregator(algorithm=make_algorithm("trimmed_mean")), [update(delta) for delta in deltas])
    honest = np.stack(deltas[:4])
    assert (found <= honest.max(axis=0)).all() and (found >= honest.min(axis=0)).all()


@pytest.mark.parametrize("fraction", [0.5, -0.1, True])
def test_a_fraction_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=r"aggregation\.options\.fraction is"):
        make_algorithm("trimmed_mean", {"fraction": fraction})
