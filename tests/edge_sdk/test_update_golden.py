"""Committed frames decode for ever, and a second decoder, written from docs/wire-format alone, agrees with ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_decoder import plain_decode

from edge_sdk.update import CodecSettings, Decoded, decode_update, encode_update

GOLDEN = Path(__file__).parent.parent / "golden"


# name of the file -> settings, size, expected indices (None: all), expected values
EXPECTED: dict[str, tuple[CodecSettings, int, list[int] | None, list[float]]] = {
    "dense": (CodecSettings("dense"), 5, None, [0.0, -1.5, 2.0**-149, 3.25, -1e20]),
    "int8": (
        CodecSettings("int8", block_size=8, rounding="nearest"),
        20,
        None,
        [code * 0.04084646 for code in (34, 81, 32, -127, 89, 44, -52, 57)]
        + [0.0] * 8
        + [code * 0.0246063 for code in (8, -48, -127, -41)],
    ),
    "int4": (
        CodecSettings("int4", block_size=8, rounding="nearest"),
        21,
        None,
        [code * 0.74107146 for code in (2, 4, 2, -7, 5, 2, -3, 3)]
        + [0.0] * 8
        + [code * 0.0007410715 for code in (2, 4, 2, -7, 5)],
    ),
    "dense_2": (
        CodecSettings("dense"),
        5,
        None,
        [
            0,
            -1.5,
            1.4012985e-45,
            3.25,
            -1e20,
        ],
    ),
    "float16": (
        CodecSettings("float16"),
        6,
        None,
        [
            0,
            -1.5,
            6.0021877e-05,
            3.25,
            -65504,
            0.33325195,
        ],
    ),
    "int2": (
        CodecSettings("int2", block_size=8, rounding="nearest"),
        21,
        None,
        [
            0,
            0,
            0,
            -13.402152,
            0,
            -13.402152,
            0,
            13.402152,
            -9.3046808,
            -9.3046808,
            9.3046808,
            0,
            0,
            -9.3046808,
            0,
            9.3046808,
            -19.012228,
            0,
            -19.012228,
            -19.012228,
            -19.012228,
        ],
    ),
    "eden_share": (
        CodecSettings("eden", bits=0.25),
        70,
        None,
        [
            0.011048543,
            0.022097087,
            0.011048543,
            -0.022097087,
            -0.033145629,
            0,
            -0.011048543,
            0.022097087,
            -0.033145629,
            0.022097087,
            -0.033145629,
            -0.022097087,
            0.033145629,
            -0.022097087,
            0.011048543,
            0.044194173,
            -0.011048543,
            -0,
            0.011048543,
            0.022097087,
            0.033145629,
            -0.022097087,
            -0.011048543,
            -0.022097087,
            -0.011048543,
            -0.022097087,
            -0.033145629,
            0.044194173,
            -0.011048543,
            -0.022097087,
            -0.011048543,
            0.022097087,
            -0.033145629,
            0.022097087,
            -0.033145629,
            0.022097087,
            0.011048543,
            0.022097087,
            0.011048543,
            -0.044194173,
            0.033145629,
            -0,
            0.011048543,
            -0,
            0.011048543,
            -0.022097087,
            -0.011048543,
            0,
            0.011048543,
            -0.022097087,
            0.011048543,
            0,
            0.011048543,
            0.022097087,
            0.011048543,
            0.022097087,
            0.011048543,
            0.022097087,
            -0.033145629,
            0,
            0.011048543,
            0,
            0.011048543,
            -0.044194173,
            -0.018581361,
            -0.018581361,
            0.018581361,
            0.018581361,
            -0,
            0,
        ],
    ),
    "eden_bit": (
        CodecSettings("eden", bits=1),
        67,
        None,
        [
            0,
            0.31533617,
            -0,
            0.10511205,
            -0.10511205,
            0.10511205,
            -0.21022411,
            -0.21022411,
            -0.052556027,
            -0.15766808,
            -0.052556027,
            0.26278013,
            -0.052556027,
            -0.052556027,
            0.052556027,
            0.052556027,
            -0.052556027,
            0.052556027,
            0.052556027,
            0.15766808,
            -0.15766808,
            -0.052556027,
            -0.052556027,
            -0.15766808,
            0,
            -0.10511205,
            0.10511205,
            0,
            0,
            -0,
            -0,
            -0.21022411,
            -0.15766808,
            0.052556027,
            -0.15766808,
            -0.052556027,
            -0.15766808,
            0.052556027,
            -0.052556027,
            0.052556027,
            0.10511205,
            -0.10511205,
            0.10511205,
            0.10511205,
            0.10511205,
            0,
            -0,
            -0.10511205,
            -0,
            -0,
            -0.10511205,
            -0.10511205,
            -0.10511205,
            -0,
            0.10511205,
            0,
            0.052556027,
            -0.052556027,
            -0.052556027,
            -0.052556027,
            -0.052556027,
            -0.052556027,
            -0.052556027,
            -0.052556027,
            -0.13631347,
            -0.13631347,
            0.13631347,
        ],
    ),
    "eden_bits": (
        CodecSettings("eden", bits=3),
        65,
        None,
        [
            -10.070391,
            4.3767381,
            14.582256,
            -12.003393,
            -1.5825882,
            -4.7889895,
            -17.664982,
            7.097599,
            2.71399,
            -0.13512692,
            -5.2928529,
            5.1142106,
            -4.1614513,
            0.54737854,
            -12.05836,
            -14.009685,
            12.649254,
            -3.1628861,
            3.9278419,
            -2.71399,
            -4.3217711,
            -6.9006343,
            7.6381063,
            -6.721992,
            -1.7978752,
            0.58402312,
            11.554497,
            7.5831399,
            4.6103473,
            -4.431705,
            -14.637223,
            7.6381063,
            9.6947842,
            -0.13512692,
            6.9556012,
            9.5344639,
            6.0944533,
            10.395612,
            -5.237886,
            14.009685,
            -12.470612,
            9.8917484,
            7.1342435,
            7.9404244,
            19.346052,
            14.637223,
            -9.9467154,
            -16.478613,
            6.8456674,
            -11.664431,
            -2.1734822,
            9.7131062,
            -15.08612,
            -21.727951,
            5.5264621,
            4.6103473,
            -2.0864513,
            -1.229884,
            -9.442853,
            -14.582256,
            -5.2562084,
            -9.3008547,
            -17.48634,
            4.7889895,
            -0.61398631,
        ],
    ),
    "sparse_rice": (
        CodecSettings("sparse", density=0.02),
        1000,
        [53, 68, 147, 211, 256, 340, 504, 506, 543, 575, 583, 667, 683, 748, 755, 792, 817, 829, 837, 974],
        [
            sign * (1.2743747234344482, 4.736875057220459, 8.19937515258789, 11.66187572479248)[quotient]
            for sign, quotient in zip(
                (1, 1, 1, -1, 1, -1, -1, -1, 1, 1, -1, 1, -1, -1, 1, -1, -1, 1, 1, 1),
                (0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 2, 0, 1, 0),
                strict=True,
            )
        ],
    ),
    "sparse_rice_wide": (
        CodecSettings("sparse", density=1e-5),
        1 << 20,
        [5, 70000, 70001, 1048575],
        [7.374998569488525, -7.374998569488525, -7.374998569488525, 83.87500762939453],
    ),
    "sparse_deflate": (
        CodecSettings("sparse", density=1e-4),
        400_000,
        [3, 200, *range(2500, 8251, 250), 320000, 320001],
        [-1.3622448444366455 if i % 3 == 0 else 0.8265305757522583 for i in range(28)],
    ),
    "sparse_all": (
        CodecSettings("sparse", density=1.0),
        9,
        list(range(9)),
        [
            (-1) ** i * (1.592592477798462, 3.370370388031006, 5.148148536682129)[quotient]
            for i, quotient in enumerate((0, 0, 0, 0, 1, 1, 1, 1, 2))
        ],
    ),
    "sparse_equal": (CodecSettings("sparse", density=0.5), 6, [0, 1, 2], [0.1, -0.1, 0.1]),
    "sparse_nothing": (CodecSettings("sparse", density=0.1), 50, [], []),
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"update_{name}.bin").read_bytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_committed_frames_decode_to_the_committed_values(name: str) -> None:
    codec, size, indices, values = EXPECTED[name]
    decoded = decode_update(golden(name), size, codec)
    if isinstance(decoded, Decoded) and indices is not None:
        assert decoded.indices is not None and decoded.indices.tolist() == indices
        assert decoded.values.tolist() == pytest.approx(values, rel=1e-6, abs=0.0)
    else:
        assert indices is None and decoded.dense().tolist() == pytest.approx(values, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_second_decoder_reads_the_committed_frames_alike(name: str) -> None:
    _, size, indices, values = EXPECTED[name]
    where = range(size) if indices is None else indices
    assert plain_decode(golden(name)) == pytest.approx(dict(zip(where, values, strict=True)), rel=1e-6, abs=0.0)


def test_every_golden_frame_is_expected() -> None:
    assert {path.stem for path in GOLDEN.glob("update_*.bin")} == {f"update_{name}" for name in EXPECTED}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["dense", "float16", "int8", "int4", "int2", "sparse"]),
    st.integers(1, 3000),
    st.sampled_from([0.001, 0.01, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 7, 100, 1000]),
    st.integers(0, 100),
)
def test_a_second_decoder_agrees_on_any_frame(name: str, size: int, density: float, period: int, seed: int) -> None:
    codec = CodecSettings(name, density=density, block_size=64)
    rng = np.random.default_rng(seed)
    # A period makes positions repeat, so that both index codings are seen.
    vector = (rng.standard_normal(size) * (np.arange(size) % period < 3)).astype(np.float32)
    frame = encode_update(vector, None, codec, seed=seed).frame
    decoded = decode_update(frame, size, codec)
    assert isinstance(decoded, Decoded)
    where = range(size) if decoded.indices is None else decoded.indices.tolist()
    assert plain_decode(frame) == dict(zip(where, decoded.values.tolist(), strict=True))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.01, 0.3, 1, 2, 3, 4]), st.integers(1, 400), st.integers(0, (1 << 64) - 1))
def test_a_second_decoder_agrees_on_rotated_frames_to_the_last_bit(bits: float, size: int, seed: int) -> None:
    codec = CodecSettings("eden", bits=bits)
    vector = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    frame = encode_update(vector, None, codec, seed=seed).frame
    assert plain_decode(frame) == dict(enumerate(decode_update(frame, size, codec).dense().tolist()))
