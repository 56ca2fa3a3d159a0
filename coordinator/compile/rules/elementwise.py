"""Gradients of elementwise arithmetic: computed in the broadcast shape, then summed over what was broadcast."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = ["add", "div", "mul", "neg", "sub"]


def add(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dB = dY."""
    return [_reduced(b, node, slot, dy[0]) if wanted[slot] else None for slot in (0, 1)]


def sub(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY, dB = -dY."""
    return [
        _reduced(b, node, 0, dy[0]) if wanted[0] else None,
        b.op("Neg", _reduced(b, node, 1, dy[0])) if wanted[1] else None,
    ]


def mul(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY B, dB = dY A."""
    left, right = node.inputs
    return [
        _reduced(b, node, 0, b.op("Mul", dy[0], right)) if wanted[0] else None,
        _reduced(b, node, 1, b.op("Mul", dy[0], left)) if wanted[1] else None,
    ]


def div(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY / B, dB = -dY Y / B."""
    right = node.inputs[1]
    scaled = b.op("Div", dy[0], right)
    return [
        _reduced(b, node, 0, scaled) if wanted[0] else None,
        b.op("Neg", _reduced(b, node, 1, b.op("Mul", scaled, node.outputs[0]))) if wanted[1] else None,
    ]


def neg(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = -dY."""
    return [b.op("Neg", dy[0])]


def _reduced(b: GraphBuilder, node: Node, slot: int, gradient: str) -> str:
    return b.sum_to(gradient, b.shape(node.outputs[0]), b.shape(node.inputs[slot]))
