"""Kernels of pooling norms, depthwise convolutions and dropout against onnxruntime and against their definitions."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hand_made import transcribed
from onnx import helper

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.numpy_plan import Node, NumpyPlan


def against_onnxruntime(op: str, arrays: dict[str, np.ndarray], **attributes: Any) -> None:
    node = helper.make_node(op, list(arrays), ["out"], **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()
    ]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("out", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, arrays)
    found = Executor(transcribed(model), op).run(arrays)["out"]
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((2, 3, 8, 7), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ((2, 3, 8, 7), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
        ((2, 3, 8, 7), {"kernel_shape": [2, 3], "dilations": [2, 2]}),
        ((2, 3, 9), {"kernel_shape": [4], "strides": [3], "pads": [1, 2]}),
    ],
)
def test_norm_pooling_agrees_with_onnxruntime(p: int, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    against_onnxruntime("LpPool", {"x": normal(*shape)}, p=p, **attributes)
    against_onnxruntime("GlobalLpPool", {"x": normal(*shape)}, p=p)


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((5, 3, 9, 8), (3, 2), {"pads": [1, 0, 2, 1]}),
        ((5, 3, 9, 8), (3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
        ((5, 3, 9, 8), (2, 3), {"dilations": [3, 2]}),
        ((9, 32, 40, 40), (3, 3), {"pads": [1, 1, 1, 1]}),  # more than one block of examples
        ((4, 2, 17), (5,), {"strides": [2], "pads": [2, 2]}),
        ((2, 3, 4, 5, 4), (2, 3, 2), {}),
    ],
)
def test_depthwise_convolution_agrees_with_onnxruntime(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    channels = shape[1]
    arrays = {"x": normal(*shape), "w": normal(channels, 1, *kernel, seed=1), "b": normal(channels, seed=2)}
    against_onnxruntime("Conv", arrays, group=channels, **attributes)
    attributes = {**attributes, "strides": [2] * len(kernel)}
    against_onnxruntime("ConvTranspose", arrays, group=channels, **attributes)


def test_a_depthwise_convolution_needs_little_more_than_its_input_and_output() -> None:
    x, w = normal(32, 128, 16, 16), normal(128, 1, 3, 3, seed=1)
    node = Node("Conv", ("x", "w"), ("y",), {"group": 128, "pads": [1, 1, 1, 1]})
    executor = Executor(NumpyPlan(("x", "w"), ("y",), {}, (node,)), "depthwise")
    tracemalloc.start()
    executor.run({"x": x, "w": w})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * x.nbytes  # nine times, if all windows were unfolded


def dropped(ratio: float, training: bool = True, **attributes: Any) -> Executor:
    constants = {"ratio": np.array(ratio, np.float32), "training": np.array(training)}
    node = Node("Dropout", ("x", "ratio", "training"), ("y", "mask"), attributes)
    return Executor(NumpyPlan(("x",), ("y", "mask"), constants, (node,)), "dropout")


def test_dropout_zeroes_its_share_and_scales_the_rest() -> None:
    results = dropped(0.3, seed=5).run({"x": np.ones((400, 300), np.float32)})
    assert results["mask"].dtype == bool and results["y"].dtype == np.float32
    assert 1 - results["mask"].mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_array_equal(results["y"], np.where(results["mask"], np.float32(1 / 0.7), 0))


def test_a_seeded_dropout_repeats_its_masks_and_an_unseeded_one_does_not() -> None:
    x = np.ones((30, 30), np.float32)
    first, again = dropped(0.5, seed=5), dropped(0.5, seed=5)
    masks = [first.run({"x": x})["mask"] for _ in range(2)]
    assert not np.array_equal(*masks)
    assert all(np.array_equal(again.run({"x": x})["mask"], mask) for mask in masks)
    assert not np.array_equal(dropped(0.5).run({"x": x})["mask"], dropped(0.5).run({"x": x})["mask"])


@pytest.mark.parametrize("executor", [dropped(0.0), dropped(0.5, training=False)])
def test_dropout_without_a_share_or_without_training_is_the_identity(executor: Executor) -> None:
    x = normal(3, 4)
    results = executor.run({"x": x})
    assert np.array_equal(results["y"], x) and results["mask"].all()


def test_a_ratio_out_of_range_ends_in_a_training_error() -> None:
    for ratio in (1.0, -0.1, np.nan):
        with pytest.raises(TrainingError, match="ratio"):
            dropped(ratio).run({"x": normal(2, 2)})
