"""Gradients of Conv (group 1, any number of spatial axes).

dX is a ConvTranspose with the very same weights. dW is a correlation of X with dY; written as a Conv with swapped axes
it was up to five times slower in onnxruntime than as matrix products, so it is one Gemm for each kernel tap, over
the part of X that the tap meets (a Slice). X has its channels last there: a Slice then copies long runs, which made
the whole 1.7 times faster than with channels first. With very few channels these products get too thin, and one Gemm
over the slices of all taps together takes their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.spatial import Window, window_of
from edge_sdk.errors import CompileError

__all__ = ["conv"]

CHANNELS_FOR_TAPS: Final = 4


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
    """float32[O, C, k...]: every product sums over the batch and over positions."""
    x, weight = node.inputs[:2]
    out_channels, in_channels = (int(d) for d in b.shape(weight)[:2])
    axes = len(window.kernel)
    channels_first = [1, 0, *range(2, 2 + axes)]
    rows = b.op("Reshape", b.op("Transpose", g, perm=channels_first), b.ints(out_channels, -1), allowzero=0)
    padded, outputs = _padded(b, x, window), _sizes(b, node.outputs[0])
    if in_channels < CHANNELS_FOR_TAPS:
        return _all_taps(b, b.op("Transpose", padded, perm=channels_first), rows, weight, window, outputs)
    channels_last = b.op("Transpose", padded, perm=[0, *range(2, 2 + axes), 1])
    products = []
    for offsets in _taps(window):
        view = _view(b, channels_last, offsets, window, outputs, first_axis=1)
        products.append(_gemm(b, rows, b.op("Reshape", view, b.ints(-1, in_channels), allowzero=0), trans_b=0))
    if len(products) == 1:
        return b.like(products[0], weight)
    stacked = b.op("Concat", *products, axis=0)
    split = b.op("Reshape", stacked, b.ints(*window.kernel, out_channels, in_channels), allowzero=0)
    return b.op("Transpose", split, perm=[axes, axes + 1, *range(axes)])


def _all_taps(b: GraphBuilder, x: str, rows: str, weight: str, window: Window, outputs: tuple[int, ...]) -> str:
    """One product for all taps, from ``x`` with its channels first and ``rows`` of dY."""
    out_channels, in_channels = (int(d) for d in b.shape(weight)[:2])
    views = [_view(b, x, offsets, window, outputs, first_axis=2) for offsets in _taps(window)]
    columns = b.op("Concat", *views, axis=0)
    columns = b.op("Reshape", columns, b.ints(len(views) * in_channels, -1), allowzero=0)
    product = _gemm(b, rows, columns, trans_b=1)
    if in_channels == 1:
        return b.like(product, weight)
    split = b.op("Reshape", product, b.ints(out_channels, *window.kernel, in_channels), allowzero=0)
    return b.op("Transpose", split, perm=[0, len(window.kernel) + 1, *range(1, len(window.kernel) + 1)])


def _gemm(b: GraphBuilder, left: str, right: str, *, trans_b: int) -> str:
    return b.op("Gemm", left, right, alpha=1.0, beta=1.0, transA=0, transB=trans_b)


def _padded(b: GraphBuilder, x: str, window: Window) -> str:
    if not any(window.pads_begin) and not any(window.pads_end):
        return x
    pads = b.ints(0, 0, *window.pads_begin, 0, 0, *window.pads_end)
    return b.op("Pad", x, pads, mode="constant")


def _view(
    b: GraphBuilder, x: str, offsets: tuple[int, ...], window: Window, outputs: tuple[int, ...], *, first_axis: int
) -> str:
    """The elements of ``x`` that one kernel tap meets, in the order of the outputs."""
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(offsets, outputs, window.strides, strict=True)]
    axes = b.ints(*range(first_axis, first_axis + len(offsets)))
    return b.op("Slice", x, b.ints(*offsets), b.ints(*ends), axes, b.ints(*window.strides))


def _taps(window: Window) -> Iterator[tuple[int, ...]]:
    for tap in product(*(range(k) for k in window.kernel)):
        yield tuple(t * d for t, d in zip(tap, window.dilations, strict=True))


def _sizes(b: GraphBuilder, name: str) -> tuple[int, ...]:
    return tuple(int(d) for d in b.shape(name)[2:])
