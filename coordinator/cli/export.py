"""``edge-coordinator export``: a checkpoint as an ONNX model or a bundle, proved by running what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from coordinator.compile import export_onnx, load_onnx, merge_into_source
from coordinator.compile.batch_first import batch_first
from coordinator.compile.sklearn import cut_heads
from coordinator.config import FederationConfig
from coordinator.config.settings import database_path, stopping_rule
from coordinator.model_identity import stored_program
from coordinator.reports import finite
from coordinator.setup import load_evaluator
from coordinator.stopping import Stopping
from coordinator.store import Checkpoint, Store, StoreReader
from coordinator.task_settings import OPENING_ROUND
from edge_sdk.errors import BundleError, CompileError, ConfigurationError, StateError
from edge_sdk.training.bundle import Bundle, Program, decode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples
from edge_sdk.training.normalise import Normalise
from edge_sdk.training.own_constants import normalised_examples, own_constants, uses_own_constants, with_constants

__all__ = ["export_model"]

COMPARED_EXAMPLES: Final = 512
MADE_UP_EXAMPLES: Final = 8
TOLERANCE: Final = 1e-3


def export_model(
    config: FederationConfig,
    *,
    onnx: Path | None = None,
    bundle: Path | None = None,
    int8: Path | None = None,
    round_number: int | None = None,
) -> dict[str, Any]:
    """Write the model of a checkpoint.

    Args:
        config: The configuration.
        onnx: Where to write the inference model with its weights; None for not. It is the file that was compiled, its
            names and graph unchanged, where that is still to be had.
        bundle: Where to write a bundle; None for not.
        int8: Where to write a quantised inference model; None for not.
        round_number: The checkpoint's round; None for the newest one, or the last good one of a run that has diverged.

    Returns:
        What was written and how it was proved, as plain values.

    Raises:
        ConfigurationError: There is no such checkpoint, or a file cannot be written.
        StateError: The database cannot be read.
        CompileError: The written model does not give what the trained one gives.
    """
    task = config.federation.task
    with Store.open_readonly(database_path(config)) as store:
        program = stored_program(store, task)
        diverged, good_round = _divergence(config, store, program)
        checkpoint = _checkpoint(store, task, round_number, good_round)
        data = store.get_blob(checkpoint.parameters_digest)
    if program is None or data is None:
        raise StateError(f"round {checkpoint.round}: its model is not in the database; put back the backup")
    vector = decode_parameters(data, program.spec)
    report: dict[str, Any] = {"model": program.name, "round": checkpoint.round, "parameters": program.spec.size}
    if diverged:
        report["run"] = diverged
    evaluator = load_evaluator(config, program)
    examples = None if evaluator is None else _as_the_file_takes_them(program, vector, evaluator.examples)
    if program.normalise is not None:
        report["takes"] = _takes(program, program.normalise)
    source = _source(config)
    if bundle is not None:
        Bundle(program, vector, source).save(bundle)
        report["bundle"] = str(bundle)
    if onnx is not None:
        merged, where = _merged(program, vector, source)
        written = merged.SerializeToString(deterministic=True)
        report["weights"] = where
        _write(onnx, written)
        inputs = (
            _made_up(program, vector)
            if examples is None
            else examples.batch(program, np.arange(min(COMPARED_EXAMPLES, len(examples))))
        )
        report |= {"onnx": str(onnx), "onnx_bytes": len(written), **_prove(onnx, program, vector, inputs)}
    if int8 is not None:
        from coordinator.quantize import quantised

        try:
            model, figures = quantised(program, vector, examples)
        except CompileError as error:
            others = " and ".join(str(path) for path in (bundle, onnx) if path is not None)
            raise CompileError(f"{error}{f'; {others} is written' if others else ''}") from error
        _write(int8, model)
        report |= {"int8": str(int8), "int8_bytes": len(model), **figures}
    if evaluator is not None:
        report |= {"examples": len(evaluator.examples), **finite(evaluator.evaluate(data))}
    return report


def _source(config: FederationConfig) -> bytes:
    """The ONNX file that was compiled, empty where there is none any more."""
    model = config.model
    try:
        if model.onnx is not None:
            return bytes(load_onnx(model.onnx).SerializeToString(deterministic=True))
        return Bundle.load(model.bundle).source if model.bundle is not None else b""
    except (CompileError, BundleError):
        return b""


def _merged(program: Program, vector: NDArray[np.float32], source: bytes) -> tuple[ModelProto, str]:
    if not source:
        return export_onnx(program, vector), "in the compiled graph: there is no source model"
    try:
        return merge_into_source(program, vector, ModelProto.FromString(source)), "in the source model"
    except CompileError as error:
        return export_onnx(program, vector), f"in the compiled graph: {error}"


def _divergence(config: FederationConfig, store: StoreReader, program: Program | None) -> tuple[str, int | None]:
    """Why a run has diverged, and the round of its last good model; ``("", None)`` for one that has not."""
    if program is None:
        return "", None
    stopping = Stopping(stopping_rule(config, program.metric))
    reason = stopping.replay(store.rounds(config.federation.task, sys.maxsize)) or ""
    return (reason, stopping.good_round) if stopping.diverged else ("", None)


def _checkpoint(store: StoreReader, task: str, round_number: int | None, good_round: int | None) -> Checkpoint:
    # Before round 0 the model does not know yet how its input is normalised.
    kept = [checkpoint for checkpoint in store.checkpoints(task) if checkpoint.round >= OPENING_ROUND]
    if not kept:
        raise ConfigurationError(
            f"federation.task = {task!r}: the database has no model of this task yet; serve it first"
        )
    if round_number is None:
        good = [checkpoint for checkpoint in kept if good_round is None or checkpoint.round <= good_round]
        return good[0] if good else kept[-1]
    for checkpoint in kept:
        if checkpoint.round == round_number:
            return checkpoint
    rounds = ", ".join(str(checkpoint.round) for checkpoint in reversed(kept))
    raise ConfigurationError(
        f"--round {round_number}: its model is not kept; there are those of rounds {rounds} "
        "(a larger store.checkpoints_kept keeps more)"
    )


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror}); give another file") from error


def _prove(path: Path, program: Program, vector: NDArray[np.float32], batch: dict[str, Any]) -> dict[str, Any]:
    """Run the written file with onnxruntime, and the program with the NumPy engine where it can."""
    try:
        import onnxruntime
    except ImportError:
        return {"proved": "no: onnxruntime is not installed"}
    model = batch_first(cut_heads(ModelProto.FromString(path.read_bytes())))
    inputs = _fitting({entry.name: batch[entry.name] for entry in program.inputs}, model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    engine = make_engine(program, "numpy" if program.infer_plan.outputs else "onnxruntime")
    wanted = engine.infer(vector, inputs)
    apart = max(_apart(found[name], wanted[name]) for name in wanted)
    if not apart <= TOLERANCE:
        raise CompileError(
            f"{path}: its outputs are {apart:.3g} (relative) away from those of the trained model; do not use it, and "
            "report this with the model"
        )
    count = len(next(iter(inputs.values())))
    return {"proved": f"onnxruntime and the {engine.name} engine agree on {count} examples to {apart:.1e}"}


def _fitting(inputs: dict[str, NDArray[Any]], model: ModelProto) -> dict[str, NDArray[Any]]:
    """What the model takes of them (a mask may be for the loss alone), as many as it takes where its batch is fixed."""
    taken = {info.name for info in model.graph.input}
    inputs = {name: array for name, array in inputs.items() if name in taken}
    sizes = {info.type.tensor_type.shape.dim[0].dim_value for info in model.graph.input if info.name in inputs}
    fixed = max(sizes, default=0)
    return {name: np.resize(a, (fixed, *a.shape[1:])) for name, a in inputs.items()} if fixed else inputs


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest difference, relative to the largest value."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    return float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0)) / scale


def _takes(program: Program, normalise: Normalise) -> str:
    """What the written files expect of the input that the program normalises."""
    names = f"{normalise.mean} and {normalise.scale}"
    if normalise.mode == "local":
        return (
            f"{normalise.input}: values that are normalised already, (x - mean) / standard deviation, because each "
            f"device has constants of its own; for raw units put a device's into {names}, which hold 0 and 1"
            + ("; the output is in standard deviations from the mean of the target" if program.normalise_target else "")
        )
    return f"{normalise.input}: raw units; {names} hold what {normalise.features} features were normalised with" + (
        "; NaN where a value is missing" if program.missing == "mean" else ""
    )


def _as_the_file_takes_them(program: Program, vector: NDArray[np.float32], examples: Examples) -> Examples:
    """Held-out examples, normalised with constants of their own where the file has none."""
    if not uses_own_constants(program):
        return examples
    return normalised_examples(program, with_constants(program, vector, own_constants(program, examples)), examples)


def _made_up(program: Program, vector: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Inputs without any data: between 0 and 1, so that they are good as indices too; raw ones are around the mean."""
    rng = np.random.Generator(np.random.PCG64(0))
    made = {
        entry.name: rng.random((MADE_UP_EXAMPLES, *(d or 1 for d in entry.shape[1:]))).astype(entry.dtype)
        for entry in program.inputs
    }
    normalise = program.normalise
    if normalise is not None:
        arrays = program.spec.unflatten(vector)
        scale = arrays[normalise.scale]
        spread = np.divide(1.0, scale, out=np.ones_like(scale), where=scale > 0)
        made[normalise.input] = arrays[normalise.mean] + (4 * made[normalise.input] - 2) * spread
        if program.missing == "mean":
            made[normalise.input][0].flat[0] = np.nan
    return made
