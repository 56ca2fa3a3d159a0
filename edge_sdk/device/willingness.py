"""Asking the application every few seconds whether its device may work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from edge_sdk.device.session import SetEligible

__all__ = ["Willingness"]

logger = logging.getLogger(__name__)

ELIGIBLE_SECONDS: Final = 2.0
NEVER: Final = float("inf")


class Willingness:
    """The application's answer, and when to ask again.

    Attributes:
        due: When ``ask`` is due.

    Args:
        eligible: The application's function; None where it has no wish.
    """

    def __init__(self, eligible: Callable[[], bool] | None) -> None:
        self.due = float("-inf") if eligible is not None else NEVER
        self._eligible = eligible
        self._was = True

    def ask(self, now: float) -> SetEligible | None:
        """Asks; returns what has changed. A function that fails means no."""
        self.due = NEVER
        if self._eligible is None:
            return None
        self.due = now + ELIGIBLE_SECONDS
        try:
            eligible, reason = bool(self._eligible()), ""
        except Exception as error:
            logger.exception("eligible() failed")
            eligible, reason = False, f"eligible() failed: {error}"
        if eligible == self._was:
            return None
        self._was = eligible
        return SetEligible(eligible, reason)
