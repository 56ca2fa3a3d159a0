"""Arithmetic, comparisons and logic, element by element with NumPy's broadcasting (which is ONNX's)."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array

__all__ = ["cast", "clip", "div", "is_inf", "maximum", "mean", "minimum", "mod", "power", "reciprocal", "total"]

# ONNX TensorProto.DataType -> NumPy.
DTYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
}


def div(a: Array, b: Array) -> Array:
    """ONNX Div: true division of floats; integers are divided as in C, towards zero."""
    if a.dtype.kind == "f":
        return np.true_divide(a, b)
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "i":
        quotient += (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))
    return quotient


def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """ONNX Mod: the divisor's sign, or the dividend's with ``fmod``."""
    return np.fmod(a, b) if fmod else np.remainder(a, b)


def power(x: Array, y: Array) -> Array:
    """ONNX Pow: the result has the base's type, whatever the exponent's."""
    if y.ndim == 0 and x.dtype.kind == "f" and float(y) == 2.0:
        return np.square(x)  # many times cheaper than the general power
    return np.asarray(np.power(x, y)).astype(x.dtype, copy=False)


def reciprocal(x: Array) -> Array:
    """ONNX Reciprocal; the one is of ``x``'s type, or NumPy 1.x widens a scalar to float64."""
    return np.true_divide(x.dtype.type(1), x)


def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """ONNX IsInf."""
    return (np.isposinf(x) & bool(detect_positive)) | (np.isneginf(x) & bool(detect_negative))


def maximum(*values: Array) -> Array:
    """ONNX Max over any number of inputs."""
    return functools.reduce(np.maximum, values)


def minimum(*values: Array) -> Array:
    """ONNX Min over any number of inputs."""
    return functools.reduce(np.minimum, values)


def total(*values: Array) -> Array:
    """ONNX Sum: variadic addition."""
    return functools.reduce(np.add, values)


def mean(*values: Array) -> Array:
    """ONNX Mean: variadic mean."""
    first = values[0]
    return np.true_divide(total(*values), first.dtype.type(len(values)))


def clip(x: Array, min: Array | float | None = None, max: Array | float | None = None) -> Array:
    """ONNX Clip; where ``min`` is above ``max`` the result is ``max``. (Both were attributes before opset 11.)"""
    if min is not None:
        x = np.maximum(x, np.asarray(min, dtype=x.dtype))
    if max is not None:
        x = np.minimum(x, np.asarray(max, dtype=x.dtype))
    return x


def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """ONNX Cast between the number types; ``saturate`` and ``round_mode`` speak of 8-bit floats, which we have not."""
    dtype = DTYPES.get(to)
    if dtype is None:
        raise TrainingError(f"Cast: no NumPy type for the ONNX type {to}")
    return np.asarray(x).astype(dtype, copy=False)
