"""How much a device has sent and received today, and how much it may: a mobile contract has so many bytes and no more.

The count survives restarts and power cuts, in coarse steps, since keeping it costs a write: what is kept runs ahead of
what is counted, so that a restart may take a step too much for spent and never too little.

What a day is where clocks are wrong: a new one begins when the wall clock shows a later day than any before. A clock
that goes back, as on a board without a battery until the network has told it the time, changes nothing; only where it
was years ahead the day is corrected. Where no clock moves at all, 24 hours of running are a day.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from edge_sdk.device.files import Files
from edge_sdk.device.state_file import HEAD_BYTES_MAX, CorruptError, seal, unseal
from edge_sdk.errors import StateError

__all__ = ["DailyTraffic"]

logger = logging.getLogger(__name__)

NAME: Final = "traffic"
KIND: Final = 5
SECONDS_PER_DAY: Final = 86_400.0
STEPS: Final = 64
STEP_BYTES_MIN: Final = 1 << 10
UNLIMITED_STEP_BYTES_MIN: Final = 64 << 10
UNLIMITED_STEPS: Final = 8
"""Without a limit steps grow with the count: a busy day costs some dozens of writes, whatever it brings."""
DAY_PLAUSIBLE: Final = 20_000
"""In October 2024: a clock that says less has not been set."""
DAYS_BACK_MAX: Final = 2


class DailyTraffic:
    """Bytes of today and their limit; used on one thread.

    Args:
        files: Where the count is kept.
        wall_day: Today as a number of days since 1970.
        bytes_max: This device's own limit of bytes a day, 0 for none.
    """

    def __init__(self, files: Files, wall_day: Callable[[], int], bytes_max: int = 0) -> None:
        self._files = files
        self._wall_day = wall_day
        self._own = bytes_max
        self._asked = 0
        self._day = wall_day()
        self._since: float | None = None
        self._bytes = self._kept = 0
        self.days = 0
        self._read()

    @property
    def bytes_max(self) -> int:
        """The limit in force, the smaller of this device's and the coordinator's; 0 for none."""
        return min(self._own or self._asked, self._asked or self._own)

    @property
    def bytes_today(self) -> int:
        """Bytes counted; of yesterday until ``turn`` was called."""
        return self._bytes

    def ask(self, bytes_max: int) -> None:
        """What the coordinator wishes, 0 for no limit; it is kept with the count."""
        if bytes_max != self._asked:
            self._asked, self._kept = bytes_max, 0  # the next count is kept at once

    def turn(self, now: float) -> int:
        """Begins a new day where it is time; returns how many have begun since the start.

        Args:
            now: Seconds on a monotonic clock.
        """
        day = self._wall_day()
        if self._since is None:
            self._since = now
        if DAY_PLAUSIBLE <= day < self._day - DAYS_BACK_MAX:
            self._day = day  # the clock was wrong then
        if day > self._day or now - self._since >= SECONDS_PER_DAY:
            self._day, self._since = max(day, self._day), now
            self._bytes = self._kept = 0
            self.days += 1
        return self.days

    def count(self, size_bytes: int, now: float) -> None:
        """``size_bytes`` went over the wire."""
        self.turn(now)
        self._bytes += size_bytes
        step = self._step
        if self._bytes > self._kept - step // 2:
            self._write(self._bytes + step)

    def keep(self) -> None:
        """Keeps the exact count: the end is near, and a polite one."""
        if self._kept != self._bytes:
            self._write(self._bytes)

    @property
    def _step(self) -> int:
        if self.bytes_max:
            return max(self.bytes_max // STEPS, STEP_BYTES_MIN)
        return max(self._bytes // UNLIMITED_STEPS, UNLIMITED_STEP_BYTES_MIN)

    def _write(self, size_bytes: int) -> None:
        self._kept = size_bytes  # a disk that fails is not asked for every message
        try:
            self._files.write(NAME, seal(KIND, {"day": self._day, "bytes": size_bytes, "asked": self._asked}))
        except StateError as error:
            logger.warning("state: today's count of bytes sent and received is not kept: %s", error)

    def _read(self) -> None:
        size_bytes = self._files.size_bytes(NAME)
        if size_bytes is None or size_bytes > HEAD_BYTES_MAX + 64:
            return
        try:
            head, _ = unseal(self._files.read(NAME) or b"", KIND)
        except (CorruptError, StateError) as error:
            logger.warning("state: today's count of bytes sent and received is lost: %s", error)
            return
        day, counted, asked = (head.get(name) for name in ("day", "bytes", "asked"))
        if not (isinstance(day, int) and isinstance(counted, int) and isinstance(asked, int)):
            return
        self._asked = asked
        if day >= self._day:
            self._day, self._bytes, self._kept = day, counted, counted
