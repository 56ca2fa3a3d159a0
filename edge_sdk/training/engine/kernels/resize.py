"""Resize: along each axis, every output element is a weighted sum of a few input elements.

Which elements and which weights depends on sizes and attributes only, so they are computed once for each axis and
kept. The compiler makes the gradient from the same table, which verification then compares with onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded, integers, positive_axis

__all__ = ["Sampling", "Taps", "output_geometry", "resize", "taps"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The attributes of ONNX Resize that decide about weights, by their ONNX names."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    antialias: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Taps:
    """For each output position: input positions int64[out, n], their weights float64[out, n], and whether the
    position lies outside of the input (bool[out], only where something is to be extrapolated)."""

    positions: NDArray[np.int64]
    weights: NDArray[np.float64]
    outside: NDArray[np.bool_] | None

    def matrix(self, size: int) -> NDArray[np.float64]:
        """The weights as float64[out, size]."""
        matrix = np.zeros((len(self.positions), size))
        np.add.at(matrix, (np.arange(len(self.positions))[:, None], self.positions), self.weights)
        return matrix


def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    antialias: int = 0,
    axes: Sequence[int] | None = None,
) -> Array:
    """ONNX Resize, in all of its modes."""
    sampling = Sampling(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, exclude_outside, int(antialias)
    )
    chosen = range(x.ndim) if axes is None else [positive_axis(a, x.ndim) for a in axes]
    outputs, factors = output_geometry(x.shape, scales, sizes, chosen, keep_aspect_ratio_policy)
    bounded(outputs)
    regions = [] if roi is None else np.asarray(roi, np.float64).ravel().tolist()
    result = x
    for i, axis in enumerate(chosen):
        region = (regions[i], regions[i + len(chosen)]) if len(regions) == 2 * len(chosen) else (0.0, 1.0)
        if outputs[axis] == x.shape[axis] and factors[axis] == 1.0 and region == (0.0, 1.0):
            continue
        table = taps(x.shape[axis], outputs[axis], factors[axis], sampling, region)
        result = _sampled(result, axis, table, extrapolation_value)
    if result.dtype != x.dtype:
        if x.dtype.kind in "iu":
            limits = np.iinfo(x.dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        result = result.astype(x.dtype)
    return result


def _sampled(x: Array, axis: int, table: Taps, extrapolation_value: float) -> Array:
    along = [1] * x.ndim
    along[axis] = -1
    if table.positions.shape[1] == 1:
        result = np.take(x, table.positions[:, 0], axis=axis)
    else:
        dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        result = np.zeros((), dtype)
        for k in range(table.positions.shape[1]):
            weights = table.weights[:, k].astype(dtype).reshape(along)
            result = result + np.take(x, table.positions[:, k], axis=axis) * weights
    if table.outside is not None:
        result = np.where(table.outside.reshape(along), result.dtype.type(extrapolation_value), result)
    return result


def output_geometry(
    shape: Sequence[int], scales: Array | None, sizes: Array | None, axes: Sequence[int], policy: str
) -> tuple[list[int], list[float]]:
    """Output size and scale of every axis; ``scales`` or ``sizes`` belong to ``axes``.

    Raises:
        TrainingError: Neither is given for every axis.
    """
    outputs, factors = list(shape), [1.0] * len(shape)
    if sizes is not None and np.size(sizes):
        wanted = integers(sizes)
        if len(wanted) != len(axes):
            raise TrainingError(f"Resize: {len(wanted)} sizes for {len(axes)} axes")
        ratios = [size / max(shape[axis], 1) for axis, size in zip(axes, wanted, strict=True)]
        common = {"not_larger": min, "not_smaller": max}.get(policy)
        for axis, size, ratio in zip(axes, wanted, ratios, strict=True):
            factors[axis] = common(ratios) if common else ratio
            outputs[axis] = int(factors[axis] * shape[axis] + 0.5) if common else size
        return outputs, factors
    given = [] if scales is None else np.asarray(scales, np.float64).ravel().tolist()
    if len(given) != len(axes) or not all(0 < factor < 1 << 31 for factor in given):
        raise TrainingError(f"Resize: scales {given[:8]} for {len(axes)} axes")
    for axis, factor in zip(axes, given, strict=True):
        factors[axis] = factor
        outputs[axis] = int(np.float32(factor) * np.float32(shape[axis]))
    return outputs, factors


@lru_cache(maxsize=64)
def taps(size: int, output: int, scale: float, sampling: Sampling, region: tuple[float, float] = (0.0, 1.0)) -> Taps:
    """The table of one axis.

    Args:
        size: Elements of the input along the axis.
        output: Elements of the output.
        scale: Their ratio, which need not be exact.
        sampling: The node's attributes.
        region: The part of the input that is looked at, as shares of it (``roi``).

    Raises:
        TrainingError: A mode is not known.
    """
    at = _coordinates(size, output, scale, sampling.coordinate_transformation_mode, region)
    outside = None
    if sampling.coordinate_transformation_mode == "tf_crop_and_resize":
        outside = (at < 0) | (at > size - 1)
    positions, weights = _nearest(at, sampling) if sampling.mode == "nearest" else _filtered(at, scale, sampling)
    if sampling.exclude_outside:
        weights = np.where((positions < 0) | (positions >= size), 0.0, weights)
        sums = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(sums == 0, 1.0, sums)
    return Taps(np.clip(positions, 0, size - 1), weights, outside if outside is not None and outside.any() else None)


def _coordinates(size: int, output: int, scale: float, mode: str, region: tuple[float, float]) -> NDArray[np.float64]:
    """Where each output element lies in the input: in float32, as onnxruntime does, or ties round another way."""
    at = np.arange(output, dtype=np.float32)
    half, factor = np.float32(0.5), np.float32(scale)
    if mode == "asymmetric":
        found = at / factor
    elif mode == "align_corners":
        found = at * np.float32(size - 1) / np.float32(output - 1) if output > 1 else at
    elif mode == "tf_crop_and_resize":
        start, end = region
        step = (end - start) * (size - 1) / (output - 1) if output > 1 else 0.0
        found = (start * (size - 1) if output > 1 else 0.5 * (start + end) * (size - 1)) + at.astype(np.float64) * step
    elif mode == "pytorch_half_pixel" and output == 1:
        found = at
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        found = (at + half) / factor - half
    elif mode == "half_pixel_symmetric":
        offset = np.float32(size / 2) * (np.float32(1) - np.float32(output) / (factor * np.float32(size)))
        found = offset + (at + half) / factor - half
    else:
        raise TrainingError(f"Resize: coordinate_transformation_mode {mode[:40]!r} is not known")
    return found.astype(np.float64)


def _nearest(at: NDArray[np.float64], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }.get(sampling.nearest_mode)
    if rounded is None:
        raise TrainingError(f"Resize: nearest_mode {sampling.nearest_mode[:40]!r} is not known")
    return rounded().astype(np.int64)[:, None], np.ones((len(at), 1))


def _filtered(
    at: NDArray[np.float64], scale: float, sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    shrink = min(scale, 1.0) if sampling.antialias else 1.0
    filters: dict[str, tuple[int, Any]] = {"linear": (1, _tent), "cubic": (2, _cubic)}
    if sampling.mode not in filters:
        raise TrainingError(f"Resize: mode {sampling.mode[:40]!r} is not known")
    radius, weigh = filters[sampling.mode]
    first = int(np.floor(-radius / shrink)) + 1
    offsets = np.arange(first, 2 - first)
    positions = np.floor(at).astype(np.int64)[:, None] + offsets
    weights = weigh(np.abs(positions - at[:, None]) * shrink, sampling.cubic_coeff_a)
    if sampling.antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return positions, weights


def _tent(distance: NDArray[np.float64], _: float) -> NDArray[np.float64]:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(d: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981, equation 15) for any ``a``."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
