"""Operators without a rule of ours: onnx-ad stands in for the node, with a warning, or the model is refused."""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import pytest
from gradient_cases import Case, after_dense, assert_gradients
from onnx_graphs import model_of

from coordinator.compile import compile_model, describe
from coordinator.compile.rules import RULES
from edge_sdk.errors import CompileError

RNG = np.random.default_rng(0)

COMPILED = [
    # text, parameters, constants, one x, operator, engines
    ("h = Conv(x, w); y = LRN<size=3, alpha=0.5>(h)", {"w": (6, 2, 3, 3)}, {}, (2, 5, 5), "LRN", 2),
    ("h = Conv(x, w); y = LRN<size=5, bias=2.0>(h)", {"w": (6, 2, 1, 3)}, {}, (2, 1, 5), "LRN", 2),
    (
        "h = Conv(x, w); y = MeanVarianceNormalization<axes=[2, 3]>(h)",
        {"w": (6, 2, 3, 3)},
        {},
        (2, 5, 5),
        "MeanVarianceNormalization",
        2,
    ),
    ("h = MatMul(x, w); y = LpNormalization<p=1>(h)", {"w": (5, 6)}, {}, (5,), "LpNormalization", 2),
    (
        "l = Flatten(x); t = MatMul(l, w); th = Reshape(t, shape); g = Tanh(th); y = GridSample(x, g)",
        {"w": (50, 32)},
        {"shape": [-1, 4, 4, 2]},
        (2, 5, 5),
        "GridSample",
        1,
    ),
    (
        "o = Conv(x, offsets); y = DeformConv(x, w, o, bias)",
        {"offsets": (18, 2, 3, 3), "w": (4, 2, 3, 3), "bias": (4,)},
        {},
        (2, 5, 5),
        "DeformConv",
        1,
    ),
    ("h = MatMul(x, w); y = CenterCropPad<axes=[1]>(h, size)", {"w": (5, 8)}, {"size": [4]}, (5,), "CenterCropPad", 1),
    ("h = MatMul(x, w); y = Shrink<lambd=0.3, bias=0.1>(h)", {"w": (5, 6)}, {}, (5,), "Shrink", 2),
]


def compiled(text: str, constants: dict[str, Any], x: tuple[int, ...], **options: Any) -> Any:
    model = model_of(text, constants, inputs={"x": ("batch", *x)})
    return compile_model(model, loss="mean_squared_error", name="fallback", **options)


@pytest.mark.parametrize(
    ("text", "parameters", "constants", "x", "op", "engines"), COMPILED, ids=lambda v: str(v)[-24:]
)
def test_an_operator_without_a_rule_is_differentiated_with_a_warning(
    text: str,
    parameters: dict[str, tuple[int, ...]],
    constants: dict[str, list[int]],
    x: tuple[int, ...],
    op: str,
    engines: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("onnx_ad")
    assert op not in RULES, "this operator has a rule now: test the fallback with another"
    values = {name: 0.3 * RNG.standard_normal(shape) for name, shape in parameters.items()}
    with caplog.at_level(logging.WARNING):
        bundle = compiled(text, {**values, **{k: np.array(v) for k, v in constants.items()}}, x)  # verified
    told = describe(bundle)
    assert {p["name"] for p in told["parameters"]} == set(parameters)
    assert told["runs_on"] == ["onnxruntime", "numpy"][:engines]
    warning = "\n".join(r.getMessage() for r in caplog.records)
    assert f"node 'y' ({op}, opset 21): no gradient rule" in warning and "onnx-ad" in warning


@pytest.mark.parametrize(
    "case",
    [
        after_dense("LpNormalization", "y = LpNormalization<p=2>(h)"),
        after_dense("Shrink", "y = Shrink<lambd=0.2, bias=0.1>(h)"),
        Case("used-twice", "h = MatMul(x, w); n = LpNormalization(h); y = Mul(n, h)", {"w": (5, 5)}, (5,)),
    ],
    ids=str,
)
def test_its_gradient_is_that_of_differences(case: Case) -> None:
    pytest.importorskip("onnx_ad")
    assert_gradients(case)


def test_the_form_that_the_gradient_shares_is_computed_once() -> None:
    pytest.importorskip("onnx_ad")
    bundle = compiled("h = Conv(x, w); y = LRN<size=3>(h)", {"w": RNG.standard_normal((6, 2, 3, 3))}, (2, 5, 5))
    operators = [node.op for node in bundle.program.train_plan.nodes]
    assert "LRN" not in operators and operators.count("Pow") <= 2
    assert [node.op for node in bundle.program.infer_plan.nodes] == ["Conv", "LRN"]


def test_a_frozen_part_needs_no_fallback(caplog: pytest.LogCaptureFixture) -> None:
    text = "h = Conv(x, v); n = LRN<size=3>(h); f = Flatten(n); y = MatMul(f, w)"
    weights = {"v": RNG.standard_normal((6, 2, 3, 3)), "w": RNG.standard_normal((54, 3))}
    bundle = compiled(text, weights, (2, 5, 5), freeze=["v"])
    assert not caplog.records
    assert "LRN" in [node.op for node in bundle.program.train_plan.nodes]


@pytest.mark.parametrize(
    ("text", "op", "why"),
    [
        ("y = Det(h)", "Det", "takes the gradient for zero"),
        ("s = Sigmoid(h); y = Bernoulli(s)", "Bernoulli", "takes the gradient for zero"),
        (
            'i = Unsqueeze(h, to); r = RoiAlign<mode="max">(i, box, of); m = ReduceMax<keepdims=0>(r); y = Mul(h, m)',
            "RoiAlign",
            "it says: UnsupportedOperator",
        ),
    ],
)
def test_what_onnx_ad_cannot_do_is_refused_with_node_op_opset_and_remedy(text: str, op: str, why: str) -> None:
    pytest.importorskip("onnx_ad")
    box = np.array([[0, 0, 2, 2]], np.float32)
    constants = {"w": RNG.standard_normal((3, 3)), "to": np.array([1]), "box": box, "of": np.array([0])}
    with pytest.raises(CompileError) as caught:
        compiled(f"h = MatMul(x, w); {text}", constants, (3, 3))
    message = str(caught.value)
    assert f"({op}, opset 21)" in message and why in message and "freeze the parameters before it" in message


def test_without_onnx_ad_the_refusal_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ad", None)  # as if it were not installed
    with pytest.raises(CompileError, match=r"node 'y' \(LRN, opset 21\).*pip install onnx-ad"):
        compiled("h = Conv(x, w); y = LRN<size=3>(h)", {"w": RNG.standard_normal((6, 2, 3, 3))}, (2, 5, 5))
