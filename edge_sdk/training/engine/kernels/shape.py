"""Shapes, axes and the moving of elements. Most results are views: no kernel ever writes into an input."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded, integers, positive_axis

__all__ = [
    "concat",
    "constant_of_shape",
    "depth_to_space",
    "expand",
    "flatten",
    "identity",
    "one_hot",
    "pad",
    "range_",
    "reshape",
    "shape_of",
    "size_of",
    "slice_",
    "space_to_depth",
    "split",
    "squeeze",
    "tile",
    "transpose",
    "trilu",
    "unsqueeze",
]


def identity(x: Array) -> Array:
    """ONNX Identity."""
    return x


def transpose(x: Array, *, perm: list[int] | None = None) -> Array:
    """ONNX Transpose: a view, but for channels that go last.

    A convolution's gradient cuts that tensor up once for each tap of the kernel, which is many times as fast where the
    channels lie together.
    """
    moved = np.transpose(x, perm)
    return np.ascontiguousarray(moved) if perm == [0, *range(2, x.ndim), 1] and x.ndim > 3 else moved


def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """ONNX Reshape: -1 is inferred, 0 copies the input's dimension unless ``allowzero``."""
    wanted = integers(shape)
    if not allowzero and 0 in wanted:
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(wanted)


def flatten(x: Array, *, axis: int = 1) -> Array:
    """ONNX Flatten: two dimensions, split before ``axis``."""
    split_at = axis + x.ndim if axis < 0 else axis
    rows = 1
    for d in x.shape[:split_at]:
        rows *= d
    return x.reshape(rows, -1) if x.size else x.reshape(rows, int(np.prod(x.shape[split_at:])))


def squeeze(x: Array, axes: Array | Iterable[int] | None = None) -> Array:
    """ONNX Squeeze: the given axes, or all of length one."""
    return np.squeeze(x, None if axes is None else tuple(integers(axes)))


def unsqueeze(x: Array, axes: Array | Iterable[int]) -> Array:
    """ONNX Unsqueeze: the axes count in the result."""
    chosen = integers(axes)
    rank = x.ndim + len(chosen)
    inserted = {positive_axis(a, rank) for a in chosen}
    rest = iter(x.shape)
    return x.reshape([1 if i in inserted else next(rest) for i in range(rank)])


def shape_of(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """ONNX Shape, int64; ``start`` and ``end`` cut as in Python."""
    return np.array(x.shape[start:end], dtype=np.int64)


def size_of(x: Array) -> Array:
    """ONNX Size, an int64 scalar."""
    return np.array(x.size, dtype=np.int64)


def expand(x: Array, shape: Array) -> Array:
    """ONNX Expand: broadcasting in both directions; the result is a view."""
    wanted = bounded(np.broadcast_shapes(x.shape, bounded(integers(shape))))
    return np.broadcast_to(x, wanted)


def tile(x: Array, repeats: Array) -> Array:
    """ONNX Tile."""
    times = integers(repeats)
    bounded(d * t for d, t in zip(x.shape, times, strict=True))
    return np.tile(x, times)


def constant_of_shape(shape: Array, *, value: Array | float | None = None) -> Array:
    """ONNX ConstantOfShape: float32 zeros unless ``value`` says otherwise."""
    fill = np.zeros(1, dtype=np.float32) if value is None else np.asarray(value)
    return np.broadcast_to(fill.reshape(()), bounded(integers(shape)))


def range_(start: Array, limit: Array, delta: Array) -> Array:
    """ONNX Range: ``start + i * delta`` below ``limit``."""
    count = max(int(np.ceil((float(limit) - float(start)) / float(delta))), 0)
    (count,) = bounded([count])
    steps = np.arange(count, dtype=start.dtype)
    return np.asarray(start + steps * delta, dtype=start.dtype)


def concat(*values: Array, axis: int) -> Array:
    """ONNX Concat."""
    return np.concatenate(values, axis=axis)


def split(
    x: Array,
    split: Array | Iterable[int] | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    output_count: int = 1,
) -> tuple[Array, ...]:
    """ONNX Split: given lengths, or equal ones (the last may be shorter); the parts are views."""
    axis = positive_axis(axis, x.ndim)
    if split is None:
        parts = num_outputs or output_count
        length = -(-x.shape[axis] // parts)
        bounds = [min(i * length, x.shape[axis]) for i in range(1, parts)]
    else:
        lengths = integers(split)
        if sum(lengths) != x.shape[axis] or min(lengths, default=0) < 0:
            raise TrainingError(f"Split: lengths {lengths[:8]} of an axis of {x.shape[axis]}")
        bounds = np.cumsum(lengths)[:-1].tolist()
    return tuple(np.split(x, bounds, axis=axis))


def slice_(
    x: Array,
    starts: Array | Iterable[int],
    ends: Array | Iterable[int],
    axes: Array | Iterable[int] | None = None,
    steps: Array | Iterable[int] | None = None,
) -> Array:
    """ONNX Slice: Python's slicing rules are its clamping rules; the result is a view."""
    first, last = integers(starts), integers(ends)
    chosen = range(len(first)) if axes is None else integers(axes)
    stride = [1] * len(first) if steps is None else integers(steps)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(first, last, chosen, stride, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def pad(
    x: Array,
    pads: Array | Iterable[int],
    value: Array | float | None = None,
    axes: Array | Iterable[int] | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """ONNX Pad; negative pads cut."""
    amounts = integers(pads)
    chosen = range(x.ndim) if axes is None else [positive_axis(a, x.ndim) for a in integers(axes)]
    if len(amounts) != 2 * len(chosen):
        raise TrainingError(f"Pad: {len(amounts)} amounts for {len(chosen)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[i], amounts[i + len(chosen)]
    cut = tuple(slice(max(-b, 0), d - max(-a, 0)) for b, a, d in zip(before, after, x.shape, strict=True))
    kept = x[cut]
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    shape = bounded(b + d + a for b, d, a in zip(before, kept.shape, after, strict=True))
    if mode != "constant":
        widths = list(zip(before, after, strict=True))
        return np.pad(kept, widths, mode=mode)  # type: ignore[call-overload]  # reflect, edge, wrap
    padded = np.zeros(shape, dtype=x.dtype)
    if value is not None and np.any(value):
        padded[...] = value
    padded[tuple(slice(b, b + d) for b, d in zip(before, kept.shape, strict=True))] = kept
    return padded


def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """ONNX OneHot: negative indices count from ``depth``; an index out of range is off everywhere."""
    classes = int(depth.reshape(()))
    bounded((classes, *indices.shape))
    axis = positive_axis(axis, indices.ndim + 1)
    whole = indices.reshape((*indices.shape[:axis], 1, *indices.shape[axis:]))
    ladder = np.arange(classes).reshape([-1] + [1] * (indices.ndim - axis))
    hit = whole == ladder
    if indices.size and indices.min() < 0:
        hit |= whole == ladder - classes
    return np.where(hit, values[1], values[0])


def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """ONNX DepthToSpace."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        moved = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """ONNX SpaceToDepth."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(order).reshape(n, c * b * b, h // b, w // b)


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """ONNX Trilu: the upper or lower triangle of each matrix, from diagonal ``k`` on."""
    return (np.triu if upper else np.tril)(x, 0 if k is None else int(np.asarray(k).reshape(())))
