"""Gradients of operators that only move elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = ["identity", "reshape", "transpose"]


def identity(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY."""
    return [dy[0]]


def reshape(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY in the shape of X; also for Flatten, Squeeze and Unsqueeze, whose other operands have no gradient."""
    return [b.like(dy[0], node.inputs[0]), *(None for _ in node.inputs[1:])]


def transpose(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY, axes moved back."""
    rank = len(b.shape(node.inputs[0]))
    permutation = node.attributes.get("perm") or list(range(rank))[::-1]
    return [b.op("Transpose", dy[0], perm=[int(axis) for axis in np.argsort(permutation)])]
