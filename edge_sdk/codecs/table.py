"""The table of codecs, and how one of your own gets into it.

Nothing is registered by an import. A program that has a codec of its own calls :func:`register_codec` with its class:
on the coordinator that is done for ``[codec] name = "package.module:MyCodec"``, on a device by the application. Bytes
from the network only name codecs; they cannot add or change one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from edge_sdk.codecs.auto import Auto
from edge_sdk.codecs.codec import Codec, settings_of
from edge_sdk.codecs.dense import Dense, Float16
from edge_sdk.codecs.eden import Eden
from edge_sdk.codecs.quantised import Int2, Int4, Int8
from edge_sdk.codecs.sparse import Sparse
from edge_sdk.codecs.sparse_rows import SparseRows
from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import is_dotted, load

__all__ = ["CODECS", "OWN_WIRE_IDS", "find_codec", "register_codec"]

OWN_WIRE_IDS: Final = range(128, 255)
"""Wire ids that are free for codecs that do not come with the project."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,32}\Z")
_METHODS: Final = ("encode", "decode", "body_bytes_max")
_SHIPPED: Final[tuple[type[Codec], ...]] = (Auto, Sparse, SparseRows, Eden, Int8, Int4, Int2, Float16, Dense)
_known: Final[dict[str, type[Codec]]] = {codec.name: codec for codec in _SHIPPED}

CODECS: Final[Mapping[str, type[Codec]]] = MappingProxyType(_known)
"""All codecs of this process by name; to be read only."""


def register_codec(codec: Any) -> type[Codec]:
    """Makes a codec of your own known to this process. To register the same class again changes nothing.

    Args:
        codec: A class as :class:`edge_sdk.codecs.codec.Codec` describes it.

    Returns:
        The class.

    Raises:
        ConfigurationError: It is no such class, or its name or wire id is taken; the message says what to change.
    """
    who = getattr(codec, "__qualname__", repr(codec)[:60])
    if not isinstance(codec, type) or not issubclass(codec, Codec):
        raise ConfigurationError(f"codec {who}: is no class derived from edge_sdk.codecs.Codec")
    if _known.get(getattr(codec, "name", "")) is codec:
        return codec
    missing = [name for name in _METHODS if getattr(codec, name) is getattr(Codec, name)]
    if missing:
        raise ConfigurationError(f"codec {who}: does not define {', '.join(missing)}")
    params = getattr(codec, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(codec) or params is None or not params.frozen:
        raise ConfigurationError(f"codec {who}: is no frozen dataclass; decorate it with @dataclass(frozen=True)")
    loose = [field.name for field in settings_of(codec) if "check" not in field.metadata]
    if loose:
        raise ConfigurationError(f"codec {who}: {', '.join(loose)} must be declared with edge_sdk.codecs.setting")
    if not isinstance(getattr(codec, "name", None), str) or not _NAME.match(codec.name):
        raise ConfigurationError(f"codec {who}: name must be 1 to 32 characters out of a-z 0-9 _ and -")
    if codec.name in _known:
        raise ConfigurationError(f"codec {who}: the name {codec.name!r} is taken by {_known[codec.name].__qualname__}")
    if getattr(codec, "wire_id", None) not in OWN_WIRE_IDS:
        raise ConfigurationError(
            f"codec {who}: wire_id must be in {OWN_WIRE_IDS.start}..{OWN_WIRE_IDS.stop - 1}, the range of own codecs"
        )
    same = [other for other in _known.values() if other.wire_id == codec.wire_id]
    if same:
        raise ConfigurationError(f"codec {who}: wire_id {codec.wire_id} is taken by {same[0].__qualname__}")
    _known[codec.name] = codec
    return codec


def find_codec(name: str, key: str = "codec.name") -> type[Codec]:
    """The codec of a name in the table, or behind a dotted name, which is registered.

    Args:
        name: As in ``[codec] name``: a name out of :data:`CODECS`, or ``"package.module:MyCodec"``.
        key: Where the name was given, for the message.

    Raises:
        ConfigurationError: There is none.
    """
    if is_dotted(name):
        return register_codec(load(key, name))
    if name not in CODECS:
        known = ", ".join(CODECS)
        raise ConfigurationError(f'{key} = {name!r}: must be one of {known}, or "package.module:MyCodec"')
    return CODECS[name]
