"""Optimisers against NumPy in float64 over several steps, on both engines; and the shape of a plain SGD step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx_graphs import RATE, gradients, model_of, step

from coordinator.compile import OPTIMIZERS, build_zoo_model, compile_model
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

Array = NDArray[np.float64]
STEPS = 6
WIDTH, CLASSES, BATCH = 5, 3, 7


def linear(**options: Any) -> Bundle:
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((CLASSES, WIDTH)), "b": rng.standard_normal(CLASSES)}
    model = model_of("y = Gemm<transB=1>(x, w, b)", weights, inputs={"x": ["n", WIDTH]})
    return compile_model(model, loss="softmax_cross_entropy", name="linear", verify=False, **options)


def batches() -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((STEPS, BATCH, WIDTH)).astype(np.float32)
    target = rng.integers(0, CLASSES, (STEPS, BATCH))
    return [{"x": a, "target": b} for a, b in zip(x, target, strict=True)]


def gradient(w: dict[str, Array], batch: dict[str, Any]) -> dict[str, Array]:
    """The gradient of the mean cross-entropy, written down by hand."""
    x = batch["x"].astype(np.float64)
    z = x @ w["w"].T + w["b"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    slope = (p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[batch["target"]]) / BATCH
    return {"w": slope.T @ x, "b": slope.sum(axis=0)}


def sgd(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    return w - s["lr"] * g


def momentum(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    state["v"] = s["momentum"] * state.get("v", np.zeros_like(w)) + g
    return w - s["lr"] * state["v"]


def adam(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    zero = np.zeros_like(w)
    state["t"] = state.get("t", np.zeros(())) + 1
    state["m"] = s["beta1"] * state.get("m", zero) + (1 - s["beta1"]) * g
    state["v"] = s["beta2"] * state.get("v", zero) + (1 - s["beta2"]) * g * g
    m = state["m"] / (1 - s["beta1"] ** state["t"])
    v = state["v"] / (1 - s["beta2"] ** state["t"])
    return w - s["lr"] * m / (np.sqrt(v) + s["epsilon"])


def nesterov(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    state["v"] = s["momentum"] * state.get("v", np.zeros_like(w)) + g
    return w - s["lr"] * (g + s["momentum"] * state["v"])


def adamw(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    return adam(w, g, state, s) - s["lr"] * s["weight_decay"] * w


def rmsprop(w: Array, g: Array, state: dict[str, Array], s: dict[str, float]) -> Array:
    state["s"] = s["rho"] * state.get("s", np.zeros_like(w)) + (1 - s["rho"]) * g * g
    return w - s["lr"] * g / (np.sqrt(state["s"]) + s["epsilon"])


UPDATES: dict[str, tuple[Callable[..., Array], dict[str, float]]] = {
    "sgd": (sgd, {"lr": 0.3}),
    "momentum": (momentum, {"lr": 0.1, "momentum": 0.8}),
    "nesterov": (nesterov, {"lr": 0.1, "momentum": 0.8}),
    "adam": (adam, {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}),
    "adamw": (adamw, {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "weight_decay": 0.1}),
    "rmsprop": (rmsprop, {"lr": 0.01, "rho": 0.8, "epsilon": 1e-4}),
}


def by_hand(bundle: Bundle, update: Callable[..., Array], scalars: dict[str, float]) -> list[dict[str, Array]]:
    """Parameters after each step; FedProx and decay are added to the clipped gradient, AdamW's decay is its own."""
    anchor = {n: v.astype(np.float64) for n, v in bundle.program.spec.unflatten(bundle.parameters).items()}
    w, history = dict(anchor), []
    states: dict[str, dict[str, Array]] = {n: {} for n in w}
    decay, mu = 0.0 if update is adamw else scalars.get("weight_decay", 0.0), scalars.get("mu", 0.0)
    for batch in batches():
        found = gradient(w, batch)
        if "gradient_norm_max" in scalars:
            norm = np.sqrt(sum(float(np.sum(g * g)) for g in found.values()))
            found = {n: g * min(1.0, scalars["gradient_norm_max"] / norm) for n, g in found.items()}
        for n in w:
            g = found[n] + mu * (w[n] - anchor[n]) + decay * w[n]
            w[n] = update(w[n], g, states[n], scalars)
        history.append(dict(w))
    return history


def test_every_optimizer_has_an_oracle() -> None:
    assert set(UPDATES) == set(OPTIMIZERS)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("pulls", [(), ("proximal",), ("weight_decay",), ("proximal", "weight_decay", "clipped")])
@pytest.mark.parametrize("optimizer", UPDATES)
def test_steps_equal_the_textbook(optimizer: str, pulls: tuple[str, ...], engine_name: str) -> None:
    bundle = linear(optimizer=optimizer, **dict.fromkeys(pulls, True))
    update, scalars = UPDATES[optimizer]
    scalars = (
        scalars
        | ({"mu": 0.4} if "proximal" in pulls else {})
        | ({"weight_decay": 0.2} if "weight_decay" in pulls else {})
        | ({"gradient_norm_max": 0.3} if "clipped" in pulls else {})
    )
    assert set(bundle.program.scalars) == set(scalars)
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)

    for batch, expected in zip(batches(), by_hand(bundle, update, scalars), strict=True):
        engine.step(handle, batch, scalars)
        found = bundle.program.spec.unflatten(engine.read(handle))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", UPDATES)
def test_every_optimizer_passes_verification_with_all_terms(optimizer: str) -> None:
    model = build_zoo_model("mlp", inputs=(6,), hidden=(5,), outputs=3, activation="tanh", seed=0)
    terms = {"proximal": True, "weight_decay": True, "clipped": True}
    compile_model(model, loss="softmax_cross_entropy", optimizer=optimizer, name=optimizer, **terms)


def test_a_gradient_within_the_norm_is_not_clipped() -> None:
    batch = batches()[0]
    plain, limited = step(linear(), batch, lr=0.3), step(linear(clipped=True), batch, lr=0.3, gradient_norm_max=1e6)
    for name in ("new/w", "new/b"):
        np.testing.assert_allclose(limited[name], plain[name], rtol=1e-6)


def test_a_proximal_step_at_the_anchor_is_a_plain_step() -> None:
    batch = batches()[0]
    plain, proximal = linear(), linear(proximal=True)
    engine = make_engine(proximal.program, "onnxruntime")
    handle = engine.load(proximal.parameters)
    engine.step(handle, batch, {"lr": 0.3, "mu": 5.0})
    expected = step(plain, batch, lr=0.3)
    for name, value in proximal.program.spec.unflatten(engine.read(handle)).items():
        np.testing.assert_array_equal(value, expected[f"new/{name}"])


def test_a_dense_layer_s_sgd_step_is_one_gemm_onto_the_weight() -> None:
    bundle = compile_model(
        build_zoo_model("mlp", inputs=(8,), hidden=(6, 5), outputs=3, seed=0),
        loss="softmax_cross_entropy",
        name="mlp",
        verify=False,
    )
    nodes = onnx.ModelProto.FromString(bundle.program.train).graph.node
    makers = {name: node for node in nodes for name in node.output}
    for layer in (1, 2, 3):
        made = makers[f"new/fc{layer}.weight"]
        assert (made.op_type, made.input[2]) == ("Gemm", f"fc{layer}.weight")
    assert len(nodes) <= 34


def test_momentum_and_adam_compile_the_same_gradient_as_sgd() -> None:
    batch = batches()[0]
    loss, expected = gradients(linear(), batch)
    velocity = step(linear(optimizer="momentum"), batch, lr=RATE)
    moment = step(linear(optimizer="adam"), batch, beta1=0.0)
    assert float(velocity["loss"]) == float(moment["loss"]) == loss
    for name, value in expected.items():
        np.testing.assert_allclose(-velocity[f"new/state/momentum/{name}"] / RATE, value, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(moment[f"new/state/first/{name}"], value, rtol=1e-5, atol=1e-8)


def test_state_names_and_shapes_are_in_the_program() -> None:
    assert linear().program.state == ()
    assert dict(linear(optimizer="momentum").program.state) == {
        "state/momentum/w": (CLASSES, WIDTH),
        "state/momentum/b": (CLASSES,),
    }
    assert dict(linear(optimizer="adam").program.state) == {
        "state/step": (),
        "state/first/w": (CLASSES, WIDTH),
        "state/first/b": (CLASSES,),
        "state/second/w": (CLASSES, WIDTH),
        "state/second/b": (CLASSES,),
    }
