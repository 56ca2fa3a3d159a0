"""Losses: what is appended behind the model's output for training and for evaluation.

Each loss is computed from the model's raw output (logits, scores, values), in the form that neither overflows nor
loses digits: softmax cross-entropy through LogSoftmax, binary cross-entropy as ``softplus(z) - z y``.

The training loss is ``total / size(target)``: the mean over the examples, and over the elements of an output that has
several (so that the mean squared error is the usual one). ``factor * slope`` is the derivative of ``total``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.compile.graph import BATCH, GraphBuilder, Value
from edge_sdk.errors import CompileError

__all__ = ["LOSSES", "Loss", "Terms"]

TARGET: Final = "target"


@dataclass(frozen=True, slots=True)
class Terms:
    """Names of the loss's parts in the graph.

    Attributes:
        total: float32 scalar, the loss summed over the batch and over the elements of an output.
        slope: In the output's shape; ``factor * slope`` is the derivative of ``total``.
        factor: See ``slope``; kept apart so that it costs no node.
    """

    total: str
    slope: str
    factor: float


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss.

    Attributes:
        metric: What ``evaluate`` reports beside the loss.
        target: The form of the labels for a model output; raises CompileError where they do not fit.
        terms: ``(builder, output, target) -> Terms``.
        metric_sum: ``(builder, output, target, terms) -> name`` of the metric summed over the batch.
        final: Operator that turns this loss's logits into probabilities; where a model ends in it, the loss is
            computed on its input.
    """

    metric: str
    target: Callable[[Value], Value]
    terms: Callable[[GraphBuilder, Value, Value], Terms]
    metric_sum: Callable[[GraphBuilder, Value, Value, Terms], str]
    final: frozenset[str] = frozenset()


def _class_target(output: Value) -> Value:
    if len(output.shape) != 2 or not isinstance(output.shape[1], int) or output.shape[1] < 2:
        raise CompileError(
            f"softmax_cross_entropy: output {output.name!r} has shape {list(output.shape)}, expected [batch, classes] "
            "with at least 2 classes; for one output use binary_cross_entropy"
        )
    return Value(TARGET, "int64", (BATCH,))


def _binary_target(output: Value) -> Value:
    if output.shape not in ((BATCH,), (BATCH, 1)):
        raise CompileError(
            f"binary_cross_entropy: output {output.name!r} has shape {list(output.shape)}, expected [batch] or "
            "[batch, 1]; for several classes use softmax_cross_entropy"
        )
    return Value(TARGET, "float32", (BATCH,))


def _value_target(output: Value) -> Value:
    if not all(isinstance(d, int) for d in output.shape[1:]):
        raise CompileError(
            f"mean_squared_error: output {output.name!r} has shape {list(output.shape)}, expected known sizes behind "
            "the batch; export the model with fixed sizes"
        )
    return Value(TARGET, "float32", (BATCH,) if output.shape == (BATCH, 1) else output.shape)


def _hinge_target(output: Value) -> Value:
    if output.shape in ((BATCH,), (BATCH, 1)):
        return Value(TARGET, "float32", (BATCH,))
    if len(output.shape) != 2 or not isinstance(output.shape[1], int):
        raise CompileError(f"hinge: output {output.name!r} has shape {list(output.shape)}, expected [batch(, classes)]")
    return Value(TARGET, "int64", (BATCH,))


def _softmax_terms(b: GraphBuilder, output: Value, target: Value) -> Terms:
    log_probabilities = b.op("LogSoftmax", output.name, axis=-1)
    negative_one_hot = _one_hot(b, output, target, off=0.0, on=-1.0)
    total = _sum(b, b.op("Mul", negative_one_hot, log_probabilities))
    return Terms(total, b.op("Add", b.op("Exp", log_probabilities), negative_one_hot), 1.0)


def _binary_terms(b: GraphBuilder, output: Value, target: Value) -> Terms:
    labels = _as_output(b, output, target)
    total = _sum(b, b.op("Sub", b.op("Softplus", output.name), b.op("Mul", output.name, labels)))
    return Terms(total, b.op("Sub", b.op("Sigmoid", output.name), labels), 1.0)


def _squared_terms(b: GraphBuilder, output: Value, target: Value) -> Terms:
    error = b.op("Sub", output.name, _as_output(b, output, target))
    return Terms(_sum(b, b.op("Mul", error, error)), error, 2.0)


def _hinge_terms(b: GraphBuilder, output: Value, target: Value) -> Terms:
    """Sum over classes of max(0, 1 - y z), y = +1 for the example's class and -1 for the others (one versus rest)."""
    signs = _signs(b, output, target)
    margin = b.op("Sub", b.scalar(1.0), b.op("Mul", signs, output.name))
    violated = b.op("Cast", b.op("Greater", margin, b.scalar(0.0)), to=1)
    return Terms(_sum(b, b.op("Relu", margin)), b.op("Mul", violated, signs), -1.0)


def _signs(b: GraphBuilder, output: Value, target: Value) -> str:
    if target.dtype == "int64":
        return _one_hot(b, output, target, off=-1.0, on=1.0)
    return _as_output(b, output, target)


def _class_correct(b: GraphBuilder, output: Value, target: Value, terms: Terms) -> str:
    best = b.op("ArgMax", output.name, axis=1, keepdims=0, select_last_index=0)
    return _count(b, b.op("Equal", best, target.name))


def _binary_correct(b: GraphBuilder, output: Value, target: Value, terms: Terms) -> str:
    says_one = b.op("Greater", output.name, b.scalar(0.0))
    is_one = b.op("Greater", _as_output(b, output, target), b.scalar(0.5))
    return _count(b, b.op("Equal", says_one, is_one))


def _hinge_correct(b: GraphBuilder, output: Value, target: Value, terms: Terms) -> str:
    if target.dtype == "int64":
        return _class_correct(b, output, target, terms)
    return _count(b, b.op("Greater", b.op("Mul", output.name, _as_output(b, output, target)), b.scalar(0.0)))


def _squared_error(b: GraphBuilder, output: Value, target: Value, terms: Terms) -> str:
    return terms.total


def _as_output(b: GraphBuilder, output: Value, target: Value) -> str:
    """The target in the shape of the output: [batch] -> [batch, 1] where the output has it so."""
    return target.name if len(target.shape) == len(output.shape) else b.op("Unsqueeze", target.name, b.ints(1))


def _one_hot(b: GraphBuilder, output: Value, target: Value, *, off: float, on: float) -> str:
    depth = b.constant(np.array(output.shape[1], dtype=np.int64))
    return b.op("OneHot", target.name, depth, b.constant(np.array([off, on], dtype=np.float32)), axis=-1)


def _count(b: GraphBuilder, flags: str) -> str:
    return _sum(b, b.op("Cast", flags, to=1))


def _sum(b: GraphBuilder, name: str) -> str:
    return b.op("ReduceSum", name, keepdims=0)


LOSSES: Final[Mapping[str, Loss]] = {
    "softmax_cross_entropy": Loss(
        "accuracy", _class_target, _softmax_terms, _class_correct, frozenset({"Softmax", "LogSoftmax"})
    ),
    "binary_cross_entropy": Loss("accuracy", _binary_target, _binary_terms, _binary_correct, frozenset({"Sigmoid"})),
    "mean_squared_error": Loss("mean_squared_error", _value_target, _squared_terms, _squared_error),
    "hinge": Loss("accuracy", _hinge_target, _hinge_terms, _hinge_correct),
}
