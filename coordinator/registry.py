"""Who has checked in lately, noted in the database with the next write or soon after: no device is told of it, so no
check-in needs a commit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coordinator.schedules.selection import Candidate
from coordinator.store import Store

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

    def candidates(self, devices: Sequence[str]) -> list[Candidate]:
        """What is known of these devices: what they said of themselves, and how their tickets ended."""
        self.flush()
        known = {record.device: record for record in self._store.devices()}
        return [
            Candidate(
                device,
                record.capabilities,
                counted=record.counted,
                refused=record.refused,
                declined=record.declined,
                late=record.late,
                missing=record.missing,
            )
            if (record := known.get(device)) is not None
            else Candidate(device)
            for device in devices
        ]

    def population(self) -> int:
        """How many devices have checked in within the last week; any of them may be asked for any task."""
        self.flush()
        return self._store.population(POPULATION_SECONDS)
