"""Increasing indices as gaps, coded in whichever of two ways is smaller.

Rice codes are within half a percent of log2 C(n, k) where positions are random. Positions in real updates are not:
whole rows and columns of a layer move together, so gaps repeat, and deflate (RFC 1951) over LEB128 bytes finds that.
Both are tried on every update whose gaps have structure; an estimate of the smaller one would be wrong too often.
Random gaps are told by their octets' entropy, which is above the Rice code's length: no Huffman code can be below it.

    byte 0      0..28: Rice codes with this parameter; 255: LEB128 gaps under deflate
    bytes 1..4  bytes of the data that follow, little-endian
    data        Rice: remainders as bit planes, then quotients in unary (``rice.py``)
                deflate: a raw deflate stream of the gaps in LEB128, lowest seven bits first

The gap of an index is the number of coordinates skipped since the one before, so that decoded indices can only rise.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.update.rice import (
    PARAMETER_MAX,
    best_parameter,
    bytes_for_bits,
    pack_bit_planes,
    pack_unary,
    unpack_bit_planes,
    unpack_terminators,
)

__all__ = ["decode_indices", "encode_indices", "indices_bytes_max"]

_HEAD: Final = struct.Struct("<BI")
_DEFLATE: Final = 255
# Level and strategy of zlib. Among many small gaps, short repetitions are frequent, slow to search and of no use, which
# is what Z_FILTERED leaves out.
_HUFFMAN: Final = (6, zlib.Z_HUFFMAN_ONLY)
_SEARCH_SPARSE: Final = (6, zlib.Z_DEFAULT_STRATEGY)
_SEARCH_DENSE: Final = (4, zlib.Z_FILTERED)
_DENSE_GAP: Final = 32
_STRUCTURED: Final = 0.98  # of the Rice code's bytes
_WINDOW_BITS: Final = -15  # raw: the frame has its own checksum
_MEMORY_LEVEL: Final = 9


def indices_bytes_max(count: int, size: int) -> int:
    """Bytes that :func:`encode_indices` never exceeds for at most ``count`` indices below ``size``."""
    parameter = best_parameter(count, size)
    # Fewer indices never need more bits; the last bytes of the two bit strings may then be fuller by one in sum.
    return _HEAD.size + bytes_for_bits(count * parameter) + bytes_for_bits(count + (size >> parameter)) + 1


def encode_indices(indices: NDArray[np.int64], size: int) -> bytes:
    """The section of a frame that holds ``indices`` (int64[k], k >= 1, strictly increasing, below ``size``)."""
    gaps = np.empty_like(indices)
    gaps[0] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    rice_bytes, parameter = _cheapest_rice(gaps, size)
    huffman_bytes_min = _entropy_bytes(gaps)
    if huffman_bytes_min < _STRUCTURED * rice_bytes:
        leb128 = _to_leb128(gaps)
        deflated = _deflate(leb128, *(_SEARCH_DENSE if _DENSE_GAP * gaps.size > size else _SEARCH_SPARSE))
        if len(deflated) > huffman_bytes_min:
            deflated = min(deflated, _deflate(leb128, *_HUFFMAN), key=len)
        if len(deflated) < rice_bytes:
            return _HEAD.pack(_DEFLATE, len(deflated)) + deflated
    data = pack_bit_planes(gaps, parameter) + pack_unary(gaps >> parameter)
    return _HEAD.pack(parameter, len(data)) + data


def decode_indices(section: memoryview, count: int, size: int) -> tuple[NDArray[np.int64], memoryview]:
    """``count`` (at least 1) indices from the head of ``section``, which nobody vouches for, and what follows them.

    Raises:
        DecodeError: Anything but ``count`` strictly increasing indices below ``size`` in exactly the stated bytes.
    """
    if len(section) < _HEAD.size:
        raise DecodeError("update frame: ends within the indices", reason="length")
    coding, data_bytes = _HEAD.unpack_from(section)
    if data_bytes > len(section) - _HEAD.size:
        raise DecodeError(f"update frame: {data_bytes} bytes of indices announced, fewer follow", reason="length")
    data = section[_HEAD.size : _HEAD.size + data_bytes]
    if coding <= PARAMETER_MAX:
        indices = _from_rice(data, count, size, coding)
    elif coding == _DEFLATE:
        indices = _from_leb128(_inflate(data, count * _leb128_bytes_max(size)), count, size)
    else:
        raise DecodeError(f"update frame: index coding {coding} is not known", reason="indices")
    # Gaps are not negative, so the indices rise strictly and the last one is the largest.
    if indices[-1] >= size:
        raise DecodeError(f"update frame: index {indices[-1]} is not below {size}", reason="indices")
    return indices, section[_HEAD.size + data_bytes :]


def _cheapest_rice(gaps: NDArray[np.int64], size: int) -> tuple[int, int]:
    """Bytes and parameter of the smallest Rice code around the one that suits random positions."""
    middle = best_parameter(gaps.size, size)
    costs = []
    for parameter in range(max(0, middle - 1), min(PARAMETER_MAX, middle + 1) + 1):
        unary_bits = gaps.size + int((gaps >> parameter).sum())
        costs.append((bytes_for_bits(gaps.size * parameter) + bytes_for_bits(unary_bits), parameter))
    return min(costs)


def _from_rice(data: memoryview, count: int, size: int, parameter: int) -> NDArray[np.int64]:
    planes_bytes = bytes_for_bits(count * parameter)
    unary_bytes = len(data) - planes_bytes
    if not 0 < unary_bytes <= bytes_for_bits(count + (size >> parameter)):
        raise DecodeError(f"update frame: {len(data)} bytes of Rice codes cannot be {count} indices", reason="length")
    remainders = unpack_bit_planes(data[:planes_bytes], count, parameter)
    indices = unpack_terminators(data[planes_bytes:], count)
    # The i-th terminator stands behind i other ones and the sum of the quotients so far, which saves summing these:
    # index = (terminator - i) * 2^r + i + (sum of the remainders so far).
    mask = (1 << parameter) - 1
    steps = remainders.astype(np.int64)
    steps -= mask
    steps.cumsum(out=steps)
    indices <<= parameter
    indices += steps
    indices += mask
    return indices


def _leb128_bytes_max(size: int) -> int:
    """Bytes of the largest gap in a vector of ``size`` coordinates."""
    return max(1, -(-(size - 1).bit_length() // 7))


def _entropy_bytes(gaps: NDArray[np.int64]) -> float:
    """Bytes below which no Huffman code of the gaps' LEB128 octets can be."""
    counts = np.zeros(256)
    rest = gaps
    while rest.size:
        longer = (rest > 0x7F).nonzero()[0]
        octets = rest & 0x7F
        octets[longer] |= 0x80
        counts += np.bincount(octets, minlength=256)
        rest = rest[longer] >> 7
    counts = counts[counts > 0.0]
    total = counts.sum()
    return float(total * np.log2(total) - counts @ np.log2(counts)) / 8


def _to_leb128(gaps: NDArray[np.int64]) -> bytes:
    largest = int(gaps.max())
    octets_each = np.ones_like(gaps)
    longer_than = []  # for place 1, 2, ...: which gaps have an octet there
    for place in range(1, _leb128_bytes_max(largest + 1)):
        longer = (gaps >= 1 << (7 * place)).nonzero()[0]
        octets_each[longer] += 1
        longer_than.append(longer)
    starts = np.cumsum(octets_each)
    octets = np.empty(int(starts[-1]), dtype=np.uint8)
    starts -= octets_each
    octets[starts] = gaps & 0x7F
    for place, longer in enumerate(longer_than, start=1):
        at = starts[longer] + place
        octets[at - 1] |= 0x80
        octets[at] = (gaps[longer] >> (7 * place)) & 0x7F
    return octets.tobytes()


def _from_leb128(data: bytes, count: int, size: int) -> NDArray[np.int64]:
    octets = np.frombuffer(data, dtype=np.uint8)
    ends = (octets < 0x80).nonzero()[0]
    if ends.size != count or ends[-1] != octets.size - 1:
        raise DecodeError(f"update frame: {ends.size} gaps, expected {count}", reason="indices")
    steps = (octets & 0x7F).astype(np.int64)
    # Octets behind one that is not the last of its gap weigh 2^7 as much, those behind two 2^14, ...
    heavier = (octets >= 0x80).nonzero()[0] + 1
    for _ in range(_leb128_bytes_max(size) - 1):
        if not heavier.size:
            break
        weighed = octets[heavier]
        if not weighed.all():
            raise DecodeError("update frame: a gap is written longer than it needs", reason="indices")
        steps[heavier] <<= 7
        heavier = heavier[weighed >= 0x80] + 1
    if heavier.size:
        raise DecodeError(f"update frame: a gap of more than {_leb128_bytes_max(size)} bytes", reason="indices")
    steps.cumsum(out=steps)
    indices = steps[ends]
    indices += np.arange(count)
    return indices


def _deflate(data: bytes, level: int, strategy: int) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, strategy)
    return deflater.compress(data) + deflater.flush()


def _inflate(data: memoryview, bytes_max: int) -> bytes:
    inflater = zlib.decompressobj(_WINDOW_BITS)
    try:
        # One byte more than allowed, so that a stream of exactly the allowed length can come to its end.
        plain = inflater.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise DecodeError(f"update frame: the deflate stream is damaged ({error})", reason="deflate") from None
    if not inflater.eof or inflater.unused_data or len(plain) > bytes_max:
        raise DecodeError(f"update frame: the deflate stream is not one of at most {bytes_max} bytes", reason="deflate")
    return plain
