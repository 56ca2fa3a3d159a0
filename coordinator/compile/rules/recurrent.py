"""Gradients of LSTM, GRU and RNN: a loop over time forwards, and one backwards.

Stock operators give the hidden states only, so the training form is a Scan that also stores what the gradient needs:
not the gates but the factors that a step backwards multiplies with, so that it is a handful of products around the one
matrix product that no order of computation avoids. What does not depend on the step before stays outside of both loops,
one Gemm for all times: the projection of the inputs, and the gradients of all weights (Werbos, Backpropagation through
time, Proceedings of the IEEE 78(10), 1990). A bias is the weight of one more input that is always 1.

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

ACTIVATIONS: Final = {
    "RNN": (("Tanh",), ("Relu",)),
    "GRU": (("Sigmoid", "Tanh"),),
    "LSTM": (("Sigmoid", "Tanh", "Tanh"),),
}
"""Operator -> the activations that it may have in each direction, the default first."""

X, W, R, B, LENS, H0, C0, PEEPHOLES = range(8)
"""Slots of the three operators' inputs."""


@dataclass(frozen=True)
class _Block:
    """Gates whose pre-activations are one product of x, and one of the state.

    Attributes:
        gates: How many.
        on_x: Their weights on x, [gates * hidden, width].
        on_rows: The same and their bias, on rows that end in 1; ``on_x`` where there is no bias.
        on_h: Their weights on the state, [gates * hidden, hidden].
        inner: A bias that joins the product with the state before anything else happens to it, or "".
    """

    gates: int
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
    blocks: tuple[_Block, ...]

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

    def transposed(self, block: int) -> str:
        """The weights on the state as they stand right of it: turned round once, not in each step."""
        return self.b.op("Transpose", self.blocks[block].on_h, perm=[1, 0])


_Forward = Callable[[_Layer, Sequence[str], Sequence[str]], tuple[str, tuple[str, ...]]]
"""(layer, projections of x by block, initial states) -> all hidden states, last states; saves for the way back."""

_Backward = Callable[[_Layer, str, Sequence[str]], tuple[list[tuple[str, str, str]], tuple[str, ...]]]
"""(layer, dY or "", gradients of the last states) -> for each block the gradients of its product with x and of that
with the state, all times stacked, and the states it multiplied; gradients of the initial states."""


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


def _rnn_forward(layer: _Layer, projected: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body, n = layer.body, layer.hidden
    activations = layer.node.attributes.get("activations") or ["Tanh"] * layer.count
    relu = activations[layer.index] == "Relu"
    h = body.state(initial[0])
    p = body.element(projected[0])
    z = body.op("Gemm", h, layer.transposed(0), p)
    new = body.op("Relu" if relu else "Tanh", z)
    slope = body.op("Sign", new) if relu else body.op("Sub", layer.b.scalar(1.0), body.op("Mul", new, new))
    last, (y, before, slopes) = body.finish([new], [(new, n), (h, n), (slope, n)], back=layer.back)
    layer.save(before=before, slopes=slopes)
    return y, last


def _rnn_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    body, n = layer.body, layer.hidden
    dh = _with_output(body, body.state(final[0]), dy)
    dz = body.op("Mul", dh, body.element(layer.saved("slopes")))
    earlier = body.op("Gemm", dz, layer.blocks[0].on_h)
    first, (stacked,) = body.finish([earlier], [(dz, n)], back=not layer.back)
    return [(stacked, stacked, layer.saved("before"))], first


def _lstm_forward(layer: _Layer, projected: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """With g = tanh(z) = 2 sigmoid(2z) - 1 all four gates are one sigmoid; the weights of g come doubled."""
    body, n = layer.body, layer.hidden
    h, c = body.state(initial[0]), body.state(initial[1])
    p = body.element(projected[0], 4 * n)
    z = body.op("Gemm", h, layer.transposed(0), p)
    gates = body.op("Sigmoid", z)
    i, o, f, s = body.ops("Split", [gates], 4, axis=1, num_outputs=4)
    twice = body.op("Mul", i, body.op("Mul", s, layer.b.scalar(2.0)))
    written, kept = body.op("Sub", twice, i), body.op("Mul", f, c)  # ig, fc
    cell = body.op("Add", kept, written)
    bounded = body.op("Tanh", cell)
    new = body.op("Mul", o, bounded)
    # A gate s = sigmoid(z) that contributes q has the slope q (1 - s): ig, h', fc, and 2is for the doubled one.
    q = body.op("Concat", written, new, kept, twice, axis=1)
    slope = body.op("Sub", q, body.op("Mul", q, gates))
    opening = body.op("Sub", o, body.op("Mul", new, bounded))  # dh'/dc' = o (1 - tanh(c')^2)
    results = [(new, n), (h, n), (slope, 4 * n), (opening, n), (f, n)]
    last, (y, before, slopes, openings, forget) = body.finish([new, cell], results, back=layer.back)
    layer.save(before=before, slopes=slopes, openings=openings, forget=forget)
    return y, last


def _lstm_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    body, n = layer.body, layer.hidden
    dh, dc = body.state(final[0]), body.state(final[1])
    dh = _with_output(body, dh, dy)
    dc = body.op("Add", dc, body.op("Mul", dh, body.element(layer.saved("openings"))))
    dz = body.op("Mul", body.op("Concat", dc, dh, dc, dc, axis=1), body.element(layer.saved("slopes"), 4 * n))
    earlier_h = body.op("Gemm", dz, layer.blocks[0].on_h)
    earlier_c = body.op("Mul", dc, body.element(layer.saved("forget")))
    first, (stacked,) = body.finish([earlier_h, earlier_c], [(dz, 4 * n)], back=not layer.back)
    return [(stacked, stacked, layer.saved("before"))], first


def _gru_forward(layer: _Layer, projected: Sequence[str], initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body, n, inner = layer.body, layer.hidden, layer.blocks[1].inner
    linear, one = bool(layer.node.attributes["linear_before_reset"]), layer.b.scalar(1.0)
    h = body.state(initial[0])
    p, q = body.element(projected[0], 2 * n), body.element(projected[1])
    pre = body.op("Gemm", h, layer.transposed(0), p)
    z, r = body.ops("Split", [body.op("Sigmoid", pre)], 2, axis=1, num_outputs=2)
    if linear:
        operands = [h, layer.transposed(1), *([inner] if inner else [])]
        reset = body.op("Mul", r, body.op("Gemm", *operands))
        new = body.op("Tanh", body.op("Add", q, reset))
    else:
        reset = body.op("Mul", r, h)
        new = body.op("Tanh", body.op("Gemm", reset, layer.transposed(1), q))
    kept = body.op("Mul", z, body.op("Sub", h, new))
    output = body.op("Add", new, kept)
    rest = body.op("Sub", one, z)
    of_z = body.op("Sub", kept, body.op("Mul", kept, z))
    of_new = body.op("Sub", rest, body.op("Mul", rest, body.op("Mul", new, new)))
    of_reset = body.op("Sub", reset, body.op("Mul", reset, r))
    if linear:
        slope = body.op("Concat", of_z, body.op("Mul", of_new, of_reset), axis=1)
        extra = {"slopes": (slope, 2 * n), "of_product": (body.op("Mul", of_new, r), n)}
    else:
        extra = {"of_z": (of_z, n), "of_reset": (of_reset, n), "r": (r, n), "reset": (reset, n)}
    results = [(output, n), (h, n), (of_new, n), (z, n), *extra.values()]
    last, (y, *stacked) = body.finish([output], results, back=layer.back)
    layer.save(**dict(zip(("before", "of_new", "z", *extra), stacked, strict=True)))
    return y, last


def _gru_backward(layer: _Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    body, n, (gates, candidate) = layer.body, layer.hidden, layer.blocks
    linear = bool(layer.node.attributes["linear_before_reset"])
    dh = _with_output(body, body.state(final[0]), dy)
    d_new = body.op("Mul", dh, body.element(layer.saved("of_new")))
    passed = body.op("Mul", dh, body.element(layer.saved("z")))
    if linear:
        d_product = body.op("Mul", dh, body.element(layer.saved("of_product")))
        d_gates = body.op("Mul", body.op("Concat", dh, dh, axis=1), body.element(layer.saved("slopes"), 2 * n))
        passed = body.op("Gemm", d_product, candidate.on_h, passed)
    else:
        d_product = d_new
        d_reset = body.op("Gemm", d_new, candidate.on_h)
        d_z = body.op("Mul", dh, body.element(layer.saved("of_z")))
        d_r = body.op("Mul", d_reset, body.element(layer.saved("of_reset")))
        d_gates = body.op("Concat", d_z, d_r, axis=1)
        passed = body.op("Add", passed, body.op("Mul", d_reset, body.element(layer.saved("r"))))
    earlier = body.op("Gemm", d_gates, gates.on_h, passed)
    results = [(d_gates, 2 * n), (d_new, n), *([(d_product, n)] if linear else [])]
    first, stacked = body.finish([earlier], results, back=not layer.back)
    multiplied = layer.saved("before" if linear else "reset")
    return [(stacked[0], stacked[0], layer.saved("before")), (stacked[1], stacked[-1], multiplied)], first


def _with_output(body: Body, dh: str, dy: str) -> str:
    return body.op("Add", dh, body.element(dy)) if dy else dh


def _training(b: GraphBuilder, node: Node, forward: _Forward) -> None:
    """The node's outputs from the loops of its layers."""
    _check(b, node)
    sequences, finals = [], []
    for layer in _layers(b, node):
        projected = [_projected(b, node, block, layer.hidden) for block in layer.blocks]
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
        flat = [tuple(_rows_of(b, name) for name in names) for names in products]
        for slot, gradient in _weight_gradients(layer, flat).items():
            slots[slot].append(gradient)
        for slot, gradient in zip((H0, C0), first, strict=False):
            slots[slot].append(gradient)
        for (d, *_), block in zip(flat, layer.blocks, strict=True):
            share = Product(d, block.on_x, False, False)
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
    scale = _scale(b, node, layer.hidden)
    if scale:
        on_rows, on_h = b.op("Mul", on_rows, scale), b.op("Mul", on_h, scale)
    if not _given(node, B):
        return {W: on_rows, R: on_h}
    width = b.shape(node.inputs[W])[2]
    on_x, bias = b.ops("Split", [on_rows, b.ints(int(width), 1)], 2, axis=1)
    bias = b.op("Squeeze", bias, b.ints(1))
    inner = bias
    if layer.blocks[-1].inner:
        gates = b.op("Slice", bias, b.ints(0), b.ints(2 * layer.hidden), b.ints(0))
        inner = b.op("Concat", gates, b.op("ReduceSum", products[-1][1], b.ints(0), keepdims=0), axis=0)
    return {W: on_x, R: on_h, B: b.op("Concat", bias, inner, axis=0)}


def _layers(b: GraphBuilder, node: Node) -> list[_Layer]:
    """The node's directions; asked again, it makes no second set of nodes."""
    backs = DIRECTIONS[node.attributes["direction"]]
    hidden, batch = int(b.shape(node.inputs[R])[2]), b.shape(node.inputs[X])[1]
    return [
        _Layer(b, node, index, len(backs), back, batch, hidden, _blocks(b, node, index, len(backs), hidden))
        for index, back in enumerate(backs)
    ]


def _blocks(b: GraphBuilder, node: Node, index: int, count: int, n: int) -> tuple[_Block, ...]:
    on_x, on_h = (_part(b, node.inputs[slot], index, count, 0) for slot in (W, R))
    columns: list[str] = []
    inner = ""
    if _given(node, B):
        both = b.op("Reshape", _part(b, node.inputs[B], index, count, 0), b.ints(2, -1), allowzero=0)
        if node.op == "GRU" and node.attributes["linear_before_reset"]:
            outer, rest = b.ops("Split", [both, b.ints(1, 1)], 2, axis=0)
            rest, inner = b.ops("Split", [b.op("Squeeze", rest, b.ints(0)), b.ints(2 * n, n)], 2, axis=0)
            padded = b.op("Pad", rest, b.ints(0, n), mode="constant")
            columns = [b.op("Add", b.op("Squeeze", outer, b.ints(0)), padded)]
        else:
            columns = [b.op("ReduceSum", both, b.ints(0), keepdims=0)]
    on_rows = b.op("Concat", on_x, *(b.op("Unsqueeze", c, b.ints(1)) for c in columns), axis=1) if columns else on_x
    scale = _scale(b, node, n)
    if scale:
        on_x, on_rows, on_h = (b.op("Mul", w, scale) for w in (on_x, on_rows, on_h))
    if node.op != "GRU":
        return (_Block(4 if node.op == "LSTM" else 1, on_x, on_rows, on_h),)
    sizes = b.ints(2 * n, n)
    (x_zr, x_h), (rows_zr, rows_h), (h_zr, h_h) = (b.ops("Split", [w, sizes], 2, axis=0) for w in (on_x, on_rows, on_h))
    return _Block(2, x_zr, rows_zr, h_zr), _Block(1, x_h, rows_h, h_h, inner)


def _scale(b: GraphBuilder, node: Node, n: int) -> str:
    """What the rows of an LSTM's weights are multiplied with, so that one sigmoid serves all of its gates."""
    if node.op != "LSTM":
        return ""
    return b.constant(np.repeat(np.array([1, 1, 1, 2], np.float32), n)[:, None])


def _rows(b: GraphBuilder, node: Node) -> str:
    """x as a matrix with a row for each time and example, a last column of ones for the bias."""
    x = node.inputs[X]
    rows = b.op("Reshape", x, b.ints(-1, int(b.shape(x)[2])), allowzero=0)
    if not _given(node, B):
        return rows
    column = b.op("Concat", b.op("Shape", rows, start=0, end=1), b.ints(1), axis=0)
    return b.op("Concat", rows, b.op("Expand", b.scalar(1.0), column), axis=1)


def _projected(b: GraphBuilder, node: Node, block: _Block, n: int) -> str:
    """What x contributes to the block's pre-activations, [time, batch, gates * hidden]."""
    whole = b.op("Gemm", _rows(b, node), block.on_rows, transB=1)
    shape = b.op("Concat", b.op("Shape", node.inputs[X], start=0, end=2), b.ints(block.gates * n), axis=0)
    return b.op("Reshape", whole, shape, allowzero=0)


def _initial(layer: _Layer, slot: int) -> str:
    return layer.part(layer.node.inputs[slot]) if _given(layer.node, slot) else _zeros(layer)


def _zeros(layer: _Layer) -> str:
    """A state of zeros."""
    b = layer.b
    batch = b.op("Shape", layer.node.inputs[X], start=1, end=2)
    return b.op("Expand", b.scalar(0.0), b.op("Concat", batch, b.ints(layer.hidden), axis=0))


def _rows_of(b: GraphBuilder, stacked: str) -> str:
    """What a loop stacked over time, as a matrix with a row for each time and example."""
    shape = b.op("Concat", b.ints(-1), b.op("Shape", stacked, start=2), axis=0)
    return b.op("Reshape", stacked, shape, allowzero=0)


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
