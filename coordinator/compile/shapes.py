"""Shape inference with a batch that stays open.

ONNX's own inference loses track of sizes behind a ``-1``, which most exporters write when they flatten. So it runs
twice, with two prime batch sizes: a size that is the same both times is static, and one that is k times the prime both
times is ``batch*k``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from coordinator.compile.batch_size import BatchError
from coordinator.compile.graph import BATCH, IR_VERSION, UNKNOWN, Dim, Value

__all__ = ["PROBES", "infer_values", "inferred", "value_of"]

PROBES: Final = (1009, 2003)
"""Two primes. Small ones, because inference writes out the elements of one-dimensional tensors."""

_DATA_BYTES_MAX: Final = 8192


def infer_values(
    model: onnx.ModelProto, where: str, known: Sequence[Mapping[str, NDArray[Any]]] = ({}, {})
) -> dict[str, Value]:
    """dtype and shape of every tensor of ``model`` of which the first dimension of each input is the batch.

    Args:
        model: At the working opset; shapes written in it behind the inputs are ignored.
        where: What is compiled, for messages.
        known: For each of the ``PROBES``, integers that the graph computes.

    Returns:
        Values by name; a tensor that inference cannot place is missing.

    Raises:
        BatchError: Two shapes contradict each other.
    """
    first, second = (_infer(model, batch, where, given) for batch, given in zip(PROBES, known, strict=True))
    return {name: _join(value, second[name]) for name, value in first.items() if name in second}


def inferred(
    model: onnx.ModelProto, batch: int, where: str, known: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that are fully known for one batch size, given the values of the integers in ``known``.

    Raises:
        BatchError: Two shapes contradict each other.
    """
    values = _infer(model, batch, where, known)
    return {
        name: tuple(int(d) for d in value.shape)
        for name, value in values.items()
        if all(isinstance(d, int) for d in value.shape)
    }


def value_of(info: onnx.ValueInfoProto) -> Value | None:
    """The dtype and shape that ``info`` gives; None unless it is a tensor of a known rank."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or UNKNOWN for d in tensor.shape.dim)
    return Value(info.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def _infer(model: onnx.ModelProto, batch: int, where: str, known: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    probe = _probe(model, batch, known)
    try:
        result = onnx.shape_inference.infer_shapes(probe, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise BatchError(where, str(error)) from error
    infos = [*result.graph.input, *result.graph.value_info, *result.graph.output]
    values = {info.name: value_of(info) for info in infos}
    values.update((t.name, _tensor_value(t)) for t in result.graph.initializer)
    return {name: value for name, value in values.items() if value is not None}


def _probe(model: onnx.ModelProto, batch: int, known: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """``model`` for one batch size, the nodes behind ``known`` values cut off, large tensors without their data."""
    probe = onnx.ModelProto(ir_version=IR_VERSION, opset_import=model.opset_import)
    graph = probe.graph
    graph.name = "probe"
    graph.node.extend(_inferrable(n) for n in model.graph.node if not any(name in known for name in n.output))
    graph.input.extend(model.graph.input)
    for info in graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = batch
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _DATA_BYTES_MAX:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in known.items())
    for info in model.graph.output:
        if info.name not in known:
            graph.output.append(helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, None))
    return probe


def _inferrable(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node, or one that gives the same shape where ONNX has no inference for it."""
    if node.op_type == "GroupNormalization":
        return helper.make_node("Identity", node.input[:1], node.output[:1], node.name)
    return node


def _tensor_value(tensor: onnx.TensorProto) -> Value:
    return Value(tensor.name, str(helper.tensor_dtype_to_np_dtype(tensor.data_type)), tuple(tensor.dims))


def _join(first: Value, second: Value) -> Value:
    if len(first.shape) != len(second.shape):
        return Value(first.name, first.dtype, (UNKNOWN,))
    return Value(first.name, first.dtype, tuple(map(_join_dims, first.shape, second.shape)))


def _join_dims(first: Dim, second: Dim) -> Dim:
    if isinstance(first, str) or isinstance(second, str):
        return UNKNOWN
    if first == second:
        return first
    factor, rest = divmod(first, PROBES[0])
    if rest or factor * PROBES[1] != second:
        return UNKNOWN
    return BATCH if factor == 1 else f"{BATCH}*{factor}"
