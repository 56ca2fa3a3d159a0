"""Gradient of MaxPool: each output's gradient goes back to the element that was the maximum.

The forward node gives that element's position as its second output. A mask made by comparing would count ties twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node, Shape
from coordinator.compile.rules.rule import Gradients, Wanted
from coordinator.compile.spatial import Window, window_of
from edge_sdk.errors import CompileError

__all__ = ["max_pool", "max_pool_training"]


def max_pool_training(b: GraphBuilder, node: Node) -> None:
    """The forward node with its second output, Indices (flat positions in X)."""
    if node.attributes["storage_order"]:
        raise CompileError(f"{node}: storage_order=1 (column-major indices) is not supported; export with 0")
    indices = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1] else f"{node.outputs[0]}~indices"
    b.append(Node(node.op, node.inputs, (node.outputs[0], indices), node.attributes, node.name))
    b.save(node, indices=indices)


def max_pool(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY scattered to the maxima: one MaxUnpool where windows are apart, else a sum of what meets."""
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
