"""What an ONNX file may look like, what is refused, and whether the refusal says where and what to do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_graphs import gradients, model_of, run

from coordinator.compile import build_zoo_model, compile_model, load_onnx
from coordinator.compile.rules import RULES
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle

CASES = Path(__file__).parents[1] / "data" / "onnx" / "cases"
RNG = np.random.default_rng(4)
W = RNG.standard_normal((4, 3))


def compiled(model: onnx.ModelProto, **options: Any) -> Bundle:
    return compile_model(model, name="model", **{"loss": "mean_squared_error", **options})


def refused(model: onnx.ModelProto, *messages: str, **options: Any) -> None:
    with pytest.raises(CompileError) as caught:
        compiled(model, **options)
    for message in messages:
        assert message in str(caught.value)


def linear(**options: Any) -> onnx.ModelProto:
    return model_of("y = MatMul(x, w)", {"w": W}, **{"inputs": {"x": ["n", 4]}, **options})


def names(bundle: Bundle) -> list[str]:
    return [t.name for t in bundle.program.spec]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString()[:keep])
    with pytest.raises(CompileError, match=re.escape(str(path))) as caught:
        load_onnx(path)
    assert "complete" in str(caught.value)


def test_a_missing_file_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot be read"):
        load_onnx(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("this is not a model")
    with pytest.raises(CompileError, match="not an ONNX model"):
        load_onnx(tmp_path / "text.onnx")


def test_a_saved_model_loads_and_compiles(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "model.onnx")
    assert names(compiled(load_onnx(tmp_path / "model.onnx"))) == ["w"]


def test_a_foreign_operator_is_refused_with_its_node_and_domain() -> None:
    model = linear()
    model.graph.node[0].domain = "com.microsoft"
    model.graph.node[0].name = "fused"
    refused(model, "node 'fused'", "'MatMul'", "'com.microsoft'", "onnxruntime's optimiser")


def test_an_operator_without_a_rule_is_refused_with_node_operator_opset_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ad", None)  # as if it were not installed
    model = model_of(
        "h = MatMul(x, w); g = Shrink(h); e = Bernoulli(g); y = Mul(e, h)", {"w": W}, inputs={"x": ["n", 4]}
    )
    model.graph.node[1].name = "odd"
    refused(
        model,
        "node 'odd' (Shrink, opset 21)",
        "no gradient rule (also without a rule here: Bernoulli)",
        "freeze",
        "MatMul",
    )


@pytest.mark.parametrize(
    "text",
    [
        "h = MatMul(x, w); y, rm, rv = BatchNormalization<training_mode=1>(h, one, zero, zero, one)",
        "h = MatMul(x, w); y = Dropout(h, ratio, on)",
    ],
)
def test_a_model_exported_in_training_mode_is_refused_with_its_node(text: str) -> None:
    constants = {"w": W, "one": np.ones(3), "zero": np.zeros(3), "ratio": np.float32(0.5), "on": np.array(True)}
    refused(model_of(text, constants, inputs={"x": ["n", 4]}), "node 'y' (", "in training mode", "model.eval()")


def test_an_operator_without_a_rule_before_the_parameters_needs_none() -> None:
    model = model_of("h = Shrink(x); y = MatMul(h, w)", {"w": W}, inputs={"x": ["n", 4]})
    assert "Shrink" not in RULES and names(compiled(model)) == ["w"]


def test_a_frozen_parameter_stays_constant_and_needs_no_rule_before_it() -> None:
    text, weights = "h = MatMul(x, w); g = Shrink(h); y = MatMul(g, v)", {"w": W, "v": RNG.standard_normal((3, 2))}
    model = model_of(text, weights, inputs={"x": ["n", 4]})
    assert names(compiled(model, frozen=["w"])) == ["v"]
    refused(model, "frozen: the model has no initializer 'u'", frozen=["u"])
    refused(linear(), "no parameters to train", frozen=["w"])


def test_a_parameter_that_the_loss_does_not_see_is_refused() -> None:
    model = model_of("y = MatMul(x, w); z = MatMul(x, v)", {"w": W, "v": W}, inputs={"x": ["n", 4]}, outputs=["y", "z"])
    refused(model, "parameter 'v' does not influence", "(y)", "freeze")
    assert names(compiled(model, output="z", frozen=["w"])) == ["v"]
    refused(model, "output 'q': the model has no such output; it has y, z", output="q")


def test_nodes_without_effect_bring_no_parameters() -> None:
    model = model_of("y = MatMul(x, w); z = MatMul(x, v)", {"w": W, "v": W}, inputs={"x": ["n", 4]})
    assert names(compiled(model)) == ["w"]


def test_a_double_model_is_refused() -> None:
    refused(linear(dtype=np.float64), "input 'x'", "float64", "float32")
    mixed = linear()
    mixed.graph.initializer[0].CopyFrom(numpy_helper.from_array(W, "w"))
    mixed.graph.node.insert(0, helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT))
    mixed.graph.node[1].input[1] = "wf"
    refused(mixed, "no parameters to train")


def test_weights_that_are_not_finite_are_refused() -> None:
    refused(model_of("y = MatMul(x, w)", {"w": W * np.nan}, inputs={"x": ["n", 4]}), "initializer 'w'", "NaN")


def test_an_input_that_is_open_in_two_dimensions_is_refused() -> None:
    refused(linear(inputs={"x": ["n", "m", 4]}), "input 'x'", "['n', 'm', 4]", "only the first dimension")


def test_a_name_that_the_training_graph_uses_is_refused() -> None:
    model = model_of("y = MatMul(target, w)", {"w": W}, inputs={"target": ["n", 4]})
    refused(model, "the name 'target'", "rename")
    refused(model_of("y = MatMul(x, lr)", {"lr": W}, inputs={"x": ["n", 4]}), "the name 'lr'")


def test_an_invalid_graph_is_refused() -> None:
    model = linear()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]))
    model.graph.node[0].input[1] = "nowhere"
    refused(model, "not valid ONNX", "nowhere")
    refused(onnx.ModelProto(), "does not say which opset")


@pytest.mark.parametrize("opset", [8, 11, 13, 17, 21, min(23, onnx.defs.onnx_opset_version())])
def test_opsets_old_and_new_are_converted(opset: int) -> None:
    text = "h = Conv<pads=[1,1,1,1]>(x, k); r = Relu(h); p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r); "
    text += "f = Flatten(p); y = Gemm(f, w, b)"
    weights = {"k": RNG.standard_normal((2, 1, 3, 3)), "w": RNG.standard_normal((8, 3)), "b": np.zeros(3)}
    model = model_of(text, weights, inputs={"x": ["n", 1, 4, 4]}, opset=opset, ir_version=8)
    bundle = compiled(model)
    assert names(bundle) == ["k", "w", "b"]
    assert [o.version for o in onnx.ModelProto.FromString(bundle.program.train).opset_import] == [21]


@pytest.mark.parametrize(
    ("automatic", "pads"), [("VALID", [0, 0, 0, 0]), ("SAME_UPPER", [1, 0, 1, 1]), ("SAME_LOWER", [1, 1, 1, 0])]
)
def test_automatic_padding_is_written_out(automatic: str, pads: list[int]) -> None:
    weights = {"k": RNG.standard_normal((2, 1, 3, 2))}
    plans = [
        compiled(model_of(f"y = Conv<{attribute}>(x, k)", weights, inputs={"x": ["n", 1, 5, 6]})).program.train_plan
        for attribute in (f'auto_pad="{automatic}"', f"pads={pads}")
    ]
    assert plans[0].nodes == plans[1].nodes


def test_an_old_model_that_lists_its_weights_as_inputs_has_one_input() -> None:
    model = linear(opset=9, ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    bundle = compiled(model)
    assert [i.name for i in bundle.program.inputs] == ["x"] and names(bundle) == ["w"]


def test_local_functions_are_inlined() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[n,4] x) => (float[n,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = local.dense(x, w) }
        <domain: "local", opset_import: ["" : 21]> dense (a, b) => (c) { d = MatMul(a, b)  c = Tanh(d) }"""
    )
    assert names(compiled(model)) == ["w"]


def flattening(shape: str, **constants: Any) -> onnx.ModelProto:
    """A convolution, flattened by ``shape``, and a dense layer behind it."""
    weights = {"k": RNG.standard_normal((2, 1, 1, 1)), "w": RNG.standard_normal((18, 3))}
    text = f"h = Conv(x, k); {shape}; f = Reshape(h, s); y = MatMul(f, w)"
    return model_of(text, {**weights, **constants}, inputs={"x": ["n", 1, 3, 3]})


@pytest.mark.parametrize(
    "shape",
    [
        "d = Shape(h); i = Constant<value_ints=[0]>(); b = Gather(d, i); m = Constant<value_ints=[-1]>(); "
        "s = Concat<axis=0>(b, m)",
        "d = Shape<start=0, end=1>(x); m = Constant<value_ints=[18]>(); s = Concat<axis=0>(d, m)",
        "d = Shape<start=0, end=1>(x); q = Squeeze(d); m = Constant<value_ints=[-1]>(); r = Reshape(q, m); "
        "s = Concat<axis=0>(r, m)",
        "d = Size(h); t = Constant<value_int=18>(); b = Div(d, t); u = Constant<value_ints=[0]>(); "
        "v = Unsqueeze(b, u); m = Constant<value_ints=[18]>(); s = Concat<axis=0>(v, m)",
        "s = Constant<value_ints=[0, -1]>()",
        "s = Constant<value_ints=[-1, 18]>()",
    ],
)
def test_shape_arithmetic_is_folded_away(shape: str) -> None:
    bundle = compiled(flattening(shape))
    assert names(bundle) == ["k", "w"]
    operators = {n.op_type for n in onnx.ModelProto.FromString(bundle.program.infer).graph.node}
    assert operators == {"Conv", "Reshape", "MatMul"}


def test_positions_by_arange_compile() -> None:
    bundle = compiled(load_onnx(CASES / "r3_arange.onnx"), loss="softmax_cross_entropy")
    assert names(bundle) == ["E", "P", "W", "b"]
    assert not {"CastLike", "Range"} & {node.op for node in bundle.program.train_plan.nodes}


POSITIONS = {
    "whole": "n = Constant<value_int=3>(); a = Constant<value_int=0>(); c = Constant<value_int=1>(); "
    "p = Range(a, n, c)",
    "floats": "n = Constant<value_float=2.9>(); a = Constant<value_float=0.0>(); c = Constant<value_float=1.0>(); "
    "r = Range(a, n, c); p = Cast<to=7>(r)",
    "half steps": "n = Constant<value_float=1.5>(); a = Constant<value_float=0.0>(); c = Constant<value_float=0.5>(); "
    "r = Range(a, n, c); two = Constant<value_float=2.0>(); d = Mul(r, two); p = Cast<to=7>(d)",
    "ceiling": "d = Shape<start=1>(x); f = Cast<to=1>(d); half = Constant<value_float=0.5>(); g = Mul(f, half); "
    "up = Ceil(g); w3 = Cast<to=7>(up); n = ReduceSum<keepdims=0>(w3); a = Constant<value_int=0>(); "
    "c = Constant<value_int=1>(); p = Range(a, n, c)",
    "running sum": "o = Constant<value_ints=[1, 1, 1]>(); z = Constant<value_int=0>(); "
    "s = CumSum(o, z); one = Constant<value_int=1>(); p = Sub(s, one)",
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_arithmetic_of_floats_that_leads_to_positions_is_folded_away(positions: str) -> None:
    text = f"{positions}; q = Gather(e, p); h = MatMul(x, w); u = Unsqueeze(h, axes); t = Mul(u, q); "
    text += "y = ReduceSum<keepdims=0>(t, axes)"
    weights = {"w": RNG.standard_normal((5, 3)), "e": RNG.standard_normal((7, 3)), "axes": np.array([1])}
    bundle = compiled(model_of(text, weights, inputs={"x": ["n", 5]}))
    assert sorted(names(bundle)) == ["e", "w"]
    assert not {"Cast", "Ceil", "Range", "CumSum"} & {node.op for node in bundle.program.infer_plan.nodes}


def test_computed_scales_of_a_resize_are_folded_away() -> None:
    text = "h = Conv(x, k); two = Add(one, one); s = Concat<axis=0>(ones, two, two); r = Resize(h, , s); "
    constants = {"k": RNG.standard_normal((2, 1, 1, 1)), "one": np.ones(1), "ones": np.ones(2)}
    bundle = compiled(
        model_of(
            text + "y = Conv(r, c)", {**constants, "c": RNG.standard_normal((1, 2, 1, 1))}, inputs={"x": ["n", 1, 2, 2]}
        )
    )
    assert names(bundle) == ["k", "c"] and bundle.program.target.shape == (None, 1, 4, 4)
    assert not {"Add", "Concat"} & {node.op for node in bundle.program.infer_plan.nodes}


def test_a_factor_that_is_computed_from_constants_is_one_number() -> None:
    text = "d = Shape<start=1>(x); f = Cast<to=1>(d); s = ReduceSum<keepdims=0>(f); r = Sqrt(s); "
    text += "h = MatMul(x, w); y = Div(h, r)"
    bundle = compiled(model_of(text, {"w": W}, inputs={"x": ["n", 4]}))
    assert [node.op for node in bundle.program.infer_plan.nodes] == ["MatMul", "Div"]


def test_arithmetic_that_a_parameter_takes_part_in_stays() -> None:
    text = "s = Add(a, b); m = ReduceSum<keepdims=0>(c); h = MatMul(x, w); g = Add(h, s); y = Mul(g, m)"
    weights = {"w": W, **{name: RNG.standard_normal(3) for name in "abc"}}
    assert sorted(names(compiled(model_of(text, weights, inputs={"x": ["n", 4]})))) == ["a", "b", "c", "w"]


def test_a_batch_size_that_the_exporter_wrote_down_is_opened() -> None:
    weights = {"k": RNG.standard_normal((2, 1, 1, 1)), "w": RNG.standard_normal((18, 3)), "s": np.array([1, 18])}
    text = "h = Conv(x, k); f = Reshape(h, s); y = MatMul(f, w)"
    fixed = model_of(text, weights, inputs={"x": [1, 1, 3, 3]})
    bundle = compiled(fixed)
    x = RNG.standard_normal((5, 1, 3, 3)).astype(np.float32)
    together = run(bundle.program.infer, {"x": x, **weights})["y"]
    for i in range(5):
        np.testing.assert_allclose(together[i], run(fixed.SerializeToString(), {"x": x[i : i + 1]})["y"][0], rtol=1e-5)


def test_a_model_that_mixes_its_examples_is_refused() -> None:
    model = model_of(
        "m = ReduceMax<keepdims=1>(x, a); d = Sub(x, m); y = MatMul(d, w)",
        {"w": W, "a": np.array([0])},
        inputs={"x": ["n", 4]},
    )
    refused(model, "output 'y'", "a batch of one")


def test_a_batch_size_that_cannot_be_opened_is_refused() -> None:
    text = "h = Expand(x, s); y = MatMul(h, w)"
    refused(model_of(text, {"w": W, "s": np.array([5, 4])}, inputs={"x": [5, 4]}), "exactly 5", "dynamic_axes")


def test_constants_stay_constants_and_only_parameter_slots_hold_parameters() -> None:
    weights = {"w": W, "mean": np.arange(4.0), "half": np.array(0.5), "b": np.zeros(3), "deviation": np.full(4, 2.0)}
    text = "c = Sub(x, mean); n = Div(c, deviation); h = MatMul(n, w); g = Add(h, b); y = Mul(g, half)"
    bundle = compiled(model_of(text, weights, inputs={"x": ["n", 4]}))
    assert names(bundle) == ["w", "b"]
    kept = {t.name for t in onnx.ModelProto.FromString(bundle.program.infer).graph.initializer}
    assert kept == {"mean", "deviation", "half"}


def test_zero_biases_that_an_exporter_merged_are_told_apart() -> None:
    text = "h = Gemm(x, w, zeros); t = Tanh(h); y = Gemm(t, v, zeros)"
    weights = {"w": RNG.standard_normal((4, 3)), "v": RNG.standard_normal((3, 3)), "zeros": np.zeros(3)}
    model = model_of(text, weights, inputs={"x": ["n", 4]})
    model.graph.node[2].name = "second"
    assert names(compiled(model)) == ["w", "zeros", "v", "zeros@second"]


def test_biases_merged_through_identity_nodes_are_told_apart_and_keep_their_names() -> None:
    text = "copy = Identity(zeros); h = Gemm(x, w, zeros); t = Tanh(h); y = Gemm(t, v, copy)"
    weights = {"w": RNG.standard_normal((4, 3)), "v": RNG.standard_normal((3, 3)), "zeros": np.zeros(3)}
    assert names(compiled(model_of(text, weights, inputs={"x": ["n", 4]}))) == ["w", "zeros", "v", "copy"]


@pytest.mark.parametrize(
    "text",
    [
        "h = Gemm(x, w, zeros); t = Tanh(h); y = Gemm(t, w, zeros)",
        "a = MatMul(x, w); h = Add(a, zeros); t = Tanh(h); b = MatMul(t, w); y = Add(b, zeros)",
    ],
)
def test_a_layer_used_twice_stays_one_layer(text: str) -> None:
    weights = {"w": RNG.standard_normal((3, 3)).astype(np.float32), "zeros": np.zeros(3, np.float32)}
    bundle = compiled(model_of(text, weights, inputs={"x": ["n", 3]}))
    assert names(bundle) == ["w", "zeros"]
    x, target = (RNG.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
    _, found = gradients(bundle, {"x": x, "target": target})
    t = np.tanh(x @ weights["w"])
    d = 2 * (t @ weights["w"] - target) / target.size
    inner = (d @ weights["w"].T) * (1 - t * t)
    np.testing.assert_allclose(found["w"], t.T @ d + x.T @ inner, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["zeros"], d.sum(axis=0) + inner.sum(axis=0), rtol=1e-4, atol=1e-6)


def test_constant_of_shape_and_every_form_of_constant_are_understood() -> None:
    text = "s = Shape(x); z = ConstantOfShape(s); o = Constant<value_float=1.0>(); "
    text += "p = Add(z, o); q = Add(x, p); y = MatMul(q, w)"
    bundle = compiled(model_of(text, {"w": W}, inputs={"x": ["n", 4]}))
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(bundle.program.infer, {"x": x, "w": W})["y"], (x + 1) @ W, rtol=1e-5)


def test_two_inputs_and_integer_inputs_are_taken() -> None:
    graph = parser.parse_graph(
        "g (float[n,4] x, int64[n,4] flags) => (float[n,3] y){ f = Cast<to=1>(flags)  p = Mul(x, f)  y = MatMul(p, w) }"
    )
    graph.initializer.append(numpy_helper.from_array(W.astype(np.float32), "w"))
    bundle = compiled(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    assert [(i.name, i.dtype, i.shape) for i in bundle.program.inputs] == [
        ("x", "float32", (None, 4)),
        ("flags", "int64", (None, 4)),
    ]


def test_compiling_leaves_the_model_alone_and_gives_the_same_bytes_again() -> None:
    model = build_zoo_model("cnn", inputs=(1, 8, 8), outputs=3, seed=0)
    before = model.SerializeToString(deterministic=True)
    first, second = (compiled(model, loss="softmax_cross_entropy", verify=False) for _ in range(2))
    assert model.SerializeToString(deterministic=True) == before
    assert first.program.encode() == second.program.encode()


@pytest.mark.parametrize("form", ["initializer", "constant"])
def test_infinity_of_an_attention_mask_compiles_wherever_it_is_kept(form: str) -> None:
    bundle = compiled(load_onnx(CASES / f"r4_neginf_{form}.onnx"), loss="softmax_cross_entropy")
    assert names(bundle) == ["A", "a", "W", "b"]
