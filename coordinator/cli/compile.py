"""``edge-coordinator compile`` and ``inspect``: what a bundle is made of, for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from coordinator.compile import Lora, LossOptions, compile_model, describe, load_onnx
from coordinator.compile.naming import ColumnNames, with_names
from edge_sdk.training.bundle import Bundle

__all__ = ["compile_file", "report_lines"]

OPERATORS_SHOWN: Final = 12
PARAMETERS_SHOWN: Final = 40


def compile_file(
    path: Path,
    out: Path,
    *,
    loss: str,
    lora: tuple[str, str] | None,
    loss_options: LossOptions,
    name: str | None,
    names: ColumnNames,
    **options: Any,
) -> Bundle:
    """Compile an ONNX file and write the bundle, the source in it.

    Args:
        path: The ONNX file.
        out: Where the bundle goes.
        loss: One of ``LOSSES``.
        lora: Rank and pattern of adapters, as on the command line.
        loss_options: Class weights and the like.
        name: The model's name; None for the file's.
        names: What columns and classes are called.
        options: Further arguments of :func:`coordinator.compile.compile_model`.

    Raises:
        CompileError: The model cannot be compiled.
        BundleError: The bundle cannot be written.
    """
    model = load_onnx(path)
    adapters = Lora.parse(*lora) if lora is not None else None
    bundle = compile_model(
        model, loss=loss, lora=adapters, loss_options=loss_options, name=name or path.stem, **options
    )
    bundle = replace(with_names(bundle, names), source=model.SerializeToString(deterministic=True))
    bundle.save(out)
    return bundle


def report_lines(bundle: Bundle, path: Path) -> Iterator[str]:
    """What was understood of a model, one fact a line.

    Args:
        bundle: The bundle.
        path: Its file.
    """
    facts = describe(bundle)
    yield f"{path}: {facts['name']}, {path.stat().st_size} bytes, program {facts['program_digest'][:12]}"
    for label, values in (("input", facts["inputs"]), ("output", facts["outputs"])):
        for name, value in values.items():
            dtype, shape = (value["dtype"], value["shape"]) if isinstance(value, dict) else ("float32", value)
            yield f"{label} {name}: {dtype}{_shape(shape)}"
    classes = f", classes 0..{facts['classes'] - 1}" if facts["classes"] else ""
    yield f"target: {facts['target']['dtype']}{_shape(facts['target']['shape'])}{classes}"
    if facts["mask"]:
        yield f"mask {facts['mask']}: positions where it is 0 do not count in the loss"
    if facts["features"]:
        yield f"features: {', '.join(_with_categories(facts))}"
    if facts["labels"]:
        yield f"labels: {', '.join(facts['labels'])}"
    if facts["normalise"]:
        yield _normalised(facts)
    yield f"loss {facts['loss']}, metric {facts['metric']}, optimizer {facts['optimizer']}"
    yield "scalars: " + ", ".join(f"{name} {value:g}" for name, value in facts["scalars"].items())
    yield f"operators: {_counted(facts['model_operators'])}"
    yield from _parameter_lines(facts)
    yield from (f"note: {note}" for note in facts["notes"])
    step = facts["step"]
    yield (
        f"one dense update: {facts['update_bytes_dense']} bytes; program: {facts['program_bytes']} bytes, once a device"
    )
    yield (
        f"one step of {step['batch_size']} examples: about {step['flops'] / 1e6:.3g} MFLOP in {facts['train_nodes']} "
        f"nodes, {step['activation_bytes_peak'] / 1e6:.3g} MB of activations at most"
    )
    yield f"runs on {' and '.join(facts['runs_on'])}{', many steps in one run' if facts['loop'] else ''}"


def _with_categories(facts: dict[str, Any]) -> list[str]:
    categories = facts["categories"]
    return [f"{name} ({' or '.join(categories[name])})" if name in categories else name for name in facts["features"]]


def _normalised(facts: dict[str, Any]) -> str:
    told = facts["normalise"]
    whose = "all devices' examples" if told["mode"] == "federated" else "each device's own examples"
    line = (
        f"input {told['input']} takes raw units: {told['features']} features in dimension {told['axis']}, normalised "
        f"with mean and scale of {whose}"
    )
    if told["target"]:
        line += "; the target is normalised in training, and the output is in its raw unit"
    return line + ("; a missing value (NaN) is taken as the mean" if told["missing"] == "mean" else "")


def _parameter_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Each tensor: trained, averaged, frozen, or a constant; and why."""
    tensors = facts["parameters"] + facts["frozen"] + facts["initializers"]
    for kind in ("trainable", "buffer", "frozen", "constant"):
        chosen = [t for t in tensors if t["kind"] == kind]
        if not chosen and kind != "trainable":
            continue
        yield f"{kind}: {len(chosen)} tensors, {sum(t['elements'] for t in chosen)} elements"
        for tensor in chosen[:PARAMETERS_SHOWN]:
            why = tensor.get("why", "")
            yield f"  {tensor['name']} {tensor['shape']}{': ' if why else ''}{why}"
        if len(chosen) > PARAMETERS_SHOWN:
            yield f"  and {len(chosen) - PARAMETERS_SHOWN} more"


def _counted(operators: dict[str, int]) -> str:
    often = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{op} {count}" for op, count in often[:OPERATORS_SHOWN])
    return shown + (f" and {len(often) - OPERATORS_SHOWN} other kinds" if len(often) > OPERATORS_SHOWN else "")


def _shape(shape: list[int | None]) -> str:
    return f"[{', '.join('batch' if d is None else str(d) for d in shape)}]"
