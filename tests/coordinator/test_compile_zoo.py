"""The zoo: same seed, same bits; each model's gradients against backpropagation written down by hand in float64."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_graphs import gradients, run

from coordinator.compile import ZOO, build_zoo_model, compile_model, verify_program, zoo_loss
from edge_sdk.errors import CompileError

Array = NDArray[np.float64]
BATCH = 8


def weights_of(model: Any) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}


def slope(z: Array, target: NDArray[Any]) -> Array:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[target]) / len(target)


DERIVATIVES = {
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0).astype(np.float64)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
}


def mlp_by_hand(w: dict[str, Array], x: Array, target: NDArray[Any], activation: str) -> dict[str, Array]:
    depth = len(w) // 2
    apply, derivative = DERIVATIVES[activation]
    activities = [x.reshape(len(x), -1)]
    for layer in range(1, depth + 1):
        z = activities[-1] @ w[f"fc{layer}.weight"].T + w[f"fc{layer}.bias"]
        activities.append(apply(z) if layer < depth else z)
    d = slope(activities[-1], target)
    found = {}
    for layer in range(depth, 0, -1):
        found[f"fc{layer}.weight"] = d.T @ activities[layer - 1]
        found[f"fc{layer}.bias"] = d.sum(axis=0)
        d = (d @ w[f"fc{layer}.weight"]) * derivative(activities[layer - 1])
    return found


@pytest.mark.parametrize("activation", DERIVATIVES)
@pytest.mark.parametrize("hidden", [(), (7,), (9, 6, 5)])
def test_mlp_gradients_equal_backpropagation_by_hand(hidden: tuple[int, ...], activation: str) -> None:
    model = build_zoo_model("mlp", inputs=(2, 6), outputs=4, hidden=hidden, activation=activation, seed=3)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="mlp", verify=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, 2, 6)).astype(np.float32)
    target = rng.integers(0, 4, BATCH)

    _, found = gradients(bundle, {"x": x, "target": target})

    expected = mlp_by_hand(weights_of(model), x.astype(np.float64), target, activation)
    assert list(found) == [f"fc{n}.{kind}" for n in range(1, len(hidden) + 2) for kind in ("weight", "bias")]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-6)


def convolved(x: Array, w: Array, b: Array) -> Array:
    """Correlation with two zeros around the image, one output element at a time."""
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    y = np.zeros((len(x), len(w), *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            y[:, :, i, j] = np.einsum("nckl,ockl->no", padded[:, :, i : i + 5, j : j + 5], w) + b
    return y


def convolution_gradients(x: Array, w: Array, d: Array) -> tuple[Array, Array, Array]:
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    d_padded, d_w = np.zeros_like(padded), np.zeros_like(w)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            d_w += np.einsum("no,nckl->ockl", d[:, :, i, j], padded[:, :, i : i + 5, j : j + 5])
            d_padded[:, :, i : i + 5, j : j + 5] += np.einsum("no,ockl->nckl", d[:, :, i, j], w)
    return d_padded[:, :, 2:-2, 2:-2], d_w, d.sum(axis=(0, 2, 3))


def pooled(x: Array) -> tuple[Array, Array]:
    """2 x 2 maxima, and which element each of them is (one hot, the first of equals)."""
    n, c, h, w = x.shape
    windows = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    flat = windows.reshape(n, c, h // 2, w // 2, 4)
    return flat.max(axis=-1), np.eye(4)[flat.argmax(axis=-1)]


def unpooled(d: Array, winners: Array, shape: tuple[int, ...]) -> Array:
    n, c, h, w = d.shape
    spread = (d[..., None] * winners).reshape(n, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, 2 * h, 2 * w)
    whole = np.zeros(shape)
    whole[:, :, : 2 * h, : 2 * w] = spread
    return whole


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 6)])
def test_cnn_gradients_equal_backpropagation_by_hand(shape: tuple[int, ...]) -> None:
    model = build_zoo_model("cnn", inputs=shape, outputs=3, channels=(5, 4), seed=9)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="cnn", verify=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
    target = rng.integers(0, 3, BATCH)

    _, found = gradients(bundle, {"x": x, "target": target})

    w = weights_of(model)
    z1 = convolved(x.astype(np.float64), w["conv1.weight"], w["conv1.bias"])
    p1, winners1 = pooled(np.maximum(z1, 0))
    z2 = convolved(p1, w["conv2.weight"], w["conv2.bias"])
    p2, winners2 = pooled(np.maximum(z2, 0))
    flat = p2.reshape(BATCH, -1)
    d = slope(flat @ w["fc1.weight"].T + w["fc1.bias"], target)
    expected = {"fc1.weight": d.T @ flat, "fc1.bias": d.sum(axis=0)}
    d2 = unpooled((d @ w["fc1.weight"]).reshape(p2.shape), winners2, z2.shape) * (z2 > 0)
    d_p1, expected["conv2.weight"], expected["conv2.bias"] = convolution_gradients(p1, w["conv2.weight"], d2)
    d1 = unpooled(d_p1, winners1, z1.shape) * (z1 > 0)
    _, expected["conv1.weight"], expected["conv1.bias"] = convolution_gradients(
        x.astype(np.float64), w["conv1.weight"], d1
    )
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(np.abs(value).max()))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", ZOO)
def test_every_zoo_model_passes_verification_with_its_own_loss(name: str, outputs: int) -> None:
    if (name, outputs) == ("softmax_regression", 1):
        outputs = 2
    model = build_zoo_model(name, inputs=(1, 8, 8), outputs=outputs, seed=5)
    bundle = compile_model(model, loss=zoo_loss(name, outputs), name=name, verify=False)
    checked = verify_program(model, bundle)
    assert checked.forward < 1e-5
    assert max(checked.gradients.values()) < 1e-4
    assert checked.engines is not None and checked.engines < 1e-5


def digest(model: Any) -> str:
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()[:16]


def test_a_seed_gives_these_very_bits() -> None:
    digests = [digest(build_zoo_model("mlp", inputs=(8,), hidden=(6,), outputs=3, seed=seed)) for seed in (7, 8)]
    assert digests == ["13bc96e4cb8071c0", "e6e8d5a7ff91f001"]


def test_initial_weights_fill_he_s_and_glorot_s_bounds_and_biases_are_zero() -> None:
    w = weights_of(build_zoo_model("mlp", inputs=(100,), hidden=(80,), outputs=50, seed=0))
    for name, bound in (("fc1.weight", math.sqrt(6 / 100)), ("fc2.weight", math.sqrt(6 / (80 + 50)))):
        assert 0.96 * bound < np.abs(w[name]).max() <= bound
        assert abs(w[name].mean()) < 0.03 * bound
        assert w[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not w["fc1.bias"].any() and not w["fc2.bias"].any()


def test_initial_weights_have_five_significant_bits_so_that_they_are_small_when_packed() -> None:
    model = build_zoo_model("mlp", inputs=(100,), hidden=(80,), outputs=50, seed=0)
    assert all(not (a.astype(np.float32).view(np.uint32) & 0x7FFFF).any() for a in weights_of(model).values())


def test_the_paper_s_cnn_has_its_1_663_370_parameters() -> None:
    model = build_zoo_model("cnn", inputs=(1, 28, 28), outputs=10, channels=(32, 64), hidden=(512,), seed=0)
    assert sum(a.size for a in weights_of(model).values()) == 1_663_370
    assert run(model.SerializeToString(), {"x": np.zeros((2, 1, 28, 28), np.float32)})["logits"].shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet", {}, "not in the zoo; choose one of linear_regression"),
        ("mlp", {"activation": "gelu"}, "activation 'gelu' is not one of relu, tanh, sigmoid"),
        ("linear_svm", {"hidden": (5,)}, "has no hidden layers; use 'mlp'"),
        ("softmax_regression", {"outputs": 1}, "needs at least 2"),
        ("mlp", {"hidden": (5, 0)}, "hidden=(5, 0): sizes must be whole numbers above 0"),
        ("mlp", {"inputs": ()}, "inputs=()"),
        ("cnn", {"inputs": (28, 28)}, "takes inputs (channels, height, width)"),
        ("cnn", {"inputs": (1, 3, 28)}, "at least 4 x 4 pixels"),
        ("cnn", {"inputs": (1, 8, 8), "channels": (4,)}, "two channel numbers"),
    ],
)
def test_impossible_arguments_are_refused_by_name(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        build_zoo_model(name, **{"inputs": (4,), "outputs": 3, "seed": 0, **arguments})
