"""Compiled graphs train: handwritten digits in one place, on both engines, and every emitted operator has a kernel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from coordinator.compile import LOSSES, OPTIMIZERS, ZOO, build_zoo_model, compile_model, zoo_loss
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

BATCH = 32


def digits() -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float32], NDArray[Any]]:
    """Training and test examples: 1,437 and 360 images of 8 x 8 pixels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.data[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = data.target[order].astype(np.int64)
    return x[:1437], y[:1437], x[1437:], y[1437:]


def trained_accuracy(bundle: Bundle, epochs: int, engine_name: str = "onnxruntime", **scalars: float) -> float:
    x, y, x_test, y_test = digits()
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)
    values = {**bundle.program.scalars, **scalars}
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            engine.step(handle, {"x": x[rows], "target": y[rows]}, values)
    return engine.evaluate(handle, {"x": x_test, "target": y_test})[1] / len(x_test)


def digit_model(name: str, optimizer: str = "sgd", **options: Any) -> Bundle:
    model = build_zoo_model(name, inputs=(1, 8, 8), outputs=10, seed=0, **options)
    return compile_model(model, loss=zoo_loss(name, 10), optimizer=optimizer, name=name, verify=False)


@pytest.mark.parametrize(
    ("name", "optimizer", "options", "epochs", "scalars", "at_least"),
    [
        ("softmax_regression", "sgd", {}, 12, {"lr": 0.5}, 0.95),
        ("linear_svm", "momentum", {}, 8, {"lr": 0.02}, 0.94),
        ("mlp", "sgd", {"hidden": (64, 32)}, 12, {"lr": 0.3}, 0.96),
        ("mlp", "adam", {"hidden": (64,), "activation": "tanh"}, 8, {"lr": 0.005}, 0.96),
        ("cnn", "sgd", {"channels": (8, 16)}, 5, {"lr": 0.1}, 0.95),
    ],
)
def test_a_compiled_model_learns_the_digits(
    name: str, optimizer: str, options: dict[str, Any], epochs: int, scalars: dict[str, float], at_least: float
) -> None:
    assert trained_accuracy(digit_model(name, optimizer, **options), epochs, **scalars) > at_least


def test_both_engines_learn_the_same() -> None:
    bundle = digit_model("mlp", hidden=(32,))
    found = {name: trained_accuracy(bundle, 6, name, lr=0.3) for name in ("onnxruntime", "numpy")}
    assert found["onnxruntime"] > 0.95
    assert abs(found["onnxruntime"] - found["numpy"]) <= 0.01


@pytest.mark.parametrize("name", ZOO)
def test_every_program_of_the_zoo_runs_on_both_engines(name: str) -> None:
    optimizers = itertools.cycle(OPTIMIZERS)  # every pair would take a minute
    for loss in LOSSES:
        for optimizer in itertools.islice(optimizers, 2):
            outputs = 1 if loss == "binary_cross_entropy" and name != "softmax_regression" else 3
            model = build_zoo_model(name, inputs=(1, 8, 8), outputs=outputs, seed=0)
            try:
                program = compile_model(
                    model, loss=loss, optimizer=optimizer, proximal=True, weight_decay=True, name=name, verify=False
                ).program
            except CompileError as error:
                assert loss == "reconstruction" and "no input has it" in str(error), error
                continue
            assert program.train_plan.nodes and program.evaluate_plan.nodes and program.infer_plan.nodes
            plan_operators = [n.op for n in program.train_plan.nodes]
            assert plan_operators == [n.op_type for n in onnx.ModelProto.FromString(program.train).graph.node]
            onnxruntime.InferenceSession(program.train, providers=["CPUExecutionProvider"])


def test_graphs_are_valid_onnx_and_of_the_working_opset() -> None:
    program = digit_model("cnn", "adam").program
    for graph in (program.train, program.evaluate, program.infer):
        model = onnx.ModelProto.FromString(graph)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
        assert model.ir_version == 10
