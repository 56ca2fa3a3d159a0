"""Settings that are made to fit a limit of bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import CODECS, CodecSettings, decode_update, encode_update, fitted, frame_bytes_max
from edge_sdk.codecs.frames import encode_frames, fitted_frames, frames_bytes_max
from edge_sdk.parameters import ParameterSpec

SPARSE = CodecSettings("sparse", density=0.1)


@pytest.mark.parametrize("name", CODECS)
def test_what_fits_and_what_is_not_limited_stays_as_it_is(name: str) -> None:
    asked = CodecSettings.of(name, density=0.1)
    assert fitted(asked, 5000, 0) is asked
    assert fitted(asked, 5000, frame_bytes_max(5000, asked)) is asked


@pytest.mark.parametrize("name", sorted({*CODECS} - {"sparse", "eden", "auto"}))
def test_a_codec_that_cannot_send_less_does_not_fit(name: str) -> None:
    asked = CodecSettings(name)
    assert fitted(asked, 5000, frame_bytes_max(5000, asked) - 1) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1 << 28), st.floats(1e-6, 1.0), st.integers(1, 1 << 20))
def test_a_fitted_density_is_within_the_limit_and_never_above_what_was_asked(
    size: int, density: float, limit: int
) -> None:
    asked = CodecSettings("sparse", density=density)
    found = fitted(asked, size, limit)
    if found is None:
        assert frame_bytes_max(size, CodecSettings("sparse", density=1e-6)) > limit
        return
    assert frame_bytes_max(size, found) <= limit
    assert max(1, round(found.to_wire()["density"] * size)) <= max(1, round(density * size))


def test_a_fitted_density_leaves_little_of_the_limit_unused() -> None:
    for limit in (1_000, 10_000, 20_000):
        found = fitted(SPARSE, 1_000_000, limit)
        assert found is not None and 0.99 * limit < frame_bytes_max(1_000_000, found) <= limit


def test_what_a_fitted_encoder_makes_is_within_the_limit_and_read_by_a_decoder_that_knows_the_plan_alone() -> None:
    delta = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    found = fitted(SPARSE, delta.size, 500)
    assert found is not None
    encoded = encode_update(delta, None, found, seed=0)
    assert len(encoded.frame) <= 500
    decoded = decode_update(encoded.frame, delta.size, SPARSE)
    assert encoded.residual is not None
    np.testing.assert_allclose(decoded.dense() + encoded.residual, delta, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 1, 0.5])
def test_eden_spends_fewer_bits_and_then_a_smaller_share(bits: float) -> None:
    asked = CodecSettings("eden", bits=bits)
    delta = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    for limit in (15_000, 6_000, 2_000, 300):
        found = fitted(asked, delta.size, limit)
        assert found is not None and found.to_wire()["bits"] <= bits and frame_bytes_max(delta.size, found) <= limit
        decode_update(encode_update(delta, None, found, seed=0).frame, delta.size, asked)
    assert fitted(asked, delta.size, 30) is None


def test_statistics_are_sent_whole_and_the_rest_has_what_is_left() -> None:
    spec = ParameterSpec((("w", (4000,), "trainable"), ("mean", (50,), "buffer")))
    delta = np.random.default_rng(0).normal(size=spec.size).astype(np.float32)
    found = fitted_frames(spec, SPARSE, 500)
    assert found is not None and frames_bytes_max(spec, found) <= 500
    frames = encode_frames(delta, None, found, spec, seed=0)
    assert len(frames.frames) == 2 and sum(map(len, frames.frames)) <= 500
    assert fitted_frames(spec, SPARSE, 200) is None
    assert fitted_frames(spec, SPARSE, 0) is SPARSE
