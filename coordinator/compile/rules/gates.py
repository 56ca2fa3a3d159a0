"""What LSTM, GRU and RNN have in common: directions, gates, states, and the forms that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.compile.graph import Dim, GraphBuilder, Node
from coordinator.compile.scan import Body
from edge_sdk.errors import CompileError

__all__ = [
    "SLOTS",
    "Gate",
    "Layer",
    "check_form",
    "given",
    "initial_state",
    "inputs_of",
    "layers_of",
    "projected",
    "zero_state",
]

DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Direction -> for each of its layers, whether it goes back in time."""

GATES: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}

ACTIVATIONS: Final = {
    "RNN": (("Tanh",), ("Relu",)),
    "GRU": (("Sigmoid", "Tanh"),),
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
}
"""Operator -> the activations that it may have in each direction, the default first."""

SLOTS: Final = tuple(range(8))
"""The inputs of the three operators: X, W, R, B, sequence_lens, initial_h, and for LSTM initial_c and P."""

X, W, R, B, LENS, H0, C0, PEEPHOLES = SLOTS


@dataclass(frozen=True)
class Gate:
    """The weights of one gate.

    Attributes:
        on_row: On the row of a step, the state beside x beside 1: [hidden, hidden + width + 1], without the last column
            where there is no bias.
        on_h: On the state, [hidden, hidden].
        on_x: On x, [hidden, width].
        bias: [hidden], or "".
        inner: A bias that joins the product with the state before anything else happens to it, or "".
    """

    on_row: str
    on_h: str
    on_x: str
    bias: str
    inner: str = ""


@dataclass(frozen=True)
class Layer:
    """One direction of a node."""

    b: GraphBuilder
    node: Node
    index: int
    count: int
    back: bool
    batch: Dim
    hidden: int
    gates: tuple[Gate, ...]

    @property
    def body(self) -> Body:
        """The body of a new loop."""
        return Body(self.b, self.batch, self.hidden)

    def save(self, **names: str) -> None:
        """Keep names for the step backwards of the same direction."""
        self.b.save(self.node, **{f"{key}{self.index}": name for key, name in names.items()})

    def saved(self, key: str) -> str:
        """A name that was saved."""
        return self.b.saved(self.node, f"{key}{self.index}")

    def part(self, name: str, axis: int = 0) -> str:
        """This direction's part of a tensor that holds all of them along ``axis``."""
        return _part(self.b, name, self.index, self.count, axis)

    def product(self, body: Body, gate: int, row: str) -> str:
        """What the row of a step contributes to a gate."""
        return body.op("Gemm", row, self.gates[gate].on_row, transB=1)

    def inner_product(self, body: Body, gate: int, h: str) -> str:
        """What ``h`` alone contributes to a gate, with the inner bias; the weights are turned round once."""
        weights = self.b.op("Transpose", self.gates[gate].on_h, perm=[1, 0])
        return body.op("Gemm", *filter(None, (h, weights, self.gates[gate].inner)))

    def back_through(self, body: Body, gradients: Sequence[str], addend: str = "") -> str:
        """The gradient of the state from those of the first products with it."""
        for gradient, gate in zip(gradients, self.gates, strict=False):
            addend = body.op("Gemm", *filter(None, (gradient, gate.on_h, addend)))
        return addend

    def rest(self, name: str) -> str:
        """1 minus a value."""
        return self.b.op("Sub", self.b.scalar(1.0), name)


def check_form(b: GraphBuilder, node: Node) -> None:
    """Raise CompileError for a form that has no gradient rule."""
    a = node.attributes
    if a["direction"] not in DIRECTIONS:
        raise CompileError(f"{node}: direction {a['direction']!r} is not one of {', '.join(DIRECTIONS)}")
    if a["layout"]:
        raise CompileError(
            f"{node}: layout={a['layout']} is not run by onnxruntime; export it with layout=0 (time first)"
        )
    if "clip" in a or a.get("input_forget", 0):
        raise CompileError(f"{node}: clip and input_forget have no gradient rule; export the layer without them")
    if given(node, PEEPHOLES):
        raise CompileError(f"{node}: peepholes (input P) have no gradient rule; export the layer without them")
    known, layers = ACTIVATIONS[node.op], len(DIRECTIONS[a["direction"]])
    names = tuple(a.get("activations", ()))[: layers * len(known[0])]  # the default of RNN is for both directions
    if any(names[k : k + len(known[0])] not in known for k in range(0, len(names), len(known[0]))):
        raise CompileError(f"{node}: activations {list(names)} have no gradient rule; it has {list(known[0])}")
    _check_lens(b, node)


def _check_lens(b: GraphBuilder, node: Node) -> None:
    if not given(node, LENS):
        return
    lens, time = b.constants.get(node.inputs[LENS]), b.shape(node.inputs[X])[0]
    if lens is None or not np.all(lens == time):
        raise CompileError(
            f"{node}: sequence_lens {node.inputs[LENS]!r} differ from example to example, which has no gradient rule; "
            "pad to one length, and mask the outputs in the model"
        )


def layers_of(b: GraphBuilder, node: Node) -> list[Layer]:
    """The node's directions; asked again, it makes no second set of nodes."""
    backs = DIRECTIONS[node.attributes["direction"]]
    hidden, batch = int(b.shape(node.inputs[R])[2]), b.shape(node.inputs[X])[1]
    return [
        Layer(b, node, index, len(backs), back, batch, hidden, _gates(b, node, index, len(backs)))
        for index, back in enumerate(backs)
    ]


def _gates(b: GraphBuilder, node: Node, index: int, count: int) -> tuple[Gate, ...]:
    """The gates of one direction: its weights, cut apart."""
    gates = GATES[node.op]
    on_x, on_h = (_part(b, node.inputs[slot], index, count, 0) for slot in (W, R))
    x_parts, h_parts = _cut(b, on_x, gates), _cut(b, on_h, gates)
    if not given(node, B):
        rows = [b.op("Concat", *parts, axis=1) for parts in zip(h_parts, x_parts, strict=True)]
        return tuple(Gate(row, h, x, "") for row, h, x in zip(rows, h_parts, x_parts, strict=True))
    biases = _cut(b, _part(b, node.inputs[B], index, count, 0), 2 * gates)
    outer, inner = list(biases[:gates]), biases[gates:]
    separate = node.op == "GRU" and bool(node.attributes["linear_before_reset"])
    for gate in range(gates - separate):
        outer[gate] = b.op("Add", outer[gate], inner[gate])
    columns = [b.op("Unsqueeze", bias, b.ints(1)) for bias in outer]
    rows = [b.op("Concat", *parts, axis=1) for parts in zip(h_parts, x_parts, columns, strict=True)]
    inners = [""] * (gates - 1) + [inner[-1] if separate else ""]
    return tuple(Gate(*parts) for parts in zip(rows, h_parts, x_parts, outer, inners, strict=True))


def _cut(b: GraphBuilder, name: str, parts: int) -> tuple[str, ...]:
    return b.ops("Split", [name], parts, axis=0, num_outputs=parts) if parts > 1 else (name,)


def inputs_of(b: GraphBuilder, node: Node) -> tuple[str, int]:
    """x, [time, batch, width], beside a last column of ones for the bias; and the number of columns."""
    x = node.inputs[X]
    width = int(b.shape(x)[2])
    if not given(node, B):
        return x, width
    column = b.op("Concat", b.op("Shape", x, start=0, end=2), b.ints(1), axis=0)
    return b.op("Concat", x, b.op("Expand", b.scalar(1.0), column), axis=2), width + 1


def projected(layer: Layer, gate: Gate) -> str:
    """What x contributes to the gate, bias included, at all times, [time, batch, hidden]."""
    b, x = layer.b, layer.node.inputs[X]
    shape = b.op("Concat", b.op("Shape", x, start=0, end=2), b.ints(layer.hidden), axis=0)
    rows = b.op("Reshape", x, b.ints(-1, int(b.shape(x)[2])), allowzero=0)
    return b.op("Reshape", b.op("Gemm", *filter(None, (rows, gate.on_x, gate.bias)), transB=1), shape, allowzero=0)


def initial_state(layer: Layer, slot: int) -> str:
    """The layer's part of an initial state; zeros where the node has none."""
    return layer.part(layer.node.inputs[slot]) if given(layer.node, slot) else zero_state(layer)


def zero_state(layer: Layer) -> str:
    """A state of zeros."""
    b = layer.b
    batch = b.op("Shape", layer.node.inputs[X], start=1, end=2)
    return b.op("Expand", b.scalar(0.0), b.op("Concat", batch, b.ints(layer.hidden), axis=0))


def _part(b: GraphBuilder, name: str, index: int, count: int, axis: int) -> str:
    if count == 1:
        return b.op("Squeeze", name, b.ints(axis))
    return b.op("Gather", name, b.constant(np.array(index, np.int64)), axis=axis)


def given(node: Node, slot: int) -> bool:
    """Whether the node has this input."""
    return slot < len(node.inputs) and bool(node.inputs[slot])
