"""Gradients of elementwise arithmetic: computed in the broadcast shape, then summed over what was broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.broadcast import reduced
from coordinator.compile.rules.rule import Gradients, Wanted

__all__ = [
    "absolute",
    "acos",
    "acosh",
    "add",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "cast",
    "cos",
    "cosh",
    "div",
    "exp",
    "extreme",
    "log",
    "mean",
    "mod",
    "mul",
    "neg",
    "power",
    "reciprocal",
    "sin",
    "sinh",
    "sqrt",
    "step",
    "sub",
    "tan",
    "where",
]


def add(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dB = dY; also for Sum, which takes any number of operands."""
    return [reduced(b, node, slot, dy[0]) if wanted[slot] else None for slot in range(len(node.inputs))]


def mean(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / n for each of n operands."""
    share = b.op("Mul", dy[0], b.scalar(1 / len(node.inputs)))
    return [reduced(b, node, slot, share) if wanted[slot] else None for slot in range(len(node.inputs))]


def sub(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY, dB = -dY."""
    return [
        reduced(b, node, 0, dy[0]) if wanted[0] else None,
        b.op("Neg", reduced(b, node, 1, dy[0])) if wanted[1] else None,
    ]


def mul(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY B, dB = dY A."""
    left, right = node.inputs
    return [
        reduced(b, node, 0, b.op("Mul", dy[0], right)) if wanted[0] else None,
        reduced(b, node, 1, b.op("Mul", dy[0], left)) if wanted[1] else None,
    ]


def div(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY / B, dB = -dY Y / B."""
    scaled = b.op("Div", dy[0], node.inputs[1])
    return [
        reduced(b, node, 0, scaled) if wanted[0] else None,
        b.op("Neg", reduced(b, node, 1, b.op("Mul", scaled, node.outputs[0]))) if wanted[1] else None,
    ]


def mod(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY, dB = -dY trunc(A / B), with trunc(A / B) = (A - Y) / B (floats have fmod=1)."""
    left, right = node.inputs
    whole = b.op("Div", b.op("Sub", left, node.outputs[0]), right)
    return [
        reduced(b, node, 0, dy[0]) if wanted[0] else None,
        b.op("Neg", reduced(b, node, 1, b.op("Mul", dy[0], whole))) if wanted[1] else None,
    ]


def power(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY E X^(E-1), dE = dY Y log X; where X^(E-1) or log X is undefined and E or Y is 0, the product is 0."""
    gradient = b.op("Mul", dy[0], _slope_of_power(b, node)) if wanted[0] else ""
    gradients: list[str | None] = [reduced(b, node, 0, gradient) if wanted[0] else None]
    if wanted[1]:
        base = node.inputs[0]
        safe = b.op("Where", b.op("Greater", base, b.scalar(0.0)), base, b.scalar(1.0))
        grown = b.op("Mul", node.outputs[0], b.op("Log", safe))
        gradients.append(reduced(b, node, 1, b.op("Mul", dy[0], grown)))
    return gradients


def _slope_of_power(b: GraphBuilder, node: Node) -> str:
    base, exponent = node.inputs
    known = b.constants.get(exponent)
    if known is None:
        wide = exponent
        if not _is_float32(b, exponent):
            wide = b.op("Cast", exponent, to=1)
        lower = b.op("Sub", wide, b.scalar(1.0))
        slope = b.op("Mul", wide, b.op("Pow", base, lower))
        return b.op("Where", b.op("Equal", wide, b.scalar(0.0)), b.scalar(0.0), slope)
    values = known.astype(np.float32)
    if values.size and np.all(values == 2):
        return b.op("Mul", base, b.scalar(2.0))
    if values.size and np.all(values == 3):
        return b.op("Mul", b.op("Mul", base, base), b.scalar(3.0))
    # An exponent of 0 has slope 0 everywhere: X^0 instead of X^-1 keeps it finite at X = 0.
    lower = b.constant(np.where(values == 0, np.float32(0), values - np.float32(1)).astype(np.float32))
    return b.op("Mul", b.constant(values), b.op("Pow", base, lower))


def _is_float32(b: GraphBuilder, name: str) -> bool:
    return name not in b.model.values or b.model.values[name].dtype == "float32"


def extreme(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dY shared evenly by the operands that equal Y; for Max and Min."""
    masks = [b.op("Cast", b.op("Equal", name, node.outputs[0]), to=1) for name in node.inputs]
    share = b.op("Div", dy[0], b.op("Sum", *masks)) if len(masks) > 1 else dy[0]
    return [
        reduced(b, node, slot, b.op("Mul", share, mask)) if wanted[slot] else None for slot, mask in enumerate(masks)
    ]


def where(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dA = dY where the condition holds, dB = dY elsewhere."""
    condition, nothing = node.inputs[0], b.scalar(0.0)
    return [
        None,
        reduced(b, node, 1, b.op("Where", condition, dy[0], nothing)) if wanted[1] else None,
        reduced(b, node, 2, b.op("Where", condition, nothing, dy[0])) if wanted[2] else None,
    ]


def cast(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY in the type of X, from float to float."""
    codes = {"float16": 10, "float32": 1, "float64": 11}
    value = b.model.values.get(node.inputs[0])
    source = codes[value.dtype] if value is not None else 1
    return [dy[0] if source == node.attributes["to"] else b.op("Cast", dy[0], to=source)]


def step(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Nothing passes: piecewise constant; for Ceil, Floor, Hardmax, Round and Sign."""
    return [None]


def neg(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = -dY."""
    return [b.op("Neg", dy[0])]


def sqrt(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / (2 Y)."""
    return [b.op("Div", b.op("Mul", dy[0], b.scalar(0.5)), node.outputs[0])]


def reciprocal(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = -dY Y^2."""
    y = node.outputs[0]
    return [b.op("Neg", b.op("Mul", b.op("Mul", dy[0], y), y))]


def exp(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY Y."""
    return [b.op("Mul", dy[0], node.outputs[0])]


def log(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / X."""
    return [b.op("Div", dy[0], node.inputs[0])]


def absolute(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY sign(X)."""
    return [b.op("Mul", dy[0], b.op("Sign", node.inputs[0]))]


def sin(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY cos X."""
    return [b.op("Mul", dy[0], b.op("Cos", node.inputs[0]))]


def cos(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = -dY sin X."""
    return [b.op("Neg", b.op("Mul", dy[0], b.op("Sin", node.inputs[0])))]


def tan(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY (1 + Y^2)."""
    return [b.op("Mul", dy[0], _square_plus(b, node.outputs[0], 1.0))]


def sinh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY cosh X."""
    return [b.op("Mul", dy[0], b.op("Cosh", node.inputs[0]))]


def cosh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY sinh X."""
    return [b.op("Mul", dy[0], b.op("Sinh", node.inputs[0]))]


def asin(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / sqrt(1 - X^2)."""
    return [b.op("Div", dy[0], b.op("Sqrt", b.op("Neg", _square_plus(b, node.inputs[0], -1.0))))]


def acos(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = -dY / sqrt(1 - X^2)."""
    return [b.op("Neg", gradient) for gradient in asin(b, node, dy, wanted) if isinstance(gradient, str)]


def atan(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / (1 + X^2)."""
    return [b.op("Div", dy[0], _square_plus(b, node.inputs[0], 1.0))]


def asinh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / sqrt(X^2 + 1)."""
    return [b.op("Div", dy[0], b.op("Sqrt", _square_plus(b, node.inputs[0], 1.0)))]


def acosh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / sqrt(X^2 - 1)."""
    return [b.op("Div", dy[0], b.op("Sqrt", _square_plus(b, node.inputs[0], -1.0)))]


def atanh(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY / (1 - X^2)."""
    return [b.op("Div", dy[0], b.op("Neg", _square_plus(b, node.inputs[0], -1.0)))]


def _square_plus(b: GraphBuilder, x: str, offset: float) -> str:
    return b.op("Add", b.op("Mul", x, x), b.scalar(offset))
