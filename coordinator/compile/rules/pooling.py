"""Gradients of pooling.

The maximum of a window: each output's gradient goes back to the element that was the first maximum. Where the windows
tile the input, both ways go tap by tap: the maximum of the taps, and back, an element that equals the maximum takes
what the taps before it left, so that ties count once. Channels go last for it: then a tap's elements are long runs.
Elsewhere the forward node gives the positions as its second output, which costs onnxruntime twenty times the maximum.

The mean, or a norm, of a window: each output's gradient is spread over its window, which a stride-wide repetition does
where the windows tile the input, and a ConvTranspose with a kernel of ones elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import GraphBuilder, Node, Shape
from coordinator.compile.rules.rule import Gradients, Wanted
from coordinator.compile.spatial import Window, window_of
from edge_sdk.errors import CompileError

__all__ = ["average_pool", "global_average_pool", "global_max_pool", "lp_pool", "max_pool", "max_pool_training"]

TAPS_MAX: Final = 16
"""Elements of a window that is taken apart tap by tap."""


def max_pool_training(b: GraphBuilder, node: Node) -> None:
    """The maximum of the taps where windows tile the input, else the node with its second output, Indices."""
    if _tiles(b, node):
        axes = len(window_of(node).kernel)
        greatest = b.op("Max", *_tap_views(b, node))
        b.transpose(greatest, [0, 1 + axes, *range(1, 1 + axes)], name=node.outputs[0])
        return
    if node.attributes["storage_order"]:
        raise CompileError(f"{node}: storage_order=1 (column-major indices) is not supported; export with 0")
    indices = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1] else f"{node.outputs[0]}~indices"
    b.append(Node(node.op, node.inputs, (node.outputs[0], indices), node.attributes, node.name))
    b.save(node, indices=indices)


def max_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY at the maxima: taken apart where windows tile X, else MaxUnpool, or a sum of what meets."""
    if _tiles(b, node):
        return [_tap_by_tap(b, node, dy[0])]
    x, indices = node.inputs[0], b.saved(node, "indices")
    window = window_of(node)
    if _unpools(window, b.shape(x)[2:], b.shape(node.outputs[0])[2:]):
        shape = b.op("Shape", x, start=0)
        attributes = {"kernel_shape": list(window.kernel), "strides": list(window.strides)}
        return [b.op("MaxUnpool", dy[0], indices, shape, pads=node.attributes["pads"], **attributes)]
    flat = b.ints(-1)
    zeros = b.op("Expand", b.scalar(0.0), b.op("Reshape", b.op("Size", x), b.ints(1), allowzero=0))
    flat_indices = b.op("Reshape", indices, flat, allowzero=0)
    flat_dy = b.op("Reshape", dy[0], flat, allowzero=0)
    scattered = b.op("ScatterElements", zeros, flat_indices, flat_dy, axis=0, reduction="add")
    return [b.op("Reshape", scattered, b.op("Shape", x, start=0), allowzero=0)]


def _tiles(b: GraphBuilder, node: Node) -> bool:
    """Whether every element of the input is in one window, windows are small, and only the maxima are asked for."""
    window, sizes = window_of(node), b.shape(node.inputs[0])[2:]
    whole = all(int(size) % k == 0 for size, k in zip(sizes, window.kernel, strict=True))
    apart = window.kernel == window.strides and max(window.dilations) == 1
    padded = any(window.pads_begin) or any(window.pads_end)
    return whole and apart and not padded and not any(node.outputs[1:]) and 1 < math.prod(window.kernel) <= TAPS_MAX


def _tap_views(b: GraphBuilder, node: Node) -> list[str]:
    """What each tap meets of X, channels last, in the order of the taps."""
    kernel, x = window_of(node).kernel, node.inputs[0]
    sizes, axes = b.ints(*(int(d) for d in b.shape(x)[2:])), b.ints(*range(1, 1 + len(kernel)))
    last = b.transpose(x, [0, *range(2, 2 + len(kernel)), 1])
    taps = product(*(range(k) for k in kernel))
    return [b.op("Slice", last, b.ints(*tap), sizes, axes, b.ints(*kernel)) for tap in taps]


def _tap_by_tap(b: GraphBuilder, node: Node, dy: str) -> str:
    """dX of windows that tile X."""
    kernel, axes = window_of(node).kernel, len(window_of(node).kernel)
    channels, *sizes = (int(d) for d in b.shape(node.inputs[0])[1:])
    y, left = (b.transpose(name, [0, *range(2, 2 + axes), 1]) for name in (node.outputs[0], dy))
    parts = []
    for view in _tap_views(b, node)[:-1]:
        is_greatest = b.op("Cast", b.op("GreaterOrEqual", view, y), to=1)
        parts.append(b.op("Mul", left, is_greatest))
        left = b.op("Sub", left, parts[-1])
    parts.append(left)
    # From the innermost axis on, the elements of a window beside each other and then in line with other windows.
    inner, places = channels, [size // k for size, k in zip(sizes, kernel, strict=True)]
    for axis in reversed(range(axes)):
        inner *= sizes[axis]
        shape = b.ints(-1, *places[:axis], inner)
        groups = [parts[i : i + kernel[axis]] for i in range(0, len(parts), kernel[axis])]
        parts = [b.op("Reshape", b.op("Concat", *group, axis=axis + 2), shape, allowzero=0) for group in groups]
    whole = b.op("Reshape", parts[0], b.ints(-1, *sizes, channels), allowzero=0)
    return b.transpose(whole, [0, 1 + axes, *range(1, 1 + axes)])


def average_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / (elements of its window), spread over the window."""
    counts = _counts(b, node, window_of(node))
    return [_spread(b, node, b.op("Mul", dy[0], b.constant((1 / counts).astype(np.float32))))]


def lp_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Y = (sum |x|^p)^(1/p): dX = sign(x) |x|^(p-1) times dY Y^(1-p), spread over the window."""
    x, y, power = node.inputs[0], node.outputs[0], node.attributes["p"]
    slope = b.op("Sign", x)
    shared = dy[0]
    if power > 1:
        # A window of zeros has no slope; like the frameworks we take 0.
        zero = b.scalar(0.0)
        scaled = b.op("Div", dy[0], b.op("Pow", y, b.scalar(power - 1)))
        shared = b.op("Where", b.op("Greater", y, zero), scaled, zero)
        slope = x if power == 2 else b.op("Mul", slope, b.op("Pow", b.op("Abs", x), b.scalar(power - 1)))
    return [b.op("Mul", slope, _spread(b, node, shared))]


def global_average_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / places, at every place."""
    x = node.inputs[0]
    places = math.prod(int(d) for d in b.shape(x)[2:])
    return [b.op("Expand", b.op("Mul", dy[0], b.scalar(1 / places)), b.op("Shape", x, start=0))]


def global_max_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY at the first maximum."""
    x = node.inputs[0]
    flat = b.op("Reshape", x, b.ints(0, 0, -1), allowzero=0)
    place = b.op("ArgMax", flat, axis=2, keepdims=1, select_last_index=0)
    zeros = b.op("Expand", b.scalar(0.0), b.op("Shape", flat, start=0))
    g = b.op("Reshape", dy[0], b.ints(0, 0, 1), allowzero=0)
    return [b.like(b.op("ScatterElements", zeros, place, g, axis=2, reduction="none"), x)]


def _counts(b: GraphBuilder, node: Node, window: Window) -> NDArray[np.float64]:
    """By how much each output was divided, in a shape that broadcasts over the outputs."""
    sizes, outputs = b.shape(node.inputs[0])[2:], b.shape(node.outputs[0])[2:]
    include = node.attributes["count_include_pad"]
    counts = np.ones(tuple(int(n) for n in outputs))
    for axis, (size, output) in enumerate(zip(sizes, outputs, strict=True)):
        starts = np.arange(int(output))[:, None] * window.strides[axis] - window.pads_begin[axis]
        places = starts + np.arange(window.kernel[axis])[None, :] * window.dilations[axis]
        before, after = (window.pads_begin[axis], window.pads_end[axis]) if include else (0, 0)
        inside = ((places >= -before) & (places < int(size) + after)).sum(axis=1)
        counts *= inside.reshape([-1 if axis == other else 1 for other in range(len(sizes))])
    return counts.reshape(-1)[:1] if np.all(counts == counts.flat[0]) else counts


def _spread(b: GraphBuilder, node: Node, g: str) -> str:
    """``g``, of the shape of the node's output, added up at every element of its window; of the shape of its input."""
    x, window = node.inputs[0], window_of(node)
    channels, *sizes = (int(d) for d in b.shape(x)[1:])
    outputs = [int(d) for d in b.shape(node.outputs[0])[2:]]
    reached = [(n - 1) * s + e for n, s, e in zip(outputs, window.strides, window.extents, strict=True)]
    if window.kernel == window.strides == window.extents and not any(window.pads_begin):
        axes = range(len(sizes))
        apart = b.op("Unsqueeze", g, b.ints(*(3 + 2 * axis for axis in axes)))
        tiles = b.op("Expand", apart, b.ints(1, 1, *(d for k in window.kernel for d in (1, k))))
        return _fitted(b, b.op("Reshape", tiles, b.ints(-1, channels, *reached), allowzero=0), reached, sizes)
    behind = [r - p - d for r, p, d in zip(reached, window.pads_begin, sizes, strict=True)]
    spread = b.op(
        "ConvTranspose",
        b.op("Reshape", g, b.ints(-1, 1, *outputs), allowzero=0),
        b.constant(np.ones((1, 1, *window.kernel), np.float32)),
        auto_pad="NOTSET",
        dilations=list(window.dilations),
        group=1,
        kernel_shape=list(window.kernel),
        output_padding=[max(-d, 0) for d in behind],
        pads=[*window.pads_begin, *(max(d, 0) for d in behind)],
        strides=list(window.strides),
    )
    return b.like(spread, x)


def _fitted(b: GraphBuilder, tiles: str, reached: Sequence[int], sizes: Sequence[int]) -> str:
    """Cut to ``sizes`` at the far ends, or zeros put there."""
    axes = range(2, 2 + len(sizes))
    if any(r > d for r, d in zip(reached, sizes, strict=True)):
        ends = [min(r, d) for r, d in zip(reached, sizes, strict=True)]
        tiles = b.op("Slice", tiles, b.ints(*(0 for _ in axes)), b.ints(*ends), b.ints(*axes))
    missing = [max(d - r, 0) for r, d in zip(reached, sizes, strict=True)]
    return b.op("Pad", tiles, b.ints(*[0] * (len(sizes) + 4), *missing), mode="constant") if any(missing) else tiles


def _unpools(window: Window, sizes: Shape, pooled: Shape) -> bool:
    """Whether no two windows overlap, and none reaches beyond the input (which MaxUnpool refuses to undo)."""
    if any(extent > stride for extent, stride in zip(window.extents, window.strides, strict=True)):
        return False
    reached = (
        (int(count) - 1) * stride + kernel - begin - end
        for count, stride, kernel, begin, end in zip(
            pooled, window.strides, window.kernel, window.pads_begin, window.pads_end, strict=True
        )
    )
    return all(reach <= int(size) for reach, size in zip(reached, sizes, strict=True))
