"""A step that scales updates down: none moves the model further than a bound, and none is refused for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from coordinator.pipeline.step import DecodedUpdate, Step
from edge_sdk.aggregation.algorithm import DELTA
from edge_sdk.codecs import Decoded, Rotated
from edge_sdk.errors import ConfigurationError

__all__ = ["Clip"]

MARGIN: Final = 1e-6
"""A hair below the bound, so that rounding to float32 does not push a norm over it again."""


@dataclass(frozen=True)
class Clip(Step):
    """Scales a delta down to the L2 norm ``norm`` where it is longer.

    Buffers neither count nor are scaled: they are no step. A rotated update is scaled as it is, because a rotation
    changes no norm.

    Attributes:
        norm: The bound.

    Raises:
        ConfigurationError: It is not above 0.
    """

    norm: float

    def __post_init__(self) -> None:
        if isinstance(self.norm, bool) or not self.norm > 0:
            raise ConfigurationError(f"aggregation.step (clip): norm is {self.norm}, expected a number above 0")

    def admit(self, update: DecodedUpdate, view: Any) -> DecodedUpdate:
        """See :class:`Step`."""
        if update.norm <= self.norm:
            return update
        factor = np.float32(self.norm / update.norm * (1 - MARGIN))
        parts = tuple(
            part if group.kind == "buffers" else _times(part, factor)
            for part, group in zip(update.vectors[DELTA], update.groups, strict=True)
        )
        return replace(update, vectors={**update.vectors, DELTA: parts})


def _times(part: Decoded | Rotated, factor: np.float32) -> Decoded | Rotated:
    if isinstance(part, Rotated):
        return replace(part, parts=tuple(replace(blocks, scales=blocks.scales * factor) for blocks in part.parts))
    return replace(part, values=part.values * factor)
