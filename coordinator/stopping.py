"""When a federation ends: a round budget, a target, or a metric that has stopped improving. PURE."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Stopping", "StoppingRule"]

LOWER_IS_BETTER = frozenset({"loss", "mean_squared_error", "mean_absolute_error"})


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """When to stop; 0 or None switches a criterion off.

    Attributes:
        rounds_max: Round budget.
        metric: The metric that target and patience speak of.
        target: Value to reach (at least, or at most for a metric of which less is better).
        patience: Evaluations without an improvement of at least ``min_delta``.
        min_delta: The smallest change that counts as one.
    """

    rounds_max: int = 0
    metric: str = "accuracy"
    target: float | None = None
    patience: int = 0
    min_delta: float = 1e-3


class Stopping:
    """Watches the history of one metric.

    Args:
        rule: See :class:`StoppingRule`.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self.best: float | None = None
        self.best_round = 0
        self._stale = 0

    def observe(self, number: int, metrics: dict[str, float]) -> str | None:
        """Takes the metrics of round ``number``; returns why to stop, or None."""
        rule = self.rule
        value = metrics.get(rule.metric)
        if value is not None and math.isfinite(value):
            sign = -1.0 if rule.metric in LOWER_IS_BETTER else 1.0
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
