"""The coordinator in virtual time: the very core, store and worker code that ship, without threads and sockets."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
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
    CloseJob,
    Effect,
    Evaluated,
    Event,
    Finished,
    Ingested,
    IngestItem,
    Publish,
    Published,
    RoundCommitted,
    StartJob,
    Subscribe,
    Tick,
)
from coordinator.pipeline import TaskWorker
from coordinator.store import Store
from device_sim.world.clock import Handle
from device_sim.world.crashes import Crashed
from device_sim.world.memory_transport import InMemoryTransport
from device_sim.world.world import World
from edge_sdk.mqtt import Connected, Delivery, Disconnected, TransportEvent, Will
from edge_sdk.mqtt import Published as TransportPublished
from edge_sdk.wire.envelope import decode_message
from edge_sdk.wire.messages import ComeBack, Invite, Verdict
from edge_sdk.wire.topics import Topics

__all__ = ["SimCoordinator"]

logger = logging.getLogger(__name__)

REBOOT_SECONDS: Final = 15.0
RECONNECT_SECONDS: Final = 2.0
JOB_SECONDS: Final = 0.01
TURN_SECONDS: Final = 0.02
"""What comes within this time may be handled in one turn, as the service does."""
BATCH_MAX: Final = 64
SPOKEN: Final = (Verdict.kind, Invite.kind, ComeBack.kind)


class SimCoordinator:
    """The coordinator of a scenario; its database outlives its crashes.

    Args:
        world: Clock, broker, auditor, crash points.
        store: The open database.
        ingest: Makes a fresh worker side.
        evaluator: Scores models.
    """

    def __init__(
        self, world: World, store: Store, ingest: Callable[[], TaskWorker], evaluator: Evaluator | None
    ) -> None:
        self.world = world
        self.store = store
        self.core: Coordinator | None = None
        self.life = 0
        self.metrics: dict[str, float] = {}
        self._to_prefix = f"{Topics(world.scenario.federation).root}/to/"
        self._make_ingest = ingest
        self._evaluator = evaluator
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([world.seed, 2])))
        self._transports: dict[str, InMemoryTransport] = {}
        self._inbox: list[Event] = []
        self._turn_due = False
        self._jobs: deque[StartJob | IngestItem | CloseJob] = deque()
        self._job_due = False
        self._timer: Handle | None = None
        self._ingest: TaskWorker

    # --- power ---

    def boot(self) -> None:
        """Starts from what is in the database."""
        self.life += 1
        life, world = self.life, self.world
        self._inbox.clear()
        self._turn_due = False
        self._jobs.clear()
        self._job_due = False
        self._ingest = self._make_ingest()
        try:
            self.core = Coordinator(
                world.task,
                self.store,
                self,
                new_id=self._rng.bytes,
                rng=self._rng,
                wall=lambda: world.clock.now,
                incarnation=self.store.next_incarnation(),
            )
            self._turn(lambda core: core.start(world.clock.now))
        except Crashed:
            self.crash()
            return
        if self.life != life:
            return
        for channel in (CONTROL, BULK):
            will = Will(*self.core.will()) if channel == CONTROL else None
            self._transports[channel] = world.broker.transport(
                f"coordinator-{channel}",
                lambda event, channel=channel: self._on_transport(channel, event, life),  # type: ignore[misc]
                will=will,
                manual_ack=True,
            )
            self._transports[channel].connect()

    def crash(self) -> None:
        """The power fails: what is not committed is gone."""
        self.life += 1
        self.core = None
        if self._timer is not None:
            self.world.clock.cancel(self._timer)
            self._timer = None
        for transport in self._transports.values():
            transport.vanish()
        self._transports.clear()
        self.world.crashes += 1
        self.world.clock.call_later(REBOOT_SECONDS * (0.5 + float(self._rng.random())), self.boot)

    def reach(self, point: str) -> None:
        self.world.points.reach("coordinator", "coordinator", point)

    # --- turns ---

    def _handle(self, event: Event) -> None:
        """Events wait for the next turn, which takes all that have come by then."""
        self._inbox.append(event)
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.call_later(TURN_SECONDS * float(self._rng.random()), self._take_inbox, self.life)

    def _take_inbox(self, life: int) -> None:
        if life != self.life:
            return
        self._turn_due = False
        events, self._inbox = self._inbox, []

        def act(core: Coordinator) -> None:
            for event in events:
                core.handle(event, self.world.clock.now)

        try:
            self._turn(act)
        except Crashed:
            self.crash()

    def _turn(self, act: Callable[[Coordinator], None]) -> None:
        core, now = self.core, self.world.clock.now
        if core is None:
            return
        with self.store.transaction():
            act(core)
            core.end_turn(now)
            self.reach("before commit")
        self.reach("after commit")
        for effect in core.take_effects():
            self._perform(effect)
            self.reach(f"after {type(effect).__name__}")
        self._reschedule()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Publish(channel, topic, payload, retain, expiry_seconds, token):
                self._hear(topic, payload)
                if channel in self._transports:
                    self._transports[channel].publish(
                        topic, payload, qos=1, retain=retain, expiry_seconds=expiry_seconds, token=token
                    )
            case Acknowledge(channel, delivery):
                if channel in self._transports:
                    self._transports[channel].acknowledge(delivery)
            case Subscribe(channel, filters):
                self._transports[channel].subscribe(filters)
            case Finished(reason):
                self.world.finished = reason

    def _hear(self, topic: str, payload: bytes) -> None:
        """The auditor compares what is said to a device with what is committed at this moment (rule 1)."""
        device, _, kind = topic.removeprefix(self._to_prefix).partition("/")
        if topic.startswith(self._to_prefix) and kind in SPOKEN:
            federation = self.world.scenario.federation
            _, message = decode_message(payload, federation=federation, expected=(kind,), peer="coordinator")
            for verdict in (message,) if isinstance(message, Verdict) else getattr(message, "verdicts", ()):
                self.world.auditor.on_told(device, verdict, self.store.ticket(verdict.ticket))
            if isinstance(message, Invite):
                self.world.auditor.on_invited(device, message, self.store.ticket(message.ticket))

    def _reschedule(self) -> None:
        clock = self.world.clock
        due = self.core.next_deadline() if self.core is not None else None
        if self._timer is not None:
            if self._timer.pending and due is not None and self._timer.time <= due:
                return
            clock.cancel(self._timer)
            self._timer = None
        if due is not None:
            self._timer = clock.call_at(max(due, clock.now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())  # its turn sets the next timer

    def _on_transport(self, channel: str, event: TransportEvent, life: int) -> None:
        if life != self.life:
            return
        match event:
            case Delivery(topic, payload):
                self._handle(Arrived(channel, topic, payload, event))
            case TransportPublished(token):
                if token:
                    self._handle(Published(channel, token))
            case Connected(_, packet_bytes_max, _):
                self._handle(BrokerUp(channel, packet_bytes_max))
            case Disconnected():
                self._handle(BrokerDown(channel))
                if life == self.life:
                    seconds = RECONNECT_SECONDS * (0.5 + float(self._rng.random()))
                    self.world.clock.call_later(seconds, self._reconnect, channel, life)

    def _reconnect(self, channel: str, life: int) -> None:
        if life == self.life:
            self._transports[channel].connect()

    # --- workers: the same jobs, inline at a drawn time ---

    def start(self, job: StartJob) -> None:
        self._queue(job)

    def ingest(self, item: IngestItem) -> None:
        self._queue(item)

    def close(self, job: CloseJob) -> None:
        self._queue(job)

    def busy(self) -> bool:
        return len(self._jobs) > 512

    def evaluate(self, task: str, number: int, parameters: bytes) -> None:
        blob = self._ingest.parameters(parameters)
        metrics = self._evaluator.evaluate(blob) if self._evaluator is not None else {}
        self.metrics = metrics
        self.world.clock.call_later(self._draw(), self._evaluated, task, number, metrics, self.life)

    def _evaluated(self, task: str, number: int, metrics: dict[str, float], life: int) -> None:
        if life == self.life:
            self._handle(Evaluated(task, number, metrics))

    def _queue(self, job: StartJob | IngestItem | CloseJob) -> None:
        self._jobs.append(job)
        if not self._job_due:
            self._job_due = True
            self.world.clock.call_later(self._draw(), self._run_jobs, self.life)

    def _draw(self) -> float:
        return JOB_SECONDS * (0.5 + float(self._rng.random()))

    def _run_jobs(self, life: int) -> None:
        if life != self.life or not self._jobs:
            return
        self._job_due = False
        try:
            event = self._run_next()
        except Crashed:
            self.crash()
            return
        if event is not None:
            self._handle(event)
        if life == self.life and self._jobs and not self._job_due:
            self._job_due = True
            self.world.clock.call_later(self._draw(), self._run_jobs, life)

    def _run_next(self) -> Event | None:
        job = self._jobs.popleft()
        if isinstance(job, StartJob):
            self._ingest.start(job)
            return None
        if isinstance(job, CloseJob):
            return self._commit(job)
        batch = [job]
        while self._jobs and isinstance(self._jobs[0], IngestItem) and len(batch) < BATCH_MAX:
            following = self._jobs.popleft()
            assert isinstance(following, IngestItem)
            batch.append(following)
        self.reach("before journal")
        results = self._ingest.process(batch)
        self.reach("after journal")
        return Ingested(job.task, results)

    def _commit(self, job: CloseJob) -> RoundCommitted:
        record = job.record
        rows = self.store.journalled(record.task, record.number, record.attempt, job.last_seq)
        journalled = [(ticket, self.world.digest_of(payload)) for _, ticket, _, payload in rows]
        self.reach("before round commit")
        result = self._ingest.close(job)
        deltas = self.store.deltas(record.task)
        model_delta = (
            self.store.get_blob(deltas[-1].digest) if deltas and result.published != result.parameters else None
        )
        earlier = [self.store.tickets(record.task, record.number, attempt) for attempt in range(record.attempt)]
        self.world.auditor.on_committed(job, journalled, result, model_delta, earlier)
        self.reach("after round commit")
        return result
