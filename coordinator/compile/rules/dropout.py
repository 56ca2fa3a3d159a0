"""Dropout: in the train graph the stock operator in training mode, elsewhere the identity.

Each node's ratio is multiplied by the scalar input ``dropout_factor``: 1 leaves it as the model has it, 0 switches
dropout off, which a plan may do and which verification does, for a random mask cannot be differenced. The masks come
from each engine's own random numbers (Srivastava et al., Dropout, JMLR 2014; scaled by 1 / (1 - ratio) in training).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError

__all__ = ["DROPOUT_FACTOR", "dropout", "dropout_training"]

DROPOUT_FACTOR: Final = "dropout_factor"
RATIO: Final = 0.5
"""What ONNX's Dropout takes where no ratio is given."""


def dropout_training(b: GraphBuilder, node: Node) -> None:
    """The node in training mode with its mask, whatever mode the exporter wrote.

    A Dropout that is still in an export is meant to drop in training: exporters in inference mode leave it out, or
    write it without ``training_mode``, and ``ratio`` says how much.
    """
    x, ratio = node.inputs[0], (*node.inputs, "")[1]
    if ratio and ratio not in b.constants:
        raise CompileError(f"{node}: its ratio {ratio!r} is computed; export it as a constant")
    share = float(b.constants[ratio].reshape(())) if ratio else RATIO
    if not 0 <= share < 1:
        raise CompileError(f"{node}: ratio {share} is not in [0, 1)")
    dropped = b.op("Mul", b.scalar(share), DROPOUT_FACTOR)
    mask = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1] else f"{node.outputs[0]}~mask"
    on = b.constant(np.array(True))
    b.append(Node("Dropout", (x, dropped, on), (node.outputs[0], mask), node.attributes, node.name))
    b.save(node, mask=mask, ratio=dropped)


def dropout(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = mask dY / (1 - ratio)."""
    scale = b.op("Reciprocal", b.op("Sub", b.scalar(1.0), b.saved(node, "ratio")))
    mask = b.op("Cast", b.saved(node, "mask"), to=1)
    return [b.op("Mul", b.op("Mul", dy[0], scale), mask)]
