"""The coordinator's threads behind the loop: one FIFO worker for updates, one for evaluation (rule 12)."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.evaluation import Evaluator
from coordinator.events import CloseJob, Evaluated, Event, Ingested, IngestItem, StartJob
from coordinator.pipeline import TaskWorker
from edge_sdk.errors import EdgeFedError

__all__ = ["ThreadWorkers", "WorkerFailed"]

logger = logging.getLogger(__name__)

QUEUED_MAX: Final = 512
BATCH_MAX: Final = 64
JOIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A job ended with an error that no verdict covers; the service must not go on as if nothing had happened."""

    error: BaseException


class ThreadWorkers:
    """Runs jobs on two threads and hands their events to the loop.

    Args:
        tasks: The worker side of each task, by its name.
        evaluators: What scores models, by the task's name; none where there is no held-out data.
        post: Takes an event, from any thread.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskWorker],
        evaluators: Mapping[str, Evaluator],
        post: Callable[[Event | WorkerFailed], None],
    ) -> None:
        self._tasks = tasks
        self._evaluators = evaluators
        self._post = post
        self._queue: queue.Queue[StartJob | IngestItem | CloseJob | None] = queue.Queue()
        self._models: queue.Queue[tuple[str, int, bytes] | Callable[[], None] | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
            for name, target in (("edgefed-ingest", self._run_queue), ("edgefed-evaluation", self._run_models))
        ]

    def run(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets the jobs that were given finish, within a limit."""
        self._queue.put(None)
        self._models.put(None)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def start(self, job: StartJob) -> None:
        self._queue.put(job)

    def ingest(self, item: IngestItem) -> None:
        self._queue.put(item)

    def close(self, job: CloseJob) -> None:
        self._queue.put(job)

    def evaluate(self, task: str, number: int, parameters: bytes) -> None:
        self._models.put((task, number, parameters))

    def aside(self, job: Callable[[], None]) -> None:
        """Runs a job behind the evaluations; that it fails is logged and harms nobody."""
        self._models.put(job)

    def busy(self) -> bool:
        return self._queue.qsize() >= QUEUED_MAX

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # a dead worker must not look like a quiet one
            logger.exception("a worker failed")
            self._post(WorkerFailed(error))

    def _run_queue(self) -> None:
        job = self._queue.get()
        while job is not None:
            if isinstance(job, IngestItem):
                job = self._run_batch(job)
                continue
            if isinstance(job, StartJob):
                self._tasks[job.task].start(job)
            else:
                self._post(self._tasks[job.record.task].close(job))
            job = self._queue.get()

    def _run_batch(self, first: IngestItem) -> StartJob | IngestItem | CloseJob | None:
        """Whatever waits is journalled in one commit; returns the job behind the batch."""
        batch = [first]
        following: StartJob | IngestItem | CloseJob | None = None
        fetched = False
        while len(batch) < BATCH_MAX:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(following, IngestItem) or following.task != first.task:
                fetched = True
                break
            batch.append(following)
        self._post(Ingested(first.task, self._tasks[first.task].process(batch)))
        return following if fetched else self._queue.get()

    def _run_models(self) -> None:
        while (job := self._models.get()) is not None:
            if callable(job):
                self._run_aside(job)
                continue
            task, number, parameters = job
            try:
                metrics = {}
                if task in self._evaluators:
                    metrics = self._evaluators[task].evaluate(self._tasks[task].parameters(parameters))
                self._post(Evaluated(task, number, metrics))
            except EdgeFedError as error:
                self._post(Evaluated(task, number, {}, str(error)))

    @staticmethod
    def _run_aside(job: Callable[[], None]) -> None:
        try:
            job()
        except EdgeFedError as error:
            logger.warning("%s", error)
