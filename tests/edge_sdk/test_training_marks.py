"""Marks beside the arrays of examples: what is set aside is not trained on, and the order is that of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import blobs, mlp_program

from coordinator.evaluation import Evaluator
from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Input, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples, load_examples
from edge_sdk.training.local import split_by_plan, train_locally, train_with_trainer
from edge_sdk.wire.plan import TrainingPlan

PROGRAM = mlp_program()
X, Y = blobs(40)
VECTOR = np.zeros(PROGRAM.spec.size, np.float32)


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


def test_examples_that_are_set_aside_are_never_trained_on_and_judged_where_the_plan_asks() -> None:
    is_test = np.arange(40) % 4 == 0
    marked = as_examples({"x": X, "y": np.where(is_test, (Y + 1) % 3, Y), "is_test": is_test}, PROGRAM)
    rest = as_examples((X[~is_test], Y[~is_test]), PROGRAM)
    engine = make_engine(PROGRAM, "numpy")
    for share in (0.0, 0.2):
        plan = TrainingPlan(epochs=2, batch_size=8, held_out=share)
        done = train_locally(engine, VECTOR, marked, plan, rng=rng(), clock=lambda: 0.0)
        expected = train_locally(engine, VECTOR, rest, replace(plan, held_out=0.0), rng=rng(), clock=lambda: 0.0)
        assert np.array_equal(done.delta, expected.delta)
        assert (done.evaluation is not None and done.evaluation.count) == (10 if share else False)


def test_a_trainer_of_ones_own_does_not_see_them_either() -> None:
    seen = []

    class Fit:
        def fit(self, parameters: Any, examples: Any, plan: Any) -> Any:
            seen.append(len(examples))
            return parameters

    marked = as_examples({"x": X, "y": Y, "is_test": np.arange(40) < 10}, PROGRAM)
    for share in (0.0, 0.5):
        plan = TrainingPlan(held_out=share)
        train_with_trainer(Fit(), PROGRAM, VECTOR, marked, plan, rng=rng(), clock=lambda: 0.0)
    assert seen == [30, 30]


def test_a_device_with_no_marked_example_holds_out_some_of_the_others() -> None:
    marked = as_examples({"x": X, "y": Y, "is_test": np.zeros(40, bool)}, PROGRAM)
    _, held_out = split_by_plan(marked, TrainingPlan(held_out=0.2, held_out_last=True))
    assert held_out.tolist() == list(range(32, 40))


def test_the_coordinator_judges_by_the_examples_that_are_set_aside() -> None:
    is_test = np.arange(40) >= 30
    marked = Evaluator(PROGRAM, as_examples({"x": X, "y": Y, "is_test": is_test}, PROGRAM), "numpy")
    alone = Evaluator(PROGRAM, as_examples((X[30:], Y[30:]), PROGRAM), "numpy")
    blob = encode_parameters(VECTOR + np.float32(0.1))
    assert marked.evaluate(blob) == alone.evaluate(blob) and len(marked.examples) == 10
    with pytest.raises(ExamplesError, match="not one of 40 is marked is_test"):
        Evaluator(PROGRAM, as_examples({"x": X, "y": Y, "is_test": np.zeros(40, bool)}, PROGRAM), "numpy")


def test_examples_are_put_into_the_order_of_time() -> None:
    shuffled = np.random.default_rng(0).permutation(40)
    for time in (np.arange(40), np.arange(40) / 7.0, np.arange(40).astype("datetime64[s]"), np.arange(40).astype("U4")):
        order = np.argsort(time, kind="stable")
        value = {"x": X[shuffled], "y": Y[shuffled], "time": time[shuffled], "is_test": (np.arange(40) < 5)[shuffled]}
        examples = as_examples(value, PROGRAM)
        assert np.array_equal(examples.inputs["x"], X[order]) and np.array_equal(examples.target, Y[order])
        assert examples.is_test is not None and np.array_equal(examples.is_test, (np.arange(40) < 5)[order])
    same = as_examples({"x": X, "y": Y, "time": np.repeat([1, 2], 20)}, PROGRAM)
    assert np.shares_memory(same.inputs["x"], X), "what is in order already is not copied"


def test_the_newest_examples_by_time_are_held_out_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", x=X, y=Y, time=np.arange(40)[::-1])
    examples = load_examples(tmp_path / "log.npz", PROGRAM)
    train, held_out = split_by_plan(examples, TrainingPlan(held_out=0.2, held_out_last=True))
    assert np.array_equal(examples.part(held_out).inputs["x"], X[:8][::-1])
    assert np.array_equal(examples.part(train).inputs["x"], X[8:][::-1])


def test_examples_that_overlap_are_held_out_without_their_neighbours() -> None:
    examples = as_examples({"x": X, "y": Y, "overlap": 3}, PROGRAM)
    train, held_out = split_by_plan(examples, TrainingPlan(held_out=0.2, held_out_last=True))
    assert (train.tolist(), held_out.tolist()) == (list(range(29)), list(range(32, 40)))
    assert examples.part(train).overlap == 3


def test_windows_of_several_machines_that_write_in_turns_overlap_further_apart() -> None:
    time, machine = np.repeat(np.arange(20), 2), np.tile([0, 1], 20)
    by_machine = np.argsort(machine, kind="stable")
    value = {"x": X, "y": Y, "time": time[by_machine], "group": machine[by_machine], "overlap": 2}
    examples = as_examples(value, PROGRAM)
    train, held_out = split_by_plan(examples, TrainingPlan(held_out=0.2, held_out_last=True))
    order = by_machine[np.argsort(time[by_machine], kind="stable")]
    for here in (0, 1):
        own = order[train][machine[order[train]] == here], order[held_out][machine[order[held_out]] == here]
        assert time[own[1]].min() - time[own[0]].max() > 2


def test_a_mark_that_the_model_has_as_an_input_is_that_input() -> None:
    inputs = (Input("x", "float32", (None, 2)), Input("time", "float32", (None,)))
    program = replace(PROGRAM, kind="trainer", inputs=inputs)
    x, time = X[:, :2], np.arange(40.0)[::-1]
    examples = as_examples({"x": x, "time": time, "y": Y}, program)
    assert np.array_equal(examples.inputs["time"], time)


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ({"is_test": np.zeros(39, bool)}, "'is_test' has 39 entries, there are 40 examples"),
        ({"is_test": np.full(40, 2)}, r"'is_test' is int64\[40\], expected one true or false for each example"),
        ({"is_test": np.zeros((40, 1), bool)}, r"'is_test' is bool\[40, 1\]"),
        ({"group": np.full(40, 1.5)}, r"'group' is float64\[40\], expected one whole number or text"),
        ({"group": np.zeros(3, int)}, "'group' has 3 entries"),
        ({"time": np.zeros((40, 2))}, r"'time' is float64\[40, 2\], expected one number"),
        ({"time": np.where(np.arange(40) == 3, np.nan, 1.0)}, r"'time' is missing \(NaN\)"),
        ({"time": np.full(40, np.datetime64("NaT"))}, r"'time' is missing \(NaN\)"),
        ({"overlap": -1}, "'overlap' is int64.*expected one whole number, at least 0"),
        ({"overlap": 0.5}, "'overlap' is float64"),
    ],
)
def test_a_mark_that_is_none_is_refused_by_name(marks: dict[str, Any], says: str) -> None:
    with pytest.raises(ExamplesError, match=says):
        as_examples({"x": X, "y": Y, **marks}, PROGRAM)


def test_examples_that_are_all_set_aside_train_nothing() -> None:
    examples = as_examples({"x": X, "y": Y, "is_test": np.ones(40, bool)}, PROGRAM)
    with pytest.raises(ExamplesError, match="all 40 are marked is_test; leave some to train on"):
        split_by_plan(examples, TrainingPlan())
