"""A *program*: everything of a model bundle but the parameters' values.

The coordinator compiles it once (``coordinator.compile``), devices keep it under its digest, and rounds change only
what is fed to it. The same graphs stand in it twice: as ONNX models, which onnxruntime reads, and as a transcript
(``NumpyPlan``) for devices that have NumPy alone and no package that could parse ONNX.

Wire form: ``b"EFPG"``, version (u16), zero (u16), one msgpack map. Maps are written with sorted keys, so equal
programs have equal bytes and one digest. Readers ignore map keys that they do not know; what a device *must*
understand stands in ``requires``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

import msgpack

from edge_sdk.errors import DecodeError, VersionError
from edge_sdk.parameters import ELEMENTS_MAX, RANK_MAX, ParameterSpec
from edge_sdk.training.names import check_names, names_from_wire
from edge_sdk.training.normalise import MISSING, TARGET, Normalise, normalise_from_wire
from edge_sdk.training.numpy_plan import (
    ENTRIES_MAX,
    NumpyPlan,
    as_list,
    as_map,
    as_text,
    check_plan,
    is_count,
    plan_from_wire,
    plan_to_wire,
)
from edge_sdk.training.shared_bytes import share, unshare
from edge_sdk.wire.fields import is_integer, number, octets_upto
from edge_sdk.wire.safe_msgpack import unpack_checked

__all__ = ["ANCHOR", "NEW", "PROGRAM_BYTES_MAX", "Input", "Program", "digest_of"]

PROGRAM_BYTES_MAX: Final = 64 << 20
PROGRAM_VERSION: Final = 1
KINDS: Final = ("graph", "trainer")
INPUT_DTYPES: Final = ("float32", "int64", "int32", "bool", "uint8")
LOSSES: Final = (
    "softmax_cross_entropy",
    "binary_cross_entropy",
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
    "hinge",
    "reconstruction",
)
OPTIMIZERS: Final = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
METRICS: Final = ("accuracy", "mean_squared_error", "mean_absolute_error")
SCALARS_MAX: Final = 32

ANCHOR: Final = "anchor/"
"""Prefix of the train graph's inputs that hold the round's starting model (FedProx)."""

NEW: Final = "new/"
"""Prefix of the train graph's outputs that hold a parameter or a state tensor after the step."""

_MAGIC: Final = b"EFPG"
_HEADER: Final = struct.Struct("<4sHH")
_GRAPH: Final = octets_upto(PROGRAM_BYTES_MAX)
_SCALAR: Final = number(-math.inf, math.inf)
_OBJECTS_MAX: Final = 400_000
_DEPTH_MAX: Final = 13  # a node of a plan, and in it a node of a body that holds an array


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that the local examples provide: ``dtype`` a NumPy name, ``shape`` with ``None`` (the batch) first."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """Graphs, parameter spec and the facts about them; see the contract of each graph below.

    ``train`` takes the model inputs, ``target``, every parameter, every state tensor and every scalar by name (and
    ``anchor/<parameter>`` where it was compiled for FedProx); it gives ``loss``, ``new/<state>`` and
    ``new/<parameter>`` of all but constants. ``evaluate`` takes model inputs, ``target`` and parameters and gives
    ``loss_sum`` and ``metric_sum``. ``infer`` takes model inputs and parameters and gives the model's outputs.

    ``train_loop`` makes one step after another: it takes and gives what ``train`` does, but model inputs and ``target``
    have the steps as an additional first dimension, and so has ``loss``. What it gives is what that many runs of
    ``train`` give; it only costs fewer calls.

    Attributes:
        name: Human name of the model.
        kind: ``"graph"``, or ``"trainer"`` where the device brings its own ``fit`` and the graphs are empty.
        spec: All parameters in flat order.
        state: ``(name, shape)`` of optimiser state tensors: float32, zero at the start of each local training.
        scalars: Scalar graph inputs (float32) and their defaults.
        inputs: The model's inputs.
        target: What the examples are labelled with.
        loss: One of ``LOSSES``.
        optimizer: One of ``OPTIMIZERS``.
        metric: One of ``METRICS``.
        train, evaluate, infer: ONNX models as bytes, no external data.
        train_plan, evaluate_plan, infer_plan: The same graphs for the NumPy engine; empty where it lacks an operator.
        classes: Number of classes that an integer target may name, 0 where the target is no class; devices check
            their labels against it.
        requires: Capabilities that a device must have to run this program.
        ignore_index: A label outside of the classes that counts nowhere (padding); None for none.
        mask: The input that is above 0 where an element of the target counts; its shape is the beginning of the
            target's, but for dimensions of 1 at its end. Empty where all count.
        train_loop: An ONNX model as bytes; empty where it would bring nothing.
        normalise: How the graphs normalise an input, so that it takes raw units; None where they do not.
        normalise_target: How the target is normalised in training: the train graph's loss is of the normalised target,
            ``evaluate`` and ``infer`` are in its raw units. None where the target is taken as it is.
        missing: What becomes of NaN in the normalised input: ``refuse``, or ``mean`` for the mean of the feature.
        features: Names of the columns of an input, in order; empty where they have none. Devices find the columns of
            their files by them (:mod:`edge_sdk.training.names`).
        categories: Of a feature that is a text, the names that it may be.
        labels: Names of the classes, in order; empty where they are numbers.
    """

    name: str
    kind: str
    spec: ParameterSpec
    inputs: tuple[Input, ...]
    target: Input
    loss: str
    optimizer: str = "sgd"
    metric: str = "accuracy"
    state: tuple[tuple[str, tuple[int, ...]], ...] = ()
    scalars: Mapping[str, float] = field(default_factory=lambda: {"lr": 0.1})
    train: bytes = b""
    evaluate: bytes = b""
    infer: bytes = b""
    train_plan: NumpyPlan = field(default_factory=NumpyPlan)
    evaluate_plan: NumpyPlan = field(default_factory=NumpyPlan)
    infer_plan: NumpyPlan = field(default_factory=NumpyPlan)
    classes: int = 0
    requires: tuple[str, ...] = ()
    ignore_index: int | None = None
    train_loop: bytes = b""
    mask: str = ""
    normalise: Normalise | None = None
    normalise_target: Normalise | None = None
    missing: str = "refuse"
    features: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_program(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def normalised(self) -> tuple[Normalise, ...]:
        """All that is normalised: the input, and behind it the target; empty where nothing is."""
        return tuple(told for told in (self.normalise, self.normalise_target) if told is not None)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the encoded bytes (of the bytes received, for a program that was decoded)."""
        return digest_of(self.encode())

    def encode(self) -> bytes:
        """The program's bytes: the same program always has the same bytes."""
        body: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "spec": self.spec.to_wire(),
            "state": [[name, list(shape)] for name, shape in self.state],
            "scalars": {name: float(self.scalars[name]) for name in sorted(self.scalars)},
            "inputs": [_input_to_wire(i) for i in self.inputs],
            "target": _input_to_wire(self.target),
            "loss": self.loss,
            "optimizer": self.optimizer,
            "metric": self.metric,
            "train": self.train,
            "evaluate": self.evaluate,
            "infer": self.infer,
            "train_plan": plan_to_wire(self.train_plan),
            "evaluate_plan": plan_to_wire(self.evaluate_plan),
            "infer_plan": plan_to_wire(self.infer_plan),
            "classes": self.classes,
            "requires": list(self.requires),
        }
        if self.ignore_index is not None:
            body["ignore_index"] = self.ignore_index
        if self.mask:
            body["mask"] = self.mask
        if self.train_loop:
            body["train_loop"] = self.train_loop
        if self.normalise is not None:
            body["normalise"] = self.normalise.to_wire()
            body["missing"] = self.missing
        if self.normalise_target is not None:
            body["normalise_target"] = self.normalise_target.to_wire()
        if self.features:
            body["features"] = list(self.features)
        if self.categories:
            body["categories"] = {name: list(self.categories[name]) for name in sorted(self.categories)}
        if self.labels:
            body["labels"] = list(self.labels)
        body = share(body)
        packed: bytes = msgpack.packb({key: body[key] for key in sorted(body)}, use_bin_type=True)
        return _HEADER.pack(_MAGIC, PROGRAM_VERSION, 0) + packed

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, *, program_bytes_max: int = PROGRAM_BYTES_MAX) -> Program:
        """The program that ``data`` holds; nothing in it is trusted.

        Raises:
            DecodeError: Malformed, truncated, above a limit, or inconsistent with itself.
            VersionError: Written in a version that this side does not read.
        """
        view = memoryview(data)
        if len(view) > program_bytes_max:
            raise DecodeError(f"program: {len(view)} bytes, at most {program_bytes_max} are allowed", reason="limit")
        _check_header(view)
        body = unpack_checked(view[_HEADER.size :], objects_max=_OBJECTS_MAX, depth_max=_DEPTH_MAX, where="program")
        program = _from_wire(cls, body)
        program.__dict__["digest"] = digest_of(view)
        return program


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of ``data``: the name under which programs and parameters travel (32 bytes)."""
    import hashlib  # here, not above: it loads OpenSSL, which a device needs only once it connects

    return hashlib.sha256(data).digest()


def _check_header(view: memoryview) -> None:
    if len(view) < _HEADER.size or bytes(view[:4]) != _MAGIC:
        raise DecodeError("program: these bytes do not start like a program", reason="magic")
    _, version, zero = _HEADER.unpack_from(view)
    if version != PROGRAM_VERSION:
        side = "device (pip install -U edgefed)" if version > PROGRAM_VERSION else "coordinator, and compile again"
        raise VersionError(f"program: version {version}, this side reads {PROGRAM_VERSION}: upgrade the {side}")
    if zero:
        raise DecodeError(f"program: header field is {zero}, expected 0")


def _input_to_wire(value: Input) -> list[Any]:
    return [value.name, value.dtype, list(value.shape)]


def _from_wire(cls: type[Program], body: object) -> Program:
    source = unshare(as_map(body, "program"), graph_bytes_max=PROGRAM_BYTES_MAX)
    return cls(
        name=as_text(source.get("name"), "name"),
        kind=as_text(source.get("kind"), "kind"),
        spec=ParameterSpec.from_wire(source.get("spec")),
        inputs=tuple(_input(i, "inputs") for i in as_list(source.get("inputs"), "inputs", ENTRIES_MAX)),
        target=_input(source.get("target"), "target"),
        loss=as_text(source.get("loss"), "loss"),
        optimizer=as_text(source.get("optimizer"), "optimizer"),
        metric=as_text(source.get("metric"), "metric"),
        state=tuple(_state(s) for s in as_list(source.get("state"), "state", ENTRIES_MAX)),
        scalars=as_map(source.get("scalars"), "scalars"),
        train=_bytes(source.get("train"), "train"),
        evaluate=_bytes(source.get("evaluate"), "evaluate"),
        infer=_bytes(source.get("infer"), "infer"),
        train_plan=plan_from_wire(source.get("train_plan"), "train_plan"),
        evaluate_plan=plan_from_wire(source.get("evaluate_plan"), "evaluate_plan"),
        infer_plan=plan_from_wire(source.get("infer_plan"), "infer_plan"),
        classes=source.get("classes", 0),
        requires=tuple(as_text(r, "requires") for r in as_list(source.get("requires"), "requires", 64)),
        ignore_index=source.get("ignore_index"),
        train_loop=_bytes(source.get("train_loop", b""), "train_loop"),
        mask=as_text(source.get("mask", ""), "mask"),
        normalise=normalise_from_wire(source.get("normalise")),
        normalise_target=normalise_from_wire(source.get("normalise_target")),
        missing=as_text(source.get("missing", MISSING[0]), "missing"),
        **names_from_wire(source),
    )


def _bytes(value: object, where: str) -> bytes:
    return cast(bytes, _GRAPH(value, f"program.{where}"))


def _input(value: object, where: str) -> Input:
    parts = as_list(value, where, 3)
    if len(parts) != 3:
        raise DecodeError(f"program.{where}: expected [name, dtype, shape]")
    return Input(as_text(parts[0], where), as_text(parts[1], where), tuple(as_list(parts[2], where, RANK_MAX)))


def _state(value: object) -> tuple[str, tuple[int, ...]]:
    parts = as_list(value, "state", 2)
    if len(parts) != 2:
        raise DecodeError("program.state: expected [name, shape]")
    return as_text(parts[0], "state"), tuple(as_list(parts[1], "state", RANK_MAX))


def _check_program(program: Program) -> None:
    """Raise DecodeError unless the parts agree with each other."""
    for name, value, allowed in (
        ("kind", program.kind, KINDS),
        ("loss", program.loss, LOSSES),
        ("optimizer", program.optimizer, OPTIMIZERS),
        ("metric", program.metric, METRICS),
        ("missing", program.missing, MISSING),
    ):
        if value not in allowed:
            raise DecodeError(f"program.{name}: {value[:40]!r} is not one of {allowed}")
    if not program.inputs:
        raise DecodeError("program.inputs: a model needs at least one input")
    for entry in (*program.inputs, program.target):
        _check_input(entry)
    if program.target.name != "target":
        raise DecodeError(f"program.target: named {program.target.name[:40]!r}, expected 'target'")
    if not is_count(program.classes, 0):
        raise DecodeError(f"program.classes: {str(program.classes)[:40]!r} is not a number of classes")
    ignored = program.ignore_index
    if ignored is not None and not is_integer(ignored, 1 - (1 << 62), (1 << 62) - 1):
        raise DecodeError(f"program.ignore_index: {str(ignored)[:40]!r} is not a label")
    if program.mask:
        _check_mask(program)
    if program.normalise is not None:
        _check_normalise(program, program.normalise)
    elif program.missing != MISSING[0]:
        raise DecodeError(f"program.missing: {program.missing!r} needs an input that is normalised")
    if program.normalise_target is not None:
        _check_normalise_target(program, program.normalise_target)
    if not any(tensor.kind != "constant" for tensor in program.spec):
        raise DecodeError("program.spec: no parameter ever changes, so there is nothing to train")
    check_names(
        program.features,
        program.categories,
        program.labels,
        inputs={entry.name: (entry.dtype, entry.shape) for entry in program.inputs},
        classes=program.classes,
        loss=program.loss,
    )
    _check_scalars(program.scalars)
    _check_state(program.state)
    names = [entry.name for entry in program.inputs]
    names += ["target", *(t.name for t in program.spec), *(name for name, _ in program.state), *program.scalars]
    if len(set(names)) != len(names) or "" in names:
        raise DecodeError("program: two inputs, parameters, states or scalars share a name, or one has none")
    if program.kind == "graph":
        _check_graphs(program, set(names))


def _check_input(entry: Input) -> None:
    where = f"program.inputs[{entry.name[:40]!r}]"
    if entry.dtype not in INPUT_DTYPES:
        raise DecodeError(f"{where}: dtype {entry.dtype[:40]!r} is not one of {INPUT_DTYPES}")
    if not entry.shape or entry.shape[0] is not None or len(entry.shape) > RANK_MAX:
        raise DecodeError(f"{where}: shape {entry.shape} must start with None, the batch")
    if not all(is_count(d, 1) for d in entry.shape[1:]) or math.prod(d or 1 for d in entry.shape) > ELEMENTS_MAX:
        raise DecodeError(f"{where}: shape {entry.shape} is out of range")


def _check_mask(program: Program) -> None:
    mask = next((entry for entry in program.inputs if entry.name == program.mask), None)
    if mask is None:
        raise DecodeError(f"program.mask: {program.mask[:40]!r} is none of the inputs")
    shape = list(mask.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 2 or tuple(shape) != program.target.shape[: len(shape)]:
        raise DecodeError(f"program.mask: shape {mask.shape} does not fit the target's {program.target.shape}")


def _check_normalise(program: Program, normalise: Normalise) -> None:
    entry = next((entry for entry in program.inputs if entry.name == normalise.input), None)
    if entry is None or entry.dtype != "float32":
        raise DecodeError(f"program.normalise: {normalise.input[:40]!r} is none of the float32 inputs")
    if normalise.axis >= len(entry.shape) or entry.shape[normalise.axis] != normalise.features:
        raise DecodeError(
            f"program.normalise: {normalise.features} features in dimension {normalise.axis} do not fit {entry.shape}"
        )
    # Broadcast along the feature's dimension: its length there, 1 in each dimension behind it.
    shape = (normalise.features, *(1 for _ in entry.shape[normalise.axis + 1 :]))
    _check_constants(program, "normalise", [normalise.mean, normalise.scale], shape)


def _check_normalise_target(program: Program, told: Normalise) -> None:
    if program.normalise is None or (told.mode, told.clip) != (program.normalise.mode, program.normalise.clip):
        raise DecodeError("program.normalise_target: needs an input that is normalised in the same way")
    shape = program.target.shape
    if program.target.dtype != "float32" or (told.input, told.axis) != (TARGET, 1):
        raise DecodeError("program.normalise_target: expected the columns of a float32 target")
    if told.features not in (1, shape[-1]):
        raise DecodeError(f"program.normalise_target: {told.features} values do not fit the target's {shape}")
    names = [told.mean, told.scale, program.normalise.mean, program.normalise.scale]
    _check_constants(program, "normalise_target", names[:2], (told.features,))
    if len(set(names)) < len(names):
        raise DecodeError("program.normalise_target: its constants are those of the input")


def _check_constants(program: Program, where: str, names: Sequence[str], shape: tuple[int, ...]) -> None:
    found = {t.name: t.shape for t in program.spec if t.kind == "constant"}
    if len(set(names)) < len(names) or any(found.get(name) != shape for name in names):
        raise DecodeError(f"program.{where}: mean and scale must be two constants of shape {list(shape)}")


def _check_scalars(scalars: Mapping[str, Any]) -> None:
    if len(scalars) > SCALARS_MAX:
        raise DecodeError(f"program.scalars: more than {SCALARS_MAX}")
    for name, value in scalars.items():
        _SCALAR(value, f"program.scalars[{name[:40]!r}]")


def _check_state(state: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    elements = 0
    for name, shape in state:
        if len(shape) > RANK_MAX or not all(is_count(d, 1) for d in shape):
            raise DecodeError(f"program.state[{name[:40]!r}]: shape {shape} is out of range")
        elements += math.prod(shape)
        if elements > ELEMENTS_MAX:
            raise DecodeError(f"program.state: more than {ELEMENTS_MAX} elements", reason="limit")


def _check_graphs(program: Program, names: set[str]) -> None:
    if not program.train or not program.evaluate:
        raise DecodeError("program: kind 'graph' needs the graphs 'train' and 'evaluate'")
    parameters = [t.name for t in program.spec]
    anchors = {ANCHOR + t.name for t in program.spec if t.kind == "trainable"}
    changing = [t.name for t in program.spec if t.kind != "constant"]
    updated = {NEW + name for name in (*changing, *(name for name, _ in program.state))}
    fed = {"target", *parameters, *(entry.name for entry in program.inputs)}
    for where, plan, inputs, outputs in (
        ("train_plan", program.train_plan, names | anchors, {"loss"} | updated),
        ("evaluate_plan", program.evaluate_plan, fed, {"loss_sum", "metric_sum"}),
        ("infer_plan", program.infer_plan, fed - {"target"}, set(program.infer_plan.outputs)),
    ):
        if not plan.outputs and not plan.nodes:
            continue  # a graph with operators that only onnxruntime has
        check_plan(plan, where)
        if not inputs.issuperset(plan.inputs):
            unknown = sorted(set(plan.inputs) - inputs)[0]
            raise DecodeError(f"program.{where}: input {unknown[:80]!r} is no input, parameter, state or scalar")
        if set(plan.outputs) != outputs or len(plan.outputs) != len(outputs):
            differing = sorted(set(plan.outputs) ^ outputs)[:3]
            raise DecodeError(f"program.{where}: outputs are not the ones of this graph (differing: {differing})")
