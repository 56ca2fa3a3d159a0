"""All checks of values that come from the network.

A *check* takes a value and the name of its place. It gives the value back in its plain Python type, or raises a
DecodeError that names the place and what is allowed there. Checks never trust a type: ``True`` is no integer here, and
a NaN no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire.topics import is_segment

__all__ = [
    "Check",
    "boolean",
    "choice",
    "integer",
    "is_integer",
    "list_of",
    "map_of",
    "mapping",
    "number",
    "numbered",
    "octets",
    "octets_upto",
    "optional",
    "plain_list",
    "row_of",
    "segment",
    "shown",
    "text",
]

_TEXT: Final = frozenset({str})

Check = Callable[[object, str], Any]
"""``(value, where) -> value``; raises DecodeError."""


def octets(length: int) -> Check:
    """Exactly ``length`` bytes."""

    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise DecodeError(f"{where}: expected {length} bytes")
        return value

    return check


def octets_upto(length_max: int, length_min: int = 0) -> Check:
    """``length_min`` to ``length_max`` bytes."""

    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or not length_min <= len(value) <= length_max:
            raise DecodeError(f"{where}: expected {length_min}..{length_max} bytes")
        return value

    return check


def text(length_max: int, length_min: int = 0) -> Check:
    """Text of ``length_min`` to ``length_max`` characters."""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or not length_min <= len(value) <= length_max:
            raise DecodeError(f"{where}: expected text of {length_min}..{length_max} characters, got {shown(value)}")
        return value

    return check


def choice(*allowed: str) -> Check:
    """One of a few texts."""

    def check(value: object, where: str) -> str:
        if value not in allowed:
            raise DecodeError(f"{where}: {shown(value)} is not one of {', '.join(allowed)}")
        return value

    return check


def numbered(names: Sequence[str]) -> Check:
    """One of a few texts, which travels as its place in ``names``, from 0."""

    def check(value: object, where: str) -> str:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
            raise DecodeError(f"{where}: {shown(value)} is not the number of one of {', '.join(names)}")
        return names[value]

    return check


def segment(value: object, where: str) -> str:
    """Text that can stand as one segment of a topic."""
    if not isinstance(value, str) or not is_segment(value):
        raise DecodeError(f"{where}: {shown(value)} is not a topic segment")
    return value


def integer(low: int, high: int) -> Check:
    """An integer in ``low..high``."""

    def check(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DecodeError(f"{where}: {shown(value)} is not an integer in {low}..{high}")
        return value

    return check


def is_integer(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an integer in ``low..high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number(low: float, high: float) -> Check:
    """A finite number in ``low..high``, as a float."""

    def check(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DecodeError(f"{where}: {shown(value)} is not a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise DecodeError(f"{where}: {shown(value)} is not a finite number in {low:g}..{high:g}")
        return float(value)

    return check


def boolean(value: object, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise DecodeError(f"{where}: expected true or false")
    return value


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda value, where: None if value is None else check(value, where)


def plain_list(value: object, where: str, length_max: int) -> list[Any]:
    """A list of at most ``length_max`` entries, which are not checked."""
    if not isinstance(value, list) or len(value) > length_max:
        raise DecodeError(f"{where}: expected a list of at most {length_max} entries, got {type(value).__name__}")
    return value


def list_of(item: Check, length_max: int) -> Check:
    """A list of at most ``length_max`` entries, as a tuple."""

    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > length_max:
            raise DecodeError(f"{where}: expected a list of at most {length_max} entries")
        return tuple([item(entry, where) for entry in value])

    return check


def row_of(**columns: Check) -> Check:
    """A list with exactly one entry for each of ``columns``, as a tuple."""
    checks = tuple(columns.values())

    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            raise DecodeError(f"{where}: expected [{', '.join(columns)}]")
        return tuple([column(entry, where) for column, entry in zip(checks, value, strict=True)])

    return check


def mapping(value: object, where: str) -> dict[str, Any]:
    """A map with text keys."""
    if not isinstance(value, dict) or not _TEXT.issuperset(map(type, value)):
        raise DecodeError(f"{where}: expected a map with text keys, got {type(value).__name__}")
    return value


def map_of(item: Check, entries_max: int, key: Check) -> Check:
    """A map of at most ``entries_max`` entries."""

    def check(value: object, where: str) -> dict[str, Any]:
        source = mapping(value, where)
        if len(source) > entries_max:
            raise DecodeError(f"{where}: more than {entries_max} entries")
        return {key(name, where): item(entry, f"{where}.{name[:40]}") for name, entry in source.items()}

    return check


def shown(value: object) -> str:
    """The beginning of a value for an error's text; a container may be nested too deep to be printed."""
    return f"{str(value)[:40]!r}" if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
