"""Gradients of gathering and scattering: what one gathers, the gradient of it scatters, and the other way round.

A Gather along the first axis is an embedding; its gradient is a ScatterND that adds, so that a row that was looked up
twice gets both gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node, Shape
from coordinator.compile.rules.broadcast import shape_vector, zeros
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError

__all__ = ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "top_k", "top_k_training"]


def gather(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dData = dY added up at the indices."""
    data, indices = node.inputs
    shape = b.shape(data)
    axis = node.attributes["axis"] % len(shape)
    size, chosen = shape[axis], b.constants.get(indices)
    if chosen is not None and chosen.ndim == 0 and isinstance(size, int):
        # One position, as in x[:, 0]: zeros around it.
        at = int(chosen) % size
        lifted = b.op("Unsqueeze", dy[0], b.ints(axis))
        return [b.op("Pad", lifted, b.ints(at, size - 1 - at), "", b.ints(axis), mode="constant"), None]
    rows = b.op("Unsqueeze", indices, b.ints(-1))
    if axis == 0:
        return [b.op("ScatterND", zeros(b, data), rows, dy[0], reduction="add"), None]
    rank, depth = len(shape), len(b.shape(indices))
    first = [*range(axis, axis + depth), *range(axis), *range(axis + depth, rank - 1 + depth)]
    moved: Shape = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    to_front = [axis, *range(axis), *range(axis + 1, rank)]
    empty = b.op("Expand", b.scalar(0.0), _permuted_shape(b, moved, data, to_front))
    scattered = b.op("ScatterND", empty, rows, b.op("Transpose", dy[0], perm=first), reduction="add")
    back = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
    return [b.op("Transpose", scattered, perm=back), None]


def _permuted_shape(b: GraphBuilder, shape: Shape, value: str, permutation: list[int]) -> str:
    if all(isinstance(d, int) for d in shape):
        return shape_vector(b, shape, value)
    return b.op("Gather", b.op("Shape", value, start=0), b.ints(*permutation), axis=0)


def gather_elements(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dData = dY added up at the indices."""
    data, indices = node.inputs
    return [_scattered(b, data, indices, dy[0], node.attributes["axis"], "add"), None]


def gather_nd(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dData = dY added up at the indices."""
    data, indices = node.inputs
    leading = int(node.attributes["batch_dims"])
    if leading:
        indices = _with_positions(b, indices, b.shape(indices), leading)
    return [b.op("ScatterND", zeros(b, data), indices, dy[0], reduction="add"), None]


def _with_positions(b: GraphBuilder, indices: str, shape: Shape, leading: int) -> str:
    """``indices`` with the positions along the ``leading`` axes, which they share with the data, put before them."""
    rank = len(shape)
    column = b.op(
        "Concat", b.op("Shape", indices, start=0, end=rank - 1), b.ints(1), axis=0
    )  # one index for each place
    parts = []
    for axis in range(leading):
        count = b.op("Reshape", b.op("Shape", indices, start=axis, end=axis + 1), b.ints(), allowzero=0)
        ladder = b.op("Range", _integer(b, 0), count, _integer(b, 1))
        spread = b.op("Reshape", ladder, b.ints(*(-1 if k == axis else 1 for k in range(rank))), allowzero=0)
        parts.append(b.op("Expand", spread, column))
    return b.op("Concat", *parts, indices, axis=rank - 1)


def _integer(b: GraphBuilder, value: int) -> str:
    return b.op("Reshape", b.ints(value), b.ints(), allowzero=0)


def scatter_nd(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dUpdates = dY at the indices; dData = dY, without what was overwritten."""
    indices, updates = node.inputs[1:]
    adds = _adds(node)
    return [
        (dy[0] if adds else b.op("ScatterND", dy[0], indices, zeros(b, updates), reduction="none"))
        if wanted[0]
        else None,
        None,
        b.op("GatherND", dy[0], indices, batch_dims=0) if wanted[2] else None,
    ]


def scatter_elements(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dUpdates = dY at the indices; dData = dY, without what was overwritten."""
    indices, updates = node.inputs[1:]
    adds, axis = _adds(node), node.attributes["axis"]
    kept = dy[0] if adds else ""
    if wanted[0] and not adds:
        kept = b.op("ScatterElements", dy[0], indices, zeros(b, updates), axis=axis, reduction="none")
    return [
        kept if wanted[0] else None,
        None,
        b.op("GatherElements", dy[0], indices, axis=axis) if wanted[2] else None,
    ]


def _adds(node: Node) -> bool:
    reduction = node.attributes["reduction"]
    if reduction not in ("none", "add"):
        raise CompileError(f"{node}: reduction={reduction!r} has no gradient rule; use 'none' or 'add'")
    return bool(reduction == "add")


def top_k_training(b: GraphBuilder, node: Node) -> None:
    """The forward node with both of its outputs, because the gradient needs the indices."""
    values, indices = (*node.outputs, "")[:2]
    values, indices = values or f"{indices}~values", indices or f"{values}~indices"
    b.append(Node(node.op, node.inputs, (values, indices), node.attributes, node.name))
    b.save(node, indices=indices)


def top_k(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY at the places of the chosen elements."""
    indices = b.saved(node, "indices")
    return [_scattered(b, node.inputs[0], indices, dy[0], node.attributes["axis"], "none"), None]


def _scattered(b: GraphBuilder, data: str, indices: str, updates: str, axis: int, reduction: str) -> str:
    return b.op("ScatterElements", zeros(b, data), indices, updates, axis=axis, reduction=reduction)
