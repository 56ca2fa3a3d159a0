"""Who was seen, with what capabilities, and how their tickets ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from coordinator.store.database import Database
from coordinator.store.records import DeviceRecord
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["DeviceRow", "Devices"]

DeviceRow = tuple[str, bytes, Mapping[str, Any]]
"""Device, instance, capabilities."""

CAPABILITIES_CHARACTERS_MAX: Final = 8192

_COLUMNS: Final = (
    f"device, instance, instance_before, instance_changes, capabilities, first_seen, last_seen, {', '.join(VERDICTS)}"
)


class Devices:
    """The registry.

    Args:
        database: Where it is kept.
        wall: Wall time, seconds since 1970.
        devices_max: Devices remembered; on a broker without access control anybody can invent names.
    """

    def __init__(self, database: Database, *, wall: Callable[[], float], devices_max: int) -> None:
        self._database = database
        self._wall = wall
        self._devices_max = devices_max

    def seen(self, rows: Sequence[DeviceRow]) -> int:
        """Note check-ins; returns how many unknown devices were left out because the registry is full."""
        now = self._wall()
        left_out = 0
        with self._database.transaction():
            for device, instance, capabilities in rows:
                left_out += not self._note(device, instance, _json(capabilities), now)
        return left_out

    def add_verdicts(self, counts: Mapping[tuple[str, str], int]) -> None:
        now = self._wall()
        for (device, state), count in counts.items():
            self._database.write(
                f"INSERT INTO devices (device, instance, capabilities, first_seen, last_seen, {state}) "
                "VALUES (?, x'', '{}', ?, ?, ?) ON CONFLICT (device) "
                f"DO UPDATE SET {state} = {state} + excluded.{state}",
                (device, now, now, count),
            )

    def all(self) -> list[DeviceRecord]:
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM devices ORDER BY device")
        return [_record(row) for row in rows]

    def one(self, device: str) -> DeviceRecord | None:
        row = self._database.row(f"SELECT {_COLUMNS} FROM devices WHERE device = ?", (device,))
        return None if row is None else _record(row)

    def population(self, seen_within_seconds: float) -> int:
        row = self._database.row(
            "SELECT count(*) FROM devices WHERE last_seen >= ? AND instance != x''",
            (self._wall() - seen_within_seconds,),
        )
        return int(row[0]) if row else 0

    def _note(self, device: str, instance: bytes, capabilities: str, now: float) -> bool:
        known = self._database.write(
            "UPDATE devices SET last_seen = max(last_seen, ?1), capabilities = ?2, "
            "instance_changes = instance_changes + (instance NOT IN (?3, x'')), "
            "instance_before = CASE WHEN instance IN (?3, x'') THEN instance_before ELSE instance END, "
            "instance = ?3 WHERE device = ?4",
            (now, capabilities, instance, device),
        )
        if known:
            return True
        return bool(
            self._database.write(
                "INSERT INTO devices (device, instance, capabilities, first_seen, last_seen) "
                "SELECT ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM devices) < ?",
                (device, instance, capabilities, now, now, self._devices_max),
            )
        )


def _record(row: Sequence[Any]) -> DeviceRecord:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return DeviceRecord(**{**values, "capabilities": json.loads(values["capabilities"])})


def _json(capabilities: Mapping[str, Any]) -> str:
    # Shown to people only; what does not fit is shown as a remark rather than refused.
    text = json.dumps(capabilities, default=repr, skipkeys=True)
    return text if len(text) <= CAPABILITIES_CHARACTERS_MAX else '{"truncated": true}'
