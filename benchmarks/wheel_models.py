"""Models that PyTorch exported for ONNX's own tests, compiled: ``python -m benchmarks.wheel_models [--write]``.

They lie in the ``onnx`` wheel: 117, of opset 6 to 12, with fixed shapes, and most of them one operator without any
parameter. So each is given something to train and compiled with the mean squared error of its output; the compiler
then checks forward, gradients and both engines.

* *batch*: inputs that begin with the first one's batch are scaled by a parameter, the others become parameters.
* *weights*: where the model does away with its batch, all its inputs become parameters and its output scales a batch.

Models in float64 are cast to float32, as devices train in it. ``--write`` makes docs/supported-models.md.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from benchmarks.figures import Figure, at_least
from coordinator.compile import compile_model, describe, load_onnx
from edge_sdk.errors import CompileError

__all__ = ["PASSED_MIN", "Outcome", "attempt", "measure", "page", "wheel_models"]

GROUPS: Final = ("pytorch-converted", "pytorch-operator")
PASSED_MIN: Final = 108
PAGE: Final = Path(__file__).parents[1] / "docs" / "supported-models.md"
OPSET: Final = 21
POSITIVE: Final = frozenset({"Log", "Pow", "Sqrt"})
"""Operators that are not defined everywhere; their inputs go through Exp."""

OPENING: Final = """\
# Models from elsewhere

The `onnx` wheel holds 117 models that PyTorch exported for ONNX's own tests, of opset 6 to 12. Each is compiled and
passes the compiler's self-check (the same outputs as the source, gradients against central differences, the same step
on onnxruntime and NumPy), or is refused with a reason.

Most of them are one operator without a parameter, so each is given something to train. *batch*: inputs that begin with
the batch are scaled by a parameter, the others become parameters. *weights*: the model does away with its batch, so all
its inputs become parameters and its output scales a batch. Five in float64 are cast to float32. What is refused is of
an opset before 11 and uses what later ones no longer have (one slope of a PRelu for each channel, without a shape that
says so), or is made of integers.

This page is made by the run itself: `python -m benchmarks.wheel_models --write`.

"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one model.

    Attributes:
        name: Folder of the model without ``test_``.
        operators: Its operators.
        form: ``"batch"`` or ``"weights"`` (see above); empty where it was refused.
        runs_on: Engines that train it.
        reason: Why it was refused; empty where it was not.
        seconds: How long it took.
    """

    name: str
    operators: tuple[str, ...]
    form: str
    runs_on: tuple[str, ...]
    reason: str
    seconds: float


def wheel_models() -> list[Path]:
    """The folders of all models, in order."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    return [path for group in GROUPS for path in sorted((data / group).iterdir()) if (path / "model.onnx").exists()]


def attempt(folder: Path) -> Outcome:
    """Compile one model, in whichever form it has a batch."""
    started = time.monotonic()
    source = load_onnx(folder / "model.onnx")
    operators = tuple(dict.fromkeys(node.op_type for node in source.graph.node))
    reasons = []
    found, runs_on = "", ()
    is_float = source.graph.output[0].type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
    for form, make in (FORMS if is_float else UNCHANGED).items():
        try:
            model = make(_in_float32(source))
            asked = ["*", *_factors(model)]
            bundle = compile_model(model, loss="mean_squared_error", train=asked, name=folder.name)
        except CompileError as error:
            reasons.append(" ".join(str(error).split()))
        else:
            found, runs_on = form, tuple(describe(bundle)["runs_on"])
            break
    reason = "" if found else reasons[0].partition(" Name:")[0]
    seconds = time.monotonic() - started
    return Outcome(folder.name.removeprefix("test_"), operators, found, runs_on, reason, seconds)


def measure() -> list[Figure]:
    """How many of the models compile and pass the compiler's self-check; the page says which."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [attempt(folder) for folder in wheel_models()]
    passed = sum(bool(outcome.form) for outcome in outcomes)
    what = f"{len(outcomes)} models in the onnx wheel"
    return [
        at_least(f"{what}: compile and pass the self-check", passed, "models", PASSED_MIN),
        Figure(f"{what}: slowest to compile and check", max(outcome.seconds for outcome in outcomes), "s"),
    ]


def with_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs that share the first one's leading dimension stay, scaled by a parameter; others become parameters."""
    batch = _shape(model.graph.input[0])[0]
    for info in list(model.graph.input):
        shape, name = _shape(info), info.name
        if shape[:1] != [batch]:
            _make_parameter(model, info)
        elif info.type.tensor_type.elem_type == TensorProto.FLOAT:
            _scale_input(model, name, shape[1:] or [1])
    return model


def as_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """All inputs become parameters, and the first output scales a batch."""
    for info in list(model.graph.input):
        _make_parameter(model, info)
    output = model.graph.output[0]
    rank = len(_shape(output))
    axes = numpy_helper.from_array(np.zeros(1, np.int64), "wrap.axes")
    model.graph.initializer.append(axes)
    model.graph.node.append(helper.make_node("Unsqueeze", [output.name, "wrap.axes"], ["wrap.whole"]))
    model.graph.node.append(helper.make_node("Mul", ["wrap.x", "wrap.whole"], ["wrap.y"]))
    shape = ["batch", *_shape(output)]
    del model.graph.input[:], model.graph.output[:]
    entry = helper.make_tensor_value_info("wrap.x", TensorProto.FLOAT, ["batch"] + [1] * rank)
    model.graph.input.append(entry)
    model.graph.output.append(helper.make_tensor_value_info("wrap.y", TensorProto.FLOAT, shape))
    return model


def _factors(model: onnx.ModelProto) -> list[str]:
    """Initializers of one element, which would be taken for constants."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims)]
    return [tensor.name for tensor in floats if math.prod(tensor.dims) == 1]


FORMS: Final[dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]]] = {"batch": with_batch, "weights": as_weights}

UNCHANGED: Final[dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]]] = {"unchanged": lambda model: model}


def _in_float32(source: onnx.ModelProto) -> onnx.ModelProto:
    model = version_converter.convert_version(source, OPSET)
    model.ir_version = max(model.ir_version, 8)
    kept = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in kept]
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(inputs)
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.DOUBLE:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in (*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))):
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return model


def _shape(info: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in info.type.tensor_type.shape.dim]


def _scale_input(model: onnx.ModelProto, name: str, shape: list[int]) -> None:
    """Put a product with a parameter between an input and those who use it."""
    weight = np.random.default_rng(len(name)).uniform(0.5, 1.5, shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, f"wrap.{name}.weight"))
    nodes = [helper.make_node("Mul", [name, f"wrap.{name}.weight"], [f"wrap.{name}"], name=f"scale {name}")]
    _replace(model, name, nodes)


def _make_parameter(model: onnx.ModelProto, info: onnx.ValueInfoProto) -> None:
    """An input becomes a sum of two parameters: a slot that every operator's operand can come from."""
    name, shape = info.name, _shape(info)
    kind = info.type.tensor_type.elem_type
    model.graph.input.remove(info)
    if kind != TensorProto.FLOAT:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.int64), name))
        return
    rng = np.random.default_rng(len(name) + len(shape))
    for part in ("a", "b"):
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, f"wrap.{name}.{part}"))
    operands = [f"wrap.{name}.a", f"wrap.{name}.b"]
    _replace(model, name, [helper.make_node("Add", operands, [f"wrap.{name}"], name=f"weights {name}")])


def _replace(model: onnx.ModelProto, name: str, before: list[onnx.NodeProto]) -> None:
    if any(node.op_type in POSITIVE for node in model.graph.node):
        before.append(helper.make_node("Exp", [f"wrap.{name}"], [f"wrap.{name}.positive"], name=f"positive {name}"))
    made = before[-1].output[0]
    for node in model.graph.node:
        for slot, operand in enumerate(node.input):
            if operand == name and not node.name.startswith(("scale ", "weights ", "positive ")):
                node.input[slot] = made
    nodes = [*before, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def page(outcomes: list[Outcome]) -> str:
    """The table as Markdown."""
    passed = [outcome for outcome in outcomes if outcome.form]
    refused = len(outcomes) - len(passed)
    counts = {form: sum(outcome.form == form for outcome in passed) for form in FORMS}
    lines = [
        f"{len(passed)} of {len(outcomes)} compile and pass ({counts['batch']} as *batch*, "
        f"{counts['weights']} as *weights*); {refused} are refused.\n",
        "| model | operators | outcome | engines |\n|---|---|---|---|",
    ]
    for outcome in outcomes:
        verdict = outcome.form or "refused: " + outcome.reason.replace("|", "\\|").replace("*", "\\*")
        lines.append(f"| {outcome.name} | {', '.join(outcome.operators)} | {verdict} | {', '.join(outcome.runs_on)} |")
    return OPENING + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/supported-models.md")
    parser.add_argument("--only", default="", help="part of a name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes = []
    for folder in wheel_models():
        if arguments.only in folder.name:
            outcomes.append(attempt(folder))
            last = outcomes[-1]
            print(f"{last.seconds:6.2f} s  {last.name}: {last.form or last.reason}", flush=True)
    print(f"{sum(bool(o.form) for o in outcomes)} of {len(outcomes)} pass")
    if arguments.write:
        PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
