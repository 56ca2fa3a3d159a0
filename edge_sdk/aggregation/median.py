"""The coordinate-wise median (Yin et al. 2018): fewer than half of the devices cannot move it beyond the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.algorithm import DELTA, Algorithm, State
from edge_sdk.aggregation.rows import Rows

__all__ = ["Median"]


@dataclass(frozen=True)
class Median(Algorithm):
    """Of each coordinate the middle one of all updates, or the mean of the two in the middle."""

    needs_all = True
    uses_weights = False
    every_coordinate = True

    def finish(self, updates: Rows) -> State:
        """See :class:`Algorithm`."""
        low, high = (len(updates) - 1) // 2, len(updates) // 2

        def middle(block: NDArray[np.float32]) -> NDArray[np.float32]:
            block.sort(axis=0)  # a quarter of the time that np.median takes
            mean: NDArray[np.float32] = (block[low] + block[high]) * np.float32(0.5)
            return mean

        return {DELTA: updates.by_columns(middle)}
