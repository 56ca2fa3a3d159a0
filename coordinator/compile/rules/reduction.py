"""Gradients of reductions: dY, stretched over the reduced axes again, times the slope at each element."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.broadcast import axes_of, size_of
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = [
    "reduce_extreme",
    "reduce_l1",
    "reduce_l2",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_mean",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
]


def reduce_sum(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY."""
    return [_stretched(b, node, _kept(b, node, dy[0]))]


def reduce_mean(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / n."""
    share = b.op("Div", _kept(b, node, dy[0]), size_of(b, node.inputs[0], _axes(b, node)))
    return [_stretched(b, node, share)]


def reduce_extreme(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY shared evenly by all elements that equal Y; for ReduceMax and ReduceMin."""
    mask = b.op("Cast", b.op("Equal", node.inputs[0], _kept(b, node, node.outputs[0])), to=1)
    count = b.op("ReduceSum", mask, b.ints(*_axes(b, node)), keepdims=1, noop_with_empty_axes=1)
    return [b.op("Mul", mask, b.op("Div", _kept(b, node, dy[0]), count))]


def reduce_prod(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY times the product of the others, also where one of them is 0."""
    x = node.inputs[0]
    axes = b.ints(*_axes(b, node))
    is_zero = b.op("Equal", x, b.scalar(0.0))
    filled = b.op("Where", is_zero, b.scalar(1.0), x)
    product = b.op("ReduceProd", filled, axes, keepdims=1, noop_with_empty_axes=1)
    zeros = b.op("ReduceSum", b.op("Cast", is_zero, to=1), axes, keepdims=1, noop_with_empty_axes=1)
    at_zero = b.op("Mul", product, b.op("Cast", b.op("Equal", zeros, b.scalar(1.0)), to=1))
    elsewhere = b.op("Mul", product, b.op("Cast", b.op("Equal", zeros, b.scalar(0.0)), to=1))
    others = b.op("Where", is_zero, at_zero, b.op("Div", elsewhere, filled))
    return [b.op("Mul", others, _kept(b, node, dy[0]))]


def reduce_l1(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY sign(X)."""
    return [b.op("Mul", b.op("Sign", node.inputs[0]), _kept(b, node, dy[0]))]


def reduce_l2(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY X / Y, and 0 where Y is."""
    y = _kept(b, node, node.outputs[0])
    divisor = b.op("Where", b.op("Equal", y, b.scalar(0.0)), b.scalar(1.0), y)
    return [b.op("Mul", node.inputs[0], b.op("Div", _kept(b, node, dy[0]), divisor))]


def reduce_sum_square(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = 2 dY X."""
    return [b.op("Mul", node.inputs[0], b.op("Mul", _kept(b, node, dy[0]), b.scalar(2.0)))]


def reduce_log_sum(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / sum(X), with sum(X) = exp(Y)."""
    return [_stretched(b, node, b.op("Div", _kept(b, node, dy[0]), b.op("Exp", _kept(b, node, node.outputs[0]))))]


def reduce_log_sum_exp(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY exp(X - Y)."""
    share = b.op("Exp", b.op("Sub", node.inputs[0], _kept(b, node, node.outputs[0])))
    return [b.op("Mul", share, _kept(b, node, dy[0]))]


def _axes(b: GraphBuilder, node: Node) -> list[int]:
    rank = len(b.shape(node.inputs[0]))
    return axes_of(b, node, rank, missing_is_all=not node.attributes["noop_with_empty_axes"])


def _kept(b: GraphBuilder, node: Node, reduced: str) -> str:
    """``reduced`` with the reduced axes as dimensions of 1."""
    axes = _axes(b, node)
    return reduced if node.attributes["keepdims"] or not axes else b.op("Unsqueeze", reduced, b.ints(*axes))


def _stretched(b: GraphBuilder, node: Node, gradient: str) -> str:
    return b.op("Expand", gradient, b.op("Shape", node.inputs[0], start=0)) if _axes(b, node) else gradient
