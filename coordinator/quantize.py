"""A trained model in 8-bit integers, and what that costs in accuracy.

With held-out examples the ranges of activations are measured on some of them and everything is quantised (static, QDQ,
per channel); without, only weights are, and activations as they come (dynamic).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from coordinator.compile import export_onnx
from coordinator.compile.raw_inputs import PREFIX
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Program
from edge_sdk.training.examples import Examples, counted_labels

__all__ = ["quantised", "score"]

CALIBRATED: Final = 128
"""Examples on which ranges are measured; they are not scored, unless there are no others."""
BATCH_EXAMPLES: Final = 128


def quantised(program: Program, vector: NDArray[np.float32], examples: Examples | None) -> tuple[bytes, dict[str, Any]]:
    """The model with ``vector`` (float32[P]) as its weights, quantised.

    Args:
        program: What was trained.
        vector: Its parameters.
        examples: Held-out examples; None for none.

    Returns:
        The ONNX file, and figures: how it was made, bytes of the float32 file, the metric of both files.

    Raises:
        CompileError: onnxruntime cannot quantise this model.
    """
    plain = export_onnx(program, vector)
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "float32.onnx"), Path(directory, "int8.onnx")
        onnx.save(plain, source)
        try:
            _quantise(source, target, program, examples)
        except Exception as error:  # the quantiser has no exception root
            raise CompileError(f"model {program.name!r}: onnxruntime cannot quantise it: {error}") from error
        result = target.read_bytes()
    whole = plain.SerializeToString()
    figures: dict[str, Any] = {
        "int8_form": "dynamic (weights only)" if examples is None else "static (weights and activations)",
        "float32_bytes": len(whole),
    }
    if examples is not None:
        index = np.arange(min(CALIBRATED, len(examples) // 2), len(examples))
        for name, model in (("float32", whole), ("int8", result)):
            figures[f"{name}_{program.metric}"] = score(model, program, examples, index)
    return result, figures


def score(model: bytes, program: Program, examples: Examples, index: NDArray[np.intp]) -> float:
    """The program's metric of an ONNX file, from its outputs.

    Args:
        model: An inference model with its weights.
        program: Says what the outputs mean.
        examples: Labelled examples.
        index: int[n], which of them.

    Raises:
        CompileError: No output fits the target.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {entry.name for entry in session.get_inputs()}  # a mask may be for the loss alone
    final = {o: node.op_type for node in onnx.ModelProto.FromString(program.infer).graph.node for o in node.output}
    total, counted = 0.0, 0
    for batch in _batches(program, examples, index):
        target = batch.pop("target")
        fed = {name: array for name, array in batch.items() if name in taken}
        outputs = dict(zip(names, session.run(names, fed), strict=True))
        errors = _judged(program, outputs, target, final)
        kept = counted_labels(batch, target, program)
        total += float(errors[kept.reshape(errors.shape)].sum())
        counted += int(kept.sum())
    return total / max(counted, 1)


def _judged(
    program: Program, outputs: dict[str, NDArray[Any]], target: NDArray[Any], final: dict[str, str]
) -> NDArray[Any]:
    """What each element of the target adds to the metric, by the first output that it can belong to."""
    for name, found in outputs.items():
        if target.dtype.kind == "i":
            for axis in range(found.ndim - 1, 0, -1):
                rest = found.shape[:axis] + found.shape[axis + 1 :]
                if found.shape[axis] == program.classes and rest == target.shape:
                    return cast(NDArray[Any], np.equal(found.argmax(axis=axis), target))
        elif found.size == target.size:
            values = found.reshape(target.shape).astype(np.float64)
            if program.loss == "hinge":
                return cast(NDArray[Any], np.greater(values * target, 0.0))
            if program.loss == "binary_cross_entropy":
                positive = values > (0.5 if final.get(name) == "Sigmoid" else 0.0)
                return np.equal(positive, target > 0.5)
            error: NDArray[Any] = np.abs(values - target)
            return error if program.metric == "mean_absolute_error" else error**2
    shapes = {name: list(found.shape) for name, found in outputs.items()}
    raise CompileError(f"model {program.name!r}: no output {shapes} fits a target of shape {list(target.shape)}")


def _quantise(source: Path, target: Path, program: Program, examples: Examples | None) -> None:
    from onnxruntime import quantization

    if examples is None:
        quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)
        return
    graph = onnx.load(source, load_external_data=False).graph
    taken = {info.name for info in graph.input}
    index = np.arange(min(CALIBRATED, max(1, len(examples) // 2)))
    quantization.quantize_static(
        source,
        target,
        _Ranges(_batches(program, examples, index), [entry.name for entry in program.inputs if entry.name in taken]),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
        # Raw units of different features have no scale in common: 1480 rpm would leave no step to 4.2 bar.
        nodes_to_exclude=[node.name for node in graph.node if node.name.startswith(PREFIX)],
    )


def _batches(program: Program, examples: Examples, index: NDArray[np.intp]) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, len(index), BATCH_EXAMPLES):
        yield examples.batch(program, index[start : start + BATCH_EXAMPLES])


class _Ranges:
    """Examples as the quantiser asks for them; it takes anything with ``get_next``."""

    def __init__(self, batches: Iterator[dict[str, NDArray[Any]]], names: Sequence[str]) -> None:
        self._batches = batches
        self._names = names

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: batch[name] for name in self._names}
