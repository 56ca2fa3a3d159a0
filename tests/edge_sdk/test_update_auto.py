"""The codec that chooses: what for which vector, round and device; and what its frames promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings, decode_update, encode_update, fitted, frame_bytes_max, frame_codec
from edge_sdk.codecs.eden import bits_for
from edge_sdk.errors import DecodeError
from edge_sdk.wire.messages import Update

SIZE = 50_000
AUTO = CodecSettings("auto", bits=0.09)


def flat(size: int = SIZE) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def few(count: int = 100, rest: float = 0.0) -> NDArray[np.float32]:
    """A vector of which ``count`` coordinates are large."""
    vector = flat() * np.float32(rest)
    vector[:: SIZE // count] = flat()[:: SIZE // count]
    return vector


def chosen(vector: NDArray[np.float32], settings: CodecSettings = AUTO, *, keeps_residual: bool = True) -> str:
    encoded = encode_update(vector, None, settings, seed=1, keeps_residual=keeps_residual)
    assert len(encoded.frame) <= frame_bytes_max(vector.size, settings)
    decode_update(encoded.frame, vector.size, settings)
    return frame_codec(encoded.frame)


def test_a_rotation_is_the_rule_and_sparse_is_for_what_is_sparse() -> None:
    assert chosen(flat()) == "eden"
    assert chosen(few()) == chosen(np.zeros(SIZE, np.float32)) == "sparse"
    assert chosen(few(rest=0.005)) == "sparse"
    assert chosen(few(rest=0.1)) == "eden"


def test_what_would_be_lost_is_not_left_out() -> None:
    nearly = few(rest=0.005)  # a share of one per cent of the energy is elsewhere
    assert chosen(nearly, keeps_residual=False) == "eden"
    assert chosen(few(), keeps_residual=False) == "sparse"
    for participation, name in ((0.01, "eden"), (0.5, "sparse"), (0.0, "sparse")):
        assert chosen(nearly, CodecSettings("auto", bits=0.09, participation=participation)) == name


def test_small_vectors_are_sent_in_eight_bits() -> None:
    assert chosen(flat(1023)) == "int8" and chosen(flat(1024)) == "eden"


@pytest.mark.parametrize("bits", [0.01, 0.09, 1.0, 8.0])
def test_no_model_however_small_is_sent_in_more_bytes_than_dense_takes(bits: float) -> None:
    auto, dense = CodecSettings("auto", bits=bits), CodecSettings("dense")
    for size in (*range(1, 40), 257, 1023, 1024, 1025, 4097):
        sent = encode_update(flat(size), None, auto, seed=1).frame
        assert len(sent) <= len(encode_update(flat(size), None, dense, seed=1).frame)
        assert len(sent) <= frame_bytes_max(size, auto) <= frame_bytes_max(size, dense)
        assert np.isfinite(decode_update(sent, size, auto).dense()).all()


def test_the_whole_update_of_31_parameters_is_smaller_than_they_are() -> None:
    frame = encode_update(flat(31), None, AUTO, seed=1).frame
    update = Update(
        examples=200, steps=40, loss=0.7, complete=True, seconds=1.5, engine="onnxruntime", vectors={"delta": (frame,)}
    )
    assert len(update.encode()) < 4 * 31


def test_one_number_is_sent_as_it_is() -> None:
    assert chosen(flat(2)) == "dense" and chosen(flat(3)) == "int8"


@pytest.mark.parametrize("limit", [100, 400, 3000])
def test_a_limit_of_bytes_is_kept(limit: int) -> None:
    settings = fitted(CodecSettings("auto", bits=4), SIZE, limit)
    assert settings is not None and frame_bytes_max(SIZE, settings) <= limit
    for vector in (flat(), few(), few(rest=0.1)):
        assert len(encode_update(vector, None, settings, seed=0).frame) <= limit


def test_frames_of_codecs_that_it_never_chooses_and_larger_ones_are_refused() -> None:
    for codec in (CodecSettings("dense"), CodecSettings("int4"), CodecSettings("eden", bits=1)):
        with pytest.raises(DecodeError):
            decode_update(encode_update(flat(), None, codec, seed=0).frame, SIZE, AUTO)
    with pytest.raises(DecodeError):
        decode_update(encode_update(flat(), None, CodecSettings("sparse", density=0.1), seed=0).frame, SIZE, AUTO)


def test_the_residual_of_sparse_is_sent_whatever_comes_next() -> None:
    first = encode_update(few(rest=0.005), None, AUTO, seed=0)
    assert first.residual is not None and first.residual.any()
    second = encode_update(flat(), first.kept, AUTO, seed=1)
    assert second.residual is None
    assert second.frame == encode_update(flat() + first.residual, None, AUTO, seed=1).frame


def test_bits_fall_with_the_cohort_and_rise_with_momentum() -> None:
    assert [bits_for(m) for m in (1, 2, 5, 10, 50, 1000)] == [3.0, 1.0, 0.255, 0.09, 0.01, 0.01]
    for m in (1, 2, 3, 5, 7, 10, 20, 100, 10_000):
        for momentum in (False, True):
            CodecSettings("auto", bits=bits_for(m, momentum))
        assert bits_for(m, True) >= bits_for(m)


def test_frames_tell_their_codec() -> None:
    for name in ("dense", "float16", "int8", "int4", "int2", "sparse", "eden"):
        assert frame_codec(encode_update(flat(2000), None, CodecSettings(name), seed=0).frame) == name
    assert frame_codec(b"") == frame_codec(b"\x02\x00\x00\x00\x00\xfe") == "unknown"


def test_momentum_correction_sends_a_sum_that_forgets_and_is_forgotten_where_it_is_sent() -> None:
    codec, size = CodecSettings("sparse", density=0.1, momentum=0.5), 200
    delta = flat(size)
    residual, velocity = np.zeros(size), np.zeros(size)
    kept: dict[str, NDArray[np.float32]] = {}
    for seed in range(5):
        encoded = encode_update(delta, kept, codec, seed=seed)
        kept = encoded.kept
        sent = decode_update(encoded.frame, size, codec).dense()
        velocity = 0.5 * velocity + delta
        residual = residual + velocity - sent
        velocity[sent != 0] = 0.0
        assert kept.keys() == {"residual", "velocity"}
        np.testing.assert_allclose(kept["residual"], residual, atol=1e-5)
        np.testing.assert_allclose(kept["velocity"], velocity, atol=1e-5)
    # A plan that drops the momentum goes on with the residual alone.
    plain = encode_update(delta, kept, CodecSettings("sparse", density=1.0), seed=9)
    assert plain.kept.keys() == {"residual"} and plain.residual is not None
    np.testing.assert_allclose(
        decode_update(plain.frame, size, CodecSettings("sparse", density=1.0)).dense() + plain.residual,
        delta + residual,
        atol=1e-4,
    )
