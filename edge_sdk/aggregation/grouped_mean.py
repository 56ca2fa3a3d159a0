"""The mean of updates whose tensors were encoded in groups: one exact sum a group, put together at the end. PURE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.sums import ROTATION_MASK, FixedPoint, WeightedMean, pack_parts, unpack_parts
from edge_sdk.codecs.frames import DecodedParts, Group, joined

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
        self._means = [WeightedMean(group.size, fixed_point, rotation) for group in groups]

    @property
    def weight_sum(self) -> int:
        """The sum of all weights."""
        return self._means[0].weight_sum

    def accumulate(self, parts: DecodedParts, weight: int, scale: float = 1.0) -> None:
        """Adds one update; arguments and errors as of :meth:`WeightedMean.accumulate`.

        Buffers are added without the scale: they are no step.
        """
        for group, mean, decoded in zip(self._groups, self._means, parts, strict=True):
            mean.accumulate(decoded, weight, 1.0 if group.kind == "buffers" else scale)

    def merge(self, other: GroupedMean) -> None:
        """Adds another partial sum of the same groups; errors as of :meth:`WeightedMean.merge`."""
        for mean, theirs in zip(self._means, other._means, strict=True):
            mean.merge(theirs)

    def report(self, factor: float = 1.0) -> NDArray[np.float32]:
        """The weighted mean of all updates, float32[P], times ``factor`` but for the buffers; zero for constants.

        Raises:
            ValueError: Nothing has been accumulated.
        """
        means = [
            mean.report() if factor == 1.0 or group.kind == "buffers" else np.float32(factor) * mean.report()
            for group, mean in zip(self._groups, self._means, strict=True)
        ]
        return joined(self._groups, means)

    def to_bytes(self) -> bytes:
        """The whole partial sum, for another process."""
        return pack_parts([mean.to_bytes() for mean in self._means])

    @classmethod
    def from_bytes(cls, data: bytes, groups: Sequence[Group]) -> GroupedMean:
        """The inverse of :meth:`to_bytes`.

        Raises:
            StateError: A sum is torn, flipped, or of another version.
            ValueError: The sums are not those of ``groups``.
        """
        means = [WeightedMean.from_bytes(part) for part in unpack_parts(data)]
        if [mean.size for mean in means] != [group.size for group in groups]:
            raise ValueError("partial sums of other groups")
        made = cls(groups, means[0].fixed_point, means[0].rotation)
        made._means = means
        return made
