"""What a task says: envelopes, announcements, answers, the retained JSON of its round. PURE."""

from __future__ import annotations

import json
from typing import Any, Final

from coordinator.events import CONTROL, Publish
from coordinator.schedules.schedule import Schedule
from coordinator.task_settings import TaskSettings
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import Announce, Invite, Message
from edge_sdk.wire.topics import Topics

__all__ = ["Publisher"]

ANNOUNCE_EXPIRY_SECONDS_MIN: Final = 300


class Publisher:
    """Makes what is published, in the name of one task's coordinator.

    Args:
        settings: The task.
        lineage: The database's lineage.
        shard: The uplink inbox that devices send their updates to.
    """

    def __init__(self, settings: TaskSettings, lineage: bytes, shard: str) -> None:
        self.topics = Topics(settings.federation)
        self._settings = settings
        self.shard = shard
        self._lineage = lineage

    def wrap(self, message: Message) -> bytes:
        """The message in its envelope; who takes a ticket must know of which lineage it is."""
        lineage = self._lineage if isinstance(message, Invite) else b""
        return encode_message(Envelope(self._settings.task, lineage), message)

    def to_device(self, device: str, message: Message) -> Publish:
        """An answer to one device."""
        return Publish(CONTROL, self.topics.to_device(device, message.kind), self.wrap(message))

    def announce(
        self,
        number: int,
        attempt: int,
        schedule: Schedule | None,
        finished: str | None,
        fraction: float,
        now: float,
        trouble: str = "",
    ) -> Publish:
        """What the coordinator is doing, to all.

        It is said when a round begins and when there are no more; after an attempt that has failed for a reason
        (``trouble``), with that reason; and again, with its phase, to those whose coordinator was away. What happens in
        between nobody needs to hear who is not told in person: so that it is not taken for new for ever, the beginning
        expires when the round cannot be open any more.
        """
        s, phase, remaining = self._settings.in_round(number), "waiting", 0.0
        if finished is not None:
            phase = "done"
        elif schedule is not None:
            phase = "selection" if schedule.asks_for_devices else "working"
            remaining = schedule.seconds_remaining(now)
        message = Announce(
            round=number,
            attempt=attempt,
            phase=phase,
            fraction=fraction,
            window_seconds=s.round.window_seconds,
            reason=trouble if phase == "waiting" else "",
        )
        rest = s.round.configuration_seconds_max + s.round.reporting_seconds_max
        expiry = max(ANNOUNCE_EXPIRY_SECONDS_MIN, int(remaining + 2 * rest)) if phase == "selection" else None
        topic = self.topics.announce(self._settings.task)
        payload = encode_message(Envelope(lineage=self._lineage), message)
        return Publish(CONTROL, topic, payload, retain=True, expiry_seconds=expiry)

    def round(self, summary: dict[str, Any]) -> Publish:
        """The round as it goes, for people and dashboards."""
        return Publish(CONTROL, self.topics.task_round(self._settings.task), json.dumps(summary).encode(), retain=True)
