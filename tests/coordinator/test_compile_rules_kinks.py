"""Slopes on both sides of every kink, and on it, to the last float32: those of PyTorch, on both engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_graphs import gradients, model_of

from coordinator.compile import compile_model, load_onnx
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

CASES_FOLDER = Path(__file__).parents[1] / "data" / "onnx" / "cases"
RATE = 1024.0  # a power of two: dividing the step by it is exact


def around(*bounds: float) -> list[float]:
    """Each bound between the next float32 below it and the next one above."""
    points = []
    for bound in np.array(bounds, np.float32):
        below, above = (np.nextafter(bound, np.float32(end)) for end in (-np.inf, np.inf))
        points += [float(below), float(bound), float(above)]
    return points


@dataclass(frozen=True)
class Kink:
    """What happens to h, where its slope jumps, and the slope that torch.autograd finds at the points around."""

    text: str
    bounds: tuple[float, ...]
    slopes: tuple[float, ...]
    constants: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text} {sorted(map(float, self.constants.values()))}"


def clip(low: float, high: float) -> Kink:
    """nn.Hardtanh (and nn.ReLU6): nothing passes on a bound."""
    constants = {"low": np.float32(low), "high": np.float32(high)}
    return Kink("y = Clip(h, low, high)", (low, high), (0, 0, 1, 1, 0, 0), constants)


ALPHA = np.float32(0.3)
SIXTH = np.float32(1 / 6)
KINKS = [
    Kink("y = Relu(h)", (0,), (0, 0, 1)),
    Kink("y = LeakyRelu<alpha=0.3>(h)", (0,), (ALPHA, ALPHA, 1)),
    Kink("y = PRelu(h, slope)", (0,), (ALPHA, ALPHA, 1), {"slope": ALPHA}),
    Kink("y = ThresholdedRelu<alpha=0.6>(h)", (0.6,), (0, 0, 1)),
    Kink("y = Elu<alpha=0.3>(h)", (0,), (ALPHA, ALPHA, 1)),
    Kink("y = Celu<alpha=0.3>(h)", (0,), (1, 1, 1)),
    Kink("y = Selu(h)", (0,), (1.7580993, 1.7580993, 1.0507010)),
    Kink("y = HardSigmoid<alpha=0.16666667, beta=0.5>(h)", (-3, 3), (0, 0, SIXTH, SIXTH, 0, 0)),
    Kink("y = HardSigmoid<alpha=-0.2, beta=0.5>(h)", (-2.5, 2.5), (0, 0, -0.2, -0.2, 0, 0)),
    Kink("y = HardSigmoid<alpha=0.0, beta=0.5>(h)", (0,), (0, 0, 0)),
    Kink("y = HardSwish(h)", (-3, 3), (0, 0, -0.5, 1.5, 1, 1)),
    Kink("y = Shrink<lambd=0.5, bias=0.5>(h)", (-0.5, 0.5), (1, 0, 0, 0, 0, 1)),
    Kink("y = Abs(h)", (0,), (-1, 0, 1)),
    clip(0, 6),
    clip(-1, 1),
    clip(0, 1e-30),
    clip(-2, 0),
    clip(-3e38, 3e38),
    clip(0.1, 0.3),
    Kink("y = Clip(h, low)", (0,), (0, 0, 1), {"low": np.float32(0)}),
    Kink("y = Clip(h, low)", (0.7,), (0, 0, 1), {"low": np.float32(0.7)}),
    Kink("y = Clip(h, , high)", (0.7,), (1, 0, 0), {"high": np.float32(0.7)}),
    Kink("y = Clip(h, low, high)", (1,), (0, 0, 0), {"low": np.float32(1), "high": np.float32(1)}),
    Kink("y = Max(h, floor)", (0.7,), (0, 0.5, 1), {"floor": np.float32(0.7)}),
    Kink("y = Min(h, roof)", (0.7,), (1, 0.5, 0), {"roof": np.float32(0.7)}),
    Kink(
        "t = Add(h, none); y = Max(h, floor, t)",
        (0.7,),
        (0, 2 / 3, 1),
        {"floor": np.float32(0.7), "none": np.float32(0)},
    ),
]


def moved(bundle: Bundle, batch: dict[str, NDArray[Any]], engine_name: str) -> NDArray[np.float64]:
    """The gradient of the bundle's first parameter, from one step."""
    engine = make_engine(bundle.program, engine_name)
    handle = engine.load(bundle.parameters)
    engine.step(handle, batch, {"lr": RATE})
    change = (bundle.parameters.astype(np.float64) - engine.read(handle)) / RATE
    return change[: next(iter(bundle.program.spec)).size]


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("kink", KINKS, ids=str)
def test_the_slope_beside_and_on_a_kink_is_that_of_pytorch(kink: Kink, engine_name: str) -> None:
    points = np.array([around(*kink.bounds)], np.float32)
    width = points.shape[1]
    model = model_of(
        f"h = Add(x, w); {kink.text}", {"w": np.zeros(width), **kink.constants}, inputs={"x": ("n", width)}
    )
    bundle = compile_model(model, loss="mean_absolute_error", name="kink", verify=False)
    far_below = np.full((1, width), -3.4e38, np.float32)  # so that dY is 1 / width everywhere

    slopes = width * moved(bundle, {"x": points, "target": far_below}, engine_name)

    np.testing.assert_allclose(slopes, kink.slopes, rtol=1e-6, atol=0)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
def test_the_slope_of_prelu_is_that_of_pytorch(engine_name: str) -> None:
    points = np.array([[-1.0, *around(0), 1.0]], np.float32)
    model = model_of("y = PRelu(x, slope)", {"slope": np.full(5, 0.25)}, inputs={"x": ("n", 5)})
    bundle = compile_model(model, loss="mean_absolute_error", name="kink", verify=False)
    slopes = 5 * moved(bundle, {"x": points, "target": np.full((1, 5), -9, np.float32)}, engine_name)
    np.testing.assert_allclose(slopes, np.minimum(points[0], 0), rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(
    ("loss", "bounds", "slopes"),
    [
        ("hinge", (1,), (-1, 0, 0)),  # as nn.MultiMarginLoss, which counts margins above 0
        ("mean_absolute_error", (0,), (-1, 0, 1)),
        ("huber", (-1, 1), (-1, -1, -1, 1, 1, 1)),
    ],
)
def test_the_slope_of_a_loss_beside_and_on_its_kink(
    loss: str, bounds: tuple[float, ...], slopes: tuple[float, ...], engine_name: str
) -> None:
    points = np.array(around(*bounds), np.float32)
    model = model_of("y = Add(x, w)", {"w": np.zeros((1, 1))}, inputs={"x": ("n", 1)})
    bundle = compile_model(model, loss=loss, train=["w"], name="kink", verify=False)
    target = np.array([1.0 if loss == "hinge" else 0.0], np.float32)
    for point, slope in zip(points, slopes, strict=True):
        gradient = moved(bundle, {"x": np.array([[point]]), "target": target}, engine_name)
        np.testing.assert_allclose(gradient, slope, rtol=1e-6)


@pytest.mark.parametrize("engine_name", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(
    ("text", "slopes"),
    [
        ("p = MaxPool<kernel_shape=[4]>(h)", [0, 1, 0, 0]),  # MaxPool1d and adaptive_max_pool1d: the first maximum
        ("p = MaxPool<kernel_shape=[2], strides=[2]>(h)", [0, 1, 1, 0]),
        ("p = MaxPool<kernel_shape=[3], strides=[1]>(h)", [0, 2, 0, 0]),
        ("p = GlobalMaxPool(h)", [0, 1, 0, 0]),
        ("p = ReduceMax<keepdims=1>(h, last)", [0, 0.5, 0.5, 0]),  # torch.amax: evenly
    ],
)
def test_of_equal_maxima_the_same_ones_get_the_gradient_as_in_pytorch(
    text: str, slopes: list[float], engine_name: str
) -> None:
    x = np.array([[[1, 3, 3, 2]]], np.float32)
    model = model_of(
        f"h = Add(x, w); {text}; y = ReduceSum<keepdims=0>(p, last)",
        {"w": np.zeros((1, 1, 4)), "last": [2]},
        inputs={"x": ("n", 1, 4)},
    )
    bundle = compile_model(model, loss="mean_absolute_error", train=["w"], name="kink", verify=False)
    target = np.zeros((1,) if len(bundle.program.target.shape) == 1 else (1, 1), np.float32)
    np.testing.assert_allclose(moved(bundle, {"x": x, "target": target}, engine_name), slopes, rtol=1e-6)


def test_relu6_passes_gradients_of_values_just_above_zero() -> None:
    bundle = compile_model(load_onnx(CASES_FOLDER / "relu6_small.onnx"), loss="softmax_cross_entropy", name="relu6")
    rng = np.random.default_rng(0)
    batch = {"x": rng.standard_normal((4, 8)).astype(np.float32), "target": np.array([0, 1, 2, 0])}

    _, found = gradients(bundle, batch)

    weights = {
        name: array.astype(np.float64) for name, array in bundle.program.spec.unflatten(bundle.parameters).items()
    }
    h = batch["x"].astype(np.float64) @ weights["W"]
    assert np.any((h > 0) & (h < 1.2e-7)), "values that an inexact mask loses"
    scores = np.clip(h, 0, 6) @ weights["V"]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    slope = (shares / shares.sum(axis=1, keepdims=True) - np.eye(3)[batch["target"]]) / 4
    expected = batch["x"].T.astype(np.float64) @ ((slope @ weights["V"].T) * ((h > 0) & (h < 6)))
    np.testing.assert_allclose(found["W"], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
