"""Every refusal has its reason code, and what passes is safe to add."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.validate import Validation
from edge_sdk.aggregation.sums import FixedPoint, WeightedMean
from edge_sdk.codecs import CodecSettings, Decoded, Rotated, decode_update, encode_update
from edge_sdk.errors import ConfigurationError, ProtocolError

SIZE = 6
GATE = Validation(SIZE, value_max=8.0, norm_max=10.0, examples_max=1000, steps_max=500, loss_max=100.0)
CLAIMS: dict[str, Any] = {"examples": 10, "steps": 5, "loss": 0.3}


def dense(*elements: float) -> Decoded:
    return Decoded(SIZE, None, np.array(elements, dtype=np.float32))


def sparse(indices: list[int], elements: list[float]) -> Decoded:
    return Decoded(SIZE, np.array(indices, dtype=np.int64), np.array(elements, dtype=np.float32))


GOOD = dense(0, 1, -2, 2, 0, 0)


def refusal(decoded: Decoded | Rotated, gate: Validation = GATE, **claims: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        gate.check((decoded,), **(CLAIMS | claims))
    return caught.value.reason


def test_a_good_update_passes_and_its_norm_comes_back() -> None:
    assert GATE.check((GOOD,), **CLAIMS) == 3.0
    assert GATE.check((sparse([1, 2, 5], [1, -2, 2]),), **CLAIMS, evaluation=(4.0, 9.0, 10)) == 3.0
    assert GATE.check((sparse([], []),), **CLAIMS) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    assert refusal(dense(0, 0, bad, 0, 0, 0)) == "nan"
    assert refusal(dense(bad, 1, bad, 0, 0, math.nan)) == "nan"
    assert refusal(sparse([3], [bad])) == "nan"


@pytest.mark.parametrize(
    "decoded",
    [
        Decoded(SIZE + 1, None, np.zeros(SIZE + 1, np.float32)),
        Decoded(SIZE, None, np.zeros(SIZE - 1, np.float32)),
        Decoded(SIZE, None, np.zeros((2, 3), np.float32)),
        Decoded(SIZE, None, np.zeros(SIZE)),  # type: ignore[arg-type]
        sparse([1, 2], [1.0]),
        sparse([-1, 2], [1.0, 1.0]),
        sparse([1, SIZE], [1.0, 1.0]),
        sparse([2, 2], [1.0, 1.0]),
        sparse([3, 2, 4], [1.0, 1.0, 1.0]),
        Decoded(SIZE, np.array([1], np.int32), np.zeros(1, np.float32)),  # type: ignore[arg-type]
    ],
)
def test_wrong_shapes_are_refused(decoded: Decoded) -> None:
    assert refusal(decoded) == "shape"


def test_values_and_norms_are_bounded() -> None:
    assert GATE.check((dense(8, 0, 0, 0, 0, 0),), **CLAIMS) == 8.0
    assert refusal(dense(8.001, 0, 0, 0, 0, 0)) == "value"
    assert refusal(dense(-8.001, 0, 0, 0, 0, 0)) == "value"
    assert GATE.check((dense(6, 8, 0, 0, 0, 0),), **CLAIMS) == 10.0
    assert refusal(dense(6, 8, 0.1, 0, 0, 0)) == "norm"
    assert refusal(GOOD, norm_bound=2.9) == "norm"
    assert Validation(SIZE).check((dense(32, 32, 32, 32, 32, 32),), **CLAIMS) > 32


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"examples": 0}, "examples"),
        ({"examples": 1001}, "examples"),
        ({"examples": True}, "examples"),
        ({"examples": 1.5}, "examples"),
        ({"steps": -1}, "steps"),
        ({"steps": 501}, "steps"),
        ({"loss": math.nan}, "loss"),
        ({"loss": -101.0}, "loss"),
        ({"evaluation": (math.inf, 0.0, 5)}, "evaluation"),
        ({"evaluation": (0.0, math.nan, 5)}, "evaluation"),
        ({"evaluation": (0.0, 0.0, 0)}, "evaluation"),
        ({"evaluation": (0.0, 0.0, 1001)}, "evaluation"),
        ({"evaluation": (1e6, 0.0, 5)}, "evaluation"),
    ],
)
def test_claims_out_of_range_are_refused(claims: dict[str, Any], reason: str) -> None:
    assert refusal(GOOD, **claims) == reason


def test_the_adaptive_bound_is_off_by_default() -> None:
    assert Validation(SIZE).norm_bound([1.0] * 100) == math.inf
    assert GATE.norm_bound([1.0] * 100) == 10.0


def test_the_adaptive_bound_is_a_multiple_of_the_median_once_enough_norms_are_known() -> None:
    gate = Validation(SIZE, norm_max=50.0, norm_median_factor=3.0, norms_needed=5)
    assert gate.norm_bound([1.0] * 4) == 50.0
    assert gate.norm_bound([2.0, 1.0, 2.0, 1e9, 2.0]) == 6.0
    assert gate.norm_bound([100.0] * 5) == 50.0, "it never loosens the fixed bound"
    assert gate.norm_bound([0.0] * 5) == 50.0, "a task that stands still does not lock everybody out"


@given(st.lists(st.floats(0.5, 2.0), min_size=21, max_size=60), st.lists(st.floats(0, 1e9), max_size=10))
def test_a_minority_cannot_move_the_adaptive_bound_far(honest: list[float], hostile: list[float]) -> None:
    bound = Validation(SIZE, norm_median_factor=4.0).norm_bound(honest + hostile)
    assert 2.0 <= bound <= 8.0


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"value_max": 0.0},
        {"value_max": math.inf},
        {"norm_max": -1.0},
        {"norm_median_factor": 1.0},
        {"norms_needed": 0},
        {"examples_max": 0},
        {"steps_max": 0},
        {"loss_max": math.nan},
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Validation(**({"size": SIZE} | settings))


floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(floats32, min_size=SIZE, max_size=SIZE), st.integers(1, 1000))
def test_what_passes_the_gate_never_spoils_a_sum(elements: list[float], examples: int) -> None:
    point = FixedPoint(fraction_bits=30, value_max=GATE.value_max, weight_sum_max=2000)
    mean, update = WeightedMean(SIZE, point), dense(*elements)
    mean.accumulate(GOOD, 1000)
    try:
        GATE.check((update,), **(CLAIMS | {"examples": examples}))
    except ProtocolError:
        return
    mean.accumulate(update, examples)
    expected = (GOOD.values.astype(float) * 1000 + update.values.astype(float) * examples) / (1000 + examples)
    np.testing.assert_allclose(mean.report(), expected, rtol=1e-6, atol=2**-29)


@pytest.mark.parametrize("metric_sum", [-1.0, 10.5])
def test_an_accuracy_that_cannot_be_is_refused(metric_sum: float) -> None:
    decoded = Decoded(SIZE, None, np.zeros(SIZE, dtype=np.float32))
    evaluation = (1.0, metric_sum, 10)
    Validation(SIZE).check((decoded,), examples=1, steps=1, loss=0.0, evaluation=(1.0, 10.0, 10), metric_max=1.0)
    with pytest.raises(ProtocolError, match="not possible"):
        Validation(SIZE).check((decoded,), examples=1, steps=1, loss=0.0, evaluation=evaluation, metric_max=1.0)


def test_a_rotated_update_is_bounded_by_what_is_added_up_and_by_its_norm() -> None:
    codec, size = CodecSettings("eden", bits=0.5), 300
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    decoded = decode_update(encode_update(vector, None, codec, seed=1).frame, size, codec)
    assert isinstance(decoded, Rotated)
    norm = Validation(size).check((decoded,), **CLAIMS)
    assert norm == pytest.approx(float(np.linalg.norm(decoded.dense())), rel=0.2)  # with that of the filling
    for bounds, reason in (({"value_max": 0.9 * decoded.largest()}, "value"), ({"norm_max": 0.9 * norm}, "norm")):
        assert refusal(decoded, Validation(size, **bounds)) == reason
    assert refusal(decoded) == "shape"
