"""Recurrent layers: every direction, state and form against central differences, and the forms that are refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gradient_cases import Case, assert_gradients
from onnx_graphs import model_of

from coordinator.compile import compile_model
from coordinator.compile.graph import GraphBuilder, Model, Node
from coordinator.compile.rules.recurrent import gru_training
from edge_sdk.errors import CompileError

WIDTH, HIDDEN, STEPS = 3, 4, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
LAST = "y = Transpose<perm=[2, 0, 1, 3]>(every)"


def layer(
    op: str, direction: str = "forward", attributes: str = "", *, bias: bool = True, states: str = "", ends: str = LAST
) -> Case:
    """A recurrent layer over x [batch, time, width], whose input and initial states depend on parameters.

    The input is bounded, because gates far in saturation have few digits left in float32 on any engine.
    """
    count, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    parameters: dict[str, tuple[int, ...]] = {
        "head": (WIDTH, WIDTH),
        "w": (count, gates * HIDDEN, WIDTH),
        "r": (count, gates * HIDDEN, HIDDEN),
    }
    if bias:
        parameters["b"] = (count, 2 * gates * HIDDEN)
    text = (
        "mixed = MatMul(x, head); small = Tanh(mixed); series = Transpose<perm=[1, 0, 2]>(small); "
        "start = Gather<axis=0>(series, zero); "
    )
    for state in states:
        parameters[f"to_{state}"] = (WIDTH, count * HIDDEN)
        text += (
            f"flat_{state} = MatMul(start, to_{state}); wide_{state} = Reshape(flat_{state}, split); "
            f"{state}0 = Transpose<perm=[1, 0, 2]>(wide_{state}); "
        )
    operands = ["series", "w", "r", "b" if bias else '""', '""', *(f"{state}0" for state in states)]
    while operands[-1] == '""':
        operands.pop()
    operands = [name.strip('"') for name in operands]
    outputs = "every, last_h, last_c" if op == "LSTM" else "every, last_h"
    given = ", ".join(filter(None, [f'hidden_size={HIDDEN}, direction="{direction}"', attributes]))
    text += f"{outputs} = {op}<{given}>({', '.join(operands)}); {ends}"
    used = {"zero": np.array(0), "first": np.array([0])}
    if states:
        used["split"] = np.array([-1, count, HIDDEN])
    form = "" if bias else "-no-bias"
    label = f"{op}-{direction}{form}-{states}-{attributes}{'' if ends is LAST else '-ends'}"
    return Case(label, text, parameters, (STEPS, WIDTH), used)


def cases() -> Iterator[Case]:
    """All of them."""
    for direction in ("forward", "reverse", "bidirectional"):
        yield layer("RNN", direction, states="h")
        yield layer("GRU", direction, states="h")
        yield layer("GRU", direction, "linear_before_reset=1", states="h")
        yield layer("LSTM", direction, states="hc")
    yield layer("RNN", "bidirectional", 'activations=["Tanh", "Tanh"]')
    yield layer("LSTM", attributes='activations=["Sigmoid", "Tanh", "Tanh"]')
    yield layer("RNN", bias=False)
    yield layer("GRU", bias=False)
    yield layer("GRU", attributes="linear_before_reset=1", bias=False)
    yield layer("LSTM", "bidirectional", bias=False)
    final = "t = Mul(last_h, last_c); y = Transpose<perm=[1, 0, 2]>(t)"
    yield layer("LSTM", "bidirectional", states="hc", ends=final)
    yield layer("LSTM", states="hc", ends="y = Squeeze(last_c, first)")
    yield layer("GRU", "reverse", ends="y = Squeeze(last_h, first)")
    both = "t = Squeeze(last_h, first); s = Gather<axis=0>(every, zero); u = Squeeze(s, first); y = Mul(t, u)"
    yield layer("RNN", states="h", ends=both)


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


def refused(attributes: str = "", more: str = "", op: str = "LSTM") -> str:
    """The message for a layer of this form."""
    gates, rng = GATES[op], np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((1, gates * HIDDEN, WIDTH)),
        "r": rng.standard_normal((1, gates * HIDDEN, HIDDEN)),
        "b": rng.standard_normal((1, 2 * gates * HIDDEN)),
        "p": rng.standard_normal((1, 3 * HIDDEN)),
        "first": np.array([0]),
        "short": np.array([STEPS, 2], np.int32),
        "full": np.array([STEPS, STEPS], np.int32),
    }
    text = (
        f"t = Transpose<perm=[1, 0, 2]>(x); every, last = {op}<hidden_size={HIDDEN}{attributes}>(t, w, r, b{more}); "
        "y = Squeeze(last, first)"
    )
    used = {name: array for name, array in constants.items() if name in text.replace("(", ",").replace(")", ",")}
    inputs = {"x": ("batch", STEPS, WIDTH)}
    with pytest.raises(CompileError) as caught:
        compile_model(model_of(text, used, inputs=inputs), loss="mean_squared_error", name="refused", verify=False)
    return str(caught.value)


def test_forms_without_a_rule_are_refused_by_name() -> None:
    assert "node 'last' (LSTM" in refused(", clip=1.0") and "clip" in refused(", clip=1.0")
    assert "input_forget" in refused(", input_forget=1")
    assert "peepholes" in refused(more=", , , , p")
    assert "['HardSigmoid', 'Tanh', 'Tanh']" in refused(', activations=["HardSigmoid", "Tanh", "Tanh"]')
    assert "['Sigmoid']" in refused(', activations=["Sigmoid"]', op="RNN")
    assert "['Sigmoid', 'Relu']" in refused(', activations=["Sigmoid", "Relu"]', op="GRU")
    assert "sequence_lens 'short'" in refused(more=", short")


def test_the_layout_that_onnxruntime_lacks_is_refused() -> None:
    node = Node("GRU", ("x", "w", "r"), ("y",), {"layout": 1, "direction": "forward"})
    with pytest.raises(CompileError, match=r"'y' \(GRU.*layout=1"):
        gru_training(GraphBuilder(Model("m", (), (), (), {}, frozenset(), {}, {})), node)


def test_lengths_that_are_all_full_are_as_good_as_none() -> None:
    case = layer("GRU")
    text = case.text.replace("r, b)", "r, b, full)")
    assert_gradients(
        Case("full", text, case.parameters, case.x, {**case.constants, "full": np.full(3, STEPS, np.int32)})
    )
