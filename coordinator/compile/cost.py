"""What a training step costs: counted on the graph, for one batch size, before anybody runs it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

__all__ = ["Cost", "step_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate.

    Attributes:
        batch_size: For so many examples.
        flops: Floating-point operations of one step; a multiplication and an addition are two.
        activation_bytes_peak: Most bytes that computed tensors hold at a time, if each is freed after its last use.
        unknown: Nodes whose output sizes are not known, and which count nothing.
    """

    batch_size: int
    flops: int
    activation_bytes_peak: int
    unknown: int


def step_cost(train: bytes, batch_size: int) -> Cost:
    """The cost of one run of a train graph.

    Args:
        train: ONNX model.
        batch_size: Examples in the batch.
    """
    model = onnx.ModelProto.FromString(train)
    initializers = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for info in model.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = batch_size
    source = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(_inferrable(node) for node in source)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        pass  # what is known without it still counts
    shapes, sizes = dict(initializers), {}
    for info in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = info.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.HasField("shape") and -1 not in dims:
            shapes[info.name] = tuple(dims)
            sizes[info.name] = math.prod(dims) * _width(kind.elem_type)
    flops = sum(_flops(node, shapes) for node in source)
    unknown = sum(any(name and name not in shapes for name in node.output) for node in source)
    return Cost(batch_size, flops, _peak(model.graph, sizes), unknown)


def _inferrable(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node, or one of the same shape where ONNX has no inference for it."""
    if node.op_type == "MaxUnpool" and len(node.input) > 2:
        return helper.make_node("ConstantOfShape", node.input[2:], node.output)
    if node.op_type == "GroupNormalization":
        return helper.make_node("Identity", node.input[:1], node.output[:1])
    return node


def _width(elem_type: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(elem_type).itemsize) if elem_type != TensorProto.UNDEFINED else 4


def _flops(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    names = [*node.input[:2], *node.output[:1]]
    if any(name not in shapes for name in names if name):
        return 0
    first, out = (math.prod(shapes[node.input[0]]) if node.input else 0), math.prod(shapes[node.output[0]] or (1,))
    match node.op_type:
        case "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * out * shapes[node.input[0]][0 if transposed else 1]
        case "MatMul":
            return 2 * out * shapes[node.input[0]][-1]
        case "Conv":
            return 2 * out * math.prod(shapes[node.input[1]][1:])
        case "ConvTranspose":
            return 2 * first * math.prod(shapes[node.input[1]][1:])
        case "AveragePool" | "MaxPool" | "LpPool":
            window = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [1])
            return out * math.prod(window)
        case "LSTM" | "GRU" | "RNN":
            steps = math.prod(shapes[node.input[0]][:2])
            return sum(2 * steps * math.prod(shapes[w]) for w in node.input[1:3] if w in shapes)
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Shape" | "Size" | "Constant":
            return 0
        case _:
            return max(first, out)


def _peak(graph: onnx.GraphProto, sizes: dict[str, int]) -> int:
    last = {name: i for i, node in enumerate(graph.node) for name in (*node.input, *node.output)}
    held: dict[str, int] = {}
    peak = 0
    for i, node in enumerate(graph.node):
        held.update((name, sizes[name]) for name in node.output if name in sizes)
        peak = max(peak, sum(held.values()))
        for name in {*node.input, *node.output}:
            if last[name] == i:
                held.pop(name, None)
    return peak
