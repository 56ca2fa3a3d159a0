"""What rules share about shapes: undoing broadcasts, zeros of a shape, constant operands, axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import GraphBuilder, Node, Shape
from edge_sdk.errors import CompileError

__all__ = ["axes_of", "constant_of", "operand", "reduced", "reshaped", "shape_vector", "size_of", "total", "zeros"]


def reduced(b: GraphBuilder, node: Node, slot: int, gradient: str) -> str:
    """``gradient``, in the shape of the node's output, summed to the shape of the operand in ``slot``."""
    return b.sum_to(gradient, b.shape(node.outputs[0]), b.shape(node.inputs[slot]))


def total(b: GraphBuilder, x: str) -> str:
    """The sum of all elements, of shape ()."""
    return b.op("ReduceSum", x, keepdims=0)


def operand(node: Node, slot: int) -> str:
    """The name in ``slot``, ``""`` where it is left out."""
    return node.inputs[slot] if slot < len(node.inputs) else ""


def constant_of(b: GraphBuilder, node: Node, slot: int, what: str) -> NDArray[Any]:
    """The constant in ``slot``.

    Raises:
        CompileError: It is computed.
    """
    found = b.constants.get(node.inputs[slot])
    if found is None:
        raise CompileError(
            f"{node}: its {what} ({node.inputs[slot]!r}) are computed from the inputs, and the gradient needs to know "
            "them; export the model with static shapes (all but the batch)"
        )
    return found


def axes_of(b: GraphBuilder, node: Node, rank: int, slot: int = 1, *, missing_is_all: bool = True) -> list[int]:
    """The axes that the node names in ``slot``, sorted and counted from the front."""
    if not operand(node, slot):
        return list(range(rank)) if missing_is_all else []
    chosen = [int(a) % rank for a in constant_of(b, node, slot, "axes").ravel()]
    return sorted(chosen) if chosen or not missing_is_all else list(range(rank))


def shape_vector(b: GraphBuilder, shape: Shape, like: str) -> str:
    """``shape`` as an int64 vector; its open dimensions are those of the value ``like`` at the same place."""
    if all(isinstance(d, int) for d in shape):
        return b.ints(*(int(d) for d in shape))
    parts = [
        b.ints(d) if isinstance(d, int) else b.op("Shape", like, start=axis, end=axis + 1)
        for axis, d in enumerate(shape)
    ]
    return b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def zeros(b: GraphBuilder, value: str) -> str:
    """float32 zeros in the shape of a value of the model."""
    shape = b.shape(value)
    wanted = b.op("Shape", value, start=0) if any(isinstance(d, str) for d in shape) else shape_vector(b, shape, value)
    return b.op("Expand", b.scalar(0.0), wanted)


def reshaped(b: GraphBuilder, x: str, shape: Shape, node: Node) -> str:
    """``x`` in ``shape``, of which one dimension may be open.

    Raises:
        CompileError: More than one is.
    """
    if sum(isinstance(d, str) for d in shape) > 1:
        raise CompileError(f"{node}: more than one dimension grows with the batch ({list(shape)}); its gradient cannot")
    return b.op("Reshape", x, b.ints(*(d if isinstance(d, int) else -1 for d in shape)), allowzero=0)


def size_of(b: GraphBuilder, value: str, axes: list[int]) -> str:
    """How many elements of ``value`` lie along ``axes``, as a float32 scalar."""
    shape = b.shape(value)
    known = math.prod(int(d) for a in axes if isinstance(d := shape[a], int))
    count = b.scalar(float(np.float32(known)))
    for axis in axes:
        if isinstance(shape[axis], str):
            size = b.op("Cast", b.op("Shape", value, start=axis, end=axis + 1), to=1)
            count = b.op("Mul", count, b.op("Reshape", size, b.ints(), allowzero=0))
    return count
