"""What to say of a model that works for one batch size only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import onnx

from edge_sdk.errors import CompileError

__all__ = ["BatchError", "RunError", "naming_fixed_batch"]

PLACES: Final = (
    re.compile(r"\(op_type:(?P<op>\w+)(?:, node name: (?P<name>[^)]*))?\)"),  # ONNX's shape inference
    re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<name>[^']*)'"),  # onnxruntime
)


_REMEDY: Final = (
    "Export it in inference mode and with that dimension open, wherever it stands: in PyTorch model.eval() and "
    'dynamic_shapes=({0: torch.export.Dim("batch")},), with the older exporter dynamic_axes={"x": {0: "batch"}}'
)


class RunError(CompileError):
    """onnxruntime cannot run a graph on random examples."""


class BatchError(CompileError):
    """A model that does not work for any number of examples.

    Args:
        where: Which model.
        found: What shows it: words, or a message of ONNX or onnxruntime, of which the first node is told.
    """

    def __init__(self, where: str, found: str) -> None:
        super().__init__(f"{where}: does not take any number of examples: {_told(found)}. {_REMEDY}")
        self.found = found


@contextmanager
def naming_fixed_batch(model: onnx.ModelProto, name: str) -> Iterator[None]:
    """Say of a model that is for one batch size what to do, where this is why something inside fails."""
    try:
        yield
    except (BatchError, RunError) as error:
        initialized = {tensor.name for tensor in model.graph.initializer}
        inputs = [info.type.tensor_type.shape.dim for info in model.graph.input if info.name not in initialized]
        sizes = {dims[0].dim_value for dims in inputs if dims}
        fixed = sizes.pop() if len(sizes) == 1 else 0
        if not fixed:
            raise
        found = _told(error.found if isinstance(error, BatchError) else str(error))
        raise CompileError(
            f"model {name!r}: was exported for batches of exactly {fixed} (the first dimension of its inputs), and "
            f"cannot be opened for others: {found}. {_REMEDY}"
        ) from error


def _told(found: str) -> str:
    place = next((match for match in (pattern.search(found) for pattern in PLACES) if match), None)
    if place is None:
        return found
    return f"{'its node ' + repr(place['name']) if place['name'] else 'a node'} ({place['op']}) takes no other"
