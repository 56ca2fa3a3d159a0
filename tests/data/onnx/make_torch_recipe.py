"""Exports what docs/bring-your-model.md says, with fewer units: ``python tests/data/onnx/make_torch_recipe.py``.

Needs torch, onnx and onnxscript. ``torch_recipe/model.onnx`` keeps its larger tensors in ``model.onnx.data`` beside it,
as the exporter does by default, and what the exporter says of each tensor.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import onnx

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[2] / "docs" / "bring-your-model.md"


def recipe() -> str:
    """The first block of Python about torch."""
    return next(
        text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "import torch" in text
    )


def main() -> None:
    text = recipe().replace("784, 100", "64, 70").replace("100, 10", "70, 10").replace("28, 28", "8, 8")
    os.chdir(FOLDER / "torch_recipe")
    exec(compile(text, str(PAGE), "exec"), {})
    model = onnx.load("model.onnx", load_external_data=False)
    for node in model.graph.node:  # paths and stack traces of the machine that exported
        del node.metadata_props[:]
    Path("model.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
