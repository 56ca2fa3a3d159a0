"""Losses against their closed forms in float64: value, gradient, sums for evaluation, and no overflow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_graphs import gradients, model_of, run

from coordinator.compile import LOSSES, compile_model
from coordinator.compile.losses import LossOptions
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle

Array = NDArray[Any]
BATCH = 6


def identity_model(loss: str, width: int | None) -> Bundle:
    """y = x + b with b = 0, so that the gradient of b is the loss's own, summed over the batch."""
    shape = [] if width is None else [width]
    model = model_of("y = Add(x, b)", {"b": np.zeros([1, *shape], np.float32)}, inputs={"x": ["batch", *shape]})
    return compile_model(model, loss=loss, train=["b"], name=loss, verify=False)


def evaluate(bundle: Bundle, x: Array, target: Array) -> tuple[float, float]:
    feeds = {"x": x, "target": target, **bundle.program.spec.unflatten(bundle.parameters)}
    results = run(bundle.program.evaluate, feeds)
    assert results["loss_sum"].shape == results["metric_sum"].shape == ()
    return float(results["loss_sum"]), float(results["metric_sum"])


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_cross_entropy(z: Array, t: Array) -> tuple[Array, Array, Array]:
    p, rows = softmax(z), np.arange(len(t))
    one_hot = np.eye(z.shape[1])[t]
    return -np.log(p[rows, t]), p - one_hot, z.argmax(axis=1) == t


def binary_cross_entropy(z: Array, t: Array) -> tuple[Array, Array, Array]:
    flat = z.reshape(-1)
    p = 1 / (1 + np.exp(-flat))
    losses = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return losses, (p - t).reshape(z.shape), (p > 0.5) == (t > 0.5)


def mean_squared_error(z: Array, t: Array) -> tuple[Array, Array, Array]:
    error = z - t.reshape(z.shape)
    axes = tuple(range(1, z.ndim))
    squared = (error**2).mean(axis=axes) if axes else error**2
    return squared, 2 * error / max(int(np.prod(z.shape[1:])), 1), squared


def multi_label(z: Array, t: Array) -> tuple[Array, Array, Array]:
    p = 1 / (1 + np.exp(-z))
    losses = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return losses.mean(axis=1), (p - t) / z.shape[1], ((p > 0.5) == (t > 0.5)).mean(axis=1)


def mean_absolute_error(z: Array, t: Array) -> tuple[Array, Array, Array]:
    error = (z - t.reshape(z.shape)).reshape(len(z), -1)
    slope = np.sign(error) / error.shape[1]
    return np.abs(error).mean(axis=1), slope.reshape(z.shape), np.abs(error).mean(axis=1)


def huber(z: Array, t: Array) -> tuple[Array, Array, Array]:
    error = (z - t.reshape(z.shape)).reshape(len(z), -1)
    inside = np.abs(error) <= 1
    losses = np.where(inside, error**2 / 2, np.abs(error) - 0.5).mean(axis=1)
    slope = np.where(inside, error, np.sign(error)) / error.shape[1]
    return losses, slope.reshape(z.shape), np.abs(error).mean(axis=1)


def binary_hinge(z: Array, t: Array) -> tuple[Array, Array, Array]:
    y = t.reshape(z.shape)
    violated = 1 - y * z > 0
    return np.maximum(0, 1 - y * z).reshape(-1), -y * violated, (y * z > 0).reshape(-1)


def multiclass_hinge(z: Array, t: Array) -> tuple[Array, Array, Array]:
    y = 2 * np.eye(z.shape[1])[t] - 1
    return np.maximum(0, 1 - y * z).sum(axis=1), -y * (1 - y * z > 0), z.argmax(axis=1) == t


def classes(rng: np.random.Generator) -> Array:
    return rng.integers(0, 4, BATCH)


def flags(rng: np.random.Generator) -> Array:
    return rng.integers(0, 2, BATCH).astype(np.float32)


def flag_rows(rng: np.random.Generator) -> Array:
    return rng.integers(0, 2, (BATCH, 3)).astype(np.float32)


def signs(rng: np.random.Generator) -> Array:
    return 2 * flags(rng) - 1


def values(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.standard_normal((BATCH, *shape)).astype(np.float32)


CASES = [
    ("softmax_cross_entropy", 4, classes, softmax_cross_entropy),
    ("binary_cross_entropy", 1, flags, binary_cross_entropy),
    ("binary_cross_entropy", None, flags, binary_cross_entropy),
    ("binary_cross_entropy", 3, flag_rows, multi_label),
    ("mean_squared_error", 1, values(), mean_squared_error),
    ("mean_squared_error", None, values(), mean_squared_error),
    ("mean_squared_error", 4, values(4), mean_squared_error),
    ("mean_absolute_error", 1, values(), mean_absolute_error),
    ("mean_absolute_error", 4, values(4), mean_absolute_error),
    ("huber", None, values(), huber),
    ("huber", 4, values(4), huber),
    ("reconstruction", 4, values(4), mean_squared_error),
    ("hinge", 1, signs, binary_hinge),
    ("hinge", None, signs, binary_hinge),
    ("hinge", 4, classes, multiclass_hinge),
]


def test_every_loss_has_a_case() -> None:
    assert {loss for loss, *_ in CASES} == set(LOSSES)


@pytest.mark.parametrize(("loss", "width", "draw", "closed_form"), CASES)
def test_loss_gradient_and_sums_equal_the_closed_form(
    loss: str, width: int | None, draw: Callable[..., Array], closed_form: Callable[..., tuple[Array, Array, Array]]
) -> None:
    rng = np.random.default_rng(11)
    shape = (BATCH,) if width is None else (BATCH, width)
    x, target = rng.standard_normal(shape).astype(np.float32), draw(rng)
    bundle = identity_model(loss, width)
    losses, slopes, metric = closed_form(x.astype(np.float64), target)

    trained, found = gradients(bundle, {"x": x, "target": target})
    loss_sum, metric_sum = evaluate(bundle, x, target)

    assert trained == pytest.approx(losses.mean(), rel=1e-6)
    assert loss_sum == pytest.approx(losses.sum(), rel=1e-6)
    assert metric_sum == pytest.approx(metric.sum(), rel=1e-6)
    np.testing.assert_allclose(found["b"], slopes.sum(axis=0, keepdims=True) / BATCH, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_cross_entropies_stay_finite_and_exact_for_confident_logits(size: float) -> None:
    x = np.array([[size, 0.0, -size], [-size, size, 0.0]], np.float32)
    for target, mean in ((np.array([0, 1]), 0.0), (np.array([2, 0]), 2 * size)):
        trained, found = gradients(identity_model("softmax_cross_entropy", 3), {"x": x, "target": target})
        assert trained == pytest.approx(mean, abs=1e-6)
        assert np.all(np.isfinite(found["b"]))
    z = np.array([size, -size], np.float32)
    for flag, mean in ((np.array([1, 0], np.float32), 0.0), (np.array([0, 1], np.float32), size)):
        trained, found = gradients(identity_model("binary_cross_entropy", None), {"x": z, "target": flag})
        assert trained == pytest.approx(mean, abs=1e-6)
        assert np.all(np.isfinite(found["b"]))


@pytest.mark.parametrize(
    ("loss", "final"),
    [
        ("softmax_cross_entropy", "Softmax"),
        ("softmax_cross_entropy", "LogSoftmax"),
        ("binary_cross_entropy", "Sigmoid"),
    ],
)
def test_a_model_that_ends_in_probabilities_trains_on_its_logits(loss: str, final: str) -> None:
    rng = np.random.default_rng(2)
    width = 1 if loss.startswith("binary") else 3
    weights = {"w": rng.standard_normal((4, width)).astype(np.float32)}
    x = rng.standard_normal((BATCH, 4)).astype(np.float32)
    target = flags(rng) if width == 1 else rng.integers(0, 3, BATCH)
    probable = compile_model(
        model_of(f"z = MatMul(x, w); y = {final}(z)", weights, inputs={"x": ["n", 4]}), loss=loss, name="probabilities"
    )
    logits = compile_model(model_of("y = MatMul(x, w)", weights, inputs={"x": ["n", 4]}), loss=loss, name="logits")

    feeds = {"x": x, "target": target}
    first, second = gradients(probable, feeds), gradients(logits, feeds)

    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1]["w"], second[1]["w"])
    outputs = run(probable.program.infer, {"x": x, **weights})["y"]
    assert np.allclose(
        np.exp(outputs) if final == "LogSoftmax" else outputs, outputs_of(final, x @ weights["w"]), atol=1e-6
    )


def outputs_of(final: str, z: Array) -> Array:
    return 1 / (1 + np.exp(-z)) if final == "Sigmoid" else softmax(z)


@pytest.mark.parametrize(
    ("loss", "width", "message"),
    [
        ("softmax_cross_entropy", 1, "with at least 2 classes"),
        ("softmax_cross_entropy", None, "expected [batch, classes]"),
        ("absolute", 1, "loss 'absolute' is not one of softmax_cross_entropy"),
    ],
)
def test_a_loss_that_does_not_fit_the_output_is_refused(loss: str, width: int | None, message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        identity_model(loss, width)


def test_target_and_classes_are_in_the_program() -> None:
    found = {}
    for loss, width, *_ in CASES:
        program = identity_model(loss, width).program
        found[loss, width] = (program.target.dtype, program.target.shape, program.classes, program.metric)
    assert found == {
        ("softmax_cross_entropy", 4): ("int64", (None,), 4, "accuracy"),
        ("binary_cross_entropy", 1): ("float32", (None,), 0, "accuracy"),
        ("binary_cross_entropy", None): ("float32", (None,), 0, "accuracy"),
        ("binary_cross_entropy", 3): ("float32", (None, 3), 0, "accuracy"),
        ("mean_absolute_error", 1): ("float32", (None,), 0, "mean_absolute_error"),
        ("mean_absolute_error", 4): ("float32", (None, 4), 0, "mean_absolute_error"),
        ("huber", None): ("float32", (None,), 0, "mean_absolute_error"),
        ("huber", 4): ("float32", (None, 4), 0, "mean_absolute_error"),
        ("reconstruction", 4): ("float32", (None, 4), 0, "mean_squared_error"),
        ("mean_squared_error", 1): ("float32", (None,), 0, "mean_squared_error"),
        ("mean_squared_error", None): ("float32", (None,), 0, "mean_squared_error"),
        ("mean_squared_error", 4): ("float32", (None, 4), 0, "mean_squared_error"),
        ("hinge", 1): ("float32", (None,), 0, "accuracy"),
        ("hinge", None): ("float32", (None,), 0, "accuracy"),
        ("hinge", 4): ("int64", (None,), 4, "accuracy"),
    }


def cross_entropy(z: Array, t: Array, options: LossOptions, smoothing: float) -> tuple[float, Array, float]:
    """Mean loss, its slope and the accuracy, classes last, one position after the other, as PyTorch defines them."""
    weights = np.array(options.class_weights or np.ones(z.shape[-1]))
    total, weight, correct, counted, slope = 0.0, 0.0, 0, 0, np.zeros_like(z)
    for index in np.ndindex(t.shape):
        label = t[index]
        if label == options.ignore_index:
            continue
        p = softmax(z[index][None])[0]
        q = weights * ((1 - smoothing) * np.eye(len(p))[label] + smoothing / len(p))
        total -= float(q @ np.log(p))
        slope[index] = p * q.sum() - q
        weight += weights[label]
        counted += 1
        correct += int(p.argmax() == label)
    return total / weight, slope / weight, correct / counted


OPTIONS = [
    LossOptions(),
    LossOptions(class_weights=(0.5, 2.0, 1.0)),
    LossOptions(label_smoothing=True),
    LossOptions(ignore_index=-100),
    LossOptions(ignore_index=2, class_weights=(0.5, 2.0, 0.0), label_smoothing=True),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 2, 5)])
def test_cross_entropy_with_options_per_class_position_and_pixel(shape: tuple[int, ...], options: LossOptions) -> None:
    rng = np.random.default_rng(3)
    model = model_of("y = Add(x, b)", {"b": np.zeros((1, *shape))}, inputs={"x": ["n", *shape]})
    bundle = compile_model(model, loss="softmax_cross_entropy", name="m", loss_options=options)
    x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
    positions = shape[1:] if len(shape) == 3 else shape[:-1]
    target = rng.integers(0, 3, (BATCH, *positions))
    if options.ignore_index is not None:
        target[rng.random(target.shape) < 0.3] = options.ignore_index
    assert bundle.program.target.shape == (None, *positions) and bundle.program.classes == 3
    z = np.moveaxis(x, 1, -1) if len(shape) == 3 else x
    mean, slope, _ = cross_entropy(z.astype(np.float64), target, options, 0.1 if options.label_smoothing else 0.0)
    plain, _, accuracy = cross_entropy(z.astype(np.float64), target, options, 0.0)

    trained, found = gradients(bundle, {"x": x, "target": target})
    loss_sum, metric_sum = evaluate(bundle, x, target)

    assert trained == pytest.approx(mean, rel=1e-5)
    expected = np.moveaxis(slope, -1, 1) if len(shape) == 3 else slope
    np.testing.assert_allclose(found["b"], expected.sum(axis=0, keepdims=True), rtol=1e-4, atol=1e-6)
    assert loss_sum / BATCH == pytest.approx(plain, rel=1e-5)
    assert metric_sum / BATCH == pytest.approx(accuracy, rel=1e-5)


def test_a_batch_of_ignored_labels_alone_changes_nothing() -> None:
    model = model_of("y = Add(x, b)", {"b": np.zeros((1, 3))}, inputs={"x": ["n", 3]})
    bundle = compile_model(
        model, loss="softmax_cross_entropy", name="m", loss_options=LossOptions(ignore_index=-1), verify=False
    )
    loss, found = gradients(bundle, {"x": np.ones((2, 3), np.float32), "target": np.array([-1, -1])})
    assert loss == 0.0 and not found["b"].any()


def test_classes_last_in_images_are_possible() -> None:
    model = model_of("y = Add(x, b)", {"b": np.zeros((1, 2, 5, 3))}, inputs={"x": ["n", 2, 5, 3]})
    options = LossOptions(class_axis=-1)
    program = compile_model(model, loss="softmax_cross_entropy", name="m", loss_options=options).program
    assert (program.target.shape, program.classes) == ((None, 2, 5), 3)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("hinge", LossOptions(ignore_index=0), "is for softmax_cross_entropy"),
        ("softmax_cross_entropy", LossOptions(class_weights=(1.0, 2.0)), "2 are given, the model has 3 classes"),
        ("softmax_cross_entropy", LossOptions(class_weights=(1.0, -2.0, 1.0)), "not below 0"),
        ("softmax_cross_entropy", LossOptions(class_axis=5), "expected [batch, classes]"),
    ],
)
def test_options_that_do_not_fit_are_refused(loss: str, options: LossOptions, message: str) -> None:
    model = model_of("y = Add(x, b)", {"b": np.zeros((1, 3))}, inputs={"x": ["n", 3]})
    with pytest.raises(CompileError, match=re.escape(message)):
        compile_model(model, loss=loss, name="m", loss_options=options, verify=False)


def test_reconstruction_needs_an_output_like_an_input() -> None:
    model = model_of("y = MatMul(x, w)", {"w": np.ones((4, 3))}, inputs={"x": ["n", 4]})
    with pytest.raises(CompileError, match="no input has it"):
        compile_model(model, loss="reconstruction", name="m", verify=False)
