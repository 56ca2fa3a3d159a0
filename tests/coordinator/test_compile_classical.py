"""scikit-learn and Keras exports: heads are cut, layers trained, and the weights go back where they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import gradients, model_of, run

from coordinator.compile import compile_model, export_onnx, load_onnx, merge_into_source
from coordinator.compile.sklearn import cut_heads
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle

MODELS = Path(__file__).resolve().parents[1] / "data" / "onnx"
RNG = np.random.default_rng(5)
X = RNG.standard_normal((7, 6)).astype(np.float32)

LOSSES = {
    "logistic": "softmax_cross_entropy",
    "logistic_binary": "softmax_cross_entropy",
    "logistic_strings": "softmax_cross_entropy",
    "logistic_normalized": "softmax_cross_entropy",
    "one_versus_rest": "softmax_cross_entropy",
    "mlp": "softmax_cross_entropy",
    "pca": "softmax_cross_entropy",
    "pca_mlp": "softmax_cross_entropy",
    "minmax": "softmax_cross_entropy",
    "mlp_binary": "softmax_cross_entropy",
    "sgd": "softmax_cross_entropy",
    "linear_svc": "hinge",
    "linear_svc_binary": "hinge",
    "linear_regression": "mean_squared_error",
}


def source(name: str) -> onnx.ModelProto:
    return load_onnx(MODELS / f"sklearn_{name}.onnx")


def compiled(name: str, **options: Any) -> Bundle:
    return compile_model(source(name), loss=LOSSES[name], name=name, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_a_scikit_learn_export_compiles_and_its_trained_weights_go_back_into_it(name: str) -> None:
    bundle = compiled(name)  # verified: its outputs are the source's, its gradients differences of the loss
    vector = (bundle.parameters * np.float32(1.25)).astype(np.float32)
    merged = merge_into_source(bundle.program, vector, source(name))
    assert [n.op_type for n in merged.graph.node] == [n.op_type for n in source(name).graph.node]
    assert [o.name for o in merged.graph.output] == [o.name for o in source(name).graph.output]
    expected = run(export_onnx(bundle.program, vector).SerializeToString(), {"X": X})
    found = run(cut_heads(merged).SerializeToString(), {"X": X})
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-4, atol=1e-5)
    run(merged.SerializeToString(), {"X": X})  # with its labels and ZipMap


@pytest.mark.parametrize("name", ["logistic", "logistic_binary", "mlp", "mlp_binary", "one_versus_rest"])
def test_the_loss_is_the_one_of_the_exported_probabilities(name: str) -> None:
    bundle = compiled(name, verify=False)
    probabilities = run(cut_heads(source(name)).SerializeToString(), {"X": X})
    (p,) = (value for value in probabilities.values() if value.ndim == 2)
    target = RNG.integers(0, p.shape[1], len(X))
    loss, _ = gradients(bundle, {"X": X, "target": target})
    assert loss == pytest.approx(float(-np.log(p[np.arange(len(X)), target]).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["mlp_binary", "logistic_binary", "mlp", "logistic"])
def test_a_confident_model_still_has_a_gradient(name: str) -> None:
    bundle = compiled(name, verify=False)
    surer = Bundle(bundle.program, bundle.parameters * np.float32(40))
    outputs = run(export_onnx(surer.program, surer.parameters).SerializeToString(), {"X": 4 * X})
    (p,) = outputs.values()
    wrong = p.argmin(axis=1)
    loss, found = gradients(surer, {"X": 4 * X, "target": wrong})
    assert np.isfinite(loss) and loss > 20
    assert any(np.abs(g).max() > 0.01 for g in found.values())


def test_a_scaler_stays_what_was_measured() -> None:
    assert [t.name for t in compiled("logistic", verify=False).program.spec] == [
        "LinearClassifier.coefficients",
        "LinearClassifier.intercepts",
    ]


@pytest.mark.parametrize("name", ["pca", "pca_mlp", "minmax"])
def test_what_a_transformer_measured_is_not_trained_unless_it_is_asked_for(name: str) -> None:
    trained = {t.name for t in compiled(name, verify=False).program.spec}
    assert trained and all(re.match(r"(LinearClassifier\.)?(coef|intercept)", parameter) for parameter in trained)
    measured = "Mu_Mulcst" if name == "minmax" else "transform_matrix"
    asked = compiled(name, train=["*", measured])
    assert {t.name for t in asked.program.spec} == trained | {measured}


def test_trees_are_refused_with_the_node_and_a_remedy() -> None:
    with pytest.raises(CompileError, match=r"node 'TreeEnsembleClassifier'.*trees have no gradient.*MLPClassifier"):
        compile_model(source("tree"), loss="softmax_cross_entropy", name="tree")


def test_a_model_that_gives_labels_only_is_refused() -> None:
    model = source("logistic")
    del model.graph.output[1:]
    with pytest.raises(CompileError, match=r"outputs \['output_label'\]: are labels only"):
        compile_model(model, loss="softmax_cross_entropy", name="labels")


def test_an_unknown_domain_is_refused_with_its_node() -> None:
    model = model_of("y = MatMul(x, w)", {"w": np.ones((4, 3))}, inputs={"x": ["n", 4]})
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    model.graph.node.insert(0, helper.make_node("Magic", ["x"], ["m"], name="spell", domain="my.company"))
    model.graph.node[1].input[0] = "m"
    with pytest.raises(CompileError, match=r"node 'spell'.*'Magic'.*'my.company'"):
        compile_model(model, loss="hinge", name="magic")


def test_control_flow_is_refused_with_its_node() -> None:
    info = [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)]
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["h"], ["z"])], name, [], info)
        for name, op in (("then", "Relu"), ("else", "Tanh"))
    }
    model = model_of(
        "h = MatMul(x, w); s = ReduceSum<keepdims=0>(x); c = Cast<to=9>(s); y = Identity(h)",
        {"w": np.ones((4, 3))},
        inputs={"x": ["n", 4]},
    )
    model.graph.node[-1].CopyFrom(helper.make_node("If", ["c"], ["y"], name="choice", **branches))
    with pytest.raises(CompileError, match=r"node 'choice' \(If.*control flow that depends on data"):
        compile_model(model, loss="mean_squared_error", name="choice")


KERAS = {"mlp": "softmax_cross_entropy", "cnn": "softmax_cross_entropy", "tokens": "binary_cross_entropy"}


@pytest.mark.parametrize("name", KERAS)
def test_a_keras_export_compiles_and_its_trained_weights_go_back_into_it(name: str) -> None:
    model = load_onnx(MODELS / f"keras_{name}.onnx")
    bundle = compile_model(model, loss=KERAS[name], name=name)
    entry = bundle.program.inputs[0]
    shape = (3, *(int(d or 1) for d in entry.shape[1:]))
    x = RNG.integers(0, 11, shape) if entry.dtype == "int32" else RNG.standard_normal(shape)
    vector = (bundle.parameters * np.float32(0.75)).astype(np.float32)
    feeds = {entry.name: x.astype(entry.dtype)}
    merged = run(merge_into_source(bundle.program, vector, model).SerializeToString(), feeds)
    for output, value in run(export_onnx(bundle.program, vector).SerializeToString(), feeds).items():
        np.testing.assert_allclose(merged[output], value, rtol=1e-5, atol=1e-6)
    casts = [n for n in onnx.ModelProto.FromString(bundle.program.infer).graph.node if n.op_type == "Cast"]
    assert len(casts) <= 1, "Keras casts around every layer, to the type that is there already"
