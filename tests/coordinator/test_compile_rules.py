"""Every gradient rule against central differences in float64, by an evaluator that knows nothing of our graphs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradient_cases import Case, after_dense, assert_gradients
from onnx_graphs import nodes_of

from coordinator.compile.rules import RULES


def conv(label: str, weight: tuple[int, ...], sizes: tuple[int, ...], attributes: str = "") -> Case:
    """A convolution behind a pointwise one, so that both of its operands have a gradient."""
    point = (weight[1], 2, *(1 for _ in sizes))
    text = (
        f"h = Conv(x, point); y = Conv<{attributes}>(h, w, b)"
        if attributes
        else "h = Conv(x, point); y = Conv(h, w, b)"
    )
    return Case(f"Conv-{label}", text, {"point": point, "w": weight, "b": weight[:1]}, (2, *sizes))


def pool(label: str, sizes: tuple[int, ...], attributes: str) -> Case:
    point = (3, 2, *(1 for _ in sizes))
    return Case(f"MaxPool-{label}", f"h = Conv(x, point); y = MaxPool<{attributes}>(h)", {"point": point}, (2, *sizes))


CASES = [
    Case("Gemm", "y = Gemm(x, w, b)", {"w": (4, 3), "b": (3,)}, (4,)),
    Case("Gemm-transB", "y = Gemm<transB=1>(x, w, b)", {"w": (3, 4), "b": (1, 3)}, (4,)),
    Case("Gemm-scaled", "y = Gemm<alpha=0.5, beta=-2.0>(x, w, b)", {"w": (4, 3), "b": (1, 1)}, (4,)),
    Case("Gemm-no-bias", "y = Gemm<alpha=3.0, transB=1>(x, w)", {"w": (3, 4)}, (4,)),
    Case(
        "Gemm-weight-first",
        "xt = Transpose<perm=[1, 0]>(x); t = Gemm<transA=1>(w, xt, b); y = Transpose<perm=[1, 0]>(t)",
        {"w": (4, 3), "b": (3, 1)},
        (4,),
    ),
    Case(
        "Gemm-both-transposed",
        "h = Gemm(x, v); ht = Transpose<perm=[1, 0]>(h); y = Gemm<transA=1, transB=1>(ht, w)",
        {"v": (4, 5), "w": (3, 5)},
        (4,),
    ),
    Case("MatMul", "y = MatMul(x, w)", {"w": (4, 3)}, (4,)),
    Case("MatMul-stack", "h = MatMul(x, w); y = MatMul(h, v)", {"w": (4, 3), "v": (3, 2)}, (5, 4)),
    Case(
        "MatMul-stacks",
        "h = MatMul(x, w); t = Transpose<perm=[0, 2, 1]>(x); y = MatMul(h, t)",
        {"w": (4, 4)},
        (3, 4),
    ),
    Case("MatMul-broadcast", "h = MatMul(x, w); y = MatMul(v, h)", {"w": (4, 3), "v": (2, 5)}, (5, 4)),
    Case("MatMul-column", "h = MatMul(x, w); y = MatMul(h, v)", {"w": (4, 3), "v": (3,)}, (2, 4)),
    Case("MatMul-row", "h = MatMul(x, w); y = MatMul(v, h)", {"w": (4, 3), "v": (2,)}, (2, 4)),
    conv("plain", (4, 3, 3, 3), (5, 6)),
    conv("one-channel", (4, 1, 3, 3), (6, 5), "pads=[1, 1, 1, 1]"),
    conv("many-channels", (3, 9, 3, 2), (5, 5), "pads=[1, 0, 1, 1]"),
    conv("strided", (3, 4, 3, 3), (8, 7), "strides=[2, 3], pads=[1, 0, 0, 1]"),
    conv("dilated", (2, 5, 2, 3), (7, 7), "dilations=[3, 2], strides=[1, 2]"),
    conv("same-upper", (2, 3, 4, 3), (6, 5), 'auto_pad="SAME_UPPER", strides=[2, 2]'),
    conv("same-lower", (2, 3, 4, 3), (6, 5), 'auto_pad="SAME_LOWER"'),
    conv("pointwise", (5, 6, 1, 1), (3, 4)),
    conv("pointwise-strided", (5, 2, 1, 1), (5, 4), "strides=[2, 2]"),
    conv("1d", (3, 4, 3), (9,), "strides=[2], pads=[1, 1]"),
    conv("3d", (2, 4, 2, 3, 2), (3, 4, 3)),
    pool("plain", (4, 6), "kernel_shape=[2, 2], strides=[2, 2]"),
    pool("odd", (5, 7), "kernel_shape=[2, 2], strides=[2, 2]"),
    pool("ceil", (5, 7), "kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1"),
    pool("overlapping", (6, 6), "kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]"),
    pool("dilated", (6, 6), "kernel_shape=[2, 2], strides=[2, 2], dilations=[2, 2]"),
    pool("apart", (7, 7), "kernel_shape=[2, 2], strides=[3, 3]"),
    pool("1d", (9,), "kernel_shape=[2], strides=[2]"),
    pool("3d-overlapping", (4, 4, 3), "kernel_shape=[2, 2, 2]"),
    *(after_dense(op, f"y = {op}(h)") for op in ("Relu", "Tanh", "Sigmoid", "Softplus", "Neg", "Identity")),
    *(after_dense(f"{op}-same", f"y = {op}(h, x)") for op in ("Add", "Sub", "Mul")),
    after_dense("Add-bias", "y = Add(h, b)", b=(5,)),
    Case("Add-wider", "h = MatMul(x, w); y = Add(b, h)", {"w": (4, 3), "b": (1, 2, 3)}, (1, 4)),
    after_dense("Mul-scale", "y = Mul(b, h)", b=(1, 5)),
    after_dense("Mul-itself", "y = Mul(h, h)"),
    after_dense("Sub-from", "t = Tanh(h); u = Mul(t, b); y = Sub(u, h)", b=(5,)),
    after_dense("Sub-stretched", "t = MatMul(h, v); y = Sub(t, h)", v=(5, 1)),
    after_dense("Div", "s = Softplus(h); y = Div(h, s)"),
    after_dense("Div-stretched", "s = Softplus(h); c = MatMul(s, v); d = Mul(c, c); y = Div(h, d)", v=(5, 1)),
    Case("Flatten", "h = Conv(x, w); y = Flatten(h)", {"w": (2, 3, 2, 2)}, (3, 3, 4)),
    Case("Reshape", "h = MatMul(x, w); y = Reshape(h, s)", {"w": (4, 6)}, (4,), {"s": [0, 2, -1]}),
    Case("Reshape-weight", "m = Reshape(w, s); y = MatMul(x, m)", {"w": (12,)}, (4,), {"s": [4, 3]}),
    Case(
        "Reshape-rows",
        "r = Reshape(x, s); h = MatMul(r, w); y = Reshape(h, t)",
        {"w": (4, 2)},
        (5, 4),
        {"s": [-1, 4], "t": [-1, 10]},
    ),
    Case("Squeeze", "h = MatMul(x, w); y = Squeeze(h, a)", {"w": (4, 1)}, (3, 4), {"a": [2]}),
    Case("Unsqueeze", "h = MatMul(x, w); y = Unsqueeze(h, a)", {"w": (4, 2)}, (4,), {"a": [1, -1]}),
    Case("Transpose", "h = MatMul(x, w); y = Transpose<perm=[0, 2, 3, 1]>(h)", {"w": (2, 4)}, (3, 5, 2)),
    Case("Transpose-weight", "t = Transpose(w); y = MatMul(x, t)", {"w": (3, 4)}, (4,)),
]


def all_cases() -> Iterator[Case]:
    """The CASES of every file of this kind."""
    for path in sorted(Path(__file__).parent.glob("test_compile_rules*.py")):
        yield from getattr(importlib.import_module(path.stem), "CASES", ())


def test_every_rule_has_a_case() -> None:
    assert set(RULES) <= {n.op_type for case in all_cases() for n in nodes_of(case.text)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)
