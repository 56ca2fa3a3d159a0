"""Local algorithms: plain training is what it was, and a constant added after each step is what the formula says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_made import mlp_program

from edge_sdk.errors import TrainingError
from edge_sdk.training.algorithms import LOCAL_ALGORITHMS, LocalResult, LocalWork, find_local_algorithm
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import train_locally
from edge_sdk.wire.plan import TrainingPlan

PROGRAM = mlp_program()
PLAN = TrainingPlan(epochs=1, batch_size=8, scalars={"lr": 0.1})


def work(**changes: Any) -> LocalWork:
    rng = np.random.Generator(np.random.PCG64(1))
    features = PROGRAM.inputs[0].shape[1]
    x = rng.standard_normal((32, features)).astype(np.float32)
    given: dict[str, Any] = {
        "program": PROGRAM,
        "parameters": (0.1 * rng.standard_normal(PROGRAM.spec.size)).astype(np.float32),
        "examples": as_examples((x, rng.integers(0, 2, 32)), PROGRAM),
        "plan": PLAN,
        "engine": make_engine(PROGRAM, "numpy"),
        "trainer": None,
        "received": {},
        "kept": {},
        "settings": {},
        "rng": np.random.Generator(np.random.PCG64(7)),
        "clock": lambda: 0.0,
        "stop": lambda: False,
        "progress": lambda steps, loss: None,
    }
    return LocalWork(**{**given, **changes})


def test_plain_is_the_ordinary_training() -> None:
    given = work()
    found = find_local_algorithm("plain", {}).run(given)
    again = work()
    assert again.engine is not None
    expected = train_locally(
        again.engine, again.parameters, again.examples, PLAN, rng=again.rng, clock=again.clock, stop=again.stop
    )
    assert found.trained.delta.tobytes() == expected.delta.tobytes() and found.trained.steps == expected.steps == 4
    assert not found.vectors and not found.numbers and not found.keep


def test_a_shift_is_added_after_each_step() -> None:
    still = work(plan=TrainingPlan(epochs=2, batch_size=8, scalars={"lr": 0.0}))
    shift = np.linspace(-1, 1, PROGRAM.spec.size, dtype=np.float32)
    trained = still.train(shift)
    assert trained.steps == 8
    np.testing.assert_allclose(trained.delta, 8 * shift, atol=1e-5)


class Trainer:
    def fit(self, parameters: dict[str, Any], examples: Any, plan: Any) -> dict[str, Any]:
        return {name: array + 1 for name, array in parameters.items()}


def test_a_trainer_stands_in_for_the_engine_and_cannot_shift() -> None:
    given = work(trainer=Trainer())
    assert given.engine_name == "trainer" and work().engine_name == "numpy"
    assert set(np.round(given.train().delta, 3)) == {1.0}
    with pytest.raises(TrainingError, match="cannot shift"):
        given.train(np.zeros(PROGRAM.spec.size, dtype=np.float32))
    with pytest.raises(TrainingError, match="trainer="):
        work(engine=None).train()


class Own:
    vectors: tuple[str, ...] = ()

    def run(self, work: LocalWork) -> LocalResult:
        return LocalResult(work.train(), numbers={"seen": 1.0})


def test_ones_own_goes_before_those_of_the_sdk_and_an_unknown_one_is_refused() -> None:
    own = Own()
    assert find_local_algorithm("plain", {"plain": own}) is own
    assert find_local_algorithm("mine", {"mine": own}).run(work()).numbers == {"seen": 1.0}
    with pytest.raises(
        TrainingError, match="this device has feature_statistics, mine, plain: register it with EdgeClient"
    ):
        find_local_algorithm("theirs", {"mine": own})
    assert set(LOCAL_ALGORITHMS) == {"feature_statistics", "plain"}
