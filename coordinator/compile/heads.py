"""Where a model's output is a probability, the score behind it, for losses that are computed on scores.

A final Softmax, LogSoftmax or Sigmoid is taken off (:func:`logits_of`). Probabilities that come about in another way
(one-versus-rest scores divided by their sum) are recognised by their values; their logarithm is a score with exactly
these probabilities (:func:`with_scores`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.batch_size import RunError
from coordinator.compile.graph import Model, Node, Shape, Value
from coordinator.compile.losses import Loss, LossOptions, class_axis
from coordinator.compile.oracle import Run

__all__ = ["are_probabilities", "logits_of", "with_scores"]

EXAMPLES: Final = 8
TINY: Final = 1e-30
TOLERANCE: Final = 1e-4


def logits_of(model: Model, output: Value, loss: Loss, options: LossOptions) -> Value:
    """The value that the loss is computed on: ``output``, or the input of the operator that made it probabilities."""
    name = output.name
    for node in reversed(model.nodes):
        if name in node.outputs and node.op == "Identity":
            name = node.inputs[0]
        elif name in node.outputs and node.op in loss.final and _over_classes(node, output.shape, options):
            return Value(node.inputs[0], output.dtype, output.shape)
    return output


def are_probabilities(model: Model, output: Value, options: LossOptions, infer: Run) -> bool:
    """Whether ``output`` sums to 1 over the classes on random examples.

    Args:
        model: The imported model.
        output: One of its outputs.
        options: Says where the classes are.
        infer: Runs the inference graph.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    feeds: dict[str, NDArray[np.generic]] = dict(model.parameters)
    for entry in model.inputs:
        shape = (EXAMPLES, *(int(d) for d in entry.shape[1:]))
        values = rng.standard_normal(shape) if entry.dtype == "float32" else rng.integers(0, 2, shape)
        feeds[entry.name] = values.astype(entry.dtype)
    try:
        found = infer(feeds)[output.name]
    except RunError:  # verification says what is wrong with the model
        return False
    sums = found.sum(axis=class_axis(output.shape, options))
    return bool(found.min() >= 0 and np.all(np.abs(sums - 1) <= TOLERANCE))


def with_scores(model: Model, output: Value) -> tuple[Model, Value]:
    """``model`` with ``log(max(p, tiny))`` behind its output, and that value."""
    floor, raised, score = (f"{output.name}/{part}" for part in ("floor", "raised", "score"))
    values = {name: Value(name, output.dtype, output.shape) for name in (raised, score)}
    tiny = np.array(TINY, np.float32)
    longer = replace(
        model,
        nodes=(*model.nodes, Node("Max", (output.name, floor), (raised,)), Node("Log", (raised,), (score,))),
        constants={**model.constants, floor: tiny},
        values={**model.values, **values, floor: Value(floor, "float32", ())},
    )
    return longer, values[score]


def _over_classes(node: Node, shape: Shape, options: LossOptions) -> bool:
    return node.op == "Sigmoid" or node.attributes["axis"] % len(shape) == class_axis(shape, options)
