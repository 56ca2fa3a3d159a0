"""How long to wait before the next attempt."""

from __future__ import annotations

from typing import Protocol

from edge_sdk.errors import ConfigurationError

__all__ = ["Backoff"]


class _Uniform(Protocol):
    def random(self) -> float: ...


class Backoff:
    """Waiting times between attempts: uniform between zero and a limit that doubles each time ("full jitter").

    Thousands of devices that lost the same broker thus come back spread out instead of all at once. Marc Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    base, maximum:  the first and the largest limit, in seconds
    rng:  a ``numpy.random.Generator`` or ``random.Random``
    """

    def __init__(self, base: float, maximum: float, rng: _Uniform) -> None:
        if not 0 < base <= maximum:
            raise ConfigurationError(f"backoff: base {base} and maximum {maximum} s; use 0 < base <= maximum")
        self._base = base
        self._maximum = maximum
        self._rng = rng
        self._limit = base

    def next_seconds(self) -> float:
        """How long to wait before the next attempt."""
        limit = self._limit
        self._limit = min(self._maximum, limit * 2)
        return limit * float(self._rng.random())

    def reset(self) -> None:
        """Start over: an attempt has succeeded."""
        self._limit = self._base
