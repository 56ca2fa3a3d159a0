"""Which positions of padded sequences count: an input of the program says so, 1 for one that counts and 0 for padding.

It is an input of the model (an attention mask, say) or one that only the loss sees. Its shape is the beginning of the
target's, ``[batch, positions]`` for a target ``[batch, positions, ...]``, with any number of dimensions of 1 behind it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from coordinator.compile.graph import GraphBuilder, Model, Value
from coordinator.compile.import_ import RESERVED, RESERVED_PREFIXES
from edge_sdk.errors import CompileError

__all__ = ["kept_elements", "with_mask"]


def with_mask(model: Model, target: Value, name: str, *, classes: bool) -> Model:
    """The model with the mask among its inputs, bool where it is a new one.

    Args:
        model: The imported model.
        target: What the loss is computed against.
        name: Of the mask.
        classes: Whether the target names classes; a new mask then has one element for each of them, else one for each
            position along dimension 1.

    Raises:
        CompileError: The target has no positions, or the input of this name has another shape.
    """
    if len(target.shape) < 2:
        raise CompileError(
            f"mask {name!r}: there is one label or value for each example (target {list(target.shape)}), and nothing "
            "in it to leave out; a mask goes with an output of positions, [batch, positions, ...]"
        )
    given = next((value for value in model.inputs if value.name == name), None)
    if given is None:
        taken = {*model.values, *model.parameters, *model.constants, *(o for n in model.nodes for o in n.outputs)}
        if name in taken or name in RESERVED or name.startswith(RESERVED_PREFIXES):
            raise CompileError(
                f"mask {name!r}: the training graph has a tensor of this name already, which is no input; name an "
                f"input ({', '.join(value.name for value in model.inputs)}), or use a new name"
            )
        given = Value(name, "bool", target.shape if classes else target.shape[:2])
        return replace(model, inputs=(*model.inputs, given), values={**model.values, name: given})
    if _positions(given) != target.shape[: len(_positions(given))] or len(_positions(given)) < 2:
        raise CompileError(
            f"mask {name!r}: the input has shape {list(given.shape)}, expected the beginning of the target's shape "
            f"{list(target.shape)}, such as {list(target.shape[:2])}; use a new name for a mask that only the loss sees"
        )
    return model


def kept_elements(b: GraphBuilder, target: Value, name: str) -> str:
    """The name of a bool tensor in the target's shape: True where the mask says that the element counts."""
    value = next(value for value in b.model.inputs if value.name == name)
    mask = name
    if value.dtype not in ("bool", "float32"):
        mask = b.op("Cast", mask, to=1)
    if value.dtype != "bool":
        mask = b.op("Greater", mask, b.scalar(0.0))
    shape = _positions(value)
    if value.shape != target.shape:
        rest = target.shape[len(shape) :]
        mask = b.op("Reshape", mask, b.ints(-1, *map(int, shape[1:]), *(1 for _ in rest)), allowzero=0)
        if math.prod(int(d) for d in rest) > 1:
            ones = b.constant(np.ones((1, *(1 for _ in shape[1:]), *map(int, rest)), np.bool_))
            mask = b.op("And", mask, ones)
    return mask


def _positions(value: Value) -> tuple[int | str, ...]:
    """The shape without dimensions of 1 at its end; those of a batch and of positions are never cut."""
    shape = value.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
