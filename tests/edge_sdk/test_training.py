"""Local training: order, budget, partial work, held-out examples, clipping, failures, custom trainers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hand_made import blobs, mlp_program, start

from edge_sdk.errors import ExamplesError, TrainingError
from edge_sdk.training.engine import make_engine
from edge_sdk.training.engine.base import Engine
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import (
    Evaluation,
    TrainResult,
    evaluate_locally,
    planned_steps,
    split_held_out,
    train_locally,
    train_with_trainer,
)
from edge_sdk.wire.plan import TrainingPlan

PROGRAM = mlp_program()


@pytest.fixture(scope="module", params=["numpy", "onnxruntime"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return make_engine(PROGRAM, request.param)


def data(count: int = 50) -> Examples:
    return as_examples(blobs(count), PROGRAM)


def still() -> float:
    """A clock that does not move."""
    return 0.0


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that moves by ``seconds`` each time that somebody looks at it."""
    times: Iterator[float] = (i * seconds for i in range(1 << 30))
    return lambda: next(times)


def train(engine: Engine, examples: Examples, *, seed: int = 0, clock: Any = still, **plan: Any) -> TrainResult:
    rng = np.random.Generator(np.random.PCG64(seed))
    options = {key: plan.pop(key) for key in ("stop", "progress") if key in plan}
    return train_locally(engine, start(PROGRAM), examples, TrainingPlan(**plan), rng=rng, clock=clock, **options)


def test_training_learns_and_leaves_the_received_parameters_alone(engine: Engine) -> None:
    vector = start(PROGRAM)
    vector.flags.writeable = False
    rng = np.random.Generator(np.random.PCG64(0))
    result = train_locally(engine, vector, data(200), TrainingPlan(epochs=5), rng=rng, clock=still)
    before, after = (evaluate_locally(engine, v, data(200)) for v in (vector, vector + result.delta))
    assert before is not None and after is not None
    assert after.loss_sum < 0.3 * before.loss_sum
    assert after.metric_sum > before.metric_sum
    assert result.complete and result.examples == 200 and result.steps == 35
    assert result.delta.dtype == np.float32 and result.delta.shape == vector.shape


def test_same_seed_gives_the_same_bits_and_another_seed_others(engine: Engine) -> None:
    first, again, other = (train(engine, data(), seed=seed, batch_size=8).delta for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_order_of_examples_comes_from_the_generators_raw_words() -> None:
    seen: list[np.ndarray[Any, Any]] = []

    engine = make_engine(PROGRAM, "numpy")
    examples = Examples({"x": np.zeros((7, 6), np.float32)}, np.zeros(7, np.int64))
    take = Examples.batch
    # The positions of each batch, watched through a subclass: no part of the training is replaced.

    class Watched(Examples):
        def batch(self, program: Any, index: Any) -> Any:
            seen.append(index)
            return take(self, program, index)

    rng = np.random.Generator(np.random.PCG64(42))
    watched = Watched(examples.inputs, examples.target)
    train_locally(engine, start(PROGRAM), watched, TrainingPlan(epochs=2, batch_size=3), rng=rng, clock=still)
    assert [len(index) for index in seen] == [3, 3, 1, 3, 3, 1]
    orders = [np.concatenate(seen[:3]).tolist(), np.concatenate(seen[3:]).tolist()]
    words = np.random.PCG64(42).random_raw(14)
    assert orders == [np.argsort(words[:7], kind="stable").tolist(), np.argsort(words[7:], kind="stable").tolist()]
    assert orders[0] == [4, 1, 3, 6, 0, 2, 5]  # as every NumPy must give


def test_the_remainder_is_a_batch_of_its_own(engine: Engine) -> None:
    steps: list[int] = []
    result = train(engine, data(50), batch_size=16, progress=lambda step, loss: steps.append(step))
    assert result.steps == 4 and steps == [1, 2, 3, 4]
    assert result.examples == 50


@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps_max", "expected"), [(1, 10, 0, 5), (3, 20, 0, 9), (3, 20, 4, 4), (1, 100, 9, 1)]
)
def test_steps_are_as_planned(engine: Engine, epochs: int, batch_size: int, steps_max: int, expected: int) -> None:
    plan = {"epochs": epochs, "batch_size": batch_size, "steps_max": steps_max}
    result = train(engine, data(50), **plan)
    assert result.steps == planned_steps(50, TrainingPlan(**plan)) == expected
    assert result.complete


def test_loss_is_the_mean_over_the_examples_of_the_last_epoch(engine: Engine) -> None:
    losses: list[float] = []
    result = train(engine, data(50), epochs=2, batch_size=20, progress=lambda _, loss: losses.append(loss))
    weights = [20, 20, 10]
    assert result.loss == pytest.approx(np.average(losses[3:], weights=weights), rel=1e-6)


def test_time_budget_ends_training_at_a_step_and_the_work_counts(engine: Engine) -> None:
    result = train(engine, data(50), epochs=100, batch_size=5, seconds_max=10.0, clock=ticking(1.0))
    assert result.steps == 10
    assert not result.complete
    assert result.examples == 50
    assert np.any(result.delta)
    assert 10.0 <= result.seconds <= 12.0


def test_the_first_step_always_runs(engine: Engine) -> None:
    result = train(engine, data(50), batch_size=5, seconds_max=0.0, clock=ticking(100.0))
    assert result.steps == 1 and result.examples == 5 and not result.complete
    assert np.any(result.delta)


def test_partial_work_reports_the_distinct_examples_seen(engine: Engine) -> None:
    result = train(engine, data(50), epochs=3, batch_size=10, steps_max=3)
    assert (result.steps, result.examples, result.complete) == (3, 30, True)
    stopped = train(engine, data(50), epochs=3, batch_size=10, stop=iter([False, True]).__next__)
    assert (stopped.steps, stopped.examples, stopped.complete) == (2, 20, False)


def test_a_plan_that_ends_just_when_time_does_is_complete(engine: Engine) -> None:
    result = train(engine, data(50), batch_size=50, seconds_max=1.0, clock=ticking(10.0), stop=lambda: True)
    assert result.steps == 1 and result.complete


# ---- held-out examples


def test_held_out_examples_stay_held_out_also_when_more_come() -> None:
    _, held_1 = split_held_out(1000, 0.2)
    train_2, held_2 = split_held_out(3000, 0.2)
    assert np.array_equal(held_1, held_2[held_2 < 1000])
    assert np.array_equal(np.sort(np.concatenate([train_2, held_2])), np.arange(3000))
    assert 0.17 < len(held_1) / 1000 < 0.23
    assert set(split_held_out(1000, 0.1)[1]) < set(held_1)


def test_the_split_is_the_same_on_every_machine() -> None:
    assert split_held_out(30, 0.2)[1].tolist() == [2, 4, 6]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("count", "share"), [(1, 0.9), (2, 0.9), (5, 0.9), (50, 0.0), (1, 1.0)])
def test_something_is_always_left_to_train_on(count: int, share: float, last: bool) -> None:
    kept, held = split_held_out(count, share, last=last)
    assert len(kept) >= 1 and len(kept) + len(held) == count
    assert share or not len(held)


def test_the_last_examples_are_held_out_and_nothing_newer_is_trained_on() -> None:
    kept, held = split_held_out(10, 0.2, last=True)
    assert (kept.tolist(), held.tolist()) == (list(range(8)), [8, 9])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("count", "overlap"), [(1000, 1), (1000, 7), (300, 60), (5, 9), (1, 3)])
def test_what_overlaps_with_a_held_out_window_is_not_trained_on(count: int, overlap: int, last: bool) -> None:
    kept, held = split_held_out(count, 0.2, last=last, overlap=overlap)
    assert len(kept) >= 1
    assert not len(held) or np.abs(kept[:, None] - held).min() > overlap
    if overlap < 10:
        assert len(kept) + len(held) >= 0.8 * count, "runs are long, so that little is lost at their ends"
    if not last and len(held):
        assert set(held) <= set(split_held_out(count + 500, 0.2, overlap=overlap)[1])


def test_a_plan_may_hold_out_the_last_examples(engine: Engine) -> None:
    examples = data(50)
    result = train(engine, examples, held_out=0.2, held_out_last=True, epochs=2)
    assert result.evaluation == evaluate_locally(engine, start(PROGRAM), examples, np.arange(40, 50))
    older = examples.part(np.arange(40))
    assert np.array_equal(train(engine, older, epochs=2).delta, result.delta)


def test_the_received_parameters_are_evaluated_on_what_training_never_sees(engine: Engine) -> None:
    examples = data(100)
    kept, held = split_held_out(100, 0.3)
    result = train(engine, examples, held_out=0.3, epochs=2)
    assert result.examples == len(kept)
    expected = evaluate_locally(engine, start(PROGRAM), examples, held)
    assert result.evaluation == expected
    assert expected is not None and expected.count == len(held)
    assert train(engine, examples, held_out=0.0).evaluation is None
    spoilt = Examples(examples.inputs, examples.target.copy())
    spoilt.target[held] = (spoilt.target[held] + 1) % 3
    assert np.array_equal(train(engine, spoilt, held_out=0.3, epochs=2).delta, result.delta)


def test_evaluation_takes_at_most_half_of_the_time(engine: Engine) -> None:
    result = train(engine, data(2000), held_out=0.5, batch_size=100, seconds_max=4.0, clock=ticking(1.0))
    assert result.evaluation is not None and result.evaluation.count == 512
    assert result.steps >= 1


def test_evaluation_is_the_same_in_any_batches(engine: Engine) -> None:
    whole, parts = (evaluate_locally(engine, start(PROGRAM), data(50), batch_size=size) for size in (50, 7))
    assert whole is not None and parts is not None
    assert (whole.metric_sum, whole.count) == (parts.metric_sum, parts.count)
    assert whole.loss_sum == pytest.approx(parts.loss_sum, rel=1e-5)


def test_a_model_that_diverged_has_no_evaluation(engine: Engine) -> None:
    assert evaluate_locally(engine, np.full(PROGRAM.spec.size, 3e38, np.float32), data()) is None


# ---- clipping, failures


def test_clipping_scales_the_delta_to_the_norm_and_leaves_shorter_ones(engine: Engine) -> None:
    free = train(engine, data(), epochs=3).delta
    norm = float(np.linalg.norm(free.astype(np.float64)))
    clipped = train(engine, data(), epochs=3, clip_norm=norm / 2).delta
    length = float(np.linalg.norm(clipped.astype(np.float64)))
    assert norm / 2 * (1 - 1e-5) < length <= norm / 2
    np.testing.assert_allclose(clipped, free / 2, rtol=1e-4, atol=1e-9)
    assert np.array_equal(train(engine, data(), epochs=3, clip_norm=norm * 2).delta, free)


def test_divergence_says_the_step_and_what_to_do(engine: Engine) -> None:
    with pytest.raises(TrainingError, match=r"(?s)step \d+.*lower the learning rate"):
        train(engine, data(), epochs=50, scalars={"lr": 1e30})


def test_parameters_that_overflow_in_the_last_step_are_found(engine: Engine) -> None:
    with pytest.raises(TrainingError, match=r"parameters became NaN or infinite by step 1.*lower the learning rate"):
        x, y = blobs(50)
        train(engine, as_examples((x * 1000, y), PROGRAM), steps_max=1, scalars={"lr": 3e38})


def test_a_scalar_that_the_program_lacks_is_an_error_not_silence(engine: Engine) -> None:
    with pytest.raises(TrainingError, match=r"no scalar input 'mu'.*proximal=True"):
        train(engine, data(), scalars={"lr": 0.1, "mu": 0.01})


def test_default_scalars_are_the_programs(engine: Engine) -> None:
    assert np.array_equal(train(engine, data(), scalars={}).delta, train(engine, data(), scalars={"lr": 0.1}).delta)


def test_no_examples_is_an_examples_error(engine: Engine) -> None:
    nothing = Examples({"x": np.zeros((0, 6), np.float32)}, np.zeros(0, np.int64))
    with pytest.raises(ExamplesError, match="at least one"):
        train(engine, nothing)


# ---- a trainer of the user's own


class Shift:
    """Adds one to every parameter, in place."""

    def __init__(self, info: Any = None, wrong: dict[str, Any] | None = None) -> None:
        self.info = info
        self.wrong = wrong or {}
        self.seen: list[Any] = []

    def fit(self, parameters: dict[str, Any], examples: Examples, plan: TrainingPlan) -> Any:
        self.seen.append((examples, plan))
        for value in parameters.values():
            value += 1
        new = {**parameters, **self.wrong}
        return new if self.info is None else (new, self.info)


def fit(trainer: Any, **plan: Any) -> TrainResult:
    vector = start(PROGRAM)
    vector.flags.writeable = False
    return train_with_trainer(
        trainer, PROGRAM, vector, data(), TrainingPlan(**plan), rng=np.random.default_rng(0), clock=ticking(1.0)
    )


def test_a_trainer_gets_copies_and_its_change_is_the_delta() -> None:
    trainer = Shift()
    result = fit(trainer, epochs=3)
    np.testing.assert_allclose(result.delta, 1, atol=1e-6)
    assert (result.examples, result.steps, result.loss, result.complete) == (50, 1, 0.0, True)
    assert trainer.seen[0][1].epochs == 3 and len(trainer.seen[0][0]) == 50


def test_a_trainer_may_report_what_it_did() -> None:
    result = fit(Shift({"examples": 7, "loss": 0.25, "steps": 3}))
    assert (result.examples, result.steps, result.loss) == (7, 3, 0.25)


def test_a_trainers_delta_is_clipped_too() -> None:
    assert math.isclose(float(np.linalg.norm(fit(Shift(), clip_norm=0.5).delta)), 0.5, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (Shift(wrong={"w0": np.zeros((2, 2))}), "'w0' has shape"),
        (Shift(wrong={"w0": np.full((8, 6), np.nan)}), "NaN"),
        (Shift(wrong={"w0": np.full((8, 6), 1e300)}), "infinity"),
        (Shift(wrong={"w0": "text"}), "'w0'"),
        (Shift(wrong={"extra": np.zeros(1)}), "'extra', which is no parameter"),
        (Shift(info={"examples": 51}), "examples 51 .of 50."),
        (Shift(info={"examples": 0}), "examples 0"),
        (Shift(info={"loss": float("nan")}), "loss nan"),
        (Shift(info={"steps": "many"}), "no number"),
        (Shift(info=[1]), "expected a dictionary"),
        (object(), "no attribute 'fit'"),
    ],
)
def test_what_a_trainer_returns_is_checked(trainer: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(trainer)


class Judge(Shift):
    """Can also evaluate: how far the labels are from the sum of all parameters."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.answer = answer
        self.judged: list[tuple[float, Examples]] = []

    def evaluate(self, parameters: dict[str, Any], examples: Examples) -> Any:
        total = float(sum(value.sum() for value in parameters.values()))
        self.judged.append((total, examples))
        for value in parameters.values():
            value += 1
        return (2.0 * len(examples), 1.0 * len(examples), len(examples)) if self.answer is None else self.answer


def test_a_trainer_that_can_evaluate_judges_the_received_parameters_on_what_is_held_out() -> None:
    judge = Judge()
    result = fit(judge, held_out=0.3)
    train, held_out = split_held_out(50, 0.3)
    total, examples = judge.judged[0]
    assert math.isclose(total, float(start(PROGRAM).sum()), rel_tol=1e-4), "before training, and a copy"
    assert result.evaluation == Evaluation(2.0 * len(held_out), 1.0 * len(held_out), len(held_out))
    np.testing.assert_array_equal(examples.target, data().target[held_out])
    np.testing.assert_array_equal(judge.seen[0][0].target, data().target[train])
    assert result.examples == len(train)
    np.testing.assert_allclose(result.delta, 1, atol=1e-6)


def test_a_trainer_too_is_given_the_older_examples_and_judges_the_last() -> None:
    judge = Judge()
    fit(judge, held_out=0.3, held_out_last=True)
    np.testing.assert_array_equal(judge.judged[0][1].target, data().target[35:])
    np.testing.assert_array_equal(judge.seen[0][0].target, data().target[:35])


def test_a_trainer_that_can_evaluate_is_not_asked_where_nothing_is_held_out() -> None:
    judge = Judge()
    assert fit(judge).evaluation is None and not judge.judged and len(judge.seen[0][0]) == 50


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (7, "expected .loss_sum, metric_sum, count."),
        ((1.0, 2.0), "expected"),
        (("much", 1.0, 3), "expected"),
        ((1.0, 1.0, 0), "counted 0 of"),
        ((1.0, 1.0, 51), "counted 51 of"),
    ],
)
def test_what_evaluate_returns_is_checked(answer: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(Judge(answer), held_out=0.3)


def test_an_evaluation_that_is_not_finite_is_none() -> None:
    assert fit(Judge((float("nan"), 1.0, 3)), held_out=0.3).evaluation is None
