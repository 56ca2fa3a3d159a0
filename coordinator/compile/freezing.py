"""What is trained and what stays as it is, by patterns of parameter names.

A frozen parameter becomes a constant of the graphs: no gradient is computed for it or for what lies before the first
trained one, and it does not travel in updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

import onnx

from coordinator.compile.backward import needs_gradient
from coordinator.compile.graph import Model
from coordinator.compile.rules import RULES
from edge_sdk.errors import CompileError

__all__ = ["freeze", "frozen_names"]

SHOWN_MAX: Final = 20


def freeze(model: Model, *, train: Sequence[str] = (), frozen: Sequence[str] = ()) -> Model:
    """``model`` with some of its parameters made constants.

    Args:
        model: An imported model.
        train: Patterns (``fc*``) of the parameters that are trained; none for all. (What looks like a constant is a
            parameter only where its full name is among them, see ``roles``.)
        frozen: Patterns of those that are not, of what ``train`` picks.

    Raises:
        CompileError: A pattern fits no parameter, or nothing is left to train.
    """
    if not train and not frozen:
        return model
    for option, patterns in (("train", train), ("freeze", frozen)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in model.parameters):
                names = ", ".join(list(model.parameters)[:SHOWN_MAX])
                constant = [f"{n!r} is a constant: {r.why}" for n, r in model.roles.items() if fnmatchcase(n, pattern)]
                more = f" ({constant[0]}; train it by its full name)" if constant else ""
                raise CompileError(f"{option} {pattern!r}: fits none of the parameters {names}{more}")
    kept = {name for name in model.parameters if (not train or _fits(name, train)) and not _fits(name, frozen)}
    if not kept - model.buffers - model.fixed:
        raise CompileError(f"train {list(train)}, freeze {list(frozen)}: nothing is left to train")
    return _without_idle_statistics(_restricted(model, kept | model.fixed))


def frozen_names(infer: onnx.GraphProto) -> frozenset[str]:
    """Initializers of an inference graph that stand where parameters stand."""
    arrays = {t.name for t in infer.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims)}
    return frozenset(
        name
        for node in infer.node
        if node.op_type in RULES
        for slot, name in enumerate(node.input)
        if name in arrays and slot in RULES[node.op_type].parameters
    )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _without_idle_statistics(model: Model) -> Model:
    """Buffers of a layer that no gradient passes do not move: constants."""
    needing = needs_gradient(model)
    moving = {name for node in model.nodes if needing.intersection(node.inputs) for name in node.inputs}
    return _restricted(model, [n for n in model.parameters if n not in model.buffers or n in moving])


def _restricted(model: Model, kept: Iterable[str]) -> Model:
    chosen = set(kept)
    return replace(
        model,
        parameters={name: array for name, array in model.parameters.items() if name in chosen},
        buffers=model.buffers & chosen,
        constants={**model.constants, **{n: a for n, a in model.parameters.items() if n not in chosen}},
    )
