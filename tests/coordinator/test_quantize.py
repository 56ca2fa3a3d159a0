"""Quantised exports: smaller, close to the float32 model, scored on examples that no range was measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_graphs import model_of

from coordinator.compile import LossOptions, build_zoo_model, compile_model, export_onnx
from coordinator.quantize import quantised, score
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples, as_examples


def trained(bundle: Bundle, examples: Examples, steps: int, **scalars: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    engine = make_engine(bundle.program, "onnxruntime")
    handle = engine.load(bundle.parameters)
    batch = examples.batch(bundle.program, np.arange(len(examples)))
    for _ in range(steps):
        engine.step(handle, batch, scalars)
    return engine.read(handle)


def stripes(count: int) -> tuple[Any, Any]:
    """Images with one bright row of three."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, count)
    x = rng.standard_normal((count, 1, 12, 12)).astype(np.float32)
    for i, row in enumerate(label):
        x[i, 0, 4 * row : 4 * row + 4] += 1.0
    return x, label


def test_a_cnn_in_int8_is_a_fraction_of_the_size_and_about_as_good() -> None:
    model = build_zoo_model("cnn", inputs=(1, 12, 12), outputs=3, channels=(8, 16), hidden=(64,), seed=0)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="cnn", verify=False)
    examples = as_examples(stripes(300), bundle.program)
    vector = trained(bundle, examples, 20, lr=0.05)
    data, figures = quantised(bundle.program, vector, examples)
    assert figures["int8_form"].startswith("static") and len(data) < 0.4 * figures["float32_bytes"]
    assert figures["float32_accuracy"] > 0.9
    assert figures["int8_accuracy"] >= figures["float32_accuracy"] - 0.02
    session = onnxruntime.InferenceSession(data)
    assert [i.name for i in session.get_inputs()] == ["x"] and [o.name for o in session.get_outputs()] == ["logits"]


def test_without_examples_only_weights_are_quantised() -> None:
    model = build_zoo_model("mlp", inputs=(64,), outputs=3, hidden=(64,), seed=0)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="mlp", verify=False)
    data, figures = quantised(bundle.program, bundle.parameters, None)
    assert figures["int8_form"].startswith("dynamic") and "int8_accuracy" not in figures
    assert len(data) < 0.5 * figures["float32_bytes"]
    assert onnx.ModelProto.FromString(data).graph.output[0].name == "logits"


@pytest.mark.parametrize(
    ("loss", "outputs", "options"),
    [
        ("softmax_cross_entropy", 4, LossOptions()),
        ("softmax_cross_entropy", 4, LossOptions(ignore_index=-1)),
        ("binary_cross_entropy", 1, LossOptions()),
        ("binary_cross_entropy", 3, LossOptions()),
        ("hinge", 1, LossOptions()),
        ("hinge", 3, LossOptions()),
        ("mean_squared_error", 1, LossOptions()),
        ("mean_absolute_error", 2, LossOptions()),
        ("huber", 2, LossOptions()),
        ("reconstruction", 6, LossOptions()),
    ],
)
def test_the_score_of_an_exported_file_is_what_the_program_evaluates(
    loss: str, outputs: int, options: LossOptions
) -> None:
    model = build_zoo_model("mlp", inputs=(6,), outputs=outputs, hidden=(5,), seed=1)
    bundle = compile_model(model, loss=loss, loss_options=options, name="m", verify=False)
    program, rng = bundle.program, np.random.default_rng(2)
    x = rng.standard_normal((50, 6)).astype(np.float32)
    shape = (50, *(int(d or 1) for d in program.target.shape[1:]))
    if program.classes:
        y: Any = rng.integers(-1 if options.ignore_index else 0, program.classes, shape)
    else:
        signs = rng.choice([-1.0, 1.0], shape)
        y = {"hinge": signs, "binary_cross_entropy": (signs + 1) / 2}.get(loss, rng.standard_normal(shape))
    examples = as_examples(x if loss == "reconstruction" else (x, y), program)
    engine = make_engine(program, "numpy")
    index = np.arange(50)
    _, metric = engine.evaluate(engine.load(bundle.parameters), examples.batch(program, index))
    found = score(export_onnx(program, bundle.parameters).SerializeToString(), program, examples, index)
    assert found == pytest.approx(metric / 50, rel=1e-5)


def tied() -> tuple[Bundle, Examples]:
    """Two layers of one weight, which onnxruntime cannot quantise for both: it has another scale for each side."""
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((24, 30)),
        "b": np.zeros(30),
        "c": np.zeros(24),
        "v": rng.standard_normal((24, 3)),
    }
    text = "h = Gemm(x, w, b); r = Relu(h); d = Gemm<transB=1>(r, w, c); y = MatMul(d, v)"
    model = model_of(text, weights, inputs={"x": ["n", 24]})
    bundle = compile_model(model, loss="mean_squared_error", name="tied", verify=False)
    x = rng.standard_normal((60, 24)).astype(np.float32)
    target = make_engine(bundle.program, "numpy").infer(bundle.parameters, {"x": x})["y"]
    return bundle, as_examples((x, target), bundle.program)


def test_an_operator_that_cannot_be_quantised_stays_in_float_and_the_others_do_not() -> None:
    bundle, examples = tied()
    data, figures = quantised(bundle.program, bundle.parameters, examples)
    assert figures["int8_leaves_in_float32"].count("Gemm '") == 1
    assert "MatMul" not in figures["int8_leaves_in_float32"]
    operators = [node.op_type for node in onnx.ModelProto.FromString(data).graph.node]
    assert operators.count("QuantizeLinear") >= 2
    x = examples.batch(bundle.program, np.arange(60))["x"]
    (found,) = onnxruntime.InferenceSession(data).run(None, {"x": x})
    expected = make_engine(bundle.program, "numpy").infer(bundle.parameters, {"x": x})["y"]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_a_model_of_which_nothing_can_be_quantised_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("of no use")

    monkeypatch.setattr(quantization, "quantize_dynamic", broken)
    bundle, _ = tied()
    with pytest.raises(CompileError, match="'tied': onnxruntime cannot quantise any operator of it: of no use"):
        quantised(bundle.program, bundle.parameters, None)


def test_a_quantised_file_that_is_larger_is_called_that() -> None:
    model = build_zoo_model("mlp", inputs=(4,), outputs=2, hidden=(3,), seed=0)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="tiny", verify=False)
    data, figures = quantised(bundle.program, bundle.parameters, None)
    assert len(data) > figures["float32_bytes"]
    assert f"not smaller ({len(data)} bytes, float32 {figures['float32_bytes']})" in figures["int8_note"]
    large = build_zoo_model("mlp", inputs=(64,), outputs=3, hidden=(64,), seed=0)
    bundle = compile_model(large, loss="softmax_cross_entropy", name="mlp", verify=False)
    assert "int8_note" not in quantised(bundle.program, bundle.parameters, None)[1]
