"""The reference of every key, made from the declarations: ``python -m coordinator.config > docs/configuration.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from coordinator.config.fields import allowed_text, default_text, toml_text, unit_text
from coordinator.config.loading import sections
from coordinator.config.sections import Codec
from edge_sdk.codecs import CODECS, settings_of

__all__ = ["config_reference"]

_OPENING = """\
# Configuration of the coordinator

One TOML file, by habit `federation.toml`, read by every `edge-coordinator` command. [federation.toml](federation.toml)
is a complete example with comments. Only `name` in `[federation]`, and `zoo`, `onnx` or `bundle` in `[model]`, are
required. Relative paths start at the directory of the file. An unknown key or a wrong value is refused, with the key
and what is allowed.

This page is made from the code: `python -m coordinator.config > docs/configuration.md`.
"""


def config_reference() -> str:
    """Every key with its default, unit, what is allowed and what it means, as Markdown."""
    parts = [_OPENING.rstrip()]
    for name, section in sections().items():
        parts.append(f"\n## [{name}]\n\n{inspect.cleandoc(section.__doc__ or '').replace('``', '`')}\n")
        parts.append("| key | default | unit | allowed | meaning |\n|---|---|---|---|---|")
        for key_name, field in section.model_fields.items():
            cells = (
                f"`{key_name}`",
                default_text(field),
                unit_text(key_name, field),
                allowed_text(field),
                field.description or "",
            )
            parts.append(_row(cells))
        if section is Codec:
            parts += _codec_keys()
    return "\n".join(parts) + "\n"


def _codec_keys() -> list[str]:
    """The keys that codecs declare; codecs that declare a key alike share its row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, codec in CODECS.items():
        for field in settings_of(codec):
            said = field.metadata
            if said["key"]:
                default = said["shown"] or f"`{toml_text(field.default)}`"
                cells = (f"`{field.name}`", default, said["unit"], said["allowed"], said["meaning"])
                rows.setdefault(cells, []).append(name)
    head = "| codec | key | default | unit | allowed | meaning |\n|---|---|---|---|---|---|"
    return ["\nKeys of the codecs:\n", head, *(_row((", ".join(names), *cells)) for cells, names in rows.items())]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
