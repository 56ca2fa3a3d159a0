"""The exact partial sums of one round: some vectors and some numbers, added up in any order. Pure NumPy.

This is what algorithms that sum write into. The partial sums of several workers, gateways or shards merge to the bits
that one of them would have found (:mod:`edge_sdk.aggregation.sums`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import FixedPoint, ScalarSums, pack_parts, unpack_parts
from edge_sdk.codecs.frames import DecodedParts, Group

__all__ = ["PartialSums"]


class PartialSums:
    """Weighted sums of named vectors, and sums of named numbers.

    Args:
        groups: How each vector is divided, by name (:func:`edge_sdk.codecs.frames.groups_of`).
        fixed_point: Scale and bounds of the sums.
        rotation: Seed of the rotation that the round's devices share.
        numbers: Names of the numbers that are summed beside.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Group]],
        fixed_point: FixedPoint,
        rotation: int = 0,
        numbers: Sequence[str] = (),
    ) -> None:
        self._groups = dict(groups)
        self._fixed_point = fixed_point
        self._vectors = {name: GroupedMean(parts, fixed_point, rotation) for name, parts in groups.items()}
        self._numbers = ScalarSums(numbers) if numbers else None

    def add(self, name: str, parts: DecodedParts, weight: int, scale: float = 1.0) -> None:
        """Adds ``weight * scale *`` one update's vector, and ``weight`` to the divisor of its mean.

        Args:
            name: Of the vector.
            parts: The decoded vector, a part for each group.
            weight: At least 1, at most the update's own weight.
            scale: At most 1 in magnitude, so that the sum cannot overflow. Buffers are added without it.

        Raises:
            ValueError: The weight does not fit, the scale is too large, or a size is another one.
        """
        self._vectors[name].accumulate(parts, weight, scale)

    def count(self, **numbers: float) -> None:
        """Adds numbers by name.

        Raises:
            ValueError: A name is not summed here, or a number is not finite or above 1e15.
        """
        if self._numbers is None:
            raise ValueError(f"{', '.join(numbers)}: no numbers are summed here")
        self._numbers.accumulate(numbers)

    def mean(self, name: str, factor: float = 1.0) -> NDArray[np.float32]:
        """The weighted mean of one vector, float32[P], times ``factor`` but for the buffers (they are no step).

        Raises:
            ValueError: Nothing has been added.
        """
        return self._vectors[name].report(factor)

    def total(self, name: str) -> float:
        """The sum of one number."""
        return 0.0 if self._numbers is None else self._numbers.report()[name]

    def weight_sum(self, name: str) -> int:
        """The sum of the weights that one vector was added with."""
        return self._vectors[name].weight_sum

    def merge(self, other: PartialSums) -> None:
        """Adds another partial sum of the same round; ``other`` stays as it is.

        Raises:
            ValueError: Names, sizes, scales or rotations differ, or the weights together are too large.
        """
        if other._vectors.keys() != self._vectors.keys() or (other._numbers is None) != (self._numbers is None):
            raise ValueError("partial sums of different vectors or numbers do not merge")
        for name, mean in self._vectors.items():
            mean.merge(other._vectors[name])
        if self._numbers is not None and other._numbers is not None:
            self._numbers.merge(other._numbers)

    def to_bytes(self) -> bytes:
        """The whole partial sum, for another process."""
        numbers = b"" if self._numbers is None else self._numbers.to_bytes()
        return pack_parts([*(self._vectors[name].to_bytes() for name in sorted(self._vectors)), numbers])

    def merge_bytes(self, data: bytes) -> None:
        """Merges what :meth:`to_bytes` gave elsewhere.

        Raises:
            StateError: The bytes are torn, flipped, or of another version.
            ValueError: As of :meth:`merge`.
        """
        *vectors, numbers = unpack_parts(data)
        other = PartialSums(self._groups, self._fixed_point)
        other._vectors = {
            name: GroupedMean.from_bytes(part, self._groups[name])
            for name, part in zip(sorted(self._groups), vectors, strict=True)
        }
        other._numbers = ScalarSums.from_bytes(numbers) if numbers else None
        self.merge(other)
