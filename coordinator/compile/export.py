"""Trained weights back into an inference model that any ONNX runtime loads."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_sdk.bundle import Program
from edge_sdk.errors import CompileError

__all__ = ["export_onnx"]


def export_onnx(program: Program, vector: NDArray[np.float32]) -> onnx.ModelProto:
    """The inference model with ``vector`` (float32[P]) as its weights.

    Inputs, outputs and parameters have the names of the model that was compiled; the batch is open.

    Raises:
        CompileError: The program has no inference graph, or ``vector`` does not fit its parameters.
    """
    if not program.infer:
        raise CompileError(f"program {program.name!r} has no inference graph: it was not compiled from an ONNX model")
    if vector.shape != (program.spec.size,):
        raise CompileError(
            f"parameters have shape {list(vector.shape)}, program {program.name!r} has {program.spec.size}"
        )
    model: onnx.ModelProto = onnx.ModelProto.FromString(program.infer)
    arrays = program.spec.unflatten(vector.astype(np.float32, copy=False))
    kept = [info for info in model.graph.input if info.name not in arrays]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model.graph.name = program.name
    onnx.checker.check_model(model, full_check=True)
    return model
