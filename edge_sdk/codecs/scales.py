"""The scales of blocks: one number each, so that a block of 4096 coordinates pays a few bits for it.

Coarse scales are powers of 2^(1/8), rounded at random such that the mean is right. Blocks of one vector have scales
close to each other, so their numbers are written as differences from the lowest, in as few bits as the largest needs:

    2 bytes     lowest, signed, little-endian
    1 byte      b: bits of an entry, 0 to 14
    bit planes  per block 0 for a scale of zero, or v for 2^((lowest + v - 1) / 8)  (``rice.py``)

Fine scales are float32, little-endian. What is rounded to many levels needs them: a coarse one would be the largest
error. Source of the random rounding: Alistarh et al., "QSGD", 2017, section 3.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, MAGNITUDE_MAX_BITS
from edge_sdk.codecs.rice import bytes_for_bits, pack_bit_planes, unpack_bit_planes
from edge_sdk.codecs.splitmix import uniforms
from edge_sdk.errors import DecodeError

__all__ = ["coarse_bytes_max", "decode_coarse", "decode_fine", "encode_coarse", "encode_fine"]

_HEAD: Final = struct.Struct("<hB")
_STEPS: Final = 8
_WIDTH_MAX: Final = 14
_NUMBER_MAX: Final = 110 * _STEPS
_NUMBER_MIN: Final = -126 * _STEPS
# 2^(k/8) as float32: constants, since a power may differ in its last bit from one machine to another.
_FRACTIONS: Final = np.array(
    [float.fromhex(text) for text in ("0x1p0", "0x1.172b84p0", "0x1.306fe0p0", "0x1.4bfdaep0")]
    + [float.fromhex(text) for text in ("0x1.6a09e6p0", "0x1.8ace54p0", "0x1.ae89fap0", "0x1.d5818ep0")],
    dtype=np.float32,
)


def encode_coarse(scales: NDArray[np.float64], seed: int) -> bytes:
    """Float64[blocks] of at least 0 and at most 2^109 as powers of 2^(1/8), up or down at random by ``seed``."""
    positive = scales > 0.0
    numbers = np.zeros(scales.size, dtype=np.int64)
    with np.errstate(divide="ignore"):
        numbers[positive] = np.floor(np.log2(scales[positive]) * _STEPS)
    np.clip(numbers, _NUMBER_MIN, _NUMBER_MAX - 1, out=numbers)
    below, above = _values(numbers), _values(numbers + 1)
    # The logarithm may be off by one step where a scale is almost a power; a share outside 0..1 rounds to the nearer.
    numbers += uniforms(seed, scales.size) < (scales - below) / (above - below)
    lowest = int(numbers[positive].min(initial=_NUMBER_MAX))
    entries = np.where(positive, numbers - lowest + 1, 0)
    width = int(entries.max()).bit_length()
    return _HEAD.pack(lowest, width) + pack_bit_planes(entries, width)


def decode_coarse(section: memoryview, blocks: int) -> tuple[NDArray[np.float32], memoryview]:
    """Float32[blocks] from the head of ``section``, which nobody vouches for, and what follows them.

    Raises:
        DecodeError: The section is too short, a scale is above 2^110, or a field is out of range.
    """
    if len(section) < _HEAD.size:
        raise DecodeError("update frame: ends within the scales", reason="length")
    lowest, width = _HEAD.unpack_from(section)
    end = _HEAD.size + bytes_for_bits(blocks * width)
    if width > _WIDTH_MAX or len(section) < end:
        raise DecodeError(f"update frame: {blocks} scales of {width} bits do not fit", reason="length")
    entries = unpack_bit_planes(section[_HEAD.size : end], blocks, width).astype(np.int64)
    numbers = entries + (lowest - 1)
    if not _NUMBER_MIN <= lowest <= _NUMBER_MAX or int(numbers.max()) > _NUMBER_MAX:
        raise DecodeError("update frame: a scale is out of range", reason="values")
    values = _values(np.maximum(numbers, _NUMBER_MIN))
    values[entries == 0] = 0.0
    return values, section[end:]


def encode_fine(scales: NDArray[np.float64]) -> bytes:
    """Float64[blocks] as float32."""
    return scales.astype("<f4").tobytes()


def decode_fine(section: memoryview, blocks: int) -> tuple[NDArray[np.float32], memoryview]:
    """Float32[blocks] from the head of ``section``, which nobody vouches for, and what follows them.

    Raises:
        DecodeError: The section is too short, or a scale is negative, not finite or above 2^100.
    """
    if len(section) < 4 * blocks:
        raise DecodeError("update frame: ends within the scales", reason="length")
    values = np.frombuffer(section[: 4 * blocks], dtype="<f4").astype(np.float32)
    # As integers, floats from 0 to the bound come first; negative ones, infinities and NaNs are all above.
    if values.view(np.uint32).max() > MAGNITUDE_MAX_BITS:
        raise DecodeError(f"update frame: a scale is not a finite number in 0..{MAGNITUDE_MAX:g}", reason="values")
    return values, section[4 * blocks :]


def coarse_bytes_max(blocks: int) -> int:
    """Bytes that :func:`encode_coarse` never exceeds."""
    return _HEAD.size + bytes_for_bits(blocks * _WIDTH_MAX)


def _values(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """2^(number / 8), float32: a constant times an exact power of two."""
    values: NDArray[np.float32] = np.ldexp(_FRACTIONS[numbers & (_STEPS - 1)], (numbers >> 3).astype(np.int32))
    return values
