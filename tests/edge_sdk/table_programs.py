"""Programs that take rows of a table; their graphs play no part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hand_made import mlp_program

from edge_sdk.training.bundle import Input, Program

_ANY = mlp_program((2, 4, 3))


def table_program(
    *shape: int, target: tuple[int, ...] | None = None, inputs: tuple[Input, ...] = (), **facts: Any
) -> Program:
    """A program over one float input ``x`` of this shape, or over ``inputs``.

    It learns three classes, or a float target of the shape ``target``.
    """
    inputs = inputs or (Input("x", "float32", (None, *shape)),)
    if target is None:
        learnt: dict[str, Any] = {
            "target": Input("target", "int64", (None,)),
            "loss": "softmax_cross_entropy",
            "classes": 3,
        }
    else:
        learnt = {"target": Input("target", "float32", (None, *target)), "loss": "mean_squared_error", "classes": 0}
    return replace(_ANY, kind="trainer", inputs=inputs, **{**learnt, **facts})


def written(path: Path, text: str) -> Path:
    """A file of this text."""
    path.write_text(text, encoding="utf-8")
    return path
