"""Steps on a grid: some coordinates, each moved by a whole number of steps of one power of two.

    1 byte      1 where the steps add up exactly (see below), else 0
    1 byte      exponent e of the grid, -120 to 30, two's complement: its step is 2^e
    LEB128      k, the number of coordinates that move; if it is 0, nothing follows
    indices     ``index_coding.py``
    LEB128      t, the number of different magnitudes, 1 to 256
    magnitudes  t different whole numbers, LEB128; the more frequent ones first
    ranks       which magnitude each coordinate has: for r = 0, 1, .. the set of those (among those beyond r - 1) whose
                magnitude is beyond the r-th, up to r = 15 or the last but one; then the ranks of what is left as bit
                planes (``rice.py``), less 16
    signs       a bit per coordinate, 1 for negative

    a set       LEB128: 2 c, or 2 c + 1 where the coordinates that are *not* in it are given; c of them. If c > 0,
                their places among those that the set is of, as indices

A coordinate x becomes 2^e * (floor(x / 2^e + 1/2) + n), computed in float64, where all of this is exact, and rounded
to float32: a coordinate is on the grid from its first move on. So moves add up: two of them, one after the other, give
the same bits as one by the sum of their numbers, as long as every coordinate stays below 2^24 steps, where float32 has
all whole numbers. Who makes a step says whether that is so; :func:`merged` adds up.

Sources: the quantiser with a dead zone and few levels is close to the best there is at low rates (Sullivan, "Efficient
scalar quantization of exponential and Laplacian random variables", 1996); successive binary decisions as in the
exponential-Golomb and unary binarisations of video coding (ITU-T H.264, section 9.3.2).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.frame import pack_frame, unpack_frame
from edge_sdk.codecs.index_coding import decode_indices, encode_indices, indices_bytes_max
from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.codecs.rice import bytes_for_bits, pack_bit_planes, unpack_bit_planes
from edge_sdk.errors import DecodeError

__all__ = [
    "EXACT_MAX",
    "EXPONENTS",
    "MAGNITUDES_MAX",
    "NUMBER_MAX",
    "WIRE_ID",
    "GridSteps",
    "decode_grid",
    "encode_grid",
    "merged",
]

WIRE_ID: Final = 7
MAGNITUDES_MAX: Final = 256
EXPONENTS: Final = range(-120, 31)
EXACT_MAX: Final = 1 << 24
"""Steps up to which float32 has every whole number."""

NUMBER_MAX: Final = 1 << 40
"""Of a coordinate's steps."""

_HEAD: Final = struct.Struct("<Bb")
_SETS_MAX: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class GridSteps:
    """Some coordinates of a vector, and by how many steps each moves.

    Attributes:
        size: Coordinates of the vector.
        exponent: A step is 2^exponent.
        indices: int64[k], strictly increasing and below ``size``.
        numbers: int64[k]; a 0 only puts its coordinate on the grid.
        exact: Whether every coordinate is below ``EXACT_MAX`` steps before and after.
    """

    size: int
    exponent: int
    indices: NDArray[np.int64]
    numbers: NDArray[np.int64]
    exact: bool = True

    def moved(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The coordinates after the move, float32[k]; infinite where they overflow.

        Args:
            values: float32[k], those of ``indices`` before it.
        """
        on_grid = np.ldexp(values.astype(np.float64), -self.exponent)
        on_grid += 0.5
        np.floor(on_grid, out=on_grid)
        on_grid += self.numbers
        with np.errstate(over="ignore"):
            return np.ldexp(on_grid, self.exponent).astype(np.float32)


def encode_grid(steps: GridSteps) -> bytes:
    """The frame of some steps.

    Args:
        steps: At most ``MAGNITUDES_MAX`` different magnitudes.

    Raises:
        ValueError: They have more, or one of ``NUMBER_MAX`` or above.
    """
    head = _HEAD.pack(steps.exact, steps.exponent) + pack_number(steps.indices.size)
    if not steps.indices.size:
        return pack_frame(head, steps.size, WIRE_ID)
    section, _ = encode_indices(steps.indices, steps.size)
    magnitudes, ranks = _ranked(np.abs(steps.numbers))
    if magnitudes.size > MAGNITUDES_MAX or magnitudes.max() >= NUMBER_MAX:
        raise ValueError(f"{magnitudes.size} different magnitudes up to {magnitudes.max()} cannot be told")
    body = [head, section, pack_number(magnitudes.size), *map(pack_number, magnitudes.tolist())]
    left = ranks
    for rank in range(min(magnitudes.size - 1, _SETS_MAX)):
        beyond = left > rank
        body.append(_pack_set(beyond))
        left = left[beyond]
    if magnitudes.size - 1 > _SETS_MAX:
        body.append(pack_bit_planes(left - _SETS_MAX, _plane_bits(magnitudes.size)))
    body.append(np.packbits(steps.numbers < 0).tobytes())
    return pack_frame(b"".join(body), steps.size, WIRE_ID)


def decode_grid(frame: bytes | memoryview, size: int) -> GridSteps:
    """The steps of a frame that nobody vouches for.

    Args:
        frame: The bytes; not referred to by the result.
        size: Coordinates that the vector must have.

    Raises:
        DecodeError: It is not one that :func:`encode_grid` makes.
        VersionError: Its version is not ours (says which side to upgrade).
    """
    wire_id, body = unpack_frame(frame, size, _body_bytes_max(size))
    if wire_id != WIRE_ID:
        raise DecodeError(f"grid frame: codec {wire_id}, expected {WIRE_ID}", reason="codec")
    if len(body) < _HEAD.size:
        raise DecodeError("grid frame: ends before the grid", reason="length")
    exact, exponent = _HEAD.unpack_from(body)
    if exact > 1 or exponent not in EXPONENTS:
        raise DecodeError(f"grid frame: a head of {exact} and 2^{exponent} is out of range", reason="values")
    count, rest = unpack_number(body[_HEAD.size :], size, "the number of coordinates that move")
    if not count:
        if len(rest):
            raise DecodeError("grid frame: bytes behind a step of no coordinates", reason="length")
        nothing = np.empty(0, dtype=np.int64)
        return GridSteps(size, exponent, nothing, nothing, bool(exact))
    indices, order, rest = decode_indices(rest, count, size)
    numbers = _unpack_numbers(rest, count)
    if order is not None:
        indices, numbers = indices[order], numbers[order]
    return GridSteps(size, exponent, indices, numbers, bool(exact))


def merged(several: Sequence[GridSteps]) -> GridSteps | None:
    """One move in place of several, one after the other; None where that would not be the same to the bit, or where it
    has too many different magnitudes.

    Args:
        several: At least one, of vectors of one size.
    """
    first = several[0]
    if not all(steps.exact and steps.exponent == first.exponent for steps in several):
        return None
    indices, places = np.unique(np.concatenate([steps.indices for steps in several]), return_inverse=True)
    numbers = np.zeros(indices.size, dtype=np.int64)
    at = 0
    for steps in several:  # within one of them no index comes twice
        numbers[places[at : at + steps.indices.size]] += steps.numbers
        at += steps.indices.size
    different = np.unique(np.abs(numbers))
    if different.size > MAGNITUDES_MAX or int(different[-1:].max(initial=0)) >= NUMBER_MAX:
        return None
    return GridSteps(first.size, first.exponent, indices, numbers)


def _ranked(magnitudes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different ones, the more frequent first, and which of them each is."""
    different, places, counts = np.unique(magnitudes, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.arange(order.size)
    return different[order], ranks[places]


def _plane_bits(magnitudes: int) -> int:
    return (magnitudes - 1 - _SETS_MAX).bit_length()


def _pack_set(members: NDArray[np.bool_]) -> bytes:
    inside = int(np.count_nonzero(members))
    inverted = 2 * inside > members.size
    given = np.flatnonzero(~members if inverted else members)
    head = pack_number(2 * given.size + inverted)
    return head + encode_indices(given, members.size)[0] if given.size else head


def _unpack_set(section: memoryview, size: int) -> tuple[NDArray[np.bool_], memoryview]:
    head, rest = unpack_number(section, size + 1, "the size of a set")
    given, inverted = head >> 1, bool(head & 1)
    members = np.full(size, inverted)
    if given:
        places, _, rest = decode_indices(rest, given, size)
        members[places] = not inverted
    return members, rest


def _unpack_numbers(section: memoryview, count: int) -> NDArray[np.int64]:
    different, rest = unpack_number(section, min(count, MAGNITUDES_MAX), "the number of magnitudes")
    magnitudes = np.empty(different, dtype=np.int64)
    for at in range(different):
        magnitudes[at], rest = unpack_number(rest, NUMBER_MAX, "a magnitude")
    if not different or np.unique(magnitudes).size != different:
        raise DecodeError("grid frame: no magnitude, or one of them twice", reason="values")
    ranks = np.zeros(count, dtype=np.int64)
    left = np.arange(count)
    for _ in range(min(different - 1, _SETS_MAX)):
        if not left.size:
            raise DecodeError("grid frame: a magnitude that no coordinate has", reason="values")
        beyond, rest = _unpack_set(rest, left.size)
        left = left[beyond]
        ranks[left] += 1
    if different - 1 > _SETS_MAX:
        width = _plane_bits(different)
        end = bytes_for_bits(left.size * width)
        ranks[left] += unpack_bit_planes(rest[:end], left.size, width)
        rest = rest[end:]
    if int(ranks.max()) != different - 1:
        raise DecodeError("grid frame: a rank without a magnitude, or the reverse", reason="values")
    if len(rest) != bytes_for_bits(count) or (count & 7 and rest[-1] & (0xFF >> (count & 7))):
        raise DecodeError(f"grid frame: {len(rest)} bytes cannot be {count} signs", reason="length")
    negative = np.unpackbits(np.frombuffer(rest, dtype=np.uint8), count=count).view(np.bool_)
    numbers = magnitudes[ranks]
    np.negative(numbers, out=numbers, where=negative)
    return numbers


def _body_bytes_max(size: int) -> int:
    """Bytes that no body exceeds: all coordinates in ranks of eight bits, after sixteen sets."""
    sets = (_SETS_MAX + 1) * (5 + indices_bytes_max(max(1, size // 2), size))
    return 64 + indices_bytes_max(size, size) + 6 * MAGNITUDES_MAX + sets + 2 * size
