"""Verification finds what it is there to find: programs that were right are damaged on purpose and must be refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_graphs import model_of

from coordinator.compile import build_zoo_model, compile_model, load_onnx, verify_program
from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.oracle import loss_in_float64, widened
from coordinator.compile.rules import RULES
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle, NumpyPlan

MODEL = build_zoo_model("mlp", inputs=(6,), hidden=(5, 4), outputs=3, activation="tanh", seed=2)


def compiled(**options: Any) -> Bundle:
    return compile_model(MODEL, loss="softmax_cross_entropy", name="mlp", verify=False, **options)


def damaged(bundle: Bundle, graph: str, change: Callable[[onnx.NodeProto], bool]) -> Bundle:
    """``bundle`` with the first node of a graph changed for which ``change`` says that it did so."""
    model = onnx.ModelProto.FromString(getattr(bundle.program, graph))
    assert any(change(node) for node in model.graph.node)
    program = replace(bundle.program, **{graph: model.SerializeToString()})
    return Bundle(program, bundle.parameters)


def scale_gemm(output: str) -> Callable[[onnx.NodeProto], bool]:
    def change(node: onnx.NodeProto) -> bool:
        found = node.op_type == "Gemm" and node.output[0] == output
        for attribute in node.attribute if found else ():
            if attribute.name == "alpha":
                attribute.f = 1.01
        return found

    return change


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_right_program_passes(optimizer: str) -> None:
    checked = verify_program(MODEL, compiled(optimizer=optimizer, proximal=True, weight_decay=True))
    assert set(checked.gradients) == {f"fc{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}
    assert max(checked.gradients.values()) < 1e-5


@pytest.mark.parametrize(("layer", "node"), [(1, "fc1/Gemm"), (2, "fc2/Gemm"), (3, "logits/Gemm")])
def test_a_gradient_that_is_one_percent_off_names_its_parameter_and_node(layer: int, node: str) -> None:
    wrong = damaged(compiled(), "train", scale_gemm(f"new/fc{layer}.weight"))
    with pytest.raises(CompileError, match=re.escape(f"parameter 'fc{layer}.weight' (used by Gemm '{node}'")):
        verify_program(MODEL, wrong)


EXPORTS = Path(__file__).parents[1] / "data" / "onnx"
FAULTS = ("one percent long", "one element forgotten", "elements exchanged")


def faulty(bundle: Bundle, parameter: str, fault: str) -> Bundle:
    """``bundle`` whose train graph makes a wrong step of one parameter."""
    model = onnx.ModelProto.FromString(bundle.program.train)
    new, right = f"new/{parameter}", "step that was right"
    for node in model.graph.node:
        node.output[:] = [right if name == new else name for name in node.output]
        node.input[:] = [right if name == new else name for name in node.input]
    shape = next(tensor.shape for tensor in bundle.program.spec if tensor.name == parameter)
    position = np.arange(math.prod(shape)).reshape(shape)
    kept = np.full(shape, 1.01) if fault == "one percent long" else (position != math.prod(shape) // 2).astype(float)
    for name, array in (("kept", np.float32(kept)), ("shape", np.int64(shape)), ("turned", np.roll(position, 1))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array).reshape(-1), f"fault {name}"))
    change, ops = "fault kept", [("Sub", [right, parameter], "moved"), ("Reshape", ["moved", "flat"], "listed")]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    if fault == "elements exchanged":
        ops.append(("Gather", ["listed", "fault turned"], "wrong"))
    else:
        ops.append(("Mul", ["listed", change], "wrong"))
    ops += [("Reshape", ["wrong", "fault shape"], "shaped"), ("Add", ["shaped", parameter], new)]
    model.graph.node.extend(helper.make_node(op, inputs, [output]) for op, inputs, output in ops)
    return Bundle(replace(bundle.program, train=model.SerializeToString()), bundle.parameters)


@pytest.mark.parametrize("name", ["cnn1d", "resnet", "lstm", "autoencoder"])
def test_whatever_parameter_steps_wrongly_is_found_and_named(name: str) -> None:
    source = load_onnx(EXPORTS / f"{name}.dynamo.onnx")
    loss = "mean_squared_error" if name == "autoencoder" else "softmax_cross_entropy"
    bundle = compile_model(source, loss=loss, name=name, verify=False)
    trainable = [tensor.name for tensor in bundle.program.spec if tensor.kind == "trainable" and tensor.size > 1]
    for index, parameter in enumerate(trainable[:: 1 + len(trainable) // 10]):
        with pytest.raises(CompileError, match=re.escape(f"parameter {parameter!r} ")):
            verify_program(source, faulty(bundle, parameter, FAULTS[index % len(FAULTS)]))


@pytest.mark.parametrize(
    ("model", "op", "slot", "parameter"),
    [
        ("cnn1d", "Conv", 1, "0.weight"),
        ("cnn1d", "Conv", 2, "0.bias"),
        ("cnn1d", "MaxPool", 0, "0.weight"),
        ("transformer", "LayerNormalization", 1, "encoder.layers.0.norm1.weight"),
        ("transformer", "Gather", 0, "embedding.weight"),
        ("gru", "GRU", 2, "layer.weight_hh_l0"),
    ],
)
def test_a_rule_that_is_wrong_is_found_by_the_parameter_that_it_spoils(
    model: str, op: str, slot: int, parameter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = RULES[op]

    def wrong(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
        found = list(rule.gradient(b, node, dy, wanted))
        if slot < len(found) and found[slot] is not None:
            found[slot] = b.op("Mul", b.materialise(found[slot]), b.scalar(1.01))  # type: ignore[arg-type]
        return found

    monkeypatch.setitem(RULES, op, replace(rule, gradient=wrong))
    with pytest.raises(CompileError, match=f"parameter '{re.escape(parameter)}' "):
        compile_model(load_onnx(EXPORTS / f"{model}.dynamo.onnx"), loss="softmax_cross_entropy", name=model)


def test_an_inference_graph_that_differs_from_the_source_is_found() -> None:
    with pytest.raises(CompileError, match="its output 'logits' differs from that of the source model"):
        verify_program(MODEL, damaged(compiled(), "infer", scale_gemm("logits")))


def test_a_loss_that_differs_between_training_and_evaluation_is_found() -> None:
    def change(node: onnx.NodeProto) -> bool:
        if node.op_type == "Div" and node.output[0] == "loss":
            node.op_type = "Mul"
            return True
        return False

    with pytest.raises(CompileError, match="the train graph's loss is"):
        verify_program(MODEL, damaged(compiled(), "train", change))


def test_engines_that_disagree_are_found() -> None:
    bundle = compiled()
    plan = bundle.program.train_plan
    nodes = tuple(n._replace(op="Sub") if n.outputs == ("new/fc2.bias",) else n for n in plan.nodes)
    wrong = replace(bundle.program, train_plan=NumpyPlan(plan.inputs, plan.outputs, plan.constants, nodes))
    with pytest.raises(CompileError, match=r"'new/fc2\.bias': onnxruntime and the NumPy engine differ"):
        verify_program(MODEL, Bundle(wrong, bundle.parameters))


def test_compiling_verifies_unless_told_otherwise() -> None:
    text = "h = MatMul(x, w); r = RandomUniformLike(x); y = Add(h, r)"
    model = model_of(text, {"w": np.ones((4, 4))}, inputs={"x": ["n", 4]})
    compile_model(model, loss="mean_squared_error", name="random", verify=False)
    with pytest.raises(CompileError, match="differs"):
        compile_model(model, loss="mean_squared_error", name="random")


def test_a_program_without_a_numpy_plan_is_verified_by_onnx_s_reference_evaluator() -> None:
    bundle = compiled()
    with_onnx = Bundle(replace(bundle.program, train_plan=NumpyPlan(), evaluate_plan=NumpyPlan()), bundle.parameters)
    checked = verify_program(MODEL, with_onnx)
    assert checked.engines is None
    assert max(checked.gradients.values()) < 1e-5


def test_the_float64_loss_is_the_same_by_both_evaluators() -> None:
    model = build_zoo_model("cnn", inputs=(2, 6, 6), outputs=3, channels=(3, 4), seed=1)
    bundle = compile_model(model, loss="hinge", name="cnn", verify=False)
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {"x": rng.standard_normal((4, 2, 6, 6)), "target": rng.integers(0, 3, 4)}
    feeds.update({n: widened(a) for n, a in bundle.program.spec.unflatten(bundle.parameters).items()})
    feeds["lr"] = np.float64(0.1)
    by_onnx = replace(bundle.program, train_plan=NumpyPlan())
    by_numpy, reference = loss_in_float64(bundle.program)(feeds), loss_in_float64(by_onnx)(feeds)
    for tensor in bundle.program.spec:
        moved = feeds[tensor.name] + rng.standard_normal(tensor.shape)
        assert by_numpy(tensor.name, moved) == pytest.approx(reference(tensor.name, moved), rel=1e-13)


def test_an_operator_that_the_numpy_engine_lacks_leaves_the_plans_empty() -> None:
    text = "c = Det(q); h = MatMul(x, w); y = Add(h, c)"
    constants = {"w": np.ones((4, 3)), "q": np.eye(2)}
    bundle = compile_model(model_of(text, constants, inputs={"x": ["n", 4]}), loss="mean_squared_error", name="det")
    assert not bundle.program.train_plan.nodes and not bundle.program.evaluate_plan.nodes
