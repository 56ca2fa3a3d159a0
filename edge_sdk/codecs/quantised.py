"""Every coordinate in 8, 4 or 2 bits, with one scale per block.

    bytes 0..3  block size, little-endian
    scales      float32 per block, little-endian: the largest magnitude of the block / (127, 7 or 1), rounded up
    codes       int8: one two's complement byte per coordinate, -127..127
                int4: a nibble per coordinate, code + 7 in 0..14, the low nibble first; an odd last high nibble is zero
                int2: two bits per coordinate, code + 1 in 0..2, the lowest bits first; unused bits are zero

A coordinate is code * scale. Scales are rounded up so that no coordinate is ever clipped: the error stays within half
a scale (``nearest``) or one scale with mean zero (``stochastic``). No residual is kept.

Source: Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", 2017, section 3,
with the maximum norm per bucket.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import (
    MAGNITUDE_MAX,
    MAGNITUDE_MAX_BITS,
    Codec,
    Context,
    Decoded,
    Kept,
    Vectors,
    setting,
)
from edge_sdk.codecs.splitmix import uniforms
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import choice, integer

__all__ = ["ROUNDINGS", "Int2", "Int4", "Int8"]

ROUNDINGS: Final = ("nearest", "stochastic")
"""``nearest`` has the smaller error in one update; ``stochastic`` is unbiased, so errors average out over a cohort."""

_HEAD: Final = struct.Struct("<I")


def _block_size() -> Any:
    return setting(
        integer(8, 1 << 16),
        1024,
        "Elements that share one scale.",
        allowed="a whole number at least 8, at most 65536",
        unit="elements",
    )


def _rounding() -> Any:
    return setting(
        choice(*ROUNDINGS),
        "stochastic",
        "How coordinates are rounded: nearest has the smaller error in one update, stochastic is unbiased.",
        allowed='one of "nearest", "stochastic"',
    )


@dataclass(frozen=True, slots=True)
class Int8(Codec):
    """All coordinates in eight bits."""

    name: ClassVar[str] = "int8"
    wire_id: ClassVar[int] = 1
    block_size: int = _block_size()
    rounding: str = _rounding()

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        return _encode(delta, self.block_size, self.rounding, context, 8), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        return _decode(body, size, self.block_size, 8)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return _body_bytes(size, self.block_size, 8)


@dataclass(frozen=True, slots=True)
class Int4(Codec):
    """All coordinates in four bits."""

    name: ClassVar[str] = "int4"
    wire_id: ClassVar[int] = 2
    block_size: int = _block_size()
    rounding: str = _rounding()

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        return _encode(delta, self.block_size, self.rounding, context, 4), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        return _decode(body, size, self.block_size, 4)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return _body_bytes(size, self.block_size, 4)


@dataclass(frozen=True, slots=True)
class Int2(Codec):
    """All coordinates in two bits."""

    name: ClassVar[str] = "int2"
    wire_id: ClassVar[int] = 4
    block_size: int = _block_size()
    rounding: str = _rounding()

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        return _encode(delta, self.block_size, self.rounding, context, 2), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        return _decode(body, size, self.block_size, 2)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return _body_bytes(size, self.block_size, 2)


def _encode(total: NDArray[np.float32], block: int, rounding: str, context: Context, bits: int) -> bytes:
    padded = np.zeros((_blocks(total.size, block), block), dtype=np.float32)
    padded.ravel()[: total.size] = total
    scales = _scales(np.abs(padded).max(axis=1), _level_max(bits))
    np.divide(padded, scales[:, None], out=padded, where=scales[:, None] > 0.0)
    steps = padded.ravel()[: total.size]
    if rounding == "nearest":
        levels = np.rint(steps)
    else:
        levels = np.floor(steps)
        levels += uniforms(context.own, total.size) < steps - levels
    codes = levels.astype(np.int8)
    return _HEAD.pack(block) + scales.astype("<f4", copy=False).tobytes() + _pack_codes(codes, bits)


def _decode(body: memoryview, size: int, block: int, bits: int) -> Decoded:
    expected = _body_bytes(size, block, bits)
    if len(body) != expected:
        raise DecodeError(f"update frame: a body of {len(body)} bytes, expected {expected}", reason="length")
    (frame_block,) = _HEAD.unpack_from(body)
    if frame_block != block:
        raise DecodeError(f"update frame: blocks of {frame_block}, the plan asked for {block}", reason="block_size")
    blocks = _blocks(size, block)
    codes_at = _HEAD.size + 4 * blocks
    scales = np.frombuffer(body[_HEAD.size : codes_at], dtype="<f4").astype(np.float32)
    # As integers, floats from 0 to the bound come first; negative ones, infinities and NaNs are all above.
    if scales.view(np.uint32).max() > MAGNITUDE_MAX_BITS:
        raise DecodeError(f"update frame: a scale is not a finite number in 0..{MAGNITUDE_MAX:g}", reason="values")
    codes = _unpack_codes(body[codes_at:], size, bits)
    values = np.zeros((blocks, block), dtype=np.float32)
    values.ravel()[:size] = codes
    values *= scales[:, None]
    return Decoded(size, None, values.ravel()[:size])


def _unpack_codes(data: memoryview, size: int, bits: int) -> NDArray[np.int8]:
    if bits == 8:
        codes = np.frombuffer(data, dtype=np.int8)
        if codes.min() < -127:
            raise DecodeError("update frame: the code -128 is not used", reason="values")
        return codes
    octets = np.frombuffer(data, dtype=np.uint8)
    each = 8 // bits
    raised = np.empty(each * len(data), dtype=np.uint8)
    for place in range(each):
        raised[place::each] = (octets >> (bits * place)) & ((1 << bits) - 1)
    if raised[size:].any():
        raise DecodeError("update frame: unused bits are set", reason="values")
    if raised[:size].max() > 2 * _level_max(bits):
        raise DecodeError(f"update frame: the code {_level_max(bits) + 1} is not used", reason="values")
    return raised[:size].view(np.int8) - np.int8(_level_max(bits))


def _pack_codes(codes: NDArray[np.int8], bits: int) -> bytes:
    if bits == 8:
        return codes.tobytes()
    each = 8 // bits
    raised = np.zeros((-(-codes.size // each), each), dtype=np.uint8)
    raised.reshape(-1)[: codes.size] = codes + _level_max(bits)
    octets = raised[:, 0]
    for place in range(1, each):
        octets |= raised[:, place] << (bits * place)
    return octets.tobytes()


def _scales(largest: NDArray[np.float32], level_max: int) -> NDArray[np.float32]:
    if level_max == 1:
        return largest.copy()  # a division by 1 rounds nothing
    scales = largest / np.float32(level_max)
    # The next float32 up, so that no quotient exceeds level_max; a block of zeros keeps the scale zero.
    np.nextafter(scales, np.float32(np.inf), out=scales, where=largest > 0.0)
    return scales


def _level_max(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _body_bytes(size: int, block: int, bits: int) -> int:
    return _HEAD.size + 4 * _blocks(size, block) + ((size * bits + 7) >> 3)
