"""Normalisation in front of a source model, so that it takes raw units.

It is written as ordinary nodes before the model's one float32 input: ``clip((x - mean) * scale, -10, 10)``, and where
missing values are taken, zero in the place of NaN, which is the mean. Mean and scale are two initializers that start
as 0 and 1. Where the target is normalised, too, nodes behind the output scale it back to the target's unit,
``z / scale + mean``, and training compares what comes before them with the normalised target. The same nodes are put
around the source when weights are exported into it, so a file that is exported takes and gives raw units too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coordinator.compile.graph import BATCH, OPSET, GraphBuilder, Model, Node, Value
from coordinator.compile.shapes import value_of
from edge_sdk.errors import CompileError
from edge_sdk.training.normalise import CLIP_ABS_MAX, MISSING, MODES, NORMALISED_ABS_MAX, TARGET, Normalise

__all__ = [
    "PREFIX",
    "REGRESSIONS",
    "TARGET_MEAN",
    "NormaliseOptions",
    "feature_axis",
    "normalise_of",
    "normalised_already",
    "normalised_target",
    "output_of",
    "raw_input",
    "score_of",
    "target_of",
    "trained_target",
    "with_constants",
    "with_raw_input",
]

PREFIX: Final = "normalise/"
"""Of all names that are added to a model."""

MEAN, SCALE = f"{PREFIX}mean", f"{PREFIX}scale"
LOW, HIGH, ZERO = f"{PREFIX}low", f"{PREFIX}high", f"{PREFIX}zero"
TARGET_MEAN, TARGET_SCALE = f"{PREFIX}target_mean", f"{PREFIX}target_scale"
SEEN: Final = f"{PREFIX}seen"
"""What the source reads in the place of its input."""
SCORE: Final = f"{PREFIX}score"
"""What the source gives in the place of its output: how many standard deviations from the mean of the target."""

REGRESSIONS: Final = frozenset({"mean_squared_error", "mean_absolute_error", "huber"})
"""The losses whose target can be normalised."""

OPSET_LEAST: Final = 9
"""The first with IsNaN and Where, and with broadcasting as it is today."""
CLIP_BOUNDS_ARE_INPUTS: Final = 11
INITIALIZERS_ALONE: Final = 4
"""The first version of the file format in which an initializer need not be an input too."""

CHANNELS_FIRST: Final = frozenset(
    [
        *("AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool"),
        *("GroupNormalization", "InstanceNormalization", "LpPool", "MaxPool", "PRelu"),
    ]
)
FEATURES_LAST: Final = frozenset({"GRU", "Gemm", "LSTM", "LayerNormalization", "MatMul", "RMSNormalization", "RNN"})
POINTWISE: Final = frozenset(
    [
        *("Abs", "Add", "Cast", "Clip", "Div", "Dropout", "Elu", "Exp", "Gelu", "HardSigmoid", "Identity", "LeakyRelu"),
        *("Log", "Mul", "Neg", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"),
    ]
)


@dataclass(frozen=True, slots=True)
class NormaliseOptions:
    """How a model is to normalise its input.

    Attributes:
        mode: Where mean and scale come from, one of ``normalise.MODES``.
        axis: The input's dimension that counts features; None to tell it from what reads the input.
        clip: The range of raw values in the sums from which mean and scale follow.
        missing: What becomes of NaN, one of ``normalise.MISSING``.
        indicator: Behind the features the model has as many inputs again that are 1 where a value is missing.
        target: Whether the target is normalised, too; None: where the loss is a regression's.
    """

    mode: str
    axis: int | None = None
    clip: float = 1e6
    missing: str = MISSING[0]
    indicator: bool = False
    target: bool | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.missing not in MISSING:
            raise CompileError(f"normalise: mode {self.mode!r} is not one of {MODES}, or {self.missing!r} of {MISSING}")
        if not 0 < self.clip <= CLIP_ABS_MAX:
            raise CompileError(f"normalise: clip {self.clip!r} is not a number above 0 and up to {CLIP_ABS_MAX:g}")
        if self.indicator and self.missing != "mean":
            raise CompileError('normalise: indicator columns go with missing = "mean"; NaN is refused otherwise')


def raw_input(model: onnx.ModelProto, mask: str = "") -> Value:
    """The one float32 input of a source model, the batch first.

    Args:
        model: The source model.
        mask: An input that does not count, since it only says which positions do; empty for none.

    Raises:
        CompileError: There is none, or there are several, or it has no dimension of features.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in initialized]
    values = [(info.name, value_of(info)) for info in inputs if info.name != mask]
    found = [(name, value) for name, value in values if value is not None and value.dtype == "float32"]
    if len(found) != 1:
        told = ", ".join(f"{name!r} {'of unknown type' if value is None else value.dtype}" for name, value in values)
        remedy = "and scale the values before the model" if found else "since whole numbers are not normalised"
        raise CompileError(
            f"normalise: needs exactly one float32 input, the model has {len(found)} among its inputs {told}; "
            f'set normalise = "none", {remedy}'
        )
    name, value = found[0]
    if len(value.shape) < 2 or not all(isinstance(d, int) and d > 0 for d in value.shape[1:]):
        raise CompileError(
            f"normalise: input {name!r} has shape {list(value.shape)}, and needs the batch and at least one more "
            'dimension of known length; export it so, or set normalise = "none"'
        )
    return Value(name, value.dtype, (BATCH, *value.shape[1:]))


def feature_axis(model: Model, name: str) -> int:
    """The dimension of an input that counts features, told from the first operator that mixes features.

    That is dimension 1 of what a convolution reads, and the last one of what a dense or recurrent layer reads.

    Args:
        model: The imported model, without normalisation.
        name: The input.

    Raises:
        CompileError: It cannot be told.
    """
    (value,) = (value for value in model.inputs if value.name == name)
    rank = len(value.shape)
    if rank == 2:
        return 1
    places: dict[str, tuple[int | None, ...]] = {name: tuple(range(rank))}  # where each dimension was in the input
    for node in model.nodes:
        for slot, operand in enumerate(node.inputs):
            axes = places.get(operand)
            if axes is None:
                continue
            found = _mixed(node, slot, axes)
            if found:
                return found
            moved = _moved(model, node, operand, axes)
            if moved is not None:
                places[node.outputs[0]] = moved
            elif node.op in ("Flatten", "Reshape"):
                return 1 if rank > 3 else rank - 1  # images have their channels first, sequences their features last
    raise CompileError(
        f"normalise: which dimension of input {name!r} {list(value.shape)} counts features cannot be told from what "
        "reads it; name it with normalise_axis"
    )


def with_raw_input(
    model: onnx.ModelProto,
    normalise: Normalise,
    missing: str = MISSING[0],
    *,
    indicator: bool = False,
    target: Normalise | None = None,
    output: str = "",
) -> onnx.ModelProto:
    """A copy of a source model that normalises its input, mean 0 and scale 1.

    Args:
        model: The source model.
        normalise: Which input, and what mean and scale are called.
        missing: ``mean`` to take NaN as the mean.
        indicator: Whether the input of ``model`` has the indicators behind the features; that of the copy has not.
        target: How the target is normalised; None for an output that stays as it is.
        output: The output that is compared with the target.

    Raises:
        CompileError: The model's opset is too old, or a name is taken.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OPSET)
    if opset < OPSET_LEAST:
        raise CompileError(f"normalise: needs opset {OPSET_LEAST} or later, the model has {opset}; export it again")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, INITIALIZERS_ALONE)
    if not any(entry.domain in ("", "ai.onnx") for entry in copy.opset_import):  # classical operators and no others
        copy.opset_import.append(helper.make_opsetid("", opset))
    graph = copy.graph
    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    if any(name.startswith(PREFIX) for name in taken):
        raise CompileError(
            f"normalise: names that start with {PREFIX!r} are taken, so this model seems to be an export that "
            'normalises already; set normalise = "none", or rename them'
        )
    info = next((info for info in graph.input if info.name == normalise.input), None)
    if info is None:
        raise CompileError(f"normalise: the model has no input {normalise.input!r}; is it the file that was compiled?")
    dims = info.type.tensor_type.shape.dim
    shape = (normalise.features, *(1 for _ in dims[normalise.axis + 1 :]))
    if indicator:
        dims[normalise.axis].dim_value = normalise.features
    nodes = list(_nodes(normalise, missing, indicator=indicator, bounds=opset >= CLIP_BOUNDS_ARE_INPUTS))
    _rename(graph.node, normalise.input, SEEN)
    behind = [] if target is None else _scaled_back(graph, target, output)
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old, *behind])
    arrays = {normalise.mean: np.zeros(shape, np.float32), normalise.scale: np.ones(shape, np.float32)}
    if target is not None:
        arrays[target.mean] = np.zeros(target.features, np.float32)
        arrays[target.scale] = np.ones(target.features, np.float32)
    bounds = ((LOW, -NORMALISED_ABS_MAX), (HIGH, NORMALISED_ABS_MAX), (ZERO, 0.0))
    arrays |= {name: np.asarray(bound, np.float32) for name, bound in bounds}
    used = {name for node in (*nodes, *behind) for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used)
    return copy


def normalise_of(options: NormaliseOptions, value: Value, axis: int) -> Normalise:
    """What a program says of a normalisation in front of a source model whose input is ``value``.

    Raises:
        CompileError: The axis is none of the input's, or its length cannot be halved although there are indicators.
    """
    rank = len(value.shape)
    if not -rank < axis < rank or axis % rank == 0:
        raise CompileError(
            f"normalise: axis {axis} is none of input {value.name!r} {list(value.shape)}; dimension 0 is the batch"
        )
    length = int(value.shape[axis])
    if options.indicator and length % 2:
        raise CompileError(f"normalise: {length} inputs cannot be as many features as indicators")
    features = length // 2 if options.indicator else length
    return Normalise(value.name, axis % rank, features, options.mode, MEAN, SCALE, options.clip)


def target_of(normalise: Normalise, target: Value) -> Normalise:
    """What a program says of its normalised target: a column each of rows of values, or one for all.

    Args:
        normalise: What it says of its input.
        target: The target. Images have one mean and scale for all of their values.
    """
    features = int(target.shape[-1]) if 2 <= len(target.shape) <= 3 else 1
    return replace(normalise, input=TARGET, axis=1, features=features, mean=TARGET_MEAN, scale=TARGET_SCALE)


def output_of(infer: onnx.GraphProto, target: Normalise) -> str:
    """The output of an inference graph that is in the unit of the normalised target."""
    return next(str(node.output[0]) for node in infer.node if target.mean in node.input)


def normalised_already(model: onnx.ModelProto) -> frozenset[str]:
    """Mean and scale of a source that was exported with its normalisation; nothing in any other."""
    return frozenset({MEAN, SCALE, TARGET_MEAN, TARGET_SCALE} & {tensor.name for tensor in model.graph.initializer})


def with_constants(model: Model, normalise: Normalise, missing: str, target: Normalise | None = None) -> Model:
    """The imported model with mean and scale as its last parameters, which training leaves alone."""
    names = [name for told in (normalise, target) if told is not None for name in (told.mean, told.scale)]
    constants = {name: array for name, array in model.constants.items() if name not in names}
    parameters = {**model.parameters, **{name: model.constants[name] for name in names}}
    return replace(
        model, parameters=parameters, constants=constants, normalise=normalise, normalise_target=target, missing=missing
    )


def normalised_target(b: GraphBuilder, target: Value) -> Value:
    """The target of a reconstruction, which is the raw input, as the model sees that input."""
    normalise = b.model.normalise
    if normalise is None:
        return target
    centred = b.op("Mul", b.op("Sub", target.name, normalise.mean), normalise.scale)
    name = b.op("Clip", centred, b.scalar(-NORMALISED_ABS_MAX), b.scalar(NORMALISED_ABS_MAX))
    if b.model.missing == "mean":
        name = b.op("Where", b.op("IsNaN", target.name), b.scalar(0.0), name)
    return replace(target, name=name)


def score_of(model: Model, output: Value) -> Value | None:
    """What comes before ``output`` is scaled back to the target's unit; None where it is not.

    A file that was exported so scales back with constants of its own, and is trained on in the same way.
    """
    if any(TARGET_MEAN in node.inputs and output.name in node.outputs for node in model.nodes):
        return replace(output, name=SCORE)
    return None


def trained_target(b: GraphBuilder, output: Value, target: Value) -> Value:
    """The target as the train graph's loss compares it with ``output``: normalised, where that is a score."""
    if output.name != SCORE:
        return target
    return replace(target, name=b.op("Mul", b.op("Sub", target.name, TARGET_MEAN), TARGET_SCALE))


def _scaled_back(graph: onnx.GraphProto, target: Normalise, output: str) -> list[onnx.NodeProto]:
    """Let the graph give ``SCORE`` in the place of its output; the nodes that make the output of it."""
    if not any(output in node.output for node in graph.node):
        raise CompileError(
            f"normalise: output {output!r} is computed by no node, so it cannot be scaled back to the target's unit; "
            "set normalise_target = false"
        )
    _rename(graph.node, output, SCORE)
    for node in graph.node:
        for slot, name in enumerate(node.output):
            if name == output:
                node.output[slot] = SCORE
    unscaled = f"{PREFIX}unscaled"
    return [
        helper.make_node("Div", [SCORE, target.scale], [unscaled], name=f"{PREFIX}Div"),
        helper.make_node("Add", [unscaled, target.mean], [output], name=f"{PREFIX}Add"),
    ]


def _nodes(normalise: Normalise, missing: str, *, indicator: bool, bounds: bool) -> Iterator[onnx.NodeProto]:
    """The nodes from the raw input to ``SEEN``; ``bounds`` where a Clip takes them as inputs."""
    x, limits = normalise.input, {"min": -NORMALISED_ABS_MAX, "max": NORMALISED_ABS_MAX}
    yield _node("Sub", [x, normalise.mean], "centred")
    yield _node("Mul", [f"{PREFIX}centred", normalise.scale], "scaled")
    scaled = f"{PREFIX}scaled"
    clipped = "clipped" if missing == "mean" else "seen"
    yield _node("Clip", [scaled, LOW, HIGH], clipped) if bounds else _node("Clip", [scaled], clipped, **limits)
    if missing != "mean":
        return
    yield _node("IsNaN", [x], "missing")
    yield _node("Where", [f"{PREFIX}missing", ZERO, f"{PREFIX}clipped"], "filled" if indicator else "seen")
    if indicator:
        yield _node("Cast", [f"{PREFIX}missing"], "flags", to=TensorProto.FLOAT)
        yield _node("Concat", [f"{PREFIX}filled", f"{PREFIX}flags"], "seen", axis=normalise.axis)


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [f"{PREFIX}{output}"], name=f"{PREFIX}{op}", **attributes)


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let what reads ``old`` read ``new``, in the bodies of control flow too."""
    for node in nodes:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = new
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if old not in {info.name for info in body.input}:
                    _rename(body.node, old, new)


def _mixed(node: Node, slot: int, axes: Sequence[int | None]) -> int | None:
    """The input's dimension along which ``node`` mixes features; None where it mixes none."""
    if node.op in CHANNELS_FIRST and slot == 0 and len(axes) > 1:
        return axes[1]
    if node.op in FEATURES_LAST:
        return axes[-1] if slot == 0 else axes[-2] if node.op == "MatMul" and len(axes) > 1 else None
    return None


def _moved(model: Model, node: Node, operand: str, axes: tuple[int | None, ...]) -> tuple[int | None, ...] | None:
    """Where each dimension of the node's output was in the input; None where that cannot be told."""
    if node.op == "Transpose":
        return tuple(axes[i] for i in node.attributes.get("perm") or range(len(axes))[::-1])
    before, after = model.values.get(operand), model.values.get(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op in POINTWISE:
        return axes if after.shape == before.shape else None
    if node.op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
        return _without_ones(before.shape, after.shape, axes)
    return None


def _without_ones(
    before: Sequence[int | str], after: Sequence[int | str], axes: Sequence[int | None]
) -> tuple[int | None, ...] | None:
    """The dimensions of a reshaped tensor, where it has the same ones but for those of length 1."""
    kept = [(length, axis) for length, axis in zip(before, axes, strict=True) if length != 1]
    if [length for length, _ in kept] != [length for length in after if length != 1]:
        return None
    rest = iter(kept)
    return tuple(None if length == 1 else next(rest)[1] for length in after)
