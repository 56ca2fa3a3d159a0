"""Recurrent layers, and the loop over time that their gradients are written with.

What a step reads of the inputs is one matrix product for all times at once; only what depends on the step before is
in the loop. Gate orders and formulas are those of ONNX: LSTM i, o, f, c; GRU z, r, h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.activation import sigmoid
from edge_sdk.training.engine.kernels.arrays import Array, bounded, integers

__all__ = ["gru", "lstm", "rnn", "scan"]

DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Direction -> for each of its layers, whether it goes back in time."""

_Step = Callable[[Array, Sequence[Array]], tuple[Array, ...]]


def scan(
    *values: Array,
    body: Callable[[Sequence[Array]], list[Array]],
    num_scan_inputs: int,
    captured: int = 0,
    scan_input_directions: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
    output_count: int,
) -> tuple[Array, ...]:
    """ONNX Scan over first axes: the body's states go from step to step, its other outputs are stacked.

    The last ``captured`` values are the body's last inputs, the same at each step.
    """
    count = len(values) - num_scan_inputs - captured
    if min(num_scan_inputs - 1, captured, count, output_count - count) < 0:
        raise TrainingError(f"{num_scan_inputs} sequences and {captured} captured values of {len(values)} inputs")
    states, fixed = list(values[:count]), values[len(values) - captured :]
    sequences = values[count : count + num_scan_inputs]
    steps = len(sequences[0])
    if steps == 0 or any(len(sequence) != steps for sequence in sequences):
        raise TrainingError(f"sequences of {[len(sequence) for sequence in sequences]} steps")
    read = [_order(scan_input_directions, i, steps) for i in range(num_scan_inputs)]
    write = [_order(scan_output_directions, i, steps) for i in range(output_count - count)]
    stacked: list[Array] = []
    for step in range(steps):
        results = body([*states, *(s[order[step]] for s, order in zip(sequences, read, strict=True)), *fixed])
        states = results[:count]
        if not stacked:
            stacked = [np.empty(bounded((steps, *np.shape(v))), np.asarray(v).dtype) for v in results[count:]]
        for whole, order, value in zip(stacked, write, results[count:], strict=True):
            whole[order[step]] = value
    return (*states, *stacked)


def _order(directions: Sequence[int], index: int, steps: int) -> range:
    return range(steps - 1, -1, -1) if index < len(directions) and directions[index] else range(steps)


def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] = (),
    hidden_size: int = 0,
    output_count: int,
) -> tuple[Array, ...]:
    """ONNX RNN, with Tanh or Relu."""
    names = tuple(activations) or ("Tanh",) * len(w)
    if not set(names) <= {"Tanh", "Relu"}:
        raise TrainingError(f"activations {list(names)}: only Tanh and Relu are known")

    def steps(layer: int) -> tuple[_Step, Array]:
        recurrent, relu = r[layer].T, names[layer] == "Relu"

        def step(p: Array, states: Sequence[Array]) -> tuple[Array, ...]:
            z = p + states[0] @ recurrent
            return (np.maximum(z, z.dtype.type(0)) if relu else np.tanh(z),)

        return step, _bias(b, layer)

    return _layers(x, w, r, steps, (initial_h,), sequence_lens, direction, layout)


def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    activations: Sequence[str] = (),
    hidden_size: int = 0,
    output_count: int,
) -> tuple[Array, ...]:
    """ONNX GRU with its default activations."""
    _default_activations(activations, ("Sigmoid", "Tanh"), len(w))

    def steps(layer: int) -> tuple[_Step, Array]:
        n = r.shape[2]
        gates, candidate = r[layer, : 2 * n].T, r[layer, 2 * n :].T
        bias, inner = _bias(b, layer), x.dtype.type(0)
        if linear_before_reset and b is not None:
            inner = b[layer, 5 * n :]
            bias = np.concatenate([bias[: 2 * n], b[layer, 2 * n : 3 * n]])

        def step(p: Array, states: Sequence[Array]) -> tuple[Array, ...]:
            h = states[0]
            zr = sigmoid(p[:, : 2 * n] + h @ gates)
            z, reset = zr[:, :n], zr[:, n:]
            pre = reset * (h @ candidate + inner) if linear_before_reset else (reset * h) @ candidate
            new = np.tanh(p[:, 2 * n :] + pre)
            return (new + z * (h - new),)

        return step, bias

    return _layers(x, w, r, steps, (initial_h,), sequence_lens, direction, layout)


def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    input_forget: int = 0,
    activations: Sequence[str] = (),
    hidden_size: int = 0,
    output_count: int,
) -> tuple[Array, ...]:
    """ONNX LSTM with its default activations; ``p`` holds peepholes i, o, f."""
    _default_activations(activations, ("Sigmoid", "Tanh", "Tanh"), len(w))
    if input_forget:
        raise TrainingError("input_forget=1: only 0 is known")

    def steps(layer: int) -> tuple[_Step, Array]:
        n, recurrent = r.shape[2], r[layer].T
        peep_i, peep_o, peep_f = np.split(p[layer], 3) if p is not None else (None, None, None)

        def step(projected: Array, states: Sequence[Array]) -> tuple[Array, ...]:
            h, c = states
            z = projected + h @ recurrent
            if peep_i is not None:
                z[:, :n] += peep_i * c
                z[:, 2 * n : 3 * n] += peep_f * c
            cell = sigmoid(z[:, 2 * n : 3 * n]) * c + sigmoid(z[:, :n]) * np.tanh(z[:, 3 * n :])
            if peep_o is not None:
                z[:, n : 2 * n] += peep_o * cell
            return sigmoid(z[:, n : 2 * n]) * np.tanh(cell), cell

        return step, _bias(b, layer)

    return _layers(x, w, r, steps, (initial_h, initial_c), sequence_lens, direction, layout)


def _default_activations(given: Sequence[str], expected: tuple[str, ...], layers: int) -> None:
    if given and tuple(given) != expected * layers:
        raise TrainingError(f"activations {list(given)}: only {list(expected)} are known")


def _bias(b: Array | None, layer: int) -> Any:
    if b is None:
        return 0
    half = b.shape[1] // 2
    return b[layer, :half] + b[layer, half:]


def _layers(
    x: Array,
    w: Array,
    r: Array,
    steps: Callable[[int], tuple[_Step, Array]],
    initial: Sequence[Array | None],
    lens: Array | None,
    direction: str,
    layout: int,
) -> tuple[Array, ...]:
    """Y and the last states, of all directions."""
    backwards = DIRECTIONS[direction]
    if layout:
        x = x.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    times, batch, width = x.shape
    shape, flat = (batch, r.shape[2]), np.ascontiguousarray(x).reshape(times * batch, width)
    if len(w) != len(backwards):
        raise TrainingError(f"weights of {len(w)} layers for direction {direction!r}")
    whole = np.zeros(bounded((times, len(w), *shape)), dtype=x.dtype)
    last = []
    for layer, back in enumerate(backwards):
        step, bias = steps(layer)
        projected = (flat @ w[layer].T + bias).reshape(times, batch, w.shape[1])
        states = tuple(np.zeros(shape, x.dtype) if s is None else s[layer] for s in initial)
        last.append(_through_time(projected, step, states, lens, back, whole[:, layer]))
    finals = [np.stack(parts) for parts in zip(*last, strict=True)]
    if layout:
        return whole.transpose(2, 0, 1, 3), *(f.swapaxes(0, 1) for f in finals)
    return whole, *finals


def _through_time(
    projected: Array, step: _Step, states: tuple[Array, ...], lens: Array | None, back: bool, out: Array
) -> tuple[Array, ...]:
    """Write every output into ``out``; the last states. Beyond its length an example keeps its states."""
    limits = None if lens is None else np.array(integers(lens))
    for time in reversed(range(len(projected))) if back else range(len(projected)):
        after = step(projected[time], states)
        if limits is None:
            out[time] = after[0]
        else:
            valid = (time < limits)[:, None]
            out[time] = np.where(valid, after[0], after[0].dtype.type(0))
            after = tuple(np.where(valid, new, old) for new, old in zip(after, states, strict=True))
        states = after
    return states
