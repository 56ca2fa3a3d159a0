"""A line of progress on a terminal or in a notebook; nothing where output goes into a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

__all__ = ["Progress", "progress_for"]

Progress = Callable[[int, int, dict[str, float]], None]
"""Told the round, how many there are, and the newest metrics."""

WIDTH: Final = 24
SECONDS_BETWEEN: Final = 0.1


def progress_for(wanted: Any, metric: str) -> Progress | None:
    """What is told of each round.

    Args:
        wanted: None: a line where there is a terminal or a notebook; True or False; or a function of
            ``(round, rounds, metrics)``.
        metric: The metric to show.
    """
    if wanted is None:
        wanted = sys.stderr.isatty() or "ipykernel" in sys.modules
    if callable(wanted):
        told: Progress = wanted
        return told
    return _Line(sys.stderr, metric) if wanted else None


class _Line:
    """One line that is written over."""

    def __init__(self, out: TextIO, metric: str) -> None:
        self._out = out
        self._metric = metric
        self._last = -1.0
        self._length = 0

    def __call__(self, number: int, rounds: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN and number < rounds:
            return
        self._last = now
        done = WIDTH * number // max(rounds, 1)
        names = [name for name in ("train_loss", "loss", self._metric) if name in metrics]
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in dict.fromkeys(names))
        text = f"round {number}/{rounds} [{'#' * done}{'.' * (WIDTH - done)}]  {shown}"
        self._out.write("\r" + text.ljust(self._length))
        self._length = len(text)
        self._out.flush()

    def close(self) -> None:
        """The line stays, and what follows begins below it."""
        if self._length:
            self._out.write("\n")
            self._out.flush()
