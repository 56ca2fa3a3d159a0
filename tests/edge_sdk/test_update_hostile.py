"""Frames that nobody honest makes: each check by hand, then mutations by the thousand, within a bounded time."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.codecs import (
    MAGNITUDE_MAX,
    CodecSettings,
    Decoded,
    Rotated,
    decode_update,
    encode_update,
    frame_bytes_max,
)
from edge_sdk.errors import DecodeError, ProtocolError, VersionError

SIZE = 2001
SPARSE = CodecSettings("sparse", density=0.05)
COUNT = 100
HEADER_BYTES = 8
MATRICES = ((0, 50, 40),)
"""Its columns 2 to 39 are zero in the vector called "rows"."""
SECONDS_MAX = 0.25


def leb128(number: int) -> bytes:
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


def seal(
    body: bytes, *, size: int = SIZE, wire_id: int = 3, version: int = 1, size_bytes: bytes | None = None
) -> bytes:
    """A frame with a right checksum around anything."""
    rest = bytes([wire_id]) + (leb128(size) if size_bytes is None else size_bytes) + body
    return bytes([version]) + struct.pack("<I", zlib.crc32(bytes([version]) + rest)) + rest


def vector(kind: str = "random", size: int = SIZE) -> NDArray[np.float32]:
    values = np.random.default_rng(0).standard_normal(size)
    if kind == "rows":
        values *= np.arange(size) % 40 < 2
    return values.astype(np.float32)


def honest(codec: CodecSettings, kind: str = "random", size: int = SIZE) -> bytes:
    return encode_update(vector(kind, size), None, codec, seed=0, matrices=MATRICES if kind == "rows" else ()).frame


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def bits(text: str) -> bytes:
    return bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))


def sparse_body(
    *,
    count: int = 3,
    matrices: bytes = b"\x00",
    parameter: int = 0,
    remainders: bytes = b"",
    index_data: bytes | None = None,
    index_bytes: int | None = None,
    base: float = 1.0,
    step: float = 0.5,
    signs: bytes = b"\x40",
    quotients: bytes = b"\xe0",
    tail: bytes = b"",
) -> bytes:
    """A sparse body that is right unless told otherwise."""
    data = deflate(bytes([5, 6, 7])) if index_data is None else index_data
    length = leb128(len(data) if index_bytes is None else index_bytes)
    indices = matrices + leb128(parameter) + length + remainders + data
    return leb128(count) + indices + struct.pack("<ff", base, step) + signs + quotients + tail


def check_promises(decoded: Decoded | Rotated, size: int) -> None:
    """What a decoder promises about whatever it accepts."""
    if isinstance(decoded, Rotated):
        assert decoded.size == size and np.isfinite(decoded.largest()) and np.isfinite(decoded.norm())
        assert decoded.dense().shape == (size,)
        return
    assert decoded.size == size and decoded.values.dtype == np.float32 and np.isfinite(decoded.values).all()
    assert np.abs(decoded.values).max(initial=0.0) <= 256 * MAGNITUDE_MAX
    if decoded.indices is None:
        assert decoded.values.shape == (size,)
    else:
        assert decoded.indices.dtype == np.int64 and decoded.indices.shape == decoded.values.shape
        assert (np.diff(decoded.indices) > 0).all()
        assert decoded.indices.size == 0 or (decoded.indices[0] >= 0 and decoded.indices[-1] < size)


def test_the_hand_made_body_is_right_before_it_is_spoilt() -> None:
    decoded = decode_update(seal(sparse_body()), SIZE, SPARSE)
    assert decoded.indices is not None and decoded.indices.tolist() == [5, 12, 20]
    assert decoded.values.tolist() == [1.0, -1.0, 1.0]
    decoded = decode_update(seal(sparse_body(index_data=deflate(bytes([0xC6, 0x0F, 1, 7])))), SIZE, SPARSE)
    assert decoded.indices is not None and decoded.indices.tolist() == [1990, 1992, 2000]
    golomb = sparse_body(parameter=3, remainders=bits("101") + bits("01"), index_data=bits("01" + "001" + "001"))
    columns = sparse_body(matrices=b"\x01\x00\x04\x06")  # 4 x 6: numbers 5, 12, 20 stand in column 1, 3, 5, row 1, 0, 0
    for body, indices in ((golomb, [4, 11, 20]), (columns, [3, 5, 7])):
        decoded = decode_update(seal(body), SIZE, SPARSE)
        assert isinstance(decoded, Decoded) and decoded.indices is not None
        assert decoded.indices.tolist() == indices
    assert decoded.values.tolist() == [-1.0, 1.0, 1.0]  # in the order of the indices, not of the numbers


SPOILT: dict[str, tuple[str, bytes]] = {
    "no count": ("length", b""),
    "count does not end": ("length", b"\x83"),
    "more coordinates than the density allows": ("count", sparse_body(count=COUNT + 1)),
    "more coordinates than there are": ("length", sparse_body(count=SIZE + 1)),
    "most coordinates": ("length", sparse_body(count=0xFFFFFFFF)),
    "bytes behind an empty update": ("length", b"\x00\x00"),
    "nothing behind the count": ("length", b"\x03"),
    "indices cut in their head": ("length", b"\x03\x00\x00"),
    "too many matrices": ("count", sparse_body(matrices=leb128(65))),
    "matrices cut": ("length", b"\x03\x02\x00\x02"),
    "a matrix without rows": ("indices", sparse_body(matrices=b"\x01\x00\x00\x03")),
    "a matrix without columns": ("indices", sparse_body(matrices=b"\x01\x00\x03\x00")),
    "a matrix beyond the vector": ("indices", sparse_body(matrices=b"\x01\x00" + leb128(1000) + b"\x03")),
    "a place beyond the vector": ("count", sparse_body(matrices=b"\x01" + leb128(SIZE + 1) + b"\x01\x01")),
    "two matrices beyond the vector": (
        "indices",
        sparse_body(matrices=b"\x02\x00" + leb128(1000) + b"\x01\x00" + leb128(1002) + b"\x01"),
    ),
    "parameter above the size": ("count", sparse_body(parameter=SIZE + 1)),
    "more index bytes than there are": ("length", sparse_body(index_bytes=1 << 31)),
    "index bytes end behind the frame": ("count", sparse_body(index_bytes=40)),
    "not a deflate stream": ("deflate", sparse_body(index_data=b"\xff\xff\xff\xff")),
    "empty deflate stream": ("deflate", sparse_body(index_data=b"")),
    "deflate stream without an end": ("deflate", sparse_body(index_data=deflate(bytes([5, 6, 7]))[:-1])),
    "bytes behind the deflate stream": ("deflate", sparse_body(index_data=deflate(bytes([5, 6, 7])) + b"\x00")),
    "deflate bomb": ("deflate", sparse_body(index_data=deflate(bytes(50_000))[:40])),
    "deflate bomb, whole": ("deflate", sparse_body(index_data=deflate(bytes(50_000)))),
    "too few gaps": ("indices", sparse_body(index_data=deflate(bytes([5, 6])))),
    "too many gaps": ("indices", sparse_body(index_data=deflate(bytes([5, 6, 7, 8])))),
    "no gaps": ("indices", sparse_body(index_data=deflate(b""))),
    "gap without an end": ("indices", sparse_body(index_data=deflate(bytes([5, 6, 0x87])))),
    "terminators right, last gap open": ("indices", sparse_body(index_data=deflate(bytes([5, 6, 7, 0x87])))),
    "gap longer than it needs": ("indices", sparse_body(index_data=deflate(bytes([0x85, 0x00, 6, 7])))),
    "gap of too many octets": ("indices", sparse_body(index_data=deflate(bytes([0x85, 0x81, 1, 6, 7])))),
    "index beyond the vector": ("indices", sparse_body(index_data=deflate(bytes([0xFF, 0x7F, 6, 7])))),
    "last index at the size": ("indices", sparse_body(index_data=deflate(bytes([0xC7, 0x0F, 1, 7])))),
    "Golomb: no quotients": ("length", sparse_body(parameter=5, remainders=b"\x00", index_data=b"")),
    "Golomb: remainders cut": ("length", b"\x03\x00" + leb128(2000) + b"\x01" + bytes(3)),
    "Golomb: last bits cut": ("length", b"\x03\x00\x05\x01\xfc"),
    "Golomb: unused bits set": ("rice", sparse_body(parameter=4, remainders=b"\x03", index_data=b"\xe0")),
    "Golomb: unused last bits set": ("rice", sparse_body(parameter=3, remainders=b"\xe0\x1f", index_data=b"\xe0")),
    "Golomb: too few codes": ("rice", sparse_body(parameter=4, remainders=b"\x00", index_data=bits("0101"))),
    "Golomb: too many codes": ("rice", sparse_body(parameter=4, remainders=b"\x00", index_data=bits("01010101"))),
    "Golomb: bytes behind the last code": (
        "rice",
        sparse_body(parameter=4, remainders=b"\x00", index_data=bits("010101") + b"\x00"),
    ),
    "Golomb: longer than any": (
        "length",
        sparse_body(parameter=1024, remainders=bytes(4), index_data=bytes(70) + b"\xe0"),
    ),
    "Golomb: beyond the vector": (
        "indices",
        sparse_body(parameter=1024, remainders=b"\xff\xff\xff\xfc", index_data=b"\x38"),
    ),
    "Golomb: largest parameter": (
        "rice",
        sparse_body(parameter=SIZE, remainders=b"\xff" * 5, index_data=b"\xe0"),
    ),
    "base zero": ("values", sparse_body(base=0.0)),
    "base negative": ("values", sparse_body(base=-1.0)),
    "base NaN": ("values", sparse_body(base=float("nan"))),
    "base infinite": ("values", sparse_body(base=float("inf"))),
    "base too large": ("values", sparse_body(base=2.0**101)),
    "step negative": ("values", sparse_body(step=-1.0)),
    "step denormal": ("values", sparse_body(step=2.0**-140)),
    "step NaN": ("values", sparse_body(step=float("nan"))),
    "step infinite": ("values", sparse_body(step=float("inf"))),
    "value too large": ("values", sparse_body(step=2.0**100, quotients=b"\x1c")),
    "unused sign bits set": ("values", sparse_body(signs=b"\x41")),
    "no quotients": ("length", sparse_body(quotients=b"")),
    "too few quotients": ("rice", sparse_body(quotients=b"\xc0")),
    "too many quotients": ("rice", sparse_body(quotients=b"\xf0")),
    "quotients larger than allowed": ("length", sparse_body(quotients=b"\x00\xe0")),
    "trailing bytes": ("length", sparse_body(tail=b"\x00")),
    "values cut": ("length", sparse_body()[:-2]),
}


@pytest.mark.parametrize("what", SPOILT)
def test_sparse_bodies_are_refused_for_the_right_reason(what: str) -> None:
    reason, body = SPOILT[what]
    with pytest.raises(DecodeError) as caught:
        decode_update(seal(body), SIZE, SPARSE)
    assert caught.value.reason == reason, str(caught.value)


def test_the_header_is_checked_in_order() -> None:
    good = honest(SPARSE)
    body = good[8:]
    assert good == seal(body, wire_id=good[5])
    cases: list[tuple[bytes, type[ProtocolError], str]] = [
        (b"", DecodeError, "length"),
        (b"\x02", VersionError, "version"),
        (b"\x00" + good[1:], VersionError, "version"),
        (good[:1], DecodeError, "length"),
        (good[:6], DecodeError, "length"),
        (good + bytes(frame_bytes_max(SIZE, SPARSE)), DecodeError, "length"),
        (good[:-1], DecodeError, "checksum"),
        (good + b"\x00", DecodeError, "checksum"),
        (good[:3] + bytes([good[3] ^ 1]) + good[4:], DecodeError, "checksum"),
        (seal(body, size=SIZE - 1), DecodeError, "size"),
        (seal(body, size=0), DecodeError, "size"),
        (seal(body, size=0xFFFFFFFF), DecodeError, "count"),
        (seal(b"", size_bytes=b"\xff\xff\xff\xff\xff"), DecodeError, "length"),
        (seal(b"", size_bytes=b"\xd1"), DecodeError, "length"),
        (seal(body, size_bytes=b"\xd1\x8f\x00"), DecodeError, "length"),
        (seal(body, wire_id=0), DecodeError, "codec"),
        (seal(body, wire_id=200), DecodeError, "codec"),
    ]
    for frame, kind, reason in cases:
        with pytest.raises(kind) as caught:
            decode_update(frame, SIZE, SPARSE)
        assert caught.value.reason == reason, str(caught.value)


def test_an_unknown_version_says_which_side_to_upgrade() -> None:
    for version, side in (
        (2, "upgrade this side"),
        (255, "upgrade this side"),
        (0, "upgrade the side that encoded it"),
    ):
        with pytest.raises(VersionError, match=side):
            decode_update(seal(sparse_body(), version=version), SIZE, SPARSE)


def test_every_single_bit_error_is_found() -> None:
    frame = honest(CodecSettings("sparse", density=0.01))
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((DecodeError, VersionError)):
            decode_update(bytes(damaged), SIZE, CodecSettings("sparse", density=0.01))


def test_a_frame_must_fit_the_settings_of_the_plan() -> None:
    with pytest.raises(DecodeError):
        decode_update(honest(SPARSE), SIZE, CodecSettings("sparse", density=0.01))
    with pytest.raises(DecodeError):
        decode_update(honest(SPARSE), SIZE, CodecSettings("dense"))
    with pytest.raises(DecodeError):
        decode_update(honest(CodecSettings("int8", block_size=1024)), SIZE, CodecSettings("int8", block_size=1023))
    with pytest.raises(DecodeError):
        decode_update(honest(CodecSettings("int8")), SIZE, CodecSettings("int4"))


def quantised_body(scale: float, codes: bytes, block: int = 8) -> bytes:
    return struct.pack("<If", block, scale) + codes


def test_quantised_bodies_are_refused_for_the_right_reason() -> None:
    int8, int4 = (CodecSettings(name, block_size=8) for name in ("int8", "int4"))
    assert decode_update(seal(quantised_body(1.0, b"\x81\x7f\x00"), size=3, wire_id=1), 3, int8).values[0] == -127
    assert decode_update(seal(quantised_body(1.0, b"\xe0\x07"), size=3, wire_id=2), 3, int4).values.tolist() == [
        -7,
        7,
        0,
    ]
    cases = [
        (int8, 1, quantised_body(1.0, b"\x80\x00\x00"), "values"),
        (int8, 1, quantised_body(float("nan"), b"\x00\x00\x00"), "values"),
        (int8, 1, quantised_body(float("inf"), b"\x00\x00\x00"), "values"),
        (int8, 1, quantised_body(-1.0, b"\x00\x00\x00"), "values"),
        (int8, 1, quantised_body(2.0**101, b"\x00\x00\x00"), "values"),
        (int8, 1, quantised_body(1.0, b"\x00\x00\x00", block=9), "block_size"),
        (int8, 1, quantised_body(1.0, b"\x00\x00"), "length"),
        (int8, 1, b"", "length"),
        (int4, 2, quantised_body(1.0, b"\xf0\x07"), "values"),
        (int4, 2, quantised_body(1.0, b"\x0f\x07"), "values"),
        (int4, 2, quantised_body(1.0, b"\xe0\x17"), "values"),
        (int4, 2, quantised_body(1.0, b"\xe0"), "length"),
        (CodecSettings("dense"), 0, struct.pack("<3f", 1, float("nan"), 2), "values"),
        (CodecSettings("dense"), 0, struct.pack("<3f", 1, float("-inf"), 2), "values"),
        (CodecSettings("dense"), 0, struct.pack("<3f", 1, 2.0**101, 2), "values"),
        (CodecSettings("dense"), 0, struct.pack("<2f", 1, 2), "length"),
    ]
    for codec, wire_id, body, reason in cases:
        with pytest.raises(DecodeError) as caught:
            decode_update(seal(body, size=3, wire_id=wire_id), 3, codec)
        assert caught.value.reason == reason, str(caught.value)


EDEN = CodecSettings("eden", bits=0.1)


def eden_body(
    *, width: int = 1, share: int = 410, scales: bytes = b"\x00\x00\x00", codes: bytes | None = None
) -> bytes:
    """A body of ``eden`` for 2001 coordinates, blocks of 1024, 512, 256, 128, 64 and 17 in 64."""
    return bytes([width]) + leb128(share) + bytes(8) + scales + (bytes(26) if codes is None else codes)


@pytest.mark.parametrize(
    ("what", "reason", "body"),
    [
        ("nothing", "length", b""),
        ("no share", "length", b"\x01"),
        ("width 0", "count", eden_body(width=0)),
        ("width 2", "count", eden_body(width=2)),
        ("width 9", "count", eden_body(width=9)),
        ("share 0", "count", eden_body(share=0)),
        ("share above the plan's", "count", eden_body(share=411)),
        ("share above all", "count", eden_body(share=4097)),
        ("seeds cut", "length", eden_body()[:6]),
        ("scales cut", "length", eden_body()[:12]),
        ("scales of too many bits", "length", eden_body(scales=b"\x00\x00\x0f" + bytes(12))),
        ("entries cut", "length", eden_body(scales=b"\x00\x00\x0e", codes=b"")),
        ("a scale too large", "values", eden_body(scales=b"\x70\x03\x02\x04\x00")),
        ("lowest too low", "values", eden_body(scales=b"\x00\x80\x00")),
        ("codes cut", "rice", eden_body(codes=bytes(24))),
        ("codes too long", "rice", eden_body(codes=bytes(40))),
    ],
)
def test_rotated_bodies_are_refused_for_the_right_reason(what: str, reason: str, body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_update(seal(body, wire_id=6), SIZE, EDEN)
    assert caught.value.reason == reason, str(caught.value)


SPARSE_ROWS = CodecSettings("sparse_rows", bits=0.1)
TWO_OF_FIFTY = leb128(4) + b"\x00\x08\x01" + bits("000" * 2) + bits("11")
"""Rows 0 and 1, by Golomb codes with parameter 8."""


def rows_body(
    *,
    count: int = 1,
    skipped: int = 0,
    rows: int = 50,
    columns: int = 40,
    lines: bytes = TWO_OF_FIFTY,
    values: bytes = b"\x00" + bytes(4 * 80),
    values_bytes: int | None = None,
    rest: bytes = b"\x00" + bytes(4),
) -> bytes:
    """A body of ``sparse_rows`` for 2001 coordinates that is right unless told otherwise."""
    table = leb128(skipped) + leb128(rows) + leb128(columns) + lines
    return leb128(count) + table + leb128(len(values) if values_bytes is None else values_bytes) + values + rest


def test_the_hand_made_rows_are_right_before_they_are_spoilt() -> None:
    body = rows_body(values=b"\x00" + struct.pack("<80f", *range(80)), rest=b"\x00" + struct.pack("<f", -1.0))
    decoded = decode_update(seal(body, wire_id=8), SIZE, SPARSE_ROWS)
    assert isinstance(decoded, Decoded) and decoded.indices is not None
    assert decoded.indices.tolist() == [*range(80), 2000]
    assert decoded.values.tolist() == [*map(float, range(80)), -1.0]
    columns = rows_body(rows=40, columns=50, lines=b"\x05" + TWO_OF_FIFTY[1:])
    decoded = decode_update(seal(columns, wire_id=8), SIZE, SPARSE_ROWS)
    assert isinstance(decoded, Decoded) and decoded.indices is not None
    assert decoded.indices.tolist() == sorted([*range(0, 2000, 50), *range(1, 2000, 50), 2000])


@pytest.mark.parametrize(
    ("what", "reason", "body"),
    [
        ("nothing", "length", b""),
        ("too many tables", "count", rows_body(count=65)),
        ("a second table that is not there", "length", b"\x02" + rows_body()[1:8]),
        ("a table without rows", "indices", rows_body(rows=0)),
        ("a table without columns", "indices", rows_body(columns=0)),
        ("more rows than coordinates", "count", rows_body(rows=SIZE + 1)),
        ("a table beyond the vector", "indices", rows_body(skipped=2)),
        ("a huge table", "indices", rows_body(rows=SIZE, columns=SIZE)),
        ("more than an eighth of the rows", "count", rows_body(lines=leb128(2 * 7))),
        ("more rows than there are", "count", rows_body(lines=leb128(2 * 51))),
        ("more rows than any table has", "length", rows_body(lines=leb128(0xFFFFFFF))),
        ("rows cut", "length", b"\x01\x00\x32\x28\x04\x00"),
        (
            "a row beyond the table",
            "indices",
            rows_body(lines=leb128(4) + b"\x00\x08\x01" + bits("111" * 2) + bits("00000101")),
        ),
        (
            "rows numbered by columns",
            "indices",
            rows_body(lines=leb128(4) + b"\x01\x00\x05\x0a\x08\x01" + TWO_OF_FIFTY[4:]),
        ),
        ("values cut", "length", rows_body(values_bytes=327)),
        ("fewer values than rows", "length", rows_body(values=b"\x00" + bytes(4 * 79))),
        ("more values than rows", "length", rows_body(values=b"\x00" + bytes(4 * 81))),
        ("no values", "length", rows_body(values=b"")),
        ("no rest", "length", rows_body(rest=b"")),
        ("bytes behind the rest", "length", rows_body(rest=b"\x00" + bytes(5))),
        (
            "a rest of no coordinates",
            "length",
            rows_body(rows=2001, columns=1, rest=b"\x00", values=b"\x00" + bytes(8)),
        ),
        ("values in sparse", "codec", rows_body(values=b"\x03\x00")),
        ("values in sparse_rows", "codec", rows_body(values=b"\x08\x00")),
        ("values in a codec of one's own", "codec", rows_body(values=b"\xc8\x00")),
        (
            "values of more bits than the plan asks for",
            "count",
            rows_body(values=b"\x06\x04" + leb128(4096) + bytes(60)),
        ),
        ("values not finite", "values", rows_body(values=b"\x00" + struct.pack("<f", float("nan")) + bytes(4 * 79))),
        ("a rest not finite", "values", rows_body(rest=b"\x00" + struct.pack("<f", float("inf")))),
    ],
)
def test_bodies_of_rows_are_refused_for_the_right_reason(what: str, reason: str, body: bytes) -> None:
    for codec in (SPARSE_ROWS, CodecSettings("auto", bits=8)):
        with pytest.raises(DecodeError) as caught:
            decode_update(seal(body, wire_id=8), SIZE, codec)
        assert caught.value.reason == reason, str(caught.value)


def test_the_largest_scale_that_is_read_gives_no_warning() -> None:
    everything = seal(b"\x01" + leb128(4096) + bytes(4) + b"\x70\x03\x01\xfc" + bytes(256), wire_id=6)
    decoded = decode_update(everything, SIZE, CodecSettings("eden", bits=1))
    with np.errstate(all="raise"):
        assert isinstance(decoded, Rotated) and decoded.largest() == 2.0**110
        decoded.dense()


MUTANTS: list[tuple[CodecSettings, int, str]] = [
    (SPARSE, 3, "random"),
    (SPARSE, 3, "rows"),
    (CodecSettings("sparse", density=1.0), 3, "random"),
    (CodecSettings("auto", bits=0.1), 6, "random"),
    (CodecSettings("int8", block_size=64), 1, "random"),
    (CodecSettings("int4", block_size=64), 2, "random"),
    (CodecSettings("int2", block_size=64), 4, "random"),
    (CodecSettings("dense"), 0, "random"),
    (CodecSettings("float16"), 5, "random"),
    *((CodecSettings("eden", bits=bits), 6, "random") for bits in (0.1, 1, 3)),
    (CodecSettings("sparse_rows", bits=0.1), 8, "rows"),
    (CodecSettings("auto", bits=0.1), 8, "rows"),
]


def cut(rng: np.random.Generator, body: bytearray) -> None:
    del body[int(rng.integers(len(body))) :]


def flip(rng: np.random.Generator, body: bytearray) -> None:
    for _ in range(int(rng.integers(1, 4))):
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))


def flip_head(rng: np.random.Generator, body: bytearray) -> None:
    body[int(rng.integers(min(24, len(body))))] = int(rng.integers(256))


def insert(rng: np.random.Generator, body: bytearray) -> None:
    at = int(rng.integers(len(body)))
    body[at:at] = rng.bytes(int(rng.integers(1, 9)))


def flatten(rng: np.random.Generator, body: bytearray) -> None:
    at = int(rng.integers(len(body)))
    end = min(len(body), at + int(rng.integers(1, 60)))
    body[at:end] = bytes([int(rng.choice([0, 255]))]) * (end - at)


def scramble(rng: np.random.Generator, body: bytearray) -> None:
    body[:] = rng.bytes(int(rng.integers(1, 400)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mutation", [cut, flip, flip_head, insert, flatten, scramble])
def test_mutations_behind_a_right_checksum_raise_nothing_else(
    mutation: Callable[[np.random.Generator, bytearray], None],
) -> None:
    rng = np.random.default_rng(1)
    slowest = 0.0
    for codec, wire_id, kind in MUTANTS:
        original = honest(codec, kind)[8:]
        for _ in range(120):
            body = bytearray(original)
            mutation(rng, body)
            frame = seal(bytes(body), wire_id=wire_id)
            start = time.thread_time()
            try:
                check_promises(decode_update(frame, SIZE, codec), SIZE)
            except (DecodeError, VersionError):
                pass
            slowest = max(slowest, time.thread_time() - start)
    assert slowest < SECONDS_MAX


@pytest.mark.filterwarnings("error")
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(MUTANTS), st.booleans())
def test_random_bytes_raise_nothing_else(data: bytes, mutant: tuple[CodecSettings, int, str], sealed: bool) -> None:
    codec, wire_id, _ = mutant
    try:
        check_promises(decode_update(seal(data, wire_id=wire_id) if sealed else data, SIZE, codec), SIZE)
    except (DecodeError, VersionError):
        pass


@pytest.mark.filterwarnings("error")
def test_signalling_not_a_numbers_are_refused_without_a_warning() -> None:
    signalling = struct.pack("<I", 0x7FA00000)
    levels = sparse_body().index(struct.pack("<ff", 1.0, 0.5))
    cases = [
        (CodecSettings("int8", block_size=8), 1, struct.pack("<I", 8) + signalling + bytes(3)),
        (CodecSettings("dense"), 0, bytes(4) + signalling + bytes(4)),
        (CodecSettings("sparse", density=1.0), 3, sparse_body()[:levels] + signalling + sparse_body()[levels + 4 :]),
    ]
    for codec, wire_id, body in cases:
        size = 100 if wire_id == 3 else 3
        with pytest.raises(DecodeError) as caught:
            decode_update(seal(body, size=size, wire_id=wire_id), size, codec)
        assert caught.value.reason == "values"


def test_the_costliest_frames_cost_no_more_than_honest_ones_by_much() -> None:
    size = 200_000
    codec = CodecSettings("sparse", density=0.1)
    count = 20_000
    room = frame_bytes_max(size, codec) - HEADER_BYTES
    values: dict[str, Any] = {"signs": bytes(count // 8), "quotients": b"\xff" * (count // 8)}
    empty_blocks = b"\x00\x00\x00\xff\xff" * (room // 8)  # stored deflate blocks of no bytes: work without output
    hostile = [
        sparse_body(count=count, index_data=deflate(bytes(count)), **values),
        sparse_body(count=count, index_data=deflate(bytes(50 * count)), **values),
        sparse_body(count=count, index_data=empty_blocks + deflate(bytes(count)), **values),
        sparse_body(count=count, index_data=deflate(b"\x80" * (3 * count - 1) + b"\x01"), **values),
        sparse_body(count=count, parameter=1, index_data=b"\xff" * (room // 2), **values),
        sparse_body(count=count, parameter=8, remainders=bytes(3 * count // 8), index_data=b"\xff" * 5000, **values),
        sparse_body(count=count, index_data=deflate(bytes(count)), signs=bytes(count // 8), quotients=b"\x00" * 5000),
    ]
    slowest = 0.0
    for body in hostile:
        start = time.thread_time()
        try:
            check_promises(decode_update(seal(body, size=size), size, codec), size)
        except DecodeError:
            pass
        slowest = max(slowest, time.thread_time() - start)
    assert slowest < SECONDS_MAX
