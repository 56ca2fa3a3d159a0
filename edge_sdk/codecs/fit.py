"""The search for the largest of some settings that fit a limit of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["largest_that_fits"]

T = TypeVar("T")


def largest_that_fits(made: Callable[[int], T], high: int, fits: Callable[[T], bool]) -> T | None:
    """The largest of ``made(1)``, .., ``made(high - 1)`` that fits, if what is larger needs more; None if none does.

    ``made(high)`` is known not to fit.
    """
    low = 1
    if not fits(made(low)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(made(middle)) else (low, middle)
    return made(low)
