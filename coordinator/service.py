"""The coordinator as a service: two MQTT connections, one loop thread, two worker threads, one database.

A turn of the loop: whatever the connections, the workers and the clock have brought is handled inside one database
transaction; after its commit the effects are performed. The connection for control and the one for bulk are apart so
that a flood of updates cannot starve check-ins (rule 6).
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from coordinator.core import Coordinator
from coordinator.evaluation import Evaluator
from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    Effect,
    Event,
    Finished,
    Publish,
    Published,
    RoundEnded,
    Subscribe,
    Tick,
)
from coordinator.pipeline import TaskWorker
from coordinator.store import RoundRecord, Store
from coordinator.task import TaskSettings
from coordinator.workers import ThreadWorkers, WorkerFailed
from edge_sdk.errors import ConnectionUnavailable, EdgeFedError, StateError
from edge_sdk.mqtt import (
    BrokerSettings,
    Connected,
    Delivery,
    Disconnected,
    PahoTransport,
    Subscribed,
    TransportEvent,
    Will,
)
from edge_sdk.mqtt import Published as TransportPublished
from edge_sdk.mqtt.loop import Backoff, EventLoop

__all__ = ["Service"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 0.5
RECONNECT_SECONDS_MAX: Final = 30.0
TURN_EVENTS_MAX: Final = 512
LEAVE_SECONDS_MAX: Final = 5.0
BACKUP_SECONDS: Final = 300.0
QUEUED_MESSAGES_MAX: Final = 200_000
"""Invites of a round leave in one turn: there may be as many as devices."""


@dataclass(slots=True)
class _Link:
    """One connection, and when to try it again."""

    transport: PahoTransport
    backoff: Backoff
    due: float | None = 0.0
    up: bool = False
    hears: bool = False


class Service:
    """Runs one task until it is finished or stopped.

    Args:
        settings: The task.
        store: The open database.
        ingest: The task's worker side.
        evaluator: Scores models, None where there is no held-out data.
        broker: How to reach the broker.
        new_id: Gives so many random bytes.
        rng: For jitter.
        wall: Wall time in seconds, for display.
        linger_seconds: How long to go on answering devices after the end; None for ever.
        on_round: Told the record of each round that has ended, on the loop's thread.
        on_turn: Called at least about once a second while it is alive, on the loop's thread.
        backup: Where a copy of the database is kept, made after commits at most every few minutes; None for none.
    """

    def __init__(
        self,
        settings: TaskSettings,
        store: Store,
        ingest: TaskWorker,
        evaluator: Evaluator | None,
        broker: BrokerSettings,
        *,
        new_id: Callable[[int], bytes],
        rng: np.random.Generator,
        wall: Callable[[], float],
        linger_seconds: float | None = 10.0,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_turn: Callable[[], None] | None = None,
        backup: Path | None = None,
    ) -> None:
        self._store = store
        self._task = settings.task
        self._on_round = on_round
        self._on_turn = on_turn
        self._backup = backup
        self._backup_due = float("-inf")
        self._told = ""
        self._loop = EventLoop()
        self._inbox: deque[Event | WorkerFailed] = deque()
        self._workers = ThreadWorkers(
            {settings.task: ingest}, {} if evaluator is None else {settings.task: evaluator}, self._post
        )
        self._linger_seconds = linger_seconds
        self._ends_at: float | None = None
        self._stopping = threading.Event()
        self.core = Coordinator(
            settings,
            store,
            self._workers,
            new_id=new_id,
            rng=rng,
            wall=wall,
            incarnation=store.next_incarnation(),
        )
        name = broker.client_id or f"edgefed-{settings.federation}-{settings.task}"
        self._links = {channel: self._link(broker, name, channel, rng) for channel in (CONTROL, BULK)}

    @property
    def finished(self) -> str | None:
        """Why training ended, None before."""
        return self.core.finished

    def request_stop(self) -> None:
        """Asks the service to leave; safe on any thread and in a signal handler."""
        self._stopping.set()
        self._loop.call_soon_threadsafe(lambda: None)

    def run(self) -> None:
        """Serves until finished (and lingered) or stopped.

        Raises:
            EdgeFedError: It cannot go on; the database is whole, and the next start goes on where this one ended.
        """
        # What is here lives as long as the process: the collector need not look at all of it again and again.
        gc.collect()
        gc.freeze()
        self._workers.run()
        now = self._loop.clock()
        with self._store.transaction():
            self.core.start(now)
            self.core.end_turn(now)
        self._perform(self.core.take_effects())
        if self.core.finished is not None:
            self._finish(now)
        for link in self._links.values():
            self._loop.register(link.transport)
        try:
            while not self._done():
                self._wait()
                self._turn()
                if self._on_turn is not None:
                    self._on_turn()
            self._say_goodbye()
        finally:
            gc.unfreeze()
            self._workers.stop()
            self._loop.close()

    # --- one turn ---

    def _wait(self) -> None:
        now = self._loop.clock()
        due = [link.due for link in self._links.values() if link.due is not None]
        deadline = self.core.next_deadline()
        if deadline is not None:
            due.append(deadline)
        if self._ends_at is not None:
            due.append(self._ends_at)
        earliest = min(due, default=now + 1.0)
        self._loop.run_once(0.0 if self._inbox else max(0.0, min(earliest - now, 1.0)))

    def _turn(self) -> None:
        now = self._loop.clock()
        for link in self._links.values():
            if link.due is not None and link.due <= now:
                link.due = None
                link.transport.connect()
        deadline = self.core.next_deadline()
        ticking = deadline is not None and deadline <= now
        if not self._inbox and not ticking:
            return
        with self._store.transaction():
            for _ in range(min(len(self._inbox), TURN_EVENTS_MAX)):
                event = self._inbox.popleft()
                if isinstance(event, WorkerFailed):
                    raise _explained(event.error)
                self.core.handle(event, now)
            if ticking:
                self.core.handle(Tick(), now)
            self.core.end_turn(now)
        self._perform(self.core.take_effects())

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish():
                    self._publish(effect)
                case Acknowledge(channel, delivery):
                    self._links[channel].transport.acknowledge(delivery)
                case Subscribe(channel, filters):
                    self._links[channel].transport.subscribe(filters)
                case RoundEnded():
                    self._round_ended(self._loop.clock())
                case Finished():
                    self._finish(self._loop.clock())

    def _publish(self, effect: Publish) -> None:
        try:
            self._links[effect.channel].transport.publish(
                effect.topic,
                effect.payload,
                qos=1,
                retain=effect.retain,
                expiry_seconds=effect.expiry_seconds,
                token=effect.token,
            )
        except ConnectionUnavailable as error:
            # The broker takes messages more slowly than they come. As if lost on the way: whoever misses it asks again.
            logger.warning("a message was dropped: %s", error)
            if effect.token:
                self._inbox.append(Published(effect.channel, effect.token))

    def _round_ended(self, now: float) -> None:
        if self._on_round is not None:
            self._on_round(self._store.rounds(self._task, limit=1)[0])
        if now >= self._backup_due or self.core.finished is not None:
            self._backup_due = now + BACKUP_SECONDS
            self._save_backup()

    def _save_backup(self) -> None:
        """On a worker's thread; a turn that writes meanwhile waits for the copy (some ms a megabyte)."""
        path = self._backup
        if path is not None:
            self._workers.aside(lambda: self._store.backup(path))

    def _finish(self, now: float) -> None:
        if self._linger_seconds is not None:
            self._ends_at = now + self._linger_seconds

    def _done(self) -> bool:
        return self._stopping.is_set() or (self._ends_at is not None and self._loop.clock() >= self._ends_at)

    def _post(self, event: Event | WorkerFailed) -> None:
        self._loop.call_soon_threadsafe(lambda: self._inbox.append(event))

    # --- connections ---

    def _link(self, broker: BrokerSettings, name: str, channel: str, rng: np.random.Generator) -> _Link:
        will = Will(*self.core.will()) if channel == CONTROL else None
        settings = replace(broker, client_id=f"{name}-{channel}", will=will)
        transport = PahoTransport(
            settings,
            lambda event: self._on_transport(channel, event),
            manual_ack=True,
            queue_messages_max=QUEUED_MESSAGES_MAX,
        )
        return _Link(transport, Backoff(RECONNECT_SECONDS, RECONNECT_SECONDS_MAX, rng))

    def _on_transport(self, channel: str, event: TransportEvent) -> None:
        link = self._links[channel]
        match event:
            case Delivery(topic, payload):
                self._inbox.append(Arrived(channel, topic, payload, event))
            case TransportPublished(token):
                if token:
                    self._inbox.append(Published(channel, token))
            case Connected(_, packet_bytes_max, _):
                link.up, self._told = True, ""
                link.backoff.reset()
                self._inbox.append(BrokerUp(channel, packet_bytes_max))
            case Disconnected(_, error):
                was_up, link.up, link.hears = link.up, False, False
                if was_up:
                    self._inbox.append(BrokerDown(channel))
                link.due = self._loop.clock() + link.backoff.next_seconds()
                if error is not None and str(error) != self._told:  # both connections would say the same
                    self._told = str(error)
                    logger.warning("broker: %s; trying again until it works", error)
            case Subscribed(_, refused):
                if refused:
                    logger.error("broker (%s): it refused to subscribe to %s: check its ACL", channel, refused)
                if not link.hears:
                    link.hears = True
                    if all(each.hears for each in self._links.values()):  # only now does nothing get lost
                        logger.info("broker: connected")

    def _say_goodbye(self) -> None:
        """``offline`` is published before a clean exit; a last will would say the same after a cut."""
        control = self._links[CONTROL]
        topic, payload = self.core.will()
        if control.up:
            control.transport.publish(topic, payload, qos=1, retain=True)
        for link in self._links.values():
            link.transport.disconnect()
        until = self._loop.clock() + LEAVE_SECONDS_MAX
        while any(link.up for link in self._links.values()) and self._loop.clock() < until:
            self._loop.run_once(0.05)


def _explained(error: BaseException) -> EdgeFedError:
    if isinstance(error, EdgeFedError):
        return error
    return StateError(f"a worker failed ({type(error).__name__}: {error}); start again: nothing accepted is lost")
