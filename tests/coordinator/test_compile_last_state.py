"""What a model takes of a recurrent layer's last step comes from its last state, and only where that is the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_graphs import model_of, run

from coordinator.compile.emit import infer_graph, to_onnx
from coordinator.compile.graph import Model
from coordinator.compile.import_ import import_model

WIDTH, HIDDEN, STEPS = 3, 4, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
CONSTANTS = {
    "last": np.array(-1),
    "same": np.array(STEPS - 1),
    "earlier": np.array(-2),
    "rows": np.array([-1]),
    "one": np.array([1]),
    "flat": np.array([STEPS, -1, HIDDEN]),
    "from": np.array([0]),
    "to": np.array([1 << 40]),
}
SQUEEZED = "s = Squeeze(every, one); t = Transpose<perm=[1, 0, 2]>(s); y = Gather<axis=1>(t, last)"


def imported(tail: str, op: str = "LSTM", direction: str = "forward") -> tuple[Model, float]:
    """The model of a layer and ``tail``, and how far its outputs are from those before the import."""
    gates, rng = GATES[op], np.random.default_rng(0)
    count = 2 if direction == "bidirectional" else 1
    weights = {
        "w": rng.standard_normal((count, gates * HIDDEN, WIDTH)),
        "r": rng.standard_normal((count, gates * HIDDEN, HIDDEN)),
    }
    text = (
        f"series = Transpose<perm=[1, 0, 2]>(x); every = {op}<hidden_size={HIDDEN}, "
        f'direction="{direction}">(series, w, r); {tail}'
    )
    source = model_of(text, {**weights, **CONSTANTS}, inputs={"x": ("batch", STEPS, WIDTH)})
    model = import_model(source, name="layer")
    x = {"x": rng.standard_normal((2, STEPS, WIDTH)).astype(np.float32)}
    expected = run(source.SerializeToString(), x)["y"]
    found = run(to_onnx(infer_graph(model)).SerializeToString(), {**x, **model.parameters})["y"]
    return model, float(np.abs(expected - found).max())


@pytest.mark.parametrize("op", sorted(GATES))
@pytest.mark.parametrize(
    "tail",
    [
        SQUEEZED,
        "s = Squeeze(every, one); y = Gather<axis=0>(s, same)",
        "u = Transpose<perm=[0, 2, 1, 3]>(every); v = Reshape(u, flat); t = Transpose<perm=[1, 0, 2]>(v); "
        "c = Slice(t, from, to, one, one); y = Gather<axis=1>(c, last)",
    ],
    ids=["script", "position", "dynamo"],
)
def test_the_last_step_is_the_last_state(op: str, tail: str) -> None:
    model, distance = imported(tail, op)
    assert "Gather" not in {node.op for node in model.nodes} and distance < 1e-6
    assert next(node.outputs for node in model.nodes if node.op == op) == ("", "every/last")


@pytest.mark.parametrize(
    ("tail", "direction"),
    [
        (SQUEEZED.replace("last", "earlier"), "forward"),
        (SQUEEZED.replace("last", "rows"), "forward"),
        (SQUEEZED, "reverse"),
        ("s = Squeeze(every, one); t = Transpose<perm=[2, 1, 0]>(s); u = Gather<axis=2>(t, last); "
         "y = Transpose<perm=[1, 0]>(u)", "forward"),
        (SQUEEZED.replace("y =", "g =") + "; n = ReduceMean<keepdims=0>(every); y = Add(g, n)", "forward"),
        (SQUEEZED.replace("Squeeze(", "ReduceMean<keepdims=0>("), "bidirectional"),
    ],
    ids=["another-step", "axis-kept", "reverse", "turned", "used-twice", "bidirectional"],
)  # fmt: skip
def test_anything_else_stays(tail: str, direction: str) -> None:
    model, distance = imported(tail, direction=direction)
    assert "Gather" in {node.op for node in model.nodes} and distance < 1e-6
