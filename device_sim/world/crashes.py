"""Named crash points: a run counts them, and another run dies at one of them.

Between any two things that a program does, the power may fail. Each such place has a name here; a scenario without a
crash counts how often its points are passed, and a test (or ``make soak``) repeats it with a crash at the n-th one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = ["CrashPlan", "CrashPoints", "Crashed"]


class Crashed(BaseException):
    """The power failed here. Not an ``Exception``, so that no handler takes it for an error that can be handled."""

    def __init__(self, owner: str, point: str) -> None:
        super().__init__(f"{owner} crashes at {point}")
        self.owner = owner
        self.point = point


@dataclass(frozen=True, slots=True)
class CrashPlan:
    """Die the ``nth`` time (from 1) that the ``side`` passes one of its points.

    Attributes:
        side: ``device`` or ``coordinator``.
        nth: Which passing.
    """

    side: str
    nth: int


class CrashPoints:
    """Counts passings and raises :class:`Crashed` where the plan says so.

    Args:
        plan: Where to die; None only counts.
    """

    def __init__(self, plan: CrashPlan | None = None) -> None:
        self._plan = plan
        self.passed: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.died_at = ""

    def reach(self, side: str, owner: str, point: str) -> None:
        """The named point is passed; does not return where the plan says that the power fails here."""
        self.passed[side] += 1
        self.names[f"{side}:{point}"] += 1
        if self._plan is not None and self._plan.side == side and self._plan.nth == self.passed[side]:
            self.died_at = f"{owner} at {point}"
            raise Crashed(owner, point)
