"""Unpack msgpack that nobody vouches for, without letting a few bytes cost much memory.

``msgpack`` builds every list before anybody can look at it: a megabyte of empty lists becomes 64 MB of objects, and
nested headers may each announce a length that never comes. So one pass over the tokens counts objects and depth
first; only bytes that pass are unpacked.

That pass costs a microsecond or two a token. Nearly every message is small in objects, if not in bytes, and for those
``msgpack``'s own limits are enough: what does not fit into them is scanned.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgpack

from edge_sdk.errors import DecodeError

__all__ = ["BytesLike", "unpack_checked"]

BytesLike: TypeAlias = bytes | bytearray | memoryview

FEW_OBJECTS: Final = 256
FEW_CHILDREN: Final = 32
"""1,024 open containers (where msgpack stops) of so many children each are below 4 MB, whatever they hold."""
_CONTAINERS: Final = (dict, list)

# First byte -> width of the length field that follows it.
_BYTES_LENGTH: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINER_LENGTH: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED_SIGNED: Final = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def unpack_checked(data: bytes | memoryview, *, objects_max: int, depth_max: int, where: str) -> Any:
    """The one object that ``data`` holds, in plain Python types.

    Args:
        data: One msgpack object, nothing behind it; extension types are refused.
        objects_max: Most objects in it, containers included.
        depth_max: Deepest nesting of lists and maps.
        where: What is decoded, for the message.

    Raises:
        DecodeError: The bytes are malformed, truncated or above a limit.
    """
    try:
        return _unpack_few(data, min(objects_max, FEW_OBJECTS), depth_max)
    except Exception:  # whatever is wrong with it, the scan says so in our words
        _scan(memoryview(data), objects_max, depth_max, where)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DecodeError(f"{where}: not msgpack: {error}") from error


class _Budget:
    """Counts objects as their containers are completed."""

    __slots__ = ("left",)

    def __init__(self, objects_max: int) -> None:
        self.left = objects_max - 1

    def __call__(self, container: Any) -> Any:
        self.left -= 2 * len(container) if type(container) is dict else len(container)
        if self.left < 0:
            raise ValueError
        return container


def _unpack_few(data: bytes | memoryview, objects_max: int, depth_max: int) -> Any:
    """The object, if it is small in every respect; raises anything if it is not."""
    budget = _Budget(objects_max)
    value = msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        list_hook=budget,
        object_hook=budget,
        max_array_len=FEW_CHILDREN,
        max_map_len=FEW_CHILDREN,
        max_ext_len=0,
    )
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(depth_max):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return value
    raise ValueError


def _scan(data: memoryview, objects_max: int, depth_max: int, where: str) -> None:
    """Walk the tokens; raise unless they are one complete object within the limits."""
    end = len(data)
    position = 0
    objects = 0
    open_counts = [1]  # elements still to come, for each container that is open
    while open_counts:
        if open_counts[-1] == 0:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        objects += 1
        if position >= end:
            raise DecodeError(f"{where}: truncated at byte {position}")
        skip, children, position = _token(data, position, where)
        if skip > end - position or children > end - position:
            raise DecodeError(f"{where}: a length at byte {position} points beyond the end")
        position += skip
        if objects + children > objects_max:
            raise DecodeError(f"{where}: more than {objects_max} objects", reason="limit")
        if children:
            open_counts.append(children)
            if len(open_counts) > depth_max + 1:
                raise DecodeError(f"{where}: nested deeper than {depth_max}", reason="limit")
    if position != end:
        raise DecodeError(f"{where}: {end - position} bytes behind the end")


def _token(data: memoryview, position: int, where: str) -> tuple[int, int, int]:
    """``(bytes to skip, children, position after the header)`` of the token at ``position``."""
    first = data[position]
    position += 1
    if first < 0x80 or first >= 0xE0:
        return 0, 0, position
    if first < 0x90:
        return 0, 2 * (first & 0x0F), position
    if first < 0xA0:
        return 0, first & 0x0F, position
    if first < 0xC0:
        return first & 0x1F, 0, position
    if first in _FIXED:
        return _FIXED[first], 0, position
    if first in _FIXED_SIGNED:
        return _FIXED_SIGNED[first], 0, position
    width = _BYTES_LENGTH.get(first)
    if width is not None:
        return int.from_bytes(data[position : position + width], "big"), 0, position + width
    container = _CONTAINER_LENGTH.get(first)
    if container is not None:
        width, each = container
        return 0, each * int.from_bytes(data[position : position + width], "big"), position + width
    raise DecodeError(f"{where}: type byte {first:#04x} at byte {position - 1} is not allowed")
