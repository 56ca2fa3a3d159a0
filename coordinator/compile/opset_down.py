"""Operators that ONNX has only since after the working opset, written out in those that it had before.

PyTorch exports RMSNorm, SiLU and scaled_dot_product_attention as one operator each from opset 23 on. Each is a function
of older ones by its own definition (https://onnx.ai/onnx/operators/), so it gets its gradient from their rules. The
parameters keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from coordinator.compile.graph import OPSET
from edge_sdk.errors import CompileError

__all__ = ["FORMS", "without_newer"]

MASKED: Final = np.float32(-1e30)
"""Instead of a score that must not count: its exponential is 0, and unlike infinity it has a difference from itself."""


def without_newer(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model whose operators the working opset has all; one that has none newer is returned as it is.

    Args:
        model: Shapes inferred.
        opset: Its version of the default domain.

    Raises:
        CompileError: An operator, or a form of it, that cannot be written out.
    """
    if opset <= OPSET or not any(_is_newer(node.op_type, opset) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(model, opset)
    for node in model.graph.node:
        if not _is_newer(node.op_type, opset):
            writer.nodes.append(node)
        elif node.op_type in FORMS:
            FORMS[node.op_type](writer, node)
        else:
            raise writer.refusal(node, "export the model at an earlier opset, or without it")
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.initializers)
    return result


def _is_newer(op: str, opset: int) -> bool:
    return _exists(op, opset) and not _exists(op, OPSET)


def _exists(op: str, opset: int) -> bool:
    try:
        defs.get_schema(op, opset)
    except defs.SchemaError:
        return False
    return True


class _Writer:
    """The nodes so far, with what is known of the model's tensors."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._opset = opset
        graph = model.graph
        self._types = {i.name: i.type.tensor_type for i in (*graph.input, *graph.value_info, *graph.output)}
        for t in graph.initializer:
            self._types[t.name] = helper.make_tensor_type_proto(t.data_type, t.dims).tensor_type

    def op(self, node: onnx.NodeProto, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Append one of the nodes that stand for ``node``; its output, ``to`` or a new name."""
        name = to or f"{node.output[0]}/{op}{len(self.nodes)}"
        label = node.name if to else f"{node.name}/{op}{len(self.nodes)}" if node.name else ""
        self.nodes.append(helper.make_node(op, inputs, [name], name=label, **attributes))
        return name

    def constant(self, node: onnx.NodeProto, value: Any) -> str:
        name = f"{node.output[0]}/constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        """The shape of a tensor, 0 for an open dimension."""
        if name not in self._types or not self._types[name].HasField("shape"):
            raise self.refusal(node, f"the shape of {name!r} is not known; export the model with static shapes")
        return tuple(d.dim_value for d in self._types[name].shape.dim)

    def is_bool(self, name: str) -> bool:
        return name in self._types and self._types[name].elem_type == onnx.TensorProto.BOOL

    def refusal(self, node: onnx.NodeProto, why: str) -> CompileError:
        return CompileError(
            f"node {node.name or node.output[0]!r} ({node.op_type}, opset {self._opset}): opset {OPSET}, in which "
            f"models are trained, does not have this operator, and it cannot be written out in others here: {why}"
        )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _rms_normalization(writer: _Writer, node: onnx.NodeProto) -> None:
    """``scale x / sqrt(mean(x^2) + epsilon)`` (Zhang and Sennrich, Root Mean Square Layer Normalization, 2019)."""
    x, scale = node.input
    attributes = {"axis": -1, "epsilon": 1e-5, **_attributes(node)}
    axis = attributes["axis"]
    axes = range(axis, 0) if axis < 0 else range(axis, len(writer.shape(node, x)))
    over = writer.constant(node, np.array(list(axes), np.int64))
    mean = writer.op(node, "ReduceMean", writer.op(node, "Mul", x, x), over, keepdims=1)
    added = writer.op(node, "Add", mean, writer.constant(node, np.float32(attributes["epsilon"])))
    r = writer.op(node, "Reciprocal", writer.op(node, "Sqrt", added))
    writer.op(node, "Mul", writer.op(node, "Mul", x, r), scale, to=node.output[0])


def _swish(writer: _Writer, node: onnx.NodeProto) -> None:
    """``x sigmoid(alpha x)`` (Ramachandran et al., Searching for Activation Functions, 2017)."""
    (x,) = node.input
    alpha = _attributes(node).get("alpha", 1.0)
    inner = x if alpha == 1.0 else writer.op(node, "Mul", x, writer.constant(node, np.float32(alpha)))
    writer.op(node, "Mul", x, writer.op(node, "Sigmoid", inner), to=node.output[0])


def _attention(writer: _Writer, node: onnx.NodeProto) -> None:
    """``softmax(scale q k^T + mask) v`` of heads (Vaswani et al., Attention Is All You Need, 2017, equation 1)."""
    attributes = _attributes(node)
    if any(node.input[4:]) or any(node.output[1:]):
        raise writer.refusal(node, "a cache of keys and values has no place in training; export without it")
    q, k, v = (_heads(writer, node, slot, attributes) for slot in range(3))
    shapes = [_head_shape(writer, node, slot, attributes) for slot in range(3)]
    (heads, length, size), (kv_heads, kv_length, _), _ = shapes
    if heads != kv_heads or not all((heads, size, length, kv_length)):
        raise writer.refusal(
            node,
            f"its heads are {shapes} (heads, length, size), and only sizes that are known and as "
            "many heads for keys and values as for queries will do",
        )
    root = writer.constant(node, np.float32(math.sqrt(attributes.get("scale", 1 / math.sqrt(size)))))
    turned = writer.op(node, "Transpose", k, perm=[0, 1, 3, 2])
    scores = writer.op(node, "MatMul", writer.op(node, "Mul", q, root), writer.op(node, "Mul", turned, root))
    if softcap := attributes.get("softcap", 0.0):
        cap = writer.constant(node, np.float32(softcap))
        scores = writer.op(node, "Mul", writer.op(node, "Tanh", writer.op(node, "Div", scores, cap)), cap)
    if len(node.input) > 3 and node.input[3]:
        scores = _masked(writer, node, scores, node.input[3])
    if attributes.get("is_causal", 0):
        past = writer.constant(node, np.tril(np.ones((length, kv_length), np.bool_)))
        scores = writer.op(node, "Where", past, scores, writer.constant(node, MASKED))
    weights = writer.op(node, "Softmax", scores, axis=-1)
    if len(writer.shape(node, node.input[0])) == 4:
        writer.op(node, "MatMul", weights, v, to=node.output[0])
        return
    mixed = writer.op(node, "Transpose", writer.op(node, "MatMul", weights, v), perm=[0, 2, 1, 3])
    writer.op(node, "Reshape", mixed, writer.constant(node, np.array([0, 0, -1], np.int64)), to=node.output[0])


def _masked(writer: _Writer, node: onnx.NodeProto, scores: str, mask: str) -> str:
    if writer.is_bool(mask):
        return writer.op(node, "Where", mask, scores, writer.constant(node, MASKED))
    return writer.op(node, "Add", scores, mask)


def _heads(writer: _Writer, node: onnx.NodeProto, slot: int, attributes: Mapping[str, Any]) -> str:
    """q, k or v as [batch, heads, length, size]."""
    name = str(node.input[slot])
    if len(writer.shape(node, name)) == 4:
        return name
    count = attributes["q_num_heads" if slot == 0 else "kv_num_heads"]
    split = writer.op(node, "Reshape", name, writer.constant(node, np.array([0, 0, count, -1], np.int64)))
    return writer.op(node, "Transpose", split, perm=[0, 2, 1, 3])


def _head_shape(
    writer: _Writer, node: onnx.NodeProto, slot: int, attributes: Mapping[str, Any]
) -> tuple[int, int, int]:
    shape = writer.shape(node, node.input[slot])
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    count = attributes["q_num_heads" if slot == 0 else "kv_num_heads"]
    return count, shape[1], shape[2] // count


FORMS: Final[Mapping[str, Callable[[_Writer, onnx.NodeProto], None]]] = {
    "Attention": _attention,
    "RMSNormalization": _rms_normalization,
    "Swish": _swish,
}
"""How each operator is written out."""
