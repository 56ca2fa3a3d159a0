"""What a device tells: the log, the application's callback, ``Status``, and the retained JSON for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from edge_sdk import __version__
from edge_sdk.device.progress import WARNINGS, Progress, ProgressKind, Status
from edge_sdk.device.session import Notify
from edge_sdk.device.session.stages import IDLE
from edge_sdk.wire.outcomes import COUNTED

__all__ = ["OFFLINE", "Reporter"]

logger = logging.getLogger(__name__)

STATUS_SECONDS_MIN: Final = 60.0
OFFLINE: Final = b'{"state": "offline"}'
"""The retained status of a device that has left, and the last will of one that is gone."""


class Reporter:
    """One device's words to people.

    Attributes:
        status: What is known without asking others: connection, outcomes, last loss, last error.
        due: When the retained status is to be published, None while there is nothing new to say.

    Args:
        device: The device's name.
        engine: Its engine preference.
        publishes: Whether it publishes a retained status at all.
        on_progress: The application's callback; its mistakes are logged and never raised.
    """

    def __init__(
        self, device: str, engine: str, publishes: bool, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self.status = Status()
        self.due: float | None = None
        self._device = device
        self._engine = engine
        self._publishes = publishes
        self._on_progress = on_progress
        self._published_at = float("-inf")
        self._private: tuple[str, str] = ("", "")  # the last error, and what of it may leave this device

    def tell(self, notice: Notify) -> None:
        """Logs what has happened, keeps warnings as the last error, and tells the application."""
        level = logging.WARNING if notice.what in WARNINGS else logging.INFO
        if logger.isEnabledFor(level):
            what = notice.what.value
            logger.log(level, "%s: %s%s", self._device, what, f": {notice.detail}" if notice.detail else "")
        if notice.what in WARNINGS:
            error = notice.detail or notice.what.value
            self._private = error, error if notice.public is None else notice.public
            self.update(error=error)
        elif notice.what == ProgressKind.TRAINED:
            self.update(error="")
        self.report(Progress(notice.what, notice.detail, notice.round))

    def on_step(self, number: int, steps: int, loss: float) -> None:
        """Training goes on; called on the job's thread."""
        if self._on_progress is not None:
            self.report(Progress(ProgressKind.STEP, round=number, steps=steps, loss=loss))

    def report(self, progress: Progress) -> None:
        """Tells the application."""
        if self._on_progress is None:
            return
        try:
            self._on_progress(progress)
        except Exception:  # the app's own mistake must not end its device
            logger.exception("on_progress failed")

    def update(self, **changes: Any) -> None:
        """Changes fields of ``status``."""
        self.status = replace(self.status, **changes)

    def count(self, counted: bool, reason: str, now: float) -> None:
        """An outcome is known; people hear of it, but not more often than once a minute."""
        status = self.status
        self.update(
            counted=status.counted + counted,
            not_counted=status.not_counted + (not counted),
            last_outcome=reason or (COUNTED if counted else "not counted"),
        )
        self.publish_soon(max(now, self._published_at + STATUS_SECONDS_MIN))

    def publish_soon(self, due: float) -> None:
        """The retained status is to be published at ``due``."""
        self.due = due if self._publishes else None

    def retained(self, status: Status, state: str, now: float) -> bytes | None:
        """The retained JSON for a status that is complete, without what is empty; None where none is published."""
        self.due = None
        if not self._publishes:
            return None
        self._published_at = now
        body: dict[str, Any] = {
            "state": state,
            "phase": "" if status.phase == IDLE else status.phase,
            "round": status.round,
            "counted": status.counted,
            "not_counted": status.not_counted,
            "last_outcome": "" if status.last_outcome == COUNTED else status.last_outcome,
            "last_loss": None if status.last_loss is None else float(f"{status.last_loss:.4g}"),
            # What may hold something of the examples stays in the log and with the application.
            "error": self._private[1] if status.error == self._private[0] else status.error,
            "bytes_today": status.bytes_today,
            "bytes_per_day_max": status.bytes_per_day_max,
            "engine": self._engine,
            "sdk": __version__,
        }
        told = {name: value for name, value in body.items() if value not in ("", 0, None)}
        return json.dumps(told, separators=(",", ":")).encode()
