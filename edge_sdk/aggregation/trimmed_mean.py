"""The coordinate-wise trimmed mean (Yin et al. 2018): the largest and smallest values are left out of each mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.algorithm import DELTA, Algorithm, State
from edge_sdk.aggregation.rows import Rows
from edge_sdk.errors import ConfigurationError

__all__ = ["TrimmedMean"]


@dataclass(frozen=True)
class TrimmedMean(Algorithm):
    """Of each coordinate the mean of what is left after ``fraction`` of the updates was cut off on either side.

    Attributes:
        fraction: Below one half; of so many updates, rounded down, that at least one is left.

    Raises:
        ConfigurationError: The fraction is not in 0 .. 0.5.
    """

    needs_all = True
    uses_weights = False
    every_coordinate = True

    fraction: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not 0 <= self.fraction < 0.5:
            raise ConfigurationError(f"aggregation.options.fraction is {self.fraction}, expected 0 <= fraction < 0.5")

    def finish(self, updates: Rows) -> State:
        """See :class:`Algorithm`."""
        cut = int(self.fraction * len(updates))

        def trimmed(block: NDArray[np.float32]) -> NDArray[np.float64]:
            # Sorted values are added in their order, so that the sum does not depend on whose they are.
            block.sort(axis=0)
            mean: NDArray[np.float64] = block[cut : len(block) - cut].mean(axis=0, dtype=np.float64)
            return mean

        return {DELTA: updates.by_columns(trimmed)}
