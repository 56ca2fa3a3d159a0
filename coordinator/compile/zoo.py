"""A few models to start with, each an ordinary ONNX inference model that gives logits.

Initial weights are uniform (He's bound before a ReLU, Glorot's elsewhere), biases zero. They are made from the raw
64-bit output of the bit generator by exactly rounded arithmetic alone, so one seed gives the same bits with every
NumPy and on every machine; NumPy's ready-made distributions promise neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from coordinator.compile.graph import BATCH, IR_VERSION, OPSET
from edge_sdk.errors import CompileError

__all__ = ["ACTIVATIONS", "ZOO", "build_zoo_model", "zoo_loss"]

LINEAR: Final = ("linear_regression", "logistic_regression", "softmax_regression", "linear_svm")
ZOO: Final = (*LINEAR, "mlp", "cnn")
ACTIVATIONS: Final = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}

HIDDEN: Final = {"mlp": (200, 200), "cnn": ()}
CHANNELS: Final = (16, 32)
KERNEL: Final = 5
POOL: Final = 2


def build_zoo_model(
    name: str,
    *,
    inputs: Sequence[int],
    outputs: int,
    hidden: Sequence[int] | None = None,
    activation: str = "relu",
    channels: Sequence[int] = CHANNELS,
    seed: int,
) -> onnx.ModelProto:
    """A model of the zoo with fresh weights.

    ``cnn`` is conv 5x5, pool 2x2, conv 5x5, pool 2x2, dense; with ``channels=(32, 64), hidden=(512,)`` it is the CNN of
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017, section 3.

    Args:
        name: One of ``ZOO``.
        inputs: Shape of one example; ``(channels, height, width)`` for ``cnn``.
        outputs: Number of values or logits; 1 makes ``logistic_regression`` and ``linear_svm`` binary.
        hidden: Widths of the hidden dense layers of ``mlp`` (default 200, 200) and ``cnn`` (default none).
        activation: One of ``ACTIVATIONS``, for ``mlp`` and ``cnn``.
        channels: Output channels of the convolutions of ``cnn``.
        seed: Decides the initial weights.

    Returns:
        An inference model with input ``x`` and output ``logits`` (``prediction`` for ``linear_regression``).

    Raises:
        CompileError: An argument is out of range.
    """
    widths = tuple(hidden) if hidden is not None else HIDDEN.get(name, ())
    _check(name, tuple(inputs), outputs, widths, activation, tuple(channels))
    net = _Net(seed, ACTIVATIONS[activation])
    value, shape = "x", tuple(inputs)
    if name == "cnn":
        for number, width in enumerate(channels, start=1):
            value, shape = net.conv_pool(value, shape, width, f"conv{number}")
    if len(shape) > 1:
        value, shape = net.node("Flatten", [value], "flat", axis=1), (math.prod(shape),)
    for number, width in enumerate(widths, start=1):
        value = net.node(
            net.activation, [net.dense(value, shape[0], width, f"fc{number}", rectified=net.rectifies)], f"a{number}"
        )
        shape = (width,)
    result = "prediction" if name == "linear_regression" else "logits"
    net.dense(value, shape[0], outputs, f"fc{len(widths) + 1}", output=result)
    return net.model(name, tuple(inputs), result, outputs)


def zoo_loss(name: str, outputs: int) -> str:
    """The loss that fits a model of the zoo by default."""
    if name == "linear_regression":
        return "mean_squared_error"
    if name == "linear_svm":
        return "hinge"
    return "softmax_cross_entropy" if outputs > 1 else "binary_cross_entropy"


def _check(
    name: str,
    inputs: tuple[int, ...],
    outputs: int,
    hidden: tuple[int, ...],
    activation: str,
    channels: tuple[int, ...],
) -> None:
    if name not in ZOO:
        raise CompileError(f"model {name!r} is not in the zoo; choose one of {', '.join(ZOO)}, or give an ONNX file")
    if activation not in ACTIVATIONS:
        raise CompileError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if name in LINEAR and hidden:
        raise CompileError(f"hidden={hidden}: {name} has no hidden layers; use 'mlp'")
    if name == "softmax_regression" and outputs < 2:
        raise CompileError(f"outputs={outputs}: softmax_regression needs at least 2; use 'logistic_regression' for 1")
    for field, sizes in (("inputs", inputs), ("outputs", (outputs,)), ("hidden", hidden), ("channels", channels)):
        if not all(isinstance(size, int) and size > 0 for size in sizes) or (field == "inputs" and not sizes):
            raise CompileError(f"{field}={sizes}: sizes must be whole numbers above 0")
    if name == "cnn" and (len(inputs) != 3 or len(channels) != 2 or min(inputs[1:]) < POOL * POOL):
        raise CompileError(
            f"inputs={inputs}, channels={channels}: cnn takes inputs (channels, height, width) of at least "
            f"{POOL * POOL} x {POOL * POOL} pixels and two channel numbers"
        )


class _Net:
    """Collects the nodes and weights of one model."""

    def __init__(self, seed: int, activation: str) -> None:
        self.activation = activation
        self.rectifies = activation == "Relu"
        self._bits = np.random.PCG64(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def dense(self, x: str, width_in: int, width: int, layer: str, *, rectified: bool = False, output: str = "") -> str:
        self._parameters(layer, (width, width_in), width_in, width, rectified)
        return self.node("Gemm", [x, f"{layer}.weight", f"{layer}.bias"], output or layer, transB=1)

    def conv_pool(self, x: str, shape: tuple[int, ...], width: int, layer: str) -> tuple[str, tuple[int, ...]]:
        taps = KERNEL * KERNEL
        self._parameters(layer, (width, shape[0], KERNEL, KERNEL), shape[0] * taps, width * taps, self.rectifies)
        window = {"kernel_shape": [KERNEL] * 2, "pads": [KERNEL // 2] * 4}
        self.node("Conv", [x, f"{layer}.weight", f"{layer}.bias"], layer, **window)
        self.node(self.activation, [layer], f"{layer}.active")
        pooled = self.node(
            "MaxPool", [f"{layer}.active"], f"{layer}.pooled", kernel_shape=[POOL] * 2, strides=[POOL] * 2
        )
        return pooled, (width, shape[1] // POOL, shape[2] // POOL)

    def model(self, name: str, inputs: tuple[int, ...], result: str, outputs: int) -> onnx.ModelProto:
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("x", float32, [BATCH, *inputs])],
            [helper.make_tensor_value_info(result, float32, [BATCH, outputs])],
            self._weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="edgefed")

    def _parameters(self, layer: str, shape: tuple[int, ...], fan_in: int, fan_out: int, rectified: bool) -> None:
        bound = math.sqrt(6 / fan_in) if rectified else math.sqrt(6 / (fan_in + fan_out))
        self._weights.append(numpy_helper.from_array(self._uniform(shape, bound), f"{layer}.weight"))
        self._weights.append(numpy_helper.from_array(np.zeros(shape[0], np.float32), f"{layer}.bias"))

    def _uniform(self, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
        raw = self._bits.random_raw(math.prod(shape))
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        drawn = ((2.0 * unit - 1.0) * bound).astype(np.float32)
        return _coarse(drawn, bound).reshape(shape)


def _coarse(drawn: NDArray[np.float32], bound: float) -> NDArray[np.float32]:
    """Random numbers within ``bound``, rounded to five significant bits.

    A model starts as well with these, and devices fetch them in a quarter of the bytes (``edge_sdk/wire/packing.py``).
    """
    bits, unit = drawn.view(np.uint32), np.uint32(1 << 19)
    cut = bits // unit * unit
    rounded = ((bits + unit // np.uint32(2)) // unit * unit).view(np.float32)
    return np.where(np.abs(rounded) <= bound, rounded, cut.view(np.float32))
