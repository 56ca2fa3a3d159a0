"""Gradients of LSTM, GRU and RNN: a loop over time forwards, and one backwards.

Stock operators give the hidden states only, so the training form is a Scan that also gives the gates. Inside of a loop
is what depends on the step before, and nothing else: one Gemm for each gate, which its activation fuses with (one for
all gates would be split again in each step: slower from batches of 32 on), and a handful of products. The projection
of the inputs, the factors that a step backwards multiplies with, and the gradients of all weights are computed for all
times at once (Werbos, Backpropagation through time, Proceedings of the IEEE 78(10), 1990). A bias is the weight of one
more input that is always 1.

With h and c the states before a step, and gate orders as in ONNX:

    RNN   h' = f(Wx + Rh)
    GRU   z, r = sigmoid(Wx + Rh);  n = tanh(Wx + R(rh)), or tanh(Wx + r(Rh + b)) with linear_before_reset;
          h' = n + z (h - n)
    LSTM  i, o, f = sigmoid(Wx + Rh);  g = tanh(Wx + Rh);  c' = fc + ig;  h' = o tanh(c')

(Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.compile.graph import Dim, GraphBuilder, Node, Product
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.scan import Body
from edge_sdk.errors import CompileError

__all__ = ["gru", "gru_training", "lstm", "lstm_training", "rnn", "rnn_training"]

DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Direction -> for each of its layers, whether it goes back in time."""

GATES: Final = {"RNN": 1, "GRU": 3, "LSTM": 4}

ACTIVATIONS: Final = {
    "RNN": (("Tanh",), ("Relu",)),
    "GRU": (("Sigmoid", "Tanh"),),
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
}
"""Operator -> the activations that it may have in each direction, the default first."""

X, W, R, B, LENS, H0, C0, PEEPHOLES = range(8)
"""Slots of the three operators' inputs."""


@dataclass(frozen=True)
class _Gate:
    """The weights of one gate.

    Attributes:
        on_x: On x, [hidden, width].
        on_rows: The same and the bias, on rows that end in 1; ``on_x`` where there is no bias.
        on_h: On the state, [hidden, hidden].
        inner: A bias that joins the product with the state before anything else happens to it, or "".
    """

    on_x: str
    on_rows: str
    on_h: str
    inner: str = ""


@dataclass(frozen=True)
class _Layer:
    """One direction of a node."""

    b: GraphBuilder
    node: Node
    index: int
    count: int
    back: bool
    batch: Dim
    hidden: int
    gates: tuple[_Gate, ...]

    @property
    def body(self) -> Body:
        """The body of a new loop."""
        return Body(self.b, (self.batch, self.hidden))

    def save(self, **names: str) -> None:
        """Keep names for the step backwards of the same direction."""
        self.b.save(self.node, **{f"{key}{self.index}": name for key, name in names.items()})

    def saved(self, key: str) -> str:
        """A name that was saved."""
        return self.b.saved(self.node, f"{key}{self.index}")

    def part(self, name: str, axis: int = 0) -> str:
        """This direction's part of a tensor that holds all of them along ``axis``."""
        return _part(self.b, name, self.index, self.count, axis)

    def product(self, body: Body, gate: int, h: str, addend: str = "") -> str:
        """What ``h`` contributes to a gate; the weights are turned round once, not in each step."""
        weights = self.b.op("Transpose", self.gates[gate].on_h, perm=[1, 0])
        return body.op("Gemm", *filter(None, (h, weights, addend)))

    def back_through(self, body: Body, gradients: Sequence[str], addend: str = "") -> str:
        """The gradient of the state from those of the first products with it."""
        for gradient, gate in zip(gradients, self.gates, strict=False):
            addend = body.op("Gemm", *filter(None, (gradient, gate.on_h, addend)))
        return addend

    def rest(self, name: str) -> str:
        """1 minus a value."""
        return self.b.op("Sub", self.b.scalar(1.0), name)


_Forward = Callable[[_Layer, Sequence[str], Sequence[str]], tuple[str, tuple[str, ...]]]
"""(layer, what x contributes to each gate, initial states) -> all hidden states, last states; and it saves."""

_Backward = Callable[[_Layer, str, Sequence[str]], tuple[list[tuple[str, str, str]], tuple[str, ...]]]
"""(layer, dY or "", gradients of the last states) -> for each gate, all times stacked, the gradient of what x
contributes, that of the product with the state, and the state in it; and the gradients of the initial states."""


def rnn_training(b: GraphBuilder, node: Node) -> None:
    """RNN as a Scan."""
    _training(b, node, _rnn_forward)


def rnn(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dW, dR, dB, dInitial_h."""
    return _gradients(b, node, dy, wanted, _rnn_backward)


def gru_training(b: GraphBuilder, node: Node) -> None:
    """GRU as a Scan."""
    _training(b, node, _gru_forward)


def gru(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dW, dR, dB, dInitial_h."""
    return _gradients(b, node, dy, wanted, _gru_backward)


def lstm_training(b: GraphBuilder, node: Node) -> None:
    """LSTM as a Scan."""
    _training(b, node, _lstm_forward)


def lstm(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dW, dR, dB, dInitial_h, dInitial_c."""
    return _gradients(b, node, dy, wanted, _lstm_backward)


def _rnn_forward(layer: _Layer, from_x: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    h = body.state(initial[0])
    new = body.op(_activation(layer), layer.product(body, 0, h, body.element(from_x[0])))
    last, (every, before) = body.finish([new], [new, h], back=layer.back)
    layer.save(every=every, before=before)
    return every, last


def _rnn_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    b, body, every = layer.b, layer.body, layer.saved("every")
    slope = b.op("Sign", every) if _activation(layer) == "Relu" else layer.rest(b.op("Mul", every, every))
    dh = _with_output(body, body.state(final[0]), dy)
    dz = body.op("Mul", dh, body.element(slope))
    first, (stacked,) = body.finish([layer.back_through(body, [dz])], [dz], back=not layer.back)
    return [(stacked, stacked, layer.saved("before"))], first


def _activation(layer: _Layer) -> str:
    names = layer.node.attributes.get("activations") or ["Tanh"] * layer.count
    return str(names[layer.index])


def _lstm_forward(layer: _Layer, from_x: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    h, c = body.state(initial[0]), body.state(initial[1])
    pre = [layer.product(body, gate, h, body.element(p)) for gate, p in enumerate(from_x)]
    i, o, f, g = (body.op(op, z) for op, z in zip(("Sigmoid", "Sigmoid", "Sigmoid", "Tanh"), pre, strict=True))
    fc, ig = body.op("Mul", f, c), body.op("Mul", i, g)
    cell = body.op("Add", fc, ig)
    tanh = body.op("Tanh", cell)
    new = body.op("Mul", o, tanh)
    kept = {"before": h, "i": i, "o": o, "f": f, "g": g, "fc": fc, "ig": ig, "tanh": tanh}
    last, (every, *stacked) = body.finish([new, cell], [new, *kept.values()], back=layer.back)
    layer.save(every=every, **dict(zip(kept, stacked, strict=True)))
    return every, last


def _lstm_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    b, body, every = layer.b, layer.body, layer.saved("every")
    i, o, f, g, fc, ig, tanh = (layer.saved(key) for key in ("i", "o", "f", "g", "fc", "ig", "tanh"))
    opening = b.op("Sub", o, b.op("Mul", every, tanh))  # dh'/dc' = o (1 - tanh(c')^2), and h' = o tanh(c')
    of_i, of_o, of_f = (b.op("Mul", part, layer.rest(gate)) for part, gate in ((ig, i), (every, o), (fc, f)))
    of_g = b.op("Sub", i, b.op("Mul", ig, g))  # i (1 - g^2)
    dh, dc = body.state(final[0]), body.state(final[1])
    dh = _with_output(body, dh, dy)
    dc = body.op("Add", dc, body.op("Mul", dh, body.element(opening)))
    d = [body.op("Mul", v, body.element(slope)) for v, slope in ((dc, of_i), (dh, of_o), (dc, of_f), (dc, of_g))]
    earlier = [layer.back_through(body, d), body.op("Mul", dc, body.element(f))]
    first, stacked = body.finish(earlier, d, back=not layer.back)
    return [(each, each, layer.saved("before")) for each in stacked], first


def _gru_forward(layer: _Layer, from_x: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    h = body.state(initial[0])
    z, r = (body.op("Sigmoid", layer.product(body, gate, h, body.element(from_x[gate]))) for gate in (0, 1))
    if layer.node.attributes["linear_before_reset"]:
        reset = body.op("Mul", r, layer.product(body, 2, h, layer.gates[2].inner))
        new = body.op("Tanh", body.op("Add", body.element(from_x[2]), reset))
    else:
        reset = body.op("Mul", r, h)
        new = body.op("Tanh", layer.product(body, 2, reset, body.element(from_x[2])))
    held = body.op("Mul", z, body.op("Sub", h, new))
    output = body.op("Add", new, held)
    kept = {"before": h, "z": z, "r": r, "new": new, "held": held, "reset": reset}
    last, (every, *stacked) = body.finish([output], [output, *kept.values()], back=layer.back)
    layer.save(**dict(zip(kept, stacked, strict=True)))
    return every, last


def _gru_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    b, body = layer.b, layer.body
    before, z, r, new, held, reset = (layer.saved(key) for key in ("before", "z", "r", "new", "held", "reset"))
    of_z = b.op("Mul", held, layer.rest(z))
    of_new = b.op("Mul", layer.rest(z), layer.rest(b.op("Mul", new, new)))
    of_reset = b.op("Mul", reset, layer.rest(r))
    dh = _with_output(body, body.state(final[0]), dy)
    d_z, d_new = body.op("Mul", dh, body.element(of_z)), body.op("Mul", dh, body.element(of_new))
    passed = body.op("Mul", dh, body.element(z))
    if layer.node.attributes["linear_before_reset"]:
        d_r = body.op("Mul", d_new, body.element(of_reset))
        d_product = body.op("Mul", d_new, body.element(r))
        earlier = layer.back_through(body, [d_z, d_r, d_product], passed)
        first, (s_z, s_r, s_new, s_product) = body.finish([earlier], [d_z, d_r, d_new, d_product], back=not layer.back)
        return [(s_z, s_z, before), (s_r, s_r, before), (s_new, s_product, before)], first
    d_reset = body.op("Gemm", d_new, layer.gates[2].on_h)
    d_r = body.op("Mul", d_reset, body.element(of_reset))
    passed = body.op("Add", passed, body.op("Mul", d_reset, body.element(r)))
    earlier = layer.back_through(body, [d_z, d_r], passed)
    first, (s_z, s_r, s_new) = body.finish([earlier], [d_z, d_r, d_new], back=not layer.back)
    return [(s_z, s_z, before), (s_r, s_r, before), (s_new, s_new, reset)], first


def _with_output(body: Body, dh: str, dy: str) -> str:
    return body.op("Add", dh, body.element(dy)) if dy else dh


def _training(b: GraphBuilder, node: Node, forward: _Forward) -> None:
    """The node's outputs from the loops of its layers."""
    _check(b, node)
    sequences, finals = [], []
    for layer in _layers(b, node):
        projected = [_projected(b, node, gate, layer.hidden) for gate in layer.gates]
        initial = [_initial(layer, slot) for slot in ((H0, C0) if node.op == "LSTM" else (H0,))]
        every, last = forward(layer, projected, initial)
        sequences.append(every)
        finals.append(last)
    stacks = [(tuple(sequences), 1), *((parts, 0) for parts in zip(*finals, strict=True))]
    for name, (parts, axis) in zip(node.outputs, stacks, strict=False):
        if not name:
            continue
        axes = b.ints(axis)
        if len(parts) == 1:
            b.append(Node("Unsqueeze", (parts[0], axes), (name,)))
        else:
            b.append(Node("Concat", tuple(b.op("Unsqueeze", p, axes) for p in parts), (name,), {"axis": axis}))


def _gradients(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted, backward: _Backward) -> Gradients:
    d_y, *d_finals = (*dy, "", "")[: 3 if node.op == "LSTM" else 2]
    d_rows: Gradient | None = None
    slots: dict[int, list[str]] = {slot: [] for slot in (W, R, B, H0, C0)}
    for layer in _layers(b, node):
        final = [layer.part(d) if d else _zeros(layer) for d in d_finals]
        products, first = backward(layer, layer.part(d_y, axis=1) if d_y else "", final)
        rows = b.ints(-1, layer.hidden)
        flat = [tuple(b.op("Reshape", name, rows, allowzero=0) for name in names) for names in products]
        for slot, gradient in _weight_gradients(layer, flat).items():
            slots[slot].append(gradient)
        for slot, gradient in zip((H0, C0), first, strict=False):
            slots[slot].append(gradient)
        for (d, *_), gate in zip(flat, layer.gates, strict=True):
            share = Product(d, gate.on_x, False, False)
            d_rows = share if d_rows is None else b.add(d_rows, share) if wanted[X] else share
    gradients: list[Gradient | None] = [None] * len(node.inputs)
    if wanted[X] and d_rows is not None:
        gradients[X] = b.like(b.materialise(d_rows), node.inputs[X])
    for slot, parts in slots.items():
        if slot < len(node.inputs) and wanted[slot]:
            lifted = [b.op("Unsqueeze", part, b.ints(0)) for part in parts]
            gradients[slot] = lifted[0] if len(lifted) == 1 else b.op("Concat", *lifted, axis=0)
    return gradients


def _weight_gradients(layer: _Layer, products: Sequence[tuple[str, ...]]) -> dict[int, str]:
    """Gradients of the layer's part of W, R and B; those that nobody wants are cut when the graph is finished."""
    b, node, rows = layer.b, layer.node, _rows(layer.b, layer.node)
    on_rows = _joined(b, [b.op("Gemm", d, rows, transA=1) for d, _, _ in products])
    on_h = _joined(b, [b.op("Gemm", d, h, transA=1) for _, d, h in products])
    if not _given(node, B):
        return {W: on_rows, R: on_h}
    width = int(b.shape(node.inputs[W])[2])
    on_x, column = b.ops("Split", [on_rows, b.ints(width, 1)], 2, axis=1)
    bias = b.op("Squeeze", column, b.ints(1))
    inner = bias
    if layer.gates[-1].inner:
        others = b.op("Slice", bias, b.ints(0), b.ints(2 * layer.hidden), b.ints(0))
        inner = b.op("Concat", others, b.op("ReduceSum", products[-1][1], b.ints(0), keepdims=0), axis=0)
    return {W: on_x, R: on_h, B: b.op("Concat", bias, inner, axis=0)}


def _layers(b: GraphBuilder, node: Node) -> list[_Layer]:
    """The node's directions; asked again, it makes no second set of nodes."""
    backs = DIRECTIONS[node.attributes["direction"]]
    hidden, batch = int(b.shape(node.inputs[R])[2]), b.shape(node.inputs[X])[1]
    return [
        _Layer(b, node, index, len(backs), back, batch, hidden, _gates(b, node, index, len(backs)))
        for index, back in enumerate(backs)
    ]


def _gates(b: GraphBuilder, node: Node, index: int, count: int) -> tuple[_Gate, ...]:
    """The gates of one direction: its weights, cut apart."""
    gates = GATES[node.op]
    on_x, on_h = (_part(b, node.inputs[slot], index, count, 0) for slot in (W, R))
    x_parts, h_parts = _cut(b, on_x, gates), _cut(b, on_h, gates)
    if not _given(node, B):
        return tuple(_Gate(x, x, h) for x, h in zip(x_parts, h_parts, strict=True))
    biases = _cut(b, _part(b, node.inputs[B], index, count, 0), 2 * gates)
    outer, inner = list(biases[:gates]), biases[gates:]
    separate = node.op == "GRU" and bool(node.attributes["linear_before_reset"])
    for gate in range(gates - separate):
        outer[gate] = b.op("Add", outer[gate], inner[gate])
    columns = [b.op("Unsqueeze", bias, b.ints(1)) for bias in outer]
    rows = [b.op("Concat", x, column, axis=1) for x, column in zip(x_parts, columns, strict=True)]
    last = inner[-1] if separate else ""
    return tuple(
        _Gate(x, row, h, last if gate == gates - 1 else "")
        for gate, (x, row, h) in enumerate(zip(x_parts, rows, h_parts, strict=True))
    )


def _cut(b: GraphBuilder, name: str, parts: int) -> tuple[str, ...]:
    return b.ops("Split", [name], parts, axis=0, num_outputs=parts) if parts > 1 else (name,)


def _rows(b: GraphBuilder, node: Node) -> str:
    """x as a matrix with a row for each time and example, a last column of ones for the bias."""
    x = node.inputs[X]
    rows = b.op("Reshape", x, b.ints(-1, int(b.shape(x)[2])), allowzero=0)
    if not _given(node, B):
        return rows
    column = b.op("Concat", b.op("Shape", rows, start=0, end=1), b.ints(1), axis=0)
    return b.op("Concat", rows, b.op("Expand", b.scalar(1.0), column), axis=1)


def _projected(b: GraphBuilder, node: Node, gate: _Gate, hidden: int) -> str:
    """What x contributes to the gate, bias included, [time, batch, hidden]."""
    shape = b.op("Concat", b.op("Shape", node.inputs[X], start=0, end=2), b.ints(hidden), axis=0)
    return b.op("Reshape", b.op("Gemm", _rows(b, node), gate.on_rows, transB=1), shape, allowzero=0)


def _initial(layer: _Layer, slot: int) -> str:
    return layer.part(layer.node.inputs[slot]) if _given(layer.node, slot) else _zeros(layer)


def _zeros(layer: _Layer) -> str:
    """A state of zeros."""
    b = layer.b
    batch = b.op("Shape", layer.node.inputs[X], start=1, end=2)
    return b.op("Expand", b.scalar(0.0), b.op("Concat", batch, b.ints(layer.hidden), axis=0))


def _part(b: GraphBuilder, name: str, index: int, count: int, axis: int) -> str:
    if count == 1:
        return b.op("Squeeze", name, b.ints(axis))
    return b.op("Gather", name, b.constant(np.array(index, np.int64)), axis=axis)


def _joined(b: GraphBuilder, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=0)


def _given(node: Node, slot: int) -> bool:
    return slot < len(node.inputs) and bool(node.inputs[slot])


def _check(b: GraphBuilder, node: Node) -> None:
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
    if _given(node, PEEPHOLES):
        raise CompileError(f"{node}: peepholes (input P) have no gradient rule; export the layer without them")
    known, layers = ACTIVATIONS[node.op], len(DIRECTIONS[a["direction"]])
    given = tuple(a.get("activations", ()))[: layers * len(known[0])]  # the default of RNN is for both directions
    if any(given[k : k + len(known[0])] not in known for k in range(0, len(given), len(known[0]))):
        raise CompileError(f"{node}: activations {list(given)} have no gradient rule; it has {list(known[0])}")
    _check_lens(b, node)


def _check_lens(b: GraphBuilder, node: Node) -> None:
    if not _given(node, LENS):
        return
    lens, time = b.constants.get(node.inputs[LENS]), b.shape(node.inputs[X])[0]
    if lens is None or not np.all(lens == time):
        raise CompileError(
            f"{node}: sequence_lens {node.inputs[LENS]!r} differ from example to example, which has no gradient rule; "
            "pad to one length, and mask the outputs in the model"
        )
