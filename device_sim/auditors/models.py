"""The next model once more, by a few lines for each algorithm: what the auditor compares a round's result with.

Exact sums are made of Python's own integers here, and in another order than the coordinator's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import Decoded, Rotated
from edge_sdk.codecs.frames import DecodedParts, Group
from edge_sdk.codecs.rotation import hadamard_exactly, rotated_size, signs, spans_of

__all__ = ["REFERENCES", "Layout", "Sent", "clipped", "norm_of"]

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """One counted update: its decoded delta, its weight and its steps."""

    parts: DecodedParts
    weight: int
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How deltas are divided, the rotation that the round shares, and the bits of the sums behind the point."""

    groups: Sequence[Group]
    rotation: int
    fraction_bits: int
    size: int

    def whole(self, parts: Sequence[Vector]) -> Vector:
        """float32[P] from its groups."""
        vector = np.zeros(self.size, dtype=np.float32)
        for group, part in zip(self.groups, parts, strict=True):
            group.put(vector, part)
        return vector


def norm_of(parts: DecodedParts, groups: Sequence[Group]) -> float:
    """The L2 norm of a delta, buffers not counted."""
    norms = [
        part.norm() if isinstance(part, Rotated) else math.sqrt(float((part.values.astype(np.float64) ** 2).sum()))
        for part, group in zip(parts, groups, strict=True)
        if group.kind != "buffers"
    ]
    return math.sqrt(sum(norm * norm for norm in norms))


def clipped(parts: DecodedParts, groups: Sequence[Group], norm_max: float) -> DecodedParts:
    """A delta scaled down to ``norm_max``, buffers left alone."""
    norm = norm_of(parts, groups)
    if norm <= norm_max:
        return parts
    factor = np.float32(norm_max / norm * (1 - 1e-6))
    return tuple(
        part if group.kind == "buffers" else _times(part, factor) for part, group in zip(parts, groups, strict=True)
    )


def _times(part: Decoded | Rotated, factor: np.float32) -> Decoded | Rotated:
    if isinstance(part, Rotated):
        return replace(part, parts=tuple(replace(block, scales=block.scales * factor) for block in part.parts))
    return replace(part, values=part.values * factor)


def mean(updates: Sequence[Sent], layout: Layout) -> Vector:
    """The weighted mean."""
    return layout.whole(_means(updates, layout, [1.0] * len(updates)))


def median(updates: Sequence[Sent], layout: Layout) -> Vector:
    """The middle of each coordinate."""
    middle: Vector = np.median(_stacked(updates, layout), axis=0).astype(np.float32)
    return middle


def trimmed_mean(updates: Sequence[Sent], layout: Layout) -> Vector:
    """The mean of each coordinate without the fifth that is largest and the fifth that is smallest."""
    cut = len(updates) // 5
    left = np.sort(_stacked(updates, layout), axis=0)[cut : len(updates) - cut]
    mean: Vector = left.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def fednova(updates: Sequence[Sent], layout: Layout) -> Vector:
    """The mean of deltas that are divided by their steps, times the mean of the steps."""
    weights, steps = [update.weight for update in updates], [update.steps for update in updates]
    mean_steps = np.float32(sum(w * s for w, s in zip(weights, steps, strict=True)) / sum(weights))
    means = _means(updates, layout, [1.0 / count for count in steps])
    return layout.whole(
        [
            part if group.kind == "buffers" else mean_steps * part
            for group, part in zip(layout.groups, means, strict=True)
        ]
    )


def _stacked(updates: Sequence[Sent], layout: Layout) -> Vector:
    return np.stack([layout.whole([part.dense() for part in update.parts]) for update in updates])


def _means(updates: Sequence[Sent], layout: Layout, factors: Sequence[float]) -> list[Vector]:
    """The mean of ``factor * delta``, weighted, by group; of buffers without the factor."""
    divisor = sum(update.weight for update in updates) * 2.0**layout.fraction_bits
    means = []
    for number, group in enumerate(layout.groups):
        plain = np.zeros(group.size, dtype=object)
        rotated = np.zeros(rotated_size(group.size), dtype=object)
        for update, factor in zip(updates, factors, strict=True):
            part = update.parts[number]
            scale = (1.0 if group.kind == "buffers" else factor) * (update.weight * 2.0**layout.fraction_bits)
            if isinstance(part, Rotated) and part.seed == layout.rotation:
                rotated += _integers(part, scale)
            else:
                plain += np.array([int(v) for v in np.rint(part.dense().astype(np.float64) * scale)], dtype=object)
        means.append(_mean(plain, rotated, divisor, layout.rotation))
    return means


def _integers(part: Rotated, scale: float) -> NDArray[np.object_]:
    """All coordinates of the rotated vector as Python's own integers, which cannot overflow."""
    coordinates = np.zeros(rotated_size(part.size))
    for blocks in part.parts:
        for number, (levels, step) in enumerate(zip(blocks.levels, blocks.scales, strict=True)):
            at = blocks.span.start + number * blocks.span.block + blocks.places
            coordinates[at] = levels * (np.float64(step) * scale)
    return np.array([int(v) for v in np.rint(coordinates)], dtype=object)


def _mean(plain: NDArray[np.object_], rotated: NDArray[np.object_], divisor: float, rotation: int) -> Vector:
    mean: Vector = np.array([float(v) / divisor for v in plain], dtype=np.float64).astype(np.float32)
    if not rotated.any():
        return mean
    coordinates = np.array([float(v) / divisor for v in rotated])
    for span in spans_of(mean.size):
        blocks = coordinates[span.start : span.stop].reshape(span.count, span.block)
        hadamard_exactly(blocks)
    coordinates *= signs(rotation, 0, coordinates.size)
    mean += coordinates[: mean.size]
    return mean


REFERENCES: Final[Mapping[str, Callable[[Sequence[Sent], Layout], Vector]]] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "fednova": fednova,
}
"""What each algorithm makes of the counted updates, by its name."""
