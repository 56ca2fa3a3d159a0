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
from edge_sdk.wire.topics import is_segment

__all__ = ["CoordinatorState"]

STATE_BYTES_MAX: Final = 20_000
INCARNATION_MAX: Final = 1 << 60
LINEAGE_BYTES_MAX: Final = 16
TASKS_MAX: Final = 256


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
        incarnation, online, tasks = (state.get(name) for name in ("incarnation", "online", "tasks"))
        # True is an int to Python, and JSON has floats such as 1e999.
        if type(incarnation) is not int or not 0 <= incarnation <= INCARNATION_MAX:
            raise DecodeError("coordinator state: incarnation is not a whole number from 0")
        if not isinstance(online, bool):
            raise DecodeError("coordinator state: online is neither true nor false")
        if not isinstance(tasks, list) or len(tasks) > TASKS_MAX:
            raise DecodeError(f"coordinator state: tasks is not a list of at most {TASKS_MAX} names")
        if not all(isinstance(task, str) and is_segment(task) for task in tasks):
            raise DecodeError("coordinator state: tasks has a name that cannot stand in a topic")
        return cls(_lineage(state.get("lineage"), segment), incarnation, online, tuple(tasks))


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
