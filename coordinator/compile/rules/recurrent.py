"""Gradients of LSTM, GRU and RNN: a loop over time forwards, and one backwards.

Stock operators give the hidden states only, so the training form is a Scan that also gives the gates. Inside of a loop
is one Gemm for each gate, which its activation fuses with (one for all gates would be split again in each step), and a
handful of products. The Gemm reads a row of the state, the input and 1 beside each other, so that one product for each
gate, over all times at once, is the gradient of its R, W and bias together: apart, the few columns of W would take half
as long again as the many of R. The factors that a step backwards multiplies with are computed for all times at once as
well (Werbos, Backpropagation through time, Proceedings of the IEEE 78(10), 1990).

With h and c the states before a step, and gate orders as in ONNX:

    RNN   h' = f(Wx + Rh)
    GRU   z, r = sigmoid(Wx + Rh);  n = tanh(Wx + R(rh)), or tanh(Wx + r(Rh + b)) with linear_before_reset;
          h' = n + z (h - n)
    LSTM  i, o, f = sigmoid(Wx + Rh);  g = tanh(Wx + Rh);  c' = fc + ig;  h' = o tanh(c')

(Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.compile.graph import GraphBuilder, Node, Product
from coordinator.compile.rules.gates import (
    SLOTS,
    Layer,
    check_form,
    given,
    initial_state,
    inputs_of,
    layers_of,
    projected,
    zero_state,
)
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from coordinator.compile.scan import Body

__all__ = ["gru", "gru_training", "lstm", "lstm_training", "rnn", "rnn_training"]

X, W, R, B, _, H0, C0, _ = SLOTS

_Forward = Callable[[Layer, Sequence[str]], tuple[str, tuple[str, ...]]]
"""(layer, initial states) -> all hidden states, last states; and it saves."""

_Backward = Callable[[Layer, str, Sequence[str]], tuple[list[tuple[str, str, str]], tuple[str, ...]]]
"""(layer, dY or "", gradients of the last states) -> for each gate, all times stacked, the gradient of what x
contributes, that of the product with the state, and the row (or the state alone) that the latter was made with; and the
gradients of the initial states."""


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


def _rnn_forward(layer: Layer, initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    row = body.beside(body.state(initial[0]), body.element(*inputs_of(layer.b, layer.node)))
    new = body.op(_activation(layer), layer.product(body, 0, row))
    last, (every, rows) = body.finish([new], [new, row], back=layer.back)
    layer.save(every=every, rows=rows)
    return every, last


def _rnn_backward(layer: Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    b, body, every = layer.b, layer.body, layer.saved("every")
    slope = b.op("Sign", every) if _activation(layer) == "Relu" else layer.rest(b.op("Mul", every, every))
    dh = _with_output(body, body.state(final[0]), dy)
    dz = body.op("Mul", dh, body.element(slope))
    first, (stacked,) = body.finish([layer.back_through(body, [dz])], [dz], back=not layer.back)
    return [(stacked, stacked, layer.saved("rows"))], first


def _activation(layer: Layer) -> str:
    names = layer.node.attributes.get("activations") or ["Tanh"] * layer.count
    return str(names[layer.index])


def _lstm_forward(layer: Layer, initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    h, c = body.state(initial[0]), body.state(initial[1])
    row = body.beside(h, body.element(*inputs_of(layer.b, layer.node)))
    activations = ("Sigmoid", "Sigmoid", "Sigmoid", "Tanh")
    i, o, f, g = (body.op(op, layer.product(body, gate, row)) for gate, op in enumerate(activations))
    fc, ig = body.op("Mul", f, c), body.op("Mul", i, g)
    cell = body.op("Add", fc, ig)
    tanh = body.op("Tanh", cell)
    new = body.op("Mul", o, tanh)
    kept = {"rows": row, "i": i, "o": o, "f": f, "g": g, "fc": fc, "ig": ig, "tanh": tanh}
    last, (every, *stacked) = body.finish([new, cell], [new, *kept.values()], back=layer.back)
    layer.save(every=every, **dict(zip(kept, stacked, strict=True)))
    return every, last


def _lstm_backward(layer: Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
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
    return [(each, each, layer.saved("rows")) for each in stacked], first


def _gru_forward(layer: Layer, initial: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    body = layer.body
    h, x = body.state(initial[0]), body.element(*inputs_of(layer.b, layer.node))
    row = body.beside(h, x)
    z, r = (body.op("Sigmoid", layer.product(body, gate, row)) for gate in (0, 1))
    kept = {"rows": row, "z": z, "r": r}
    if layer.node.attributes["linear_before_reset"]:
        reset = body.op("Mul", r, layer.inner_product(body, 2, h))
        new = body.op("Tanh", body.op("Add", body.element(projected(layer, layer.gates[2])), reset))
        kept["before"] = h
    else:
        reset = body.op("Mul", r, h)
        reset_row = body.beside(reset, x)
        new = body.op("Tanh", layer.product(body, 2, reset_row))
        kept["reset_rows"] = reset_row
    held = body.op("Mul", z, body.op("Sub", h, new))
    output = body.op("Add", new, held)
    kept |= {"new": new, "held": held, "reset": reset}
    last, (every, *stacked) = body.finish([output], [output, *kept.values()], back=layer.back)
    layer.save(**dict(zip(kept, stacked, strict=True)))
    return every, last


def _gru_backward(layer: Layer, dy: str, final: Sequence[str]) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    b, body = layer.b, layer.body
    rows, z, r, new, held, reset = (layer.saved(key) for key in ("rows", "z", "r", "new", "held", "reset"))
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
        return [(s_z, s_z, rows), (s_r, s_r, rows), (s_new, s_product, layer.saved("before"))], first
    d_reset = body.op("Gemm", d_new, layer.gates[2].on_h)
    d_r = body.op("Mul", d_reset, body.element(of_reset))
    passed = body.op("Add", passed, body.op("Mul", d_reset, body.element(r)))
    earlier = layer.back_through(body, [d_z, d_r], passed)
    first, (s_z, s_r, s_new) = body.finish([earlier], [d_z, d_r, d_new], back=not layer.back)
    return [(s_z, s_z, rows), (s_r, s_r, rows), (s_new, s_new, layer.saved("reset_rows"))], first


def _with_output(body: Body, dh: str, dy: str) -> str:
    return body.op("Add", dh, body.element(dy)) if dy else dh


def _training(b: GraphBuilder, node: Node, forward: _Forward) -> None:
    """The node's outputs from the loops of its layers."""
    check_form(b, node)
    sequences, finals = [], []
    for layer in layers_of(b, node):
        initial = [initial_state(layer, slot) for slot in ((H0, C0) if node.op == "LSTM" else (H0,))]
        every, last = forward(layer, initial)
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
    for layer in layers_of(b, node):
        final = [layer.part(d) if d else zero_state(layer) for d in d_finals]
        products, first = backward(layer, layer.part(d_y, axis=1) if d_y else "", final)
        flat = [(_flat(layer, d_x), _flat(layer, d_h), row) for d_x, d_h, row in products]
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


def _weight_gradients(layer: Layer, products: Sequence[tuple[str, str, str]]) -> dict[int, str]:
    """Gradients of the layer's part of W, R and B; those that nobody wants are cut when the graph is finished."""
    b, biased = layer.b, given(layer.node, B)
    separate = products[-1] if layer.node.op == "GRU" and layer.node.attributes["linear_before_reset"] else None
    whole = products[:-1] if separate else products
    x, columns = inputs_of(b, layer.node)
    widths = (layer.hidden, columns - 1, 1) if biased else (layer.hidden, columns)
    # With the odd number of columns as rows of the product: as its columns they would cost as much as the next 32.
    on_rows = _columns(b, [b.op("Gemm", _flat(layer, row, sum(widths)), d, transA=1) for d, _, row in whole])
    on_h, on_x, *bias = b.ops("Split", [on_rows, b.ints(*widths)], len(widths), axis=0)
    if separate:
        d_x, d_h, before = separate
        from_x = b.op("Gemm", _flat(layer, x, columns), d_x, transA=1)
        parts = b.ops("Split", [from_x, b.ints(*widths[1:])], len(widths) - 1, axis=0) if biased else (from_x,)
        on_h = _columns(b, [on_h, b.op("Gemm", _flat(layer, before), d_h, transA=1)])
        on_x, *bias = (_columns(b, pair) for pair in zip((on_x, *bias), parts, strict=True))
    on_h, on_x = (b.op("Transpose", part, perm=[1, 0]) for part in (on_h, on_x))
    if not biased:
        return {W: on_x, R: on_h}
    outer = b.op("Squeeze", bias[0], b.ints(0))
    inner = outer
    if separate:
        others = b.op("Slice", outer, b.ints(0), b.ints(2 * layer.hidden), b.ints(0))
        inner = b.op("Concat", others, b.op("ReduceSum", separate[1], b.ints(0), keepdims=0), axis=0)
    return {W: on_x, R: on_h, B: b.op("Concat", outer, inner, axis=0)}


def _flat(layer: Layer, name: str, width: int | None = None) -> str:
    """[time, batch, width] as a matrix with a row for each time and example."""
    return layer.b.op("Reshape", name, layer.b.ints(-1, width or layer.hidden), allowzero=0)


def _columns(b: GraphBuilder, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=1)
