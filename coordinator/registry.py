"""Who has checked in lately, noted in the database with the next write or soon after: no device is told of it, so no
check-in needs a commit of its own."""

from __future__ import annotations

from typing import Any, Final

from coordinator.store import DeviceRecord, Store

__all__ = ["Registry"]

SEEN_SECONDS: Final = 1.0
POPULATION_SECONDS: Final = 7 * 86_400.0


class Registry:
    """The devices of a federation, for all tasks of a coordinator.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: list[tuple[str, bytes, dict[str, Any]]] = []
        self.due: float | None = None

    def note(self, device: str, instance: bytes, capabilities: dict[str, Any], now: float) -> None:
        """A device has checked in; :meth:`flush` is due within a second."""
        self._seen.append((device, instance, capabilities))
        if self.due is None:
            self.due = now + SEEN_SECONDS

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
