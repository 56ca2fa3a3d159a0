"""Shape inference with a batch that stays open.

ONNX's own inference loses track of sizes behind a ``-1``, which most exporters write when they flatten. So it runs
twice, with two prime batch sizes that no real dimension has: a size that is the same both times is static, and one
that is k times the prime both times is ``batch*k``.
"""

from __future__ import annotations

from typing import Final

import onnx
from onnx import helper

from coordinator.compile.graph import BATCH, UNKNOWN, Dim, Value
from edge_sdk.errors import CompileError

__all__ = ["infer_values", "value_of"]

PROBES: Final = (7_368_787, 15_485_863)  # the 500,000th and the 1,000,000th prime


def infer_values(model: onnx.ModelProto, where: str) -> dict[str, Value]:
    """dtype and shape of every tensor of ``model`` of which the first dimension of each input is the batch.

    Args:
        model: At the working opset; shapes written in it behind the inputs are ignored.
        where: What is compiled, for messages.

    Returns:
        Values by name; a tensor that inference cannot place is missing.

    Raises:
        CompileError: Two shapes contradict each other.
    """
    first, second = (_infer(model, batch, where) for batch in PROBES)
    return {name: _join(value, second[name]) for name, value in first.items() if name in second}


def value_of(info: onnx.ValueInfoProto) -> Value | None:
    """The dtype and shape that ``info`` gives; None unless it is a tensor of a known rank."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or UNKNOWN for d in tensor.shape.dim)
    return Value(info.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def _infer(model: onnx.ModelProto, batch: int, where: str) -> dict[str, Value]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.value_info[:]
    for info in probe.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = batch
    for info in probe.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(probe, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise CompileError(
            f"{where}: the shapes contradict each other once the batch is open: {error}. "
            "Export the model with a dynamic batch (dynamic_axes or dynamic_shapes for dimension 0)"
        ) from error
    infos = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    values = {info.name: value_of(info) for info in infos}
    for tensor in inferred.graph.initializer:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        values[tensor.name] = Value(tensor.name, dtype, tuple(tensor.dims))
    return {name: value for name, value in values.items() if value is not None}


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
