"""A Relu before a MaxPool, moved behind it: the maximum of the parts above zero is the part above zero of the maximum.

The same values, and the same gradients, on a tensor of a window's fraction of the size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from coordinator.compile.graph import Node, Value

__all__ = ["pool_first"]


def pool_first(nodes: Iterable[Node], values: dict[str, Value], outputs: Collection[str]) -> list[Node]:
    """Nodes in which a Relu that only a MaxPool uses comes after it.

    Args:
        nodes: In topological order.
        values: Types of all names; gets those of new ones.
        outputs: Names that the model gives away.
    """
    moved = list(nodes)
    uses = Counter(name for node in moved for name in node.inputs) + Counter(outputs)
    relus = {node.outputs[0]: place for place, node in enumerate(moved) if node.op == "Relu"}
    for place, pool in enumerate(moved):
        if pool.op != "MaxPool" or any(pool.outputs[1:]) or uses[pool.inputs[0]] != 1 or pool.inputs[0] not in relus:
            continue
        relu, pooled = moved[relus[pool.inputs[0]]], pool.outputs[0]
        if pooled not in values:
            continue
        greatest = f"{pooled}/greatest"
        values[greatest] = replace(values[pooled], name=greatest)
        moved[relus[pool.inputs[0]]] = replace(pool, inputs=relu.inputs, outputs=(greatest,))
        moved[place] = replace(relu, inputs=(greatest,), outputs=(pooled,))
    return moved
