"""The reference of every key, made from the declarations: ``python -m coordinator.config > docs/configuration.md``."""

from __future__ import annotations

import inspect

from coordinator.config.fields import allowed_text, default_text, unit_text
from coordinator.config.loading import sections

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
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(parts) + "\n"
