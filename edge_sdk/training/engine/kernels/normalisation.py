"""Normalisations, in inference form; of BatchNormalization also the training form."""

from __future__ import annotations

import math

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, positive_axis

__all__ = [
    "batch_normalization",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "local_response_normalization",
    "lp_normalization",
    "mean_variance_normalization",
]


def batch_normalization(
    x: Array,
    scale: Array,
    b: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    output_count: int = 1,
) -> Array | tuple[Array, Array, Array]:
    """ONNX BatchNormalization: x [N, C, ...]; with ``training_mode`` also the new running mean and variance."""
    if not training_mode:
        return _affine(x, scale, b, mean, var, epsilon)
    axes = (0, *range(2, x.ndim))
    count = x.dtype.type(x.size // max(1, x.shape[1]))
    batch_mean = np.add.reduce(x, axis=axes) / count
    y = np.subtract(x, _over_channels(batch_mean, x))
    batch_var = np.add.reduce(np.square(y), axis=axes) / count
    np.multiply(y, _over_channels(scale / np.sqrt(batch_var + batch_var.dtype.type(epsilon)), x), out=y)
    np.add(y, _over_channels(b, x), out=y)
    kept, taken = mean.dtype.type(momentum), mean.dtype.type(1 - momentum)
    return y, mean * kept + batch_mean * taken, var * kept + batch_var * taken


def layer_normalization(
    x: Array,
    scale: Array,
    b: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    output_count: int = 1,
) -> Array | tuple[Array, Array, Array]:
    """ONNX LayerNormalization over the axes from ``axis`` on; mean and 1 / standard deviation as further outputs."""
    axes = tuple(range(positive_axis(axis, x.ndim), x.ndim))
    y, mean, r = _standardised(x, axes, epsilon)
    np.multiply(y, scale, out=y)
    if b is not None:
        np.add(y, b, out=y)
    return (y, mean, r) if output_count > 1 else y


def instance_normalization(x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5) -> Array:
    """ONNX InstanceNormalization: buffers of each example and channel of x [N, C, ...]."""
    y, _, _ = _standardised(x, tuple(range(2, x.ndim)), epsilon)
    np.multiply(y, _over_channels(scale, x), out=y)
    return np.add(y, _over_channels(b, x), out=y)


def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """ONNX GroupNormalization (opset 21): buffers of each example and group of channels of x [N, C, ...]."""
    if num_groups < 1 or x.shape[1] % num_groups:
        raise TrainingError(f"GroupNormalization: {x.shape[1]} channels do not make {num_groups} groups")
    y, _, _ = _standardised(x.reshape(x.shape[0], num_groups, -1), (2,), epsilon)
    y = y.reshape(x.shape)
    np.multiply(y, _over_channels(scale, x), out=y)
    return np.add(y, _over_channels(bias, x), out=y)


def local_response_normalization(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """ONNX LRN of ``x`` [N, C, ...]: each channel over a power of the squares of its ``size`` neighbours."""
    before = (size - 1) // 2
    padded = np.zeros((x.shape[0], x.shape[1] + size - 1, *x.shape[2:]), x.dtype)
    np.square(x, out=padded[:, before : before + x.shape[1]])
    squares = sum(padded[:, i : i + x.shape[1]] for i in range(size))
    return np.asarray(x / (x.dtype.type(bias) + x.dtype.type(alpha / size) * squares) ** x.dtype.type(beta))


def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """ONNX LpNormalization: ``x`` over its norm along ``axis``, 0 where the norm is."""
    axis = positive_axis(axis, x.ndim)
    size = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt(np.square(x).sum(axis, keepdims=True))
    return np.true_divide(x, size, out=np.zeros_like(x), where=size != 0)


def mean_variance_normalization(x: Array, *, axes: list[int] | None = None) -> Array:
    """ONNX MeanVarianceNormalization, by default over all axes but the channels'."""
    over = tuple(positive_axis(a, x.ndim) for a in ([0, 2, 3] if axes is None else axes))
    centred = x - x.mean(over, dtype=x.dtype, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(over, dtype=x.dtype, keepdims=True))
    return centred / (deviation + x.dtype.type(1e-9))


def _affine(x: Array, scale: Array, b: Array, mean: Array, var: Array, epsilon: float) -> Array:
    factor = scale / np.sqrt(var + var.dtype.type(epsilon))
    y = np.multiply(x, _over_channels(factor, x))
    return np.add(y, _over_channels(b - mean * factor, x), out=y)


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """A new array of mean 0 and variance 1 over ``axes``, the mean, and 1 / the standard deviation."""
    count = x.dtype.type(math.prod(x.shape[a] for a in axes))
    mean = np.add.reduce(x, axis=axes, keepdims=True) / count
    y = np.subtract(x, mean)
    var = np.add.reduce(np.square(y), axis=axes, keepdims=True) / count
    r = np.reciprocal(np.sqrt(var + x.dtype.type(epsilon)))
    return np.multiply(y, r, out=y), mean, r


def _over_channels(values: Array, x: Array) -> Array:
    return values.reshape(-1, *(1,) * (x.ndim - 2))
