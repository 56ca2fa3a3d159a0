"""Who has checked in lately, and what they have said of themselves.

A check-in is noted in the database with the next write or soon after: no device is told of it, so none needs a commit
of its own. A device says once what it is (its instance and its capabilities) and then names it by a short digest. What
is not in memory is looked up in the database, and what is not there either is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final, NamedTuple

from coordinator.store import DeviceRecord, Store
from edge_sdk.wire.messages import CheckIn, introduction_id
from edge_sdk.wire.records import pack_map, unpack_map

__all__ = ["Introduction", "Registry"]

SEEN_SECONDS: Final = 1.0
POPULATION_SECONDS: Final = 7 * 86_400.0
INTRODUCTIONS_MAX: Final = 100_000


class Introduction(NamedTuple):
    """What a device has said of itself."""

    instance: bytes
    capabilities: dict[str, Any]


@lru_cache(maxsize=32)
def _shared(packed: bytes) -> dict[str, Any]:
    """Capabilities; most devices of a fleet have the same ones, and share one object."""
    return unpack_map(packed, "capabilities")


class Registry:
    """The devices of a federation, for all tasks of a coordinator.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: list[tuple[str, bytes, dict[str, Any]]] = []
        # The last one of each device with its name: else one device could fill the memory with what it says it is.
        self._introductions: OrderedDict[str, tuple[bytes, Introduction]] = OrderedDict()
        self.due: float | None = None

    def note(self, device: str, message: CheckIn, now: float) -> Introduction | None:
        """A device has checked in; :meth:`flush` is due within a second.

        Returns:
            What the device is; None where it has to be asked.
        """
        known = self._introduced(device, message)
        if known is not None:
            self._seen.append((device, known.instance, known.capabilities))
            if self.due is None:
                self.due = now + SEEN_SECONDS
        return known

    def _introduced(self, device: str, message: CheckIn) -> Introduction | None:
        name, found = self._introductions.get(device, (b"", None))
        if message.instance:
            found = Introduction(message.instance, _shared(pack_map(message.capabilities)))
        elif found is None or name != message.introduction:
            stored = self._store.device(device)
            if stored is None or introduction_id(stored.instance, stored.capabilities) != message.introduction:
                return None
            found = Introduction(stored.instance, stored.capabilities)
        self._introductions[device] = message.introduction, found
        self._introductions.move_to_end(device)
        while len(self._introductions) > INTRODUCTIONS_MAX:
            self._introductions.popitem(last=False)
        return found

    def flush(self) -> None:
        """Writes what was noted, inside the caller's transaction."""
        seen, self._seen, self.due = self._seen, [], None
        if seen:
            self._store.device_seen(seen)

    def devices(self) -> list[DeviceRecord]:
        """What is known of every device, those included who have checked in just now."""
        self.flush()
        return self._store.devices()

    def population(self) -> int:
        """How many devices have checked in within the last week; any of them may be asked for any task."""
        self.flush()
        return self._store.population(POPULATION_SECONDS)
