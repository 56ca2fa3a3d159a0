"""``edge-coordinator codec report``: trains, measures every codec on the updates, and says which setting to take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.codec_report.choice import auto_choice, candidates, codec_table, nearer_to, pick
from coordinator.codec_report.cohort import Cohort, last_cohort
from coordinator.codec_report.local_rounds import local_rounds, split_examples
from coordinator.codec_report.report import Measurement, measure
from coordinator.codec_report.trial import Trial, progress
from coordinator.reports import finite
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.auto import Auto
from edge_sdk.codecs.eden import Eden
from edge_sdk.codecs.frames import frames_bytes_max
from edge_sdk.codecs.sparse import Sparse
from edge_sdk.errors import ConfigurationError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.examples import Examples, as_examples, load_examples
from edge_sdk.training.own_constants import own_constants, with_constants
from edge_sdk.training.program import Program
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["LIMITS", "ReportOptions", "report_file"]

DIGITS_FEATURES: Final = 64
DIGITS_CLASSES: Final = 10
CLIENTS: Final = 10
LIMITS: Final = ("bytes_max", "nmse_max", "progress_min")
SECONDS_MAX: Final = 3600.0


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What is run and what is asked.

    Attributes:
        clients: Simulated devices that share the examples; 0 for as many as ``cohort`` says, at most 10.
        rounds: Rounds of FedAvg; the updates of the last one are measured.
        epochs, batch_size: As in ``[training]``.
        learning_rate: None for the program's own.
        cohort: Updates of a round in the federation that is planned; the mean is of so many, or of all clients.
        bytes_max: Budget of an update's frames, 0 for none.
        nmse_max: Largest error of a mean at its best scale, 0 for none.
        progress_min: Least progress of the trial, 0 for none.
        trial: Whether each codec also trains.
        seed: Of the split, the shuffles and the codecs.
    """

    clients: int = 0
    rounds: int = 5
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float | None = None
    cohort: int = 10
    bytes_max: int = 0
    nmse_max: float = 0.0
    progress_min: float = 0.0
    trial: bool = True
    seed: int = 0


def report_file(path: Path, data: Path | None, options: ReportOptions) -> dict[str, Any]:
    """The report on a bundle, as plain values.

    Args:
        path: The bundle.
        data: Examples, ``.npz`` or ``.csv``; None for scikit-learn's digits.
        options: What is run and asked.

    Raises:
        BundleError: The bundle cannot be read, or has no graphs.
        ConfigurationError: There are no examples that fit, or the options contradict each other.
        TrainingError: Training diverged.
    """
    _check_options(options)
    bundle = Bundle.load(path)
    program = bundle.program
    examples = _digits(program) if data is None else load_examples(data, program)
    if program.normalise is not None:  # as if all clients had told their sums
        constants = own_constants(program, examples)
        bundle = replace(bundle, parameters=with_constants(program, bundle.parameters, constants))
    clients = options.clients or min(options.cohort, CLIENTS)
    engine = make_engine(program)
    cohort, measured = _measured(bundle, engine, examples, replace(options, clients=clients))
    limits = {name: getattr(options, name) for name in LIMITS}
    picked = pick(measured, **limits) if any(limits.values()) else measured[0]
    return {
        "model": program.name,
        "parameters": program.spec.size,
        "examples": len(examples),
        "data": "scikit-learn's digits" if data is None else str(data),
        "engine": engine.name,
        "loss": cohort.loss,
        **asdict(options),
        "clients": clients,
        "averaged": min(options.cohort, clients),
        "codecs": [_codec_entry(each) for each in measured],
        "tensors": _tensor_entries(cohort, measured),
        "auto": asdict(auto_choice(cohort, measured[0])),
        "pick": None if picked is None else _pick_entry(picked),
        "nothing_fits": None if picked is not None else _nothing_fits(program.spec, measured, options),
    }


def _measured(
    bundle: Bundle, engine: Engine, examples: Examples, options: ReportOptions
) -> tuple[Cohort, list[Measurement]]:
    """The updates, and what each setting makes of them; ``auto`` is the first, and ``dense`` the second."""
    spec, plan = bundle.program.spec, _plan(bundle.program, options)
    parts = split_examples(examples, options.clients, options.seed)
    settings = candidates(spec, options.cohort, options.bytes_max)
    run: dict[str, Any] = {"rounds": options.rounds, "seed": options.seed, "clock": time.monotonic}
    cohort = last_cohort(local_rounds(engine, bundle.parameters, parts, plan, **run), spec, settings, options.seed)
    averaged = min(options.cohort, options.clients)
    measured = [measure(cohort, each, averaged) for each in settings]
    if options.nmse_max and (nearer := nearer_to(options.nmse_max, measured)) is not None:
        measured.append(measure(cohort, nearer, averaged))
    if options.trial:
        measured = _tried(Trial(engine, bundle.parameters, parts, examples, plan, **run), measured)
    return cohort, measured


def _check_options(options: ReportOptions) -> None:
    given = [f"--{name.replace('_', '-')}" for name in LIMITS if getattr(options, name)]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)}: give one of them")
    if options.progress_min and not options.trial:
        raise ConfigurationError("--progress-min: is what the trial measures; leave --no-trial out")


def _tried(trial: Trial, measured: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with the progress of each codec."""
    plain = trial.losses(CodecSettings("dense"))
    if not min(plain[1:]) < plain[0]:
        raise ConfigurationError(
            "--learning-rate: training does not lower the loss, so there is no progress to compare; choose another, "
            "or add --no-trial"
        )
    return [replace(each, progress=progress(trial.losses(each.settings)[-1], plain)) for each in measured]


def _codec_entry(measured: Measurement) -> dict[str, Any]:
    entry = {"codec": measured.label, "chose": list(measured.codecs), **finite(asdict(measured))}
    entry["settings"] = measured.settings.to_wire()
    del entry["codecs"], entry["tensors"]
    return entry


def _pick_entry(picked: Measurement) -> dict[str, Any]:
    settings = picked.settings
    bits = settings.codec.bits if isinstance(settings.codec, Auto | Eden) else None
    return {"codec": picked.label, "bits": bits, "toml": codec_table(settings)}


def _tensor_entries(cohort: Cohort, measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    dense = CodecSettings("dense")
    energy = sum(np.square(cohort.wanted(dense, client)) for client in range(len(cohort.deltas)))
    by_tensor = np.add.reduceat(energy, [tensor.offset for tensor in cohort.spec])
    shares = (by_tensor / by_tensor.sum()).tolist()
    return [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "elements": tensor.size,
            "kind": tensor.kind,
            "energy": shares[number] if tensor.kind == "trainable" else None,
            "codecs": {each.label: asdict(each.tensors[number]) for each in measured},
        }
        for number, tensor in enumerate(cohort.spec)
    ]


def _nothing_fits(spec: ParameterSpec, measured: Sequence[Measurement], options: ReportOptions) -> str:
    if options.bytes_max:
        least = min(frames_bytes_max(spec, CodecSettings(codec.smallest())) for codec in (Sparse(), Eden()))
        return f"--bytes-max {options.bytes_max}: no codec keeps it; an update of this model needs {least}"
    if options.progress_min:
        furthest = max(measured, key=lambda each: each.progress or 0.0)
        return (
            f"--progress-min {options.progress_min:g}: no codec keeps it; {furthest.label} has {furthest.progress:.3g}"
        )
    best = min(measured, key=lambda each: each.scaled_nmse)
    return f"--nmse-max {options.nmse_max:g}: no codec keeps it; {best.label} has {best.scaled_nmse:.3g}"


def _plan(program: Program, options: ReportOptions) -> TrainingPlan:
    scalars = dict(program.scalars)
    if options.learning_rate is not None:
        if "lr" not in scalars:
            raise ConfigurationError("--learning-rate: this model has no scalar 'lr'; leave it out")
        scalars["lr"] = options.learning_rate
    return TrainingPlan(epochs=options.epochs, batch_size=options.batch_size, seconds_max=SECONDS_MAX, scalars=scalars)


def _digits(program: Program) -> Examples:
    """scikit-learn's digits, in the shape that the program takes."""
    shape = program.inputs[0].shape[1:]
    fits = (
        len(program.inputs) == 1
        and program.inputs[0].dtype == "float32"
        and int(np.prod([d or 0 for d in shape])) == DIGITS_FEATURES
        and program.target.dtype == "int64"
        and len(program.target.shape) == 1
        and program.classes in (0, DIGITS_CLASSES)
    )
    if not fits:
        raise ConfigurationError(
            f"--data: is needed, scikit-learn's digits (64 features, 10 classes) do not fit {program.name!r}, which "
            f"takes {program.inputs[0].name!r} of shape {['N', *shape]}; give an .npz with x and y, or a .csv"
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError(
            "--data: is needed where scikit-learn, whose digits would be taken, is not installed; give an .npz with x "
            "and y, or a .csv"
        ) from error
    x, y = load_digits(return_X_y=True)
    return as_examples(((x / 16.0).astype(np.float32).reshape(-1, *shape), y), program)
