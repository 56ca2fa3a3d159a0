"""Random draws that stay the same whatever NumPy release runs them.

NumPy promises that the raw 64-bit stream of a bit generator never changes; it makes no such promise for the
distributions and shuffles of ``Generator``. A partition or a fleet that a seed names in a paper or a bug report must
be the same one later, so both are drawn from the raw stream here, with ``math`` for the scalar functions.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigurationError

__all__ = ["StableRandom"]

MANTISSA_STEP: Final = 2.0**-53


class StableRandom:
    """A stream of draws named by a seed and a purpose.

    Args:
        seed: Any integer of at least 0.
        purpose: Name of what the draws are for; two purposes share no stream, so that one seed can serve a whole run.

    Raises:
        ConfigurationError: The seed is negative.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        if seed < 0:
            raise ConfigurationError(f"seed: {seed} is negative; use 0 or more")
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, *purpose.encode()]))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """float64[count], uniform in [0, 1)."""
        raw = self._bits.random_raw(count)
        return (raw >> np.uint64(11)).astype(np.float64) * MANTISSA_STEP

    def uniform(self) -> float:
        """One number, uniform in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * MANTISSA_STEP

    def permutation(self, count: int) -> NDArray[np.int64]:
        """int64[count]: the numbers 0 to count - 1 in random order (the sorting order of random keys)."""
        return np.argsort(self._bits.random_raw(count), kind="stable").astype(np.int64)

    def normal(self) -> float:
        """One standard normal number (Box and Muller 1958, the cosine half)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return radius * math.cos(2.0 * math.pi * self.uniform())

    def dirichlet(self, alphas: list[float]) -> list[float]:
        """Shares that sum to 1, drawn from a Dirichlet distribution.

        Works on logarithms, so that concentrations far below 1 give one share of nearly 1 and never 0 / 0.

        Args:
            alphas: Concentration of each share; a concentration of 0 gives a share of 0, at least one is positive.
        """
        logs = [self._log_gamma_variate(alpha) if alpha > 0 else -math.inf for alpha in alphas]
        top = max(logs)
        weights = [math.exp(value - top) for value in logs]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def _log_gamma_variate(self, alpha: float) -> float:
        """Logarithm of a Gamma(alpha, 1) draw (Marsaglia and Tsang 2000, with their boost for alpha < 1)."""
        if alpha < 1.0:
            return self._log_gamma_variate(alpha + 1.0) + math.log(1.0 - self.uniform()) / alpha
        d = alpha - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return math.log(d) + math.log(v)
