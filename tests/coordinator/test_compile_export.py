"""Trained weights come back as the model that went in; and what ``describe`` says about a bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_graphs import model_of, run

from coordinator.compile import build_zoo_model, compile_model, describe, export_onnx
from edge_sdk.errors import CompileError
from edge_sdk.training.engine import make_engine

MODEL = build_zoo_model("cnn", inputs=(1, 8, 8), outputs=3, channels=(4, 6), seed=1)
BUNDLE = compile_model(MODEL, loss="softmax_cross_entropy", optimizer="adam", proximal=True, name="cnn", verify=False)


def test_exporting_the_initial_parameters_gives_the_source_model_back() -> None:
    exported = export_onnx(BUNDLE.program, BUNDLE.parameters)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    assert [i.name for i in exported.graph.input] == [i.name for i in MODEL.graph.input] == ["x"]
    assert [o.name for o in exported.graph.output] == ["logits"]
    assert {t.name for t in exported.graph.initializer} == {t.name for t in MODEL.graph.initializer}
    expected = run(MODEL.SerializeToString(), {"x": x})["logits"]
    np.testing.assert_array_equal(run(exported.SerializeToString(), {"x": x})["logits"], expected)


def test_the_exported_model_takes_any_batch_and_carries_the_trained_weights() -> None:
    vector = BUNDLE.parameters + np.float32(0.25)
    exported = export_onnx(BUNDLE.program, vector)
    arrays = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
    np.testing.assert_array_equal(BUNDLE.program.spec.flatten(arrays), vector)
    engine = make_engine(BUNDLE.program, "numpy")
    for batch in (1, 4):
        x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
        found = run(exported.SerializeToString(), {"x": x})["logits"]
        assert found.shape == (batch, 3)
        np.testing.assert_allclose(engine.infer(vector, {"x": x})["logits"], found, rtol=1e-4, atol=1e-4)


def test_an_exported_model_compiles_again_to_the_same_program() -> None:
    again = compile_model(
        export_onnx(BUNDLE.program, BUNDLE.parameters),
        loss="softmax_cross_entropy",
        optimizer="adam",
        proximal=True,
        name="cnn",
        verify=False,
    )
    assert again.program == BUNDLE.program
    np.testing.assert_array_equal(again.parameters, BUNDLE.parameters)


def test_constants_and_several_outputs_survive_the_export() -> None:
    text = "c = Sub(x, mean); h = MatMul(c, w); p = Softmax(h)"
    weights = {"w": np.ones((4, 3)), "mean": np.arange(4.0)}
    model = model_of(text, weights, inputs={"x": ["n", 4]}, outputs=["p", "h"])
    bundle = compile_model(model, loss="softmax_cross_entropy", name="two")
    exported = export_onnx(bundle.program, bundle.parameters)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    expected, found = run(model.SerializeToString(), {"x": x}), run(exported.SerializeToString(), {"x": x})
    assert list(found) == ["p", "h"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(CompileError, match=r"parameters have shape \[3\]"):
        export_onnx(BUNDLE.program, np.zeros(3, np.float32))
    with pytest.raises(CompileError, match="has no inference graph"):
        export_onnx(replace(BUNDLE.program, infer=b""), BUNDLE.parameters)


def test_describe_is_plain_data_that_agrees_with_the_bundle() -> None:
    facts = describe(BUNDLE)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["inputs"] == {"x": {"dtype": "float32", "shape": [None, 1, 8, 8]}}
    assert facts["outputs"] == {"logits": [None, 3]}
    assert facts["target"] == {"dtype": "int64", "shape": [None]}
    assert facts["parameter_count"] == sum(p["elements"] for p in facts["parameters"]) == BUNDLE.parameters.size
    assert facts["update_bytes_dense"] == 4 * BUNDLE.parameters.size
    assert facts["program_bytes"] == len(BUNDLE.program.encode())
    assert facts["runs_on"] == ["onnxruntime", "numpy"]
    assert set(facts["scalars"]) == {"lr", "beta1", "beta2", "epsilon", "mu"}
    nodes = onnx.ModelProto.FromString(BUNDLE.program.train).graph.node
    assert facts["train_nodes"] == sum(facts["operators"].values()) == len(nodes)
