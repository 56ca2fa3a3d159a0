"""The mean of updates whose tensors were encoded in groups: one exact sum a group, put together at the end. PURE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.sums import ROTATION_MASK, FixedPoint, WeightedMean
from edge_sdk.codecs.frames import DecodedParts, Group

__all__ = ["GroupedMean"]


class GroupedMean:
    """The running weighted sums of one round.

    Args:
        groups: How updates are divided (:func:`edge_sdk.codecs.frames.groups_of`).
        fixed_point: Scale and bounds of the sums.
        rotation: Seed of the rotation that the round's devices share.
    """

    def __init__(self, groups: Sequence[Group], fixed_point: FixedPoint, rotation: int = 0) -> None:
        self._groups = tuple(groups)
        self.rotation = rotation & ROTATION_MASK
        self._fixed_point = fixed_point
        self._means = [WeightedMean(group.size, fixed_point, rotation) for group in groups]

    def zero(self, rotation: int) -> GroupedMean:
        """New, empty sums of the same groups."""
        return GroupedMean(self._groups, self._fixed_point, rotation)

    def fits(self, weight: int) -> bool:
        """Whether an update of this weight can be added."""
        return self._means[0].fits(weight)

    def accumulate(self, parts: DecodedParts, weight: int) -> None:
        """Adds one update; arguments and errors as of :meth:`WeightedMean.accumulate`."""
        for mean, decoded in zip(self._means, parts, strict=True):
            mean.accumulate(decoded, weight)

    def report(self) -> NDArray[np.float32]:
        """The weighted mean of all updates, float32[P].

        Raises:
            ValueError: Nothing has been accumulated.
        """
        if len(self._groups) == 1:
            return self._means[0].report()
        vector = np.empty(sum(group.size for group in self._groups), dtype=np.float32)
        for group, mean in zip(self._groups, self._means, strict=True):
            group.put(vector, mean.report())
        return vector
