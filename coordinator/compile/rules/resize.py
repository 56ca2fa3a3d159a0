"""Gradient of Resize: the exact transpose, a product with the matrix of weights along each axis that was resized.

An enlargement by whole factors in mode nearest copies every element into a block; there the gradient is the sum over
the block, an AveragePool times the block's size, which costs less than the products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.broadcast import constant_of, operand
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError
from edge_sdk.training.engine.kernels.resize import Sampling, output_geometry, taps

__all__ = ["resize"]


def resize(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = W^T dY along every axis, W the interpolation weights; nearest, linear and cubic, without regions."""
    rank = len(b.shape(node.inputs[0]))
    matrices = _matrices(b, node)
    blocks = {axis: _block(matrix) for axis, matrix in matrices.items()}
    g = dy[0]
    if matrices and all(blocks.values()) and min(matrices) >= 2 and rank <= 5:
        window = [blocks.get(axis, 1) for axis in range(2, rank)]
        pads = [0] * (2 * len(window))
        pooled = b.op("AveragePool", g, kernel_shape=window, strides=window, pads=pads, auto_pad="NOTSET")
        g = b.op("Mul", pooled, b.scalar(float(math.prod(window))))
    else:
        for axis, matrix in matrices.items():
            g = _multiplied(b, g, axis, rank, matrix.astype(np.float32))
    return [g, *(None for _ in node.inputs[1:])]


def _multiplied(b: GraphBuilder, g: str, axis: int, rank: int, matrix: NDArray[np.float32]) -> str:
    """``g`` [..., out, ...] times ``matrix`` [out, in] along ``axis``."""
    if axis == rank - 1:
        return b.op("MatMul", g, b.constant(matrix))
    transposed = b.constant(np.ascontiguousarray(matrix.T))
    if axis == rank - 2:
        return b.op("MatMul", transposed, g)
    order = [*range(axis), *range(axis + 1, rank), axis]
    moved = b.op("MatMul", b.op("Transpose", g, perm=order), b.constant(matrix))
    return b.op("Transpose", moved, perm=[int(a) for a in np.argsort(order)])


def _matrices(b: GraphBuilder, node: Node) -> Mapping[int, NDArray[np.float64]]:
    """The weights [out, in] of each axis that the node changes."""
    if node.attributes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        raise CompileError(f"{node}: coordinate_transformation_mode 'tf_crop_and_resize' has no gradient rule")
    shape, result = b.shape(node.inputs[0]), b.shape(node.outputs[0])
    rank = len(shape)
    axes = [int(a) % rank for a in node.attributes.get("axes") or range(rank)]
    # The open batch is of no size here; it must come out as it went in.
    sizes = [d if isinstance(d, int) else 1 for d in shape]
    policy = node.attributes["keep_aspect_ratio_policy"]
    if operand(node, 3) and (policy == "stretch" or operand(node, 3) not in b.constants):
        given = np.array([result[a] if isinstance(result[a], int) else 1 for a in axes])
        outputs, factors = output_geometry(sizes, None, given, axes, "stretch")
    elif operand(node, 3):
        outputs, factors = output_geometry(sizes, None, constant_of(b, node, 3, "sizes"), axes, policy)
    else:
        outputs, factors = output_geometry(sizes, constant_of(b, node, 2, "scales"), None, axes, policy)
    keys = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias")
    sampling = Sampling(**{key: node.attributes[key] for key in keys})
    matrices = {}
    for axis in axes:
        if outputs[axis] == sizes[axis] and factors[axis] == 1.0:
            continue
        if not isinstance(shape[axis], int):
            raise CompileError(f"{node}: resizes the batch; its gradient cannot")
        matrices[axis] = taps(sizes[axis], outputs[axis], factors[axis], sampling).matrix(sizes[axis])
    return matrices


def _block(matrix: NDArray[np.float64]) -> int:
    """k where the matrix copies every element k times, one beside the other; else 0."""
    outputs, size = matrix.shape
    times, rest = divmod(outputs, size)
    return times if rest == 0 and np.array_equal(matrix, np.repeat(np.eye(size), times, axis=0)) else 0
