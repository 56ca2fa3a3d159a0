"""The coordinator as a service: the shell on a loop's thread, two worker threads, one database.

What a turn is stands in ``coordinator/shell.py``; here are sockets, threads, backups and the end.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from coordinator.evaluation import Evaluator
from coordinator.events import Effect, Event, Finished, RoundEnded, SteppedBack
from coordinator.pipeline import TaskWorker
from coordinator.router import Coordinator
from coordinator.shell import Shell
from coordinator.store import RoundRecord, Store
from coordinator.task_settings import TaskSettings
from coordinator.workers import ThreadWorkers, WorkerFailed
from edge_sdk.errors import EdgeFedError, StateError
from edge_sdk.mqtt import BrokerSettings, PahoTransport, Transport, TransportEvent, Will
from edge_sdk.mqtt.loop import EventLoop

__all__ = ["Service"]

logger = logging.getLogger(__name__)

LEAVE_SECONDS_MAX: Final = 5.0
BACKUP_SECONDS: Final = 300.0
QUEUED_MESSAGES_MAX: Final = 200_000
"""Invites of a round leave in one turn: there may be as many as devices."""
CLIENT_ID_BYTES: Final = 4


class Service:
    """Runs the tasks of one federation until they are finished or the service is stopped.

    Args:
        settings: The tasks.
        store: The open database.
        work: Each task's worker side, by its name.
        evaluators: What scores models, by the task's name; none where there is no held-out data.
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
        settings: Sequence[TaskSettings],
        store: Store,
        work: Mapping[str, TaskWorker],
        evaluators: Mapping[str, Evaluator],
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
        self._broker = broker
        self._on_round = on_round
        self._on_turn = on_turn
        self._backup = backup
        self._backup_due = float("-inf")
        self._loop = EventLoop()
        self._workers = ThreadWorkers(work, evaluators, self._post)
        self._linger_seconds = linger_seconds
        self._ends_at: float | None = None
        self._failed: WorkerFailed | None = None
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
        # Each start has its own name at the broker, unless it was given one: two coordinators never cut each other off.
        self._name = broker.client_id or f"edgefed-{self.core.federation}-{new_id(CLIENT_ID_BYTES).hex()}"
        self._shell = Shell(self.core, store, self._connect, clock=self._loop.clock, rng=rng, on_effect=self._on_effect)

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
        try:
            self._shell.start()
            for transport in self._shell.transports():
                self._loop.register(transport)  # type: ignore[arg-type]
            while not self._done():
                self._wait()
                self._shell.turn()
                if self._failed is not None:
                    raise _explained(self._failed.error)
                if self._on_turn is not None:
                    self._on_turn()
            self._leave()
        finally:
            gc.unfreeze()
            self._workers.stop()
            self._loop.close()

    def _wait(self) -> None:
        now = self._loop.clock()
        due = [moment for moment in (self._shell.next_deadline(), self._ends_at) if moment is not None]
        earliest = min(due, default=now + 1.0)
        self._loop.run_once(0.0 if self._shell.waiting else max(0.0, min(earliest - now, 1.0)))

    def _on_effect(self, effect: Effect) -> None:
        match effect:
            case RoundEnded(task, number):
                if self._on_round is not None:
                    # Without a pause the newest round is the next one already.
                    self._on_round(next(r for r in self._store.rounds(task, limit=2) if r.number == number and r.ended))
                self._save_backup()
            case Finished():
                if self.core.finished is not None:
                    self._save_backup(at_once=True)
                    if self._linger_seconds is not None:
                        self._ends_at = self._loop.clock() + self._linger_seconds
            case SteppedBack(reason, seconds):
                logger.warning("%s; this one is silent and asks again in %.0f s", reason, seconds)

    def _save_backup(self, *, at_once: bool = False) -> None:
        """On a worker's thread; a turn that writes meanwhile waits for the copy (some ms a megabyte)."""
        path, now = self._backup, self._loop.clock()
        if path is not None and (at_once or now >= self._backup_due):
            self._backup_due = now + BACKUP_SECONDS
            self._workers.aside(lambda: self._store.backup(path))

    def _done(self) -> bool:
        return self._stopping.is_set() or (self._ends_at is not None and self._loop.clock() >= self._ends_at)

    def _post(self, event: Event | WorkerFailed) -> None:
        self._loop.call_soon_threadsafe(lambda: self._take(event))

    def _take(self, event: Event | WorkerFailed) -> None:
        if isinstance(event, WorkerFailed):
            self._failed = event
        else:
            self._shell.post(event)

    def _connect(self, channel: str, on_event: Callable[[TransportEvent], None], will: Will | None) -> Transport:
        return PahoTransport(
            replace(self._broker, client_id=f"{self._name}-{channel}", will=will),
            on_event,
            manual_ack=True,
            queue_messages_max=QUEUED_MESSAGES_MAX,
        )

    def _leave(self) -> None:
        until = self._loop.clock() + LEAVE_SECONDS_MAX
        # A socket that is closed while something waits to be read takes what the broker has not read with it: only what
        # was answered is sure to be there.
        while any(t.waiting for t in self._shell.transports()) and self._loop.clock() < until:
            self._loop.run_once(0.05)
        self._shell.say_goodbye()
        while self._shell.connected and self._loop.clock() < until:
            self._loop.run_once(0.05)


def _explained(error: BaseException) -> EdgeFedError:
    if isinstance(error, EdgeFedError):
        return error
    return StateError(f"a worker failed ({type(error).__name__}: {error}); start again: nothing accepted is lost")
