"""What a round asks of a device: how to train, how to encode, what its update may weigh.

A plan travels inside the invite. It holds only values that may change from round to round without a new program
(rule 10 of the protocol); everything structural is in the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_sdk.errors import DecodeError

__all__ = ["TrainingPlan", "checked_float", "checked_int", "checked_map", "checked_text"]

SCALARS_MAX: Final = 32
_TEXT: Final = frozenset({str})


def checked_map(value: object, where: str) -> dict[str, Any]:
    """``value`` as a map with text keys, or a DecodeError that names ``where``."""
    if not isinstance(value, dict) or not _TEXT.issuperset(map(type, value)):
        raise DecodeError(f"{where}: expected a map with text keys, got {type(value).__name__}")
    return value


def checked_int(source: Mapping[str, Any], name: str, low: int, high: int, where: str) -> int:
    """The integer ``source[name]`` within ``low..high``, or a DecodeError that names field and value."""
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DecodeError(f"{where}.{name}: {str(value)[:40]!r} is not an integer in {low}..{high}")
    return value


def checked_float(source: Mapping[str, Any], name: str, low: float, high: float, where: str) -> float:
    """The finite number ``source[name]`` within ``low..high``, or a DecodeError that names field and value."""
    value = source.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise DecodeError(f"{where}.{name}: {str(value)[:40]!r} is not a finite number in {low:g}..{high:g}")
    return float(value)


def checked_text(source: Mapping[str, Any], name: str, length_max: int, where: str) -> str:
    """The text ``source[name]`` of at most ``length_max`` characters, or a DecodeError that names the field."""
    value = source.get(name)
    if not isinstance(value, str) or len(value) > length_max:
        raise DecodeError(f"{where}.{name}: expected text of at most {length_max} characters")
    return value


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a device trains in one round.

    Attributes:
        epochs: Passes over the local training examples.
        batch_size: Examples a step; the last batch of an epoch may be smaller.
        steps_max: Steps after which training ends, 0 for no such limit.
        seconds_max: Time budget in seconds; training ends at the first step boundary beyond it.
        scalars: The training graph's scalar inputs by name (``lr``, ``momentum``, ``mu``, ...).
        held_out: Share of the local examples kept from training for federated evaluation, 0 for none.
        clip_norm: L2 norm to which the whole delta is scaled down, 0 for no clipping.
    """

    epochs: int = 1
    batch_size: int = 32
    steps_max: int = 0
    seconds_max: float = 600.0
    scalars: dict[str, float] = field(default_factory=lambda: {"lr": 0.1})
    held_out: float = 0.0
    clip_norm: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """The plan as a msgpack map."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "steps_max": self.steps_max,
            "seconds_max": self.seconds_max,
            "scalars": dict(self.scalars),
            "held_out": self.held_out,
            "clip_norm": self.clip_norm,
        }

    @classmethod
    def from_wire(cls, value: object) -> TrainingPlan:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
        """
        where = "plan.training"
        source = checked_map(value, where)
        scalars = checked_map(source.get("scalars"), f"{where}.scalars")
        if len(scalars) > SCALARS_MAX:
            raise DecodeError(f"{where}.scalars: more than {SCALARS_MAX} scalars")
        return cls(
            epochs=checked_int(source, "epochs", 1, 10_000, where),
            batch_size=checked_int(source, "batch_size", 1, 1 << 20, where),
            steps_max=checked_int(source, "steps_max", 0, 1 << 31, where),
            seconds_max=checked_float(source, "seconds_max", 0.0, 1e7, where),
            scalars={name: checked_float(scalars, name, -1e9, 1e9, f"{where}.scalars") for name in scalars},
            held_out=checked_float(source, "held_out", 0.0, 0.9, where),
            clip_norm=checked_float(source, "clip_norm", 0.0, 1e9, where),
        )
