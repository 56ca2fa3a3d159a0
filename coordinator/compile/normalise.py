"""Nodes in the form that the rest of the compiler expects, and parameters that an exporter merged taken apart.

Which initializers are parameters is told by ``roles``. Exporters store equal initializers once: two biases that
start as zeros become one tensor, and training would tie the layers. So a shared tensor whose elements are all equal
is split again, unless the layers that share it also share a tensor with a pattern in it: such a tensor cannot be
equal by accident, so this is one layer used twice, and it stays tied. Only copies of a layer start equal with a
pattern, as in PyTorch's TransformerEncoder; what tells them is that their names differ in an index and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from coordinator.compile.graph import Node
from coordinator.compile.roles import Roles
from edge_sdk.errors import CompileError

__all__ = ["fold", "read_node", "split_parameters", "without_idle_casts"]

NAMELESS: Final = "onnx::"
"""How PyTorch's exporter begins the name of a tensor that is no parameter as it stands (a transposed weight)."""
SHOWN_MAX: Final = 10
INDEX: Final = re.compile(r"(?<=\.)\d+(?=[./])")
"""The place of a layer in a list of layers: ``encoder.layers.3.norm1.weight``, ``/encoder/layers.3/norm1/...``."""


def read_node(proto: onnx.NodeProto) -> Node:
    """The node, attributes as plain values and arrays."""
    attributes = {a.name: _attribute(a) for a in proto.attribute}
    return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, proto.name)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value


def fold(nodes: Iterable[Node], constants: dict[str, NDArray[Any]], outputs: Collection[str]) -> list[Node]:
    """Constant and ConstantOfShape become arrays and Expand; Identity of an array becomes another name of it."""
    renamed: dict[str, str] = {}
    kept = []
    nodes = list(nodes)
    users = {name: node.name for node in reversed(nodes) if node.op != "Identity" for name in node.inputs}
    for node in nodes:
        node = Node(node.op, tuple(renamed.get(i, i) for i in node.inputs), node.outputs, node.attributes, node.name)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        elif node.op == "Identity" and node.inputs[0] in constants and node.outputs[0] not in outputs:
            # An exporter that merged equal initializers kept their names so.
            if _is_uniform(constants[node.inputs[0]]) or _are_copies(node.inputs[0], node.outputs[0], users):
                constants[node.outputs[0]] = constants[node.inputs[0]]
            else:
                renamed[node.outputs[0]] = node.inputs[0]
        elif node.op == "ConstantOfShape":
            filled = node.outputs[0] + "/value"
            value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))
            constants[filled] = value.reshape(())
            kept.append(Node("Expand", (filled, node.inputs[0]), node.outputs, {}, node.name))
        else:
            kept.append(node)
    return kept


def _are_copies(first: str, second: str, users: Mapping[str, str]) -> bool:
    """Whether two names of one array belong to copies of a layer, which training takes apart, not to one layer."""
    if first.startswith(NAMELESS) or second.startswith(NAMELESS):
        first, second = users.get(first, ""), users.get(second, "")
    return first != second and INDEX.sub("", first) == INDEX.sub("", second)


def _constant(node: Node) -> NDArray[Any]:
    ((key, value),) = node.attributes.items()
    if key == "value":
        return np.asarray(value)
    if key in ("value_float", "value_floats"):
        return np.asarray(value, dtype=np.float32)
    if key in ("value_int", "value_ints"):
        return np.asarray(value, dtype=np.int64)
    raise CompileError(f"{node}: a constant of the form {key!r} is not supported; only numbers are")


def split_parameters(
    nodes: Iterable[Node], constants: Mapping[str, NDArray[Any]], roles: Roles, frozen: frozenset[str]
) -> tuple[dict[str, NDArray[np.float32]], frozenset[str], list[Node]]:
    """Parameters in order of first use, which of them are buffers, and the nodes with false ties undone."""
    parameters: dict[str, NDArray[np.float32]] = {}
    buffers: set[str] = set()
    rewritten = []
    layers: dict[str, set[str]] = {}  # by parameter, the patterned tensors beside it where it was first used
    uses: dict[str, tuple[str, int]] = {}  # by parameter, operator and slot of its first use
    trained: set[str] = set()  # values that depend on a parameter
    patterned: dict[str, set[str]] = {}  # by value, the patterned tensors of the node that made it
    for node in nodes:
        beside = {name for name in node.inputs if name in constants and not _is_uniform(constants[name])}
        patterned.update({name: set(beside) for name in node.outputs})
        beside.update(*(patterned.get(name, ()) for name in node.inputs))
        learned = all(name in constants or name in trained for name in node.inputs)
        inputs = list(node.inputs)
        for slot, operand in enumerate(node.inputs):
            role = roles.role(node, slot, learned=learned)
            if operand in frozen or role.kind == "constant":
                continue
            array = constants[operand]
            if array.dtype != np.float32:
                raise CompileError(f"{node}: parameter {operand!r} is {array.dtype}; export the model in float32")
            name = operand
            use = (node.op, slot)  # a scale and a variance that start as ones, a bias and a mean as zeros, are not one
            split = operand in parameters and _is_uniform(array)
            if split and (use != uses[operand] or not beside & layers[operand]):
                name = f"{operand}@{node.name or node.outputs[0]}"
                name += f"/{slot}" if name in inputs else ""
            uses.setdefault(name, use)
            layers.setdefault(name, beside)
            parameters[name] = np.ascontiguousarray(array)  # a scalar becomes [1]: it broadcasts alike
            inputs[slot] = name
            roles.found.setdefault(name, role)
            if role.kind == "statistics":
                buffers.add(name)
        if any(name in parameters or name in trained for name in inputs):
            trained.update(node.outputs)
        rewritten.append(Node(node.op, tuple(inputs), node.outputs, node.attributes, node.name))
    missing = sorted(frozen - set(constants))
    if missing:
        raise CompileError(f"frozen: the model has no initializer {missing[0]!r}; it has {sorted(constants)[:20]}")
    if not parameters:
        constant = [f"{name!r} ({role.why})" for name, role in roles.found.items()]
        raise CompileError(
            f"the model has no parameters to train; constant are {', '.join(constant[:SHOWN_MAX]) or 'none'}. To train "
            "one of them, ask for it by its full name: train"
        )
    return parameters, frozenset(buffers), rewritten


def _is_uniform(array: NDArray[Any]) -> bool:
    return bool(array.size == 0 or np.all(array == array.flat[0]))


def without_idle_casts(nodes: Iterable[Node], dtypes: Mapping[str, str], outputs: Collection[str]) -> list[Node]:
    """``nodes`` without casts to the type that a tensor has already, which Keras writes around every layer.

    Args:
        nodes: In topological order.
        dtypes: NumPy dtype by name, where it is known.
        outputs: Names that must go on to exist.
    """
    renamed: dict[str, str] = {}
    kept = []
    for node in nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        result = node.outputs[0]
        idle = node.op == "Cast" and result not in outputs and dtypes.get(result, "") == dtypes.get(node.inputs[0])
        if idle:
            renamed[result] = inputs[0]
        else:
            kept.append(Node(node.op, inputs, node.outputs, node.attributes, node.name))
    return kept
