"""The one gate between a decoded update and the sum: what passes here can be added without another look.

A device may be broken, misconfigured or hostile. Whatever it claims is checked against the round's bounds; a refusal
carries a reason code under which it is counted, and never disturbs the round.

The bounds on single values make the fixed-point sums of :mod:`edge_sdk.aggregation.sums` safe. The bound on the norm is
what limits the harm of one bad update. With an adaptive bound it is a multiple of the median norm of earlier accepted
updates, which one device cannot move far. It is computed once a round, from rounds that are closed, so that a replay
after a crash decides the same. A codec whose decoded updates are mostly noise (EDEN below one bit) has larger norms
than its deltas, though all of them alike: the adaptive bound copes, a fixed one must be set for it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.codecs import Decoded, Rotated
from edge_sdk.codecs.frames import DecodedParts, Group
from edge_sdk.errors import ConfigurationError, ProtocolError

__all__ = ["Validation"]


@dataclass(frozen=True, slots=True)
class Validation:
    """The bounds of one task.

    Attributes:
        size: Number of elements that an update must have.
        value_max: Largest absolute value of an element, the same as the reducer's.
        norm_max: Largest L2 norm of an update; None for no such bound.
        norm_median_factor: Largest norm as a multiple of the median of recent norms; None for no adaptive bound.
        norms_needed: Recent norms without which there is no adaptive bound yet.
        examples_max: Most examples that a device may claim to have.
        steps_max: Most steps that a device may claim to have done; None for no such bound.
        loss_max: Largest absolute value of a loss, or of a metric, per example.

    Raises:
        ConfigurationError: A field is out of range.
    """

    size: int
    value_max: float = 32.0
    norm_max: float | None = None
    norm_median_factor: float | None = None
    norms_needed: int = 20
    examples_max: int = 100_000
    steps_max: int | None = None
    loss_max: float = 1e12

    def __post_init__(self) -> None:
        for name in ("size", "norms_needed", "examples_max"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"validation.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("value_max", "norm_max", "loss_max"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"validation.{name} is {value}, expected a finite number above 0")
        factor = self.norm_median_factor
        if factor is not None and not (math.isfinite(factor) and factor > 1):
            raise ConfigurationError(
                f"validation.norm_median_factor is {factor}, expected above 1: half of all are larger"
            )
        if self.steps_max is not None and self.steps_max < 1:
            raise ConfigurationError(f"validation.steps_max is {self.steps_max}, expected at least 1 or none")

    def norm_bound(self, recent_norms: Sequence[float], stalled: int = 0) -> float:
        """The largest norm for one round, infinity for none.

        Args:
            recent_norms: What :meth:`check` returned for updates that counted in earlier, closed rounds.
            stalled: How many attempts at this round have failed because most updates were above the adaptive bound,
                which doubles with each: what most devices send is what there is, and without them no round would ever
                close again.
        """
        bound = math.inf if self.norm_max is None else self.norm_max
        if self.norm_median_factor is None or len(recent_norms) < self.norms_needed:
            return bound
        median = statistics.median(recent_norms)
        # A median of zero (a task that stands still) would refuse everything and could never rise again.
        return min(bound, self.norm_median_factor * median * 2.0**stalled) if median > 0 else bound

    def check(
        self,
        parts: DecodedParts,
        groups: Sequence[Group] | None = None,
        *,
        examples: int,
        steps: int,
        loss: float,
        evaluation: tuple[float, float, int] | None = None,
        metric_max: float | None = None,
        norm_bound: float | None = None,
    ) -> float:
        """Lets one update in, or not.

        Args:
            parts: The update, a part for each group.
            groups: How it is divided, one group of all elements by default; the norm is of all groups but the
                buffers, which are no step.
            examples: On how many examples the device says that it trained.
            steps: How many optimiser steps it says that it did.
            loss: Its mean training loss.
            evaluation: ``(loss_sum, metric_sum, count)`` over held-out examples, or None.
            metric_max: The most that the metric can be for one example, 0 being the least; None for no such bound.
            norm_bound: The round's bound from :meth:`norm_bound`; None for ``norm_max`` alone.

        Returns:
            The update's L2 norm, to be kept for later bounds if it counts.

        Raises:
            ProtocolError: With the reason ``shape``, ``nan``, ``value``, ``norm``, ``examples``, ``steps``, ``loss`` or
                ``evaluation``.
        """
        self._check_claims(examples, steps, loss, evaluation)
        if evaluation is not None and metric_max is not None and not 0.0 <= evaluation[1] <= metric_max * evaluation[2]:
            impossible = f"update: a metric of {evaluation[1]!r} over {evaluation[2]} examples is not possible"
            raise ProtocolError(impossible, reason="evaluation")
        norm = self.measure(parts, groups)
        bound = self.norm_bound(()) if norm_bound is None else norm_bound
        if norm > bound:
            raise ProtocolError(f"update: its norm {norm:.6g} is above this round's bound {bound:.6g}", reason="norm")
        return norm

    def measure(self, parts: DecodedParts, groups: Sequence[Group] | None = None) -> float:
        """The L2 norm of one vector whose shape and values are within bounds; arguments as of :meth:`check`.

        Raises:
            ProtocolError: They are not: with the reason ``shape``, ``nan`` or ``value``.
        """
        squares = 0.0
        divided = [(self.size, "main")] if groups is None else [(group.size, group.kind) for group in groups]
        for decoded, (size, kind) in zip(parts, divided, strict=True):
            part_norm = self._check_part(decoded, size)
            squares += part_norm * part_norm if kind != "buffers" else 0.0
        return math.sqrt(squares)

    def _check_part(self, decoded: Decoded | Rotated, size: int) -> float:
        """The norm of one part whose shape and values are within bounds."""
        if isinstance(decoded, Rotated):
            if decoded.size != size:
                raise ProtocolError(f"update: {decoded.size} elements, the model has {size}", reason="shape")
            # It is added up as it is: the bound is on what is added.
            self._check_range(-decoded.largest(), decoded.largest())
            return decoded.norm()
        self._check_shape(decoded, size)
        if decoded.values.size:
            # Both hand a NaN on.
            self._check_range(float(decoded.values.min()), float(decoded.values.max()))
        # In float64 and by one thread: a dot product of BLAS may differ in the last bits from run to run.
        wide = decoded.values.astype(np.float64)
        return math.sqrt(float(np.square(wide, out=wide).sum()))

    def _check_claims(
        self, examples: int, steps: int, loss: float, evaluation: tuple[float, float, int] | None
    ) -> None:
        if not _is_count(examples, 1, self.examples_max):
            raise ProtocolError(f"update: examples {examples!r} is not in 1..{self.examples_max}", reason="examples")
        if not _is_count(steps, 0, self.steps_max):
            raise ProtocolError(f"update: steps {steps!r} is not in 0..{self.steps_max}", reason="steps")
        if not _is_within(loss, self.loss_max):
            raise ProtocolError(f"update: the training loss {loss:g} is not within +-{self.loss_max:g}", reason="loss")
        if evaluation is None:
            return
        loss_sum, metric_sum, count = evaluation
        sum_max = self.loss_max * self.examples_max
        if not _is_count(count, 1, self.examples_max):
            raise ProtocolError(
                f"update: evaluated {count!r} examples, not 1..{self.examples_max}", reason="evaluation"
            )
        if not _is_within(loss_sum, sum_max) or not _is_within(metric_sum, sum_max):
            raise ProtocolError(
                f"update: evaluation sums {loss_sum!r}, {metric_sum!r} are not within +-{sum_max:g}",
                reason="evaluation",
            )

    def _check_shape(self, decoded: Decoded, size: int) -> None:
        values, indices = decoded.values, decoded.indices
        if decoded.size != size:
            raise ProtocolError(f"update: {decoded.size} elements, the model has {size}", reason="shape")
        if values.dtype != np.float32 or values.ndim != 1:
            raise ProtocolError(
                f"update: values are {values.dtype}{list(values.shape)}, not float32[k]", reason="shape"
            )
        if indices is None:
            if values.size != size:
                raise ProtocolError(f"update: {values.size} values for {size} elements", reason="shape")
            return
        if indices.dtype != np.int64 or indices.shape != values.shape:
            raise ProtocolError(f"update: {indices.shape} indices for {values.shape} values", reason="shape")
        if indices.size and not (indices[0] >= 0 and indices[-1] < size and (indices[1:] > indices[:-1]).all()):
            raise ProtocolError(f"update: indices do not rise within 0..{size - 1}", reason="shape")

    def _check_range(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ProtocolError("update: a value is not finite", reason="nan")
        if max(high, -low) > self.value_max:
            raise ProtocolError(f"update: values {low:.6g}..{high:.6g} exceed +-{self.value_max:g}", reason="value")


def _is_count(value: object, low: int, high: int | None) -> bool:
    return type(value) is int and low <= value and (high is None or value <= high)


def _is_within(value: float, bound: float) -> bool:
    return math.isfinite(value) and abs(value) <= bound
