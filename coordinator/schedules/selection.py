"""Who is asked to check in, who is chosen, and when the others are to come back. PURE.

Pace steering as in Bonawitz et al. 2019 ("Towards Federated Learning at Scale", section 2.3): a small fleet is gathered
so that enough devices meet in one round, a large one is spread so that they do not all answer at once. An announcement
carries the fraction of devices that should check in and the window to spread over; each device draws for itself, so the
check-ins of a large fleet are already a uniform sample of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

__all__ = ["announced_fraction", "choose", "come_back_seconds", "wanted_count"]

SHARE_MARGIN: Final = 2.0
"""Asked / wanted: some of those asked are off, not eligible, or drop out."""
GATHER_BELOW: Final = 200
"""Up to this many known devices all are asked: the control traffic of one round is then below a megabyte."""


def wanted_count(goal_count: int, over_selection: float) -> int:
    """How many devices a round invites: the goal and a surplus for those that will drop out."""
    return max(goal_count, math.ceil(goal_count * over_selection))


def announced_fraction(population: int, wanted: int, setting: float | None, attempt: int) -> float:
    """The fraction of devices that should check in.

    Args:
        population: Devices seen recently, 0 if nobody knows.
        wanted: Devices that the round will invite.
        setting: A fraction fixed by the configuration, or None for ``auto``.
        attempt: How often this round was abandoned: each time, twice as many are asked.

    Returns:
        A number in 0..1.
    """
    if setting is not None:
        return setting
    if population <= GATHER_BELOW:
        return 1.0
    return min(1.0, SHARE_MARGIN * wanted / population * 2.0**attempt)


def choose(candidates: Sequence[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A uniform sample without replacement, and the others in random order as reserves.

    The outcome depends on the *set* of candidates and ``rng``, never on the order in which they came.
    """
    ordered = sorted(candidates)
    keys = rng.random(len(ordered))
    shuffled = [ordered[i] for i in np.argsort(keys, kind="stable")]
    return shuffled[:count], shuffled[count:]


def come_back_seconds(seconds: float, jitter: float, rng: np.random.Generator) -> float:
    """``seconds`` with +- ``jitter`` (a share), so that those who were turned away do not return together."""
    return seconds * (1.0 + jitter * (2.0 * float(rng.random()) - 1.0))
