"""A trained model in 8-bit integers, and what that costs in accuracy.

With held-out examples the ranges of activations are measured on some of them and everything is quantised (static, QDQ,
per channel); without, only weights are, and activations as they come (dynamic). What onnxruntime cannot quantise, or
not run afterwards, stays in float32: where a whole model fails, halves of its nodes are tried, and halves of those.
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
from coordinator.compile.oracle import session_of
from coordinator.compile.raw_inputs import PREFIX
from coordinator.compile.samples import random_inputs
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Program
from edge_sdk.training.examples import Examples, counted_labels

__all__ = ["quantised", "score"]

CALIBRATED: Final = 128
"""Examples on which ranges are measured; they are not scored, unless there are no others."""
BATCH_EXAMPLES: Final = 128
PROVED: Final = 8
"""Examples that a quantised file is run on before it is believed."""
ATTEMPTS_MAX: Final = 64
"""Quantisations that are tried; nodes that have not had their turn then stay in float32."""


def quantised(program: Program, vector: NDArray[np.float32], examples: Examples | None) -> tuple[bytes, dict[str, Any]]:
    """The model with ``vector`` (float32[P]) as its weights, quantised.

    Args:
        program: What was trained.
        vector: Its parameters.
        examples: Held-out examples; None for none.

    Returns:
        The ONNX file, and figures: how it was made, nodes that stay in float32, bytes of both files, a note where the
        quantised one is not smaller, the metric of both.

    Raises:
        CompileError: onnxruntime cannot quantise any operator of this model.
    """
    plain = export_onnx(program, vector)
    whole = plain.SerializeToString()
    for number, node in enumerate(plain.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    result, kept = _quantised_where_possible(plain, program, examples)
    figures: dict[str, Any] = {
        "int8_form": "dynamic (weights only)" if examples is None else "static (weights and activations)",
        "float32_bytes": len(whole),
    }
    if kept:
        figures["int8_leaves_in_float32"] = ", ".join(f"{node.op_type} {node.name!r}" for node in kept)
    if len(result) >= len(whole):
        figures["int8_note"] = (
            f"the quantised file is not smaller ({len(result)} bytes, float32 {len(whole)}): a model of this size is "
            "better left in float32"
        )
    if examples is not None:
        index = np.arange(min(CALIBRATED, len(examples) // 2), len(examples))
        for name, model in (("float32", whole), ("int8", result)):
            figures[f"{name}_{program.metric}"] = score(model, program, examples, index)
    return result, figures


def _quantised_where_possible(
    plain: onnx.ModelProto, program: Program, examples: Examples | None
) -> tuple[bytes, list[onnx.NodeProto]]:
    """The file, and the nodes that stay in float32 because with them it does not work."""
    # Raw units of different features have no scale in common: 1480 rpm would leave no step to 4.2 bar.
    scaling = [node.name for node in plain.graph.node if node.name.startswith(PREFIX)]
    nodes = [node for node in plain.graph.node if not node.name.startswith(PREFIX)]
    accepted: list[onnx.NodeProto] = []
    result, reason = b"", ""
    groups = [nodes]
    for _ in range(ATTEMPTS_MAX):
        if not groups:
            break
        group = groups.pop()
        wanted = {node.name for node in (*accepted, *group)}
        try:
            left = [node.name for node in nodes if node.name not in wanted]
            found = _quantise(plain, [*scaling, *left], program, examples)
        except Exception as error:  # the quantiser has no exception root
            reason = reason or str(error)
            half = len(group) // 2
            groups += [group[half:], group[:half]] if half else []
        else:
            result = found
            accepted += group
    if not result:
        raise CompileError(f"model {program.name!r}: onnxruntime cannot quantise any operator of it: {reason}")
    names = {node.name for node in accepted}
    return result, [node for node in nodes if node.name not in names]


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


def _quantise(plain: onnx.ModelProto, excluded: Sequence[str], program: Program, examples: Examples | None) -> bytes:
    """The model with all nodes quantised but those, proved by running it."""
    from onnxruntime import quantization

    taken = [info.name for info in plain.graph.input]
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "float32.onnx"), Path(directory, "int8.onnx")
        onnx.save(plain, source)
        if examples is None:
            kind = quantization.QuantType.QInt8
            quantization.quantize_dynamic(source, target, weight_type=kind, nodes_to_exclude=list(excluded))
            rng = np.random.Generator(np.random.PCG64(0))
            proof = random_inputs(program.inputs, PROVED, rng)
        else:
            index = np.arange(min(CALIBRATED, max(1, len(examples) // 2)))
            quantization.quantize_static(
                source,
                target,
                _Ranges(_batches(program, examples, index), taken),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
                nodes_to_exclude=list(excluded),
            )
            proof = examples.batch(program, index[:PROVED])
        result = target.read_bytes()
    run = session_of(result, "the quantised model")
    for name, array in run({key: array for key, array in proof.items() if key in taken}).items():
        if not np.all(np.isfinite(array)):
            raise CompileError(f"the quantised model: output {name!r} is not finite")
    return result


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
