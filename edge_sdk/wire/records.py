"""Records: frozen dataclasses that travel as msgpack maps.

A record declares the check of each of its fields with :func:`on_wire` (``fields.py`` has the checks), and the key under
which it stands in the map. Encoding and decoding are made from the declarations, once for each class. Unknown keys of a
map are ignored, so that a newer peer may say more. A float that is a whole number travels as an integer, which takes
one to five bytes instead of nine.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast

import msgpack

from edge_sdk.errors import DecodeError, VersionError
from edge_sdk.wire.fields import Check, mapping, shown
from edge_sdk.wire.safe_msgpack import unpack_checked

__all__ = [
    "VERSION",
    "check_version",
    "from_map",
    "key_of",
    "on_wire",
    "pack_map",
    "record",
    "to_map",
    "unpack_map",
]

VERSION: Final = 1
"""Of messages and updates."""

OBJECTS_MAX: Final = 4096
"""Objects in one message: a ``have`` with all its ranges needs 3,100 of them."""

DEPTH_MAX: Final = 8

WHOLE_MAX: Final = float(1 << 53)
"""Whole numbers of this size and more travel as floats."""

R = TypeVar("R", bound="Record")


class Record(Protocol):
    """A frozen dataclass whose fields are all made by :func:`on_wire`; ``kind`` names it in errors."""

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def on_wire(
    check: Check,
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    key: str = "",
    pack: Callable[[Any], Any] | None = None,
    brief: bool = False,
    required: bool = False,
) -> Any:
    """A dataclass field with its check.

    Args:
        check: Applied on the way in.
        key: Under which it stands in the map; the field's name where none is given.
        default: As of a dataclass field. A field with a default may be absent on the wire.
        default_factory: Likewise.
        pack: Makes what travels out of a value that does not travel as it is; ``check`` is its inverse.
        brief: The field is not written where it equals its default.
        required: The default is for Python alone; on the wire the field must be there.
    """
    metadata = {"check": check, "key": key, "pack": pack, "brief": brief, "required": required}
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

    __slots__ = ("brief", "fields", "keys", "packs", "values")

    def __init__(self, cls: Any) -> None:
        declared = dataclasses.fields(cls)
        names = [f.name for f in declared]
        self.keys = tuple(key_of(f) for f in declared)
        if len(set(self.keys)) < len(names):
            raise TypeError(f"{cls.__name__}: two fields have the same key: {', '.join(self.keys)}")
        self.packs = tuple((key_of(f), f.metadata["pack"]) for f in declared if f.metadata["pack"])
        self.brief = tuple((key_of(f), _default(f, cls.kind)()) for f in declared if f.metadata["brief"])
        self.fields = tuple(
            (key_of(f), f"{cls.kind}.{f.name}", f.metadata["check"], _default(f, cls.kind)) for f in declared
        )
        get = operator.attrgetter(*names) if names else lambda _: ()
        self.values: Callable[[Any], tuple[Any, ...]] = get if len(names) != 1 else lambda message: (get(message),)


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key under which a field of a record travels."""
    return field.metadata["key"] or field.name


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
    for key, where, check, default in _layout(cls).fields:
        value = source.get(key, _ABSENT)
        values.append(default() if value is _ABSENT else check(value, where))
    return cls(*values)


def record(cls: type[Any]) -> Check:
    """A map that holds a record of class ``cls``."""
    return lambda value, where: from_map(cls, mapping(value, where))


def to_map(value: Record) -> dict[str, Any]:
    """A record as a map, for :func:`pack_map`; other records may stand in it."""
    layout = _layout(type(value))
    fields = {
        key: int(item) if type(item) is float and item.is_integer() and abs(item) < WHOLE_MAX else item
        for key, item in zip(layout.keys, layout.values(value), strict=True)
    }
    for key, default in layout.brief:
        if fields[key] == default:
            del fields[key]
    for key, pack in layout.packs:
        if key in fields:
            fields[key] = pack(fields[key])
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
    raise VersionError(f"{what} of version {shown(version)}, this side speaks {VERSION}: upgrade edgefed on the {peer}")
