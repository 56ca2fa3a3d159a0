"""FedAvg's weighted mean (McMahan et al. 2017, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.aggregation.algorithm import DELTA, Algorithm, Contribution, State
from edge_sdk.aggregation.partial_sums import PartialSums

__all__ = ["Mean"]


@dataclass(frozen=True)
class Mean(Algorithm):
    """The mean of all deltas, weighted by examples, or by nothing."""

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        """See :class:`Algorithm`."""
        sums.add(DELTA, update.vectors[DELTA], update.weight)

    def report(self, sums: PartialSums) -> State:
        """See :class:`Algorithm`."""
        return {DELTA: sums.mean(DELTA)}
