"""What the devices of a round reported, as exact sums. PURE."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from edge_sdk.aggregation.sums import ScalarSums
from edge_sdk.codecs import frame_codec
from edge_sdk.wire.messages import Update
from edge_sdk.wire.plan import Plan

__all__ = ["CODEC_METRIC", "RoundMetrics"]

CODEC_METRIC: Final = "codec_"
"""Begins the names of the metrics that count updates by codec."""

SUMS: Final = ("loss", "examples", "steps", "seconds", "partial", "eval_loss", "eval_metric", "eval_count")


class RoundMetrics:
    """The numbers of one round.

    Args:
        plan: What devices were asked to do.
        metric: The name of the program's metric.
    """

    def __init__(self, plan: Plan, metric: str) -> None:
        self._plan = plan
        self._metric = metric
        self._sums = ScalarSums(SUMS)
        self._chosen: Counter[str] = Counter()

    def add(self, update: Update, weight: int, frame: bytes) -> None:
        """Adds what one update says; ``frame`` is the first one of its delta."""
        numbers: dict[str, Any] = {
            "loss": update.loss * weight,
            "examples": weight,
            "steps": update.steps,
            "seconds": update.seconds,
            "partial": 0 if update.complete else 1,
        }
        if update.evaluation is not None:
            loss_sum, metric_sum, count = update.evaluation
            share = min(1.0, self._plan.examples_max / count)  # nobody's opinion weighs more than his update may
            numbers["eval_loss"], numbers["eval_metric"] = loss_sum * share, metric_sum * share
            numbers["eval_count"] = count * share
        self._sums.accumulate(numbers)
        if self._plan.codec.codec.chooses and frame:
            self._chosen[f"{CODEC_METRIC}{frame_codec(frame)}"] += 1

    def report(self) -> dict[str, float]:
        """Weighted training loss, the federated evaluation where there was one, and how many updates came in which
        codec where devices choose."""
        sums = self._sums.report()
        metrics = {"train_loss": sums["loss"] / max(sums["examples"], 1.0)}
        metrics["examples"], metrics["partial"] = sums["examples"], sums["partial"]
        metrics.update((name, float(count)) for name, count in sorted(self._chosen.items()))
        if sums["eval_count"]:
            metrics["loss"] = sums["eval_loss"] / sums["eval_count"]
            metrics[self._metric] = sums["eval_metric"] / sums["eval_count"]
            metrics["evaluated_examples"] = sums["eval_count"]
        return metrics
