"""All checks of values that come from the network, and records: frozen dataclasses that travel as msgpack maps.

A *check* takes a value and the name of its place. It gives the value back in its plain Python type, or raises a
DecodeError that names the place and what is allowed there. Checks never trust a type: ``True`` is no integer here, and
a NaN no number.

A *record* is a frozen dataclass that declares the check of each of its fields with :func:`on_wire`. Encoding and
decoding are made from the declarations, once for each class. Unknown fields of a map are ignored, so that a newer peer
may say more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

import msgpack

from edge_sdk.errors import DecodeError, VersionError
from edge_sdk.wire.safe_msgpack import unpack_checked

__all__ = [
    "VERSION",
    "Check",
    "boolean",
    "check_version",
    "choice",
    "from_map",
    "integer",
    "is_integer",
    "list_of",
    "map_of",
    "mapping",
    "number",
    "octets",
    "octets_upto",
    "on_wire",
    "optional",
    "pack_map",
    "plain_list",
    "record",
    "row_of",
    "text",
    "to_map",
    "unpack_map",
]

VERSION: Final = 1
"""Of messages and updates."""

OBJECTS_MAX: Final = 4096
"""Objects in one message: a ``have`` with all its ranges needs 3,100 of them."""

DEPTH_MAX: Final = 8
_TEXT: Final = frozenset({str})

Check = Callable[[object, str], Any]
"""``(value, where) -> value``; raises DecodeError."""

R = TypeVar("R", bound="Record")


# --- checks of single values -----------------------------------------------------------------------------------------


def octets(length: int) -> Check:
    """Exactly ``length`` bytes."""

    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise DecodeError(f"{where}: expected {length} bytes")
        return value

    return check


def octets_upto(length_max: int) -> Check:
    """At most ``length_max`` bytes."""

    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) > length_max:
            raise DecodeError(f"{where}: expected at most {length_max} bytes")
        return value

    return check


def text(length_max: int, length_min: int = 0) -> Check:
    """Text of ``length_min`` to ``length_max`` characters."""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or not length_min <= len(value) <= length_max:
            raise DecodeError(f"{where}: expected text of {length_min}..{length_max} characters, got {_shown(value)}")
        return value

    return check


def choice(*allowed: str) -> Check:
    """One of a few texts."""

    def check(value: object, where: str) -> str:
        if value not in allowed:
            raise DecodeError(f"{where}: {_shown(value)} is not one of {', '.join(allowed)}")
        return value

    return check


def integer(low: int, high: int) -> Check:
    """An integer in ``low..high``."""

    def check(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DecodeError(f"{where}: {_shown(value)} is not an integer in {low}..{high}")
        return value

    return check


def is_integer(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an integer in ``low..high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number(low: float, high: float) -> Check:
    """A finite number in ``low..high``, as a float."""

    def check(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DecodeError(f"{where}: {_shown(value)} is not a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise DecodeError(f"{where}: {_shown(value)} is not a finite number in {low:g}..{high:g}")
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


def record(cls: type[Any]) -> Check:
    """A map that holds a record of class ``cls``."""
    return lambda value, where: from_map(cls, mapping(value, where))


def _shown(value: object) -> str:
    """The beginning of a value for an error's text; a container may be nested too deep to be printed."""
    return f"{str(value)[:40]!r}" if isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"


# --- records ---------------------------------------------------------------------------------------------------------


class Record(Protocol):
    """A frozen dataclass whose fields are all made by :func:`on_wire`; ``kind`` names it in errors."""

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def on_wire(
    check: Check,
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    brief: bool = False,
    required: bool = False,
) -> Any:
    """A dataclass field with its check.

    Args:
        check: Applied on the way in.
        default: As of a dataclass field. A field with a default may be absent on the wire.
        default_factory: Likewise.
        brief: The field is not written where it equals its default.
        required: The default is for Python alone; on the wire the field must be there.
    """
    metadata = {"check": check, "brief": brief, "required": required}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_ABSENT: Final = object()


def _missing(where: str) -> Callable[[], Any]:
    def refuse() -> Any:
        raise DecodeError(f"{where}: missing")

    return refuse


class _Layout:
    """A record's class as encode and decode need it, made once from its declaration."""

    __slots__ = ("brief", "fields", "names", "values")

    def __init__(self, cls: Any) -> None:
        declared = dataclasses.fields(cls)
        self.names = tuple(f.name for f in declared)
        self.brief = tuple((f.name, _default(f, cls.kind)()) for f in declared if f.metadata["brief"])
        self.fields = tuple(
            (f.name, f"{cls.kind}.{f.name}", f.metadata["check"], _default(f, cls.kind)) for f in declared
        )
        get = operator.attrgetter(*self.names) if self.names else lambda _: ()
        self.values: Callable[[Any], tuple[Any, ...]] = get if len(self.names) != 1 else lambda message: (get(message),)


def _default(field: dataclasses.Field[Any], kind: str) -> Callable[[], Any]:
    """Gives what stands for a field that is absent on the wire, or refuses."""
    if not field.metadata["required"]:
        if field.default is not dataclasses.MISSING:
            return functools.partial(_same, field.default)
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory
    return _missing(f"{kind}.{field.name}")


def _same(value: Any) -> Any:
    return value


@functools.cache
def _layout(cls: Any) -> _Layout:
    return _Layout(cls)


def from_map(cls: type[R], source: Mapping[str, Any]) -> R:
    """The record of class ``cls`` that a map holds; nothing in the map is trusted.

    Raises:
        DecodeError: A field is missing or not what its check takes.
    """
    values = []
    for name, where, check, default in _layout(cls).fields:
        value = source.get(name, _ABSENT)
        values.append(default() if value is _ABSENT else check(value, where))
    return cls(*values)


def to_map(value: Record) -> dict[str, Any]:
    """A record as a map, for :func:`pack_map`; other records may stand in it."""
    layout = _layout(type(value))
    fields = dict(zip(layout.names, layout.values(value), strict=True))
    for name, default in layout.brief:
        if fields[name] == default:
            del fields[name]
    return fields


def pack_map(fields: Mapping[str, Any]) -> bytes:
    """A map as msgpack; records in it travel as maps."""
    return cast(bytes, msgpack.packb(fields, default=_plain))


def _plain(value: Any) -> Any:
    """What msgpack asks for where it does not know a type."""
    to_wire = getattr(value, "to_wire", None)
    if to_wire is not None:
        return to_wire()
    if dataclasses.is_dataclass(value):
        return to_map(cast(Record, value))
    raise TypeError(f"{type(value).__name__} does not travel")


def unpack_map(data: bytes, where: str) -> dict[str, Any]:
    """The one map that ``data`` holds, within the limits of a message.

    Raises:
        DecodeError: The bytes are malformed, truncated or above a limit.
    """
    return mapping(unpack_checked(data, objects_max=OBJECTS_MAX, depth_max=DEPTH_MAX, where=where), where)


def check_version(version: object, what: str, peer: str) -> None:
    """Refuse another version than ours.

    Raises:
        VersionError: It is another one (says which side to upgrade).
    """
    if version == VERSION and not isinstance(version, bool):
        return
    if isinstance(version, int) and version > VERSION:
        raise VersionError(f"{what} of version {version}, this side speaks {VERSION}: upgrade edgefed on this side")
    raise VersionError(
        f"{what} of version {_shown(version)}, this side speaks {VERSION}: upgrade edgefed on the {peer}"
    )
