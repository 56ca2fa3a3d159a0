"""Gradients of Conv and ConvTranspose, with groups, any number of spatial axes.

Conv: dX is a ConvTranspose with the very same weights; where a channel stands alone (depthwise) and nothing is strided
it is a Conv with the kernel turned round, which took 0.7 of the time; so it is where each position stands alone
(pointwise). ConvTranspose: dX is a Conv.

dW is a correlation of X with dY (of dY with X for ConvTranspose). Written as a Conv with swapped axes it was up to
five times slower in onnxruntime than as matrix products, so it is one Gemm for each kernel tap, over the part of X that
the tap meets (a Slice). X has its channels last there: a Slice then copies long runs, which made the whole 1.7 times
faster than with channels first. Fewer channels than a vector holds are the rows of that product, not its columns; of
even fewer it gets too thin, and one Gemm over the slices of all taps together takes its place. Groups are a batch of
such products. Depthwise kernels over few positions or short rows have forms of their own (``depthwise``); elsewhere a
depthwise tap is a product and a sum, with the channels last as well (0.6 to 1.1 of the time that it took with the
channels first, mostly 0.8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.depthwise import as_products, has_narrow_rows, product_gradients, row_gradient
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.spatial import Window, window_of

__all__ = ["conv", "conv_training", "conv_transpose"]

CHANNELS_FOR_TAPS: Final = 4
CHANNELS_FOR_COLUMNS: Final = 16
"""Input channels from which on a tap's product has them as its columns; fewer cost there as much as so many."""
POSITIONS_FOR_BATCHES: Final = 2
"""From this many positions for each channel on, one product for each example is faster than one for them all."""
BACKWARDS: Final = -(1 << 63)
"""As the end of a Slice that goes backwards: through to the first element."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution with weight [out_channels, in_channels / group, kernel...], from ``sizes`` to ``outputs``."""

    weight: str
    window: Window
    group: int
    out_channels: int
    in_channels: int
    sizes: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, b: GraphBuilder, node: Node, x: str, y: str) -> _Layer:
        """The convolution that ``node`` does from ``x`` to ``y``, or undoes (ConvTranspose) from ``y`` to ``x``."""
        out_channels, in_channels = (int(d) for d in b.shape(node.inputs[1])[:2])
        group = node.attributes["group"]
        sizes, outputs = (tuple(int(d) for d in b.shape(name)[2:]) for name in (x, y))
        return cls(node.inputs[1], window_of(node), group, out_channels, in_channels * group, sizes, outputs)

    @property
    def depthwise(self) -> bool:
        """Whether each input channel has its own outputs."""
        return self.group == self.in_channels

    @property
    def pointwise(self) -> bool:
        """Whether each position is by itself: a matrix product with the channels."""
        window = self.window
        still = max(*window.kernel, *window.strides) == 1 and not any((*window.pads_begin, *window.pads_end))
        return still and self.group == 1

    @property
    def axes(self) -> int:
        return len(self.window.kernel)


def conv_training(b: GraphBuilder, node: Node) -> None:
    """The node, in the form that has fast gradients."""
    if not as_products(b, node):
        b.append(node)


def conv(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Y = X * W + B."""
    if b.has_saved(node):
        return product_gradients(b, node, dy, wanted)
    layer = _Layer.of(b, node, node.inputs[0], node.outputs[0])
    gradients: list[Gradient | None] = [
        _input_gradient(b, layer, dy[0]) if wanted[0] else None,
        _weight_gradient(b, layer, node.inputs[0], dy[0]) if wanted[1] else None,
    ]
    if len(node.inputs) > 2 and wanted[2]:
        gradients.append(_bias_gradient(b, layer, dy[0]))
    return gradients


def conv_transpose(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """X is what a convolution would make of Y."""
    x = node.inputs[0]
    layer = _Layer.of(b, node, node.outputs[0], x)
    gradients: list[Gradient | None] = [
        b.op("Conv", dy[0], layer.weight, **_attributes(layer, *_pads(layer))) if wanted[0] else None,
        _weight_gradient(b, layer, dy[0], x) if wanted[1] else None,
    ]
    if len(node.inputs) > 2 and wanted[2]:
        gradients.append(_bias_gradient(b, layer, dy[0]))
    return gradients


def _bias_gradient(b: GraphBuilder, layer: _Layer, g: str) -> str:
    return b.op("ReduceSum", g, b.ints(0, *range(2, 2 + layer.axes)), keepdims=0)


def _input_gradient(b: GraphBuilder, layer: _Layer, g: str) -> str:
    window = layer.window
    if layer.pointwise:
        turned = b.op("Transpose", layer.weight, perm=[1, 0, *range(2, 2 + layer.axes)])
        return b.op("Conv", g, turned, **_attributes(layer, *_pads(layer)))
    margins = [e - 1 - p for pads in _pads(layer) for e, p in zip(window.extents, pads, strict=True)]
    if layer.depthwise and layer.out_channels == layer.in_channels and max(window.strides) == 1 and min(margins) >= 0:
        backwards = [-1] * layer.axes
        ends = b.ints(*[BACKWARDS] * layer.axes)
        axes = b.ints(*range(2, 2 + layer.axes))
        turned = b.op("Slice", layer.weight, b.ints(*backwards), ends, axes, b.ints(*backwards))
        return b.op("Conv", g, turned, **_attributes(layer, margins[: layer.axes], margins[layer.axes :]))
    # What a stride skipped at the far end: ConvTranspose must give it back, as zeros.
    skipped = [
        size + begin + end - extent - (output - 1) * stride
        for size, output, begin, end, extent, stride in zip(
            layer.sizes, layer.outputs, window.pads_begin, window.pads_end, window.extents, window.strides, strict=True
        )
    ]
    attributes = _attributes(layer, *_pads(layer))
    return b.op("ConvTranspose", g, layer.weight, output_padding=skipped, **attributes)


def _pads(layer: _Layer) -> tuple[Sequence[int], Sequence[int]]:
    return layer.window.pads_begin, layer.window.pads_end


def _attributes(layer: _Layer, before: Sequence[int], after: Sequence[int]) -> dict[str, object]:
    return {
        "auto_pad": "NOTSET",
        "dilations": list(layer.window.dilations),
        "group": layer.group,
        "kernel_shape": list(layer.window.kernel),
        "pads": [*before, *after],
        "strides": list(layer.window.strides),
    }


def _weight_gradient(b: GraphBuilder, layer: _Layer, x: str, g: str) -> str:
    """float32[O, C/group, k...]: every product sums over the batch and over positions."""
    if layer.depthwise and layer.out_channels == layer.in_channels and has_narrow_rows(layer.window, layer.sizes):
        return row_gradient(b, layer.weight, layer.window, x, g, layer.outputs, layer.sizes)
    if layer.group > 1:
        return _joined(b, layer, _depthwise_taps(b, layer, x, g) if layer.depthwise else _grouped_taps(b, layer, x, g))
    positions = math.prod(layer.outputs)
    if layer.pointwise and positions >= POSITIONS_FOR_BATCHES * min(layer.out_channels, layer.in_channels):
        return _pointwise_gradient(b, layer, x, g)
    channels_first, last = [1, 0, *range(2, 2 + layer.axes)], [0, *range(2, 2 + layer.axes), 1]
    rows = b.op("Reshape", b.transpose(g, channels_first), b.ints(layer.out_channels, -1), allowzero=0)
    if layer.in_channels < CHANNELS_FOR_TAPS:
        return _all_taps(b, layer, b.op("Transpose", _padded(b, x, layer.window, 2), perm=channels_first), rows)
    # Padding copies long runs as well, once the channels are last.
    channels_last = _padded(b, b.transpose(x, last), layer.window, 1)
    views = [_view(b, layer, channels_last, offsets, first_axis=1) for offsets in _taps(layer.window)]
    views = [b.op("Reshape", view, b.ints(-1, layer.in_channels), allowzero=0) for view in views]
    if layer.in_channels < CHANNELS_FOR_COLUMNS:
        columns = b.op("Reshape", b.transpose(g, last), b.ints(-1, layer.out_channels), allowzero=0)
        turned = [b.op("Gemm", view, columns, transA=1) for view in views]
        return _joined(b, layer, turned, outputs_first=False)
    return _joined(b, layer, [_gemm(b, rows, view, trans_b=0) for view in views])


def _pointwise_gradient(b: GraphBuilder, layer: _Layer, x: str, g: str) -> str:
    """One product for each example, [O, places] @ [places, C], and their sum: nothing large is moved."""
    flat = b.ints(0, 0, -1)
    rows, columns = (b.op("Reshape", value, flat, allowzero=0) for value in (g, x))
    products = b.op("MatMul", rows, b.op("Transpose", columns, perm=[0, 2, 1]))
    return b.like(b.op("ReduceSum", products, b.ints(0), keepdims=0), layer.weight)


def _joined(b: GraphBuilder, layer: _Layer, products: list[str], *, outputs_first: bool = True) -> str:
    """The weight gradient out of the taps' parts, each [out_channels, in_channels / group], or that turned round."""
    inner = layer.in_channels // layer.group
    if len(products) == 1 and outputs_first:
        return b.like(products[0], layer.weight)
    stacked = b.op("Concat", *products, axis=0) if len(products) > 1 else products[0]
    matrix = (layer.out_channels, inner) if outputs_first else (inner, layer.out_channels)
    split = b.op("Reshape", stacked, b.ints(*layer.window.kernel, *matrix), allowzero=0)
    order = (layer.axes, layer.axes + 1) if outputs_first else (layer.axes + 1, layer.axes)
    return b.op("Transpose", split, perm=[*order, *range(layer.axes)])


def _all_taps(b: GraphBuilder, layer: _Layer, x: str, rows: str) -> str:
    """One product for all taps, from ``x`` with its channels first and ``rows`` of dY."""
    views = [_view(b, layer, x, offsets, first_axis=2) for offsets in _taps(layer.window)]
    columns = b.op("Concat", *views, axis=0)
    columns = b.op("Reshape", columns, b.ints(len(views) * layer.in_channels, -1), allowzero=0)
    product = _gemm(b, rows, columns, trans_b=1)
    if layer.in_channels == 1:
        return b.like(product, layer.weight)
    shape = b.ints(layer.out_channels, *layer.window.kernel, layer.in_channels)
    split = b.op("Reshape", product, shape, allowzero=0)
    return b.op("Transpose", split, perm=[0, layer.axes + 1, *range(1, layer.axes + 1)])


def _depthwise_taps(b: GraphBuilder, layer: _Layer, x: str, g: str) -> list[str]:
    multiplier = layer.out_channels // layer.group
    if multiplier == 1:
        axes, channels_last = b.ints(*range(1 + layer.axes)), [0, *range(2, 2 + layer.axes), 1]
        x, g = (b.op("Transpose", value, perm=channels_last) for value in (x, g))
        x = _padded(b, x, layer.window, 1)
        views = (_view(b, layer, x, offsets, first_axis=1) for offsets in _taps(layer.window))
        return [b.op("ReduceSum", b.op("Mul", view, g), axes, keepdims=0) for view in views]
    axes = b.ints(0, *range(3, 3 + layer.axes))
    x = b.op("Unsqueeze", _padded(b, x, layer.window, 2), b.ints(2))
    g = b.op("Reshape", g, b.ints(-1, layer.group, multiplier, *layer.outputs), allowzero=0)
    views = (_view(b, layer, x, offsets, first_axis=3) for offsets in _taps(layer.window))
    return [b.op("ReduceSum", b.op("Mul", view, g), axes, keepdims=0) for view in views]


def _grouped_taps(b: GraphBuilder, layer: _Layer, x: str, g: str) -> list[str]:
    """A batch of products for each tap: [group, O/group, N places] @ [group, N places, C/group]."""
    group, places = layer.group, range(3, 3 + layer.axes)
    outer, inner = layer.out_channels // group, layer.in_channels // group
    x = b.op("Reshape", x, b.ints(-1, group, inner, *layer.sizes), allowzero=0)
    x = _padded(b, b.op("Transpose", x, perm=[1, 0, *places, 2]), layer.window, 2)
    g = b.op("Reshape", g, b.ints(-1, group, outer, *layer.outputs), allowzero=0)
    rows = b.op("Reshape", b.op("Transpose", g, perm=[1, 2, 0, *places]), b.ints(group, outer, -1), allowzero=0)
    products = []
    for offsets in _taps(layer.window):
        view = _view(b, layer, x, offsets, first_axis=2)
        products.append(b.op("MatMul", rows, b.op("Reshape", view, b.ints(group, -1, inner), allowzero=0)))
    return products


def _gemm(b: GraphBuilder, left: str, right: str, *, trans_b: int) -> str:
    return b.op("Gemm", left, right, alpha=1.0, beta=1.0, transA=0, transB=trans_b)


def _padded(b: GraphBuilder, x: str, window: Window, first_axis: int) -> str:
    if not any(window.pads_begin) and not any(window.pads_end):
        return x
    axes = b.ints(*range(first_axis, first_axis + len(window.kernel)))
    return b.op("Pad", x, b.ints(*window.pads_begin, *window.pads_end), "", axes, mode="constant")


def _view(b: GraphBuilder, layer: _Layer, x: str, offsets: tuple[int, ...], *, first_axis: int) -> str:
    """The elements of ``x`` that one kernel tap meets, in the order of the outputs."""
    strides = layer.window.strides
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(offsets, layer.outputs, strides, strict=True)]
    axes = b.ints(*range(first_axis, first_axis + len(offsets)))
    return b.op("Slice", x, b.ints(*offsets), b.ints(*ends), axes, b.ints(*strides))


def _taps(window: Window) -> Iterator[tuple[int, ...]]:
    for tap in product(*(range(k) for k in window.kernel)):
        yield tuple(t * d for t, d in zip(tap, window.dilations, strict=True))
