"""The coordinator's core: topics and envelopes on their way to the task that they belong to, and one turn.

A shell (``coordinator/shell.py``) hands in events and performs the effects. All events of one turn are handled inside
one database transaction, and effects are performed only after its commit: decide, journal, then speak (rule 1).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from coordinator.downloads import Downloads
from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    Effect,
    Evaluated,
    Event,
    Ingested,
    Published,
    RoundCommitted,
    Subscribe,
    Tick,
    Workers,
)
from coordinator.presence import Presence
from coordinator.publisher import Publisher
from coordinator.registry import Registry
from coordinator.store import Store
from coordinator.task import Task
from coordinator.task_settings import TaskSettings
from edge_sdk.errors import DecodeError, ProtocolError
from edge_sdk.wire.envelope import ENVELOPE_BYTES_MAX, Envelope, decode_message
from edge_sdk.wire.messages import Accept, CheckIn, Chunk, Decline, Message, Offer, RangeRequest
from edge_sdk.wire.topics import PROBE, SHARD_CHARACTERS, Topics

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

CONTROL_KINDS: Final = frozenset({CheckIn.kind, Accept.kind, Decline.kind, RangeRequest.kind, Offer.kind})
STATUS_BYTES_MAX: Final = 20_000
SESSION_BYTES: Final = 8


class Coordinator:
    """The tasks of one federation that share a database and two connections.

    Args:
        settings: The tasks; their federation is the same.
        store: The open database, with each task's first checkpoint in it.
        workers: Where jobs run.
        new_id: Gives so many random bytes; tickets are made of it.
        rng: For jitter.
        wall: Wall time in seconds, for display only.
        incarnation: This start's number, from the store.
    """

    def __init__(
        self,
        settings: Sequence[TaskSettings],
        store: Store,
        workers: Workers,
        *,
        new_id: Callable[[int], bytes],
        rng: np.random.Generator,
        wall: Callable[[], float],
        incarnation: int,
    ) -> None:
        self.federation = settings[0].federation
        self.incarnation = incarnation
        self._store = store
        self._topics = Topics(self.federation)
        self._effects: list[Effect] = []
        self._up: set[str] = set()
        # Devices of other coordinators of this federation publish elsewhere: the inbox is named after the database.
        self._shard = store.lineage.hex()[:SHARD_CHARACTERS]
        self._registry = Registry(store)
        self._downloads = Downloads(
            self._topics,
            store.get_blob,
            chunk_bytes_max=min(task.chunk_bytes_max for task in settings),
            retained_add=store.retained_add,
            retained_remove=store.retained_remove,
        )
        names = [task.task for task in settings]
        self.presence = Presence(self.federation, names, store.lineage, incarnation, new_id(SESSION_BYTES), rng)
        self.tasks = {
            task.task: Task(
                task,
                store,
                workers,
                self._registry,
                self._downloads,
                Publisher(task, store.lineage, self._shard),
                self._effects,
                new_id=new_id,
                rng=rng,
                wall=wall,
                incarnation=incarnation,
            )
            for task in settings
        }
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            BrokerUp: self._on_broker_up,
            BrokerDown: self._on_broker_down,
            Arrived: self._on_arrived,
            Published: self._on_published,
            Ingested: lambda event, now: self.tasks[event.task].on_ingested(event, now),
            RoundCommitted: lambda event, now: self.tasks[event.task].on_committed(event, now),
            Evaluated: lambda event, now: self.tasks[event.task].on_evaluated(event, now),
            Tick: self._on_tick,
        }

    # --- the interface ---

    @property
    def finished(self) -> str | None:
        """Why training of all tasks is over; None while one of them goes on."""
        reasons = [task.finished for task in self.tasks.values()]
        if not all(reasons):
            return None
        if len(reasons) == 1:
            return reasons[0]
        return "; ".join(f"{name}: {reason}" for name, reason in zip(self.tasks, reasons, strict=True))

    def start(self, now: float) -> None:
        """Re-enters where the store says; call it inside a turn, before any event."""
        for task in self.tasks.values():
            task.start(now)

    def handle(self, event: Event, now: float) -> None:
        """Takes one event; ``now`` is a monotonic time in seconds. Effects wait in :meth:`take_effects`."""
        self._handlers[type(event)](event, now)

    def end_turn(self, now: float) -> None:
        """Writes what the turn has changed; the last call inside the turn's transaction."""
        for task in self.tasks.values():
            task.end_turn(now)

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order, after the commit."""
        effects = list(self._effects)
        self._effects.clear()  # the tasks append to this very list
        return effects

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``."""
        due = [self._registry.due, self.presence.due, *(task.next_deadline() for task in self.tasks.values())]
        return min((moment for moment in due if moment is not None), default=None)

    def will(self) -> tuple[str, bytes]:
        """Topic and retained payload of the last will: the coordinator is gone."""
        return self.presence.will()

    # --- the broker ---

    def _on_broker_up(self, event: BrokerUp, now: float) -> None:
        self._up.add(event.channel)
        self._downloads.limit_chunk(event.packet_bytes_max, ENVELOPE_BYTES_MAX)
        if event.channel == BULK:
            self._effects.append(Subscribe(BULK, (self._topics.up(self._shard, "+"),)))
            self._effects += self._downloads.on_broker_up()
        else:
            others = (self._topics.lineage_states, self._topics.lineage_claims)
            self._effects.append(Subscribe(CONTROL, (self._topics.from_device("+", "+"), *others)))
        if len(self._up) == 2:  # both inboxes are open: now devices may be told that somebody is here
            self._present(self.presence.on_up(now), now)

    def _on_broker_down(self, event: BrokerDown, now: float) -> None:
        self._up.discard(event.channel)
        if event.channel == BULK:
            self._downloads.on_broker_down()
        self.presence.on_down(deaf=event.channel == CONTROL)
        self._present([], now, was_serving=True)

    def _present(self, effects: list[Effect], now: float, *, was_serving: bool = False) -> None:
        """Takes what the presence asks for; the tasks speak while it serves, and are silent else."""
        self._effects += effects
        serving = self.presence.serving
        for task in self.tasks.values():
            if serving and not was_serving:
                task.speak(now)
            elif not serving:
                task.fall_silent(now, self.presence.reason)

    def _on_published(self, event: Published, now: float) -> None:
        if event.channel == BULK:
            self._effects += self._downloads.on_published(event.token)

    def _on_arrived(self, event: Arrived, now: float) -> None:
        parts = self._topics.parse(event.topic)
        taken = False
        try:
            if parts is None:
                self._store.count("stray_topic")
            elif parts[0] == "coordinator":
                self._on_coordinator(parts[1], parts[2], event, now)
            elif parts[0] == "from" and parts[2] in CONTROL_KINDS:
                task, envelope, message = self._decode(event.payload, parts[2])
                if task is not None:
                    task.on_message(parts[1], message, envelope, now)
            elif parts[0] == "up" and parts[1] == self._shard:
                task, envelope, message = self._decode(event.payload, Chunk.kind)
                if task is not None and isinstance(message, Chunk):
                    taken = task.on_chunk(parts[2], message, envelope, event.acknowledgement, now)
            elif parts[0] == "status":
                self._on_status(parts[1], event, now)
            elif parts[0] == "from" and parts[2] == PROBE:
                pass  # somebody's `edge-device check` has found out that it may speak
            else:
                self._store.count("kind")
        except ProtocolError as error:
            # One bad message is counted and dropped; it harms neither its round nor any other device.
            self._store.count(error.reason)
            for each in self.tasks.values():
                each.on_refused_message()
            logger.info("refused a message on %s: %s", event.topic, error)
        if not taken:
            self._effects.append(Acknowledge(event.channel, event.acknowledgement))

    def _decode(self, payload: bytes, kind: str) -> tuple[Task | None, Envelope, Message]:
        """The message and its task; None where another coordinator of the federation serves it."""
        envelope, message = decode_message(payload, kind, peer="device")
        task = self.tasks.get(envelope.task) if self.presence.entitled else None
        return task, envelope, message

    def _on_coordinator(self, lineage: str, kind: str, event: Arrived, now: float) -> None:
        """Another coordinator, or what is left of one, or our own claim that comes back."""
        before = self.presence.serving
        if kind == "claim":
            effects = self.presence.on_claim(lineage, event.payload, now)
        else:
            retained = event.acknowledgement.retained
            effects = self.presence.on_state(lineage, event.payload, now, retained=retained)
        self._present(effects, now, was_serving=before)

    def _on_status(self, device: str, event: Arrived, now: float) -> None:
        """A device's own word, or its last will. What is retained was said before the invite, and says nothing."""
        if event.acknowledgement.retained or not event.payload:
            return
        if len(event.payload) > STATUS_BYTES_MAX:
            raise DecodeError(f"status of {len(event.payload)} bytes", reason="oversize")
        try:
            status = json.loads(event.payload)
        except (ValueError, RecursionError) as error:
            raise DecodeError("status: expected JSON") from error
        state = status.get("state") if isinstance(status, dict) else None
        if state in ("online", "offline"):
            for task in self.tasks.values():
                task.on_device_state(device, online=state == "online", now=now)

    # --- time ---

    def _on_tick(self, event: Tick, now: float) -> None:
        if self._registry.due is not None and self._registry.due <= now:
            self._registry.flush()
        before = self.presence.serving
        effects = self.presence.tick(now)
        if effects or before != self.presence.serving:
            self._present(effects, now, was_serving=before)
        for task in self.tasks.values():
            deadline = task.next_deadline()
            if deadline is not None and deadline <= now:
                task.tick(now)
