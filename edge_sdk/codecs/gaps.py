"""Gaps between increasing indices in LEB128 under deflate: what finds the structure of real positions.

Whole rows and columns of a layer move together, so gaps repeat, and deflate (RFC 1951) over LEB128 octets finds that.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError

__all__ = ["deflated_gaps", "entropy_bytes", "gaps_from_deflate"]

# Level and strategy of zlib. Among many small gaps, short repetitions are frequent, slow to search and of no use, which
# is what Z_FILTERED leaves out.
_HUFFMAN: Final = (6, zlib.Z_HUFFMAN_ONLY)
_SEARCH_SPARSE: Final = (6, zlib.Z_DEFAULT_STRATEGY)
_SEARCH_DENSE: Final = (4, zlib.Z_FILTERED)
_DENSE_GAP: Final = 32
_WINDOW_BITS: Final = -15  # raw: the frame has its own checksum
_MEMORY_LEVEL: Final = 9


def deflated_gaps(gaps: NDArray[np.int64], size: int, huffman_bytes_min: float) -> bytes:
    """The gaps under deflate, with whichever strategy makes them smallest.

    Args:
        gaps: int64[k], at least 0.
        size: Coordinates of the whole vector.
        huffman_bytes_min: From :func:`entropy_bytes`.
    """
    leb128 = _to_leb128(gaps)
    deflated = _deflate(leb128, *(_SEARCH_DENSE if _DENSE_GAP * gaps.size > size else _SEARCH_SPARSE))
    if len(deflated) > huffman_bytes_min:
        deflated = min(deflated, _deflate(leb128, *_HUFFMAN), key=len)
    return deflated


def entropy_bytes(gaps: NDArray[np.int64]) -> float:
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


def gaps_from_deflate(data: memoryview, count: int, size: int) -> NDArray[np.int64]:
    """int64[count]: the indices whose gaps are in a deflate stream that nobody vouches for.

    They rise strictly; whether the last one is below ``size`` is left to the caller.

    Raises:
        DecodeError: Anything but exactly ``count`` gaps of a vector of ``size`` coordinates.
    """
    return _from_leb128(_inflate(data, count * _leb128_bytes_max(size)), count, size)


def _leb128_bytes_max(size: int) -> int:
    """Bytes of the largest gap in a vector of ``size`` coordinates."""
    return max(1, -(-(size - 1).bit_length() // 7))


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
