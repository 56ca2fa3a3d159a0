"""Gradient rules of arithmetic: broadcasting in every position, learned operands, float edges, both engines."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_cases import Case, after_dense, assert_gradients
from onnx_graphs import gradients, model_of

from coordinator.compile import compile_model

# Shapes of a parameter that broadcast against [batch, 2, 3]: in front, behind, in the middle, everywhere.
STRETCHED = [(3,), (1,), (2, 1), (1, 3), (1, 1, 1), (1, 2, 3)]

UNARY = {
    "Abs": "h",
    "Acos": "t",
    "Acosh": "p",
    "Asin": "t",
    "Asinh": "h",
    "Atan": "h",
    "Atanh": "t",
    "Cos": "h",
    "Cosh": "t",
    "Exp": "t",
    "Log": "p",
    "Neg": "h",
    "Reciprocal": "p",
    "Sin": "h",
    "Sinh": "t",
    "Sqrt": "p",
    "Tan": "t",
}
"""What each is applied to: h any number, t inside of (-1, 1), p above 1."""

ONE, POINT_SIX = np.float32(1), np.float32(0.6)


def unary(op: str, argument: str) -> Case:
    text = f"h = MatMul(x, w); a = Sin(h); t = Mul(a, c); s = Softplus(h); p = Add(s, one); y = {op}({argument})"
    return Case(op, text, {"w": (4, 5)}, (4,), {"c": POINT_SIX, "one": ONE})


def both_sides(op: str, shape: tuple[int, ...]) -> list[Case]:
    """``op`` with a stretched, computed operand on either side; away from 0, because of Div."""
    text = "k = MatMul(x, v); h = Softplus(k); m = Abs(w); p = Add(m, one); y = "
    parameters = {"v": (3, 3), "w": shape}
    label = f"{op}-{'x'.join(map(str, shape))}"
    return [
        Case(f"{label}-right", f"{text}{op}(h, p)", parameters, (2, 3), {"one": ONE}),
        Case(f"{label}-left", f"{text}{op}(p, h)", parameters, (2, 3), {"one": ONE}),
    ]


CASES = [
    *(unary(op, argument) for op, argument in UNARY.items()),
    *(case for op in ("Add", "Sub", "Mul", "Div") for shape in STRETCHED for case in both_sides(op, shape)),
    *(case for op in ("Max", "Min", "Sum") for shape in ((3,), (2, 1)) for case in both_sides(op, shape)),
    # both operands stretched: [batch, 1, 3] against [1, 2, 1]
    *(
        Case(f"{op}-crosswise", f"h = MatMul(x, v); y = {op}(h, w)", {"v": (3, 3), "w": (1, 2, 1)}, (1, 3))
        for op in ("Add", "Mul")
    ),
    after_dense("Sub-learned-shift", "y = Sub(h, b)", b=(5,)),
    after_dense("Sub-learned-from", "y = Sub(b, h)", b=(1, 5)),
    after_dense("Div-learned-scale", "y = Div(h, b)", b=(5,)),
    after_dense("Div-of-learned", "s = Softplus(h); y = Div(b, s)", b=(5,)),
    after_dense("Sum-one", "y = Sum(h)"),
    after_dense("Sum-many", "y = Sum(h, b, x, h)", b=(5,)),
    after_dense("Mean-stretched", "z = Tanh(h); y = Mean(z, q, h)", q=(1, 1)),
    after_dense("Mean-many", "y = Mean(h, b, x)", b=(1,)),
    after_dense("Max-one", "y = Max(h)"),
    after_dense("Max-many", "n = Neg(h); m = Abs(b); y = Max(h, m, n, x)", b=(5,)),
    after_dense("Min-many", "n = Neg(h); m = Mul(b, b); y = Min(h, m, n)", b=(1, 5)),
    Case("Max-constant", "h = MatMul(x, w); y = Max(h, c)", {"w": (4, 5)}, (4,), {"c": np.float32(0.2)}),
    *(
        Case(f"Pow-{label}", "h = MatMul(x, w); y = Pow(h, e)", {"w": (4, 5)}, (4,), {"e": exponent})
        for label, exponent in (
            ("2", np.float32(2)),
            ("3", np.float32(3)),
            ("1", np.float32(1)),
            ("0", np.float32(0)),
            ("int", np.array(4)),
            ("minus", np.float32(-1)),
        )
    ),
    Case(
        "Pow-fraction",
        "h = MatMul(x, w); s = Softplus(h); y = Pow(s, e)",
        {"w": (4, 5)},
        (4,),
        {"e": np.array([0.5, 1.5, 2.0, -0.3, 0.0], np.float32)},
    ),
    after_dense("Pow-computed", "s = Softplus(h); e = Tanh(h); y = Pow(s, e)"),
    after_dense("Pow-stretched-exponent", "s = Softplus(h); e = Tanh(q); y = Pow(s, e)", q=(1,)),
    after_dense("Pow-stretched-base", "s = Softplus(q); y = Pow(s, h)", q=(5,)),
    Case("Pow-of-weight", "s = Pow(w, two); y = MatMul(x, s)", {"w": (4, 5)}, (4,), {"two": np.float32(2)}),
    after_dense("Mod", "s = Softplus(q); t = Add(s, s); y = Mod<fmod=1>(h, t)", q=(5,)),
    after_dense("Where-computed", "c = Greater(h, x); n = Neg(h); y = Where(c, h, n)"),
    after_dense("Where-learned", "c = Less(h, x); y = Where(c, b, h)", b=(5,)),
    after_dense("Where-learned-else", "c = GreaterOrEqual(h, x); d = Not(c); y = Where(d, h, b)", b=(1,)),
    Case(
        "Where-stretched",
        "h = MatMul(x, w); t = Tanh(h); y = Where(c, t, v)",
        {"w": (3, 3), "v": (2, 1)},
        (1, 3),
        {"c": np.array([[True], [False]])},
    ),
    after_dense("Cast-to-double-and-back", "d = Cast<to=11>(h); e = Add(d, d); y = Cast<to=1>(e)"),
    after_dense("Cast-mask", "c = Greater(h, x); m = Cast<to=1>(c); y = Mul(m, h)"),
    *(after_dense(f"{op}-passes-nothing", f"s = {op}(h); y = Mul(s, h)") for op in ("Ceil", "Floor", "Round", "Sign")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


def gradient_of_shift(text: str, x: list[float], **constants: float) -> np.ndarray:
    """d(mean squared error)/dw of ``text``, which makes y of h = x + w, at w = 0; dY is 1 where y is 0."""
    width = len(x)
    arrays = {"w": np.zeros(width, np.float32), **{k: np.float32(v) for k, v in constants.items()}}
    model = model_of(f"h = Add(x, w); {text}", arrays, inputs={"x": ("batch", width)})
    bundle = compile_model(model, loss="mean_squared_error", name="edge", verify=False)
    target = np.full((1, width), -width / 2, np.float32)
    return gradients(bundle, {"x": np.array([x], np.float32), "target": target})[1]["w"]


def test_powers_at_zero_have_no_undefined_product() -> None:
    np.testing.assert_array_equal(gradient_of_shift("y = Pow(h, e)", [0.0, 0.0], e=2.0), 0)
    np.testing.assert_array_equal(gradient_of_shift("y = Pow(h, e)", [0.0, 0.0], e=0.0), 0)
    np.testing.assert_array_equal(gradient_of_shift("y = Pow(h, e)", [0.0, 0.0], e=1.0), 1)
    # d(0^e)/de at e > 0 is 0, not 0 * log 0; here the exponent is computed
    np.testing.assert_array_equal(
        gradient_of_shift("e = Add(h, one); z = Sub(h, h); y = Pow(z, e)", [0.5, 2], one=1), 0
    )


def test_ties_between_operands_go_to_one_of_them_only() -> None:
    np.testing.assert_array_equal(gradient_of_shift("y = Max(h, h)", [0.0, 0.0]), 1)
    np.testing.assert_array_equal(gradient_of_shift("z = Mul(h, one); y = Min(h, z, h)", [0.0, 0.0], one=1), 1)


def test_absolute_values_have_slope_zero_at_zero() -> None:
    np.testing.assert_array_equal(gradient_of_shift("y = Abs(h)", [0.0, -0.0]), 0)
