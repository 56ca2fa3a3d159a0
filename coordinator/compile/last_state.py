"""The last step of a recurrent layer's output, where a model uses nothing else of it.

PyTorch's models write ``layer(x)[0][:, -1]``, which exporters put as a Gather from all steps. The same values are the
layer's second output, its last state: taken there, neither the other steps nor their gradient of zeros are laid out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import Node, Shape, Value

__all__ = ["take_last_states"]

LAYERS: Final = frozenset({"GRU", "LSTM", "RNN"})
TIME, DIRECTION, BATCH, HIDDEN = range(4)
"""The axes of a layer's first output."""


def take_last_states(
    nodes: Iterable[Node], constants: dict[str, NDArray[Any]], values: dict[str, Value], outputs: Collection[str]
) -> list[Node]:
    """Nodes in which the last step of a forward layer comes from its last state.

    Args:
        nodes: In topological order.
        constants: Arrays by name; gets one more.
        values: Types of all names; gets those of new ones.
        outputs: Names that the model gives away.
    """
    changed = list(nodes)
    places = {name: i for i, node in enumerate(changed) for name in node.inputs}
    uses = Counter(name for node in changed for name in node.inputs) + Counter(outputs)
    for place, node in enumerate(changed):
        if not _goes_forward(node) or not node.outputs[0]:
            continue
        chosen = _last_step(node.outputs[0], changed, places, uses, constants, values)
        if chosen is None:
            continue
        state = (*node.outputs, "")[1] or f"{node.outputs[0]}/last"
        shape = values[node.outputs[0]].shape
        values.setdefault(state, Value(state, "float32", shape[1:]))
        axes = f"{state}/axes"
        constants[axes] = np.zeros(1, np.int64)
        values[axes] = Value(axes, "int64", (1,))
        changed[place] = replace(node, outputs=(node.outputs[0], state, *node.outputs[2:]))
        step = changed[chosen]
        changed[chosen] = Node("Squeeze", (state, axes), step.outputs, {}, step.name)
    return changed


def _goes_forward(node: Node) -> bool:
    a = node.attributes
    lens = len(node.inputs) > 4 and node.inputs[4]
    return node.op in LAYERS and a.get("direction", "forward") == "forward" and not a.get("layout", 0) and not lens


def _last_step(
    name: str,
    nodes: list[Node],
    places: Mapping[str, int],
    uses: Mapping[str, int],
    constants: Mapping[str, NDArray[Any]],
    values: Mapping[str, Value],
) -> int | None:
    """The place of the Gather of the last step, where nothing else uses the layer's output ``name``."""
    axes: tuple[int, ...] = (TIME, DIRECTION, BATCH, HIDDEN)
    while uses[name] == 1 and name in places and name in values:
        node, shape = nodes[places[name]], values[name].shape
        operand = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op == "Gather" and node.inputs[0] == name and operand is not None and len(axes) == len(shape):
            axis = node.attributes.get("axis", 0) % len(axes)
            rest = (*axes[:axis], *axes[axis + 1 :])
            last = operand.ndim == 0 and int(operand) in (-1, int(shape[axis]) - 1 if axes[axis] == TIME else -1)
            return places[name] if axes[axis] == TIME and last and rest == (BATCH, HIDDEN) else None
        moved = _moved(axes, node, shape, values[node.outputs[0]].shape if node.outputs[0] in values else (), constants)
        if moved is None:
            return None
        axes, name = moved, node.outputs[0]
    return None


def _moved(
    axes: tuple[int, ...], node: Node, before: Shape, after: Shape, constants: Mapping[str, NDArray[Any]]
) -> tuple[int, ...] | None:
    """What the axes are after a node that leaves every element what it is; None for any other node."""
    if node.op == "Transpose":
        return tuple(axes[i] for i in node.attributes.get("perm", range(len(axes))[::-1]))
    if node.op == "Identity" or (node.op == "Slice" and before == after and _steps(node, constants) == {1}):
        return axes
    if node.op in ("Squeeze", "Reshape") and DIRECTION in axes:
        place = axes.index(DIRECTION)
        rest = (*axes[:place], *axes[place + 1 :])
        return rest if after == (*before[:place], *before[place + 1 :]) else None
    return None


def _steps(node: Node, constants: Mapping[str, NDArray[Any]]) -> set[int]:
    if len(node.inputs) < 5:
        return {1}
    steps = constants.get(node.inputs[4])
    return set() if steps is None else {int(step) for step in steps}
