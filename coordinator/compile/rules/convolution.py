"""Gradients of Conv (group 1, any number of spatial axes).

dX is a ConvTranspose with the very same weights. dW is a correlation of X with dY; written as a Conv with swapped axes
it was up to five times slower in onnxruntime than as matrix products, so it is Gemms over shifted views of X, each a
Slice: one Gemm for each kernel tap, or, where X has few channels, one Gemm for all taps together (their rows would
be too short alone).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.spatial import Window, window_of
from edge_sdk.errors import CompileError

__all__ = ["conv"]

CHANNELS_FOR_TAPS: Final = 8


def conv(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Y = X * W + B."""
    if node.attributes["group"] != 1:
        raise CompileError(f"{node}: group={node.attributes['group']} has no gradient rule yet; use group=1")
    window = window_of(node)
    gradients: list[Gradient | None] = [
        _input_gradient(b, node, window, dy[0]) if wanted[0] else None,
        _weight_gradient(b, node, window, dy[0]) if wanted[1] else None,
    ]
    if len(node.inputs) > 2 and wanted[2]:
        axes = [0, *range(2, 2 + len(window.kernel))]
        gradients.append(b.op("ReduceSum", dy[0], b.ints(*axes), keepdims=0))
    return gradients


def _input_gradient(b: GraphBuilder, node: Node, window: Window, g: str) -> str:
    sizes, outputs = _sizes(b, node.inputs[0]), _sizes(b, node.outputs[0])
    # What a stride skipped at the far end: ConvTranspose must give it back, as zeros.
    skipped = [
        size + begin + end - extent - (output - 1) * stride
        for size, output, begin, end, extent, stride in zip(
            sizes, outputs, window.pads_begin, window.pads_end, window.extents, window.strides, strict=True
        )
    ]
    return b.op(
        "ConvTranspose",
        g,
        node.inputs[1],
        auto_pad="NOTSET",
        dilations=list(window.dilations),
        group=1,
        kernel_shape=list(window.kernel),
        output_padding=skipped,
        pads=[*window.pads_begin, *window.pads_end],
        strides=list(window.strides),
    )


def _weight_gradient(b: GraphBuilder, node: Node, window: Window, g: str) -> str:
    """float32[O, C, k...]: channels first on both sides, so that every product sums over batch and positions."""
    x, weight = node.inputs[:2]
    out_channels, in_channels = (int(d) for d in b.shape(weight)[:2])
    axes = len(window.kernel)
    to_channels_first = [1, 0, *range(2, 2 + axes)]
    padded = _padded(b, x, window)
    moved = b.op("Transpose", padded, perm=to_channels_first)
    rows_dy = b.op("Reshape", b.op("Transpose", g, perm=to_channels_first), b.ints(out_channels, -1), allowzero=0)
    views = [_view(b, moved, offsets, window, _sizes(b, node.outputs[0])) for offsets in _taps(window)]
    taps = math.prod(window.kernel)
    to_weight = [axes, axes + 1, *range(axes)]
    if in_channels < CHANNELS_FOR_TAPS or taps == 1:
        columns = b.op("Concat", *views, axis=0) if taps > 1 else views[0]
        rows_x = b.op("Reshape", columns, b.ints(taps * in_channels, -1), allowzero=0)
        flat = b.op("Gemm", rows_dy, rows_x, alpha=1.0, beta=1.0, transA=0, transB=1)
        if in_channels == 1 or taps == 1:
            return b.like(flat, weight)
        split = b.op("Reshape", flat, b.ints(out_channels, *window.kernel, in_channels), allowzero=0)
        return b.op("Transpose", split, perm=[0, axes + 1, *range(1, axes + 1)])
    products = []
    for view in views:
        rows_x = b.op("Reshape", view, b.ints(in_channels, -1), allowzero=0)
        products.append(b.op("Gemm", rows_dy, rows_x, alpha=1.0, beta=1.0, transA=0, transB=1))
    stacked = b.op("Concat", *products, axis=0)
    split = b.op("Reshape", stacked, b.ints(*window.kernel, out_channels, in_channels), allowzero=0)
    return b.op("Transpose", split, perm=to_weight)


def _padded(b: GraphBuilder, x: str, window: Window) -> str:
    if not any(window.pads_begin) and not any(window.pads_end):
        return x
    pads = b.ints(0, 0, *window.pads_begin, 0, 0, *window.pads_end)
    return b.op("Pad", x, pads, mode="constant")


def _view(b: GraphBuilder, x: str, offsets: tuple[int, ...], window: Window, outputs: tuple[int, ...]) -> str:
    """The elements of ``x`` that one kernel tap meets, in the order of the outputs."""
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(offsets, outputs, window.strides, strict=True)]
    axes = b.ints(*range(2, 2 + len(offsets)))
    return b.op("Slice", x, b.ints(*offsets), b.ints(*ends), axes, b.ints(*window.strides))


def _taps(window: Window) -> Iterator[tuple[int, ...]]:
    for tap in product(*(range(k) for k in window.kernel)):
        yield tuple(t * d for t, d in zip(tap, window.dilations, strict=True))


def _sizes(b: GraphBuilder, name: str) -> tuple[int, ...]:
    return tuple(int(d) for d in b.shape(name)[2:])
