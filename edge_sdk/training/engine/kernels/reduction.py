"""Reductions over axes. The axes are an input (opset 18) or, before, an attribute of the same name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from edge_sdk.training.engine.kernels.arrays import Array, integers, positive_axis

__all__ = [
    "argmax",
    "argmin",
    "cumsum",
    "reduce_l1",
    "reduce_l2",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
]

Axes = Array | Iterable[int] | None


def _axes(axes: Axes, rank: int, noop: int) -> tuple[int, ...]:
    """The axes to reduce, counted from the front; none given means all of them, or none with ``noop``."""
    chosen = [] if axes is None else integers(axes)
    if chosen:
        return tuple(positive_axis(a, rank) for a in chosen)
    return () if noop else tuple(range(rank))


def _fold(ufunc: Any, x: Array, axes: tuple[int, ...], keepdims: int) -> Array:
    # dtype: NumPy would widen small integers.
    return ufunc.reduce(x, axis=axes, keepdims=bool(keepdims), dtype=x.dtype)


def reduce_sum(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceSum."""
    return _fold(np.add, x, _axes(axes, x.ndim, noop_with_empty_axes), keepdims)


def reduce_mean(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceMean."""
    chosen = _axes(axes, x.ndim, noop_with_empty_axes)
    count = x.dtype.type(math.prod(x.shape[a] for a in chosen))
    sums = _fold(np.add, x, chosen, keepdims)
    return np.true_divide(sums, count) if x.dtype.kind == "f" else np.floor_divide(sums, count)


def reduce_max(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceMax; of nothing it is the least value of the type."""
    chosen = _axes(axes, x.ndim, noop_with_empty_axes)
    return _extreme(np.maximum, x, chosen, keepdims)


def reduce_min(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceMin; of nothing it is the greatest value of the type."""
    chosen = _axes(axes, x.ndim, noop_with_empty_axes)
    return _extreme(np.minimum, x, chosen, keepdims)


def reduce_prod(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceProd."""
    return _fold(np.multiply, x, _axes(axes, x.ndim, noop_with_empty_axes), keepdims)


def reduce_l1(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceL1."""
    return _fold(np.add, np.abs(x), _axes(axes, x.ndim, noop_with_empty_axes), keepdims)


def reduce_l2(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceL2."""
    return np.sqrt(reduce_sum_square(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes))


def reduce_sum_square(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceSumSquare."""
    return _fold(np.add, np.square(x), _axes(axes, x.ndim, noop_with_empty_axes), keepdims)


def reduce_log_sum(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceLogSum."""
    return np.log(reduce_sum(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes))


def reduce_log_sum_exp(x: Array, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """ONNX ReduceLogSumExp, shifted by the maximum so that it does not overflow."""
    chosen = _axes(axes, x.ndim, noop_with_empty_axes)
    top = _extreme(np.maximum, x, chosen, 1)
    sums = _fold(np.add, np.exp(x - top), chosen, 1)
    value = np.log(sums) + top
    return value if keepdims else value.reshape([d for a, d in enumerate(value.shape) if a not in chosen])


def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """ONNX ArgMax, int64."""
    return _argument(np.argmax, x, axis, keepdims, select_last_index)


def argmin(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """ONNX ArgMin, int64."""
    return _argument(np.argmin, x, axis, keepdims, select_last_index)


def cumsum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """ONNX CumSum."""
    along = positive_axis(int(axis), x.ndim)
    source = np.flip(x, along) if reverse else x
    sums = np.cumsum(source, axis=along, dtype=x.dtype)
    if exclusive:
        sums -= source
    return np.flip(sums, along) if reverse else sums


def _argument(find: Any, x: Array, axis: int, keepdims: int, last: int) -> Array:
    axis = positive_axis(axis, x.ndim)
    found = find(np.flip(x, axis) if last else x, axis=axis)
    if last:
        found = x.shape[axis] - 1 - found
    found = np.asarray(found, dtype=np.int64)
    return np.expand_dims(found, axis) if keepdims else found


def _extreme(ufunc: Any, x: Array, axes: tuple[int, ...], keepdims: int) -> Array:
    """Maximum or minimum over ``axes``; of nothing, the end of the type's range that any element would replace."""
    if not x.size:
        low: Any
        high: Any
        low, high = (-np.inf, np.inf) if x.dtype.kind == "f" else (False, True)
        if x.dtype.kind in "iu":
            low, high = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
        initial = low if ufunc is np.maximum else high
        return ufunc.reduce(x, axis=axes, keepdims=bool(keepdims), initial=initial)
    return ufunc.reduce(x, axis=axes, keepdims=bool(keepdims))
