"""A second decoder of update frames, written from docs/wire-format.md alone: bit by bit, in plain Python.

It trusts the frame, so it only ever sees honest ones. Nothing of it is shared with ``edge_sdk.codecs``.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np


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
    codec, size, body = plain_header(frame)
    return plain_sparse_rows(body, size) if codec == 8 else plain_body(codec, size, body)


def plain_body(codec: int, size: int, body: bytes) -> dict[int, float]:
    """All coordinates that the body of a frame holds, by index."""
    if codec == 0:
        return dict(enumerate(struct.unpack(f"<{size}f", body)))
    if codec == 5:
        return dict(enumerate(struct.unpack(f"<{size}e", body)))
    if codec in (1, 2, 4):
        return plain_quantised(body, size, codec)
    if codec == 6:
        return dict(enumerate(plain_eden(body, size)))
    assert codec == 3
    return plain_sparse(body)


def plain_header(frame: bytes) -> tuple[int, int, bytes]:
    """Codec, coordinates, body."""
    version, checksum = struct.unpack_from("<BI", frame)
    assert checksum == zlib.crc32(frame[:1] + frame[5:])
    assert version == 1
    size, at = plain_number(frame, 6)
    return frame[5], size, frame[at:]


def plain_number(data: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128, and where it ends."""
    number, place = 0, 0
    while True:
        number |= (data[at] & 127) << (7 * place)
        place, at = place + 1, at + 1
        if data[at - 1] < 128:
            return number, at


def plain_quantised(body: bytes, size: int, codec: int) -> dict[int, float]:
    (block,) = struct.unpack_from("<I", body)
    blocks = -(-size // block)
    scales = struct.unpack_from(f"<{blocks}f", body, 4)
    data = body[4 + 4 * blocks :]
    if codec == 1:
        codes = [octet - 256 if octet > 127 else octet for octet in data]
    elif codec == 2:
        codes = [(data[i // 2] >> (4 * (i % 2)) & 15) - 7 for i in range(size)]
    else:
        codes = [(data[i // 4] >> (2 * (i % 4)) & 3) - 1 for i in range(size)]
    return {i: float(np.float32(codes[i]) * np.float32(scales[i // block])) for i in range(size)}


def plain_values(data: bytes, count: int) -> list[float]:
    base, step = (np.float32(x) for x in struct.unpack_from("<ff", data))
    signs = Bits(data[8 : 8 + (count + 7) // 8])
    quotients = Bits(data[8 + (count + 7) // 8 :])
    magnitudes = [np.float32(quotients.unary()) * step + base for _ in range(count)]
    return [float(-x if sign == "1" else x) for x, sign in zip(magnitudes, signs.bits, strict=False)]


def plain_sparse(body: bytes) -> dict[int, float]:
    count, at = plain_number(body, 0)
    if count == 0:
        return {}
    many, at = plain_number(body, at)
    matrices, behind = [], 0
    for _ in range(many):
        skipped, at = plain_number(body, at)
        rows, at = plain_number(body, at)
        columns, at = plain_number(body, at)
        matrices.append((behind + skipped, rows, columns))
        behind += skipped + rows * columns
    parameter, at = plain_number(body, at)
    data_bytes, at = plain_number(body, at)
    if parameter == 0:
        gaps = plain_leb128(body[at : at + data_bytes])
    else:
        remainders, at = plain_remainders(body, at, count, parameter)
        unary = Bits(body[at : at + data_bytes])
        gaps = [unary.unary() * parameter + remainder for remainder in remainders]
    number, coordinates = -1, {}
    for gap, value in zip(gaps, plain_values(body[at + data_bytes :], count), strict=True):
        number += gap + 1
        index = number
        for start, rows, columns in matrices:
            if start <= number < start + rows * columns:
                index = start + (number - start) % rows * columns + (number - start) // rows
        coordinates[index] = value
    return dict(sorted(coordinates.items()))


def plain_sparse_rows(body: bytes, size: int) -> dict[int, float]:
    number, at = plain_number(body, 0)
    sent, rest, behind = [], [], 0
    for _ in range(number):
        skipped, at = plain_number(body, at)
        rows, at = plain_number(body, at)
        columns, at = plain_number(body, at)
        code, at = plain_number(body, at)
        rest += range(behind, behind + skipped)
        start, behind = behind + skipped, behind + skipped + rows * columns
        lines, at = plain_indices(body, at, code // 2) if code > 1 else ([], at)
        for i in range(rows * columns):
            if (i % columns if code % 2 else i // columns) in lines:
                sent.append(start + i)
    rest += range(behind, size)
    values_bytes, at = plain_number(body, at)
    coordinates: dict[int, float] = {}
    for where, part in ((sent, body[at : at + values_bytes]), (rest, body[at + values_bytes :])):
        if where:
            values = plain_body(part[0], len(where), part[1:])
            coordinates |= {index: values[i] for i, index in enumerate(where)}
    return dict(sorted(coordinates.items()))


def plain_indices(body: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Numbers of rows, where no matrices are numbered by columns, and where they end."""
    assert body[at] == 0
    parameter, at = plain_number(body, at + 1)
    data_bytes, at = plain_number(body, at)
    if parameter == 0:
        gaps = plain_leb128(body[at : at + data_bytes])
    else:
        remainders, at = plain_remainders(body, at, count, parameter)
        unary = Bits(body[at : at + data_bytes])
        gaps = [unary.unary() * parameter + remainder for remainder in remainders]
    numbers = [sum(gaps[: i + 1]) + i for i in range(count)]
    return numbers, at + data_bytes


def plain_remainders(body: bytes, at: int, count: int, parameter: int) -> tuple[list[int], int]:
    width = (parameter - 1).bit_length()
    short = 2**width - parameter
    first = width - 1 if short else width
    remainders, rest = planes(body[at:], count, first)
    last = iter(Bits(rest).bits)
    longer = 0
    for i, remainder in enumerate(remainders):
        if short and remainder >= short:
            remainders[i] = 2 * remainder + int(next(last)) - short
            longer += 1
    return remainders, len(body) - len(rest) + (longer + 7) // 8


def plain_leb128(data: bytes) -> list[int]:
    gaps, gap, place = [], 0, 0
    for octet in zlib.decompress(data, wbits=-15):
        gap |= (octet & 127) << (7 * place)
        place += 1
        if octet < 128:
            gaps.append(gap)
            gap, place = 0, 0
    return gaps


WORD = (1 << 64) - 1


def word(seed: int, number: int) -> int:
    """Output ``number`` (from 0) of SplitMix64."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def planes(data: bytes, count: int, width: int) -> tuple[list[int], bytes]:
    """``count`` numbers from bit planes, and what follows them."""
    bits = Bits(data).bits
    numbers = [int("".join(bits[plane * count + i] for plane in range(width)) or "0", 2) for i in range(count)]
    return numbers, data[(count * width + 7) // 8 :]


def plain_blocks(size: int) -> list[tuple[int, int]]:
    """Order and real coordinates of each block."""
    blocks = [(4096, 4096)] * (size // 4096)
    rest, order = size % 4096, 2048
    while order >= 64:
        if rest >= order:
            blocks.append((order, order))
            rest -= order
        order //= 2
    return blocks + ([(64, rest)] if rest else [])


def plain_eden(body: bytes, size: int) -> list[float]:
    width, (share, at) = body[0], plain_number(body, 1)
    (rotation,) = struct.unpack_from("<I", body, at)
    choice, at = (struct.unpack_from("<I", body, at + 4)[0], at + 8) if share < 4096 else (0, at + 4)
    blocks = plain_blocks(size)
    scales, data = plain_scales(body[at:], len(blocks), width)
    kept = [order if share == 4096 else max(1, (real * share + 2048) // 4096) for order, real in blocks]
    codes, _ = planes(data, sum(kept), width)
    coordinates: list[float] = []
    start = 0
    for (order, real), many, scale in zip(blocks, kept, scales, strict=True):
        these, codes = codes[:many], codes[many:]
        places = range(order) if many == order else sorted(range(order), key=lambda i: word(choice, i))[:many]
        rotated = [0] * order
        for place, code in zip(places, these, strict=True):
            rotated[place] = LEVELS[width][code]
        for i in range(real):
            # Entry (i, j) of the Hadamard matrix is -1 where i and j have an odd number of set bits in common.
            total = sum(-z if (i & j).bit_count() % 2 else z for j, z in enumerate(rotated) if z)
            value = np.float32(total) * np.float32(scale)
            coordinates.append(float(-value if word(rotation, (start + i) // 64) >> (start + i) % 64 & 1 else value))
        start += order
    return coordinates


def plain_scales(data: bytes, count: int, width: int) -> tuple[list[float], bytes]:
    if width > 1:
        return list(struct.unpack_from(f"<{count}f", data)), data[4 * count :]
    lowest, bits = struct.unpack_from("<hB", data)
    entries, rest = planes(data[3:], count, bits)
    exponents = [lowest + entry - 1 for entry in entries]
    return [
        math.ldexp(FRACTIONS[number % 8], number // 8) if entry else 0.0
        for number, entry in zip(exponents, entries, strict=True)
    ], rest


FRACTIONS = (1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)
FRACTIONS = tuple(float(np.float32(fraction)) for fraction in FRACTIONS)
HALVES = {
    2: (232, 773),
    3: (125, 387, 688, 1102),
    4: (66, 199, 336, 482, 643, 828, 1059, 1399),
}
LEVELS = {1: [1, -1], **{width: [-x for x in reversed(half)] + list(half) for width, half in HALVES.items()}}
