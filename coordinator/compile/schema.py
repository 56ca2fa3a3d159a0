"""What ONNX's own schemas say about operators at the working opset."""

from __future__ import annotations

from functools import cache
from typing import Any

from onnx import defs, helper

from coordinator.compile.graph import OPSET, Node

__all__ = ["complete"]


def complete(node: Node) -> Node:
    """``node`` with every attribute that has a default written out."""
    return Node(node.op, node.inputs, node.outputs, {**_defaults(node.op), **node.attributes}, node.name)


@cache
def _defaults(op: str) -> dict[str, Any]:
    schema = defs.get_schema(op, OPSET)
    values = {key: a.default_value for key, a in schema.attributes.items() if a.default_value.type}
    return {key: _plain(helper.get_attribute_value(value)) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value.decode() if isinstance(value, bytes) else value
