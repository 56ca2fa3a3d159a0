"""Gradient rules of reductions, products and Einsum: axes in every form, ties, zeros, both engines."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_cases import Case, after_dense, assert_gradients
from onnx_graphs import gradients, model_of

from coordinator.compile import compile_model

REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
    "ReduceLogSum",
)


def reduced(op: str, label: str, text: str, **axes: list[int]) -> Case:
    """A reduction of positive numbers [batch, 2, 3]."""
    return Case(f"{op}-{label}", f"k = MatMul(x, w); h = Softplus(k); {text}", {"w": (4, 3)}, (2, 4), dict(axes))


CASES = [
    *(reduced(op, "last", f"y = {op}<keepdims=1>(h, a)", a=[-1]) for op in REDUCTIONS),
    *(reduced(op, "two-dropped", f"y = {op}<keepdims=0>(h, a)", a=[2, 1]) for op in REDUCTIONS),
    *(reduced(op, "all", f"r = {op}<keepdims=0>(h); y = Mul(h, r)") for op in ("ReduceSum", "ReduceMean", "ReduceL2")),
    *(reduced(op, "batch", f"r = {op}(h, a); y = Sub(h, r)", a=[0]) for op in ("ReduceMean", "ReduceMax", "ReduceSum")),
    *(reduced(op, "none", f"y = {op}<noop_with_empty_axes=1>(h)") for op in ("ReduceSum", "ReduceLogSumExp")),
    Case(
        "ReduceL2-of-weight",
        "n = ReduceL2<keepdims=1>(w, a); v = Div(w, n); y = MatMul(x, v)",
        {"w": (4, 3)},
        (4,),
        {"a": [0]},
    ),
    after_dense("ReduceMax-gates", "m = ReduceMax<keepdims=1>(h); y = Div(h, m)"),
    # Gemm and MatMul in the forms that the first file leaves out
    Case(
        "Gemm-all-flags",
        "t = Transpose<perm=[1, 0]>(x); y = Gemm<alpha=0.5, beta=-1.5, transA=1, transB=1>(t, w, b)",
        {"w": (3, 4), "b": (3,)},
        (4,),
    ),
    Case("Gemm-computed-addend", "h = MatMul(x, w); y = Gemm<beta=2.0>(x, w, h)", {"w": (4, 3)}, (4,)),
    Case("MatMul-both-1d", "s = MatMul(u, v); y = Mul(x, s)", {"u": (3,), "v": (3,)}, (4,)),
    Case("MatMul-row-of-stacks", "h = MatMul(x, w); y = MatMul(v, h)", {"w": (4, 3), "v": (2,)}, (3, 2, 4)),
    Case("MatMul-column-of-stacks", "h = MatMul(x, w); y = MatMul(h, v)", {"w": (2, 4, 3), "v": (3,)}, (2, 5, 4)),
    Case("MatMul-stretched-left", "y = MatMul(w, x)", {"w": (1, 1, 3, 4)}, (5, 4, 2)),
    Case("MatMul-stretched-right", "y = MatMul(x, w)", {"w": (3, 4, 2)}, (1, 5, 4)),
    Case("MatMul-stretched-both", "y = MatMul(x, w)", {"w": (1, 3, 4, 2)}, (2, 1, 5, 4)),
    Case(
        "MatMul-heads",
        "h = MatMul(x, w); t = Transpose<perm=[0, 1, 3, 2]>(h); y = MatMul(h, t)",
        {"w": (4, 4)},
        (2, 3, 4),
    ),
    *(
        Case(f"Einsum-{label}", f'h = MatMul(x, w); y = Einsum<equation="{equation}">({operands})', parameters, x)
        for label, equation, operands, parameters, x in (
            ("matmul", "bi,ij->bj", "h, v", {"w": (4, 3), "v": (3, 5)}, (4,)),
            ("implicit", "bi,ij", "h, v", {"w": (4, 3), "v": (3, 5)}, (4,)),
            ("bilinear", "bi,kij,bj->bk", "h, v, x", {"w": (4, 3), "v": (2, 3, 4)}, (4,)),
            ("attention", "bhqd,bhkd->bhqk", "h, h", {"w": (4, 3)}, (2, 3, 4)),
            ("turned", "bij->bji", "h", {"w": (4, 3)}, (2, 4)),
            ("summed", "bij->bj", "h", {"w": (4, 3)}, (2, 4)),
            ("lonely-letter", "bi,jk->bj", "h, v", {"w": (4, 3), "v": (2, 5)}, (4,)),
            ("ellipsis", "...i,ij->...j", "h, v", {"w": (4, 3), "v": (3, 2)}, (2, 5, 4)),
            ("letter-stretched", "bnij,njk->bnik", "h, v", {"w": (4, 3), "v": (1, 3, 2)}, (2, 5, 4)),
            ("diagonal", "bii->bi", "h", {"w": (3, 3)}, (3, 3)),
            ("trace", "bii,ik->bk", "h, v", {"w": (3, 3), "v": (3, 2)}, (3, 3)),
            ("outer", "bi,bj->bij", "h, x", {"w": (4, 3)}, (4,)),
            ("weight-diagonal", "bi,ii->bi", "h, v", {"w": (4, 3), "v": (3, 3)}, (4,)),
            ("spaces", " b i , i j -> b j ", "h, v", {"w": (4, 3), "v": (3, 5)}, (4,)),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


def slopes(op: str, x: list[float]) -> list[float]:
    """d(op(x + w))/dw at w = 0, from a loss whose slope there is 2 (op(x) - target) = 1."""
    model = model_of(
        f"h = Add(x, w); y = {op}<keepdims=1>(h, a)",
        {"w": np.zeros(len(x), np.float32), "a": np.array([1])},
        inputs={"x": ("batch", len(x))},
    )
    bundle = compile_model(model, loss="mean_squared_error", name=op, verify=False)
    values = {
        "ReduceMax": max(x),
        "ReduceMin": min(x),
        "ReduceProd": float(np.prod(x)),
        "ReduceL1": 0.0,
        "ReduceL2": 0.0,
    }
    batch = {"x": np.array([x], np.float32), "target": np.array([values[op] - 0.5], np.float32)}
    return [float(v) for v in gradients(bundle, batch)[1]["w"]]


def test_products_with_zeros_have_the_slope_of_the_others() -> None:
    assert slopes("ReduceProd", [2.0, 0.0, 3.0]) == [0, 6, 0]
    assert slopes("ReduceProd", [0.0, 0.0, 3.0]) == [0, 0, 0]
    assert slopes("ReduceProd", [2.0, -1.0, 3.0]) == [-3, 6, -2]


def test_ties_share_the_slope() -> None:
    assert slopes("ReduceMax", [2.0, 1.0, 2.0, 0.0]) == [0.5, 0, 0.5, 0]
    assert slopes("ReduceMin", [1.0, 1.0]) == [0.5, 0.5]


def test_norms_of_nothing_have_slope_zero() -> None:
    assert slopes("ReduceL2", [0.0, 0.0]) == [0, 0]
    assert slopes("ReduceL1", [0.0, 0.0]) == [0, 0]
