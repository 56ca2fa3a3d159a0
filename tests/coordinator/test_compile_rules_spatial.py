"""Convolutions, pooling, normalisation and dropout against central differences in float64."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from gradient_cases import Case, assert_gradients
from onnx_graphs import RATE, directional, forward64, gradients, model_of, run, step

from coordinator.compile import compile_model
from coordinator.compile.rules.dropout import DROPOUT_FACTOR
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine
from edge_sdk.training.engine.executor import Executor


def conv(label: str, weight: tuple[int, ...], sizes: tuple[int, ...], attributes: str, channels: int) -> Case:
    point = (channels, 2, *(1 for _ in sizes))
    text = f"h = Conv(x, point); y = Conv<{attributes}>(h, w, b)"
    return Case(f"Conv-{label}", text, {"point": point, "w": weight, "b": weight[:1]}, (2, *sizes))


def transposed(label: str, weight: tuple[int, ...], sizes: tuple[int, ...], attributes: str, outputs: int) -> Case:
    point = (weight[0], 2, *(1 for _ in sizes))
    text = f"h = Conv(x, point); y = ConvTranspose<{attributes}>(h, w, b)"
    return Case(f"ConvTranspose-{label}", text, {"point": point, "w": weight, "b": (outputs,)}, (2, *sizes))


def pool(op: str, label: str, sizes: tuple[int, ...], attributes: str = "") -> Case:
    node = f"{op}<{attributes}>(h)" if attributes else f"{op}(h)"
    point = (3, 2, *(1 for _ in sizes))
    return Case(f"{op}-{label}", f"h = Conv(x, point); y = {node}", {"point": point}, (2, *sizes))


WINDOWS = {
    "tiles": "kernel_shape=[2, 2], strides=[2, 2]",
    "tiles-ceil": "kernel_shape=[3, 2], strides=[3, 2], ceil_mode=1",
    "overlapping": "kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]",
    "uneven-ceil": "kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1",
    "dilated": "kernel_shape=[2, 2], dilations=[2, 3]",
    "apart": "kernel_shape=[2, 1], strides=[3, 2]",
}


def products(label: str, weight: tuple[int, ...], sizes: tuple[int, ...], attributes: str) -> Case:
    """Depthwise without a bias, as before a BatchNormalization: small ones are products of matrices."""
    point = (weight[0], 2, *(1 for _ in sizes))
    text = f"h = Conv(x, point); y = Conv<group={weight[0]}, {attributes}>(h, w)"
    return Case(f"Conv-products-{label}", text, {"point": point, "w": weight}, (2, *sizes))


GRADIENT_CASES = [
    products("padded", (4, 1, 3, 3), (6, 5), "pads=[1, 0, 2, 1]"),
    products("strided", (3, 1, 3, 2), (7, 6), "strides=[2, 3], pads=[1, 1, 1, 1]"),
    products("dilated-1d", (4, 1, 3), (9,), "dilations=[2], pads=[2, 1]"),
    conv("depthwise", (4, 1, 3, 3), (6, 5), "group=4", 4),
    conv("depthwise-padded", (4, 1, 3, 3), (6, 5), "group=4, pads=[1, 0, 2, 1]", 4),
    conv("depthwise-far-padded", (4, 1, 3, 3), (4, 5), "group=4, pads=[3, 0, 2, 1]", 4),
    conv("depthwise-strided", (4, 1, 3, 3), (7, 6), "group=4, strides=[2, 2], pads=[1, 1, 1, 1]", 4),
    conv("depthwise-dilated", (3, 1, 3, 2), (7, 6), "group=3, dilations=[2, 3], pads=[1, 1, 1, 1]", 3),
    conv("depthwise-multiplied", (6, 1, 3, 2), (5, 6), "group=3, pads=[1, 1, 1, 0]", 3),
    conv("depthwise-rows", (3, 1, 3, 3), (9, 10), "group=3, pads=[1, 0, 2, 1]", 3),
    conv("depthwise-rows-dilated", (2, 1, 2, 3), (10, 9), "group=2, dilations=[3, 2], pads=[0, 1, 1, 0]", 2),
    conv("depthwise-rows-strided", (2, 1, 3, 3), (9, 10), "group=2, strides=[2, 2], pads=[1, 1, 1, 1]", 2),
    conv("depthwise-1d", (4, 1, 5), (9,), "group=4, strides=[2], pads=[2, 2]", 4),
    conv("depthwise-3d", (2, 1, 2, 2, 2), (3, 4, 3), "group=2", 2),
    conv("many-channels", (3, 16, 2, 3), (4, 3), "pads=[1, 1, 1, 1], strides=[1, 2]", 16),
    conv("grouped", (6, 2, 3, 3), (6, 5), "group=2, pads=[1, 1, 1, 1]", 4),
    conv("grouped-strided", (4, 3, 3, 2), (7, 6), "group=2, strides=[2, 3], dilations=[2, 1]", 6),
    conv("grouped-1d", (4, 3, 3), (8,), "group=2", 6),
    conv("grouped-pointwise", (4, 2, 1, 1), (3, 4), "group=2", 4),
    transposed("plain", (3, 4, 3, 3), (4, 5), "group=1", 4),
    transposed("strided", (3, 2, 3, 3), (4, 3), "strides=[2, 3], pads=[1, 0, 1, 1], output_padding=[1, 2]", 2),
    transposed("many", (5, 6, 2, 2), (3, 4), "strides=[2, 2]", 6),
    transposed("dilated", (2, 3, 3, 2), (4, 5), "dilations=[2, 3]", 3),
    transposed("1d", (3, 2, 4), (6,), "strides=[2], pads=[1, 1]", 2),
    *(pool("AveragePool", label, (7, 8), window) for label, window in WINDOWS.items() if label != "tiles-ceil"),
    pool("AveragePool", "pads-count", (7, 8), WINDOWS["overlapping"] + ", count_include_pad=1"),
    pool("AveragePool", "pads-count-ceil", (7, 8), WINDOWS["uneven-ceil"] + ", count_include_pad=1"),
    pool("AveragePool", "same", (7, 8), 'kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"'),
    pool("AveragePool", "1d", (9,), "kernel_shape=[4], strides=[2], pads=[1, 2]"),
    pool("AveragePool", "3d", (4, 4, 3), "kernel_shape=[2, 2, 2], strides=[2, 2, 1]"),
    *(pool("LpPool", label, (7, 8), window) for label, window in WINDOWS.items() if label != "tiles-ceil"),
    pool("LpPool", "cubes", (5, 6), "kernel_shape=[3, 2], p=3"),
    pool("LpPool", "sums", (5, 6), "kernel_shape=[3, 2], p=1"),
    *(pool("MaxPool", label, (7, 8), window) for label, window in WINDOWS.items()),
    pool("MaxPool", "whole-tiles", (6, 4), "kernel_shape=[3, 2], strides=[3, 2]"),
    pool("MaxPool", "whole-tiles-1d", (6,), "kernel_shape=[2], strides=[2]"),
    pool("MaxPool", "whole-tiles-3d", (4, 2, 3), "kernel_shape=[2, 1, 3], strides=[2, 1, 3]"),
    pool("GlobalAveragePool", "2d", (4, 5)),
    pool("GlobalAveragePool", "1d", (5,)),
    pool("GlobalMaxPool", "2d", (4, 5)),
    Case(
        "LayerNormalization",
        "h = MatMul(x, w); y = LayerNormalization(h, s, c)",
        {"w": (5, 4), "s": (4,), "c": (4,)},
        (3, 5),
    ),
    Case(
        "LayerNormalization-axes",
        "h = MatMul(x, w); y = LayerNormalization<axis=1, epsilon=0.01>(h, s, c)",
        {"w": (5, 4), "s": (3, 4), "c": (4,)},
        (3, 5),
    ),
    Case(
        "LayerNormalization-no-bias", "h = MatMul(x, w); y = LayerNormalization(h, s)", {"w": (5, 4), "s": (4,)}, (5,)
    ),
    Case(
        "InstanceNormalization",
        "h = Conv(x, w); y = InstanceNormalization<epsilon=0.01>(h, s, c)",
        {"w": (4, 2, 3, 3), "s": (4,), "c": (4,)},
        (2, 5, 6),
    ),
    Case(
        "InstanceNormalization-1d",
        "h = Conv(x, w); y = InstanceNormalization(h, s, c)",
        {"w": (3, 2, 2), "s": (3,), "c": (3,)},
        (2, 7),
    ),
]

# Forms on which ONNX's reference evaluator fails or is wrong. The compiler's own verification differences them with the
# NumPy kernels, which are proved against onnxruntime.
VERIFIED_CASES = [
    transposed("grouped", (4, 3, 3, 3), (4, 5), "group=2, strides=[2, 2]", 6),
    transposed("depthwise", (4, 1, 3, 3), (4, 5), "group=4, strides=[2, 1], pads=[1, 1, 1, 1]", 4),
    transposed("same", (3, 2, 3, 3), (4, 5), 'auto_pad="SAME_UPPER", strides=[2, 1]', 2),
    transposed("same-lower", (3, 2, 2, 4), (4, 5), 'auto_pad="SAME_LOWER", strides=[2, 1]', 2),
    transposed("shaped", (3, 2, 3, 3), (4, 5), "output_shape=[8, 10], strides=[2, 2]", 2),
    pool("AveragePool", "tiles-ceil", (7, 8), WINDOWS["tiles-ceil"]),
    pool("LpPool", "tiles-ceil", (7, 8), WINDOWS["tiles-ceil"]),
    pool("GlobalMaxPool", "3d", (2, 3, 2)),
]

BATCH_NORM = (
    "h = Conv(x, w); n = BatchNormalization<momentum=0.8, epsilon=0.01>(h, s, c, m, v); t = Tanh(n); y = Conv(t, u)"
)
BATCH_NORM_WRITTEN_OUT = """h = Conv(x, w); mean = ReduceMean(h, axes); d = Sub(h, mean); dd = Mul(d, d);
var = ReduceMean(dd, axes); moved = Add(var, epsilon); root = Sqrt(moved); q = Div(d, root); s4 = Reshape(s, four);
c4 = Reshape(c, four); qs = Mul(q, s4); n = Add(qs, c4); t = Tanh(n); y = Conv(t, u)"""
GROUP_NORM = "h = Conv(x, w); n = GroupNormalization<num_groups=2, epsilon=0.01>(h, s, c); y = Conv(n, u)"
GROUP_NORM_WRITTEN_OUT = """h0 = Conv(x, w); h = Reshape(h0, groups); mean = ReduceMean(h, last); d = Sub(h, mean);
dd = Mul(d, d); var = ReduceMean(dd, last); moved = Add(var, epsilon); root = Sqrt(moved); q0 = Div(d, root);
q = Reshape(q0, back); s4 = Reshape(s, four); c4 = Reshape(c, four); qs = Mul(q, s4); n = Add(qs, c4); y = Conv(n, u)"""
DROPOUT = "h = Gemm(x, w); d = Dropout(h, ratio); y = MatMul(d, u)"

# For the test that each rule has a case: these three have tests of their own below.
CASES = [
    *GRADIENT_CASES,
    *(Case(text, text, {}, ()) for text in (BATCH_NORM, GROUP_NORM, DROPOUT)),
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


@pytest.mark.parametrize("case", VERIFIED_CASES, ids=str)
def test_gradient_passes_verification(case: Case) -> None:
    rng = np.random.default_rng(9)
    constants = {name: rng.standard_normal(shape) for name, shape in case.parameters.items()}
    model = model_of(case.text, constants, inputs={"x": ("batch", *case.x)})
    bundle = compile_model(model, loss="mean_squared_error", name=case.label)
    assert bundle.program.train_plan.outputs


def values(seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 2, 3, 3), "s": (4,), "c": (4,), "m": (4,), "u": (3, 4, 1, 1)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**drawn, "v": np.array([0.5, 1.0, 2.0, 0.1], np.float32)}


WRITTEN_OUT = {
    "axes": np.array([0, 2, 3]),
    "last": np.array([2]),
    "four": np.array([1, 4, 1, 1]),
    "groups": np.array([0, 2, -1]),
    "back": np.array([0, 4, 4, 3]),
}


def written_out(text: str, parameters: dict[str, np.ndarray]) -> Any:
    constants = {**parameters, **WRITTEN_OUT, "epsilon": np.array([0.01])}
    return forward64(" ".join(text.split()), constants, {"x": ("batch", 2, 6, 5)})


def compiled(text: str, parameters: dict[str, np.ndarray], **options: Any) -> Bundle:
    model = model_of(text, parameters, inputs={"x": ("batch", 2, 6, 5)})
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3, 4, 3]))
    return compile_model(model, loss="mean_squared_error", name="normalised", **options)


def batch(seed: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, target = rng.standard_normal((5, 2, 6, 5)), rng.standard_normal((5, 3, 4, 3))
    return {"x": x.astype(np.float32), "target": target.astype(np.float32)}


def assert_differences(forward: Any, bundle: Bundle, parameters: dict[str, np.ndarray], names: Sequence[str]) -> None:
    fed, rng = batch(), np.random.default_rng(5)

    def loss(feeds: Any) -> float:
        return float(np.mean((forward({n: a for n, a in feeds.items() if n != "target"}) - fed["target"]) ** 2))

    trained, found = gradients(bundle, fed)
    assert trained == pytest.approx(loss({"x": fed["x"], **parameters}), rel=1e-5)
    for name in names:
        for _ in range(3):
            direction = rng.standard_normal(found[name].shape)
            expected = directional(loss, {"x": fed["x"], **parameters}, name, direction)
            scale = float(np.linalg.norm(found[name]) * np.linalg.norm(direction))
            assert abs(float(np.sum(found[name] * direction)) - expected) <= 2e-5 * scale, name


def test_batch_normalisation_trains_with_the_statistics_of_the_batch() -> None:
    parameters = values()
    bundle = compiled(BATCH_NORM, parameters)
    trained = {name: parameters[name] for name in "wscu"}
    assert_differences(written_out(BATCH_NORM_WRITTEN_OUT, trained), bundle, trained, "wscu")


def test_running_statistics_move_towards_those_of_the_batch_and_are_no_trainables() -> None:
    parameters, fed = values(), batch()
    bundle = compiled(BATCH_NORM, parameters, optimizer="momentum")
    kinds = {t.name: t.kind for t in bundle.program.spec}
    assert kinds == {
        "w": "trainable",
        "s": "trainable",
        "c": "trainable",
        "u": "trainable",
        "m": "buffer",
        "v": "buffer",
    }
    assert {name for name, _ in bundle.program.state} == {f"state/momentum/{name}" for name in "wscu"}
    h = forward64("h = Conv(x, w)", {"w": parameters["w"]}, {"x": ("batch", 2, 6, 5)}, "h")({"x": fed["x"]})
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        handle = engine.load(bundle.parameters)
        engine.step(handle, fed, {"lr": 0.1})
        new = bundle.program.spec.unflatten(engine.read(handle))
        np.testing.assert_allclose(new["m"], 0.8 * parameters["m"] + 0.2 * h.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
        unbiased = h.var(axis=(0, 2, 3), ddof=1)  # as PyTorch keeps it
        np.testing.assert_allclose(new["v"], 0.8 * parameters["v"] + 0.2 * unbiased, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
def test_the_running_variance_of_a_single_value_stays_finite(engine_name: str) -> None:
    text = "h = MatMul(x, w); n = BatchNormalization<momentum=0.8>(h, s, c, m, v); y = MatMul(n, w)"
    parameters = {"w": np.eye(4, dtype=np.float32), **{name: values()[name] for name in "scmv"}}
    model = model_of(text, parameters, inputs={"x": ("batch", 4)})
    bundle = compile_model(model, loss="mean_squared_error", name="single")
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)
    engine.step(handle, {"x": np.ones((1, 4), np.float32), "target": np.ones((1, 4), np.float32)}, {"lr": 0.0})
    new = bundle.program.spec.unflatten(engine.read(handle))
    np.testing.assert_allclose(new["v"], 0.8 * parameters["v"], rtol=1e-6)


def test_a_normalisation_used_twice_keeps_both_batches_statistics_apart() -> None:
    text = BATCH_NORM.replace("y = Conv(t, u)", "")
    text += "k = Conv(x, w2); n2 = BatchNormalization<momentum=0.8, epsilon=0.01>(k, s, c, m, v); t2 = Add(t, n2); "
    parameters, fed = {**values(), "w2": values(8)["w"]}, batch()
    bundle = compiled(f"{text} y = Conv(t2, u)", parameters)
    written = BATCH_NORM_WRITTEN_OUT.replace("t = Tanh(n); y = Conv(t, u)", "t = Tanh(n); ")
    again = BATCH_NORM_WRITTEN_OUT[: BATCH_NORM_WRITTEN_OUT.index("t = Tanh")].replace("s4 = Reshape(s, four);", "")
    again = again.replace("c4 = Reshape(c, four);", "").replace("Conv(x, w)", "Conv(x, w2)")
    for name in ("h", "mean", "d", "dd", "var", "moved", "root", "q", "qs", "n"):
        again = re.sub(rf"\b{name}\b", f"{name}_2", again)
    trained = {name: parameters[name] for name in ("w", "w2", "s", "c", "u")}
    forward = written_out(f"{written} {again} t2 = Add(t, n_2); y = Conv(t2, u)", trained)
    assert_differences(forward, bundle, trained, ["w", "w2", "s", "c", "u"])
    x = {"x": ("batch", 2, 6, 5)}
    means = [
        forward64("h = Conv(x, w)", {"w": parameters[name]}, x, "h")({"x": fed["x"]}).mean(axis=(0, 2, 3))
        for name in ("w", "w2")
    ]
    expected = 0.8 * (0.8 * parameters["m"] + 0.2 * means[0]) + 0.2 * means[1]
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        handle = engine.load(bundle.parameters)
        engine.step(handle, fed, {"lr": 0.1})
        new = bundle.program.spec.unflatten(engine.read(handle))
        np.testing.assert_allclose(new["m"], expected, rtol=1e-5, atol=1e-6)


def test_evaluation_and_inference_use_the_running_statistics() -> None:
    parameters, fed = values(), batch()
    bundle = compiled(BATCH_NORM, parameters)
    expected = forward64(BATCH_NORM, parameters, {"x": ("batch", 2, 6, 5)})({"x": fed["x"]})
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        np.testing.assert_allclose(
            engine.infer(bundle.parameters, {"x": fed["x"]})["y"], expected, rtol=1e-4, atol=1e-5
        )
        loss, _ = engine.evaluate(bundle.parameters, fed)
        assert loss == pytest.approx(5 * float(np.mean((expected - fed["target"]) ** 2)), rel=1e-5)


def test_frozen_running_statistics_normalise_in_training_too() -> None:
    parameters = values()
    bundle = compiled(BATCH_NORM, parameters, frozen=["m", "v"])
    trained = {name: parameters[name] for name in "wscu"}
    assert {t.name for t in bundle.program.spec} == set(trained)
    frozen = {name: np.array(parameters[name]) for name in "mv"}
    forward = forward64(BATCH_NORM, parameters, {"x": ("batch", 2, 6, 5)})
    assert_differences(lambda feeds: forward({**feeds, **frozen}), bundle, trained, "wscu")


def test_normalisation_before_all_that_is_trained_is_left_alone() -> None:
    parameters, fed = values(), batch()
    bundle = compiled(BATCH_NORM, parameters, frozen=["w", "s", "c"])
    results = step(bundle, fed, lr=0.1)
    assert np.array_equal(results["new/m"], parameters["m"]) and np.array_equal(results["new/v"], parameters["v"])


def test_initializers_that_were_merged_are_split_between_scales_biases_and_statistics() -> None:
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    text = "h = Conv(x, w, z); n = BatchNormalization(h, o, z, z, o); t = Tanh(n); y = Conv(t, u)"
    drawn = values()
    bundle = compiled(text, {"w": drawn["w"], "u": drawn["u"], "z": zeros, "o": ones})
    kinds = [t.kind for t in bundle.program.spec]
    assert (kinds.count("trainable"), kinds.count("buffer")) == (5, 2)


def test_group_normalisation_equals_central_differences() -> None:
    parameters = {name: array for name, array in values().items() if name in "wscu"}
    bundle = compiled(GROUP_NORM, parameters)
    assert_differences(written_out(GROUP_NORM_WRITTEN_OUT, parameters), bundle, parameters, "wscu")


def dropout_bundle(ratio: float) -> Bundle:
    rng = np.random.default_rng(6)
    constants = {"w": rng.standard_normal((6, 40)), "u": rng.standard_normal((40, 3)), "ratio": np.array(ratio)}
    model = model_of(DROPOUT, constants, inputs={"x": ("batch", 6)})
    return compile_model(model, loss="mean_squared_error", name="dropout")


def test_dropout_in_training_drops_its_share_and_keeps_the_mean() -> None:
    """The mask is seen in the gradient of the layer behind it: a dropped unit has none."""
    bundle = dropout_bundle(0.25)
    program = bundle.program
    assert program.scalars[DROPOUT_FACTOR] == 1.0
    rng = np.random.default_rng(7)
    fed = {"x": rng.standard_normal((1, 6)).astype(np.float32), "target": np.zeros((1, 3), np.float32)}
    start = program.spec.unflatten(bundle.parameters)
    feeds = {**fed, **start, "lr": np.array(RATE, np.float32), DROPOUT_FACTOR: np.array(1.0, np.float32)}
    executor = Executor(program.train_plan, "train")
    for runner in (lambda: run(program.train, feeds), lambda: executor.run(feeds)):
        dropped, masks = [], set()
        for _ in range(60):
            results = runner()
            before = np.any(results["new/w"] != start["w"], axis=0)
            behind = np.any(results["new/u"] != start["u"], axis=1)
            assert np.array_equal(before, behind)
            dropped.append(1 - behind.mean())
            masks.add(behind.tobytes())
        assert np.mean(dropped) == pytest.approx(0.25, abs=0.05) and len(masks) > 50


def test_dropout_is_the_identity_in_evaluation_and_where_the_plan_switches_it_off() -> None:
    bundle = dropout_bundle(0.5)
    rng = np.random.default_rng(8)
    fed = {
        "x": rng.standard_normal((4, 6)).astype(np.float32),
        "target": rng.standard_normal((4, 3)).astype(np.float32),
    }
    for engine_name in ("onnxruntime", "numpy"):
        engine = make_engine(bundle.program, engine_name)
        evaluated = engine.evaluate(bundle.parameters, fed)[0] / 4
        off = engine.step(engine.load(bundle.parameters), fed, {"lr": 0.1, DROPOUT_FACTOR: 0.0})
        # One mask may by chance leave the loss where it was; five do not.
        on = [engine.step(engine.load(bundle.parameters), fed, {"lr": 0.1}) for _ in range(5)]
        assert off == pytest.approx(evaluated, rel=1e-5)
        assert max(abs(loss - evaluated) for loss in on) > 1e-2 * evaluated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h = Gemm(x, w); r = Size(h); f = Cast<to=1>(r); y = Dropout(h, f)", "its ratio 'f' is computed"),
        ("h = Gemm(x, w); y = Dropout(h, one)", r"ratio 1.0 is not in \[0, 1\)"),
    ],
)
def test_a_dropout_that_cannot_be_trained_is_refused(text: str, message: str) -> None:
    model = model_of(text, {"w": np.ones((3, 3)), "one": np.array(1.0)}, inputs={"x": ("batch", 3)})
    with pytest.raises(CompileError, match=message):
        compile_model(model, loss="mean_squared_error", name="refused", verify=False)
