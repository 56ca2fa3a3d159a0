"""A model that normalises its input takes raw units, whatever reads the input, on both engines and when exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_graphs import model_of, run

from coordinator.compile import (
    Lora,
    LossOptions,
    NormaliseOptions,
    build_zoo_model,
    compile_model,
    describe,
    export_onnx,
    load_onnx,
    merge_into_source,
)
from coordinator.compile.sklearn import cut_heads
from coordinator.quantize import quantised
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import TrainResult, train_locally
from edge_sdk.training.own_constants import own_constants, with_constants
from edge_sdk.wire.plan import TrainingPlan

MODELS = Path(__file__).resolve().parents[1] / "data" / "onnx"
FEDERATED = NormaliseOptions("federated")
WITH_MISSING = NormaliseOptions("federated", missing="mean")
RNG = np.random.default_rng(7)


def weights(*shape: int) -> NDArray[np.float32]:
    return (0.3 * RNG.standard_normal(shape)).astype(np.float32)


def mlp(features: int = 3, **options: Any) -> onnx.ModelProto:
    return build_zoo_model("mlp", inputs=(features,), outputs=2, hidden=(8,), seed=1, **options)


def dense(shape: list[Any]) -> onnx.ModelProto:
    return model_of("y = MatMul(x, w)", {"w": weights(shape[-1], 2)}, inputs={"x": shape})


def convolution(channels: int, *, last: bool = False) -> onnx.ModelProto:
    """A Conv over [N, C, L], or over [N, L, C] that is turned around first, as Keras has it."""
    first, shape = ("t = Transpose<perm = [0, 2, 1]>(x); ", ["n", 12, channels]) if last else ("", ["n", channels, 12])
    text = f"{first}c = Conv<kernel_shape = [3]>({'t' if last else 'x'}, k); g = GlobalAveragePool(c); "
    text += "f = Flatten<axis = 1>(g); y = MatMul(f, w)"
    return model_of(text, {"k": weights(4, channels, 3), "w": weights(4, 2)}, inputs={"x": shape})


def recurrent(op: str, gates: int) -> onnx.ModelProto:
    text = f"t = Transpose<perm = [1, 0, 2]>(x); s, h = {op}<hidden_size = 5>(t, w, r, b); "
    text += "q = Squeeze(h, zero); y = MatMul(q, v)"
    held = {"w": weights(1, gates * 5, 4), "r": weights(1, gates * 5, 5), "b": weights(1, gates * 10)}
    return model_of(text, {**held, "v": weights(5, 2), "zero": np.array([0])}, inputs={"x": ["n", 9, 4]})


def image_mlp() -> onnx.ModelProto:
    return build_zoo_model("mlp", inputs=(1, 28, 28), outputs=2, hidden=(8,), seed=1)


def batch_normed() -> onnx.ModelProto:
    text = "h = MatMul(x, w); n = BatchNormalization(h, s, b, m, v); r = Relu(n); y = MatMul(r, u)"
    norm = {"s": np.ones(6), "b": np.zeros(6), "m": np.zeros(6), "v": np.ones(6)}
    return model_of(text, {"w": weights(3, 6), **norm, "u": weights(6, 2)}, inputs={"x": ["n", 3]})


SHAPES: list[Any] = [
    ("dense", lambda: dense(["n", 6]), 1, (6,)),
    ("dense_over_a_sequence", lambda: dense(["n", 5, 6]), 2, (6,)),
    ("conv1d", lambda: convolution(3), 1, (3, 1)),
    ("conv1d_features_last", lambda: convolution(3, last=True), 2, (3,)),
    ("lstm", lambda: recurrent("LSTM", 4), 2, (4,)),
    ("gru", lambda: recurrent("GRU", 3), 2, (4,)),
    ("one_feature", lambda: dense(["n", 1]), 1, (1,)),
    ("image", lambda: build_zoo_model("cnn", inputs=(1, 28, 28), outputs=2, channels=(2, 3), seed=0), 1, (1, 1, 1)),
    ("image_flattened", image_mlp, 1, (1, 1, 1)),
    ("window_flattened", lambda: build_zoo_model("mlp", inputs=(9, 4), outputs=2, hidden=(8,), seed=1), 2, (4,)),
]


def compiled(model: onnx.ModelProto, options: NormaliseOptions | None = FEDERATED, **more: Any) -> Bundle:
    return compile_model(model, normalise=options, name="test", **{"loss": "softmax_cross_entropy", **more})


def raw_values(shape: tuple[int | None, ...], axis: int, count: int = 40) -> NDArray[np.float32]:
    """Features of very different sizes."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((count, *(d or 1 for d in shape[1:])))
    place = [1] * x.ndim
    place[axis] = -1
    number = np.arange(x.shape[axis])
    return (x * (10.0 ** (2 - number % 3)).reshape(place) + (1000.0 * (number - 1)).reshape(place)).astype(np.float32)


def ready(bundle: Bundle, x: NDArray[Any]) -> NDArray[np.float32]:
    """The parameters with the mean and the scale of ``x``."""
    examples = Examples({bundle.program.inputs[0].name: x}, np.zeros(len(x)))
    return with_constants(bundle.program, bundle.parameters, own_constants(bundle.program, examples))


def by_hand(x: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """What the model should see, in float64 and without our code."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    wide = x.astype(np.float64)
    mean, spread = np.nanmean(wide, axis=others, keepdims=True), np.nanstd(wide, axis=others, keepdims=True)
    seen = np.divide(wide - mean, spread, out=np.zeros_like(wide), where=spread > 0)
    return np.nan_to_num(np.clip(seen, -10, 10)).astype(np.float32)


# --- what the model sees ---


@pytest.mark.parametrize(("name", "make", "axis", "shape"), SHAPES, ids=[entry[0] for entry in SHAPES])
def test_raw_units_give_what_the_source_gives_for_normalised_ones(
    name: str, make: Callable[[], onnx.ModelProto], axis: int, shape: tuple[int, ...]
) -> None:
    source = make()
    bundle = compiled(source)
    program = bundle.program
    assert program.normalise is not None and (program.normalise.axis, program.normalise.features) == (axis, shape[0])
    assert program.spec["normalise/mean"].shape == program.spec["normalise/scale"].shape == shape
    x = raw_values(program.inputs[0].shape, axis)
    vector = ready(bundle, x)
    (expected,) = run(source.SerializeToString(), {"x": by_hand(x, axis)}).values()
    for engine in ("numpy", "onnxruntime"):
        (found,) = make_engine(program, engine).infer(vector, {"x": x}).values()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mean", "seen", "missing", "scaled", "batch"])
def test_an_input_may_be_called_as_it_likes(name: str) -> None:
    source = model_of(f"y = MatMul({name}, w)", {"w": weights(3, 2)}, inputs={name: ["n", 3]})
    bundle = compiled(source, WITH_MISSING)
    x = raw_values((None, 3), 1)
    vector = ready(bundle, x)
    for model in (export_onnx(bundle.program, vector), merge_into_source(bundle.program, vector, source)):
        expected = run(source.SerializeToString(), {name: by_hand(x, 1)})["y"]
        np.testing.assert_allclose(run(model.SerializeToString(), {name: x})["y"], expected, rtol=1e-3, atol=1e-3)


def test_before_anything_is_known_the_model_is_the_source() -> None:
    bundle = compiled(mlp())
    spec = bundle.program.spec
    assert [t.name for t in spec][-2:] == ["normalise/mean", "normalise/scale"]
    assert {t.name for t in spec if t.kind == "constant"} == {"normalise/mean", "normalise/scale"}
    values = spec.unflatten(bundle.parameters)
    assert values["normalise/mean"].tolist() == [0, 0, 0] and values["normalise/scale"].tolist() == [1, 1, 1]


def test_the_axis_that_was_named_is_taken() -> None:
    program = compiled(dense(["n", 5, 6]), replace(FEDERATED, axis=1)).program
    assert program.normalise is not None and program.normalise.features == 5
    assert program.spec["normalise/mean"].shape == (5, 1)


def test_a_feature_that_does_not_vary_or_is_always_missing_does_not_count() -> None:
    bundle = compiled(mlp(), WITH_MISSING)
    x = raw_values((None, 3), 1)
    x[:, 0], x[:, 2] = 7.0, np.nan
    vector = ready(bundle, x)
    changed = x.copy()
    changed[:, 0] += 1e6
    for engine in (make_engine(bundle.program, "numpy"), make_engine(bundle.program, "onnxruntime")):
        first, again = (engine.infer(vector, {"x": each})["logits"] for each in (x, changed))
        assert np.isfinite(first).all() and np.array_equal(first, again)


def test_a_missing_value_is_taken_as_the_mean() -> None:
    bundle = compiled(mlp(), WITH_MISSING)
    x = raw_values((None, 3), 1)
    vector = ready(bundle, x)
    gaps, filled = x.copy(), x.copy()
    gaps[::3, 1] = np.nan
    filled[::3, 1] = bundle.program.spec.unflatten(vector)["normalise/mean"][1]
    for engine in (make_engine(bundle.program, "numpy"), make_engine(bundle.program, "onnxruntime")):
        assert np.array_equal(
            engine.infer(vector, {"x": gaps})["logits"], engine.infer(vector, {"x": filled})["logits"]
        )


@pytest.mark.parametrize(("inputs", "axis"), [((6,), 1), ((4, 6), 2), ((2, 8, 8), 1)])
def test_indicators_say_where_a_value_is_missing(inputs: tuple[int, ...], axis: int) -> None:
    kind = "cnn" if len(inputs) == 3 else "mlp"
    source = build_zoo_model(kind, inputs=inputs, outputs=2, hidden=(8,), seed=1)
    bundle = compiled(source, replace(WITH_MISSING, indicator=True, axis=axis))
    half = [None, *inputs]
    half[axis] = inputs[axis - 1] // 2
    assert bundle.program.inputs[0].shape == tuple(half)
    x = raw_values(tuple(half), axis)
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    seen = np.concatenate([by_hand(x, axis), np.isnan(x).astype(np.float32)], axis=axis)
    expected = run(source.SerializeToString(), {"x": seen})["logits"]
    for engine in ("numpy", "onnxruntime"):
        found = make_engine(bundle.program, engine).infer(ready(bundle, x), {"x": x})["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_examples_in_bytes_and_whole_numbers_are_raw_units_too() -> None:
    bundle = compiled(build_zoo_model("cnn", inputs=(1, 8, 8), outputs=2, channels=(2, 3), seed=0))
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8))
    y = np.arange(20) % 2
    losses = [trained(bundle, as_examples((x.astype(dtype), y), bundle.program)).loss for dtype in (np.uint8, np.int64)]
    assert losses[0] == losses[1]


EXPORTS: list[Any] = [
    ("cnn1d.dynamo", 1, 9),
    ("cnn1d.script", 1, 9),
    ("fedavg_cnn.dynamo", 1, 1),
    ("gru.script", 2, 9),
    ("keras_cnn", 3, 1),
    ("keras_mlp", 1, 6),
    ("lstm.dynamo", 2, 9),
    ("mlp.script", 1, 1),
    ("resnet.script", 1, 3),
    ("sklearn_logistic", 1, 6),
    ("sklearn_mlp_binary", 1, 6),
    ("tcn.dynamo", 1, 9),
]
"""Exports of PyTorch (by either exporter), Keras, whose images have their channels last, and scikit-learn."""


@pytest.mark.parametrize(("name", "axis", "features"), EXPORTS, ids=[entry[0] for entry in EXPORTS])
def test_features_of_real_exports_are_found_and_their_sources_written_for_raw_units(
    name: str, axis: int, features: int
) -> None:
    source = load_onnx(MODELS / f"{name}.onnx")
    bundle = compiled(source, WITH_MISSING, loop=False)
    program = bundle.program
    assert program.normalise is not None and (program.normalise.axis, program.normalise.features) == (axis, features)
    x = raw_values(program.inputs[0].shape, axis, 6)
    x.flat[::17] = np.nan
    vector, entry = ready(bundle, x), program.inputs[0].name
    written = cut_heads(merge_into_source(program, vector, source)).SerializeToString()
    expected = run(cut_heads(source).SerializeToString(), {entry: by_hand(x, axis)})
    for output, found in run(written, {entry: x}).items():
        np.testing.assert_allclose(found, expected[output], rtol=1e-3, atol=2e-3)


# --- training ---


def labelled(program: Program, count: int = 300) -> Examples:
    """Two classes that one feature of three tells apart, in raw units."""
    x = raw_values((None, 3), 1, count)
    y = (x[:, 1] > 0).astype(np.int64)
    return as_examples((x, y), program)


def trained(bundle: Bundle, examples: Examples, engine: str = "onnxruntime", **options: Any) -> TrainResult:
    x = examples.inputs[bundle.program.inputs[0].name]
    plan = TrainingPlan(**{"epochs": 3, "batch_size": 16, **options})
    rng = np.random.Generator(np.random.PCG64(3))
    runner = make_engine(bundle.program, engine)
    return train_locally(runner, ready(bundle, x), examples, plan, rng=rng, clock=lambda: 0.0)


def test_raw_units_train_as_well_as_normalised_ones() -> None:
    bundle = compiled(mlp())
    examples = labelled(bundle.program)
    vector = ready(bundle, examples.inputs["x"])
    moved = vector + trained(bundle, examples, epochs=30).delta
    found = make_engine(bundle.program, "numpy").infer(moved, {"x": examples.inputs["x"]})["logits"]
    assert (found.argmax(axis=1) == examples.target).mean() > 0.95
    plain = compile_model(mlp(), loss="softmax_cross_entropy", name="test")
    wide = as_examples((by_hand(examples.inputs["x"], 1), examples.target), plain.program)
    runner, rng = make_engine(plain.program, "onnxruntime"), np.random.Generator(np.random.PCG64(3))
    plan = TrainingPlan(epochs=30, batch_size=16)
    expected = train_locally(runner, plain.parameters, wide, plan, rng=rng, clock=lambda: 0.0)
    trainable = bundle.program.spec.mask("trainable")
    np.testing.assert_allclose((moved - vector)[trainable], expected.delta, rtol=1e-2, atol=1e-3)


VARIANTS: list[Any] = [
    {"optimizer": name, "proximal": True, "weight_decay": name not in ("adamw",), "clipped": True}
    for name in ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
]


@pytest.mark.parametrize("loop", [False, True], ids=["steps", "loop"])
@pytest.mark.parametrize("options", VARIANTS, ids=[str(each["optimizer"]) for each in VARIANTS])
def test_no_optimiser_pull_or_clip_moves_the_constants(options: dict[str, Any], loop: bool) -> None:
    bundle = compiled(mlp(), WITH_MISSING, loop=loop, **options)
    program = bundle.program
    constant = program.spec.mask("constant")
    assert not any("normalise" in name for name, _ in program.state)
    named = {info.name for info in onnx.ModelProto.FromString(program.train).graph.input}
    assert not any(name.startswith("anchor/normalise") for name in named)
    scalars = {"mu": 0.5, "gradient_norm_max": 0.1}
    scalars |= {"weight_decay": 0.3} if "weight_decay" in program.scalars else {}
    deltas = []
    for engine in ("numpy", "onnxruntime"):
        result = trained(bundle, labelled(program), engine, scalars=scalars, clip_norm=0.01)
        assert not result.delta[constant].any() and result.delta[~constant].any()
        deltas.append(result.delta)
    np.testing.assert_allclose(deltas[0], deltas[1], atol=1e-5)


def test_running_statistics_go_on_beside_constants() -> None:
    bundle = compiled(batch_normed(), loss="softmax_cross_entropy")
    spec = bundle.program.spec
    assert {t.kind for t in spec} == {"trainable", "buffer", "constant"}
    deltas = [trained(bundle, labelled(bundle.program), engine).delta for engine in ("numpy", "onnxruntime")]
    np.testing.assert_allclose(deltas[0], deltas[1], rtol=1e-3, atol=1e-4)
    assert deltas[0][spec.mask("buffer")].all() and not deltas[0][spec.mask("constant")].any()


@pytest.mark.parametrize(
    ("options", "moving"),
    [
        ({"lora": Lora(1, ("fc1.weight",))}, {"fc1.weight.lora_a", "fc1.weight.lora_b"}),
        ({"train": ("fc2*",)}, {"fc2.weight", "fc2.bias"}),
        ({"freeze": ("fc2*",)}, {"fc1.weight", "fc1.bias"}),
    ],
    ids=["lora", "train", "freeze"],
)
def test_adapters_and_frozen_parameters_leave_the_constants_in(options: dict[str, Any], moving: set[str]) -> None:
    source = mlp()
    bundle = compiled(source, **options)
    spec = bundle.program.spec
    assert {t.name for t in spec} == moving | {"normalise/mean", "normalise/scale"}
    examples = labelled(bundle.program)
    x = examples.inputs["x"]
    moved = ready(bundle, x) + trained(bundle, examples).delta
    exported = run(merge_into_source(bundle.program, moved, source).SerializeToString(), {"x": x})["logits"]
    found = make_engine(bundle.program, "numpy").infer(moved, {"x": x})["logits"]
    np.testing.assert_allclose(exported, found, rtol=1e-4, atol=1e-4)
    with pytest.raises(CompileError, match="nothing is left to train"):
        compiled(source, freeze=("fc*",))


def test_a_reconstruction_is_compared_in_the_models_units() -> None:
    source = build_zoo_model("mlp", inputs=(3,), outputs=3, hidden=(8,), seed=1)
    bundle = compiled(source, WITH_MISSING, loss="reconstruction")
    x = raw_values((None, 3), 1)
    x[::4, 2] = np.nan
    examples = as_examples(x, bundle.program)
    vector = ready(bundle, x)
    seen = by_hand(x, 1)
    output = run(source.SerializeToString(), {"x": seen})["logits"]
    for engine in (make_engine(bundle.program, "numpy"), make_engine(bundle.program, "onnxruntime")):
        loss_sum, metric_sum = engine.evaluate(vector, examples.batch(bundle.program, np.arange(len(x))))
        assert loss_sum == pytest.approx(float(((output - seen) ** 2).mean(axis=1).sum()), rel=1e-3)
        assert metric_sum == pytest.approx(loss_sum)
        handle = engine.load(vector)
        loss = engine.step(handle, examples.batch(bundle.program, np.arange(len(x))), {})
        assert loss == pytest.approx(loss_sum / len(x), rel=1e-5)


# --- what cannot be normalised ---


def two_inputs() -> onnx.ModelProto:
    return model_of("s = Add(a, b); y = MatMul(s, w)", {"w": weights(4, 2)}, inputs={"a": ["n", 4], "b": ["n", 4]})


def with_whole_numbers() -> onnx.ModelProto:
    text = "e = Gather(table, i); f = Flatten<axis = 1>(e); y = MatMul(f, w)"
    model = model_of(text, {"table": weights(10, 3), "w": weights(6, 2)}, inputs={"i": ["n", 2]})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def of_opset_8() -> onnx.ModelProto:
    return model_of("y = MatMul(x, w)", {"w": weights(4, 2)}, inputs={"x": ["n", 4]}, opset=8, ir_version=4)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (
            two_inputs,
            FEDERATED,
            r"exactly one float32 input, the model has 2 among its inputs 'a' float32, 'b' float32",
        ),
        (
            with_whole_numbers,
            FEDERATED,
            r"the model has 0 among its inputs 'i' int64.*whole numbers are not normalised",
        ),
        (lambda: dense(["n", 5, 6]), replace(FEDERATED, axis=3), "axis 3 is none of input 'x'"),
        (of_opset_8, FEDERATED, "needs opset 9 or later, the model has 8"),
        (lambda: dense(["n", 5]), replace(WITH_MISSING, indicator=True), "5 inputs cannot be as many features"),
        (
            lambda: model_of(
                "s = Gather<axis = 1>(x, one); y = MatMul(s, w)",
                {"one": np.array(1), "w": weights(6, 2)},
                inputs={"x": ["n", 5, 6]},
            ),
            FEDERATED,
            "name it with normalise_axis",
        ),
        (
            lambda: model_of("s = ReduceSum<keepdims = 0>(x); y = Mul(s, w)", {"w": weights(3)}, inputs={"x": ["n"]}),
            FEDERATED,
            "at least one more dimension",
        ),
    ],
    ids=["two_inputs", "whole_numbers", "axis", "opset", "indicators", "unknown_axis", "no_features"],
)
def test_what_cannot_be_normalised_is_refused_with_a_remedy(
    make: Callable[[], onnx.ModelProto], options: NormaliseOptions, said: str
) -> None:
    with pytest.raises(CompileError, match=said):
        compiled(make(), options)


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"mode": "global"}, {"missing": "zero"}, {"clip": 0.0}, {"clip": 1e31}, {"indicator": True}):
        with pytest.raises(CompileError, match="normalise"):
            NormaliseOptions(**{"mode": "local", **wrong})


def test_a_mask_of_floats_is_no_second_input_of_features() -> None:
    text = "c = Unsqueeze(m, two); z = Mul(x, c); y = MatMul(z, w)"
    model = model_of(text, {"w": weights(4, 2), "two": np.array([2])}, inputs={"x": ["n", 5, 4], "m": ["n", 5]})
    program = compiled(model, loss_options=LossOptions(mask="m")).program
    assert program.normalise is not None and (program.normalise.input, program.normalise.features) == ("x", 4)


# --- without ---


def test_without_normalisation_a_program_has_nothing_of_it() -> None:
    source = build_zoo_model("softmax_regression", inputs=(784,), outputs=10, seed=0)
    program = compile_model(source, loss="softmax_cross_entropy", name="mnist").program
    assert program.normalise is None and program.spec.size == 7850
    operators = describe(Bundle(program, program.spec.flatten(sources(source))))["operators"]
    assert not {"Clip", "Where", "IsNaN"} & set(operators)
    assert b"normalise" not in program.encode()


def sources(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# --- exports ---


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 21])
@pytest.mark.parametrize("options", [FEDERATED, WITH_MISSING], ids=["refuse", "mean"])
def test_an_exported_file_takes_raw_units_on_stock_onnxruntime(options: NormaliseOptions, opset: int) -> None:
    held = {"w": weights(3, 8), "u": weights(8, 2)}
    text = "h = MatMul(x, w); r = Relu(h); y = MatMul(r, u)"
    source = model_of(text, held, inputs={"x": ["n", 3]}, opset=opset, ir_version=3 if opset == 9 else 4)
    if source.ir_version == 3:  # in which every initializer is an input too
        source.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
            for name, array in held.items()
        )
    bundle = compiled(source, options)
    examples = labelled(bundle.program)
    x = examples.inputs["x"].copy()
    moved = ready(bundle, x) + trained(bundle, examples).delta
    if options.missing == "mean":
        x[::5, 2] = np.nan
    expected = make_engine(bundle.program, "numpy").infer(moved, {"x": x})["y"]
    for model in (export_onnx(bundle.program, moved), merge_into_source(bundle.program, moved, source)):
        assert [i.name for i in model.graph.input if i.name not in held] == ["x"]
        np.testing.assert_allclose(run(model.SerializeToString(), {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    assert {n.name for n in source.graph.node} <= {
        n.name for n in merge_into_source(bundle.program, moved, source).graph.node
    }


def test_an_export_with_indicators_takes_the_features_alone() -> None:
    bundle = compiled(mlp(6), replace(WITH_MISSING, indicator=True))
    x = raw_values((None, 3), 1)
    x[::3, 0] = np.nan
    vector = ready(bundle, x)
    exported = export_onnx(bundle.program, vector)
    expected = make_engine(bundle.program, "numpy").infer(vector, {"x": x})["logits"]
    np.testing.assert_allclose(run(exported.SerializeToString(), {"x": x})["logits"], expected, rtol=1e-4, atol=1e-4)


def test_an_export_that_normalises_is_not_normalised_twice_nor_are_its_constants_trained() -> None:
    bundle = compiled(mlp())
    vector = ready(bundle, raw_values((None, 3), 1))
    exported = export_onnx(bundle.program, vector)
    with pytest.raises(CompileError, match="normalises already"):
        compiled(exported)
    again = compiled(exported, None).program
    assert {t.name for t in again.spec} == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_a_control_flow_body_that_reads_the_input_reads_it_normalised() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        test (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 0, 0, 1, 1, 1}>
        {
            yes = Constant <value = bool {1}> ()
            s = If (yes) <
                then_branch = a () => (float[n, 3] p) { p = Identity (x) },
                else_branch = b () => (float[n, 3] q) { q = Neg (x) }
            >
            y = MatMul (s, w)
        }
        """
    )
    from coordinator.compile.raw_inputs import normalise_of, raw_input, with_raw_input

    told = normalise_of(FEDERATED, raw_input(model), 1)
    raw = with_raw_input(model, told)
    for tensor in raw.graph.initializer:
        if tensor.name == "normalise/mean":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, 2, 3], np.float32), tensor.name))
    x = np.array([[1, 2, 3], [2, 2, 2]], np.float32)
    found = run(raw.SerializeToString(), {"x": x})["y"]
    np.testing.assert_array_equal(found, run(model.SerializeToString(), {"x": x - [1, 2, 3]})["y"])


def test_int8_leaves_the_normalisation_in_float() -> None:
    bundle = compiled(build_zoo_model("mlp", inputs=(3,), outputs=2, hidden=(64,), seed=1))
    examples = labelled(bundle.program, 400)
    vector = ready(bundle, examples.inputs["x"])
    moved = vector + trained(bundle, examples, epochs=30).delta
    for given in (examples, None):
        data, figures = quantised(bundle.program, moved, given)
        found = run(data, {"x": examples.inputs["x"]})["logits"]
        assert (found.argmax(axis=1) == examples.target).mean() > 0.9, figures
        nodes = onnx.ModelProto.FromString(data).graph.node
        assert any(node.name == "normalise/Sub" and node.input[0] == "x" for node in nodes)


def test_describe_says_how_the_input_is_normalised() -> None:
    facts = describe(compiled(convolution(3), WITH_MISSING))
    told = {"input": "x", "axis": 1, "features": 3, "mode": "federated", "target": False, "missing": "mean"}
    assert facts["normalise"] == told
    kinds = [parameter["kind"] for parameter in facts["parameters"]]
    assert kinds.count("constant") == 2
    assert facts["update_bytes_dense"] == 4 * (facts["parameter_count"] - 6)
    assert describe(compile_model(mlp(), loss="softmax_cross_entropy", name="plain"))["normalise"] is None
