"""From an ONNX file to a :class:`~coordinator.compile.graph.Model`: what can be wrong with a file is found here.

What happens, in order: refuse what cannot travel (data elsewhere, foreign domains), inline functions, convert to the
working opset, fold shape arithmetic (``folding``), infer shapes with an open batch (``shapes``), normalise the nodes
and tell parameters from constants (``normalise``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError as ProtobufError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import inliner, numpy_helper, version_converter

from coordinator.compile.batch_first import batch_first
from coordinator.compile.batch_size import BatchError
from coordinator.compile.external import check_whole, every_node, read_external
from coordinator.compile.folding import fold_shape_arithmetic, open_fixed_batch
from coordinator.compile.graph import BATCH, OPSET, UNKNOWN, Model, Node, Value, prune
from coordinator.compile.last_state import take_last_states
from coordinator.compile.normalise import fold, read_node, split_parameters, without_idle_casts
from coordinator.compile.opset_down import without_newer
from coordinator.compile.pooling_first import pool_first
from coordinator.compile.roles import Origin, Roles
from coordinator.compile.rules.dropout import DROPOUT_FACTOR
from coordinator.compile.schema import complete
from coordinator.compile.sequences import lower_sequences
from coordinator.compile.shapes import infer_values, value_of
from coordinator.compile.sklearn import cut_heads, lowered
from coordinator.compile.spatial import explicit_window
from edge_sdk.errors import CompileError

__all__ = ["import_model", "load_onnx", "read_onnx"]

INPUT_DTYPES: Final = ("float32", "int64", "int32", "bool", "uint8")
DOMAINS: Final = ("", "ai.onnx")
CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
QUANTISED: Final = re.compile("[Qq]uantize|QLinear|MatMulInteger|ConvInteger|NBits|^Q(Attention|Gemm|Embed|OrderedM)")
"""Operators of quantised models, of ONNX and of onnxruntime."""
RESERVED_PREFIXES: Final = ("new/", "state/", "anchor/")
RESERVED: Final = frozenset(
    {"target", "loss", "loss_sum", "metric_sum", "lr", "momentum", "beta1", "beta2", "epsilon", "weight_decay", "mu"}
    | {DROPOUT_FACTOR, "rho", "gradient_norm_max", "label_smoothing", "huber_delta"}
)


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """The model in an ``.onnx`` file, with the data that lie in other files beside it; not checked further.

    Raises:
        CompileError: The file is missing, truncated or not ONNX, or its external data are (see ``external``).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror}") from error
    model = read_onnx(data, str(path))
    read_external(model, Path(path).parent)
    return model


def read_onnx(data: bytes, where: str) -> onnx.ModelProto:
    """The model in the bytes of an ``.onnx`` file, not checked further; ``where`` says whose they are.

    Raises:
        CompileError: They are truncated or not ONNX.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except ProtobufError as error:
        raise CompileError(f"{where}: {len(data)} bytes that are not an ONNX model; is the file complete?") from error
    if not model.graph.node:
        raise CompileError(f"{where}: holds no graph; is it an ONNX model, and complete?")
    return model


def import_model(
    model: onnx.ModelProto, *, name: str, frozen: Collection[str] = (), asked: Collection[str] = ()
) -> Model:
    """Check and normalise an inference model.

    Args:
        model: An ONNX inference model of the default domain, float32, batch first.
        name: Human name of the model.
        frozen: Initializers that stay constant although they stand where parameters stand.
        asked: Full names of initializers that are parameters although they look like constants.

    Raises:
        CompileError: Names what is wrong, where, and what to do about it.
    """
    origin = Origin.of(model)
    proto = _at_working_opset(_self_contained(model, name), name)
    _drop_initialized_inputs(proto)
    inputs = _inputs(proto)
    lower_sequences(proto)
    open_fixed_batch(proto)
    computed = fold_shape_arithmetic(proto, f"model {name!r}")
    values = infer_values(proto, f"model {name!r}", computed)
    constants = {t.name: _array(t, f"initializer {t.name!r}") for t in proto.graph.initializer}
    outputs = _outputs(proto, values, name)
    nodes = fold((read_node(n) for n in proto.graph.node), constants, {o.name for o in outputs})
    nodes = without_idle_casts(nodes, {key: value.dtype for key, value in values.items()}, {o.name for o in outputs})
    nodes = take_last_states(nodes, constants, values, {o.name for o in outputs})
    nodes = pool_first(nodes, values, {o.name for o in outputs})
    _check_control_flow(prune(nodes, (o.name for o in outputs)))
    _check_inference_form(nodes, constants)
    nodes = [explicit_window(complete(n), values) for n in prune(nodes, (o.name for o in outputs))]
    roles = Roles(nodes, constants, values, origin, asked)
    parameters, buffers, nodes = split_parameters(nodes, constants, roles, frozenset(frozen))
    used = {name for n in nodes for name in n.inputs} | {o.name for o in outputs}
    kept = {key: array for key, array in constants.items() if key in used and key not in parameters}
    for key, array in (*parameters.items(), *kept.items()):
        values[key] = Value(key, str(array.dtype), array.shape)
    _check_names([*(i.name for i in inputs), *parameters, *(o for n in nodes for o in n.outputs)])
    return Model(name, inputs, outputs, tuple(nodes), parameters, buffers, kept, values, roles=roles.found)


def _self_contained(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    check_whole(model, name)
    _check_not_quantised(model, name)
    if model.functions:
        model = inliner.inline_local_functions(model)
    model = lowered(batch_first(cut_heads(model)))
    for node in every_node(model.graph):
        if node.domain not in DOMAINS:
            raise CompileError(
                f"node {node.name or node.output[0]!r}: operator {node.op_type!r} is of the domain {node.domain!r}, "
                f"and only ONNX's own operators can be trained; export without {_exporter_hint(node.domain)}"
            )
    return model


def _check_not_quantised(model: onnx.ModelProto, name: str) -> None:
    found = [node for node in every_node(model.graph) if QUANTISED.search(node.op_type)]
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise CompileError(
            f"model {name!r}: is quantised (node {found[0].name or found[0].output[0]!r}: {found[0].op_type}{others}), "
            "and whole numbers have no gradient: give the float32 model that it was made from; `edge-coordinator "
            "export --int8` quantises what was trained"
        )


def _exporter_hint(domain: str) -> str:
    hints = {
        "com.microsoft": "onnxruntime's optimiser",
    }
    return hints.get(domain, "custom operators")


def _at_working_opset(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    versions = [o.version for o in model.opset_import if o.domain in DOMAINS]
    if not versions:
        raise CompileError(f"model {name!r}: does not say which opset it uses; export it again")
    try:
        model = onnx.shape_inference.infer_shapes(model)  # some exporters leave the outputs' shapes out
        onnx.checker.check_model(model)
        model = without_newer(model, versions[0])
        if versions[0] != OPSET:
            model = version_converter.convert_version(model, OPSET)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise CompileError(
            f"model {name!r}: not valid ONNX, or opset {versions[0]} does not convert to {OPSET}: {error}"
        ) from error
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _check_control_flow(nodes: Iterable[Node]) -> None:
    for node in nodes:
        if node.op in CONTROL_FLOW:
            raise CompileError(
                f"{node}: control flow that depends on data cannot be trained; export the model with it unrolled or "
                "traced for one case (a recurrent layer as LSTM, GRU or RNN)"
            )


def _check_inference_form(nodes: Iterable[Node], constants: Mapping[str, NDArray[Any]]) -> None:
    for node in nodes:
        flag = node.inputs[2] if node.op == "Dropout" and len(node.inputs) > 2 else ""
        if node.attributes.get("training_mode", 0) or (flag in constants and bool(np.any(constants[flag]))):
            raise CompileError(
                f"{node}: the model was exported in training mode, in which its outputs depend on the batch or on "
                "chance; export it in inference mode (model.eval()), devices train it in the form that training has"
            )


def _drop_initialized_inputs(proto: onnx.ModelProto) -> None:
    """Up to IR version 3 every initializer was listed as an input too."""
    initialized = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.input if info.name not in initialized]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _inputs(proto: onnx.ModelProto) -> tuple[Value, ...]:
    inputs = []
    for info in proto.graph.input:
        value = value_of(info)
        if value is None or not value.shape:
            raise CompileError(f"input {info.name!r}: has no shape with a batch dimension; export it with one")
        if value.dtype not in INPUT_DTYPES:
            raise CompileError(
                f"input {info.name!r}: type {value.dtype} is not one of {INPUT_DTYPES}; export in float32"
            )
        if not all(isinstance(d, int) and d > 0 for d in value.shape[1:]):
            raise CompileError(
                f"input {info.name!r}: shape {list(value.shape)}: only the first dimension, the batch, may be open; "
                "export the model with the others fixed"
            )
        inputs.append(Value(info.name, value.dtype, (BATCH, *value.shape[1:])))
    if not inputs:
        raise CompileError("the model has no input")
    return tuple(inputs)


def _outputs(proto: onnx.ModelProto, values: Mapping[str, Value], name: str) -> tuple[Value, ...]:
    outputs = []
    for info in proto.graph.output:
        value = values.get(info.name)
        if value is None or not value.shape or value.shape[0] != BATCH:
            shape = list(value.shape) if value else "unknown"
            if value is None or UNKNOWN in value.shape:
                _check_control_flow(prune([read_node(n) for n in proto.graph.node], [info.name]))
                raise CompileError(
                    f"output {info.name!r}: its shape is {shape}, expected the batch first; a size seems to depend on "
                    "the data, which no gradient follows: only the batch may be open, pad or mask to fixed sizes"
                )
            raise BatchError(f"model {name!r}", f"the shape of its output {info.name!r} is {shape} whatever comes in")
        outputs.append(value)
    return tuple(outputs)


def _array(tensor: onnx.TensorProto, where: str) -> NDArray[Any]:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise CompileError(f"{where}: its bytes do not fill its shape {list(tensor.dims)}: {error}") from error
    return array


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED or name.startswith(RESERVED_PREFIXES):
            raise CompileError(
                f"the name {name!r} is used by the training graph itself ({sorted(RESERVED)}, {RESERVED_PREFIXES}); "
                "rename that tensor in the export"
            )
