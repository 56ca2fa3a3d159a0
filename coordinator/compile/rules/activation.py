"""Gradients of activations, from their outputs where those say it, which are there anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.broadcast import reduced, total
from coordinator.compile.rules.normalisation import Rows
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = [
    "celu",
    "clip",
    "elu",
    "erf",
    "gelu",
    "gelu_training",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "log_softmax",
    "mish",
    "prelu",
    "relu",
    "selu",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "thresholded_relu",
]


FLOAT: Final = 1
BOOL: Final = 9
"""ONNX's numbers of these types, as Cast takes them."""


def relu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where Y > 0."""
    # Y is not below 0, so "not 0" is "above 0": 0.8 of the time of Greater, and a twelfth of that of Where.
    return [_masked(b, dy[0], b.op("Cast", node.outputs[0], to=BOOL))]


def leaky_relu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where X > 0, alpha dY elsewhere."""
    falling = b.op("Mul", dy[0], b.scalar(node.attributes["alpha"]))
    return [b.op("Where", _positive(b, node.inputs[0]), dy[0], falling)]


def prelu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where X > 0, slope dY elsewhere; dSlope = dY min(X, 0), summed over what shares a slope."""
    x, slope = node.inputs
    d_slope = b.op("Mul", dy[0], b.op("Min", x, b.scalar(0.0))) if wanted[1] else ""
    return [
        b.op("Where", _positive(b, x), dy[0], b.op("Mul", dy[0], slope)) if wanted[0] else None,
        reduced(b, node, 1, d_slope) if wanted[1] else None,
    ]


def thresholded_relu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where X > alpha."""
    return [_masked(b, dy[0], b.op("Greater", node.inputs[0], b.scalar(node.attributes["alpha"])))]


def elu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where X > 0, dY (Y + alpha) elsewhere."""
    return [_exponential_below_zero(b, node, dy[0], rise=1.0, offset=node.attributes["alpha"])]


def selu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = gamma dY where X > 0, dY (Y + alpha gamma) elsewhere."""
    gamma = node.attributes["gamma"]
    return [_exponential_below_zero(b, node, dy[0], rise=gamma, offset=gamma * node.attributes["alpha"])]


def celu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where X > 0, dY (Y / alpha + 1) elsewhere."""
    slope = b.op("Add", b.op("Mul", node.outputs[0], b.scalar(1 / node.attributes["alpha"])), b.scalar(1.0))
    return [b.op("Where", _positive(b, node.inputs[0]), dy[0], b.op("Mul", dy[0], slope))]


def tanh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (1 - Y^2)."""
    return [b.op("Mul", dy[0], _complement_of_square(b, node.outputs[0]))]


def sigmoid(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY Y (1 - Y)."""
    y = node.outputs[0]
    return [b.op("Mul", dy[0], b.op("Mul", y, b.op("Sub", b.scalar(1.0), y)))]


def hard_sigmoid(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = alpha dY where 0 < alpha X + beta < 1."""
    alpha, beta = (float(np.float32(node.attributes[key])) for key in ("alpha", "beta"))
    if not alpha:
        return [b.op("Mul", dy[0], b.scalar(0.0))]
    # The bounds of X and not those of Y: close to them, Y is rounded to 0 or 1 where X is still inside.
    low, high = sorted((-beta / alpha, (1 - beta) / alpha))
    x = node.inputs[0]
    inside = b.op("And", b.op("Greater", x, b.scalar(low)), b.op("Less", x, b.scalar(high)))
    return [_masked(b, b.op("Mul", dy[0], b.scalar(alpha)), inside)]


def hard_swish(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (X / 3 + 1/2) where -3 < X < 3, dY above, 0 below."""
    x = node.inputs[0]
    bent = b.op("Add", b.op("Mul", x, b.scalar(1 / 3)), b.scalar(0.5))
    inside = b.op("Less", b.op("Abs", x), b.scalar(3.0))
    return [b.op("Mul", dy[0], b.op("Where", inside, bent, b.op("Cast", _positive(b, x), to=FLOAT)))]


def softplus(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY sigmoid(X)."""
    return [b.op("Mul", dy[0], b.op("Sigmoid", node.inputs[0]))]


def softsign(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / (1 + |X|)^2."""
    width = b.op("Add", b.op("Abs", node.inputs[0]), b.scalar(1.0))
    return [b.op("Div", b.op("Div", dy[0], width), width)]  # its square may overflow


def mish(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (T + X (1 - T^2) sigmoid(X)) with T = tanh(softplus(X))."""
    x = node.inputs[0]
    t = b.op("Tanh", b.op("Softplus", x))
    bent = b.op("Mul", b.op("Mul", x, b.op("Sigmoid", x)), _complement_of_square(b, t))
    return [b.op("Mul", dy[0], b.op("Add", t, bent))]


def erf(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY 2 / sqrt(pi) exp(-X^2)."""
    x = node.inputs[0]
    bell = b.op("Exp", b.op("Neg", b.op("Mul", x, x)))
    return [b.op("Mul", dy[0], b.op("Mul", bell, b.scalar(2 / math.sqrt(math.pi))))]


_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBE = 0.044715


def gelu_training(b: GraphBuilder, node: Node) -> None:
    """Y = X P written out, because the gradient needs P as well, which holds the costly function."""
    x = node.inputs[0]
    if node.attributes["approximate"] == "tanh":
        stretch = b.op("Add", b.op("Mul", b.op("Mul", x, x), b.scalar(_TANH_SCALE * _TANH_CUBE)), b.scalar(_TANH_SCALE))
        inner = b.op("Tanh", b.op("Mul", x, stretch))
    else:
        inner = b.op("Erf", b.op("Mul", x, b.scalar(math.sqrt(0.5))))
    share = b.op("HardSigmoid", inner, alpha=0.5, beta=0.5)  # of what lies in [-1, 1]: linear, and one pass
    b.save(node, inner=inner, share=share)
    b.append(Node("Mul", (x, share), node.outputs, {}, node.name))


def gelu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (P + X P'), P the normal distribution or its tanh form."""
    x, share = node.inputs[0], b.saved(node, "share")
    if node.attributes["approximate"] == "tanh":
        square = b.op("Mul", x, x)
        half = b.op("Mul", _complement_of_square(b, b.saved(node, "inner")), b.scalar(0.5))
        inner = b.op("Add", b.op("Mul", square, b.scalar(3 * _TANH_SCALE * _TANH_CUBE)), b.scalar(_TANH_SCALE))
        density = b.op("Mul", half, inner)
    else:
        root = b.op("Mul", x, b.scalar(math.sqrt(0.5)))  # made by the forward pass
        density = b.op("Exp", b.op("Sub", b.scalar(-0.5 * math.log(2 * math.pi)), b.op("Mul", root, root)))
    return [b.op("Mul", dy[0], b.op("Add", share, b.op("Mul", x, density)))]


def clip(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY strictly between the bounds (as ReLU6); a bound gets dY from where it cuts (the upper one wins)."""
    x, low, high = (*node.inputs, "", "")[:3]
    asked = (*wanted, False, False)
    above = _above(b, node, low, high) if low else ""
    below = b.op("Less", x, high) if high else ""
    mask = b.op("And", above, below) if low and high else above or below
    gradients: list[str | None] = [None, None, None]
    if asked[0]:
        gradients[0] = _masked(b, dy[0], mask) if mask else dy[0]
    for slot, cut in ((1, b.op("Not", above) if asked[1] else ""), (2, b.op("Not", below) if asked[2] else "")):
        if not cut:
            continue
        if low and high:
            ordered = b.op("Less", low, high)
            cut = b.op("And", cut, ordered) if slot == 1 else b.op("Or", cut, b.op("Not", ordered))
        gradients[slot] = b.like(total(b, _masked(b, dy[0], cut)), node.inputs[slot])
    return gradients


def _above(b: GraphBuilder, node: Node, low: str, high: str) -> str:
    """Whether X is above the lower bound; where that is 0, as in ReLU6, whether Y is not 0, which takes less time."""
    floor, ceiling = (b.constants.get(name) for name in (low, high))
    from_zero = floor is not None and not np.any(floor)
    if from_zero and (not high or (ceiling is not None and np.all(ceiling > 0))):
        return b.op("Cast", node.outputs[0], to=BOOL)
    return b.op("Greater", node.inputs[0], low)


def softmax(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = Y (dY - sum(dY Y)) over the axis."""
    y, axis = node.outputs[0], node.attributes["axis"]
    weighted = b.op("Mul", dy[0], y)
    shape = b.model.values[y].shape if y in b.model.values else ()
    if axis in (-1, len(shape) - 1) and shape and isinstance(shape[-1], int):
        sums = b.op("Reshape", b.op("ReduceSum", weighted, b.ints(-1), keepdims=0), b.ints(-1), allowzero=0)
        rows = b.op("Reshape", dy[0], b.ints(1, -1, shape[-1]), allowzero=0)
        centred = Rows.of(b, shape[:-1], sums).affine(rows, mean=sums)
        return [b.op("Mul", y, b.like(centred, y))]
    sums = b.op("ReduceSum", weighted, b.ints(axis), keepdims=1)
    return [b.op("Sub", weighted, b.op("Mul", y, sums))]


def log_softmax(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY - exp(Y) sum(dY) over the axis."""
    sums = b.op("ReduceSum", dy[0], b.ints(node.attributes["axis"]), keepdims=1)
    return [b.op("Sub", dy[0], b.op("Mul", b.op("Exp", node.outputs[0]), sums))]


def _positive(b: GraphBuilder, x: str) -> str:
    return b.op("Greater", x, b.scalar(0.0))


def _masked(b: GraphBuilder, gradient: str, mask: str) -> str:
    return b.op("Mul", gradient, b.op("Cast", mask, to=FLOAT))


def _complement_of_square(b: GraphBuilder, y: str) -> str:
    return b.op("Sub", b.scalar(1.0), b.op("Mul", y, y))


def _exponential_below_zero(b: GraphBuilder, node: Node, dy: str, *, rise: float, offset: float) -> str:
    rising = dy if rise == 1.0 else b.op("Mul", dy, b.scalar(rise))
    falling = b.op("Mul", dy, b.op("Add", node.outputs[0], b.scalar(offset)))
    return b.op("Where", _positive(b, node.inputs[0]), rising, falling)
