"""A look at ONNX bytes before onnxruntime parses them; a device has no ``onnx`` package to do it with.

ONNX lets a model name files that hold its tensors ("external data"). Whether onnxruntime follows such a name in a model
given as bytes depends on its version; where it does, a hostile program would train on the device's files and the update
would carry them away. So it is refused here, by walking the protobuf wire format, and so are operators that are not
ONNX's own and graphs inside of nodes, but for one: the body of a Scan, which runs a known number of times.

Source: Protocol Buffers encoding (wire types 0, 1, 2, 5); field numbers from onnx.proto3, IR version 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edge_sdk.errors import BundleError

__all__ = ["check_onnx"]

_DEPTH_MAX: Final = 24

# Message -> {field: the message that it holds}; fields that are not named here hold nothing to look at.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "opset": {},
}
_REFUSED: Final = {
    ("model", 20): "training information",
    ("model", 25): "functions of its own",
    ("tensor", 13): "data outside of itself",
}
_DOMAIN: Final = {("node", 7), ("opset", 1)}
_DATA_LOCATION: Final = ("tensor", 14)
_OPERATOR: Final = 4
_SUBGRAPHS: Final = {("attribute", 6), ("attribute", 11)}
_LOOP: Final = b"Scan"


def check_onnx(data: bytes, where: str) -> None:
    """Look through an ONNX model for what no program may hold.

    Raises:
        BundleError: The bytes are no protobuf, name data outside of the model, hold functions or training information,
            use an operator that is not of ONNX's default domain, or hold a graph that is not the body of a Scan.
    """
    try:
        _walk(memoryview(data), "model", where, 0, True)
    except (IndexError, RecursionError) as error:
        raise BundleError(f"{where}: the ONNX bytes are truncated or nested too deeply") from error


def _walk(data: memoryview, kind: str, where: str, depth: int, may_loop: bool) -> None:
    """Look through one message; ``may_loop`` where a body may stand in it, as it may not in a body."""
    if depth > _DEPTH_MAX:
        raise BundleError(f"{where}: the ONNX graph is nested deeper than {_DEPTH_MAX}")
    children = _CHILDREN[kind]
    if kind == "node" and may_loop:
        names = [value for field, value in _fields(data, where) if field == _OPERATOR]
        may_loop = len(names) == 1 and not isinstance(names[0], int) and bytes(names[0]) == _LOOP
    for field, value in _fields(data, where):
        if (kind, field) in _REFUSED:
            raise BundleError(f"{where}: the ONNX model has {_REFUSED[kind, field]}, which a program may not have")
        if (kind, field) == _DATA_LOCATION and value != 0:
            raise BundleError(f"{where}: the ONNX model has data outside of itself, which a program may not have")
        if (kind, field) in _DOMAIN and (isinstance(value, int) or bytes(value) not in (b"", b"ai.onnx")):
            name = value if isinstance(value, int) else bytes(value[:40])
            raise BundleError(f"{where}: operators of the domain {name!r} are not allowed, only ONNX's own")
        if (kind, field) in _SUBGRAPHS and not may_loop:
            raise BundleError(f"{where}: only a Scan may hold a graph, and that graph no other")
        child = children.get(field)
        if child is not None:
            if isinstance(value, int):
                raise BundleError(f"{where}: the bytes are no ONNX model (field {field} of {kind})")
            _walk(value, child, where, depth + 1, may_loop and (kind, field) not in _SUBGRAPHS)


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, int | memoryview]]:
    """``(field, value)`` for each field of one message: bytes as a view, numbers as an integer (fixed ones as 0)."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
        elif wire == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise BundleError(f"{where}: the ONNX bytes are truncated")
            yield key >> 3, data[position : position + length]
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
            if position > end:
                raise BundleError(f"{where}: the ONNX bytes are truncated")
            yield key >> 3, 0
        else:
            raise BundleError(f"{where}: the bytes are no ONNX model (wire type {wire})")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError
