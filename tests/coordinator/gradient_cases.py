"""Gradient rules, case by case: a graph from x to y, its parameters, and the check that all families of rules share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx_graphs import RATE, directional, forward64, gradients, model_of

from coordinator.compile import compile_model
from edge_sdk.training.engine.executor import Executor

__all__ = ["Case", "after_dense", "assert_gradients"]

BATCH = 3


@dataclass(frozen=True)
class Case:
    """A graph from x to y: shapes of its parameters, shape of one x, and operands that are no parameters.

    ``oracle`` is another way to write the graph, where the reference evaluator computes ``text`` in float32 only.
    """

    label: str
    text: str
    parameters: dict[str, tuple[int, ...]]
    x: tuple[int, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    oracle: str = ""

    def __str__(self) -> str:
        return self.label


def after_dense(label: str, text: str, **parameters: tuple[int, ...]) -> Case:
    """``text`` behind a dense layer that makes h of x, so that what happens to h has a gradient."""
    return Case(label, f"h = MatMul(x, head); {text}", {"head": (5, 5), **parameters}, (5,))


def assert_gradients(case: Case) -> None:
    """Gradients on onnxruntime equal central differences in float64 by an evaluator that knows nothing of our graphs,
    and the NumPy engine makes the same step."""
    rng = np.random.default_rng(7)
    parameters = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in case.parameters.items()}
    fixed = {
        name: np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        for name, value in case.constants.items()
    }
    constants, inputs = {**parameters, **fixed}, {"x": ("batch", *case.x)}
    x = rng.standard_normal((BATCH, *case.x)).astype(np.float32)

    forward = forward64(case.oracle or case.text, constants, inputs)
    y = forward({"x": x})
    target = rng.standard_normal(y.shape).astype(np.float32)

    def loss(values: Any) -> float:
        return float(np.mean((forward(values) - target) ** 2))

    bundle = compile_model(
        model_of(case.text, constants, inputs=inputs),
        loss="mean_squared_error",
        train=list(parameters),  # by their names, since a factor of one element is taken for a constant
        name=case.label,
        verify=False,
    )
    batch = {"x": x, "target": target[:, 0] if target.shape == (BATCH, 1) else target}
    trained, found = gradients(bundle, batch)

    assert trained == pytest.approx(loss({"x": x}), rel=1e-5)
    assert set(found) == set(parameters)
    for name, gradient in found.items():
        for _ in range(4):
            direction = rng.standard_normal(gradient.shape)
            expected = directional(loss, {"x": x, **parameters}, name, direction)
            scale = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
            assert abs(float(np.sum(gradient * direction)) - expected) <= 2e-5 * scale, name

    plan = bundle.program.train_plan
    assert plan.outputs, "the NumPy engine lacks an operator"
    start = bundle.program.spec.unflatten(bundle.parameters)
    results = Executor(plan, case.label).run({**batch, **start, "lr": np.array(RATE, np.float32)})
    assert results["loss"] == pytest.approx(trained, rel=1e-5)
    for name, gradient in found.items():
        same = (start[name].astype(np.float64) - results[f"new/{name}"]) / RATE
        size = max(float(np.max(np.abs(gradient), initial=0.0)), 1e-3)
        np.testing.assert_allclose(same, gradient, rtol=2e-5, atol=2e-5 * size, err_msg=name)
