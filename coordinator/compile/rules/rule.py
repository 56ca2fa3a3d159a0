"""What the compiler knows about one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coordinator.compile.graph import GraphBuilder, Node, Product

__all__ = ["Gradient", "Gradients", "Rule", "Wanted"]

Gradient: TypeAlias = str | Product
"""The name of a gradient in the graph, or a product that is not emitted yet."""

Gradients: TypeAlias = Sequence[Gradient | None]
"""One for each input of the node; None where there is none or nobody wants it."""

Wanted: TypeAlias = Sequence[bool]
"""For each input of the node, whether its gradient is needed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator is differentiated.

    Attributes:
        gradient: ``(builder, node, dy, wanted) -> gradients``: appends the nodes that compute the gradients with
            respect to the node's inputs from ``dy``, the gradients with respect to its outputs (``""`` where an
            output has none).
        parameters: Input slots in which a float initializer is a parameter of the model.
        learned: Slots in which it is one unless another operand comes straight from the inputs: a mean and a deviation
            that inputs are normalised with are constants.
        buffers: Those of ``parameters`` that are averaged instead of trained.
        training: Appends the node's form in the training graph, where that is another one than in the inference
            graph; it must give outputs of the same names, may ``save`` names for ``gradient`` and enter the new values
            of buffers in the builder's ``buffers``.
    """

    gradient: Callable[[GraphBuilder, Node, Sequence[str], Wanted], Gradients]
    parameters: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    training: Callable[[GraphBuilder, Node], None] | None = None
    learned: tuple[int, ...] = ()
