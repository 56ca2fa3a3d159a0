"""When a federation ends: a round budget, a target, a metric that stays as it is, or a run that has diverged. PURE.

A run has diverged where nothing that follows can be of use: its loss is no number, or far beyond what it was at the
start, or its devices can only compute NaN from its model. The rule must not end a healthy run, so all of this has to
hold several times in a row, and never for a run whose metric is better than at its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from coordinator.advice import DIVERGED_REASONS, Obstacle

__all__ = ["Past", "Stopping", "StoppingRule"]

LOWER_IS_BETTER = frozenset({"loss", "mean_squared_error", "mean_absolute_error"})
LOSS_FLOOR: Final = 0.01
"""A model that begins with a smaller loss than this is judged as if it had begun with it."""


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """When to stop; 0 or None switches a criterion off.

    Attributes:
        rounds_max: Round budget.
        metric: The metric that target and patience speak of.
        target: Value to reach (at least, or at most for a metric of which less is better).
        patience: Evaluations without an improvement of at least ``min_delta``.
        min_delta: The smallest change that counts as one.
        divergence_rounds: Rounds, or attempts at one, in a row that must look diverged.
        divergence_factor: A loss that is so many times as large as the first one looks so.
        judged_late: Whether the metrics of a round are those of the model from before it: devices evaluate what they
            receive. (A training loss always is.)
    """

    rounds_max: int = 0
    metric: str = "accuracy"
    target: float | None = None
    patience: int = 0
    min_delta: float = 1e-3
    divergence_rounds: int = 3
    divergence_factor: float = 100.0
    judged_late: bool = False

    @property
    def sign(self) -> float:
        """1 for a metric of which more is better, else -1."""
        return -1.0 if self.metric in LOWER_IS_BETTER else 1.0


class Past(Protocol):
    """A round, or an attempt at one, that has ended: ``coordinator.store.RoundRecord``."""

    @property
    def number(self) -> int: ...

    @property
    def attempt(self) -> int: ...

    @property
    def closed(self) -> bool:
        """Whether it was committed."""

    @property
    def summary(self) -> dict[str, Any]: ...


class Stopping:
    """Watches the history of a run.

    Args:
        rule: See :class:`StoppingRule`.

    Attributes:
        best: The best value of the watched metric.
        best_round: The round that had it.
        good_round: The round whose model is the newest one that is known not to have diverged.
        diverged: Whether the run has diverged.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self.best: float | None = None
        self.best_round = 0
        self.good_round = 0
        self.diverged = False
        self._stale = 0
        self._starts: dict[str, float] = {}  # the first value of each loss, and of the metric
        self._far = 0  # judged rounds in a row that look diverged
        self._failing = 0, 0  # a round, and attempts at it in a row in which devices could only compute NaN

    def begin(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of the initial model, where they are known: the run is compared with them."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._starts[name] = value

    def replay(self, past: Iterable[Past]) -> str | None:
        """Takes what has happened so far, in any order; returns why to stop, or None."""
        reason = None
        for record in sorted(past, key=lambda record: (record.number, record.attempt)):
            obstacle = Obstacle.of(record.summary)
            if record.closed:
                reason = self.observe(record.number, dict(record.summary.get("metrics", {})))
            elif obstacle is not None:
                reason = self.failed(record.number, obstacle.reason) or reason
        return reason

    def observe(self, number: int, metrics: Mapping[str, float]) -> str | None:
        """Takes the metrics of round ``number``; returns why to stop, or None."""
        rule = self.rule
        diverged = self._judge(number, metrics)
        if diverged is not None:
            return diverged
        value = metrics.get(rule.metric)
        if value is not None and math.isfinite(value):
            sign = rule.sign
            if self.best is None or sign * (value - self.best) >= rule.min_delta:
                self.best, self.best_round, self._stale = value, number, 0
            else:
                self._stale += 1
            if rule.target is not None and sign * (value - rule.target) >= 0:
                return f"target reached: {rule.metric} {value:.4g} in round {number}"
            if rule.patience and self._stale >= rule.patience:
                return (
                    f"no improvement: {rule.metric} has not been better than {self.best:.4g} (round {self.best_round}) "
                    f"for {self._stale} evaluations"
                )
        if rule.rounds_max and number >= rule.rounds_max:
            return f"round budget: {number} rounds done"
        return None

    def failed(self, number: int, reason: str) -> str | None:
        """Takes an attempt at round ``number`` that most devices made nothing of; returns why to stop, or None.

        Args:
            number: The round. In the first one nothing can have diverged yet: then it is settings or data.
            reason: The code of what they have in common.
        """
        failing, attempts = self._failing
        attempts = attempts + 1 if number == failing else 1
        self._failing = number, attempts if reason in DIVERGED_REASONS else 0
        if number <= 1 or not self.rule.divergence_rounds or self._failing[1] < self.rule.divergence_rounds:
            return None
        return self._has_diverged(
            f"in {attempts} attempts at round {number} devices could only compute NaN or infinity"
        )

    def _judge(self, number: int, metrics: Mapping[str, float]) -> str | None:
        """What the round says of whether the run has diverged; a round without a word on it changes nothing."""
        name = "loss" if "loss" in metrics or "loss" in self._starts else "train_loss"
        if name not in metrics:
            return None
        value = metrics[name]
        for kept in (name, self.rule.metric):
            if math.isfinite(metrics.get(kept, math.nan)):
                self._starts.setdefault(kept, metrics[kept])
        start = self._starts.get(name, math.inf)
        limit = self.rule.divergence_factor * max(start, LOSS_FLOOR)
        if math.isfinite(value) and (value <= limit or self._is_better_than_at_the_start(metrics)):
            late = self.rule.judged_late or name == "train_loss"
            self._far, self.good_round = 0, max(self.good_round, number - late)
            return None
        self._far += 1
        if not self.rule.divergence_rounds or self._far < self.rule.divergence_rounds:
            return None
        beyond = f"{value:.4g}, it began with {start:.4g}" if math.isfinite(value) else "no number"
        return self._has_diverged(
            f"for {self._far} rounds, up to round {number}, the {name} has been far off ({beyond})"
        )

    def _is_better_than_at_the_start(self, metrics: Mapping[str, float]) -> bool:
        value, start = metrics.get(self.rule.metric, math.nan), self._starts.get(self.rule.metric, math.nan)
        return self.rule.sign * (value - start) > 0.0

    def _has_diverged(self, how: str) -> str:
        self.diverged = True
        good = f"that of round {self.good_round}" if self.good_round > 0 else "the initial one"
        return f"diverged: {how}; the last good model is {good}"
