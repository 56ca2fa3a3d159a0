"""The models of the codec's tasks that are not in the zoo, small enough for thousands of client updates on one core.

Initial weights are uniform within He's bound for convolutions and dense layers, within 1/sqrt(width) for the GRU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from device_sim.stable_random import StableRandom

__all__ = ["conv1d_model", "conv2d_model", "gru_model"]

OPSET: Final = 17
IR_VERSION: Final = 9


class _Net:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        self._draws = StableRandom(seed, "weights")
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...], bound: float) -> str:
        values = (2.0 * self._draws.uniforms(math.prod(shape)) - 1.0) * bound
        return self.constant(name, values.astype(np.float32).reshape(shape))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """A convolution or a dense layer; ``shape`` is its weight's, the output's width first."""
        weight = self.weight(f"{name}.weight", shape, math.sqrt(6 / math.prod(shape[1:])))
        bias = self.constant(f"{name}.bias", np.zeros(shape[0], np.float32))
        return self.node(op, [x, weight, bias], name, **attributes)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], f"{x}.active")

    def model(
        self, name: str, inputs: tuple[int, ...], outputs: int, kind: int = onnx.TensorProto.FLOAT
    ) -> onnx.ModelProto:
        """``kind`` is the element type of an example."""
        x = helper.make_tensor_value_info("x", kind, ["batch", *inputs])
        logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", outputs])
        graph = helper.make_graph(self._nodes, name, [x], [logits], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def conv2d_model(seed: int, *, side: int, channels: tuple[int, int], hidden: int, classes: int) -> onnx.ModelProto:
    """Two convolutions 5x5 of stride 2, a dense layer and a classifier, for images float32[n, 1, side, side]."""
    net = _Net(seed)
    x, width, size = "x", 1, side
    for number, channel in enumerate(channels, start=1):
        window = {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2] * 4}
        x = net.relu(net.layer("Conv", x, f"conv{number}", (channel, width, 5, 5), **window))
        width, size = channel, (size + 1) // 2
    x = net.node("Flatten", [x], "flat", axis=1)
    x = net.relu(net.layer("Gemm", x, "fc1", (hidden, width * size * size), transB=1))
    net.layer("Gemm", x, "logits", (classes, hidden), transB=1)
    return net.model("conv2d", (1, side, side), classes)


def conv1d_model(
    seed: int, *, inputs: tuple[int, int], channels: tuple[int, int], hidden: int, classes: int
) -> onnx.ModelProto:
    """Two convolutions and two pools, a dense layer and a classifier, for windows float32[n, channels, samples]."""
    net = _Net(seed)
    x, (width, length) = "x", inputs
    for number, (channel, kernel, stride) in enumerate(zip(channels, (7, 5), (2, 1), strict=True), start=1):
        window = {"kernel_shape": [kernel], "strides": [stride], "pads": [kernel // 2] * 2}
        x = net.relu(net.layer("Conv", x, f"conv{number}", (channel, width, kernel), **window))
        x = net.node("MaxPool", [x], f"pool{number}", kernel_shape=[2], strides=[2])
        width, length = channel, length // stride // 2
    x = net.node("Flatten", [x], "flat", axis=1)
    x = net.relu(net.layer("Gemm", x, "fc1", (hidden, width * length), transB=1))
    net.layer("Gemm", x, "logits", (classes, hidden), transB=1)
    return net.model("conv1d", inputs, classes)


def gru_model(seed: int, *, inputs: tuple[int, int], hidden: int, classes: int) -> onnx.ModelProto:
    """The last state of a GRU, classified, for sequences float32[n, steps, features]."""
    net = _Net(seed)
    bound = 1 / math.sqrt(hidden)
    x = net.node("Transpose", ["x"], "steps", perm=[1, 0, 2])
    shapes = {"input": (1, 3 * hidden, inputs[1]), "recurrent": (1, 3 * hidden, hidden), "bias": (1, 6 * hidden)}
    weights = [net.weight(f"gru.{name}", shape, bound) for name, shape in shapes.items()]
    net.node("GRU", [x, *weights], "", hidden_size=hidden, linear_before_reset=1)
    net._nodes[-1].output.append("last")
    axis = net.constant("direction", np.array([0], np.int64))
    x = net.node("Squeeze", ["last", axis], "state")
    net.layer("Gemm", x, "logits", (classes, hidden), transB=1)
    return net.model("gru", inputs, classes)


def table_model(
    seed: int, *, rows: int, columns: int, hidden: int, classes: int, words_each: int = 12
) -> onnx.ModelProto:
    """What is looked up in a table ``[rows, columns]``.

    With classes: those of the mean of an example's rows, for int64[n, k]. Else a value for a pair int64[n, 2]: with
    ``hidden`` by two dense layers, else the inner product of both rows and a bias for each.
    """
    net = _Net(seed)
    table = net.weight("table", (rows, columns), 0.3)
    if classes:
        words = net.node("Gather", [table, "x"], "words", axis=0)
        net.layer(
            "Gemm",
            net.node("ReduceMean", [words], "mean", axes=[1], keepdims=0),
            "logits",
            (classes, columns),
            transB=1,
        )
        return net.model("words", (words_each,), classes, onnx.TensorProto.INT64)
    pair = net.node("Gather", [table, "x"], "pair", axis=0)
    if hidden:
        flat = net.node("Flatten", [pair], "flat", axis=1)
        net.layer(
            "Gemm",
            net.relu(net.layer("Gemm", flat, "fc1", (hidden, 2 * columns), transB=1)),
            "logits",
            (1, hidden),
            transB=1,
        )
        return net.model("deep", (2,), 1, onnx.TensorProto.INT64)
    biases = net.node("Gather", [net.constant("bias", np.zeros((rows, 1), np.float32)), "x"], "biases", axis=0)
    product = net.node("ReduceProd", [pair], "product", axes=[1], keepdims=0)
    ones = net.constant("one", np.array([1], np.int64))
    match = net.node("ReduceSum", [product, ones], "match", keepdims=1)
    inclined = net.node("ReduceSum", [biases, ones], "inclined", keepdims=0)
    net.node("Add", [match, inclined], "logits")
    return net.model("ratings", (2,), 1, onnx.TensorProto.INT64)
