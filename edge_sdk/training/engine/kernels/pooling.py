"""Pooling of any rank: one pass over the input for each position in the window, all examples and channels at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded, integers
from edge_sdk.training.engine.kernels.geometry import Geometry, geometry, pad_spatial

__all__ = [
    "average_pool",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
    "max_unpool",
]


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
    output_count: int = 1,
) -> Array | tuple[Array, Array]:
    """ONNX MaxPool; the second output is the flat position of the first maximum of each window."""
    windows = geometry(x.shape[2:], kernel_shape, pads, strides, dilations, auto_pad=auto_pad, ceil_mode=ceil_mode)
    least = -np.inf if x.dtype.kind == "f" else int(np.iinfo(x.dtype).min)
    padded = pad_spatial(x, windows, least)
    taps = windows.taps()
    best = np.array(padded[(..., *next(taps))], order="C")
    if output_count == 1:
        for where in taps:
            np.maximum(best, padded[(..., *where)], out=best)
        return best
    winner = np.zeros(best.shape, dtype=np.uint8 if math.prod(windows.kernel) <= 256 else np.uint32)
    for tap, where in enumerate(taps, start=1):
        candidate = np.ascontiguousarray(padded[(..., *where)])
        # Taps come in ascending order, so the greatest number among those that beat all before them is the winner's.
        better = np.greater(candidate, best).astype(winner.dtype)
        np.maximum(winner, np.multiply(better, winner.dtype.type(tap), out=better), out=winner)
        np.maximum(best, candidate, out=best)
    return best, _positions(winner, windows, x.shape, storage_order)


def max_unpool(
    y: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """ONNX MaxUnpool: each value goes to its flat position, the rest is zero."""
    rank = y.ndim - 2
    steps = strides or (1,) * rank
    margins = pads or (0,) * (2 * rank)
    natural = [
        s * (d - 1) + k - margins[i] - margins[i + rank]
        for i, (d, s, k) in enumerate(zip(y.shape[2:], steps, kernel_shape, strict=True))
    ]
    # As in onnxruntime, positions are flat in `output_shape`: the tensor that was pooled, whose last rows and columns
    # no window may have met. (ONNX's reference takes them as flat in the natural size.)
    shape = bounded(integers(output_shape)) if output_shape is not None else bounded((*y.shape[:2], *natural))
    result = np.zeros(math.prod(shape), dtype=y.dtype)
    flat = indices.ravel()
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < result.size:
        raise TrainingError(f"MaxUnpool: an index is outside of the shape {shape}")
    result[flat] = y.ravel()
    return result.reshape(shape)


def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Array:
    """ONNX AveragePool; padding counts as zeros only with ``count_include_pad``."""
    windows = geometry(x.shape[2:], kernel_shape, pads, strides, dilations, auto_pad=auto_pad, ceil_mode=ceil_mode)
    padded = pad_spatial(x, windows, 0)
    sums = np.zeros(bounded((*x.shape[:2], *windows.output)), dtype=x.dtype)
    for where in windows.taps():
        np.add(sums, padded[(..., *where)], out=sums)
    rank = x.ndim - 2
    margins = tuple(pads) if pads and count_include_pad else (0,) * (2 * rank)
    if count_include_pad and auto_pad != "NOTSET":
        margins = (*windows.before, *windows.after)
    counts = _window_sizes(windows, x.shape[2:], margins)
    return np.true_divide(sums, counts.astype(x.dtype), out=sums)


def global_average_pool(x: Array) -> Array:
    """ONNX GlobalAveragePool."""
    return np.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype)


def global_max_pool(x: Array) -> Array:
    """ONNX GlobalMaxPool."""
    return np.maximum.reduce(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
) -> Array:
    """ONNX LpPool: the p-norm of each window."""
    windows = geometry(x.shape[2:], kernel_shape, pads, strides, dilations, auto_pad=auto_pad, ceil_mode=ceil_mode)
    padded = pad_spatial(_powers(x, p), windows, 0)
    sums = np.zeros(bounded((*x.shape[:2], *windows.output)), dtype=x.dtype)
    for where in windows.taps():
        np.add(sums, padded[(..., *where)], out=sums)
    return _roots(sums, p)


def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """ONNX GlobalLpPool."""
    return _roots(np.add.reduce(_powers(x, p), axis=tuple(range(2, x.ndim)), keepdims=True), p)


def _powers(x: Array, p: int) -> Array:
    return np.square(x) if p == 2 else np.power(np.abs(x), x.dtype.type(p))


def _roots(sums: Array, p: int) -> Array:
    return np.sqrt(sums) if p == 2 else np.power(sums, sums.dtype.type(1 / p))


def _positions(winner: Array, windows: Geometry, shape: tuple[int, ...], column_major: int) -> Array:
    """Flat positions in the unpadded input, int64, from the number of the tap that won in each window."""
    spatial = shape[2:]
    rank = len(spatial)
    steps = [math.prod(spatial[:i]) if column_major else math.prod(spatial[i + 1 :]) for i in range(rank)]
    base = np.zeros(windows.output, dtype=np.int64)
    reach = np.zeros(windows.kernel, dtype=np.int64)
    for i in range(rank):
        along = [-1 if i == j else 1 for j in range(rank)]
        starts = np.arange(windows.output[i]) * windows.strides[i] - windows.before[i]
        base += (starts * steps[i]).reshape(along)
        reach += (np.arange(windows.kernel[i]) * windows.dilations[i] * steps[i]).reshape(along)
    plane = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(*shape[:2], *(1,) * rank) * math.prod(spatial)
    flat: Array = np.take(reach.ravel(), winner)
    flat += base
    flat += plane
    return flat


def _window_sizes(windows: Geometry, spatial: Sequence[int], margins: Sequence[int]) -> Array:
    """How many elements of each window lie within the input and ``margins`` around it; shape of the output."""
    rank = len(spatial)
    sizes = np.ones(windows.output, dtype=np.int64)
    for i in range(rank):
        starts = np.arange(windows.output[i])[:, None] * windows.strides[i] - windows.before[i]
        places = starts + np.arange(windows.kernel[i])[None, :] * windows.dilations[i]
        inside = ((places >= -margins[i]) & (places < spatial[i] + margins[i + rank])).sum(axis=1)
        sizes *= inside.reshape([-1 if i == j else 1 for j in range(rank)])
    return sizes
