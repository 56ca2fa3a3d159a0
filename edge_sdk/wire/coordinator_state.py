"""What a coordinator says of itself, as retained JSON for machines and people, and as its last will.

    fl/v1/<federation>/coordinator/<lineage>/state
    {"lineage": "6f..", "incarnation": 3, "online": true, "federation": "garden", "tasks": ["default"]}

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
    """

    lineage: bytes
    incarnation: int
    online: bool
    tasks: tuple[str, ...]

    def encode(self, federation: str) -> bytes:
        """The state as JSON; equal states give equal bytes."""
        return json.dumps(
            {
                "lineage": self.lineage.hex(),
                "incarnation": self.incarnation,
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
        )


def _lineage(value: object, segment: str) -> bytes:
    if not isinstance(value, str) or value != segment:
        raise DecodeError("coordinator state: its lineage is not that of its topic")
    try:
        lineage = bytes.fromhex(value)
    except ValueError:
        raise DecodeError("coordinator state: its lineage is not hexadecimal") from None
    if not 0 < len(lineage) <= LINEAGE_BYTES_MAX or lineage.hex() != value:
        raise DecodeError(f"coordinator state: its lineage is not 1 to {LINEAGE_BYTES_MAX} bytes")
    return lineage
