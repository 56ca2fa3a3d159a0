"""The table of operators, made from the tables of rules and kernels.

``python -m coordinator.compile.op_table > docs/operators.md``
"""

from __future__ import annotations

import inspect
import sys

from onnx import defs

from coordinator.compile.graph import OPSET
from coordinator.compile.opset_down import FORMS
from coordinator.compile.rules import FALLBACK_PARAMETERS, RULES
from coordinator.compile.rules.elementwise import step
from edge_sdk.training.engine.kernels import KERNELS

__all__ = ["op_table"]

_NEWER = f"{', '.join(f'`{op}`' for op in sorted(FORMS)[:-1])} and `{max(FORMS)}`"

_OPENING = f"""\
# Operators

What a model may consist of, and what a device without onnxruntime can run. Models of opset 11 and later are converted
to opset {OPSET}, so the names are those of [ONNX](https://onnx.ai/onnx/operators/) at that opset. Of the operators that
came later, {_NEWER} are written out in older ones.

* **gradient**: parameters before the operator, or in it, can be trained. An operator without may stand where no
  parameter comes before it, or where all that do are frozen. One whose gradient is zero lets others train around it.
  *onnx-ad*: it is differentiated by that package, [with a warning](bring-your-model.md#operators-without-a-rule).
* **NumPy**: the engine that needs nothing but NumPy runs it. One operator without in a model, and only devices with
  onnxruntime can train that model.

In the notes, X, A, B are inputs, Y is the output, and dX is the gradient of the loss with respect to X.

This page is made from the code: `python -m coordinator.compile.op_table > docs/operators.md`.

| operator | gradient | NumPy | notes |
|---|---|---|---|
"""


def op_table() -> str:
    """Every operator that has a gradient or a NumPy kernel, as Markdown."""
    rows = []
    for op in sorted({*RULES, *KERNELS, *FALLBACK_PARAMETERS}, key=str.lower):
        cells = (f"`{op}`", _gradient(op), "yes" if op in KERNELS else "no", _note(op))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    gradients, kernels = f"{len(RULES)} operators with a gradient", f"{len(KERNELS)} with a NumPy kernel"
    return _OPENING + "\n".join(rows) + f"\n\n{gradients}, {kernels}.\n"


def _gradient(op: str) -> str:
    if op not in RULES:
        return "onnx-ad" if op in FALLBACK_PARAMETERS else "no"
    return "zero" if RULES[op].gradient is step else "yes"


def _note(op: str) -> str:
    if op in RULES:
        first = (inspect.getdoc(RULES[op].gradient) or "").partition("\n")[0]
        return first.replace("``", "`").replace("*", chr(92) + "*").replace("_", chr(92) + "_")
    types = {kind for output in defs.get_schema(op, OPSET).outputs[:1] for kind in output.types}
    return "" if "tensor(float)" in types else "whole numbers or truth values: nothing to differentiate"


if __name__ == "__main__":
    sys.stdout.write(op_table())
