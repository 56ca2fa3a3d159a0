"""Gathering and scattering by index. Indices may be negative; one out of range is an error, never a write elsewhere."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, positive_axis

__all__ = ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "top_k"]

_REDUCTIONS: Final[dict[str, np.ufunc]] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """ONNX Gather."""
    return np.take(data, indices, axis=axis)


def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """ONNX GatherElements."""
    return data[_element_index(data.shape, indices, axis)]


def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """ONNX GatherND."""
    depth = indices.shape[-1]
    lead = [
        np.arange(d).reshape([-1 if i == k else 1 for k in range(indices.ndim - 1)])
        for i, d in enumerate(indices.shape[:batch_dims])
    ]
    picked: Array = data[(*lead, *(indices[..., k] for k in range(depth)))]
    return picked


def scatter_elements(data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """ONNX ScatterElements; repeated indices are all counted by a reduction."""
    result = data.copy()
    index = _element_index(data.shape, indices, axis)
    if reduction == "none":
        result[index] = updates
    else:
        _reduction(reduction).at(result, index if len(index) > 1 else index[0], updates)
    return result


def scatter_nd(data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """ONNX ScatterND; repeated indices are all counted by a reduction."""
    depth = indices.shape[-1]
    rows = _flat_rows(data.shape[:depth], indices.reshape(-1, depth))
    result = data.copy()
    flat = result.reshape(int(np.prod(data.shape[:depth])), -1)
    new = updates.reshape(len(rows), -1)
    if reduction == "none":
        flat[rows] = new
    else:
        _fold_rows(_reduction(reduction), flat, rows, new)
    return result


def _fold_rows(ufunc: np.ufunc, flat: Array, rows: Array, new: Array) -> None:
    """``flat[row] = ufunc(flat[row], new)``, repeated rows included: sorted, folded by runs, then written once each."""
    if not len(rows):
        return
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    chosen = ordered[starts]
    flat[chosen] = ufunc(flat[chosen], ufunc.reduceat(new[order], starts, axis=0))


def _flat_rows(shape: tuple[int, ...], indices: Array) -> Array:
    limits = np.array(shape, dtype=np.int64)
    if indices.size and (np.any(indices < -limits) or np.any(indices >= limits)):
        raise TrainingError(f"an index is outside of the shape {shape}")
    positive = np.where(indices < 0, indices + limits, indices)
    strides = np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))], dtype=np.int64)
    rows: Array = positive @ strides
    return rows


def _element_index(shape: tuple[int, ...], indices: Array, axis: int) -> tuple[Any, ...]:
    """An index that picks along ``axis`` by ``indices`` and along each other axis by position."""
    axis = positive_axis(axis, len(shape))
    index: list[Any] = []
    for k, d in enumerate(indices.shape):
        index.append(indices if k == axis else np.arange(d).reshape([-1 if k == j else 1 for j in range(indices.ndim)]))
    return tuple(index)


def _reduction(name: str) -> np.ufunc:
    if name not in _REDUCTIONS:
        raise TrainingError(f"scatter: reduction {name[:40]!r} is not one of {sorted(_REDUCTIONS)}")
    return _REDUCTIONS[name]


def top_k(
    x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1, output_count: int = 2
) -> tuple[Array, Array]:
    """ONNX TopK, always sorted; of equal elements the first wins."""
    axis = positive_axis(axis, x.ndim)
    size, count = x.shape[axis], int(np.asarray(k).reshape(()))
    if not 0 <= count <= size:
        raise TrainingError(f"TopK: {count} of {size} elements")
    if largest:  # ascending from behind, so that equal elements keep their order when turned round
        order = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(count), axis=axis).astype(np.int64, copy=False)
    return np.take_along_axis(x, chosen, axis=axis), chosen
