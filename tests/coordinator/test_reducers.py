"""Sums that do not depend on order, split or merge, and that agree with exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.aggregation.sums import FixedPoint, ScalarSums, WeightedMean
from edge_sdk.codecs import CodecSettings, Decoded, Rotated, decode_update, encode_update
from edge_sdk.errors import ConfigurationError, StateError

SIZE = 40
POINT = FixedPoint(fraction_bits=30, value_max=32.0, weight_sum_max=1 << 20)

values = st.floats(-32.0, 32.0, width=32)
weights = st.integers(1, 1000)


def dense(elements: list[float]) -> Decoded:
    return Decoded(len(elements), None, np.array(elements, dtype=np.float32))


def sparse(size: int, chosen: dict[int, float]) -> Decoded:
    indices = np.array(sorted(chosen), dtype=np.int64)
    return Decoded(size, indices, np.array([chosen[i] for i in sorted(chosen)], dtype=np.float32))


updates = st.one_of(
    st.lists(values, min_size=SIZE, max_size=SIZE).map(dense),
    st.dictionaries(st.integers(0, SIZE - 1), values, max_size=10).map(lambda chosen: sparse(SIZE, chosen)),
)
cohorts = st.lists(st.tuples(updates, weights), min_size=1, max_size=8)


def total(cohort: list[tuple[Decoded, int]]) -> WeightedMean:
    mean = WeightedMean(SIZE, POINT)
    for update, weight in cohort:
        mean.accumulate(update, weight)
    return mean


@settings(max_examples=60, deadline=None)
@given(cohorts, st.randoms(use_true_random=False), st.lists(st.integers(0, 8), max_size=3))
def test_any_order_split_and_merge_gives_the_same_bits(
    cohort: list[tuple[Decoded, int]], random: object, cuts: list[int]
) -> None:
    expected = total(cohort)
    shuffled = list(cohort)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = WeightedMean(SIZE, POINT)
    edges = sorted({0, len(cohort), *(min(cut, len(cohort)) for cut in cuts)})
    for start, stop in pairwise(edges):
        part = total(shuffled[start:stop])
        before = part.to_bytes()
        merged.merge(WeightedMean.from_bytes(before))
        assert part.to_bytes() == before
    assert merged.to_bytes() == expected.to_bytes()
    assert merged.report().tobytes() == expected.report().tobytes()


@settings(max_examples=60, deadline=None)
@given(cohorts)
def test_the_mean_is_that_of_exact_arithmetic(cohort: list[tuple[Decoded, int]]) -> None:
    mean = total(cohort)
    assert mean.count == len(cohort)
    assert mean.weight_sum == sum(weight for _, weight in cohort)
    reported = mean.report()
    for element in range(SIZE):
        exact = sum(Fraction(float(u.dense()[element])) * w for u, w in cohort) / mean.weight_sum
        unit = 2.0**-30 * (0.5 * len(cohort) / mean.weight_sum)  # half a unit an update, before the division
        assert (
            abs(Fraction(float(reported[element])) - exact)
            <= unit + abs(exact) * Fraction(2) ** -24 + Fraction(2) ** -140
        )


def test_a_long_vector_is_summed_in_blocks_like_a_short_one() -> None:
    size = (1 << 15) * 2 + 17
    rng = np.random.default_rng(1)
    vector: NDArray[np.float32] = rng.standard_normal(size).astype(np.float32)
    everything, kept = WeightedMean(size, POINT), np.flatnonzero(vector > 0.5)
    everything.accumulate(Decoded(size, None, vector), 3)
    expected = np.rint(vector.astype(np.float64) * 3 * 2**30) / (3 * 2**30)
    assert np.array_equal(everything.report(), expected.astype(np.float32))
    some = WeightedMean(size, POINT)
    some.accumulate(Decoded(size, kept, vector[kept]), 3)
    assert np.array_equal(some.report()[kept], everything.report()[kept])
    assert not some.report()[np.setdiff1d(np.arange(size), kept)].any()


def test_accumulate_leaves_the_update_as_it_was() -> None:
    update = dense([1.0] * SIZE)
    update.values.flags.writeable = False
    WeightedMean(SIZE, POINT).accumulate(update, 2)
    assert (update.values == 1.0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "point",
    [
        FixedPoint(30, 32.0, (1 << 28) - 1),
        FixedPoint(52, 1.0, 2047),
        FixedPoint(10, 1e6, 8_000_000_000),
        FixedPoint(30, 0.1, 80_000_000_000),
        FixedPoint(),
    ],
)
def test_the_largest_sum_at_the_bounds_does_not_overflow(point: FixedPoint, sign: float) -> None:
    mean = WeightedMean(1, point)
    largest = (
        np.nextafter(np.float32(point.value_max), np.float32(0))
        if point.value_max == 0.1
        else np.float32(point.value_max)
    )
    half = point.weight_sum_max // 2
    for weight in (1, half, point.weight_sum_max - half - 1):
        mean.accumulate(Decoded(1, None, np.array([sign * largest], np.float32)), weight)
    assert not mean.fits(1)
    assert math.isclose(float(mean.report()[0]), sign * float(largest), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ((30, 32.0, 1 << 28), "set fraction_bits to 29"),
        ((52, 1.0, 2048), "set fraction_bits to 51"),
        ((0, 1.0, 1), "fraction_bits is 0"),
        ((53, 1.0, 1), "fraction_bits is 53"),
        ((30, math.inf, 1), "value_max is inf"),
        ((30, 0.0, 1), r"value_max is 0\.0"),
        ((30, 1.0, 0), "weight_sum_max is 0"),
    ],
)
def test_bounds_that_could_overflow_are_refused_with_the_remedy(fields: tuple[int, float, int], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        FixedPoint(*fields)


@pytest.mark.parametrize("weight", [0, -1, 1.0, True, (1 << 20) + 1])
def test_a_weight_that_does_not_fit_changes_nothing(weight: int) -> None:
    mean = WeightedMean(SIZE, POINT)
    with pytest.raises(ValueError, match="weight"):
        mean.accumulate(dense([1.0] * SIZE), weight)
    assert mean.to_bytes() == WeightedMean(SIZE, POINT).to_bytes()


def test_sums_that_do_not_belong_together_are_refused() -> None:
    mean = total([(dense([1.0] * SIZE), 1 << 19)])
    with pytest.raises(ValueError, match="different sizes or scales"):
        mean.merge(WeightedMean(SIZE + 1, POINT))
    with pytest.raises(ValueError, match="different sizes or scales"):
        mean.merge(WeightedMean(SIZE, FixedPoint(29, 32.0, 1 << 20)))
    with pytest.raises(ValueError, match="above weight_sum_max"):
        mean.merge(total([(dense([1.0] * SIZE), (1 << 19) + 1)]))
    with pytest.raises(ValueError, match="2 elements, the sum has 40"):
        mean.accumulate(dense([1.0, 2.0]), 1)
    with pytest.raises(ConfigurationError, match="size is 0"):
        WeightedMean(0, POINT)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no updates"):
        WeightedMean(SIZE, POINT).report()


def test_a_sum_goes_on_where_its_checkpoint_stopped() -> None:
    cohort = [(dense([0.1 * i] * SIZE), i + 1) for i in range(6)]
    restored = WeightedMean.from_bytes(total(cohort[:3]).to_bytes())
    for update, weight in cohort[3:]:
        restored.accumulate(update, weight)
    assert restored.to_bytes() == total(cohort).to_bytes()


def test_torn_or_flipped_checkpoints_are_refused() -> None:
    sums = ScalarSums(["loss_sum", "count"])
    sums.accumulate({"loss_sum": 1.5, "count": 3})
    for data, kind in ((total([(dense([1.0] * SIZE), 1)]).to_bytes(), WeightedMean), (sums.to_bytes(), ScalarSums)):
        bad = [data[:n] for n in range(len(data))] + [data + b"\0"]
        bad += [data[:i] + bytes([data[i] ^ 0x40]) + data[i + 1 :] for i in range(len(data))]
        for damaged in bad:
            with pytest.raises(StateError):
                kind.from_bytes(damaged)  # type: ignore[attr-defined]


metrics = st.dictionaries(
    st.sampled_from(["loss_sum", "metric_sum", "count"]),
    st.one_of(st.floats(-1e15, 1e15), st.integers(0, 10**15)),
    max_size=3,
)


@given(st.lists(metrics, max_size=8), st.randoms(use_true_random=False), st.integers(0, 8))
def test_scalar_sums_do_not_depend_on_order_or_split(devices: list[dict[str, float]], random: object, cut: int) -> None:
    names = ["loss_sum", "metric_sum", "count"]
    expected = ScalarSums(names)
    for numbers in devices:
        expected.accumulate(numbers)
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = ScalarSums(names), ScalarSums(names)
    for numbers in shuffled[:cut]:
        one.accumulate(numbers)
    for numbers in shuffled[cut:]:
        other.accumulate(numbers)
    other.merge(ScalarSums.from_bytes(one.to_bytes()))
    assert other.to_bytes() == expected.to_bytes()
    assert other.report() == expected.report()
    for name, value in expected.report().items():
        exact = sum((Fraction(numbers.get(name, 0)) for numbers in devices), Fraction(0))
        assert abs(Fraction(value) - exact) <= len(devices) * Fraction(1, 1 << 41) + abs(exact) * Fraction(1, 1 << 52)


@pytest.mark.parametrize(
    "numbers", [{"loss_sum": math.nan}, {"loss_sum": math.inf}, {"loss_sum": 2e15}, {"other": 1.0}]
)
def test_bad_numbers_add_nothing(numbers: dict[str, float]) -> None:
    sums = ScalarSums(["count", "loss_sum"])
    with pytest.raises(ValueError, match=r"loss_sum|other"):
        sums.accumulate({"count": 1.0, **numbers})
    assert sums.report() == {"count": 0.0, "loss_sum": 0.0}
    with pytest.raises(ValueError, match="different names"):
        sums.merge(ScalarSums(["count"]))


@pytest.mark.parametrize("names", [[], ["a", "a"], [""], ["x" * 300]])
def test_wrong_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="different names"):
        ScalarSums(names)


def rotated(seed: int, shared: int, size: int = 5000) -> Rotated:
    vector = np.random.default_rng(seed).standard_normal(size).astype(np.float32) / 100
    codec = CodecSettings("eden", bits=0.2)
    decoded = decode_update(encode_update(vector, None, codec, seed=seed << 20, shared_seed=shared).frame, size, codec)
    assert isinstance(decoded, Rotated)
    return decoded


def test_updates_of_one_rotation_are_summed_before_they_are_rotated_back() -> None:
    updates = [rotated(seed, shared=7) for seed in range(5)]
    mean = WeightedMean(5000, FixedPoint(), rotation=7)
    for weight, update in enumerate(updates, start=1):
        mean.accumulate(update, weight)
    expected = sum(weight * update.dense() for weight, update in enumerate(updates, start=1)) / 15
    np.testing.assert_allclose(mean.report(), expected, atol=1e-5 * np.abs(expected).max())


def test_rotated_sums_have_the_same_bits_in_any_order_and_split() -> None:
    # One of another rotation is among them, and a plain one.
    updates: list[Decoded | Rotated] = [*(rotated(seed, shared=7) for seed in range(4)), rotated(9, shared=8)]
    updates.append(Decoded(5000, None, np.full(5000, 0.25, dtype=np.float32)))
    whole = WeightedMean(5000, FixedPoint(), rotation=7)
    for update in updates:
        whole.accumulate(update, 3)
    halves = [WeightedMean(5000, FixedPoint(), rotation=7) for _ in range(2)]
    for number, update in enumerate(reversed(updates)):
        halves[number % 2].accumulate(update, 3)
    merged = WeightedMean.from_bytes(halves[0].to_bytes())
    merged.merge(halves[1])
    assert merged.to_bytes() == whole.to_bytes()
    assert merged.report().tobytes() == whole.report().tobytes()


def test_rotated_sums_of_different_rotations_do_not_merge() -> None:
    one, other = (WeightedMean(5000, FixedPoint(), rotation=shared) for shared in (7, 8))
    one.accumulate(rotated(1, shared=7), 1)
    other.accumulate(rotated(2, shared=8), 1)
    with pytest.raises(ValueError, match="rotation"):
        one.merge(other)
