"""Gradient rules of activations: against central differences, at float edges, and on both engines."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_cases import Case, after_dense, assert_gradients
from onnx_graphs import gradients, model_of

from coordinator.compile import compile_model

SIMPLE = {
    "Relu": "",
    "LeakyRelu": "<alpha=0.3>",
    "Elu": "<alpha=0.7>",
    "Selu": "",
    "Celu": "<alpha=1.7>",
    "ThresholdedRelu": "<alpha=0.6>",
    "Sigmoid": "",
    "HardSigmoid": "<alpha=0.3, beta=0.4>",
    "Tanh": "",
    "Erf": "",
    "HardSwish": "",
    "Mish": "",
    "Softplus": "",
    "Softsign": "",
}

GELU = "a{k} = Mul({x}, r); e{k} = Erf(a{k}); s{k} = Add(e{k}, one); t{k} = Mul({x}, s{k}); {y} = Mul(t{k}, half)"
NUMBERS = {"r": np.float32(0.5) ** np.float32(0.5), "one": np.float32(1), "half": np.float32(0.5)}


def gelu(label: str, text: str, *steps: tuple[str, str]) -> Case:
    written_out = ";".join(GELU.format(k=k, x=x, y=y) for k, (x, y) in enumerate(steps))
    return Case(label, f"h = MatMul(x, w); {text}", {"w": (4, 5)}, (4,), NUMBERS, f"h = MatMul(x, w); {written_out}")


CASES = [
    *(after_dense(op, f"y = {op}{attributes}(h)") for op, attributes in SIMPLE.items()),
    *(after_dense(f"{op}-defaults", f"y = {op}(h)") for op in ("LeakyRelu", "Elu", "Celu", "HardSigmoid")),
    after_dense("Gelu-tanh", 'y = Gelu<approximate="tanh">(h)'),
    gelu("Gelu", "y = Gelu(h)", ("h", "y")),
    gelu("Gelu-twice", "g = Gelu(h); y = Gelu(g)", ("h", "g"), ("g", "y")),
    after_dense("Mish-of-weight", "m = Mish(w); y = MatMul(h, m)", w=(5, 2)),
    after_dense("PRelu-each", "y = PRelu(h, slope)", slope=(5,)),
    after_dense("PRelu-one", "y = PRelu(h, slope)", slope=(1,)),
    Case("PRelu-channels", "h = Conv(x, w); y = PRelu(h, slope)", {"w": (3, 2, 2, 2), "slope": (3, 1, 1)}, (2, 4, 3)),
    Case("PRelu-of-input", "p = PRelu(x, slope); y = MatMul(p, w)", {"w": (4, 2), "slope": (1, 4)}, (4,)),
    *(
        Case(f"Clip-{label}", f"h = MatMul(x, w); y = Clip({arguments})", {"w": (4, 5)}, (4,), bounds)
        for label, arguments, bounds in (
            ("both", "h, low, high", {"low": np.float32(-1), "high": np.float32(0.8)}),
            ("below", "h, low", {"low": np.float32(-0.5)}),
            ("above", "h, , high", {"high": np.float32(0.3)}),
            ("nothing", "h", {}),
        )
    ),
    Case(
        "Clip-learned-bounds",
        "h = MatMul(x, w); a = ReduceSum<keepdims=0>(low); b = ReduceMax<keepdims=0>(high); t = Mul(b, b);"
        "y = Clip(h, a, t)",
        {"w": (4, 9), "low": (2,), "high": (3,)},
        (4,),
    ),
    *(
        Case(f"{op}-axis{axis}", f"h = MatMul(x, w); y = {op}<axis={axis}>(h)", {"w": (4, 5)}, (3, 4))
        for op in ("Softmax", "LogSoftmax")
        for axis in (-1, 1)
    ),
    after_dense("Softmax-of-weight", "p = Softmax<axis=0>(w); y = MatMul(h, p)", w=(5, 2)),
    after_dense("Hardmax-passes-nothing", "m = Hardmax<axis=1>(h); y = Mul(m, h)"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


EDGES = np.array([[-3e4, -100.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 100.0, 3e4]], np.float32)


@pytest.mark.parametrize("op", [*SIMPLE, "Gelu", "Softmax", "LogSoftmax"])
def test_gradients_are_finite_far_out_and_at_zero(op: str) -> None:
    text = f"h = Mul(x, w); y = {op}(h)"
    model = model_of(text, {"w": np.ones(9, np.float32)}, inputs={"x": ("batch", 9)})
    bundle = compile_model(model, loss="mean_squared_error", name=op, verify=False)
    _, found = gradients(bundle, {"x": EDGES, "target": np.full((1, 9), 0.25, np.float32)})
    assert np.isfinite(found["w"]).all()
