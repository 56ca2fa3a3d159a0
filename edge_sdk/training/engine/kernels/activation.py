"""Activations and their kin: each keeps its input's type, and none overflows where its value is finite."""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_sdk.training.engine.kernels.arrays import Array, positive_axis

__all__ = [
    "celu",
    "elu",
    "erf",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "hardmax",
    "leaky_relu",
    "log_softmax",
    "mish",
    "prelu",
    "relu",
    "selu",
    "shrink",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "thresholded_relu",
]


def relu(x: Array) -> Array:
    """ONNX Relu."""
    return np.maximum(x, x.dtype.type(0))


def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """ONNX Shrink: ``x`` moved by ``bias`` towards 0 where it is beyond ``lambd``, 0 between."""
    kind = x.dtype.type
    return np.where(x > kind(lambd), x - kind(bias), np.where(x < kind(-lambd), x + kind(bias), kind(0)))


def sigmoid(x: Array) -> Array:
    """ONNX Sigmoid; for very negative ``x`` the exponential is infinite and the quotient rightly 0."""
    return np.true_divide(x.dtype.type(1), np.exp(-x) + x.dtype.type(1))


def softplus(x: Array) -> Array:
    """ONNX Softplus, ``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, x.dtype.type(0)) + np.log1p(np.exp(-np.abs(x)))


def softsign(x: Array) -> Array:
    """ONNX Softsign."""
    return x / (np.abs(x) + x.dtype.type(1))


def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """ONNX LeakyRelu."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


def prelu(x: Array, slope: Array) -> Array:
    """ONNX PRelu."""
    return np.where(x < 0, x * slope, x)


def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """ONNX ThresholdedRelu."""
    return np.where(x > x.dtype.type(alpha), x, x.dtype.type(0))


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """ONNX Elu."""
    return np.where(x < 0, np.expm1(np.minimum(x, x.dtype.type(0))) * x.dtype.type(alpha), x)


def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """ONNX Celu."""
    zero, a = x.dtype.type(0), x.dtype.type(alpha)
    return np.maximum(x, zero) + np.minimum(zero, a * np.expm1(np.minimum(x, zero) / a))


def selu(x: Array, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Array:
    """ONNX Selu."""
    return elu(x, alpha=alpha) * x.dtype.type(gamma)


def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """ONNX HardSigmoid."""
    of = x.dtype.type
    y = x * of(alpha)
    np.add(y, of(beta), out=y)
    np.maximum(y, of(0), out=y)
    return np.minimum(y, of(1), out=y)


def hard_swish(x: Array) -> Array:
    """ONNX HardSwish."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def mish(x: Array) -> Array:
    """ONNX Mish."""
    return x * np.tanh(softplus(x))


def gelu(x: Array, *, approximate: str = "none") -> Array:
    """ONNX Gelu, exact or in the tanh form."""
    of = x.dtype.type
    if approximate == "tanh":
        inner = of(np.sqrt(2 / np.pi)) * (x + of(0.044715) * x * x * x)
        return of(0.5) * x * (np.tanh(inner) + of(1))
    return of(0.5) * x * (erf(x * of(np.sqrt(0.5))) + of(1))


def softmax(x: Array, *, axis: int = -1) -> Array:
    """ONNX Softmax (opset 13 and later)."""
    axis = positive_axis(axis, x.ndim)
    e = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))
    return np.true_divide(e, np.add.reduce(e, axis=axis, keepdims=True), out=e)


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """ONNX LogSoftmax (opset 13 and later)."""
    axis = positive_axis(axis, x.ndim)
    shifted = x - np.maximum.reduce(x, axis=axis, keepdims=True)
    sums = np.add.reduce(np.exp(shifted), axis=axis, keepdims=True)
    return np.subtract(shifted, np.log(sums), out=shifted)


def hardmax(x: Array, *, axis: int = -1) -> Array:
    """ONNX Hardmax: one at the first maximum along the axis, zero elsewhere."""
    axis = positive_axis(axis, x.ndim)
    result = np.zeros_like(x)
    np.put_along_axis(result, np.expand_dims(np.argmax(x, axis=axis), axis), x.dtype.type(1), axis=axis)
    return result


# exp(x**2) * erfc(x) for x >= 0 as a polynomial in (x - 2) / (x + 2), highest power first: a Chebyshev fit of degree
# 20 in float64 to Python's math.erfc. erf made of it is within 1e-13.
_ERFCX: Final = (
    9.656393013220396e-09,
    5.945957580907843e-08,
    1.045910751662099e-08,
    -4.1915588241514693e-07,
    -6.033696379272876e-07,
    1.0555760497198469e-06,
    3.90175112933222e-06,
    1.512072130989816e-06,
    -1.4040128343882876e-05,
    -2.7641468241195104e-05,
    2.755117263442416e-05,
    0.0001743804968444715,
    4.355011712394535e-05,
    -0.0009819806430064314,
    -0.000847142573990248,
    0.006997462109293131,
    0.0037328923615736484,
    -0.0789785810330311,
    0.2416581942435121,
    -0.4271858474137211,
    0.25539567631050164,
)


def erf(x: Array) -> Array:
    """ONNX Erf (NumPy has none), in float64 inside; exact to the last bits of float32."""
    wide = np.minimum(np.abs(x), 10).astype(np.float64)  # erf(10) is 1 to 44 digits
    near_zero = wide * (2 / np.sqrt(np.pi))
    value = 1.0 - np.exp(-wide * wide) * np.polyval(_ERFCX, (wide - 2) / (wide + 2))
    value = np.where(wide < 1e-6, near_zero, value)
    return np.copysign(value, x).astype(x.dtype)
