"""How a key of ``federation.toml`` is declared: its meaning, unit, default and what is allowed, in one place.

Error messages and the reference in ``docs/configuration.md`` are both made from these declarations.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationInfo
from pydantic.fields import FieldInfo

from edge_sdk.cli.device_config import load_data_table
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.wire.topics import is_segment

__all__ = [
    "ExamplesIn",
    "HeldOut",
    "LocalPath",
    "Names",
    "Patterns",
    "Section",
    "Segment",
    "Share",
    "Sizes",
    "Switch",
    "Weights",
    "WhichHeldOut",
    "allowed_text",
    "default_text",
    "key",
    "named",
    "to_tuple",
    "toml_text",
    "unit_text",
]


class Section(BaseModel):
    """One table of the file: frozen, no unknown keys, no silent conversion (``"5"`` and ``true`` are no numbers)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def key(
    description: str, default: Any = ..., *, unit: str = "", shown: str = "", allowed: str = "", **limits: Any
) -> Any:
    """Declare one key.

    Args:
        description: One sentence for people.
        default: Its value where the file says nothing; required if left out.
        unit: What the number counts, where the name does not end in it.
        shown: What the reference shows as default where the value itself says too little.
        allowed: What is allowed, where type and limits say too little.
        limits: Limits as pydantic knows them: ``ge``, ``gt``, ``le``, ``lt``, ``min_length``, ``max_length``.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"unit": unit, "shown": shown, "allowed": allowed},
        **limits,
    )


def named(choices: Iterable[str]) -> str:
    """What is allowed where one of some names is given, or the dotted name of the user's own class."""
    quoted = "".join(f'"{choice}", ' for choice in choices)
    return f'one of {quoted}or "package.module:Class"'


def _resolve(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory")
    return path if directory is None else Path(directory) / path


def _to_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


def to_tuple(value: object) -> object:
    """A list of TOML as the tuple that a frozen table holds."""
    return tuple(value) if isinstance(value, list) else value


def _check_segment(value: str) -> str:
    if not is_segment(value):
        raise ValueError(f"= {value!r}: must be 1 to 64 characters out of A-Z a-z 0-9 _ and -, as part of a topic")
    return value


def _check_share(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f'= {value!r}: must be "auto" or a number above 0, at most 1')
    return float(value)


def _check_switch(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f'= {value!r}: must be "auto", true or false')
    return value


HELD_OUT_MAX: Final = 0.9


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Examples that are kept from training.

    Attributes:
        share: Which part of them, 0 for none.
        last: Whether these are the last ones, in the order of the examples; otherwise they are drawn.
    """

    share: float = 0.0
    last: bool = False


def _check_held_out(value: object) -> HeldOut:
    if isinstance(value, HeldOut):
        return value
    last = isinstance(value, dict) and value.keys() == {"last"}
    share = value["last"] if isinstance(value, dict) and last else value
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= HELD_OUT_MAX:
        raise ValueError(
            f"= {toml_text(value)}: must be a number at least 0, at most {HELD_OUT_MAX}, or for the newest examples "
            "{ last = 0.2 }"
        )
    return HeldOut(float(share), last)


def _check_examples(value: object, info: ValidationInfo) -> ExamplesFile:
    if isinstance(value, ExamplesFile):
        return value
    if isinstance(value, str | Path) and str(value):
        return ExamplesFile(_resolve(Path(value), info))
    if not isinstance(value, dict):
        raise ValueError(f"= {toml_text(value)}: must be a path, or a table as [data] of device.toml")
    try:
        return load_data_table(value, Path((info.context or {}).get("directory", "")))
    except ConfigurationError as error:
        raise ValueError("\n".join(f"evaluation.{line}" for line in str(error).splitlines())) from None


ExamplesIn = Annotated[ExamplesFile, PlainValidator(_check_examples)]
"""Where examples are, and what of it is taken."""

LocalPath = Annotated[Path, BeforeValidator(_to_path), AfterValidator(_resolve)]
"""A path; a relative one starts at the directory of the configuration file."""

Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(to_tuple)]
"""A list of whole numbers from 1."""

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(to_tuple)]
"""A list of patterns of parameter names, such as ``fc*``."""

Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], BeforeValidator(to_tuple)]
"""A list of names of columns or classes."""

Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(to_tuple)]
"""A list of factors."""

Segment = Annotated[str, AfterValidator(_check_segment)]
"""A name that stands in topics."""

Share = Annotated[float | Literal["auto"], PlainValidator(_check_share)]
"""A share of devices, or "auto"."""

WhichHeldOut = Annotated[HeldOut, PlainValidator(_check_held_out)]
"""A share of examples, or of the last ones."""

Switch = Annotated[bool | Literal["auto"], PlainValidator(_check_switch)]
"""Yes, no, or "auto"."""

_KINDS: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}

_UNITS: Final = ("seconds", "bytes", "days", "rounds")


def allowed_text(field: FieldInfo) -> str:
    """What may be written for a key, in words: ``a whole number from 1 to 65535``."""
    said = _extra(field, "allowed")
    if said:
        return said
    kind = _kind(field.annotation)
    low, high = "", ""
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge=value):
                low = f"at least {_limit(value)}"
            case annotated_types.Gt(gt=value):
                low = f"above {_limit(value)}"
            case annotated_types.Le(le=value):
                high = f"at most {_limit(value)}"
            case annotated_types.Lt(lt=value):
                high = f"below {_limit(value)}"
    return f"{kind} {', '.join(part for part in (low, high) if part)}".strip()


def default_text(field: FieldInfo) -> str:
    """The default as it would be written in the file, or in words."""
    if field.is_required():
        return "required"
    said = _extra(field, "shown")
    return said or f"`{toml_text(field.get_default())}`"


def unit_text(name: str, field: FieldInfo) -> str:
    """The unit of a key: declared, or the one that its name ends in."""
    said = _extra(field, "unit")
    words = name.split("_")
    return said or next((unit for unit in _UNITS if unit in words), "")


def toml_text(value: object) -> str:
    """A default value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {toml_text(item)}' for name, item in value.items())}}}"
    return str(value)


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _limit(value: Any) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:g}"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return "a list of whole numbers, each at least 1"
    if get_origin(annotation) is dict:
        return "a table of names and numbers"
    return _KINDS[annotation]
