"""What a codec is, and the two values that codecs hand back.

A codec turns one vector into the body of a frame and a body into (some of) the vector's coordinates. It is an entry
in the literal table of ``codecs.py``: two functions, a bound and three facts. It knows nothing of versions, checksums
and headers (``frame.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge_sdk.update.settings import CodecSettings

__all__ = ["MAGNITUDE_MAX", "MAGNITUDE_MAX_BITS", "Codec", "Decoded", "Encoded"]

MAGNITUDE_MAX: Final = 2.0**100
"""Above this no coordinate is sent or believed: sums of squares of such values would leave even float64's comfort, and
a model that moves so far has diverged."""

MAGNITUDE_MAX_BITS: Final = (127 + 100) << 23
"""``MAGNITUDE_MAX`` in float32, read as an integer: the order of such integers is that of the floats, and comparing
them raises no floating-point warning, whatever a peer put there."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a frame says: some coordinates of a vector, or all of them.

    Attributes:
        size: Number of coordinates of the whole vector.
        indices: int64[k], strictly increasing and below ``size``; None if all coordinates are there, in order.
        values: float32[k] (float32[size] if ``indices`` is None), finite.
    """

    size: int
    indices: NDArray[np.int64] | None
    values: NDArray[np.float32]

    def dense(self) -> NDArray[np.float32]:
        """The whole vector as a new float32[size], zero where nothing was sent."""
        if self.indices is None:
            return self.values.copy()
        vector = np.zeros(self.size, dtype=np.float32)
        vector[self.indices] = self.values
        return vector


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A frame, and what it left out.

    Attributes:
        frame: The bytes to send.
        residual: float32[P] to add to the next delta (error feedback), None where the codec keeps none.
    """

    frame: bytes
    residual: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Codec:
    """One line of the table of codecs.

    Attributes:
        wire_id: The byte that names the codec in a frame; never reused.
        keeps_residual: Whether ``encode`` returns a residual (error feedback).
        encode: ``(delta, residual, settings, seed) -> (body, residual)``; changes neither vector.
        decode: ``(body, size, settings) -> Decoded``; raises only DecodeError, whatever ``body`` is.
        body_bytes_max: ``(size, settings) -> bytes`` that no body of an honest encoder exceeds.
    """

    wire_id: int
    keeps_residual: bool
    encode: Callable[
        [NDArray[np.float32], NDArray[np.float32] | None, CodecSettings, int], tuple[bytes, NDArray[np.float32] | None]
    ]
    decode: Callable[[memoryview, int, CodecSettings], Decoded]
    body_bytes_max: Callable[[int, CodecSettings], int]
