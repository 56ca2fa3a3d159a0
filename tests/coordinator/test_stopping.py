"""When a federation ends."""

from __future__ import annotations

import math

from coordinator.stopping import Stopping, StoppingRule


def observe(stopping: Stopping, *values: float) -> list[str | None]:
    return [stopping.observe(i, {stopping.rule.metric: value}) for i, value in enumerate(values, 1)]


def test_the_round_budget_ends_it() -> None:
    stopping = Stopping(StoppingRule(rounds_max=2))
    assert stopping.observe(1, {}) is None
    assert stopping.observe(2, {}) == "round budget: 2 rounds done"


def test_a_target_ends_it_at_once() -> None:
    assert observe(Stopping(StoppingRule(target=0.9)), 0.5, 0.9)[1] == "target reached: accuracy 0.9 in round 2"


def test_of_a_loss_less_is_better() -> None:
    reasons = observe(Stopping(StoppingRule(metric="loss", target=0.2)), 0.5, 0.1)
    assert reasons[0] is None and reasons[1] is not None


def test_patience_counts_evaluations_without_improvement() -> None:
    stopping = Stopping(StoppingRule(patience=2, min_delta=0.01))
    reasons = observe(stopping, 0.5, 0.505, 0.509)
    assert reasons[:2] == [None, None]
    assert reasons[2] is not None and "0.5 (round 1) for 2 evaluations" in reasons[2]


def test_an_improvement_starts_the_count_again() -> None:
    assert observe(Stopping(StoppingRule(patience=2, min_delta=0.01)), 0.5, 0.5, 0.6, 0.6) == [None] * 4


def test_rounds_without_an_evaluation_do_not_count_as_stale() -> None:
    stopping = Stopping(StoppingRule(patience=1))
    stopping.observe(1, {"accuracy": 0.5})
    assert stopping.observe(2, {"train_loss": 1.0}) is None


def test_a_metric_that_is_not_a_number_neither_ends_nor_improves() -> None:
    stopping = Stopping(StoppingRule(target=0.9, patience=1))
    assert stopping.observe(1, {"accuracy": math.nan}) is None
    assert stopping.observe(2, {"accuracy": math.inf}) is None
    assert stopping.best is None


def test_nothing_configured_never_ends() -> None:
    stopping = Stopping(StoppingRule())
    assert all(stopping.observe(i, {"accuracy": 0.5}) is None for i in range(1, 1000))
