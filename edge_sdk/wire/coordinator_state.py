"""What a coordinator says of itself, as retained JSON for machines and people, and as its last will.

    fl/v1/<federation>/coordinator/<lineage>/state
    {"lineage": "6f..", "incarnation": 3, "session": "a1..", "online": true, "federation": "garden",
     "tasks": ["default"]}

The *lineage* is that of the coordinator's database: random, and made with the database. The *incarnation* counts the
starts on that database, so that incarnations are ordered within one lineage only. Unknown fields are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire import fields
from edge_sdk.wire.fields import boolean, integer, list_of

__all__ = ["CoordinatorState"]

STATE_BYTES_MAX: Final = 20_000
INCARNATION_MAX: Final = 1 << 60
LINEAGE_BYTES_MAX: Final = 16
TASKS_MAX: Final = 256
_INCARNATION: Final = integer(0, INCARNATION_MAX)
_TASKS: Final = list_of(fields.segment, TASKS_MAX)


@dataclass(frozen=True, slots=True)
class CoordinatorState:
    """Whether a coordinator is there.

    Attributes:
        lineage: Of its database, 1 to 16 bytes.
        incarnation: Which start on that database, from 0.
        online: False in a last will.
        tasks: Names of the tasks that it serves, at most 256.
        session: Random bytes of its process, at most 16: they tell a coordinator its own words from those of a copy.
    """

    lineage: bytes
    incarnation: int
    online: bool
    tasks: tuple[str, ...]
    session: bytes = b""

    def encode(self, federation: str) -> bytes:
        """The state as JSON; equal states give equal bytes."""
        return json.dumps(
            {
                "lineage": self.lineage.hex(),
                "incarnation": self.incarnation,
                "session": self.session.hex(),
                "online": self.online,
                "federation": federation,
                "tasks": list(self.tasks),
            }
        ).encode()

    @classmethod
    def decode(cls, payload: bytes, segment: str) -> CoordinatorState:
        """The state in bytes that nobody vouches for.

        Args:
            payload: The bytes.
            segment: The lineage in the topic that they came on, in hexadecimal digits.

        Raises:
            DecodeError: They are no such state, or of another lineage than their topic.
        """
        if len(payload) > STATE_BYTES_MAX:
            raise DecodeError(f"coordinator state of {len(payload)} bytes", reason="oversize")
        try:
            state: Any = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError("coordinator state: not JSON") from error
        if not isinstance(state, dict):
            raise DecodeError("coordinator state: expected a map")
        return cls(
            lineage=_lineage(state.get("lineage"), segment),
            incarnation=_INCARNATION(state.get("incarnation"), "coordinator state.incarnation"),
            online=boolean(state.get("online"), "coordinator state.online"),
            tasks=_TASKS(state.get("tasks"), "coordinator state.tasks"),
            session=_hexadecimal(state.get("session", ""), "session"),
        )


def _lineage(value: object, segment: str) -> bytes:
    if not isinstance(value, str) or value != segment:
        raise DecodeError("coordinator state: its lineage is not that of its topic")
    lineage = _hexadecimal(value, "lineage")
    if not lineage:
        raise DecodeError("coordinator state.lineage: it is empty")
    return lineage


def _hexadecimal(value: object, name: str) -> bytes:
    """At most 16 bytes, written as lower-case digits."""
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or len(found) > LINEAGE_BYTES_MAX or found.hex() != value:
        raise DecodeError(f"coordinator state.{name}: not the hexadecimal digits of at most {LINEAGE_BYTES_MAX} bytes")
    return found
