"""Indices as frames of the first ``sparse`` hold them (codec 3): read for ever, written no more.

    byte 0      0..28: Rice codes with this parameter; 255: LEB128 gaps under deflate
    bytes 1..4  bytes of the data that follow, little-endian
    data        Rice: remainders as bit planes, then quotients in unary (``rice.py``)
                deflate: a raw deflate stream of the gaps in LEB128, lowest seven bits first

The gap of an index is the number of coordinates skipped since the one before, so that decoded indices can only rise.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.gaps import gaps_from_deflate
from edge_sdk.codecs.rice import PARAMETER_MAX, bytes_for_bits, unpack_bit_planes, unpack_terminators
from edge_sdk.errors import DecodeError

__all__ = ["decode_first_indices"]

_HEAD: Final = struct.Struct("<BI")
_DEFLATE: Final = 255


def decode_first_indices(section: memoryview, count: int, size: int) -> tuple[NDArray[np.int64], memoryview]:
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
        indices = gaps_from_deflate(data, count, size)
    else:
        raise DecodeError(f"update frame: index coding {coding} is not known", reason="indices")
    # Gaps are not negative, so the indices rise strictly and the last one is the largest.
    if indices[-1] >= size:
        raise DecodeError(f"update frame: index {indices[-1]} is not below {size}", reason="indices")
    return indices, section[_HEAD.size + data_bytes :]


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
