"""A Relu before a MaxPool goes behind it, where nothing else uses it; values and gradients stay what they were."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_graphs import model_of, run

from coordinator.compile import compile_model
from coordinator.compile.emit import infer_graph, to_onnx
from coordinator.compile.import_ import import_model
from edge_sdk.training.engine import make_engine

RATE = 1024.0
TAIL = "; g = GlobalAveragePool(p); y = Flatten(g)"
POOLED = "h = Conv(x, w); r = Relu(h); p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(r)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (POOLED + TAIL, ["Conv", "MaxPool", "Relu", "GlobalAveragePool", "Flatten"]),
        (POOLED + "; m = ReduceMean<keepdims=0>(r); s = Add(p, m); g = GlobalAveragePool(s); y = Flatten(g)",
         ["Conv", "Relu", "MaxPool"]),
        (POOLED.replace("Max", "Average") + TAIL, ["Conv", "Relu", "AveragePool"]),
    ],
    ids=["moved", "used-twice", "not-a-maximum"],
)  # fmt: skip
def test_where_a_relu_goes(text: str, expected: list[str]) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 2, 1, 1))}
    source = model_of(text, weights, inputs={"x": ("batch", 2, 4, 6)})
    model = import_model(source, name="pooled")
    assert [node.op for node in model.nodes][: len(expected)] == expected
    x = {"x": rng.standard_normal((2, 2, 4, 6)).astype(np.float32)}
    before = run(source.SerializeToString(), x)["y"]
    after = run(to_onnx(infer_graph(model)).SerializeToString(), {**x, **model.parameters})["y"]
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(
    "window", ["kernel_shape=[2, 2], strides=[2, 2]", "kernel_shape=[3, 3], strides=[2, 2]"], ids=["tiles", "overlaps"]
)
def test_ties_within_a_window_count_once(window: str, engine_name: str) -> None:
    text = f"h = Conv(x, w); p = MaxPool<{window}>(h); g = GlobalAveragePool(p); y = Flatten(g)"
    weights = {"w": np.full((1, 1, 1, 1), 2.0)}
    source = model_of(text, weights, inputs={"x": ("batch", 1, 4, 4)})
    bundle = compile_model(source, loss="mean_squared_error", name="ties", verify=False)
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)
    engine.step(handle, {"x": np.ones((2, 1, 4, 4), np.float32), "target": np.zeros(2, np.float32)}, {"lr": RATE})
    # y = w wherever the maximum is, so that the loss is w^2 and its slope 2 w.
    assert (bundle.parameters - engine.read(handle)) / RATE == pytest.approx(4.0)
