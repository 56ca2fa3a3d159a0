"""The coordinator in virtual time: the shell, core, store and worker code that ship, without threads and sockets."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.evaluation import Evaluator
from coordinator.events import (
    CloseJob,
    Effect,
    Evaluated,
    Event,
    Finished,
    Ingested,
    IngestItem,
    Publish,
    RoundCommitted,
    StartJob,
)
from coordinator.pipeline import TaskWorker
from coordinator.router import Coordinator
from coordinator.shell import Shell
from coordinator.store import Store
from device_sim.world.clock import Handle
from device_sim.world.crashes import Crashed
from device_sim.world.memory_transport import InMemoryTransport
from edge_sdk.mqtt import Transport, TransportEvent, Will
from edge_sdk.wire.envelope import decode_message
from edge_sdk.wire.messages import ComeBack, Invite, Verdict
from edge_sdk.wire.topics import Topics

if TYPE_CHECKING:
    from device_sim.world.world import World

__all__ = ["SimCoordinator"]

logger = logging.getLogger(__name__)

REBOOT_SECONDS: Final = 15.0
JOB_SECONDS: Final = 0.01
TURN_SECONDS: Final = 0.02
"""What comes within this time may be handled in one turn, as the service does."""
BATCH_MAX: Final = 64
QUEUED_MAX: Final = 512
SPOKEN: Final = (Verdict.kind, Invite.kind, ComeBack.kind)


class SimCoordinator:
    """The coordinator of a scenario; its database outlives its crashes.

    Args:
        world: Clock, broker, auditor, crash points.
        store: The open database.
        work: Makes a fresh worker side.
        evaluator: Scores models.
    """

    def __init__(self, world: World, store: Store, work: Callable[[], TaskWorker], evaluator: Evaluator | None) -> None:
        self.world = world
        self.store = store
        self.life = 0
        self.metrics: dict[str, float] = {}
        self._shell: Shell | None = None
        self._to_prefix = f"{Topics(world.scenario.federation).root}/to/"
        self._make_work = work
        self._evaluator = evaluator
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([world.seed, 2])))
        self._transports: list[InMemoryTransport] = []
        self._turn_due = False
        self._jobs: deque[StartJob | IngestItem | CloseJob] = deque()
        self._job_due = False
        self._timer: Handle | None = None
        self._work: TaskWorker

    # --- power ---

    def boot(self) -> None:
        """Starts from what is in the database."""
        self.life += 1
        world = self.world
        self._turn_due = False
        self._jobs.clear()
        self._job_due = False
        self._work = self._make_work()
        try:
            core = Coordinator(
                [world.task],
                self.store,
                self,
                new_id=self._rng.bytes,
                rng=self._rng,
                wall=lambda: world.clock.now,
                incarnation=self.store.next_incarnation(),
            )
            self._shell = Shell(
                core,
                self.store,
                self._connect,
                clock=lambda: world.clock.now,
                rng=self._rng,
                on_effect=self._on_effect,
                reach=self.reach,
            )
            self._shell.start()
        except Crashed:
            self.crash()
            return
        self._take_turn(self.life)

    def crash(self) -> None:
        """The power fails: what is not committed is gone."""
        self.life += 1
        self._shell = None
        if self._timer is not None:
            self.world.clock.cancel(self._timer)
            self._timer = None
        for transport in self._transports:
            transport.vanish()
        self._transports.clear()
        self.world.crashes += 1
        self.world.clock.call_later(REBOOT_SECONDS * (0.5 + float(self._rng.random())), self.boot)

    def reach(self, point: str) -> None:
        """A place where the power may fail."""
        self.world.points.reach("coordinator", "coordinator", point)

    def _connect(self, channel: str, on_event: Callable[[TransportEvent], None], will: Will | None) -> Transport:
        life = self.life

        def take(event: TransportEvent) -> None:
            if life == self.life:
                on_event(event)
                self._turn_soon()

        transport = self.world.broker.transport(f"coordinator-{channel}", take, will=will, manual_ack=True)
        self._transports.append(transport)
        return transport

    # --- turns ---

    def _turn_soon(self) -> None:
        """Events wait for the next turn, which takes all that have come by then."""
        if not self._turn_due:
            self._turn_due = True
            self.world.clock.call_later(TURN_SECONDS * float(self._rng.random()), self._take_turn, self.life)

    def _take_turn(self, life: int) -> None:
        if life != self.life or self._shell is None:
            return
        self._turn_due = False
        try:
            self._shell.turn()
        except Crashed:
            self.crash()
            return
        if self._shell.waiting:
            self._turn_soon()
        self._reschedule()

    def _reschedule(self) -> None:
        clock = self.world.clock
        due = self._shell.next_deadline() if self._shell is not None else None
        if self._timer is not None:
            if self._timer.pending and due is not None and self._timer.time <= due:
                return
            clock.cancel(self._timer)
            self._timer = None
        if due is not None:
            self._timer = clock.call_at(max(due, clock.now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._turn_soon()  # the turn sets the next timer

    def _on_effect(self, effect: Effect) -> None:
        if isinstance(effect, Publish):
            self._hear(effect.topic, effect.payload)
        elif isinstance(effect, Finished):
            self.world.finished = effect.reason

    def _hear(self, topic: str, payload: bytes) -> None:
        """The auditor compares what is said with what is committed at this moment (rule 1)."""
        self.world.auditor.on_said(topic, committed=not self.store.in_transaction)
        device, _, kind = topic.removeprefix(self._to_prefix).partition("/")
        if topic.startswith(self._to_prefix) and kind in SPOKEN:
            _, message = decode_message(payload, kind, peer="coordinator")
            for verdict in (message,) if isinstance(message, Verdict) else getattr(message, "verdicts", ()):
                self.world.auditor.on_told(device, verdict, self.store.ticket(verdict.ticket))
            if isinstance(message, Invite):
                self.world.auditor.on_invited(device, message, self.store.ticket(message.ticket))

    # --- workers: the same jobs, inline at a drawn time ---

    def start(self, job: StartJob) -> None:
        self._queue(job)

    def ingest(self, item: IngestItem) -> None:
        self._queue(item)

    def close(self, job: CloseJob) -> None:
        self._queue(job)

    def busy(self) -> bool:
        return len(self._jobs) > QUEUED_MAX

    def evaluate(self, task: str, number: int, parameters: bytes) -> None:
        blob = self._work.parameters(parameters)
        self.metrics = self._evaluator.evaluate(blob) if self._evaluator is not None else {}
        event = Evaluated(task, number, self.metrics)
        self.world.clock.call_later(self._draw(), self._evaluated, event, self.life)

    def _evaluated(self, event: Evaluated, life: int) -> None:
        if life == self.life:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if self._shell is not None:
            self._shell.post(event)
            self._turn_soon()

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
            self._work.start(job)
            return None
        if isinstance(job, CloseJob):
            return self._commit(job)
        batch = [job]
        while self._jobs and isinstance(self._jobs[0], IngestItem) and len(batch) < BATCH_MAX:
            following = self._jobs.popleft()
            assert isinstance(following, IngestItem)
            batch.append(following)
        self.reach("before journal")
        results = self._work.process(batch)
        self.reach("after journal")
        return Ingested(job.task, results)

    def _commit(self, job: CloseJob) -> RoundCommitted:
        record = job.record
        rows = self.store.journalled(record.task, record.number, record.attempt, job.last_seq)
        journalled = [(ticket, self.world.digest_of(payload)) for _, ticket, _, payload in rows]
        self.reach("before round commit")
        result = self._work.close(job)
        deltas = self.store.deltas(record.task)
        new = [delta.digest for delta in deltas if (delta.round, delta.rounds) == (record.number, 1)]
        model_delta = self.store.get_blob(new[0]) if new else None
        earlier = [self.store.tickets(record.task, record.number, attempt) for attempt in range(record.attempt)]
        self.world.auditor.on_committed(job, journalled, result, model_delta, earlier)
        self.reach("after round commit")
        return result
