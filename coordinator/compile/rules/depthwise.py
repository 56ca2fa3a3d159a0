"""Convolutions of each channel by itself, over few positions: one product of matrices for each channel.

Such a convolution is linear in its few inputs: Y = X T, a row for each example, with T [positions in, positions out] a
band of the kernel's taps. onnxruntime's Conv handles every channel of every example by itself and takes two to eight
times as long for 8 x 8 and 4 x 4 positions. T is what the convolution makes of the unit vectors, which the stock
operator says; the gradient of the taps is that of T summed along its bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node, Product
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.spatial import Window

__all__ = ["as_products", "has_narrow_rows", "product_gradients", "row_gradient"]

PRODUCTS_MAX: Final = 64 * 64
"""Positions in times positions out, up to which this is the faster form at batches of 10 to 64."""

ROW_MAX: Final = 32
"""Length of a row up to which the taps of one row of the kernel are found together."""


def as_products(b: GraphBuilder, node: Node) -> bool:
    """Append ``node`` as products, if it is one of those that are faster so."""
    if not _fits(b, node):
        return False
    x, weight = node.inputs
    positions, outputs = (math.prod(int(d) for d in b.shape(name)[2:]) for name in (x, node.outputs[0]))
    sizes = [int(d) for d in b.shape(x)[2:]]
    attributes = {**node.attributes, "group": 1}
    bands = b.op("Conv", _units(b, positions, sizes), weight, **attributes)
    matrix = b.op("Transpose", b.op("Reshape", bands, b.ints(positions, -1, outputs), allowzero=0), perm=[1, 0, 2])
    rows = _by_channel(b, x)
    y = b.op("Transpose", b.op("MatMul", rows, matrix), perm=[1, 0, 2])
    shape = b.ints(*(d if isinstance(d, int) else -1 for d in b.shape(node.outputs[0])))
    b.append(Node("Reshape", (y, shape), node.outputs, {"allowzero": 0}, node.name))
    b.save(node, rows=rows, matrix=matrix)
    return True


def product_gradients(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY T^T, dT = X^T dY; only for what ``as_products`` appended."""
    x, weight = node.inputs
    rows, g = b.saved(node, "rows"), _by_channel(b, dy[0])
    gradients: list[Gradient | None] = [None, None]
    if wanted[0]:
        dx = b.op("MatMul", g, b.op("Transpose", b.saved(node, "matrix"), perm=[0, 2, 1]))
        gradients[0] = b.like(b.op("Transpose", dx, perm=[1, 0, 2]), x)
    if wanted[1]:
        slopes = b.op("MatMul", b.op("Transpose", rows, perm=[0, 2, 1]), g)
        flat = b.op("Reshape", slopes, b.ints(int(b.shape(weight)[0]), -1), allowzero=0)
        sizes, kernel = ([int(d) for d in b.shape(name)[2:]] for name in (x, weight))
        taps = _taps(b, sizes, kernel, {**node.attributes, "group": 1})
        gradients[1] = b.like(b.materialise(Product(flat, taps, False, False)), weight)
    return gradients


def _fits(b: GraphBuilder, node: Node) -> bool:
    if len(node.inputs) > 2 and node.inputs[2]:
        return False
    shapes = [b.model.values[name].shape for name in (*node.inputs[:2], node.outputs[0]) if name in b.model.values]
    if len(shapes) < 3 or not all(isinstance(d, int) for s in shapes for d in s[1:]):
        return False
    channels = node.attributes["group"]
    positions, outputs = (math.prod(int(d) for d in shape[2:]) for shape in (shapes[0], shapes[2]))
    alone = channels > 1 and channels == shapes[0][1] == shapes[1][0]
    return alone and positions * outputs <= PRODUCTS_MAX and max(positions, outputs) <= math.isqrt(PRODUCTS_MAX)


def _by_channel(b: GraphBuilder, x: str) -> str:
    """[N, C, ...] as [C, N, positions]."""
    return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, -1), allowzero=0), perm=[1, 0, 2])


def _units(b: GraphBuilder, count: int, shape: Sequence[int]) -> str:
    """All unit vectors, each as one channel of ``shape``; onnxruntime computes them once, when it loads the graph."""
    indices, depth = b.constant(np.arange(count, dtype=np.int64)), b.constant(np.array(count, np.int64))
    units = b.op("OneHot", indices, depth, b.constant(np.array([0, 1], np.float32)), axis=-1)
    return b.op("Reshape", units, b.ints(count, 1, *shape), allowzero=0)


def _taps(b: GraphBuilder, sizes: Sequence[int], kernel: Sequence[int], attributes: dict[str, Any]) -> str:
    """[positions in * positions out, taps]: 1 where an element of T is that tap."""
    positions, taps = math.prod(sizes), math.prod(kernel)
    bands = b.op("Conv", _units(b, positions, sizes), _units(b, taps, kernel), **attributes)
    split = b.op("Reshape", bands, b.ints(positions, taps, -1), allowzero=0)
    return b.op("Reshape", b.op("Transpose", split, perm=[0, 2, 1]), b.ints(-1, taps), allowzero=0)


def has_narrow_rows(window: Window, sizes: Sequence[int]) -> bool:
    """Whether ``row_gradient`` is the faster form for a kernel over images of ``sizes``."""
    return len(sizes) == 2 and max(window.strides) == 1 and sizes[1] <= ROW_MAX


def row_gradient(
    b: GraphBuilder, weight: str, window: Window, x: str, g: str, outputs: Sequence[int], sizes: Sequence[int]
) -> str:
    """dW from X [N, C, H, W] and dY, each row of the kernel by itself: T is [W in, W out] there.

    More products than the taps alone would take, but they are those of a matrix product: 0.6 to 0.7 of the time.
    """
    channels_first, channels = [1, 0, 2, 3], int(b.shape(weight)[0])
    rows = b.op("Reshape", b.op("Transpose", g, perm=channels_first), b.ints(channels, -1, outputs[1]), allowzero=0)
    x = b.op("Transpose", x, perm=channels_first)
    (top, left), (bottom, right) = window.pads_begin, window.pads_end
    if top or bottom:
        x = b.op("Pad", x, b.ints(top, bottom), "", b.ints(2), mode="constant")
    slopes = []
    for i in range(window.kernel[0]):
        first = i * window.dilations[0]
        view = b.op("Slice", x, b.ints(first), b.ints(first + outputs[0]), b.ints(2))
        view = b.op("Reshape", view, b.ints(channels, -1, sizes[1]), allowzero=0)
        slopes.append(b.op("MatMul", b.op("Transpose", view, perm=[0, 2, 1]), rows))
    attributes: dict[str, Any] = {"auto_pad": "NOTSET", "group": 1, "strides": [1], "pads": [left, right]}
    attributes.update(dilations=[window.dilations[1]], kernel_shape=[window.kernel[1]])
    stacked = b.op("Concat", *slopes, axis=1) if len(slopes) > 1 else slopes[0]
    flat = b.op("Reshape", stacked, b.ints(-1, sizes[1] * outputs[1]), allowzero=0)
    taps = _taps(b, sizes[1:], window.kernel[1:], attributes)
    return b.like(b.materialise(Product(flat, taps, False, False)), weight)
