"""The vector as it is: float32, little-endian, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.update.codec import MAGNITUDE_MAX, MAGNITUDE_MAX_BITS, Codec, Decoded
from edge_sdk.update.feedback import add_residual

if TYPE_CHECKING:
    from edge_sdk.update.settings import CodecSettings

__all__ = ["DENSE"]


def _encode(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, settings: CodecSettings, seed: int
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


DENSE: Final = Codec(wire_id=0, keeps_residual=False, encode=_encode, decode=_decode, body_bytes_max=_body_bytes_max)
