"""FedNova: normalised averaging for devices that do unequal numbers of steps (Wang et al. 2020).

With p_i = n_i / n and the norm ||a_i||_1 of a device's accumulated gradients,

    w' = w + tau_eff sum_i p_i delta_i / ||a_i||_1        tau_eff = sum_i p_i ||a_i||_1

where ||a_i||_1 is the number of steps tau_i under plain SGD, and with momentum rho (the paper's section 4.1)

    ||a_i||_1 = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho)

A device that does ten times the steps of another one no longer pulls ten times as hard. Buffers are no step: they are
averaged as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.aggregation.algorithm import DELTA, Algorithm, Contribution, State
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.errors import ConfigurationError, ProtocolError

__all__ = ["FedNova"]


@dataclass(frozen=True)
class FedNova(Algorithm):
    """Normalises each delta by the steps behind it.

    Attributes:
        momentum: That of the devices' optimiser (heavy ball), 0 for plain SGD.
        steps_max: Most steps that a device may claim: one that claims more would stretch everybody's step.

    Raises:
        ConfigurationError: A field is out of range.
    """

    totals = ("weight", "weighted_steps")

    momentum: float = 0.0
    steps_max: int = 100_000

    def __post_init__(self) -> None:
        if isinstance(self.momentum, bool) or not 0 <= self.momentum < 1:
            raise ConfigurationError(f"aggregation.options.momentum is {self.momentum}, expected 0 <= momentum < 1")
        if type(self.steps_max) is not int or not 1 <= self.steps_max <= 1 << 22:
            raise ConfigurationError(f"aggregation.options.steps_max is {self.steps_max}, expected 1..{1 << 22}")

    def suits(self, scalars: Mapping[str, float]) -> None:
        """See :class:`Algorithm`."""
        if scalars.get("momentum", 0.0) != self.momentum:
            raise ConfigurationError(
                f"aggregation.options.momentum = {self.momentum:g}: the devices' optimiser has momentum "
                f"{scalars.get('momentum', 0.0):g}, and FedNova must know it; write the same number in both places"
            )

    def check(self, update: Contribution) -> None:
        """See :class:`Algorithm`."""
        if not 1 <= update.steps <= self.steps_max:
            raise ProtocolError(f"update: {update.steps} steps, FedNova takes 1..{self.steps_max}", reason="steps")

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        """See :class:`Algorithm`."""
        norm = self._norm(update.steps)
        sums.add(DELTA, update.vectors[DELTA], update.weight, scale=1.0 / norm)
        sums.count(weight=update.weight, weighted_steps=update.weight * norm)

    def report(self, sums: PartialSums) -> State:
        """See :class:`Algorithm`."""
        return {DELTA: sums.mean(DELTA, factor=sums.total("weighted_steps") / sums.total("weight"))}

    def _norm(self, steps: int) -> float:
        """||a_i||_1 after so many steps; at least 1."""
        rho = self.momentum
        return max(1.0, (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho))
