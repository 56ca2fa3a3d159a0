"""The vector as it is, in order: float32, little-endian, or float16.

A float16 has 11 bits of precision down to 6e-5 and reaches 65,504; what is larger cannot be sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, MAGNITUDE_MAX_BITS, Codec, Context, Decoded, Kept, Vectors
from edge_sdk.errors import DecodeError, DivergedError

__all__ = ["Dense", "Float16"]

_HALF_MAX: Final = 65_504.0


@dataclass(frozen=True, slots=True)
class Dense(Codec):
    """All coordinates as float32."""

    name: ClassVar[str] = "dense"
    wire_id: ClassVar[int] = 0

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        return delta.astype("<f4", copy=False).tobytes(), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        if len(body) != 4 * size:
            raise DecodeError(f"update frame: {len(body)} bytes of float32, expected {4 * size}", reason="length")
        values = np.frombuffer(body, dtype="<f4").astype(np.float32)
        # As integers without their sign, floats up to the bound come first; infinities and NaNs are above.
        if (values.view(np.uint32) & 0x7FFF_FFFF).max() > MAGNITUDE_MAX_BITS:
            raise DecodeError(f"update frame: a value is not finite or above {MAGNITUDE_MAX:g}", reason="values")
        return Decoded(size, None, values)

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return 4 * size


@dataclass(frozen=True, slots=True)
class Float16(Codec):
    """All coordinates as float16."""

    name: ClassVar[str] = "float16"
    wire_id: ClassVar[int] = 5

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        largest = max(float(delta.max()), -float(delta.min()))
        if largest > _HALF_MAX:
            raise DivergedError(
                f"delta + residual has a coordinate of magnitude {largest:g}, float16 ends at {_HALF_MAX:g}: choose "
                "another codec, or lower the learning rate"
            )
        return delta.astype("<f2").tobytes(), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        if len(body) != 2 * size:
            raise DecodeError(f"update frame: {len(body)} bytes of float16, expected {2 * size}", reason="length")
        halves = np.frombuffer(body, dtype="<f2")
        # As integers without their sign, finite halves come first.
        if (halves.view("<u2") & 0x7FFF).max() >= 0x7C00:
            raise DecodeError("update frame: a value is not finite", reason="values")
        return Decoded(size, None, halves.astype(np.float32))

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return 2 * size
