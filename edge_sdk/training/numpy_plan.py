"""A graph transcribed for the NumPy engine, and its form inside a program.

A device without onnxruntime has no package that could parse ONNX either, so the coordinator writes the graph out
once more as plain lists: operator, input names, output names, attributes. One operator, Scan, holds a plan itself: its
body, which runs once for each step in time. A body reads nothing but its inputs, and holds no body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.parameters import ELEMENTS_MAX, RANK_MAX
from edge_sdk.wire.fields import is_integer, mapping, plain_list, text

__all__ = ["Attribute", "Node", "NumpyPlan", "check_plan", "plan_from_wire", "plan_to_wire"]

NAME_MAX: Final = 512
ENTRIES_MAX: Final = 10_000
NODES_MAX: Final = 50_000
_NAME: Final = text(NAME_MAX)
CONSTANT_DTYPES: Final = frozenset(
    ["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)

Attribute: TypeAlias = "int | float | str | list[int] | list[float] | list[str] | NDArray[Any] | NumpyPlan"

BODY: Final = ("Scan", "body")
"""The one operator and attribute that is a plan."""


class Node(NamedTuple):
    """One operator call; an optional input that is left out is ``""``, as in ONNX."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = {}


@dataclass(frozen=True, slots=True, eq=False)
class NumpyPlan:
    """A graph as lists.

    Attributes:
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
        constants: Arrays by name (read-only).
        nodes: Operator calls in topological order; each name is assigned once.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()


def check_plan(plan: NumpyPlan, where: str) -> None:
    """Raise DecodeError unless every name is assigned once, before it is used, and every output exists."""
    for node in plan.nodes:
        for key, body in node.attributes.items():
            if isinstance(body, NumpyPlan):
                _check_body(node, key, body, where)
    known = {*plan.inputs, *plan.constants}
    if len(known) != len(plan.inputs) + len(plan.constants) or "" in known:
        raise DecodeError(f"program.{where}: an input or constant has no name or another one's")
    for op, inputs, outputs, _ in plan.nodes:
        for name in inputs:
            if name and name not in known:
                raise DecodeError(f"program.{where}: {op} uses {name[:80]!r} before it is computed")
        for name in outputs:
            if name in known:
                raise DecodeError(f"program.{where}: {op} assigns {name[:80]!r} a second time")
            if name:
                known.add(name)
        if not any(outputs):
            raise DecodeError(f"program.{where}: {op} has no output")
    for name in plan.outputs:
        if name not in known:
            raise DecodeError(f"program.{where}: output {name[:80]!r} is computed nowhere")


def _check_body(node: Node, key: str, body: NumpyPlan, where: str) -> None:
    if (node.op, key) != BODY or any(isinstance(v, NumpyPlan) for n in body.nodes for v in n.attributes.values()):
        raise DecodeError(f"program.{where}: only a Scan may hold a plan, and that plan no other")
    if len(body.inputs) != len(node.inputs) or len(body.outputs) != len(node.outputs):
        raise DecodeError(f"program.{where}: a Scan and its body differ in the number of inputs or outputs")
    check_plan(body, f"{where}.Scan")


def plan_to_wire(plan: NumpyPlan) -> dict[str, Any]:
    """The plan as a msgpack map; equal plans give equal maps."""
    return {
        "constants": {name: _array_to_wire(plan.constants[name]) for name in sorted(plan.constants)},
        "inputs": list(plan.inputs),
        "nodes": [
            [op, list(inputs), list(outputs), {key: _attribute_to_wire(attributes[key]) for key in sorted(attributes)}]
            for op, inputs, outputs, attributes in plan.nodes
        ],
        "outputs": list(plan.outputs),
    }


def plan_from_wire(value: object, where: str, *, nested: bool = False) -> NumpyPlan:
    """The inverse of :func:`plan_to_wire`, for bytes that nobody vouches for.

    Args:
        value: What was unpacked.
        where: What it is called in messages.
        nested: It is the body of a node, so that its nodes may have none.

    Raises:
        DecodeError: The value is not a well-formed plan.
    """
    source = as_map(value, where)
    constants = as_map(source.get("constants"), f"{where}.constants")
    return NumpyPlan(
        inputs=_names(source.get("inputs"), f"{where}.inputs"),
        outputs=_names(source.get("outputs"), f"{where}.outputs"),
        constants={as_text(n, where): _array(constants[n], f"{where}.constants[{n[:80]!r}]") for n in constants},
        nodes=tuple(
            _node(n, f"{where}.nodes", nested) for n in as_list(source.get("nodes"), f"{where}.nodes", NODES_MAX)
        ),
    )


def as_map(value: object, where: str) -> dict[str, Any]:
    """``value`` as a map with text keys, or a DecodeError that names ``where``."""
    return mapping(value, f"program.{where}")


def as_list(value: object, where: str, length_max: int) -> list[Any]:
    """``value`` as a list of at most ``length_max``, or a DecodeError that names ``where``."""
    return plain_list(value, f"program.{where}", length_max)


def as_text(value: object, where: str) -> str:
    """``value`` as text, or a DecodeError that names ``where``."""
    return cast(str, _NAME(value, f"program.{where}"))


def is_count(value: object, low: int) -> bool:
    """Whether ``value`` is a plain integer in ``low..ELEMENTS_MAX``."""
    return is_integer(value, low, ELEMENTS_MAX)


def _names(value: object, where: str) -> tuple[str, ...]:
    return tuple(as_text(name, where) for name in as_list(value, where, ENTRIES_MAX))


def _array_to_wire(array: NDArray[Any]) -> list[Any]:
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
    return [array.dtype.name, list(array.shape), little.tobytes()]


def _attribute_to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": _array_to_wire(value)}
    if isinstance(value, NumpyPlan):
        return {"plan": plan_to_wire(value)}
    return list(value) if isinstance(value, tuple) else value


def _array(value: object, where: str) -> NDArray[Any]:
    parts = as_list(value, where, 3)
    if len(parts) != 3 or not isinstance(parts[0], str) or not isinstance(parts[2], bytes):
        raise DecodeError(f"program.{where}: expected [dtype, shape, bytes]")
    if parts[0] not in CONSTANT_DTYPES:
        raise DecodeError(f"program.{where}: dtype {parts[0][:40]!r} is not one of {sorted(CONSTANT_DTYPES)}")
    shape = as_list(parts[1], where, RANK_MAX)
    dtype = np.dtype(parts[0]).newbyteorder("<")
    if not all(is_count(d, 0) for d in shape) or math.prod(shape) * dtype.itemsize != len(parts[2]):
        raise DecodeError(f"program.{where}: {len(parts[2])} bytes do not fill {parts[0]}{shape}")
    array = np.frombuffer(parts[2], dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _attribute(value: Any, where: str) -> Attribute:
    if isinstance(value, dict) and set(value) == {"array"}:
        return _array(value["array"], where)
    plain = value if isinstance(value, list) else [value]
    if all(isinstance(v, str) for v in plain) or all(isinstance(v, int | float) for v in plain):
        return value  # type: ignore[no-any-return]  # narrowed above, element by element
    raise DecodeError(f"program.{where}: an attribute must be a number, text, a list of these or an array")


def _node(value: object, where: str, nested: bool) -> Node:
    parts = as_list(value, where, 4)
    if len(parts) != 4:
        raise DecodeError(f"program.{where}: expected [op, inputs, outputs, attributes]")
    op, given = as_text(parts[0], where), as_map(parts[3], where)
    attributes: dict[str, Attribute] = {}
    for key in given:
        wire, place = given[key], f"{where}.{key[:80]}"
        if not nested and (op, key) == BODY and isinstance(wire, dict) and set(wire) == {"plan"}:
            attributes[key] = plan_from_wire(wire["plan"], place, nested=True)
        else:
            attributes[as_text(key, where)] = _attribute(wire, place)
    return Node(op, _names(parts[1], where), _names(parts[2], where), attributes)
