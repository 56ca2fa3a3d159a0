"""Sums of features: what they say of examples, that they add up exactly, and that no bytes are believed."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError, ExamplesError
from edge_sdk.training.feature_sums import COUNT_MAX, ExactFeatureSums, FeatureSums, feature_sums, out_of_range_text
from edge_sdk.training.normalise import Normalise

THREE = Normalise("x", 1, 3, "federated", "normalise/mean", "normalise/scale")


def raw(rows: int, seed: int = 0) -> NDArray[np.float64]:
    """Revolutions a minute, degrees and bar."""
    rng = np.random.default_rng(seed)
    return np.array([1480.0, 62.0, 4.2]) + rng.standard_normal((rows, 3)) * [120.0, 5.0, 0.03]


def added(*parts: FeatureSums) -> ExactFeatureSums:
    sums = ExactFeatureSums(3)
    for part in parts:
        sums.add(part)
    return sums


def bits(sums: ExactFeatureSums) -> bytes:
    return b"".join(array.tobytes() for array in sums.result())


def test_mean_and_scale_are_those_of_all_examples_together() -> None:
    parts = [raw(rows, seed) for seed, rows in enumerate((1, 40, 700))]
    mean, scale, missing = added(*(feature_sums(part, THREE) for part in parts)).result()
    whole = np.concatenate(parts)
    assert mean.dtype == scale.dtype == np.float32
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / whole.std(0), rtol=1e-5)
    assert not missing.any()


@given(st.permutations(range(6)), st.integers(0, 6))
def test_any_order_split_and_merge_give_the_same_bits(order: list[int], cut: int) -> None:
    parts = [feature_sums(raw(3 + 10 * seed, seed) * 10.0 ** (5 * seed - 12), THREE) for seed in range(6)]
    shuffled = [parts[i] for i in order]
    left, right = added(*shuffled[:cut]), added(*shuffled[cut:])
    left.merge(right)
    assert bits(left) == bits(added(*parts))
    assert left.devices == 6


def test_sums_survive_the_wire() -> None:
    told = replace(THREE, clip=1500.0)
    sums = feature_sums(raw(50), told)
    assert sums.clipped[0] > 0
    back = FeatureSums.decode(sums.encode(), told)
    for name in ("counts", "sums", "squares", "missing", "clipped"):
        assert np.array_equal(getattr(back, name), getattr(sums, name))


def test_missing_values_are_left_out_and_counted_apart() -> None:
    x = raw(8)
    x[:2, 1] = np.nan
    x[:, 2] = np.nan
    sums = feature_sums(x, THREE)
    assert sums.counts.tolist() == [8, 6, 0] and sums.missing.tolist() == [0, 2, 8]
    mean, scale, missing = added(sums).result()
    np.testing.assert_allclose(mean[:2], [x[:, 0].mean(), x[2:, 1].mean()], rtol=1e-6)
    assert (mean[2], scale[2]) == (0, 0)
    assert missing.tolist() == [0, 0.25, 1]


def test_features_that_do_not_vary_get_scale_zero() -> None:
    x = np.tile(np.array([0.1, -273.15, 1e-42]), (3001, 1))
    mean, scale, _ = added(feature_sums(x, THREE)).result()
    assert scale.tolist() == [0, 0, 0]
    assert np.array_equal(mean, x[0].astype(np.float32))


def test_a_small_spread_around_zero_is_a_spread() -> None:
    x = np.random.default_rng(1).standard_normal((500, 3)) * [1e-30, 1e-9, 1e-3]
    _, scale, _ = added(feature_sums(x, THREE)).result()
    np.testing.assert_allclose(scale, 1 / x.std(0), rtol=1e-5)


def test_values_count_as_if_within_the_stated_range() -> None:
    x = np.array([[1e9, -2e9, 5.0], [0.0, 0.0, 5.0]])
    sums = feature_sums(x, replace(THREE, clip=100.0))
    assert sums.sums.tolist() == [100, -100, 10]
    assert sums.squares.tolist() == [1e4, 1e4, 50]
    assert sums.clipped.tolist() == [1, 1, 0] and not len(sums.out_of_range)
    assert "clipped" not in feature_sums(x[1:], THREE).encode(), "it costs nothing where nothing is clipped"
    assert added(sums, feature_sums(x[1:], replace(THREE, clip=100.0))).clipped().tolist() == [1 / 3, 1 / 3, 0]


def test_a_feature_of_which_most_values_are_clipped_is_out_of_range() -> None:
    x = np.array([[1e9, -2e9, 5.0], [0.0, 1e7, 5.0], [0.0, np.nan, 5.0]])
    sums = FeatureSums.decode(feature_sums(x, THREE).encode(), THREE)
    assert sums.out_of_range.tolist() == [1]
    assert out_of_range_text(sums, ["a", "pascal", "c"], 1e6) == (
        "values of pascal (100%) are beyond +-1e+06 (model.normalise_clip)"
    )
    assert out_of_range_text(feature_sums(x[:, 2:], replace(THREE, features=1)), ["c"], 1e6) == ""


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3, 5), 1), ((4, 5, 3), 2), ((4, 3, 2, 2), 1), ((70_000, 3), 1), ((5, 3, 200, 200), 1)]
)
def test_all_dimensions_but_the_features_are_summed_over(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(0).uniform(-3, 9, shape).astype(np.float32)
    sums = feature_sums(x, replace(THREE, axis=axis))
    others = tuple(i for i in range(len(shape)) if i != axis)
    assert sums.counts.tolist() == [x.size // 3] * 3
    np.testing.assert_allclose(sums.sums, x.sum(axis=others, dtype=np.float64))
    np.testing.assert_allclose(sums.squares, np.square(x.astype(np.float64)).sum(axis=others))


def test_unsigned_bytes_and_whole_numbers_are_summed_as_the_model_gets_them() -> None:
    x = np.full((300, 3), 255)
    for dtype in (np.uint8, np.int64, np.float16, np.float64):
        sums = feature_sums(x.astype(dtype), THREE)
        assert sums.sums.tolist() == [76500] * 3 and sums.squares.tolist() == [300 * 255.0**2] * 3


def test_infinite_values_and_other_shapes_are_refused() -> None:
    with pytest.raises(ExamplesError, match="infinite"):
        feature_sums(np.array([[1.0, np.inf, 1.0]]), THREE)
    with pytest.raises(ExamplesError, match="infinite"):
        feature_sums(np.array([[1.0, 1e300, 1.0]]), THREE)  # infinite in float32
    with pytest.raises(ExamplesError, match="expected 3 features in dimension 1"):
        feature_sums(np.zeros((5, 4)), THREE)


def packed(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("sums", packed(1, 2), "not 24 bytes"),
        ("sums", packed(1, 2, 3, 4), "not 24 bytes"),
        ("sums", "123456789012345678901234", "not 24 bytes"),
        ("sums", packed(1, 2, float("nan")), "not finite"),
        ("squares", packed(1, 2, float("inf")), "not finite"),
        ("values", packed(2, 2, 2), "not 8 bytes"),
        ("values", packed(-1), "not whole"),
        ("values", packed(1.5), "not whole"),
        ("values", packed(2.0 * COUNT_MAX), "not whole"),
        ("values", packed(0), "no value at all"),
        ("missing", packed(0, 0, 0.5), "not whole"),
        ("missing", packed(0, 0, 3), "more are missing than there are"),
        ("missing", packed(0, 2, 0), "a sum is larger"),
        ("clipped", packed(0, 0, 3), "more values were clipped than there are"),
        ("clipped", packed(0, 0, -1), "not whole"),
        ("clipped", packed(0, 0), "not 24 bytes"),
        ("sums", packed(2e6 + 3, 0, 0), "a sum is larger"),
        ("squares", packed(1, 1, 3e12), "squares is larger"),
        ("squares", packed(1, 1, 0.4), "squares is smaller"),
        ("squares", packed(1, 1, -1), "squares is smaller"),
    ],
)
def test_bytes_that_are_no_sums_are_refused(name: str, data: object, said: str) -> None:
    good = {
        "values": packed(2),
        "sums": packed(1, 1, 1),
        "squares": packed(1, 1, 1),
    }
    FeatureSums.decode(good, THREE)
    with pytest.raises(DecodeError, match=said) as refused:
        FeatureSums.decode({**good, name: data}, THREE)  # type: ignore[dict-item]
    assert refused.value.reason == "feature_sums"


def test_arrays_that_are_missing_or_unknown_are_refused() -> None:
    good = feature_sums(raw(5), THREE).encode()
    with pytest.raises(DecodeError, match="squares, sums, values, and missing or clipped"):
        FeatureSums.decode({**good, "more": b""}, THREE)
    good.pop("values")
    with pytest.raises(DecodeError, match="squares, sums, values, and missing or clipped"):
        FeatureSums.decode(good, THREE)


def test_sums_of_another_number_of_features_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        ExactFeatureSums(2).add(feature_sums(raw(5), THREE))
    with pytest.raises(ValueError, match="expected 2"):
        ExactFeatureSums(2).merge(ExactFeatureSums(3))


def test_a_device_counts_as_its_weight_however_many_values_it_has() -> None:
    few, many = raw(10), raw(400) + np.array([5.0, 0.0, -1.0])
    both = ExactFeatureSums(3)
    both.add(feature_sums(few, THREE), weight=30)
    both.add(feature_sums(many, THREE), weight=10)
    mean, scale, _ = both.result()
    means = np.average([few.mean(0), many.mean(0)], axis=0, weights=[30, 10])
    squares = np.average([np.square(few).mean(0), np.square(many).mean(0)], axis=0, weights=[30, 10])
    np.testing.assert_allclose(mean, means, rtol=1e-5)
    np.testing.assert_allclose(scale, 1 / np.sqrt(squares - means**2), rtol=1e-4)
    as_many_as_they_are = ExactFeatureSums(3)
    as_many_as_they_are.add(feature_sums(few, THREE), weight=10)
    assert [part.tobytes() for part in as_many_as_they_are.result()] == [
        part.tobytes() for part in added(feature_sums(few, THREE)).result()
    ]


def test_weighted_sums_give_the_same_bits_in_any_order() -> None:
    sums = [feature_sums(raw(rows), THREE) for rows in (3, 50, 7)]
    forwards, backwards = ExactFeatureSums(3), ExactFeatureSums(3)
    for number in range(3):
        forwards.add(sums[number], weight=number + 1)
        backwards.add(sums[2 - number], weight=3 - number)
    assert [part.tobytes() for part in forwards.result()] == [part.tobytes() for part in backwards.result()]
