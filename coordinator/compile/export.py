"""Trained weights back into an inference model that any ONNX runtime loads.

A program that normalises its input is written with its normalisation: the file takes what devices take.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from coordinator.compile.lora import is_adapter, merged_adapters
from coordinator.compile.raw_inputs import output_of, with_raw_input
from coordinator.compile.sklearn import restore
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Program

__all__ = ["export_onnx", "merge_into_source"]

SPLIT: Final = "@"
"""Between an initializer that several layers shared and the layer that got its own copy (see ``normalise``)."""


def export_onnx(program: Program, vector: NDArray[np.float32]) -> onnx.ModelProto:
    """The inference model with ``vector`` (float32[P]) as its weights.

    Inputs, outputs and parameters have the names of the model that was compiled; the batch is open.

    Raises:
        CompileError: The program has no inference graph, or ``vector`` does not fit its parameters.
    """
    arrays = _arrays(program, vector)
    model: onnx.ModelProto = onnx.ModelProto.FromString(program.infer)
    kept = [info for info in model.graph.input if info.name not in arrays]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model.graph.name = program.name
    onnx.checker.check_model(model, full_check=True)
    return model


def merge_into_source(program: Program, vector: NDArray[np.float32], source: onnx.ModelProto) -> onnx.ModelProto:
    """The model that was compiled, its graph and names as they were, with ``vector`` (float32[P]) as its weights.

    Where the program normalises its input, the nodes for that stand before the graph; where it normalises its target,
    those that scale the output back stand behind it.

    An initializer that several layers shared although each trained its own becomes one for each of them; adapters are
    added to the weights beside which they were trained.

    Raises:
        CompileError: ``source`` is not the model that ``program`` was compiled from.
    """
    arrays = {**_split_constants(program), **_arrays(program, vector)}
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if program.normalise is not None:
        target = program.normalise_target
        output = "" if target is None else output_of(onnx.ModelProto.FromString(program.infer).graph, target)
        model = with_raw_input(source, program.normalise, program.missing, target=target, output=output)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for weight, product in merged_adapters(arrays).items():
        if weight not in arrays and weight not in tensors:
            raise _not_the_source(program, weight)
        start = arrays[weight] if weight in arrays else numpy_helper.to_array(tensors[weight])
        change = product if start.shape == product.shape and not _is_transposed(model, weight) else product.T
        arrays[weight] = (start + change).astype(np.float32)
    written = {name for node in model.graph.node for name in restore(node, arrays)}
    for name in [name for name in arrays if SPLIT in name and name not in tensors]:
        if _split(model, name, arrays[name]):
            written.add(name)
    for name, array in arrays.items():
        if name in written or is_adapter(name):
            continue
        shape = tuple(tensors[name].dims) if name in tensors else None
        if shape is not None and (shape == array.shape or (shape == () and array.shape == (1,))):  # a trained scalar
            tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(array, order="C").reshape(shape), name))
        elif not _in_constant(model, name, array):
            raise _not_the_source(program, name)
    return model


def _arrays(program: Program, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    if not program.infer:
        raise CompileError(f"program {program.name!r} has no inference graph: it was not compiled from an ONNX model")
    if vector.shape != (program.spec.size,):
        raise CompileError(
            f"parameters have shape {list(vector.shape)}, program {program.name!r} has {program.spec.size}"
        )
    return dict(program.spec.unflatten(vector.astype(np.float32, copy=False)))


def _split_constants(program: Program) -> dict[str, NDArray[Any]]:
    """Frozen copies of shared initializers: the trained one must not become theirs."""
    graph = onnx.ModelProto.FromString(program.infer).graph if program.infer else onnx.GraphProto()
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if SPLIT in t.name}


def _not_the_source(program: Program, name: str) -> CompileError:
    return CompileError(
        f"parameter {name!r} of {program.name!r} has no place in the source model; is it the file that was compiled?"
    )


def _is_transposed(model: onnx.ModelProto, weight: str) -> bool:
    users = [node for node in model.graph.node if weight in node.input]
    return any(n.op_type == "Gemm" and any(a.name == "transB" and a.i for a in n.attribute) for n in users)


def _split(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> bool:
    """Give the layer that ``name`` belongs to its own initializer; False if there is no such layer."""
    shared, _, layer = name.partition(SPLIT)
    aliases = {shared} | {n.output[0] for n in model.graph.node if n.op_type == "Identity" and n.input[0] == shared}
    found = _slots(model, layer, aliases)
    for node, slot in found:
        node.input[slot] = name
    if found:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return bool(found)


def _slots(model: onnx.ModelProto, layer: str, names: set[str]) -> list[tuple[onnx.NodeProto, int]]:
    whole, _, slot = layer.rpartition("/")
    for node in model.graph.node:
        label = node.name or node.output[0]
        if label == layer:
            return [(node, i) for i, operand in enumerate(node.input) if operand in names][:1]
        if label == whole and slot.isdecimal() and int(slot) < len(node.input) and node.input[int(slot)] in names:
            return [(node, int(slot))]
    return []


def _in_constant(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> bool:
    """Write into the Constant node of that name, or put an initializer for the Identity; False if there is none."""
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0] == name:
            model.graph.node.remove(node)
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return True
        if node.op_type == "Constant" and node.output[0] == name:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array, name)))
            return True
    return False
