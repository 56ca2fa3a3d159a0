"""Committed frames decode for ever, and a second decoder, written from docs/wire-format alone, agrees with ours.

The second decoder reads bit by bit in plain Python. It trusts the frame, so it only ever sees honest ones.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.update import CodecSettings, decode_update, encode_update

GOLDEN = Path(__file__).parent.parent / "golden"


class Bits:
    """A bit string, most significant bit of the first byte first."""

    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{octet:08b}" for octet in data)
        self.at = 0

    def unary(self) -> int:
        start, self.at = self.at, self.bits.index("1", self.at) + 1
        return self.at - 1 - start


def plain_decode(frame: bytes) -> dict[int, float]:
    """All coordinates that a frame holds, by index."""
    version, checksum, body_bytes, size, codec = struct.unpack_from("<BIIIB", frame)
    body = frame[14:]
    assert version == 1 and body_bytes == len(body) and checksum == zlib.crc32(frame[:1] + frame[5:])
    if codec == 0:
        return dict(enumerate(struct.unpack(f"<{size}f", body)))
    if codec in (1, 2):
        return plain_quantised(body, size, codec)
    assert codec == 3
    return plain_sparse(body)


def plain_quantised(body: bytes, size: int, codec: int) -> dict[int, float]:
    (block,) = struct.unpack_from("<I", body)
    blocks = -(-size // block)
    scales = struct.unpack_from(f"<{blocks}f", body, 4)
    data = body[4 + 4 * blocks :]
    if codec == 1:
        codes = [octet - 256 if octet > 127 else octet for octet in data]
    else:
        codes = [(data[i // 2] >> (4 * (i % 2)) & 15) - 7 for i in range(size)]
    return {i: float(np.float32(codes[i]) * np.float32(scales[i // block])) for i in range(size)}


def plain_sparse(body: bytes) -> dict[int, float]:
    (count,) = struct.unpack_from("<I", body)
    if count == 0:
        return {}
    coding, index_bytes = struct.unpack_from("<BI", body, 4)
    data, rest = body[9 : 9 + index_bytes], body[9 + index_bytes :]
    gaps = plain_leb128(data) if coding == 255 else plain_rice(data, count, coding)
    assert len(gaps) == count
    base, step = (np.float32(x) for x in struct.unpack_from("<ff", rest))
    signs = Bits(rest[8 : 8 + (count + 7) // 8])
    quotients = Bits(rest[8 + (count + 7) // 8 :])
    index, values = -1, {}
    for i, gap in enumerate(gaps):
        index += gap + 1
        magnitude = np.float32(quotients.unary()) * step + base
        values[index] = float(-magnitude if signs.bits[i] == "1" else magnitude)
    return values


def plain_leb128(data: bytes) -> list[int]:
    gaps, gap, place = [], 0, 0
    for octet in zlib.decompress(data, wbits=-15):
        gap |= (octet & 127) << (7 * place)
        place += 1
        if octet < 128:
            gaps.append(gap)
            gap, place = 0, 0
    return gaps


def plain_rice(data: bytes, count: int, parameter: int) -> list[int]:
    planes_bytes = (count * parameter + 7) // 8
    planes, unary = Bits(data[:planes_bytes]), Bits(data[planes_bytes:])
    gaps = []
    for i in range(count):
        remainder = 0
        for plane in range(parameter):
            remainder = 2 * remainder + int(planes.bits[plane * count + i])
        gaps.append((unary.unary() << parameter) + remainder)
    return gaps


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
    if indices is None:
        assert decoded.indices is None
    else:
        assert decoded.indices is not None and decoded.indices.tolist() == indices
    assert decoded.values.tolist() == pytest.approx(values, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_second_decoder_reads_the_committed_frames_alike(name: str) -> None:
    _, size, indices, values = EXPECTED[name]
    where = range(size) if indices is None else indices
    assert plain_decode(golden(name)) == pytest.approx(dict(zip(where, values, strict=True)), rel=1e-6, abs=0.0)


def test_every_golden_frame_is_expected() -> None:
    assert {path.stem for path in GOLDEN.glob("update_*.bin")} == {f"update_{name}" for name in EXPECTED}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["dense", "int8", "int4", "sparse"]),
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
    where = range(size) if decoded.indices is None else decoded.indices.tolist()
    assert plain_decode(frame) == dict(zip(where, decoded.values.tolist(), strict=True))
