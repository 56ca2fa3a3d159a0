"""Gradients of Gemm and MatMul: with Y = A B, dA = dY B^T and dB = A^T dY."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.compile.graph import GraphBuilder, Node, Product, Shape
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted

__all__ = ["gemm", "matmul"]


def gemm(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Y = alpha op(A) op(B) + beta C."""
    (g,) = dy
    left, right = node.inputs[:2]
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    trans_a, trans_b = bool(node.attributes["transA"]), bool(node.attributes["transB"])
    d_left = Product(right, g, trans_b, True, alpha) if trans_a else Product(g, right, False, not trans_b, alpha)
    d_right = Product(g, left, True, trans_a, alpha) if trans_b else Product(left, g, not trans_a, False, alpha)
    gradients: list[Gradient | None] = [d_left if wanted[0] else None, d_right if wanted[1] else None]
    if len(node.inputs) > 2 and node.inputs[2] and wanted[2]:
        d_addend = b.sum_to(g, b.shape(node.outputs[0]), b.shape(node.inputs[2]))
        gradients.append(d_addend if beta == 1 else b.op("Mul", d_addend, b.scalar(beta)))
    return gradients


def matmul(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Y = A B with NumPy's rules: stacks of matrices broadcast, a 1-D operand is a row or a column."""
    left, right = node.inputs
    a_shape, b_shape, g = b.shape(left), b.shape(right), dy[0]
    if len(a_shape) == 2 and len(b_shape) == 2:
        return [
            Product(g, right, False, True) if wanted[0] else None,
            Product(left, g, True, False) if wanted[1] else None,
        ]
    y_shape = b.shape(node.outputs[0])
    if len(a_shape) == 1:
        left, a_shape, g, y_shape = _widen(b, left, a_shape, g, y_shape, axis=-2)
    if len(b_shape) == 1:
        right, b_shape, g, y_shape = _widen(b, right, b_shape, g, y_shape, axis=-1)
    return [
        _left(b, node.inputs[0], right, (a_shape, b_shape, y_shape), g) if wanted[0] else None,
        _right(b, left, node.inputs[1], (a_shape, b_shape, y_shape), g) if wanted[1] else None,
    ]


def _widen(
    b: GraphBuilder, x: str, shape: Shape, g: str, y_shape: Shape, *, axis: int
) -> tuple[str, Shape, str, Shape]:
    """A 1-D operand as a matrix, and the gradient with the axis that the product dropped for it."""
    position = len(y_shape) + 1 + axis
    wide_x = b.op("Unsqueeze", x, b.ints(0 if axis == -2 else 1))
    wide_g = b.op("Unsqueeze", g, b.ints(position))
    return wide_x, (1, *shape) if axis == -2 else (*shape, 1), wide_g, (*y_shape[:position], 1, *y_shape[position:])


def _left(b: GraphBuilder, operand: str, right: str, shapes: tuple[Shape, Shape, Shape], g: str) -> Gradient:
    a_shape, b_shape, y_shape = shapes
    d_left = b.op("MatMul", g, _transposed(b, right, len(b_shape)))
    return _shaped(b, b.sum_to(d_left, (*y_shape[:-1], a_shape[-1]), a_shape), operand, a_shape)


def _right(b: GraphBuilder, left: str, operand: str, shapes: tuple[Shape, Shape, Shape], g: str) -> Gradient:
    a_shape, b_shape, y_shape = shapes
    if len(b_shape) == 2 and isinstance(a_shape[-1], int) and isinstance(y_shape[-1], int):
        # One matrix for a whole stack: a single Gemm over all rows of the stack.
        rows = b.op("Reshape", left, b.ints(-1, a_shape[-1]), allowzero=0)
        d_rows = b.op("Reshape", g, b.ints(-1, y_shape[-1]), allowzero=0)
        product = Product(rows, d_rows, True, False)
        return product if len(b.shape(operand)) == 2 else b.like(b.materialise(product), operand)
    d_right = b.op("MatMul", _transposed(b, left, len(a_shape)), g)
    return _shaped(b, b.sum_to(d_right, (*y_shape[:-2], a_shape[-1], y_shape[-1]), b_shape), operand, b_shape)


def _shaped(b: GraphBuilder, gradient: str, operand: str, shape: Shape) -> str:
    return gradient if b.shape(operand) == shape else b.like(gradient, operand)


def _transposed(b: GraphBuilder, x: str, rank: int) -> str:
    return b.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])
