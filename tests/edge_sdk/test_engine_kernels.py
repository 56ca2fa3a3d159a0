"""Kernels against oracles that nobody here wrote: ONNX's own node tests, and onnxruntime on forms that those miss."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from benchmarks.node_cases import cases, fails_on_numpy, fails_on_onnxruntime, transcribed
from edge_sdk.errors import BundleError, TrainingError
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.engine.kernels import KERNELS
from edge_sdk.training.numpy_plan import Node, NumpyPlan

# A mask drawn at random, and forms where onnxruntime and ONNX's reference differ and we follow the former.
EXCLUDED = {
    "test_training_dropout",
    "test_training_dropout_mask",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_maxunpool_export_with_output_shape",
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


def test_every_kernel_passes_the_node_cases_of_its_operator() -> None:
    assert len(cases()) > 700
    failures = [fails_on_numpy(case) for case in cases() if case.name not in EXCLUDED]
    assert not any(failures), "\n".join(filter(None, failures))


def test_what_is_excluded_fails_on_onnxruntime_too() -> None:
    excluded = {case.name: fails_on_onnxruntime(case) for case in cases() if case.name in EXCLUDED}
    assert excluded.keys() == EXCLUDED and all(excluded.values())


def against_onnxruntime(op: str, arrays: dict[str, np.ndarray], outputs: int = 1, **attributes: Any) -> None:
    """One node, run by both; a float tensor may differ in the last bits, an integer one not at all."""
    names = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(op, list(arrays), names, **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()
    ]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=n) for n in names])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(names, arrays)
    results = Executor(transcribed(model), op).run(arrays)
    for name, value in zip(names, expected, strict=True):
        assert results[name].dtype == value.dtype and results[name].shape == value.shape
        np.testing.assert_allclose(results[name], value, rtol=2e-5, atol=2e-5, err_msg=f"{op} {attributes}")


def image(*shape: int, seed: int = 0) -> np.ndarray:
    """Values from a coarse grid, so that windows have ties."""
    return (np.random.default_rng(seed).integers(-6, 7, shape) / 4).astype(np.float32)


CONVOLUTIONS = [
    # input, weight, attributes; both ways of unfolding are met, one and two dimensions, groups, uneven everything
    ((3, 1, 9, 11), (4, 1, 3, 3), {}),
    ((3, 8, 7, 6), (5, 8, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((2, 6, 9, 9), (4, 6, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    ((2, 6, 9, 9), (4, 6, 3, 3), {"dilations": [2, 3]}),
    ((2, 6, 9, 8), (6, 2, 3, 3), {"group": 3, "pads": [1, 2, 0, 1]}),
    ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "strides": [2, 1]}),
    ((2, 5, 4, 4), (7, 5, 1, 1), {}),
    ((4, 9, 30), (8, 9, 5), {"pads": [2, 2]}),
    ((4, 2, 64), (8, 2, 5), {"strides": [3], "dilations": [2], "pads": [4, 1]}),
    ((1, 3, 5, 6, 7), (2, 3, 2, 3, 2), {"pads": [1, 0, 0, 0, 1, 1]}),
    ((2, 4, 6, 6), (3, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
def test_convolution_agrees_with_onnxruntime(x: Any, w: Any, attributes: dict[str, Any]) -> None:
    bias = image(w[0], seed=2)
    against_onnxruntime("Conv", {"x": image(*x), "w": image(*w, seed=1), "b": bias}, **attributes)


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 4, 5, 6), (4, 3, 3, 3), {}),
        ((2, 4, 5, 6), (4, 3, 3, 3), {"pads": [1, 2, 0, 1]}),
        ((2, 4, 5, 6), (4, 3, 3, 2), {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 1, 1]}),
        ((2, 4, 5, 6), (4, 3, 2, 2), {"dilations": [2, 1], "pads": [1, 0, 2, 1]}),
        ((2, 4, 5, 6), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
        ((2, 6, 5, 6), (6, 1, 3, 3), {"group": 6}),
        ((2, 4, 17), (4, 3, 5), {"strides": [2], "pads": [2, 2], "output_padding": [1]}),
        ((2, 4, 5, 6), (4, 3, 1, 1), {"strides": [2, 2], "output_padding": [1, 1]}),
    ],
)
def test_transposed_convolution_agrees_with_onnxruntime(x: Any, w: Any, attributes: dict[str, Any]) -> None:
    against_onnxruntime("ConvTranspose", {"x": image(*x), "w": image(*w, seed=1)}, **attributes)


POOLS = [
    ((2, 3, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 9, 7), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 9, 7), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 3, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ((2, 3, 9, 8), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 0, 0]}),
    ((2, 3, 31), {"kernel_shape": [5], "strides": [3], "pads": [2, 1], "ceil_mode": 1}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [2, 2, 1]}),
    ((1, 1, 20, 20), {"kernel_shape": [17, 17]}),  # more taps than a byte counts
]


@pytest.mark.parametrize(("shape", "attributes"), POOLS)
def test_max_pooling_and_its_positions_agree_with_onnxruntime(shape: Any, attributes: dict[str, Any]) -> None:
    against_onnxruntime("MaxPool", {"x": image(*shape)}, outputs=2, **attributes)
    against_onnxruntime("MaxPool", {"x": image(*shape)}, **attributes)


@pytest.mark.parametrize(("shape", "attributes"), [p for p in POOLS if "dilations" not in p[1]])
def test_average_pooling_agrees_with_onnxruntime(shape: Any, attributes: dict[str, Any]) -> None:
    for include in (0, 1):
        against_onnxruntime("AveragePool", {"x": image(*shape)}, count_include_pad=include, **attributes)


def test_max_unpooling_puts_gradients_where_the_maxima_were() -> None:
    x = image(2, 3, 9, 7)
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    plan = NumpyPlan(("x",), ("y", "at"), {}, (Node("MaxPool", ("x",), ("y", "at"), attributes),))
    pooled = Executor(plan, "pool").run({"x": x})
    arrays = {"y": pooled["y"], "at": pooled["at"], "shape": np.array(x.shape)}
    against_onnxruntime("MaxUnpool", arrays, **attributes)


def test_no_kernel_writes_into_its_inputs() -> None:
    for case in cases():
        executor = Executor(transcribed(case.model), case.name)
        for inputs, _ in case.data_sets:
            feeds = {i.name: np.array(v) for i, v in zip(case.model.graph.input, inputs, strict=True)}
            for value in feeds.values():
                value.flags.writeable = False
            executor.run(feeds)


def test_erf_is_exact_in_float32_from_tiny_to_huge() -> None:
    wide = np.concatenate([np.linspace(-6, 6, 4001), np.geomspace(1e-30, 1e3, 500), [0.0, np.inf, -np.inf]])
    x = wide.astype(np.float32)
    expected = np.array([math.erf(v) for v in x.tolist()])
    np.testing.assert_allclose(KERNELS["Erf"](x), expected, rtol=2e-7, atol=0)


def test_activations_stay_finite_where_their_value_is() -> None:
    x = np.array([-1e4, -90, -20, 0, 20, 90, 1e4], dtype=np.float32)
    with np.errstate(all="ignore"):
        for op in ("Sigmoid", "Softplus", "Tanh", "Elu", "Selu", "Gelu", "Mish", "Softmax", "LogSoftmax"):
            value = KERNELS[op](x)
            assert np.isfinite(value).all() and value.dtype == np.float32, op


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("Expand", {"x": np.ones(1, np.float32), "s": np.array([1 << 20, 1 << 20])}, {}),
        ("Pad", {"x": np.ones(1, np.float32), "p": np.array([1 << 40, 0])}, {"mode": "constant"}),
        ("ConstantOfShape", {"s": np.array([1 << 40])}, {}),
        ("Tile", {"x": np.ones(2, np.float32), "r": np.array([1 << 40])}, {}),
        ("OneHot", {"i": np.array([0]), "d": np.array(1 << 40), "v": np.array([0, 1])}, {}),
        ("MaxUnpool", {"y": np.ones((1, 1, 1, 1), np.float32), "i": np.array([[[[9]]]])}, {"kernel_shape": [2, 2]}),
        ("ScatterND", {"x": np.ones(2, np.float32), "i": np.array([[-3]]), "u": np.ones(1, np.float32)}, {}),
        ("Conv", {"x": np.ones((1, 1, 3, 3), np.float32), "w": np.ones((1, 1, 5, 5), np.float32)}, {}),
        ("Conv", {"x": np.ones((1, 1, 9, 9), np.float32), "w": np.ones((1, 1, 2, 2), np.float32)}, {"pads": [-4] * 4}),
        ("Transpose", {"x": np.ones((2, 2), np.float32)}, {"perm": [0, 0]}),
        ("Cast", {"x": np.ones(2, np.float32)}, {"to": 99}),
    ],
)
def test_hostile_nodes_end_in_a_training_error(op: str, arrays: dict[str, Any], attributes: dict[str, Any]) -> None:
    node = Node(op, tuple(arrays), ("out",), attributes)
    executor = Executor(NumpyPlan(tuple(arrays), ("out",), {}, (node,)), "hostile")
    with pytest.raises(TrainingError, match=f"hostile: {op} -> 'out'"):
        executor.run(arrays)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("Quux", ("x",), ("y",)), "no operator 'Quux'.*edgefed\\[onnx\\]"),
        (Node("Relu", ("x",), ("y",), {"slope": 1}), "Relu has no attribute 'slope'"),
        (Node("Exp", ("x",), ("y",), {"out": 1}), "Exp has no attribute 'out'"),
        (Node("Relu", ("x",), ("y", "z")), "Relu has one output"),
    ],
)
def test_a_plan_that_numpy_cannot_run_is_refused_when_the_executor_is_made(node: Node, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Executor(NumpyPlan(("x",), ("y",), {}, (node,)), "plan")


def test_values_are_dropped_after_their_last_use() -> None:
    width, depth = 1 << 18, 30
    nodes = tuple(Node("Exp", (f"v{i}",), (f"v{i + 1}",)) for i in range(depth))
    executor = Executor(NumpyPlan(("v0",), (f"v{depth}",), {}, nodes), "chain")
    x = np.zeros(width, dtype=np.float32)
    tracemalloc.start()
    executor.run({"v0": x})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * x.nbytes
