"""Small training programs written out by hand with onnx.helper, so that engines are tested without the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.node_cases import transcribed
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Input, Program

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def modelled(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: dict[str, Sequence[int | str]],
    constants: dict[str, NDArray[Any]],
) -> onnx.ModelProto:
    """A model of opset 21 with float outputs."""
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def forward(sizes: Sequence[int]) -> list[onnx.NodeProto]:
    """Dense layers with Relu between them: x -> logits."""
    nodes = []
    last = len(sizes) - 2
    for i in range(len(sizes) - 1):
        out = "logits" if i == last else f"z{i}"
        nodes.append(helper.make_node("Gemm", [f"h{i}" if i else "x", f"w{i}", f"b{i}"], [out], transB=1))
        if i != last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i + 1}"]))
    return nodes


def loss_nodes() -> list[onnx.NodeProto]:
    """Softmax cross-entropy, summed over the batch, from logits and target."""
    return [
        helper.make_node("LogSoftmax", ["logits"], ["logp"], axis=-1),
        helper.make_node("OneHot", ["target", "depth", "off_on"], ["truth"], axis=-1),
        helper.make_node("Mul", ["logp", "truth"], ["hits"]),
        helper.make_node("ReduceSum", ["hits"], ["gain"], keepdims=0, noop_with_empty_axes=0),
        helper.make_node("Neg", ["gain"], ["loss_sum"]),
    ]


def backward(sizes: Sequence[int], momentum: bool) -> list[onnx.NodeProto]:
    """Gradients by hand, and plain or heavy-ball SGD."""
    nodes = [
        helper.make_node("Shape", ["target"], ["count_int"], start=0, end=1),
        helper.make_node("Cast", ["count_int"], ["count_1"], to=FLOAT, saturate=1),
        helper.make_node("Squeeze", ["count_1"], ["count"]),
        helper.make_node("Div", ["loss_sum", "count"], ["loss"]),
        helper.make_node("Exp", ["logp"], ["p"]),
        helper.make_node("Sub", ["p", "truth"], ["excess"]),
        helper.make_node("Div", ["excess", "count"], [f"dz{len(sizes) - 2}"]),
    ]
    for i in reversed(range(len(sizes) - 1)):
        h = f"h{i}" if i else "x"
        nodes += [
            helper.make_node("Gemm", [f"dz{i}", h], [f"dw{i}"], transA=1),
            helper.make_node("ReduceSum", [f"dz{i}", "axis0"], [f"db{i}"], keepdims=0, noop_with_empty_axes=0),
        ]
        for name in (f"w{i}", f"b{i}"):
            direction = f"d{name}"
            if momentum:
                nodes += [
                    helper.make_node("Mul", [f"state/momentum/{name}", "momentum"], [f"kept/{name}"]),
                    helper.make_node("Add", [f"kept/{name}", direction], [f"new/state/momentum/{name}"]),
                ]
                direction = f"new/state/momentum/{name}"
            nodes += [
                helper.make_node("Mul", [direction, "lr"], [f"move/{name}"]),
                helper.make_node("Sub", [name, f"move/{name}"], [f"new/{name}"]),
            ]
        if i:
            nodes += [
                helper.make_node("Gemm", [f"dz{i}", f"w{i}"], [f"dh{i}"]),
                helper.make_node("Sign", [f"h{i}"], [f"on{i}"]),
                helper.make_node("Mul", [f"dh{i}", f"on{i}"], [f"dz{i - 1}"]),
            ]
    return nodes


def mlp_program(sizes: Sequence[int] = (6, 8, 3), *, momentum: bool = False, name: str = "mlp") -> Program:
    """A softmax classifier of dense layers; ``sizes`` are inputs, hidden layers, classes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(sizes) - 1):
        shapes[f"w{i}"], shapes[f"b{i}"] = (sizes[i + 1], sizes[i]), (sizes[i + 1],)
    state = {f"state/momentum/{n}": s for n, s in shapes.items()} if momentum else {}
    scalars = {"lr": 0.1, "momentum": 0.9} if momentum else {"lr": 0.1}
    constants = {
        "depth": np.array(sizes[-1], dtype=np.int64),
        "off_on": np.array([0, 1], dtype=np.float32),
    }
    axis0 = {"axis0": np.array([0], dtype=np.int64)}
    model_inputs: dict[str, tuple[int, Sequence[int | str]]] = {"x": (FLOAT, ("n", sizes[0]))}
    parameters = {n: (FLOAT, s) for n, s in shapes.items()}
    fed = {**model_inputs, "target": (INT64, ("n",)), **parameters}
    train = modelled(
        forward(sizes) + loss_nodes() + backward(sizes, momentum),
        {**fed, **{n: (FLOAT, s) for n, s in state.items()}, **dict.fromkeys(scalars, (FLOAT, ()))},
        {"loss": (), **{f"new/{n}": s for n, s in {**shapes, **state}.items()}},
        {**constants, **axis0},
    )
    hits = [
        helper.make_node("ArgMax", ["logits"], ["guess"], axis=-1, keepdims=0, select_last_index=0),
        helper.make_node("Equal", ["guess", "target"], ["hit"]),
        helper.make_node("Cast", ["hit"], ["hit_float"], to=FLOAT, saturate=1),
        helper.make_node("ReduceSum", ["hit_float"], ["metric_sum"], keepdims=0, noop_with_empty_axes=0),
    ]
    sums: dict[str, Sequence[int | str]] = {"loss_sum": (), "metric_sum": ()}
    evaluate = modelled(forward(sizes) + loss_nodes() + hits, fed, sums, constants)
    infer = modelled(forward(sizes), {**model_inputs, **parameters}, {"logits": ("n", sizes[-1])}, {})
    return Program(
        name=name,
        kind="graph",
        spec=ParameterSpec((n, s, "trainable") for n, s in shapes.items()),
        inputs=(Input("x", "float32", (None, sizes[0])),),
        target=Input("target", "int64", (None,)),
        loss="softmax_cross_entropy",
        optimizer="momentum" if momentum else "sgd",
        state=tuple(state.items()),
        scalars=scalars,
        train=train.SerializeToString(),
        evaluate=evaluate.SerializeToString(),
        infer=infer.SerializeToString(),
        train_plan=transcribed(train),
        evaluate_plan=transcribed(evaluate),
        infer_plan=transcribed(infer),
        classes=sizes[-1],
    )


def start(program: Program, seed: int = 0) -> NDArray[np.float32]:
    """Small random parameters."""
    return np.random.default_rng(seed).normal(0, 0.2, program.spec.size).astype(np.float32)


def blobs(count: int, features: int = 6, classes: int = 3, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labelled Gaussian clusters: (x float32 [count, features], y int64 [count])."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (classes, features))
    y = rng.integers(0, classes, count)
    return (centres[y] + rng.normal(0, 1, (count, features))).astype(np.float32), y
