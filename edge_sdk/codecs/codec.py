"""What a codec is, and the values that codecs hand back.

A codec turns one vector into the body of a frame, and a body into the vector's coordinates (some or all of them), or
into those of the rotated vector. It is a class, derived from :class:`Codec`, and its objects are its settings: a frozen
dataclass whose fields are declared with :func:`setting`. It knows nothing of versions, checksums and headers
(``frame.py``). The table of codecs is in ``table.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.rotation import Span, hadamard, signs
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.wire.fields import Check

__all__ = [
    "MAGNITUDE_MAX",
    "MAGNITUDE_MAX_BITS",
    "RESIDUAL",
    "VELOCITY",
    "Codec",
    "Context",
    "Decoded",
    "Kept",
    "Rotated",
    "RotatedBlocks",
    "Vectors",
    "setting",
    "settings_of",
]

Vectors: TypeAlias = dict[str, NDArray[np.float32]]

Kept: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Vectors that a device keeps from one update to the next, by name: float32[P] each."""

RESIDUAL: Final = "residual"
"""The kept vector that holds what earlier frames left out (error feedback)."""

VELOCITY: Final = "velocity"
"""The kept vector that holds a running sum of deltas (momentum correction)."""

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
        matrices: First coordinate, rows and columns of tensors that have several rows, in order.
        keeps_residual: Whether what is left out now can be sent later.
    """

    own: int
    shared: int
    matrices: tuple[tuple[int, int, int], ...] = ()
    keeps_residual: bool = True


def setting(
    check: Check,
    default: Any,
    meaning: str,
    *,
    allowed: str,
    unit: str = "",
    shown: str = "",
    key: bool = True,
    told: bool = True,
) -> Any:
    """Declares a setting of a codec: a field of its dataclass.

    Args:
        check: Applied to the coordinator's configuration and to what comes over the network alike; of
            ``edge_sdk.wire.fields``.
        default: The value where nothing is said.
        meaning: One sentence for people.
        allowed: What ``check`` takes, in words that follow "must be".
        unit: What a number counts, if anything.
        shown: The default in words, where the value itself says too little.
        key: Whether the setting is a key of the coordinator's configuration; else the coordinator fills it in.
        told: Whether plans tell it; else every decoder has the default, and an encoder may lower it to fit a limit.
    """
    metadata = {"check": check, "meaning": meaning, "allowed": allowed, "unit": unit, "shown": shown}
    return dataclasses.field(default=default, metadata={**metadata, "key": key, "told": told})


class Codec:
    """A codec; its objects are settings.

    A class of one's own derives from it, is a frozen dataclass with fields made by :func:`setting`, gives itself a
    name and a wire id, and defines ``encode``, ``decode`` and ``body_bytes_max``. ``edge_sdk.codecs.table`` has
    ``register_codec``, which makes it known to this process.

    Attributes:
        name: As in ``[codec] name`` and in a plan: 1 to 32 characters out of a-z 0-9 _ and -.
        wire_id: The byte that names the codec in a frame. Below 128 are the project's own, 128 to 254 for others.
        keeps: Names of the vectors that a device keeps for this codec from one update to the next. A residual that
            is there although the codec keeps none is added to the delta, so that nothing is lost when a plan changes
            codecs.
        chooses: Whether it stands in no frame itself, but chooses for each update a codec that does.
        sends_all: Whether every coordinate that it sends is there by itself, so that rules that look at single
            coordinates (median) can be used.
    """

    __slots__ = ()
    name: ClassVar[str]
    wire_id: ClassVar[int]
    keeps: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False
    sends_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigurationError: A value is not allowed; names key, value and what is allowed.
        """
        for field in settings_of(type(self)):
            value = getattr(self, field.name)
            try:
                checked = field.metadata["check"](value, field.name)
            except DecodeError:
                raise ConfigurationError(
                    f"codec.{field.name} = {value!r}: must be {field.metadata['allowed']}. {field.metadata['meaning']}"
                ) from None
            object.__setattr__(self, field.name, checked)

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """The body of a frame.

        Args:
            delta: float32[P], finite and at most ``MAGNITUDE_MAX`` (but for a codec that keeps a residual, which
                checks the sum); not changed.
            kept: What was kept of ``keeps``, float32[P] each; a name that was never kept is missing. Not changed.
            context: Random bits, and what is known of the vector.

        Returns:
            The body, and the vectors to keep if the update counts.

        Raises:
            TrainingError: The vector cannot be sent.
        """
        raise NotImplementedError

    def decode(self, body: memoryview, size: int) -> Decoded | Rotated:
        """What a body that nobody vouches for says of a vector of ``size`` coordinates.

        Raises:
            DecodeError: It is not one that an honest encoder with these settings, or with settings that send less,
                can make. Nothing else may be raised, and nothing large be allocated before lengths are checked.
        """
        raise NotImplementedError

    def body_bytes_max(self, size: int) -> int:
        """Bytes that no body of an honest encoder exceeds for a vector of ``size`` coordinates."""
        raise NotImplementedError

    def reader(self, wire_id: int) -> Codec | None:
        """Who decodes a frame with this wire id under these settings; None where such a frame is refused."""
        return self if wire_id == self.wire_id else None

    def choose(self, total: NDArray[np.float32], context: Context) -> Codec:
        """The codec that encodes ``total``, float32[P]: itself, unless it is one that only chooses."""
        return self

    def fitted(self, size: int, bytes_max: int) -> Self | None:
        """The nearest settings with which no body is above ``bytes_max``; None where there are none.

        A decoder with the settings of the plan takes what an encoder with the fitted ones makes: only less is sent.
        """
        return self if self.body_bytes_max(size) <= bytes_max else None

    def smallest(self) -> Self:
        """The settings that send least."""
        return self

    def split(self, kernels: int, size: int) -> tuple[Codec, Codec] | None:
        """How to encode a model's kernels (tensors of convolutions), and how the rest; None for both alike.

        It must depend on nothing but the arguments and the settings, since both sides ask; and whether there is a
        split must not depend on settings that ``fitted`` changes.

        Args:
            kernels: Trainable coordinates of tensors of three dimensions and more.
            size: All trainable coordinates.
        """
        return None

    def taking_part(self, participation: float) -> Self:
        """The settings for rounds in each of which a device takes part with probability ``participation``, 0 if that
        is not known."""
        return self

    @classmethod
    def for_cohort(cls, cohort: int, adaptive: bool) -> dict[str, Any]:
        """Settings that follow from the size of a round, where the configuration leaves them open.

        Args:
            cohort: Updates of a round, at least 1.
            adaptive: Whether the server optimiser is more than FedAvg, or the devices' one adapts its steps.
        """
        return {}


def settings_of(codec: type[Codec]) -> tuple[dataclasses.Field[Any], ...]:
    """The settings that a codec declares."""
    return dataclasses.fields(codec) if dataclasses.is_dataclass(codec) else ()
