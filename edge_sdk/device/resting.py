"""Being away from the broker because today's bytes are spent, and coming back when a new day begins."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from edge_sdk.device.data_quota import DataQuota
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import Notify
from edge_sdk.wire.terms import Terms

__all__ = ["NewDay", "Resting"]

LOOK_SECONDS: Final = 60.0
NEW_DAY_SECONDS: Final = 300.0
"""Devices that a day's limit has sent away do not all come back in the same second."""
NEVER: Final = float("inf")


class NewDay(NamedTuple):
    """A day has begun; ``reconnect_at`` is when to connect again, None for a device that was not away."""

    reconnect_at: float | None


class Resting:
    """Whether a device is away for today.

    Attributes:
        active: Whether it is.
        due: When ``turn`` is due.

    Args:
        quota: The quota of bytes.
        rng: For jitter.
    """

    def __init__(self, quota: DataQuota, rng: np.random.Generator) -> None:
        self.active = False
        self.due = 0.0 if quota.limited else NEVER
        self._quota = quota
        self._rng = rng
        self._days = 0

    def why_not(self, terms: Terms, downloads: tuple[int, ...], now: float) -> tuple[ProgressKind, str] | None:
        """Why the work of an invite is beyond a quota; its terms may bring a daily limit that was not there before."""
        refusal = self._quota.why_not(terms, downloads)
        if self._quota.limited and self.due == NEVER:
            self.due = now + LOOK_SECONDS
        return refusal

    def begin(self, now: float) -> Notify:
        """Today's bytes are spent; returns what is to be told."""
        self.active = True
        self.due = now + LOOK_SECONDS
        traffic = self._quota.traffic
        text = f"{traffic.bytes_today} of {traffic.bytes_max} bytes are used today"
        return Notify(ProgressKind.BYTES_PER_DAY, text)

    def turn(self, now: float) -> NewDay | None:
        """Whether a new day has begun since the last look; a limit may also have come or gone with an invite."""
        days = self._quota.traffic.turn(now)
        self.due = now + LOOK_SECONDS if self._quota.limited or self.active else NEVER
        if days == self._days:
            return None
        self._days = days
        was_active, self.active = self.active, False
        return NewDay(now + NEW_DAY_SECONDS * float(self._rng.random()) if was_active else None)
