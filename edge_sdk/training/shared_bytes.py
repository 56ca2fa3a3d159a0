"""Large constants travel once: a program holds each of its graphs twice, and frozen parameters stand in all of them.

In a program's map, ``shared`` is a list of byte strings. A constant of a plan may be the number of one of them instead
of bytes, and a graph a list of byte strings and numbers that are joined. Programs without large repeated constants have
no ``shared`` and are written as if this module were not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import is_integer

__all__ = ["share", "unshare"]

GRAPHS: Final = ("train", "evaluate", "infer", "train_loop")
PLANS: Final = ("train_plan", "evaluate_plan", "infer_plan")
SHARED_BYTES_MIN: Final = 1024
"""A smaller constant is not worth a search."""
SEGMENTS_MAX: Final = 100_000


def share(body: dict[str, Any]) -> dict[str, Any]:
    """``body`` with its large repeated constants in ``shared``; changes plans and graphs in place."""
    places: dict[bytes, int] = {}
    for constant in _constants(body):
        if len(constant[2]) >= SHARED_BYTES_MIN:
            places[constant[2]] = places.get(constant[2], 0) + 1
    shared = [
        data for data, count in places.items() if count + sum(body[g].count(data) for g in GRAPHS if g in body) > 1
    ]
    if not shared:
        return body
    numbers = {data: number for number, data in enumerate(shared)}
    for constant in _constants(body):
        constant[2] = numbers.get(constant[2], constant[2])
    for graph in GRAPHS:
        if graph in body:
            body[graph] = _cut(body[graph], shared)
    return {**body, "shared": shared}


def unshare(body: dict[str, Any], *, graph_bytes_max: int) -> dict[str, Any]:
    """``body`` with bytes in place of numbers.

    Args:
        body: A program's map, of which nothing is known yet.
        graph_bytes_max: Most bytes that one graph may have.

    Raises:
        DecodeError: A number that stands for nothing, a graph above the limit, or another form than expected.
    """
    shared = body.get("shared")
    if shared is None:
        return body
    if not isinstance(shared, list) or not all(isinstance(data, bytes) for data in shared):
        raise DecodeError("program.shared: expected a list of byte strings")
    for constant in _constants(body):
        if _is_number(constant[2]):
            constant[2] = _picked(shared, constant[2])
    for graph in GRAPHS:
        if isinstance(body.get(graph), list):
            body[graph] = _joined(body[graph], shared, graph, graph_bytes_max)
    return body


def _constants(body: dict[str, Any]) -> Iterator[list[Any]]:
    """The ``[dtype, shape, bytes]`` of all plans, as far as they look like it."""
    for name in PLANS:
        plan = body.get(name)
        constants = plan.get("constants") if isinstance(plan, dict) else None
        for constant in constants.values() if isinstance(constants, dict) else ():
            if isinstance(constant, list) and len(constant) == 3:
                yield constant


def _cut(graph: bytes, shared: list[bytes]) -> bytes | list[bytes | int]:
    found: list[tuple[int, int]] = []
    for number, data in enumerate(shared):
        at = graph.find(data)
        while at >= 0:
            found.append((at, number))
            at = graph.find(data, at + len(data))
    segments: list[bytes | int] = []
    end = 0
    for at, number in sorted(found):
        if at >= end:  # one constant may begin inside another
            segments += [graph[end:at], number]
            end = at + len(shared[number])
    return [*segments, graph[end:]] if segments else graph


def _joined(segments: list[Any], shared: list[bytes], where: str, bytes_max: int) -> bytes:
    if len(segments) > SEGMENTS_MAX:
        raise DecodeError(f"program.{where}: more than {SEGMENTS_MAX} segments", reason="limit")
    parts = [_picked(shared, part) if _is_number(part) else part for part in segments]
    if not all(isinstance(part, bytes) for part in parts):
        raise DecodeError(f"program.{where}: expected bytes, or a list of bytes and numbers")
    if sum(map(len, parts)) > bytes_max:
        raise DecodeError(f"program.{where}: more than {bytes_max} bytes", reason="limit")
    return b"".join(parts)


def _is_number(value: object) -> bool:
    return is_integer(value, -(1 << 63), 1 << 64)


def _picked(shared: list[bytes], number: int) -> bytes:
    if not 0 <= number < len(shared):
        raise DecodeError(f"program.shared: there is no number {number}, there are {len(shared)}")
    return shared[number]
