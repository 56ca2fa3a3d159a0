"""What a codec is, and the values that codecs hand back.

A codec turns one vector into the body of a frame and a body into (some of) the vector's coordinates, or into those of
the rotated vector. It is an entry in the literal table of ``codecs.py``: functions, a bound and two facts. It knows
nothing of versions, checksums and headers (``frame.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.rotation import Span, hadamard, signs

if TYPE_CHECKING:
    from edge_sdk.codecs.settings import CodecSettings

__all__ = ["MAGNITUDE_MAX", "MAGNITUDE_MAX_BITS", "Codec", "Context", "Decoded", "Encoded", "Rotated", "RotatedBlocks"]

MAGNITUDE_MAX: Final = 2.0**100
"""Above this no coordinate is sent or believed: sums of squares of such values would leave even float64's comfort, and
a model that moves so far has diverged."""

MAGNITUDE_MAX_BITS: Final = (127 + 100) << 23
"""``MAGNITUDE_MAX`` in float32, read as an integer: the order of such integers is that of the floats, and comparing
them raises no floating-point warning, whatever a peer put there."""

_CHUNK_BLOCKS: Final = 64  # of a rotated vector at a time: what is read again soon stays in the cache


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

    def plain(self) -> Decoded:
        """Itself; see :meth:`Rotated.plain`."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class RotatedBlocks:
    """Blocks of one size, as a frame tells them.

    Attributes:
        span: Where they are.
        places: int64[kept], all different: the coordinates of each block that were sent.
        levels: int16[blocks, kept], at most 2,357 in magnitude.
        scales: float32[blocks], finite, at least 0.
    """

    span: Span
    places: NDArray[np.int64]
    levels: NDArray[np.int16]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Rotated:
    """What a frame says of the rotated vector: the levels of some of its coordinates, and a scale per block.

    A block is ``signs * H (scale * levels)``, with the Hadamard matrix H (``rotation.py``). Updates with the same
    ``seed`` and ``size`` can be added up before that is computed.

    Attributes:
        size: Number of coordinates of the whole vector.
        seed: Of the rotation, 32 bits.
        parts: The blocks, in order.
    """

    size: int
    seed: int
    parts: tuple[RotatedBlocks, ...]

    def dense(self) -> NDArray[np.float32]:
        """The whole vector as a new float32[size], the same bits on every machine: all sums are of integers.

        Infinite where a hostile scale makes it so.
        """
        vector = np.empty(self.parts[-1].span.stop, dtype=np.float32)
        for part in self.parts:
            span = part.span
            for first in range(0, span.count, _CHUNK_BLOCKS):
                some = slice(first, min(first + _CHUNK_BLOCKS, span.count))
                rotated = np.zeros((some.stop - first, span.block), dtype=np.float32)
                rotated[:, part.places] = part.levels[some]
                values = hadamard(rotated)
                with np.errstate(over="ignore"):
                    values *= part.scales[some, None]
                start = span.start + first * span.block
                values *= signs(self.seed, start, values.size).reshape(values.shape)
                vector[start : start + values.size] = values.ravel()
        return vector[: self.size]

    def plain(self) -> Decoded:
        """The same as coordinates of the vector itself: all of them, float32[size]."""
        return Decoded(self.size, None, self.dense())

    def norm(self) -> float:
        """The L2 norm, with that of the filling, without computing the vector: a rotation changes no norm."""
        return math.sqrt(sum(p.span.block * float(np.square(_magnitudes(p)).sum()) for p in self.parts))

    def largest(self) -> float:
        """The largest magnitude of a rotated coordinate."""
        return max(float(_magnitudes(part).max()) for part in self.parts)


def _magnitudes(part: RotatedBlocks) -> NDArray[np.float64]:
    """float64[blocks, kept]: of the rotated coordinates."""
    return np.abs(part.levels) * part.scales.astype(np.float64)[:, None]


@dataclass(frozen=True, slots=True)
class Context:
    """Where an encoder's random bits come from, and what it may know of the vector.

    Attributes:
        own: 64 bits of this update.
        shared: The same for all devices of a round.
        matrices: First coordinate, rows and columns of tensors that have several of both, in order.
        keeps_residual: Whether what is left out now can be sent later.
        velocity: float32[P], the running sum of earlier deltas (momentum correction); None for zeros.
    """

    own: int
    shared: int
    matrices: tuple[tuple[int, int, int], ...] = ()
    keeps_residual: bool = True
    velocity: NDArray[np.float32] | None = None


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
        encode: ``(delta, residual, settings, context) -> (body, residual)``; changes neither vector. None for a codec
            that only chooses.
        decoders: By the byte in the frame (``wire_id``, and those of earlier forms of the body),
            ``(body, size, settings) -> Decoded | Rotated``; they raise only DecodeError, whatever ``body`` is.
        body_bytes_max: ``(size, settings) -> bytes`` that no body of an honest encoder exceeds.
        choose: ``(total, settings, context) -> settings`` of the codec that encodes instead.
    """

    wire_id: int
    keeps_residual: bool
    encode: (
        Callable[
            [NDArray[np.float32], NDArray[np.float32] | None, CodecSettings, Context],
            tuple[bytes, NDArray[np.float32] | None],
        ]
        | None
    )
    decoders: Mapping[int, Callable[[memoryview, int, CodecSettings], Decoded | Rotated]]
    body_bytes_max: Callable[[int, CodecSettings], int]
    choose: Callable[[NDArray[np.float32], CodecSettings, Context], CodecSettings] | None = None
