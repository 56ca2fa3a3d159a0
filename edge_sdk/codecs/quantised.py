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
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, MAGNITUDE_MAX_BITS, Codec, Context, Decoded
from edge_sdk.codecs.feedback import add_residual
from edge_sdk.codecs.splitmix import uniforms
from edge_sdk.errors import DecodeError

if TYPE_CHECKING:
    from edge_sdk.codecs.settings import CodecSettings

__all__ = ["INT2", "INT4", "INT8"]

_HEAD: Final = struct.Struct("<I")


def _encode(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    settings: CodecSettings,
    context: Context,
    *,
    bits: int,
) -> tuple[bytes, None]:
    block = settings.block_size
    total = add_residual(delta, residual)
    padded = np.zeros((_blocks(total.size, block), block), dtype=np.float32)
    padded.ravel()[: total.size] = total
    scales = _scales(np.abs(padded).max(axis=1), _level_max(bits))
    np.divide(padded, scales[:, None], out=padded, where=scales[:, None] > 0.0)
    steps = padded.ravel()[: total.size]
    if settings.rounding == "nearest":
        levels = np.rint(steps)
    else:
        levels = np.floor(steps)
        levels += uniforms(context.own, total.size) < steps - levels
    codes = levels.astype(np.int8)
    return _HEAD.pack(block) + scales.astype("<f4", copy=False).tobytes() + _pack_codes(codes, bits), None


def _decode(body: memoryview, size: int, settings: CodecSettings, *, bits: int) -> Decoded:
    block = settings.block_size
    if len(body) != _body_bytes(size, settings, bits=bits):
        raise DecodeError(
            f"update frame: a body of {len(body)} bytes, expected {_body_bytes(size, settings, bits=bits)}",
            reason="length",
        )
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


def _body_bytes(size: int, settings: CodecSettings, *, bits: int) -> int:
    return _HEAD.size + 4 * _blocks(size, settings.block_size) + ((size * bits + 7) >> 3)


def _codec(wire_id: int, bits: int) -> Codec:
    return Codec(
        wire_id=wire_id,
        keeps_residual=False,
        encode=partial(_encode, bits=bits),
        decoders={wire_id: partial(_decode, bits=bits)},
        body_bytes_max=partial(_body_bytes, bits=bits),
    )


INT8: Final = _codec(1, bits=8)
INT4: Final = _codec(2, bits=4)
INT2: Final = _codec(4, bits=2)
