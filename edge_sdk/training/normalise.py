"""Normalisation as a part of a model: which input it belongs to, and where its constants stand.

A model that was compiled with it takes raw units. Its graphs begin with ``clip((x - mean) * scale, -10, 10)``, where
mean and scale are two constants in the flat vector of parameters (kind ``constant``): they travel with the parameters,
and training leaves them alone. Before anything is known they are 0 and 1.

The target of a regression has two of its own: training compares what the model gives with ``(target - mean) * scale``,
and the model ends with ``z / scale + mean``, so that it gives raw units, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire import fields

__all__ = ["CLIP_ABS_MAX", "MISSING", "MODES", "NORMALISED_ABS_MAX", "TARGET", "Normalise", "normalise_from_wire"]

MODES: Final = ("federated", "local")
"""Where mean and scale come from: sums of the first cohort's devices, or each device's own examples."""

MISSING: Final = ("refuse", "mean")
"""What becomes of a NaN in the input: it is refused, or the model takes the feature's mean in its place."""

NORMALISED_ABS_MAX: Final = 10.0
"""A normalised value that is further from the mean, in standard deviations, is brought to this distance."""

TARGET: Final = "target"
"""What stands in the place of an input's name where the target is normalised; its last dimension counts values."""

CLIP_ABS_MAX: Final = 1e30
"""Bound of ``clip``: the difference of any float32 and a mean within it is finite in float32."""

_NAME: Final = fields.text(512, 1)
_CHECKS: Final[dict[str, fields.Check]] = {
    "input": _NAME,
    "axis": fields.integer(1, 7),
    "features": fields.integer(1, 1 << 28),
    "mode": fields.choice(*MODES),
    "mean": _NAME,
    "scale": _NAME,
    "clip": fields.number(1e-30, CLIP_ABS_MAX),
}


@dataclass(frozen=True, slots=True)
class Normalise:
    """How one input of a model is normalised.

    Attributes:
        input: Name of the input, which is float32; ``TARGET`` for the target.
        axis: Dimension of that input that counts features; the batch is dimension 0. For the target it is 1, of the
            target as rows of ``features`` values.
        features: Length of that dimension.
        mode: One of ``MODES``.
        mean: Name of the constant that is subtracted, one value for each feature in its raw unit.
        scale: Name of the constant that multiplies, one value for each feature; 0 for a feature that does not vary,
            1 for such a value of the target.
        clip: Raw values count in sums as if they were within ``-clip..clip``.
    """

    input: str
    axis: int
    features: int
    mode: str
    mean: str
    scale: str
    clip: float = 1e6

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            check(getattr(self, name), f"program.normalise.{name}")

    def to_wire(self) -> list[Any]:
        """The list as which it stands in a program."""
        return [getattr(self, name) for name in _CHECKS]


def normalise_from_wire(value: object) -> Normalise | None:
    """The inverse of :meth:`Normalise.to_wire`, for bytes that nobody vouches for; None stays None.

    Raises:
        DecodeError: The value is not well-formed.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != len(_CHECKS):
        raise DecodeError(f"program.normalise: expected [{', '.join(_CHECKS)}]")
    return Normalise(*value)
