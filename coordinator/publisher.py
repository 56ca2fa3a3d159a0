"""What the coordinator says: envelopes, answers to one device, announcements, and retained JSON for people. PURE."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from coordinator.events import CONTROL, Publish
from coordinator.schedules import synchronous as rounds
from coordinator.schedules.synchronous import Round
from coordinator.task import TaskSettings
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import Announce, Message
from edge_sdk.wire.outcomes import ACCEPTED, ADMITTED, COUNTED, JOURNALLED, VERDICTS
from edge_sdk.wire.topics import Topics

__all__ = ["Publisher", "round_summary", "rounded"]

ANNOUNCE_EXPIRY_SECONDS_MIN: Final = 300


class Publisher:
    """Makes what is published, in the name of one incarnation of one federation's coordinator.

    Args:
        settings: The task.
        lineage: The database's lineage.
        incarnation: This start's number.
    """

    def __init__(self, settings: TaskSettings, lineage: bytes, incarnation: int) -> None:
        self.topics = Topics(settings.federation)
        self._settings = settings
        self._lineage = lineage
        self._incarnation = incarnation
        self._envelopes: dict[str, Envelope] = {}

    def wrap(self, message: Message, shard: str = "") -> bytes:
        """The message in its envelope."""
        envelope = self._envelopes.get(shard)
        if envelope is None:
            s = self._settings
            envelope = Envelope(federation=s.federation, task=s.task, lineage=self._lineage, shard=shard)
            self._envelopes[shard] = envelope
        return encode_message(envelope, message)

    def to_device(self, device: str, message: Message, shard: str = "") -> Publish:
        """An answer to one device."""
        return Publish(CONTROL, self.topics.to_device(device, message.kind), self.wrap(message, shard))

    def announce(
        self, number: int, attempt: int, machine: Round | None, finished: str | None, fraction: float, now: float
    ) -> Publish:
        """What the coordinator is doing, to all."""
        phase, remaining = "waiting", 0.0
        if finished is not None:
            phase = "done"
        elif machine is not None:
            phase = "selection" if machine.phase == rounds.SELECTION else "working"
            remaining = machine.seconds_remaining(now)
        message = Announce(
            incarnation=self._incarnation,
            round=number,
            attempt=attempt,
            phase=phase,
            fraction=fraction,
            window_seconds=self._settings.round.window_seconds,
            remaining_seconds=remaining,
            requires=self._settings.requires,
            reason=finished or "",
        )
        expiry = max(ANNOUNCE_EXPIRY_SECONDS_MIN, int(2 * remaining)) if phase == "selection" else None
        topic = self.topics.announce(self._settings.task)
        return Publish(CONTROL, topic, self.wrap(message), retain=True, expiry_seconds=expiry)

    def state(self, *, online: bool, incarnation: int | None = None) -> bytes:
        """The coordinator's state, of this start or another; with ``online`` false it is the last will."""
        number = self._incarnation if incarnation is None else incarnation
        state = CoordinatorState(self._lineage, number, online, (self._settings.task,))
        return state.encode(self._settings.federation)

    def publish_state(self) -> Publish:
        """Somebody is here."""
        return Publish(CONTROL, self.topics.lineage_state(self._lineage), self.state(online=True), retain=True)

    def publish_round(self, summary: dict[str, Any]) -> Publish:
        """The round as it goes, for people and dashboards."""
        return Publish(CONTROL, self.topics.task_round(self._settings.task), json.dumps(summary).encode(), retain=True)


def round_summary(
    counts: dict[str, int],
    *,
    bytes_up: int,
    bytes_down: int,
    bytes_down_dense: int,
    dense_bytes: int,
    phases: Iterable[tuple[str, float]],
) -> dict[str, Any]:
    """What is kept of a round: counts that partition, bytes, seconds by phase.

    Args:
        counts: As :meth:`coordinator.schedules.synchronous.Round.counts` gives them.
        bytes_up: Payload bytes of chunks.
        bytes_down: Payload bytes of downloads.
        bytes_down_dense: The same, had every device that was given links fetched whole parameters.
        dense_bytes: Bytes of one update as dense float32.
        phases: Seconds by phase.
    """
    reported = counts[JOURNALLED] + counts[COUNTED]
    return {
        "checked_in": counts["candidates"],
        "invited": counts["tickets"],
        "at_work": counts[ACCEPTED] + counts[ADMITTED],
        "committed": reported,
        **{state: counts[state] for state in VERDICTS},
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "bytes_down_dense": bytes_down_dense,
        "bytes_up_dense": reported * dense_bytes,
        "phase_seconds": {phase: round(seconds, 3) for phase, seconds in phases},
    }


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics as people read them."""
    return {name: round(value, 6) for name, value in metrics.items()}
