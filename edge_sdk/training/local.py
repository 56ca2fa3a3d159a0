"""Local training: epochs of shuffled batches within a time budget, and what came of it.

``delta = local - global``, always. A round's parameters are evaluated on held-out local examples *before* training:
that measures the model that everybody got, with data that no device trained on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.frames import untrained_mask
from edge_sdk.errors import DivergedError, EdgeFedError, ExamplesError, TrainingError
from edge_sdk.training.engine.base import Engine, Handle, merged_scalars
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.marks import apart_from
from edge_sdk.training.own_constants import normalised_examples
from edge_sdk.training.program import Program
from edge_sdk.wire.plan import TrainingPlan

__all__ = [
    "EVALUATION_BATCH",
    "Evaluation",
    "Examples",
    "TrainResult",
    "Trainer",
    "as_examples",
    "evaluate_locally",
    "split_by_plan",
    "split_held_out",
    "train_locally",
    "train_with_trainer",
]

log = logging.getLogger(__name__)

_CALL_SECONDS: Final = 0.5
"""For so long, about, a call of the engine may hear neither ``stop`` nor the clock."""
_STACKED_BYTES_MAX: Final = 1 << 20
"""Of the batches that are handed to the engine at once."""
EVALUATION_BATCH: Final = 256
"""Examples that are evaluated at once, wherever it is: a loss that counts some positions alone is a mean by batches."""
_EVALUATION_SHARE: Final = 0.5  # of the time budget


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Sums over ``count`` examples: of the loss, and of the program's metric (correct answers or squared errors)."""

    loss_sum: float
    metric_sum: float
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What local training gave.

    Attributes:
        delta: float32[P], local minus received parameters, clipped if the plan says so.
        examples: Distinct examples that training saw.
        steps: Optimiser steps really done.
        loss: Mean training loss over the examples of the last epoch begun.
        seconds: Time spent, evaluation included.
        complete: False where the time budget or ``stop`` ended training before the plan did.
        evaluation: Of the received parameters on the held-out examples; None where there are none.
    """

    delta: NDArray[np.float32]
    examples: int
    steps: int
    loss: float
    seconds: float
    complete: bool
    evaluation: Evaluation | None = None


class Trainer(Protocol):
    """Local training written by the user, for models that are no graph."""

    def fit(
        self, parameters: dict[str, NDArray[np.float32]], examples: Examples, plan: TrainingPlan
    ) -> Mapping[str, Any] | tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Train on ``examples`` from ``parameters`` (copies, by name) and return the new parameters by name.

        Where the program normalises an input, ``examples`` hold it normalised, without NaN; the constants are among
        the parameters, and may be left out of those that are returned.

        May return ``(parameters, info)`` with ``info`` of ``{"examples": int, "loss": float, "steps": int}``.

        A trainer may have a second method, ``evaluate(parameters, examples) -> (loss_sum, metric_sum, count)``: sums
        over ``count`` examples of the loss, and of correct answers or squared errors. Where the plan holds examples
        out, they then do not go to ``fit``, and ``evaluate`` is asked about them with the round's parameters.
        """


def train_locally(
    engine: Engine,
    vector: NDArray[np.float32],
    examples: Examples,
    plan: TrainingPlan,
    *,
    rng: np.random.Generator,
    clock: Callable[[], float],
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
    shift: NDArray[np.float32] | None = None,
) -> TrainResult:
    """Train from ``vector`` (float32[P], left as it is) on ``examples`` as ``plan`` says.

    Args:
        engine: Runs the program that the examples were checked against.
        vector: The round's parameters.
        examples: From :func:`as_examples`.
        plan: Epochs, batch size, limits, scalars.
        rng: Shuffles; the same stream gives the same order under every NumPy.
        clock: Monotonic seconds.
        stop: Asked after each call of the engine; true ends training there, and what was done counts. A call makes one
            step, or where the engine makes several at once, as many as take about half a second, 64 at most.
        progress: Told ``(steps, loss)`` after each call of the engine.
        shift: float32[P], added to the parameters after each step (control variates); steps are then made one by one.

    Raises:
        DivergedError: The loss or the parameters became NaN or infinite.
        TrainingError: The engine failed, or the plan has a scalar that the program lacks.
        ExamplesError: There are no examples.
    """
    started = clock()
    scalars = merged_scalars(engine.program, plan.scalars)
    train, held_out = split_by_plan(examples, plan)
    over = started + plan.seconds_max
    evaluation = None
    if len(held_out):
        until = started + _EVALUATION_SHARE * plan.seconds_max
        evaluation = evaluate_locally(engine, vector, examples, held_out, stop=lambda: clock() >= until)
    if shift is not None:  # an algorithm of the application's own may know nothing of constants
        shift = np.where(engine.program.spec.mask("constant"), np.float32(0), shift)
    handle = engine.load(vector)
    planned = planned_steps(len(train), plan)
    progress_of = _Progress()
    pace = _Pace(_steps_at_once(engine, examples, plan) if shift is None else 1, planned)
    for epoch, index in _batches(train, plan, rng, lambda: pace.count):
        losses = _losses(engine, handle, examples, index, scalars)
        if shift is not None:
            engine.shift(handle, shift)
        for loss in losses:
            progress_of.count(epoch, index.shape[1], loss)
        if progress is not None:
            progress(progress_of.steps, losses[-1])
        now = clock()
        if progress_of.steps == planned or now >= over or (stop is not None and stop()):
            break
        pace.learn(progress_of.steps, now, over)
    return TrainResult(
        delta=_clipped(_delta(engine, handle, vector, progress_of), plan.clip_norm, engine.program),
        examples=progress_of.distinct,
        steps=progress_of.steps,
        loss=progress_of.mean_loss,
        seconds=clock() - started,
        complete=progress_of.steps == planned,
        evaluation=evaluation,
    )


def evaluate_locally(
    engine: Engine,
    model: NDArray[np.float32] | Handle,
    examples: Examples,
    index: NDArray[np.intp] | None = None,
    *,
    batch_size: int = EVALUATION_BATCH,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Loss and metric of ``model`` (float32[P] or a handle) over the examples at ``index`` (all without one).

    ``stop`` is asked after each batch; true ends the evaluation with what was seen so far. None comes back where the
    sums are not finite: a model that diverged has no measure.
    """
    chosen = np.arange(len(examples)) if index is None else index
    loss_sum = metric_sum = 0.0
    count = 0
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        loss, metric = engine.evaluate(model, examples.batch(engine.program, part))
        loss_sum, metric_sum, count = loss_sum + loss, metric_sum + metric, count + len(part)
        if stop is not None and stop():
            break
    if not count or not math.isfinite(loss_sum) or not math.isfinite(metric_sum):
        log.warning("no evaluation: loss %s over %d examples", loss_sum, count)
        return None
    return Evaluation(loss_sum, metric_sum, count)


def train_with_trainer(
    trainer: Trainer,
    program: Program,
    vector: NDArray[np.float32],
    examples: Examples,
    plan: TrainingPlan,
    *,
    rng: np.random.Generator,
    clock: Callable[[], float],
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train with the user's own ``fit``; arguments as for :func:`train_locally`.

    The time budget and the batches are the trainer's affair: it gets the plan. Held-out examples are evaluated where
    the trainer has a method ``evaluate`` (see :class:`Trainer`); without one all examples go to ``fit``. ``rng`` and
    ``stop`` are not used.

    Raises:
        TrainingError: ``fit`` or ``evaluate`` failed, or returned something that is not what it should.
        ExamplesError: There are no examples.
    """
    started = clock()
    evaluation = None
    examples = normalised_examples(program, vector, examples)
    evaluate = getattr(trainer, "evaluate", None)
    train, held_out = split_by_plan(examples, plan if callable(evaluate) else replace(plan, held_out=0.0))
    if evaluate is not None and len(held_out):
        evaluation = _evaluated(evaluate, program.spec.unflatten(vector.copy()), examples.part(held_out))
    if len(train) < len(examples):
        examples = examples.part(train)
    returned = _called("fit", lambda: trainer.fit(program.spec.unflatten(vector.copy()), examples, plan))
    arrays, info = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    new = _flattened(arrays, program, vector)
    if not _is_finite(new):
        raise DivergedError("the trainer's fit returned NaN or infinity; lower its learning rate")
    seen, steps, loss = _info(info, len(examples))
    if progress is not None:
        progress(steps, loss)
    delta = np.subtract(new, vector, out=new)
    clipped = _clipped(delta, plan.clip_norm, program)
    return TrainResult(clipped, seen, steps, loss, clock() - started, complete=True, evaluation=evaluation)


def _called(name: str, call: Callable[[], Any]) -> Any:
    """Calls a method of the user's own; whatever it raises is a failed training."""
    try:
        return call()
    except EdgeFedError:
        raise
    except Exception as error:
        what = f"the trainer's {name} failed: {type(error).__name__}"
        raise TrainingError(f"{what}: {error}", public=what) from error


def _evaluated(evaluate: Callable[..., Any], parameters: Any, held_out: Examples) -> Evaluation | None:
    returned = _called("evaluate", lambda: evaluate(parameters, held_out))
    try:
        loss_sum, metric_sum, count = returned
        found = Evaluation(float(loss_sum), float(metric_sum), int(count))
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainingError(
            f"the trainer's evaluate returned {str(returned)[:80]}, expected (loss_sum, metric_sum, count)"
        ) from error
    if not 0 < found.count <= len(held_out):
        raise TrainingError(f"the trainer's evaluate counted {found.count} of {len(held_out)} examples")
    if not math.isfinite(found.loss_sum) or not math.isfinite(found.metric_sum):
        log.warning("no evaluation: loss %s over %d examples", found.loss_sum, found.count)
        return None
    return found


def split_by_plan(examples: Examples, plan: TrainingPlan) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """``(train, held out)`` positions of the examples, as the plan asks; see :func:`split_held_out`.

    Examples that are marked ``is_test`` are never trained on, and where the plan holds any out, they are these.

    Raises:
        ExamplesError: There are none to train on.
    """
    if not len(examples):
        raise ExamplesError("examples: there are none; give at least one example")
    if examples.is_test is None or not examples.is_test.any():
        return split_held_out(len(examples), plan.held_out, last=plan.held_out_last, overlap=examples.overlap)
    if examples.is_test.all():
        what = f"examples: all {len(examples)} are marked is_test; leave some to train on"
        raise ExamplesError(what, public=what)
    set_aside = np.flatnonzero(examples.is_test)
    return np.flatnonzero(~examples.is_test), set_aside if plan.held_out else set_aside[:0]


def split_held_out(
    count: int, share: float, *, last: bool = False, overlap: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """``(train, held out)`` positions of ``count`` examples, ascending.

    Drawn, an example is held out by a hash of its position alone, so it stays held out in every round, also when more
    examples have come behind it. With ``last`` the last examples are held out, so that nothing is trained on that is
    newer than what is evaluated on; as more examples come, the older ones of these are trained on in later rounds.

    Examples that overlap (windows of one series) would carry what is held out into the training. Where a position has
    something in common with the ``overlap`` ones on either side, whole runs of ten times as many are drawn, and
    whatever overlaps with an example that is held out belongs to neither part.

    At least one example is left to train on; where overlaps leave none, all are trained on and none is held out.

    Args:
        count: How many examples there are.
        share: Part to hold out, from 0 to 1.
        last: Whether the last ones are held out, in place of drawn ones.
        overlap: With how many examples before and behind it an example overlaps.
    """
    everything = np.arange(count)
    if share <= 0.0:
        return everything, everything[:0]
    share = min(share, 1.0)
    if last:
        held = everything >= count - min(int(share * count + 0.5), count - 1)
    else:
        run = 10 * overlap or 1
        held = np.repeat(_hashed(-(-count // run)) < np.uint64(share * (1 << 53)), run)[:count]
        if held.all():
            held[:1] = False
    train = apart_from(held, overlap)
    if not train.any():
        return everything, everything[:0]
    return everything[train], everything[held]


def planned_steps(count: int, plan: TrainingPlan) -> int:
    """Steps that ``plan`` asks for on ``count`` training examples."""
    steps = plan.epochs * -(-count // plan.batch_size)
    return min(steps, plan.steps_max) if plan.steps_max else steps


@dataclass(slots=True)
class _Progress:
    """Counts of a training in progress."""

    steps: int = 0
    epoch: int = -1
    seen: int = 0
    distinct: int = 0
    loss_sum: float = 0.0

    def count(self, epoch: int, examples: int, loss: float) -> None:
        self.steps += 1
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} in step {self.steps}: lower the learning rate, or let the model "
                "normalise its input and target (model.normalise, model.normalise_target)"
            )
        if epoch != self.epoch:
            self.epoch, self.seen, self.loss_sum = epoch, 0, 0.0
        self.seen += examples
        self.distinct = max(self.distinct, self.seen)
        self.loss_sum += loss * examples

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / self.seen


@dataclass(slots=True)
class _Pace:
    """How many steps the engine may make in one call.

    The first call makes one step; then as many as fill ``_CALL_SECONDS``, or what is left of the time budget. Neither
    changes what is computed.
    """

    most: int
    planned: int
    count: int = 1
    last: tuple[int, float] | None = None

    def learn(self, steps: int, now: float, over: float) -> None:
        """After ``steps`` at ``now``, in a training that is over at ``over``."""
        if self.last is not None:
            seconds = max((now - self.last[1]) / (steps - self.last[0]), 1e-9)
            affordable = int(min(_CALL_SECONDS, over - now) / seconds)
            self.count = max(1, min(self.most, self.planned - steps, affordable))
        self.last = steps, now


def _steps_at_once(engine: Engine, examples: Examples, plan: TrainingPlan) -> int:
    example_bytes = sum(array[:1].nbytes for array in (*examples.inputs.values(), examples.target))
    return max(1, min(engine.steps_at_once, _STACKED_BYTES_MAX // max(plan.batch_size * example_bytes, 1)))


def _losses(
    engine: Engine, handle: Handle, examples: Examples, index: NDArray[np.intp], scalars: Mapping[str, float]
) -> list[float]:
    """A step for each row of ``index``; their losses."""
    if len(index) == 1:
        return [engine.step(handle, examples.batch(engine.program, index[0]), scalars)]
    return [float(loss) for loss in engine.steps(handle, examples.batch(engine.program, index), scalars)]


def _batches(
    train: NDArray[np.intp], plan: TrainingPlan, rng: np.random.Generator, at_once: Callable[[], int]
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """``(epoch, positions)``, int[batches, batch]: each epoch is a new order; full batches, then what remains.

    Before each item ``at_once`` says how many full batches it may hold.
    """
    size = plan.batch_size
    for epoch in range(plan.epochs):
        # Raw words of the bit generator: Generator.permutation may change its algorithm between NumPy versions.
        order = train[np.argsort(rng.bit_generator.random_raw(len(train)), kind="stable")]
        full = len(order) // size
        done = 0
        while done < full:
            count = min(at_once(), full - done)
            yield epoch, order[done * size : (done + count) * size].reshape(count, size)
            done += count
        if full * size < len(order):
            yield epoch, order[full * size :].reshape(1, -1)


def _delta(engine: Engine, handle: Handle, vector: NDArray[np.float32], done: _Progress) -> NDArray[np.float32]:
    new = engine.read(handle)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = np.subtract(new, vector, out=new)
    if not _is_finite(delta):
        raise DivergedError(
            f"the parameters became NaN or infinite by step {done.steps} (mean loss {done.mean_loss:g}): "
            f"lower the learning rate"
        )
    return delta


def _clipped(delta: NDArray[np.float32], norm_max: float, program: Program) -> NDArray[np.float32]:
    """``delta``, scaled in place to the L2 norm ``norm_max`` where it is longer; 0 means no limit.

    Buffers neither count nor are scaled: they are no step. Nor are constants, which have no delta.
    """
    if norm_max <= 0.0:
        return delta
    untrained = untrained_mask(program.spec)
    step = delta if untrained is None else delta[~untrained]
    norm = math.sqrt(sum(float(np.dot(part, part)) for part in _wide_parts(step)))
    if norm > norm_max:
        # A hair below, so that rounding to float32 does not push it over the limit again.
        np.multiply(step, np.float32(norm_max / norm * (1 - 1e-6)), out=step)
        if untrained is not None:
            delta[~untrained] = step
    return delta


def _wide_parts(delta: NDArray[np.float32], length: int = 1 << 16) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(delta), length):
        yield delta[start : start + length].astype(np.float64)


def _is_finite(vector: NDArray[np.float32]) -> bool:
    return vector.size == 0 or bool(np.isfinite(vector.min()) and np.isfinite(vector.max()))


def _hashed(count: int) -> NDArray[np.uint64]:
    """53-bit hashes of 0..count-1 (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    z = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(11)


def _flattened(arrays: Any, program: Program, vector: NDArray[np.float32]) -> NDArray[np.float32]:
    if not isinstance(arrays, Mapping):
        raise TrainingError(f"the trainer's fit returned {type(arrays).__name__}, expected parameters by name")
    unknown = sorted(str(name) for name in set(arrays) - {t.name for t in program.spec})
    if unknown:
        raise TrainingError(f"the trainer's fit returned {unknown[0][:80]!r}, which is no parameter of the program")
    received = program.spec.unflatten(vector)
    constants = {tensor.name: received[tensor.name] for tensor in program.spec if tensor.kind == "constant"}
    try:
        with np.errstate(over="ignore"):
            return program.spec.flatten({**arrays, **constants})
    except (ValueError, TypeError) as error:
        raise TrainingError(f"the trainer's fit: {error}") from error


def _info(info: Any, count: int) -> tuple[int, int, float]:
    """``(examples, steps, loss)`` out of what a trainer says of its work."""
    if not isinstance(info, Mapping):
        raise TrainingError(f"the trainer's fit returned info of type {type(info).__name__}, expected a dictionary")
    try:
        seen, steps, loss = int(info.get("examples", count)), int(info.get("steps", 1)), float(info.get("loss", 0.0))
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainingError(f"the trainer's info {dict(info)!r} holds something that is no number") from error
    if not 0 < seen <= count or steps < 0 or not math.isfinite(loss):
        raise TrainingError(
            f"the trainer's info is out of range: examples {seen} (of {count}), steps {steps}, loss {loss}"
        )
    return seen, steps, loss
