"""Gradients of activations, from their outputs, which are there anyway."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = ["relu", "sigmoid", "softplus", "tanh"]


def relu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where Y > 0. Cast and Mul took half the time of Where, Sign and Mul twice the time of Where."""
    positive = b.op("Greater", node.outputs[0], b.scalar(0.0))
    return [b.op("Mul", dy[0], b.op("Cast", positive, to=1))]


def tanh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (1 - Y^2)."""
    y = node.outputs[0]
    return [b.op("Mul", dy[0], b.op("Sub", b.scalar(1.0), b.op("Mul", y, y)))]


def sigmoid(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY Y (1 - Y)."""
    y = node.outputs[0]
    return [b.op("Mul", dy[0], b.op("Mul", y, b.op("Sub", b.scalar(1.0), y)))]


def softplus(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY sigmoid(X)."""
    return [b.op("Mul", dy[0], b.op("Sigmoid", node.inputs[0]))]
