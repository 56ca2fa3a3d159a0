"""Sequences of tensors and casts by example, which PyTorch's newer exporter writes for ``chunk`` and numbers.

A SplitToSequence whose elements are taken at constant positions is a Split, a CastLike is a Cast to a type that
inference knows, or nothing at all. What cannot be put this way stays, and is refused later by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["lower_sequences"]


def lower_sequences(model: onnx.ModelProto) -> None:
    """Replace SplitToSequence, SequenceAt and CastLike where their operands allow it, in place."""
    if not any(node.op_type in ("CastLike", "SplitToSequence") for node in model.graph.node):
        return
    constants = _constants(model)
    types = _types(model)
    splits: dict[str, list[str]] = {}  # by sequence, the names of its elements
    lowered: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "CastLike":
            lowered.append(_cast(node, types))
        elif node.op_type == "SplitToSequence" and (lengths := _lengths(model, node, types, constants)):
            model.graph.initializer.append(numpy_helper.from_array(np.array(lengths, np.int64), f"{name}/lengths"))
            splits[name] = [f"{name}/{i}" for i in range(len(lengths))]
            inputs = [node.input[0], f"{name}/lengths"]
            lowered.append(helper.make_node("Split", inputs, splits[name], name=node.name, axis=_axis(node)))
        elif node.op_type == "SequenceAt" and node.input[0] in splits:
            element = splits[node.input[0]][int(constants[node.input[1]])]
            lowered.append(helper.make_node("Identity", [element], [name], name=node.name))
        else:
            lowered.append(node)
    del model.graph.node[:]
    model.graph.node.extend(lowered)


def _lengths(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto.Tensor],
    constants: Mapping[str, NDArray[Any]],
) -> list[int]:
    """Lengths of the elements; none where they are not known or the sequence is used in another way."""
    users = [user for user in model.graph.node if node.output[0] in user.input]
    taken = [constants.get(user.input[1]) if user.op_type == "SequenceAt" else None for user in users]
    split = constants.get(node.input[1]) if len(node.input) > 1 else None
    if split is None or any(position is None for position in taken):
        return []
    if split.ndim:
        lengths = [int(length) for length in split]
    else:
        shape = types[node.input[0]].shape.dim if node.input[0] in types else ()
        size = shape[_axis(node)].dim_value if -len(shape) <= _axis(node) < len(shape) else 0
        length = max(int(split), 1)
        lengths = [min(length, size - start) for start in range(0, size, length)]
    fits = all(p is not None and -len(lengths) <= int(p) < len(lengths) for p in taken)
    return lengths if fits else []


def _cast(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> onnx.NodeProto:
    source, target = (types[name].elem_type if name in types else 0 for name in node.input)
    if not target:
        return node
    if source == target:
        return helper.make_node("Identity", [node.input[0]], node.output, name=node.name)
    return helper.make_node("Cast", [node.input[0]], node.output, name=node.name, to=target)


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return types


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The whole numbers among initializers and Constant nodes."""
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return {name: numpy_helper.to_array(t) for name, t in tensors.items() if t.data_type in whole and len(t.dims) < 2}
