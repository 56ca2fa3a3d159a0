"""Where the batch stands, and models that take one size of it only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import model_of, run

from coordinator.compile import compile_model, load_onnx, merge_into_source
from coordinator.compile.notes import notes_of
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

CASES = Path(__file__).parents[1] / "data" / "onnx" / "cases"
RNG = np.random.default_rng(2)
GRU = {"W": RNG.standard_normal((1, 18, 5)), "R": RNG.standard_normal((1, 18, 6)), "B": RNG.standard_normal((1, 36))}


def compiled(model: onnx.ModelProto, **options: Any) -> Bundle:
    return compile_model(model, name="model", **{"loss": "softmax_cross_entropy", **options})


def said(model: onnx.ModelProto, **options: Any) -> str:
    with pytest.raises(CompileError) as caught:
        compiled(model, **options)
    return str(caught.value)


def per_step(text: str = "") -> onnx.ModelProto:
    """A GRU over [12, batch, 5] whose every step is classified: the output is [12, batch, 2]."""
    text = f"h, last = GRU<hidden_size=6>(x, W, R, B); s = Squeeze(h, one); {text or 'y = MatMul(s, V)'}"
    constants = {**GRU, "V": RNG.standard_normal((6, 2)), "one": np.array([1])}
    return model_of(text, constants, inputs={"x": [12, "N", 5]}, outputs=["y"])


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
def test_a_time_first_recurrent_model_trains_on_examples_that_come_batch_first(engine_name: str) -> None:
    source = load_onnx(CASES / "r9_time_first.onnx")
    bundle = compiled(source)
    (entry,) = bundle.program.inputs
    assert entry.name == "x" and entry.shape == (None, 12, 5)
    batch = {"x": RNG.standard_normal((32, 12, 5)).astype(np.float32)}
    batch["target"] = (batch["x"].sum(axis=(1, 2)) > 0).astype(np.int64)
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)
    losses = [engine.step(handle, batch, {"lr": 0.3}) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]

    trained = merge_into_source(bundle.program, engine.read(handle), source)

    assert [d.dim_value for d in trained.graph.input[0].type.tensor_type.shape.dim] == [12, 0, 5]
    (found,) = run(trained.SerializeToString(), {"x": batch["x"].transpose(1, 0, 2)}).values()
    (wanted,) = engine.infer(engine.read(handle), {"x": batch["x"]}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_output_that_is_time_first_gets_its_batch_first_too() -> None:
    source = per_step()
    bundle = compiled(source)
    assert bundle.program.target.shape == (None, 12)
    x = RNG.standard_normal((3, 12, 5)).astype(np.float32)
    (found,) = make_engine(bundle.program, "numpy").infer(bundle.parameters, {"x": x}).values()
    (wanted,) = run(source.SerializeToString(), {"x": x.transpose(1, 0, 2)}).values()
    np.testing.assert_allclose(found, wanted.transpose(1, 0, 2), rtol=1e-4, atol=1e-5)


def test_an_output_alone_may_be_time_first() -> None:
    source = per_step()
    source.graph.node.insert(0, helper.make_node("Transpose", ["z"], ["x"], perm=[1, 0, 2]))
    source.graph.input[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 12, 5]))
    assert compiled(source).program.target.shape == (None, 12)


def test_one_input_may_be_time_first_beside_another_that_is_not() -> None:
    model = per_step("y0 = MatMul(s, V); y = Add(y0, c)")
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 2]))
    assert {i.name: i.shape for i in compiled(model).program.inputs} == {"x": (None, 12, 5), "c": (None, 2)}


def test_an_open_dimension_beside_a_batch_of_one_is_not_taken_for_the_batch() -> None:
    model = model_of("y = MatMul(x, w)", {"w": RNG.standard_normal((5, 3))}, inputs={"x": [1, "seq", 5]})
    assert "input 'x': shape [1, 'seq', 5]: only the first dimension, the batch, may be open" in said(model)


def test_that_the_batch_was_moved_is_noted() -> None:
    source = load_onnx(CASES / "r9_time_first.onnx")
    assert notes_of(source, {}) == [
        "input x: the file has the batch in dimension 1; examples are given with it in front"
    ]


def fixed(text: str, size: int, constants: dict[str, Any], shape: tuple[int, ...] = (4,)) -> onnx.ModelProto:
    weights = {"w": RNG.standard_normal((4, 3)), **constants}
    return model_of(text, weights, inputs={"x": [size, *shape]})


def concat(n: int) -> onnx.ModelProto:
    return fixed("c = Concat<axis=1>(x, t); y = MatMul(c, w2)", n, {"t": np.ones((n, 2)), "w2": np.ones((6, 3))})


def reshape(n: int) -> onnx.ModelProto:
    return fixed("h = MatMul(x, w); y = Reshape(h, s)", n, {"s": np.array([3 * n])})


def initial_state(n: int) -> onnx.ModelProto:
    text = "t = Transpose<perm=[1, 0, 2]>(x); z = Reshape(flat, s); a, h = GRU<hidden_size=6>(t, W, R, B, , z); "
    more = {"V": np.ones((6, 2)), "zero": np.array([0]), "flat": np.zeros(6 * n), "s": np.array([1, -1, 6])}
    return fixed(f"{text} m = Squeeze(h, zero); y = MatMul(m, V)", n, {**GRU, **more}, (12, 5))


def mean_over_the_batch(n: int) -> onnx.ModelProto:
    return fixed("m = ReduceMean(x, zero); d = Sub(x, m); y = MatMul(d, w)", n, {"zero": np.array([0])})


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("model", [concat, reshape, initial_state, mean_over_the_batch])
def test_a_model_for_one_batch_size_is_refused_with_one_sentence_of_advice(model: Any, size: int) -> None:
    text = said(model(size))
    assert f"exported for batches of exactly {size}" in text
    assert text.count(". Export") == 1 and "dynamic_shapes=" in text and "dynamic_axes=" in text
    assert "ONNXRuntimeError" not in text and "ShapeInference" not in text and "\n" not in text


def test_the_node_that_holds_the_batch_size_is_named() -> None:
    model = concat(4)
    model.graph.node[0].name = "token"
    assert "its node 'token' (Concat) takes no other" in said(model)


def test_a_batch_size_inside_of_a_model_that_says_its_batch_is_open_is_told_too() -> None:
    model = initial_state(1)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    text = said(model)
    assert "does not take any number of examples" in text and "(GRU)" in text and "ONNXRuntimeError" not in text


QUANTISED = [
    ("", "QuantizeLinear"),
    ("", "DequantizeLinear"),
    ("", "DynamicQuantizeLinear"),
    ("", "QLinearMatMul"),
    ("", "QLinearConv"),
    ("", "MatMulInteger"),
    ("", "ConvInteger"),
    *(("com.microsoft", op) for op in ("QLinearAdd", "QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulNBits")),
]


@pytest.mark.parametrize(("domain", "op"), QUANTISED)
def test_a_quantised_model_is_called_that_and_the_float_model_is_asked_for(domain: str, op: str) -> None:
    model = model_of("y = MatMul(x, w)", {"w": RNG.standard_normal((4, 3))}, inputs={"x": ["n", 4]})
    model.graph.node.insert(0, helper.make_node(op, ["x"], ["q"], name="odd", domain=domain))
    text = said(model)
    assert f"is quantised (node 'odd': {op})" in text and "float32 model" in text


def test_what_onnxruntime_quantised_is_called_quantised(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(CASES.parent / "mlp.script.onnx", tmp_path / "int8.onnx")
    assert "is quantised" in said(load_onnx(tmp_path / "int8.onnx"))
