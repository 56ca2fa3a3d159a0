"""Losses: what is appended behind the model's output for training and for evaluation.

Each loss is computed from the model's raw output (logits, scores, values), in the form that neither overflows nor
loses digits: softmax cross-entropy through LogSoftmax, binary cross-entropy as ``softplus(z) - z y``.

The training loss is ``total / size(target)``: the mean over the examples, and over the elements of a target that has
several (positions of a sequence, pixels, values), so that the mean squared error is the usual one. Class weights,
ignored labels and a mask divide by the weight that was counted instead, as PyTorch does. ``factor * slope`` is the
derivative of ``total``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from coordinator.compile.graph import BATCH, GraphBuilder, Shape, Value
from coordinator.compile.masking import kept_elements
from coordinator.compile.raw_inputs import normalised_target
from edge_sdk.errors import CompileError

__all__ = ["LOSSES", "SMOOTHING", "Loss", "LossOptions", "Terms", "class_axis", "class_count"]

TARGET: Final = "target"
SMOOTHING: Final = "label_smoothing"
HUBER_DELTA: Final = "huber_delta"


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What may be asked of a loss beside its plain form: of softmax cross-entropy, and ``mask`` of all.

    Attributes:
        class_weights: One factor for each class; empty for none.
        label_smoothing: Compile in the scalar of that name (its default is 0.1): the share of each label that is spread
            evenly over all classes (Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7).
            Evaluation goes without it.
        ignore_index: A label that is not counted, as padding has it.
        class_axis: The output's axis of classes; None for axis 1 of images ``[N, C, H, W]`` and the last one elsewhere.
        mask: The input that says which positions count (see ``masking``); empty for none.
    """

    class_weights: tuple[float, ...] = ()
    label_smoothing: bool = False
    ignore_index: int | None = None
    class_axis: int | None = None
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """Names of the loss's parts in the graph.

    Attributes:
        total: float32 scalar, the loss summed over the batch and over the elements of an output.
        slope: In the output's shape; ``factor * slope`` is the derivative of ``total``.
        factor: See ``slope``; kept apart so that it costs no node.
        weight: float32 scalar that ``total`` is divided by; ``""`` for the number of the target's elements.
        counted: float32 scalar, how many of the target's elements the metric counts; ``""`` for all.
        mask: bool in the target's shape, which those are; ``""`` for all.
    """

    total: str
    slope: str
    factor: float
    weight: str = ""
    counted: str = ""
    mask: str = ""


Appended = Callable[[GraphBuilder, Value, Value, LossOptions, bool], Terms]


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss.

    Attributes:
        metric: What ``evaluate`` reports beside the loss.
        target: The form of the labels for a model output; raises CompileError where they do not fit.
        terms: ``(builder, output, target, options, training) -> Terms``.
        metric_sum: ``(builder, output, target, options, terms) -> name`` of the metric summed over the batch.
        final: Operator that turns this loss's logits into probabilities; where a model ends in it, the loss is
            computed on its input.
        scalars: Scalar inputs of the train graph and their defaults, which evaluation uses.
    """

    metric: str
    target: Callable[[Value, LossOptions], Value]
    terms: Appended
    metric_sum: Callable[[GraphBuilder, Value, Value, LossOptions, Terms], str]
    final: frozenset[str] = frozenset()
    scalars: Mapping[str, float] = field(default_factory=dict)


def class_axis(shape: Shape, options: LossOptions) -> int:
    """The axis of an output's classes, counted from the front."""
    if options.class_axis is not None:
        return options.class_axis % len(shape) if -len(shape) <= options.class_axis < len(shape) else 0
    return 1 if len(shape) == 4 else len(shape) - 1


def class_count(output: Value, target: Value, options: LossOptions) -> int:
    """How many classes an integer target may name; 0 where the target is no class."""
    return int(output.shape[class_axis(output.shape, options)]) if target.dtype == "int64" else 0


def _class_target(output: Value, options: LossOptions) -> Value:
    axis = class_axis(output.shape, options) if len(output.shape) > 1 else 0
    if axis == 0 or not all(isinstance(d, int) for d in output.shape[1:]) or int(output.shape[axis]) < 2:
        raise CompileError(
            f"softmax_cross_entropy: output {output.name!r} has shape {list(output.shape)}, expected [batch, classes], "
            "[batch, positions, classes] or [batch, classes, height, width] with at least 2 classes; for one output "
            "use binary_cross_entropy, for classes along another axis say which (class axis)"
        )
    count = int(output.shape[axis])
    if options.class_weights and len(options.class_weights) != count:
        raise CompileError(f"class weights: {len(options.class_weights)} are given, the model has {count} classes")
    if not all(math.isfinite(w) and w >= 0 for w in options.class_weights):
        raise CompileError(f"class weights: {options.class_weights} must be finite and not below 0")
    return Value(TARGET, "int64", (*output.shape[:axis], *output.shape[axis + 1 :]))


def _binary_target(output: Value, options: LossOptions) -> Value:
    return _sized(output, "binary_cross_entropy")


def _value_target(loss: str) -> Callable[[Value, LossOptions], Value]:
    return lambda output, options: _sized(output, loss)


def _sized(output: Value, loss: str) -> Value:
    if not all(isinstance(d, int) for d in output.shape[1:]):
        raise CompileError(
            f"{loss}: output {output.name!r} has shape {list(output.shape)}, expected known sizes behind the batch; "
            "export the model with fixed sizes"
        )
    return Value(TARGET, "float32", (BATCH,) if output.shape == (BATCH, 1) else output.shape)


def _input_target(output: Value, options: LossOptions) -> Value:
    return Value(TARGET, "float32", output.shape)


def _hinge_target(output: Value, options: LossOptions) -> Value:
    if output.shape in ((BATCH,), (BATCH, 1)):
        return Value(TARGET, "float32", (BATCH,))
    if len(output.shape) != 2 or not isinstance(output.shape[1], int):
        raise CompileError(f"hinge: output {output.name!r} has shape {list(output.shape)}, expected [batch(, classes)]")
    return Value(TARGET, "int64", (BATCH,))


def _softmax_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    axis = class_axis(output.shape, options)
    log_probabilities = b.op("LogSoftmax", output.name, axis=_written(axis, output))
    if options == LossOptions(class_axis=options.class_axis):
        negative_one_hot = _one_hot(b, output, target.name, axis, off=0.0, on=-1.0)
        total = _sum(b, b.op("Mul", negative_one_hot, log_probabilities))
        return Terms(total, b.op("Add", b.op("Exp", log_probabilities), negative_one_hot), 1.0)
    return _weighted_softmax_terms(b, output, target, options, training, log_probabilities)


def _weighted_softmax_terms(
    b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool, log_probabilities: str
) -> Terms:
    """``-sum(q log p)`` with ``q = weight ((1 - s) onehot + s / classes)``; its slope is ``p sum(q) - q``."""
    axis, count = class_axis(output.shape, options), class_count(output, target, options)
    labels, mask, counted = target.name, _mask(b, target, options), ""
    if options.ignore_index is not None:
        named = b.op("Not", b.op("Equal", labels, b.constant(np.array(options.ignore_index, np.int64))))
        mask = b.op("And", mask, named) if mask else named
    if mask:
        labels = b.op("Where", mask, labels, b.constant(np.array(0, np.int64)))
        counted = _counted(b, mask)
    one_hot = _one_hot(b, output, labels, axis, off=0.0, on=1.0)
    if mask:
        one_hot = b.op("Mul", one_hot, b.op("Unsqueeze", b.op("Cast", mask, to=1), b.ints(axis)))
    wanted = one_hot
    if options.label_smoothing and training:
        kept = b.op("Sub", b.scalar(1.0), SMOOTHING)
        spread = b.op("Mul", SMOOTHING, b.scalar(1 / count))
        present = b.op("ReduceSum", one_hot, b.ints(axis), keepdims=1)  # 0 where the label is ignored
        wanted = b.op("Add", b.op("Mul", one_hot, kept), b.op("Mul", present, spread))
    weight = counted
    if options.class_weights:
        shape = [1] * len(output.shape)
        shape[axis] = count
        factors = b.constant(np.array(options.class_weights, np.float32).reshape(shape))
        wanted = b.op("Mul", wanted, factors)
        weight = b.op("Max", _sum(b, b.op("Mul", one_hot, factors)), b.scalar(1e-12))
    total = b.op("Neg", _sum(b, b.op("Mul", wanted, log_probabilities)))
    whole = b.op("ReduceSum", wanted, b.ints(axis), keepdims=1)
    slope = b.op("Sub", b.op("Mul", b.op("Exp", log_probabilities), whole), wanted)
    return Terms(total, slope, 1.0, weight, counted, mask)


def _binary_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    labels, mask = _as_output(b, output, target), _mask(b, target, options)
    losses = b.op("Sub", b.op("Softplus", output.name), b.op("Mul", output.name, labels))
    slope = _kept(b, b.op("Sub", b.op("Sigmoid", output.name), labels), mask)
    return _elementwise(b, _sum(b, _kept(b, losses, mask)), slope, 1.0, mask)


def _squared_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    error, mask = _error(b, output, target, options)
    return _elementwise(b, _sum(b, b.op("Mul", error, error)), error, 2.0, mask)


def _reconstruction_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    return _squared_terms(b, output, normalised_target(b, target), options, training)


def _absolute_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    error, mask = _error(b, output, target, options)
    return _elementwise(b, _sum(b, b.op("Abs", error)), b.op("Sign", error), 1.0, mask)


def _huber_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    """Huber, Robust Estimation of a Location Parameter, 1964: c (e - c / 2) with c = e clipped to +-delta."""
    delta = HUBER_DELTA if training else b.scalar(HUBER_SCALARS[HUBER_DELTA])
    error, mask = _error(b, output, target, options)
    clipped = b.op("Max", b.op("Min", error, delta), b.op("Neg", delta))
    rest = b.op("Sub", error, b.op("Mul", clipped, b.scalar(0.5)))
    return _elementwise(b, _sum(b, b.op("Mul", clipped, rest)), clipped, 1.0, mask)


def _hinge_terms(b: GraphBuilder, output: Value, target: Value, options: LossOptions, training: bool) -> Terms:
    """Sum over classes of max(0, 1 - y z), y = +1 for the example's class and -1 for the others (one versus rest)."""
    signs = _signs(b, output, target)
    margin = b.op("Sub", b.scalar(1.0), b.op("Mul", signs, output.name))
    violated = b.op("Cast", b.op("Greater", margin, b.scalar(0.0)), to=1)
    return Terms(_sum(b, b.op("Relu", margin)), b.op("Mul", violated, signs), -1.0)


def _signs(b: GraphBuilder, output: Value, target: Value) -> str:
    if target.dtype == "int64":
        return _one_hot(b, output, target.name, 1, off=-1.0, on=1.0)
    return _as_output(b, output, target)


def _class_correct(b: GraphBuilder, output: Value, target: Value, options: LossOptions, terms: Terms) -> str:
    best = b.op("ArgMax", output.name, axis=class_axis(output.shape, options), keepdims=0, select_last_index=0)
    correct = b.op("Equal", best, target.name)
    return _count(b, b.op("And", correct, terms.mask) if terms.mask else correct)


def _binary_correct(b: GraphBuilder, output: Value, target: Value, options: LossOptions, terms: Terms) -> str:
    says_one = b.op("Greater", output.name, b.scalar(0.0))
    is_one = b.op("Greater", _as_output(b, output, target), b.scalar(0.5))
    correct = b.op("Equal", says_one, is_one)
    return _count(b, b.op("And", correct, terms.mask) if terms.mask else correct)


def _hinge_correct(b: GraphBuilder, output: Value, target: Value, options: LossOptions, terms: Terms) -> str:
    if target.dtype == "int64":
        return _class_correct(b, output, target, options, terms)
    return _count(b, b.op("Greater", b.op("Mul", output.name, _as_output(b, output, target)), b.scalar(0.0)))


def _total(b: GraphBuilder, output: Value, target: Value, options: LossOptions, terms: Terms) -> str:
    return terms.total


def _absolute_error(b: GraphBuilder, output: Value, target: Value, options: LossOptions, terms: Terms) -> str:
    error, _ = _error(b, output, target, options)
    return _sum(b, b.op("Abs", error))


def _mask(b: GraphBuilder, target: Value, options: LossOptions) -> str:
    return kept_elements(b, target, options.mask) if options.mask else ""


def _kept(b: GraphBuilder, values: str, mask: str) -> str:
    """0 where the mask leaves out, whatever stands there: a padded position may hold no number."""
    return b.op("Where", mask, values, b.scalar(0.0)) if mask else values


def _error(b: GraphBuilder, output: Value, target: Value, options: LossOptions) -> tuple[str, str]:
    mask = _mask(b, target, options)
    return _kept(b, b.op("Sub", output.name, _as_output(b, output, target)), mask), mask


def _elementwise(b: GraphBuilder, total: str, slope: str, factor: float, mask: str) -> Terms:
    counted = _counted(b, mask) if mask else ""
    return Terms(total, slope, factor, counted, counted, mask)


def _counted(b: GraphBuilder, mask: str) -> str:
    """How many elements count, at least 1, so that a batch in which none does has the loss 0."""
    return b.op("Max", _count(b, mask), b.scalar(1.0))


def _as_output(b: GraphBuilder, output: Value, target: Value) -> str:
    """The target in the shape of the output: [batch] -> [batch, 1] where the output has it so."""
    return target.name if len(target.shape) == len(output.shape) else b.op("Unsqueeze", target.name, b.ints(1))


def _one_hot(b: GraphBuilder, output: Value, labels: str, axis: int, *, off: float, on: float) -> str:
    depth = b.constant(np.array(output.shape[axis], dtype=np.int64))
    values = b.constant(np.array([off, on], dtype=np.float32))
    return b.op("OneHot", labels, depth, values, axis=_written(axis, output))


def _written(axis: int, output: Value) -> int:
    return -1 if axis == len(output.shape) - 1 else axis


def _count(b: GraphBuilder, flags: str) -> str:
    return _sum(b, b.op("Cast", flags, to=1))


def _sum(b: GraphBuilder, name: str) -> str:
    return b.op("ReduceSum", name, keepdims=0)


HUBER_SCALARS: Final[Mapping[str, float]] = {HUBER_DELTA: 1.0}

LOSSES: Final[Mapping[str, Loss]] = {
    "softmax_cross_entropy": Loss(
        "accuracy", _class_target, _softmax_terms, _class_correct, frozenset({"Softmax", "LogSoftmax"})
    ),
    "binary_cross_entropy": Loss("accuracy", _binary_target, _binary_terms, _binary_correct, frozenset({"Sigmoid"})),
    "mean_squared_error": Loss("mean_squared_error", _value_target("mean_squared_error"), _squared_terms, _total),
    "mean_absolute_error": Loss("mean_absolute_error", _value_target("mean_absolute_error"), _absolute_terms, _total),
    "huber": Loss("mean_absolute_error", _value_target("huber"), _huber_terms, _absolute_error, scalars=HUBER_SCALARS),
    "hinge": Loss("accuracy", _hinge_target, _hinge_terms, _hinge_correct),
    "reconstruction": Loss("mean_squared_error", _input_target, _reconstruction_terms, _total),
}
