"""What every codec promises about vectors: round trips, error bounds, exact selection, determinism."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_sdk.codecs import (
    CODECS,
    MAGNITUDE_MAX,
    CodecSettings,
    decode_update,
    encode_update,
    frame_bytes_max,
)
from edge_sdk.codecs.select import _SAMPLED_SIZE_MIN, _sample_positions
from edge_sdk.errors import ConfigurationError, TrainingError

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 300), elements=FLOATS)
DENSITIES = st.sampled_from([1e-6, 0.003, 0.01, 0.1, 0.5, 1.0])
EVERY_CODEC = [
    CodecSettings("dense"),
    *(
        CodecSettings(name, block_size=block, rounding=rounding)
        for name in ("int8", "int4", "int2")
        for block in (8, 1024)
        for rounding in ("nearest", "stochastic")
    ),
    *(CodecSettings("sparse", density=density) for density in (0.01, 0.3, 1.0)),
    *(CodecSettings("eden", bits=bits) for bits in (0.05, 0.5, 1, 2, 8)),
]
LEVELS = {"int8": 127, "int4": 7, "int2": 1}
EXACT_ENOUGH = [codec for codec in EVERY_CODEC if codec.name != "eden"]
"""Codecs that keep single coordinates; a rotation spreads them."""


def settings_id(value: CodecSettings) -> str:
    return "-".join(str(part) for part in value.to_wire().values())


def gaussian(size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def top_magnitudes(vector: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The ``count`` largest magnitudes, zeros left out, by the textbook."""
    magnitudes = np.abs(vector)
    largest = magnitudes[np.argpartition(magnitudes, vector.size - count)[vector.size - count :]]
    return np.sort(largest[largest > 0])


def pair(vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A delta and a residual of the same size, both awkward."""
    return vector, (np.roll(vector, 1) * np.float32(-0.5)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(VECTORS, DENSITIES)
def test_sent_plus_residual_is_what_was_to_be_sent(vector: NDArray[np.float32], density: float) -> None:
    delta, residual = pair(vector)
    codec = CodecSettings("sparse", density=density)
    encoded = encode_update(delta, {"residual": residual}, codec, seed=0)
    assert encoded.residual is not None and encoded.residual.dtype == np.float32
    sent = decode_update(encoded.frame, delta.size, codec).dense()
    total = delta + residual
    error = np.abs(sent.astype(np.float64) + encoded.residual - total)
    assert (error <= 2.0**-23 * np.maximum(np.abs(total), np.abs(sent))).all()


@settings(max_examples=60, deadline=None)
@given(VECTORS, DENSITIES)
def test_sparse_sends_the_exact_top_k(vector: NDArray[np.float32], density: float) -> None:
    codec = CodecSettings("sparse", density=density)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, vector.size, codec)
    assert decoded.indices is not None and decoded.indices.dtype == np.int64
    assert (np.diff(decoded.indices) > 0).all()
    count = max(1, round(density * vector.size))
    assert np.array_equal(np.sort(np.abs(vector[decoded.indices])), top_magnitudes(vector, count))
    assert (np.sign(decoded.values) == np.sign(vector[decoded.indices])).all()


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.9])
@pytest.mark.parametrize("shape", ["gaussian", "cauchy", "mostly zero", "two levels", "rows", "one level", "denormal"])
def test_the_sampled_filter_changes_nothing_about_the_top_k(shape: str, density: float) -> None:
    size = 100_003
    assert size > _SAMPLED_SIZE_MIN
    rng = np.random.default_rng(3)
    shapes: dict[str, Callable[[], NDArray[np.generic]]] = {
        "gaussian": lambda: rng.standard_normal(size),
        "cauchy": lambda: rng.standard_cauchy(size),
        "mostly zero": lambda: rng.standard_normal(size) * (rng.random(size) < 0.005),
        "two levels": lambda: rng.choice([-1.0, 1.0, 2.0], size),
        "rows": lambda: rng.standard_normal(size) * (np.arange(size) % 1000 < 10),
        "one level": lambda: np.full(size, -0.25),
        "denormal": lambda: rng.integers(-9, 9, size) * 2.0**-149,
    }
    vector = shapes[shape]().astype(np.float32)
    codec = CodecSettings("sparse", density=density)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, size, codec)
    assert decoded.indices is not None
    expected = top_magnitudes(vector, round(density * size))
    assert np.array_equal(np.sort(np.abs(vector[decoded.indices])), expected)


def test_a_sample_that_misleads_costs_time_and_not_exactness() -> None:
    size = 100_000
    vector = gaussian(size) * np.float32(1e-3)
    vector[_sample_positions(size)[:60]] = 5.0  # the sample sees nothing but large magnitudes, and there are only 60
    vector[_sample_positions(size)[60:]] = 4.0
    codec = CodecSettings("sparse", density=0.06)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, size, codec)
    assert decoded.indices is not None and decoded.indices.size == 6000
    assert np.array_equal(np.sort(np.abs(vector[decoded.indices])), top_magnitudes(vector, 6000))


def test_equal_magnitudes_at_the_edge_are_sent_from_the_front() -> None:
    codec = CodecSettings("sparse", density=0.5)
    vector = np.array([1, -2, 2, 2, -2, 3, 2, 0], dtype=np.float32)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, 8, codec)
    assert decoded.indices is not None and decoded.indices.tolist() == [1, 2, 3, 5]


@settings(max_examples=40, deadline=None)
@given(VECTORS)
def test_sparse_magnitudes_are_within_one_step_and_never_clipped(vector: NDArray[np.float32]) -> None:
    codec = CodecSettings("sparse", density=1.0)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, vector.size, codec)
    true = np.abs(vector[vector != 0]).astype(np.float64)
    if true.size:
        step = max((true - true.min()).mean(), 2.0**-126)
        error = np.abs(np.abs(decoded.values.astype(np.float64)) - true)
        assert error.max() <= step * (1 + 2.0**-20) + 2.0**-20 * true.max()


def test_sparse_has_no_mean_error_in_what_it_sends() -> None:
    vector = gaussian(50_000)
    codec = CodecSettings("sparse", density=0.02)
    decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, vector.size, codec)
    true = np.abs(vector[decoded.indices]).astype(np.float64)
    assert abs(np.abs(decoded.values).astype(np.float64).mean() - true.mean()) < 1e-6 * true.mean()


def test_error_feedback_sends_everything_in_the_end() -> None:
    codec = CodecSettings("sparse", density=0.05)
    delta = gaussian(2000)
    sent = np.zeros(2000)
    kept = None
    for _ in range(60):
        encoded = encode_update(delta, kept, codec, seed=0)
        kept, residual = encoded.kept, encoded.residual
        sent += decode_update(encoded.frame, 2000, codec).dense()
    assert residual is not None
    assert np.abs(sent + residual - 60 * delta.astype(np.float64)).max() < 1e-3
    assert np.abs(residual).max() < 60 * np.abs(delta).max() / 3  # an outlier does not pile up


@settings(max_examples=40, deadline=None)
@given(VECTORS, st.sampled_from(sorted(LEVELS)), st.sampled_from(["nearest", "stochastic"]), st.integers(0, 2**64))
def test_quantised_codecs_stay_within_their_bound(
    vector: NDArray[np.float32], name: str, rounding: str, seed: int
) -> None:
    codec = CodecSettings(name, block_size=16, rounding=rounding)
    decoded = decode_update(encode_update(vector, None, codec, seed=seed).frame, vector.size, codec)
    assert decoded.indices is None
    levels = LEVELS[name]
    for start in range(0, vector.size, 16):
        true = vector[start : start + 16].astype(np.float64)
        scale = np.abs(true).max() / levels * (1 + 2.0**-22) + 2.0**-148
        bound = scale * (0.5 if rounding == "nearest" else 1.0)
        error = np.abs(decoded.values[start : start + 16] - true)
        assert error.max() <= bound * (1 + 2.0**-20) if np.abs(true).max() > 0 else error.max() == 0


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_stochastic_rounding_is_unbiased(name: str) -> None:
    codec = CodecSettings(name, block_size=64, rounding="stochastic")
    vector = gaussian(256, seed=5)
    draws = 2000
    total = np.zeros(256)
    for seed in range(draws):
        total += decode_update(encode_update(vector, None, codec, seed=seed).frame, 256, codec).values
    scale = np.abs(vector).max() / LEVELS[name]
    standard_error = 0.5 * scale / np.sqrt(draws)
    assert np.abs(total / draws - vector).max() < 5 * standard_error


def test_dense_is_exact() -> None:
    vector = gaussian(1001)
    decoded = decode_update(
        encode_update(vector, None, CodecSettings("dense"), seed=0).frame, 1001, CodecSettings("dense")
    )
    assert decoded.indices is None and np.array_equal(decoded.values, vector)


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_edge_vectors_survive_the_round_trip(codec: CodecSettings) -> None:
    for size in (1, 2, 7, 8, 9, 1023, 1025, 40_001):
        shapes = {
            "gaussian": gaussian(size),
            "zero": np.zeros(size),
            "equal": np.full(size, -0.125),
            "denormal": np.full(size, 2.0**-149),
            "huge": gaussian(size) * np.float32(1e29),
            "one": (np.arange(size) == size // 2) * 3.5,
        }
        for shape, vector in shapes.items():
            encoded = encode_update(vector.astype(np.float32), None, codec, seed=1)
            decoded = decode_update(memoryview(encoded.frame), size, codec)
            dense = decoded.dense()
            assert dense.shape == (size,) and dense.dtype == np.float32 and np.isfinite(dense).all()
            if shape == "zero":
                assert not dense.any()
            if shape == "one" and codec in EXACT_ENOUGH:
                assert dense[size // 2] == pytest.approx(3.5) and np.count_nonzero(dense) == 1


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_encoding_is_deterministic_and_leaves_its_inputs_alone(codec: CodecSettings) -> None:
    delta, residual = pair(gaussian(5000))
    before = delta.copy(), residual.copy()
    delta.flags.writeable = residual.flags.writeable = False
    first = encode_update(delta, {"residual": residual}, codec, seed=7)
    second = encode_update(delta, {"residual": residual}, codec, seed=7)
    assert first.frame == second.frame
    assert np.array_equal(delta, before[0]) and np.array_equal(residual, before[1])
    assert (first.residual is not None) == ("residual" in codec.keeps) and first.kept.keys() <= codec.keeps
    if first.residual is not None and second.residual is not None:
        assert np.array_equal(first.residual, second.residual)
        assert not np.shares_memory(first.residual, delta) and not np.shares_memory(first.residual, residual)
        alone = encode_update(delta, None, codec, seed=7).residual
        assert alone is not None and not np.shares_memory(alone, delta)


def test_the_seed_decides_stochastic_rounding_and_rotations_only() -> None:
    vector = gaussian(5000)
    for codec in EVERY_CODEC:
        frames = {encode_update(vector, None, codec, seed=seed).frame for seed in range(3)}
        stochastic = getattr(codec.codec, "rounding", "") == "stochastic"
        assert len(frames) == (3 if stochastic or codec.name == "eden" else 1)


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_a_residual_is_sent_by_every_codec(codec: CodecSettings) -> None:
    delta = gaussian(500)
    residual = gaussian(500, seed=1)
    assert (
        encode_update(delta, {"residual": residual}, codec, seed=0).frame
        == encode_update(delta + residual, None, codec, seed=0).frame
    )


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_what_cannot_be_sent_is_a_training_error(codec: CodecSettings) -> None:
    good = gaussian(40_000)
    for bad in (np.nan, np.inf, -np.inf, 1e31, -1e31):
        for at in (0, 20_000, 39_999):
            delta = good.copy()
            delta[at] = bad
            with pytest.raises(TrainingError, match="diverged"):
                encode_update(delta, None, codec, seed=0)
            with pytest.raises(TrainingError, match="diverged"):
                encode_update(good, {"residual": delta}, codec, seed=0)


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_a_sum_that_overflows_is_a_training_error_without_a_warning(codec: CodecSettings) -> None:
    large = np.full(40_000, 3e38, dtype=np.float32)
    with np.errstate(all="raise"), pytest.raises(TrainingError):
        encode_update(large, {"residual": large}, codec, seed=0)


@pytest.mark.parametrize("others", [1.0, 0.5 * MAGNITUDE_MAX, 0.999 * MAGNITUDE_MAX])
def test_the_largest_magnitude_allowed_can_be_sent_by_every_codec(others: float) -> None:
    vector = np.clip(gaussian(300), -1, 1) * np.float32(others)
    vector[17] = -np.float32(MAGNITUDE_MAX)
    for codec in EVERY_CODEC:
        decoded = decode_update(encode_update(vector, None, codec, seed=0).frame, 300, codec).dense()
        assert np.isfinite(decoded).all()
        if codec in EXACT_ENOUGH:
            assert decoded[17] == pytest.approx(-MAGNITUDE_MAX, rel=0.3)  # sparse: three values, steps of a third


@pytest.mark.parametrize(
    "delta",
    [np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(0, np.float32), np.zeros(4, np.int32), [0.0, 1.0]],
)
def test_a_delta_that_is_no_float32_vector_is_named(delta: object) -> None:
    with pytest.raises(ConfigurationError):
        encode_update(delta, None, CodecSettings("sparse"), seed=0)  # type: ignore[arg-type]


def test_a_residual_of_another_size_is_named() -> None:
    with pytest.raises(ConfigurationError, match="residual: 5 elements, the delta has 4"):
        encode_update(np.zeros(4, np.float32), {"residual": np.zeros(5, np.float32)}, CodecSettings("sparse"), seed=0)


def test_a_size_that_no_model_has_is_a_local_error() -> None:
    for size in (0, -1, 1 << 40):
        with pytest.raises(ConfigurationError):
            decode_update(b"", size, CodecSettings("sparse"))
        with pytest.raises(ConfigurationError):
            frame_bytes_max(size, CodecSettings("sparse"))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_frame_exceeds_the_stated_maximum(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 3000))
    density = data.draw(st.floats(1e-6, 1.0))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vector = rng.standard_normal(size).astype(np.float32)
    vector[rng.random(size) < data.draw(st.floats(0, 1))] = 0
    vector[-1] = 9.0  # the last coordinate makes the gaps add up to the most
    codec = CodecSettings("sparse", density=density)
    assert len(encode_update(vector, None, codec, seed=0).frame) <= frame_bytes_max(size, codec)


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=settings_id)
def test_the_decoded_update_does_not_refer_to_the_frame(codec: CodecSettings) -> None:
    frame = bytearray(encode_update(gaussian(200), None, codec, seed=0).frame)
    decoded = decode_update(memoryview(frame), 200, codec)
    before = decoded.dense()
    frame[:] = bytes(len(frame))
    assert np.array_equal(decoded.dense(), before)
    decoded.dense()[:] = 0
    assert np.array_equal(decoded.dense(), before)


def test_frames_are_as_small_as_their_bounds_say() -> None:
    size = 200_000
    vector = gaussian(size)
    sparse = len(encode_update(vector, None, CodecSettings("sparse", density=0.01), seed=0).frame)
    assert sparse * 8 / 2000 < 8.13 + 1 + 1.62 + 0.13  # Rice on gaps, sign, unary steps, headers: bits per coordinate
    structured = vector * (np.arange(size) % 200 < 3)
    assert len(encode_update(structured, None, CodecSettings("sparse", density=0.01), seed=0).frame) < 0.6 * sparse
    for name, ratio in (("dense", 0.999), ("float16", 1.999), ("int8", 3.98), ("int4", 7.93), ("int2", 15.7)):
        assert size * 4 / len(encode_update(vector, None, CodecSettings(name), seed=0).frame) > ratio


def test_wire_ids_are_unique_and_fit_a_byte() -> None:
    ids = [codec.wire_id for codec in CODECS.values()]
    assert len(set(ids)) == len(ids) and all(0 <= wire_id < 256 for wire_id in ids)


def test_importing_the_room_loads_nothing_heavier_than_numpy_and_zlib() -> None:
    script = (
        "import sys, numpy, zlib, struct; before = set(sys.modules); import edge_sdk.codecs; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"hashlib", "ssl", "random", "secrets", "msgpack"} & set(loaded)
    assert set(loaded) <= {"edge_sdk", "numpy", "dataclasses", "copy"}
