"""The vector as it is, in order: float32, little-endian, or float16.

A float16 has 11 bits of precision down to 6e-5 and reaches 65,504; what is larger cannot be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, MAGNITUDE_MAX_BITS, Codec, Context, Decoded
from edge_sdk.codecs.feedback import add_residual
from edge_sdk.errors import DecodeError, TrainingError

if TYPE_CHECKING:
    from edge_sdk.codecs.settings import CodecSettings

__all__ = ["DENSE", "FLOAT16"]

_HALF_MAX: Final = 65_504.0


def _encode(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, settings: CodecSettings, context: Context
) -> tuple[bytes, None]:
    return add_residual(delta, residual).astype("<f4", copy=False).tobytes(), None


def _decode(body: memoryview, size: int, settings: CodecSettings) -> Decoded:
    if len(body) != 4 * size:
        raise DecodeError(f"update frame: {len(body)} bytes of float32, expected {4 * size}", reason="length")
    values = np.frombuffer(body, dtype="<f4").astype(np.float32)
    # As integers without their sign, floats up to the bound come first; infinities and NaNs are above.
    if (values.view(np.uint32) & 0x7FFF_FFFF).max() > MAGNITUDE_MAX_BITS:
        raise DecodeError(f"update frame: a value is not finite or above {MAGNITUDE_MAX:g}", reason="values")
    return Decoded(size, None, values)


def _body_bytes_max(size: int, settings: CodecSettings) -> int:
    return 4 * size


def _encode_half(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, settings: CodecSettings, context: Context
) -> tuple[bytes, None]:
    total = add_residual(delta, residual)
    largest = max(float(total.max()), -float(total.min()))
    if largest > _HALF_MAX:
        raise TrainingError(
            f"delta + residual has a coordinate of magnitude {largest:g}, float16 ends at {_HALF_MAX:g}: choose "
            "another codec, or lower the learning rate"
        )
    return total.astype("<f2").tobytes(), None


def _decode_half(body: memoryview, size: int, settings: CodecSettings) -> Decoded:
    if len(body) != 2 * size:
        raise DecodeError(f"update frame: {len(body)} bytes of float16, expected {2 * size}", reason="length")
    halves = np.frombuffer(body, dtype="<f2")
    # As integers without their sign, finite halves come first.
    if (halves.view("<u2") & 0x7FFF).max() >= 0x7C00:
        raise DecodeError("update frame: a value is not finite", reason="values")
    return Decoded(size, None, halves.astype(np.float32))


def _half_bytes_max(size: int, settings: CodecSettings) -> int:
    return 2 * size


DENSE: Final = Codec(
    wire_id=0, keeps_residual=False, encode=_encode, decoders={0: _decode}, body_bytes_max=_body_bytes_max
)
FLOAT16: Final = Codec(
    wire_id=5, keeps_residual=False, encode=_encode_half, decoders={5: _decode_half}, body_bytes_max=_half_bytes_max
)
