"""Partial training: what is frozen costs nothing, does not travel and does not move; adapters and their merging."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_graphs import model_of, run, step

from coordinator.compile import Lora, build_zoo_model, compile_model, describe, export_onnx, merge_into_source
from coordinator.compile.cost import step_cost
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

CNN = build_zoo_model("cnn", inputs=(1, 12, 12), outputs=3, channels=(4, 6), hidden=(8,), seed=1)
MLP = build_zoo_model("mlp", inputs=(12,), outputs=3, hidden=(10, 8), activation="tanh", seed=2)


def compiled(model: onnx.ModelProto, **options: Any) -> Bundle:
    return compile_model(model, loss="softmax_cross_entropy", name="model", **options)


def names(bundle: Bundle) -> list[str]:
    return [t.name for t in bundle.program.spec]


def operators(bundle: Bundle) -> list[str]:
    return [n.op_type for n in onnx.ModelProto.FromString(bundle.program.train).graph.node]


def test_patterns_pick_what_is_trained() -> None:
    dense = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert names(compiled(CNN, train=["fc*"])) == dense
    assert names(compiled(CNN, freeze=["conv*"], verify=False)) == dense
    assert names(compiled(CNN, train=["fc*"], freeze=["*.bias"], verify=False)) == ["fc1.weight", "fc2.weight"]


def test_a_pattern_that_fits_nothing_and_nothing_left_to_train_are_refused() -> None:
    with pytest.raises(CompileError, match=r"train 'dense\*': fits none of the parameters conv1.weight"):
        compiled(CNN, train=["dense*"])
    with pytest.raises(CompileError, match=r"freeze 'features': fits none"):
        compiled(CNN, freeze=["features"])
    with pytest.raises(CompileError, match="nothing is left to train"):
        compiled(CNN, freeze=["*"])


def test_there_is_no_gradient_work_for_what_is_frozen() -> None:
    whole, part, last = compiled(CNN, verify=False), compiled(CNN, train=["fc*"]), compiled(CNN, train=["fc2*"])
    assert {"Pad", "ConvTranspose"} <= set(operators(whole))  # of the gradients of MaxPool and Conv
    for bundle in (part, last):
        assert not {"Pad", "ConvTranspose"} & set(operators(bundle))
        assert operators(bundle).count("Conv") == 2
    costs = [step_cost(b.program.train, 32).flops for b in (whole, part, last)]
    assert costs[0] > 1.8 * costs[1] and costs[1] > costs[2]


def test_a_frozen_parameter_stays_as_the_source_has_it_on_both_engines() -> None:
    bundle = compiled(CNN, train=["fc*"])
    x = np.random.default_rng(0).standard_normal((5, 1, 12, 12)).astype(np.float32)
    batch = {"x": x, "target": np.array([0, 1, 2, 1, 0])}
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        handle = engine.load(bundle.parameters)
        first = engine.step(handle, batch, {"lr": 0.05})
        for _ in range(20):
            last = engine.step(handle, batch, {"lr": 0.05})
        assert last < first
        merged = merge_into_source(bundle.program, engine.read(handle), CNN)
        before = {t.name: numpy_helper.to_array(t) for t in CNN.graph.initializer}
        after = {t.name: numpy_helper.to_array(t) for t in merged.graph.initializer}
        assert list(before) == list(after)
        for name, array in before.items():
            assert np.array_equal(array, after[name]) == name.startswith("conv"), name


def batch_normalized() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        "a.weight": rng.standard_normal((6, 4)), "bn.scale": np.ones(6), "bn.bias": np.zeros(6),
        "bn.mean": rng.standard_normal(6), "bn.var": np.full(6, 2.0), "b.weight": rng.standard_normal((3, 6)),
    }  # fmt: skip
    nodes = "h = Gemm<transB=1>(x, a_weight); n = BatchNormalization(h, bn_scale, bn_bias, bn_mean, bn_var); "
    nodes += "r = Relu(n); y = Gemm<transB=1>(r, b_weight)"
    renamed = {name.replace(".", "_"): value for name, value in weights.items()}
    return model_of(nodes, renamed, inputs={"x": ["n", 4]})


def test_statistics_of_a_frozen_layer_are_constants_those_of_a_trained_one_travel() -> None:
    kinds = {t.name: t.kind for t in compiled(batch_normalized(), verify=False).program.spec}
    assert kinds["bn_mean"] == kinds["bn_var"] == "buffer"
    assert names(compiled(batch_normalized(), train=["b_*"])) == ["b_weight"]
    assert names(compiled(batch_normalized(), freeze=["a_*", "bn_scale", "bn_bias"])) == ["b_weight"]
    fixed = compiled(batch_normalized(), freeze=["bn_mean", "bn_var"])
    assert names(fixed) == ["a_weight", "bn_scale", "bn_bias", "b_weight"]


def test_adapters_start_as_nothing_travel_alone_and_are_merged_on_export() -> None:
    bundle = compiled(MLP, lora=Lora(2, ("fc*.weight",)))
    assert names(bundle) == [f"fc{n}.weight.lora_{half}" for n in (1, 2, 3) for half in "ab"]
    assert bundle.program.spec.size == 2 * (12 + 10 + 10 + 8 + 8 + 3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 12)).astype(np.float32)
    start = run(MLP.SerializeToString(), {"x": x})["logits"]
    np.testing.assert_allclose(
        run(export_onnx(bundle.program, bundle.parameters).SerializeToString(), {"x": x})["logits"], start, rtol=1e-6
    )
    vector = bundle.parameters + rng.standard_normal(bundle.parameters.size).astype(np.float32) * np.float32(0.3)
    merged = merge_into_source(bundle.program, vector, MLP)
    assert [t.name for t in merged.graph.initializer] == [t.name for t in MLP.graph.initializer]
    found = run(merged.SerializeToString(), {"x": x})["logits"]
    expected = run(export_onnx(bundle.program, vector).SerializeToString(), {"x": x})["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - start).max() > 0.1


def test_adapters_of_stacked_matmuls_and_with_further_trained_parameters() -> None:
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((5, 4)), "v": rng.standard_normal((12, 3)), "c": np.zeros(3)}
    nodes = "h = MatMul(x, w); t = Tanh(h); f = Flatten(t); m = MatMul(f, v); y = Add(m, c)"
    model = model_of(nodes, weights, inputs={"x": ["n", 3, 5]})
    bundle = compiled(model, lora=Lora(1, ("w",)), train=["c"])
    assert names(bundle) == ["c", "w.lora_a", "w.lora_b"]
    vector = bundle.parameters + np.float32(0.2)
    x = rng.standard_normal((2, 3, 5)).astype(np.float32)
    found = run(merge_into_source(bundle.program, vector, model).SerializeToString(), {"x": x})["y"]
    expected = run(export_onnx(bundle.program, vector).SerializeToString(), {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_cannot_be_are_refused() -> None:
    with pytest.raises(CompileError, match=r"lora \['nothing'\]: no weight of a Gemm or MatMul fits"):
        compiled(MLP, lora=Lora(2, ("nothing",)))
    with pytest.raises(CompileError, match=r"rank 3 saves nothing for 'fc3.weight'"):
        compiled(MLP, lora=Lora(3, ("fc3.weight",)))
    with pytest.raises(CompileError, match="expected rank=8"):
        Lora.parse("rank=none", "*")
    assert Lora.parse("rank=8", "fc*") == Lora(8, ("fc*",))


def test_layers_that_an_exporter_tied_by_equal_zeros_get_their_own_bias_in_the_export() -> None:
    rng = np.random.default_rng(4)
    weights = {"w": rng.standard_normal((4, 3)), "v": rng.standard_normal((3, 3)), "zeros": np.zeros(3)}
    model = model_of("h = Gemm(x, w, zeros); t = Tanh(h); y = Gemm(t, v, zeros)", weights, inputs={"x": ["n", 4]})
    for options in ({}, {"train": ["v", "zeros@*"]}, {"freeze": ["zeros@*"]}):
        bundle = compiled(model, **options)
        vector = bundle.parameters + rng.standard_normal(bundle.parameters.size).astype(np.float32)
        x = rng.standard_normal((2, 4)).astype(np.float32)
        found = run(merge_into_source(bundle.program, vector, model).SerializeToString(), {"x": x})["y"]
        expected = run(export_onnx(bundle.program, vector).SerializeToString(), {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_another_model_than_the_source_is_refused() -> None:
    bundle = compiled(MLP, verify=False)
    with pytest.raises(CompileError, match=r"'fc1.weight' of 'model' has no place in the source model"):
        merge_into_source(bundle.program, bundle.parameters, CNN)


def test_the_cost_of_a_step_is_counted() -> None:
    bundle = compiled(MLP, verify=False)
    products = 12 * 10 + 10 * 8 + 8 * 3
    facts = describe(bundle)
    # Forward and the weights' gradients are a product for each layer, and all but the first have one for their input.
    assert facts["step"]["flops"] == pytest.approx(2 * 32 * (3 * products - 120), rel=0.25)
    assert 32 * 4 * (10 + 8 + 3) < facts["step"]["activation_bytes_peak"] < 20 * 32 * 4 * (10 + 8 + 3)
    assert facts["step"]["unknown"] == 0 and facts["frozen"] == []
    assert {p["name"] for p in describe(compiled(MLP, train=["fc3*"], verify=False))["frozen"]} == {
        f"fc{n}.{part}" for n in (1, 2) for part in ("weight", "bias")
    }


def test_a_step_of_a_partly_frozen_model_equals_the_whole_ones_for_what_is_trained() -> None:
    whole, part = compiled(CNN, verify=False), compiled(CNN, train=["fc*"], verify=False)
    x = np.random.default_rng(0).standard_normal((4, 1, 12, 12)).astype(np.float32)
    batch = {"x": x, "target": np.array([0, 1, 2, 1])}
    first, second = step(whole, batch, lr=0.1), step(part, batch, lr=0.1)
    for name in names(part):
        np.testing.assert_allclose(second[f"new/{name}"], first[f"new/{name}"], rtol=1e-6, atol=1e-7)
