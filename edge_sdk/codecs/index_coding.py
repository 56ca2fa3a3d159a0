"""Increasing indices as gaps, coded in whichever of two ways is smaller, in whichever order of the tensors is better.

Golomb codes are within one percent of log2 C(n, k) where positions are random, at any density. Positions in real
updates are not: whole rows and columns of a layer move together, so gaps repeat, and deflate over LEB128 octets finds
that (``gaps.py``). It finds more where the busy lines of a matrix are read along, so matrices may be numbered column
by column instead of row by row. Random gaps are told by their octets' entropy, which is then above the Golomb code's
length: no Huffman code can be below it, and nothing else is tried.

    LEB128      matrices that are numbered by columns; for each the coordinates between the end of the last such one and
                its first, its rows and its columns, LEB128
    LEB128      0: deflate; else the parameter m of Golomb codes
    LEB128      deflate: bytes of the stream; Golomb: bytes of the quotients
    data        deflate: the stream
                Golomb: remainders (:func:`_pack_remainders`), quotients in unary (``rice.py``)

The gap of an index is the number of coordinates skipped since the one before, so that decoded indices can only rise.

Sources: S. W. Golomb, "Run-length encodings", 1966; Gallager and van Voorhis, "Optimal source codes for geometrically
distributed integer alphabets", 1975 (the best m).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.gaps import deflated_gaps, entropy_bytes, gaps_from_deflate
from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.codecs.rice import (
    bytes_for_bits,
    pack_bit_planes,
    pack_unary,
    unpack_bit_planes,
    unpack_terminators,
)
from edge_sdk.errors import DecodeError

__all__ = ["Matrix", "decode_indices", "encode_indices", "indices_bytes_max"]

Matrix: TypeAlias = tuple[int, int, int]
"""First coordinate, rows, columns of a tensor with at least two rows; the elements are in C order."""

_MATRICES_MAX: Final = 64
_HEAD_BYTES_MAX: Final = 11
_STRUCTURED: Final = 0.98  # of the Golomb code's bytes
_WORTH_TURNING_BYTES: Final = 24
"""A matrix that is numbered by columns costs a few bytes to say, and the decoder a sort."""


def indices_bytes_max(count: int, size: int) -> int:
    """Bytes that :func:`encode_indices` never exceeds for at most ``count`` indices below ``size``."""
    # Fewer indices have a larger parameter and fewer bits; the last bytes of three bit strings may then be fuller.
    parameter = best_parameter(count, size)
    bits = count * ((parameter - 1).bit_length() + 1) + size // parameter
    return _HEAD_BYTES_MAX + bytes_for_bits(bits) + 3


def encode_indices(
    indices: NDArray[np.int64], size: int, matrices: Sequence[Matrix] = ()
) -> tuple[bytes, NDArray[np.int64] | None]:
    """The section of a frame that holds ``indices`` (int64[k], k >= 1, strictly increasing, below ``size``).

    Args:
        indices: The indices.
        size: Coordinates of the whole vector.
        matrices: Tensors that may be numbered by columns, in order, not overlapping.

    Returns:
        The bytes, and the order in which a decoder reads the indices: int64[k], or None where it is theirs.
    """
    gaps = _gaps(indices)
    golomb = pack_number(0) + _golomb(gaps, best_parameter(gaps.size, size))
    lowest = entropy_bytes(gaps)
    if lowest >= _STRUCTURED * len(golomb):
        return golomb, None
    turned = _worth_turning(indices, size, matrices)
    order = None
    if turned:
        numbers = _turn(indices, turned)
        order = np.argsort(numbers, kind="stable")
        gaps = _gaps(numbers[order])
    section = _deflate_section(turned, gaps, size)
    return (section, order) if len(section) < len(golomb) else (golomb, None)


def decode_indices(
    section: memoryview, count: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, memoryview]:
    """``count`` (at least 1) indices from the head of ``section``, which nobody vouches for, and what follows them.

    Returns:
        int64[count], different and below ``size``, in the order of what was sent with them; the order that makes them
        rise, None where they do; what follows.

    Raises:
        DecodeError: Anything but ``count`` different indices below ``size`` in exactly the stated bytes.
    """
    matrices, rest = _unpack_matrices(section, size)
    parameter, rest = unpack_number(rest, size, "the parameter of the indices")
    data_bytes, rest = unpack_number(rest, max(len(rest), 1), "the number of bytes of indices")
    if parameter:
        remainders, rest = _unpack_remainders(rest, count, parameter)
    if data_bytes > len(rest):
        raise DecodeError(f"update frame: {data_bytes} bytes of indices announced, fewer follow", reason="length")
    data, rest = rest[:data_bytes], rest[data_bytes:]
    if parameter:
        if not 0 < data_bytes <= bytes_for_bits(count + size // parameter):
            raise DecodeError(f"update frame: {data_bytes} bytes cannot be {count} quotients", reason="length")
        numbers = _from_golomb(remainders, unpack_terminators(data, count), parameter)
    else:
        numbers = gaps_from_deflate(data, count, size)
    # Gaps are not negative, so the numbers rise strictly and the last one is the largest.
    if numbers[-1] >= size:
        raise DecodeError(f"update frame: index {numbers[-1]} is not below {size}", reason="indices")
    if not matrices:
        return numbers, None, rest
    indices = _turn_back(numbers, matrices)
    return indices, np.argsort(indices, kind="stable"), rest


@lru_cache(maxsize=64)  # asked for every frame of a round with the same answer
def best_parameter(count: int, size: int) -> int:
    """The Golomb parameter for ``count`` random indices below ``size`` (Gallager and van Voorhis, equation 3)."""
    share = count / size
    if share >= 0.5:
        return 1
    return max(1, math.ceil(-math.log(2.0 - share) / math.log1p(-share)))


def _gaps(rising: NDArray[np.int64]) -> NDArray[np.int64]:
    gaps = np.empty_like(rising)
    gaps[0] = rising[0]
    np.subtract(rising[1:], rising[:-1], out=gaps[1:])
    gaps[1:] -= 1
    return gaps


def _golomb(gaps: NDArray[np.int64], parameter: int) -> bytes:
    """Parameter, bytes of the quotients, remainders, quotients."""
    narrow = gaps.astype(np.uint32)  # whose division is the faster one
    quotients = narrow // np.uint32(parameter)
    unary = pack_unary(quotients.astype(np.int64))
    remainders = _pack_remainders(narrow - quotients * np.uint32(parameter), parameter)
    return pack_number(parameter) + pack_number(len(unary)) + remainders + unary


def _pack_remainders(remainders: NDArray[np.uint32], parameter: int) -> bytes:
    """Numbers below ``parameter`` in truncated binary: with b bits for 2^b >= parameter, the lowest 2^b - parameter
    of them take b - 1 bits. The first b - 1 bits of all stand first, as bit planes; then the last bits of those that
    have one."""
    width, short = _truncated(parameter)
    if not width:
        return b""
    if not short:
        return pack_bit_planes(remainders, width)
    raised = np.where(remainders < short, 2 * remainders, remainders + np.uint32(short))
    last = (raised[remainders >= short] & 1).astype(np.uint8)
    return pack_bit_planes(raised >> 1, width - 1) + np.packbits(last).tobytes()


def _unpack_remainders(section: memoryview, count: int, parameter: int) -> tuple[NDArray[np.int64], memoryview]:
    width, short = _truncated(parameter)
    planes = width - 1 if short else width
    end = bytes_for_bits(count * planes)
    if len(section) < end:
        raise DecodeError("update frame: ends within the remainders", reason="length")
    remainders = unpack_bit_planes(section[:end], count, planes).astype(np.int64)
    rest = section[end:]
    if not short:
        return remainders, rest
    longer = (remainders >= short).nonzero()[0]
    end = bytes_for_bits(longer.size)
    if len(rest) < end:
        raise DecodeError("update frame: ends within the remainders", reason="length")
    last = unpack_bit_planes(rest[:end], longer.size, 1)
    remainders[longer] += remainders[longer] - short + last
    return remainders, rest[end:]


def _truncated(parameter: int) -> tuple[int, int]:
    """Bits of a remainder, and how many of the remainders have one bit less."""
    width = (parameter - 1).bit_length()
    return width, (1 << width) - parameter


def _from_golomb(remainders: NDArray[np.int64], ends: NDArray[np.int64], parameter: int) -> NDArray[np.int64]:
    # The i-th terminator stands behind i other ones and the sum of the quotients so far, which saves summing these.
    remainders += 1
    remainders.cumsum(out=remainders)
    remainders -= 1
    ends -= np.arange(ends.size)
    ends *= parameter
    ends += remainders
    return ends


def _deflate_section(turned: Sequence[Matrix], gaps: NDArray[np.int64], size: int) -> bytes:
    deflated = deflated_gaps(gaps, size, entropy_bytes(gaps))
    return _pack_matrices(turned) + pack_number(0) + pack_number(len(deflated)) + deflated


# --- matrices numbered by columns ------------------------------------------------------------------------------------


def _worth_turning(indices: NDArray[np.int64], size: int, matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """The matrices whose gaps have octets of less entropy by columns: what deflate can use, at a tenth of its cost."""
    turned = []
    for matrix in matrices:
        start, rows, columns = matrix
        low, high = np.searchsorted(indices, (start, start + rows * columns))
        if columns == 1 or high - low < _WORTH_TURNING_BYTES:
            continue
        within = indices[low:high] - start
        sizes = [
            entropy_bytes(_gaps(numbers)) for numbers in (within, np.sort(within % columns * rows + within // columns))
        ]
        if sizes[1] + _WORTH_TURNING_BYTES < sizes[0]:
            turned.append(matrix)
    return tuple(turned[:_MATRICES_MAX])


def _turn(indices: NDArray[np.int64], matrices: Sequence[Matrix]) -> NDArray[np.int64]:
    """Numbers of indices where these matrices are numbered by columns."""
    numbers = indices.copy()
    for start, rows, columns in matrices:
        low, high = np.searchsorted(indices, (start, start + rows * columns))
        within = indices[low:high] - start
        numbers[low:high] = start + within % columns * rows + within // columns
    return numbers


def _turn_back(numbers: NDArray[np.int64], matrices: Sequence[Matrix]) -> NDArray[np.int64]:
    """The inverse of :func:`_turn`, for numbers that rise: a matrix by columns is its transpose by rows."""
    return _turn(numbers, [(start, columns, rows) for start, rows, columns in matrices])


def _pack_matrices(matrices: Sequence[Matrix]) -> bytes:
    head, behind = [pack_number(len(matrices))], 0
    for start, rows, columns in matrices:
        head += [pack_number(start - behind), pack_number(rows), pack_number(columns)]
        behind = start + rows * columns
    return b"".join(head)


def _unpack_matrices(section: memoryview, size: int) -> tuple[list[Matrix], memoryview]:
    count, rest = unpack_number(section, _MATRICES_MAX, "the number of matrices")
    matrices, behind = [], 0
    for _ in range(count):
        skipped, rest = unpack_number(rest, size, "a matrix's place")
        rows, rest = unpack_number(rest, size, "a matrix's rows")
        columns, rest = unpack_number(rest, size, "a matrix's columns")
        matrices.append((behind + skipped, rows, columns))
        behind += skipped + rows * columns
        if not rows or not columns or behind > size:
            raise DecodeError(f"update frame: a matrix of {rows} x {columns} ends beyond {size}", reason="indices")
    return matrices, rest
