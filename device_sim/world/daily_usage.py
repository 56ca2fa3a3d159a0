"""What each device has sent and received on each virtual day, kept a second time and held against its limit."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from device_sim.auditors.rounds import InvariantBroken
from device_sim.world.clock import VirtualClock
from edge_sdk.mqtt import Meter

__all__ = ["SECONDS_PER_DAY", "DailyUsage"]

SECONDS_PER_DAY: Final = 86_400


class DailyUsage:
    """The books of all devices; unlike a device's own count they forget nothing in a power cut.

    Args:
        clock: Virtual time; a day begins at each multiple of 86,400 seconds.
        bytes_max: The limit of a device and day in bytes, 0 for none.
    """

    def __init__(self, clock: VirtualClock, bytes_max: int) -> None:
        self._clock = clock
        self._bytes_max = bytes_max
        self._seen: dict[int, int] = {}
        self.used: defaultdict[tuple[str, int], int] = defaultdict(int)

    @property
    def day(self) -> int:
        """Today."""
        return int(self._clock.now // SECONDS_PER_DAY)

    def note(self, device: str, meter: Meter) -> None:
        """Reads a meter; each life of a device has its own.

        Raises:
            InvariantBroken: The device is above its limit.
        """
        fresh = meter.total - self._seen.get(id(meter), 0)
        self._seen[id(meter)] = meter.total
        key = device, self.day
        self.used[key] += fresh
        if 0 < self._bytes_max < self.used[key]:
            raise InvariantBroken(
                f"{device} sent and received {self.used[key]} bytes on day {self.day}, {self._bytes_max} are allowed"
            )
