"""Models that have their batch elsewhere than first, as recurrent layers of PyTorch have it by default (time first).

Examples are cut along their first axis everywhere, so such an input gets a Transpose behind it, and such an output one
before it. Names stay; the exported model is the source, with its own order.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from coordinator.compile.external import every_node
from coordinator.compile.graph import BATCH
from edge_sdk.errors import CompileError

__all__ = ["batch_first", "moved_inputs"]


def _batch_axes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Axis of the batch, and rank, of each input and output where it is not the first.

    Of an input it is the only open axis; where the first is 1, that is the batch, and what is open is something else.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in initialized]
    axes: dict[str, tuple[int, int]] = {}
    for info in inputs:
        opened, dims = _open_axes(info), info.type.tensor_type.shape.dim
        if len(opened) == 1 and dims[0].dim_value != 1:
            axes[info.name] = opened[0], len(dims)
            dims[opened[0]].dim_param = BATCH
    if len(axes) < len(inputs):
        return {}
    declared = {info.name: info for info in model.graph.output}
    for info in graph.output:
        info.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    probe = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    probe.functions.extend(model.functions)
    try:
        outputs = onnx.shape_inference.infer_shapes(probe).graph.output
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        outputs = []  # what is wrong with the model is said later
    for info in outputs:
        opened, dims = _open_axes(info), info.type.tensor_type.shape.dim
        if [dims[axis].dim_param for axis in opened] != [BATCH]:
            opened, dims = _open_axes(declared[info.name]), declared[info.name].type.tensor_type.shape.dim
        if len(opened) == 1:
            axes[info.name] = opened[0], len(dims)
    return {name: found for name, found in axes.items() if found[0]}


def _open_axes(info: onnx.ValueInfoProto) -> list[int]:
    return [axis for axis, dim in enumerate(info.type.tensor_type.shape.dim) if dim.dim_value <= 0]


def moved_inputs(model: onnx.ModelProto) -> dict[str, int]:
    """By input, the axis that the batch has in the file, where it is not the first."""
    found = _batch_axes(model)
    return {info.name: found[info.name][0] for info in model.graph.input if info.name in found}


def batch_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the batch as the first axis of every input and output; the model itself where it is.

    Raises:
        CompileError: A name that is needed for a moved tensor is taken.
    """
    axes = _batch_axes(model)
    if not axes:
        return model
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    graph = moved.graph
    before, after = [], []
    inputs = {info.name for info in graph.input}
    for info in (*graph.input, *graph.output):
        if info.name not in axes:
            continue
        axis, rank = axes[info.name]
        inner = f"{info.name}/as_exported"
        _rename(graph, info.name, inner)
        order = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
        if info.name in inputs:
            before.append(_transpose(info.name, inner, order))
            _reorder(info, axis)
        else:
            after.append(_transpose(inner, info.name, [axis, *(i for i in range(rank) if i != axis)]))
            info.type.tensor_type.ClearField("shape")
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before, *nodes, *after])
    return moved


def _transpose(source: str, target: str, order: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [target], name=f"{source}/transposed", perm=order)


def _reorder(info: onnx.ValueInfoProto, axis: int) -> None:
    dims = [onnx.TensorShapeProto.Dimension() for _ in info.type.tensor_type.shape.dim]
    for copy, dim in zip(dims, info.type.tensor_type.shape.dim, strict=True):
        copy.CopyFrom(dim)
    dims.insert(0, dims.pop(axis))
    del info.type.tensor_type.shape.dim[:]
    info.type.tensor_type.shape.dim.extend(dims)


def _rename(graph: onnx.GraphProto, name: str, new: str) -> None:
    for node in every_node(graph):
        if new in (*node.input, *node.output):
            raise CompileError(
                f"the name {new!r} is needed for {name!r} in another order; rename that tensor in the export"
            )
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = new
