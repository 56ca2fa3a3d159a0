"""A compiled program is checked with numbers before anybody trains with it.

1. The inference graph gives what the source model gives, and an example's output does not depend on its batch.
2. Training and evaluation find the same loss (unless normalisation, by the batch or of the target, makes them differ
   by design).
3. For every parameter, the step that onnxruntime makes with the train graph agrees with central differences of the
   loss, taken in float64 by the NumPy engine (by ONNX's reference evaluator where that lacks an operator), along the
   gradient, which shows a wrong size, and along random directions, which show what is missing from it. ReLU,
   max-pooling and hinge have kinks, where a difference quotient means nothing; points are random, so one that
   disagrees is drawn again, every other time with a step as small beside the parameter as usual ones are beside 1, and
   a wrong gradient disagrees every time.
4. Both engines make the same step, with every optional term switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from coordinator.compile.batch_size import BatchError, RunError
from coordinator.compile.oracle import Arrays, LossAround, Run, loss_in_float64, session_of, widened
from coordinator.compile.rules.dropout import DROPOUT_FACTOR
from coordinator.compile.samples import random_inputs, random_target
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine.blas import limit_blas_threads, restore_blas_threads
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.program import ANCHOR, NEW

__all__ = ["Verification", "verify_program"]

BATCH_SIZE: Final = 3
ATTEMPTS: Final = 4
DIFFERENCE: Final = 1e-7
"""Half the width of the central difference, in a direction whose elements are about 1."""
RANDOM_DIRECTIONS: Final = 2
GRADIENT_TOLERANCE: Final = 1e-3
ENGINE_TOLERANCE: Final = 1e-4
FORWARD_TOLERANCE: Final = 1e-4
LEARNING_RATE: Final = 1024.0
"""Large, so that the step is not lost beside the parameter, and a power of two, so that undoing it is exact."""
EPSILON: Final = 2.0**27
"""So large that Adam and RMSProp divide every gradient by it alone: with ``lr`` as many times larger they make SGD's
step."""
PLAIN_STEP: Final[Mapping[str, float]] = {
    **dict.fromkeys(("momentum", "beta1", "beta2", "rho", "weight_decay", "mu"), 0.0),
    "gradient_norm_max": 1e30,
}
"""Scalars with which every optimiser makes the step of SGD."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the checks were from exact agreement, each relative to the size of what was compared.

    Attributes:
        forward: Source model against inference graph.
        gradients: By parameter, the step against central differences.
        engines: A step by onnxruntime against one by NumPy; None where the NumPy engine lacks an operator.
    """

    forward: float
    gradients: Mapping[str, float]
    engines: float | None


def verify_program(source: onnx.ModelProto, bundle: Bundle, *, seed: int = 0, same_loss: bool = True) -> Verification:
    """Check a program against its source model and its gradients against differences.

    Args:
        source: The model that was compiled.
        bundle: What it was compiled into.
        seed: Decides the random inputs, parameters and directions.
        same_loss: Whether training and evaluation compute the loss in one unit.

    Raises:
        CompileError: Says which check failed, for which parameter and node.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    changed = limit_blas_threads(1)  # a batch of three: more threads only spin
    try:
        forward = _check_forward(source, bundle, rng)
        step = session_of(bundle.program.train, "the train graph")
        gradients = _check_gradients(bundle, step, rng, same_loss=same_loss)
        engines = _check_engines(bundle, step, rng) if bundle.program.train_plan.outputs else None
    finally:
        restore_blas_threads(changed)
    return Verification(forward, gradients, engines)


def _check_forward(source: onnx.ModelProto, bundle: Bundle, rng: np.random.Generator) -> float:
    program = bundle.program
    inputs = random_inputs(program.inputs, BATCH_SIZE, rng)
    run = session_of(program.infer, "the inference graph")
    parameters = program.spec.unflatten(bundle.parameters)
    worst = 0.0
    one = {**{name: array[:1] for name, array in inputs.items()}, **parameters}
    try:
        expected = _run_source(source, inputs)
        whole = run({**inputs, **parameters})
    except RunError as failure:
        run(one)  # where a single example fails too, the batch is not what is wrong
        raise BatchError(f"model {program.name!r}", str(failure)) from failure
    alone = run(one)
    for name, array in whole.items():
        others = (("the source model", array, expected[name]), ("a batch of one", array[:1], alone[name]))
        for what, found, other in others:
            error = _distance(found, other)
            if not error <= FORWARD_TOLERANCE:
                raise BatchError(
                    f"model {program.name!r}",
                    f"its output {name!r} differs from that of {what} by {error:.2g} of its size",
                )
            worst = max(worst, error)
    return worst


def _run_source(source: onnx.ModelProto, inputs: Arrays) -> Arrays:
    run = session_of(source.SerializeToString(), "the source model")
    sizes = {i.type.tensor_type.shape.dim[0].dim_value for i in source.graph.input if i.name in inputs}
    fixed = max(sizes, default=0)
    if not fixed:
        return run(inputs)
    # A source with a fixed batch sees our examples repeated until they fill it, one by one.
    try:
        parts = [
            run({name: np.repeat(array[i : i + 1], fixed, axis=0) for name, array in inputs.items()})
            for i in range(BATCH_SIZE)
        ]
    except RunError as error:  # with its own batch: something else is wrong with it
        raise CompileError(str(error)) from error
    return {name: np.concatenate([part[name][:1] for part in parts]) for name in parts[0]}


def _check_gradients(bundle: Bundle, step: Run, rng: np.random.Generator, *, same_loss: bool) -> dict[str, float]:
    program = bundle.program
    evaluate = session_of(program.evaluate, "the evaluate graph")
    loss_at = loss_in_float64(program)
    errors: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        point = _Point.draw(bundle, rng)
        gradients, trained_loss = point.gradients(step, program)
        by_batch = any(t.kind == "buffer" for t in program.spec)
        if same_loss and not by_batch and "label_smoothing" not in program.scalars:
            _check_loss(trained_loss, float(evaluate(point.feeds(program, {}))["loss_sum"]) / BATCH_SIZE)
        # What comes before a normalisation may have no gradient at all; float32 leaves some noise of it.
        floor = 1e-3 * max(float(np.linalg.norm(g)) for g in gradients.values())
        loss = loss_at({name: widened(array) for name, array in point.feeds(program, program.scalars).items()})
        for name, gradient in gradients.items():
            if not errors.get(name, np.inf) <= GRADIENT_TOLERANCE:  # also where it is NaN
                errors[name] = point.error(loss, name, gradient, floor, rng, relative=attempt % 2 == 1)
        if all(error <= GRADIENT_TOLERANCE for error in errors.values()):
            return errors
    worst = next(name for name, error in errors.items() if not error <= GRADIENT_TOLERANCE)
    raise CompileError(
        f"parameter {worst!r} (used by {_users(program, worst)}): its compiled gradient differs from differences of "
        f"the loss by {errors[worst]:.2g} of its size, {GRADIENT_TOLERANCE} is allowed. A gradient rule is wrong, or "
        "the model is not differentiable there: freeze the parameter, or report the model"
    )


def _check_loss(trained: float, evaluated: float) -> None:
    if not abs(trained - evaluated) <= FORWARD_TOLERANCE * max(abs(evaluated), 1e-3):
        raise CompileError(
            f"the train graph's loss is {trained:.7g}, the evaluate graph's {evaluated:.7g} on the same random "
            "examples; the model may behave differently in a batch: export it in inference mode"
        )


def _check_engines(bundle: Bundle, step: Run, rng: np.random.Generator) -> float:
    program = bundle.program
    executor = Executor(program.train_plan, "train")
    for _ in range(ATTEMPTS):  # a pre-activation that rounds to either side of a kink differs without any fault
        feeds = _Point.draw(bundle, rng).feeds(program, {**program.scalars, "lr": 0.1, "mu": 0.3, "weight_decay": 0.2})
        for name, array in feeds.items():
            if name.startswith((ANCHOR, "state/")):
                feeds[name] = np.asarray(np.abs(array + 0.1 * rng.standard_normal(array.shape)), dtype=np.float32)
        expected, found = step(feeds), executor.run(feeds)
        errors = {name: _distance(np.asarray(found[name]), array) for name, array in expected.items()}
        if all(error <= ENGINE_TOLERANCE for error in errors.values()):
            return max(errors.values())
    worst = next(name for name, error in errors.items() if not error <= ENGINE_TOLERANCE)
    raise CompileError(
        f"{worst!r}: onnxruntime and the NumPy engine differ by {errors[worst]:.2g} of its size after one step; a "
        "kernel of one of them is wrong for this model: report it"
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """A batch and parameters at which gradients are compared."""

    batch: Arrays
    parameters: dict[str, NDArray[np.float32]]

    @classmethod
    def draw(cls, bundle: Bundle, rng: np.random.Generator) -> _Point:
        """Random examples; parameters moved off their initial values, which may lie on a kink (zeros do)."""
        program = bundle.program
        batch = {**random_inputs(program.inputs, BATCH_SIZE, rng), "target": random_target(program, BATCH_SIZE, rng)}
        parameters = {}
        values = program.spec.unflatten(bundle.parameters)
        for tensor in program.spec:
            value = values[tensor.name]
            scale = 0.1 * float(np.sqrt(np.mean(np.square(value)))) or 0.05
            noise = scale * rng.standard_normal(value.shape) if tensor.kind == "trainable" else 0.0
            parameters[tensor.name] = (value + noise).astype(np.float32)
        return cls(batch, parameters)

    def feeds(self, program: Program, scalars: Mapping[str, float]) -> Arrays:
        """All that a train graph may ask for, states at zero and anchors at the parameters."""
        feeds: Arrays = {**self.batch, **self.parameters}
        scalars = {**scalars, DROPOUT_FACTOR: 0.0}  # a random mask cannot be differenced, nor compared
        feeds.update({name: np.array(value, np.float32) for name, value in scalars.items()})
        feeds.update({name: np.zeros(shape, np.float32) for name, shape in program.state})
        feeds.update({ANCHOR + name: array for name, array in self.parameters.items()})
        return feeds

    def gradients(self, step: Run, program: Program) -> tuple[dict[str, NDArray[np.float64]], float]:
        """What the train graph takes for the gradients, recovered from one step, and its loss."""
        adaptive = "epsilon" in program.scalars
        rate = {"lr": LEARNING_RATE * EPSILON, "epsilon": EPSILON} if adaptive else {"lr": LEARNING_RATE}
        results = step(self.feeds(program, {**program.scalars, **PLAIN_STEP, **rate}))
        trainable = [t.name for t in program.spec if t.kind == "trainable"]
        moved = {name: self.parameters[name].astype(np.float64) - results[NEW + name] for name in trainable}
        gradients = {name: change / LEARNING_RATE for name, change in moved.items()}
        return gradients, float(results["loss"])

    def error(
        self,
        loss: LossAround,
        name: str,
        gradient: NDArray[np.float64],
        floor: float,
        rng: np.random.Generator,
        *,
        relative: bool,
    ) -> float:
        """The worst relative error of ``gradient`` along its own and random directions.

        With ``relative`` the difference is taken that much closer as the parameter's elements are smaller than 1.
        """
        start, size = widened(self.parameters[name]), float(np.linalg.norm(gradient))
        half = DIFFERENCE * (min(1.0, float(np.sqrt(np.mean(np.square(start))))) if relative else 1.0)
        directions = [rng.choice((-1.0, 1.0), size=start.shape) for _ in range(RANDOM_DIRECTIONS)]
        if size > 0:
            directions.append(gradient * (np.sqrt(gradient.size) / size))
        worst = 0.0
        for direction in directions:
            ahead = loss(name, start + half * direction)
            behind = loss(name, start - half * direction)
            measured = (ahead - behind) / (2 * half)
            difference = abs(measured - float(np.sum(gradient * direction)))
            worst = max(worst, difference / max(size, abs(measured), floor, 1e-30), key=_nan_last)
        return worst


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference, relative to the largest element."""
    size = float(np.max(np.abs(expected), initial=0.0))
    difference = float(np.max(np.abs(found.astype(np.float64) - expected), initial=0.0))
    return difference / max(size, 1e-6)


def _users(program: Program, name: str) -> str:
    graph = onnx.ModelProto.FromString(program.infer).graph
    users = [f"{n.op_type} {n.name or n.output[0]!r}" for n in graph.node if name in n.input]
    return ", ".join(users) or "no node"
