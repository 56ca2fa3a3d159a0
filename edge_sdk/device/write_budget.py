"""How much a device has written today: an SD card lasts for so many bytes and no more.

The count is kept over restarts in coarse steps, since keeping it costs a write too; a restart forgets less than a step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from edge_sdk.device.files import Files
from edge_sdk.device.state_file import HEAD_BYTES_MAX, CorruptError, seal, unseal
from edge_sdk.errors import StateError

__all__ = ["WriteBudget"]

logger = logging.getLogger(__name__)

NAME: Final = "wear"
KIND: Final = 4
STEPS: Final = 256


class WriteBudget:
    """A daily budget of bytes written; any thread may ask and count.

    Args:
        files: Where the count is kept.
        wall_day: Today as a number of days. Only a change matters, in whichever direction: a clock that was wrong
            starts a new day when it is put right, instead of ending all writing until that day comes.
        bytes_per_day_max: The budget.
    """

    def __init__(self, files: Files, wall_day: Callable[[], int], bytes_per_day_max: int) -> None:
        self._files = files
        self._wall_day = wall_day
        self._bytes_max = bytes_per_day_max
        self._lock = threading.Lock()
        self._day = wall_day()
        self._bytes = self._bytes_kept = self._read()

    @property
    def bytes_today(self) -> int:
        """Bytes counted since the day began."""
        with self._lock:
            return self._turned()

    def allows(self, size_bytes: int) -> bool:
        """Whether ``size_bytes`` more are within today's budget."""
        return self.bytes_today + size_bytes <= self._bytes_max

    def count(self, size_bytes: int) -> None:
        """``size_bytes`` were written."""
        with self._lock:
            self._bytes = self._turned() + size_bytes
            if self._bytes - self._bytes_kept < max(self._bytes_max // STEPS, 1):
                return
            self._bytes_kept = self._bytes
            try:
                self._files.write(NAME, seal(KIND, {"day": self._day, "bytes": self._bytes}))
            except StateError as error:
                logger.warning("state: today's count of bytes written is not kept: %s", error)

    def _turned(self) -> int:
        day = self._wall_day()
        if day != self._day:
            self._day, self._bytes, self._bytes_kept = day, 0, 0
        return self._bytes

    def _read(self) -> int:
        size_bytes = self._files.size_bytes(NAME)
        if size_bytes is None or size_bytes > HEAD_BYTES_MAX + 64:
            return 0
        try:
            head, _ = unseal(self._files.read(NAME) or b"", KIND)
        except (CorruptError, StateError) as error:
            logger.warning("state: today's count of bytes written is lost: %s", error)
            return 0
        counted = head.get("bytes")
        return counted if head.get("day") == self._day and isinstance(counted, int) else 0
