"""Rice codes for arrays, without a loop over elements.

A Rice code with parameter r writes a number x as its quotient x >> r in unary (that many zeros, then a one) and its
remainder in r bits. Here all quotients stand together in one bit string and all remainders in another, the remainders
as bit planes (the highest bit of every remainder, then the next one of every remainder, ...), since both can then be
written and read by whole-array operations. The number of bits is the same as with the usual order.

Bit strings start at the most significant bit of their first byte; unused bits of the last byte are zero.

Source: R. F. Rice, "Some practical universal noiseless coding techniques", JPL 79-22, 1979.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError

__all__ = [
    "PARAMETER_MAX",
    "bytes_for_bits",
    "pack_bit_planes",
    "pack_unary",
    "unpack_bit_planes",
    "unpack_terminators",
]

PARAMETER_MAX: Final = 28  # no vector has more than 2^28 coordinates


def bytes_for_bits(bits: int) -> int:
    """Bytes that hold ``bits`` bits."""
    return (bits + 7) >> 3


def pack_unary(quotients: NDArray[np.int64]) -> bytes:
    """Each of the int64[k] quotients as that many zero bits and a one."""
    if quotients.size == 0:
        return b""
    ends = np.cumsum(quotients + 1)
    bits = np.zeros(int(ends[-1]), dtype=np.uint8)
    bits[ends - 1] = 1
    return np.packbits(bits).tobytes()


def unpack_terminators(data: memoryview, count: int) -> NDArray[np.int64]:
    """int64[count]: the positions of the ones, which end the unary codes, in a bit string that nobody vouches for.

    Args:
        data: The bit string, which ends in the byte of the last one.
        count: How many ones there must be.

    Raises:
        DecodeError: There are more or fewer ones, or bytes behind the last one.
    """
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    ends = bits.view(np.bool_).nonzero()[0]
    if ends.size != count:
        raise DecodeError(f"update frame: {ends.size} unary codes, expected {count}", reason="rice")
    if len(data) and data[-1] == 0:
        raise DecodeError("update frame: bytes behind the last unary code", reason="rice")
    return ends


def pack_bit_planes(numbers: NDArray[np.integer[Any]], width: int) -> bytes:
    """The low ``width`` bits of each of the numbers, integers [k] of at least 0, highest bit plane first."""
    narrow = numbers.astype(np.uint8 if width <= 8 else np.uint32)
    planes = np.empty((width, numbers.size), dtype=np.uint8)
    for plane in range(width):
        np.right_shift(narrow, width - 1 - plane, out=planes[plane], casting="unsafe")
    planes &= 1
    return np.packbits(planes).tobytes()


def unpack_bit_planes(data: memoryview, count: int, width: int) -> NDArray[Any]:
    """Unsigned integers [count] of ``width`` bits from the bit planes in ``data``.

    Raises:
        DecodeError: ``data`` has not exactly the bytes of ``count * width`` bits, or unused bits are set.
    """
    bits = count * width
    if len(data) != bytes_for_bits(bits):
        raise DecodeError(
            f"update frame: {len(data)} bytes of bit planes, expected {bytes_for_bits(bits)}", reason="rice"
        )
    if bits == 0:
        return np.zeros(count, dtype=np.uint8)
    if bits & 7 and data[-1] & (0xFF >> (bits & 7)):
        raise DecodeError("update frame: unused bits are set", reason="rice")
    planes = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=bits).reshape(width, count)
    if width <= 8:
        return _octets(planes)
    numbers = _octets(planes[: width & 7]).astype(np.uint32)
    for group in range(width & 7, width, 8):
        numbers <<= 8
        numbers |= _octets(planes[group : group + 8])
    return numbers


def _octets(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8[k] from at most eight bit planes, uint8[width, k]."""
    octets = np.zeros(planes.shape[1], dtype=np.uint8)
    for plane in planes:
        # Doubling is an addition here because NumPy's shifts are not vectorised on every processor.
        octets += octets
        octets += plane
    return octets
