"""A coordinator as ``edge-coordinator serve`` runs it, which tells what each round cost: one measured process.

The only differences to the command: marks are taken around the worker's jobs, and at the first chunk of a round.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.processes import peak_bytes, tell
from coordinator.config import load_tasks
from coordinator.events import BULK, Arrived, CloseJob, Event, IngestItem, IngestResult, RoundCommitted, StartJob
from coordinator.pipeline import TaskWorker
from coordinator.service import Service
from coordinator.setup import make_service, prepare
from coordinator.store import RoundRecord

__all__ = ["main"]


class Observed:
    """Stands before the worker's side of the task and marks times: CPU of the whole process, all its threads."""

    def __init__(self, inner: TaskWorker) -> None:
        self._inner = inner
        self.marks: dict[str, float] = {}
        self.waiting = True
        self.updates = 0
        self.batches = 0

    def start(self, job: StartJob) -> None:
        self.marks, self.updates, self.batches = {"start": time.process_time()}, 0, 0
        self.waiting = True
        self._inner.start(job)

    def first_chunk(self) -> None:
        self.waiting = False
        self.marks["first_chunk"], self.marks["first_chunk_at"] = time.process_time(), time.time()

    def process(self, items: Sequence[IngestItem]) -> tuple[IngestResult, ...]:
        results = self._inner.process(items)
        self.updates += sum(result.seq > 0 for result in results)
        self.batches += 1
        self.marks["last_update"], self.marks["last_update_at"] = time.process_time(), time.time()
        return results

    def close(self, job: CloseJob) -> RoundCommitted:
        result = self._inner.close(job)
        self.marks["committed"], self.marks["committed_at"] = time.process_time(), time.time()
        return result


def main() -> None:
    """Serves the federation.toml named in the settings until SIGTERM."""
    settings = json.loads(sys.argv[1])
    prepared = prepare(load_tasks(Path(settings["config"])), wall=time.time, new_id=os.urandom)
    (task,) = prepared.tasks
    observed = Observed(task.worker)
    service = make_service(
        replace(prepared, tasks=(replace(task, worker=cast(TaskWorker, observed)),)),
        new_id=os.urandom,
        rng=np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(16), "little"))),
        wall=time.time,
        linger_seconds=None,
        on_round=lambda record: report(record, observed),
    )
    mark_chunks(service, observed)
    signal.signal(signal.SIGTERM, lambda *_: service.request_stop())
    tell("ready", cpu=time.process_time(), peak_bytes=peak_bytes())
    try:
        service.run()
    finally:
        prepared.store.close()
    tell("ended", cpu=time.process_time(), peak_bytes=peak_bytes())


def report(record: RoundRecord, observed: Observed) -> None:
    """One line for each round that has ended."""
    tell(
        "round",
        number=record.number,
        phase=record.phase,
        reason=record.reason,
        started_at=record.started_at,
        counted=record.summary.get("counted"),
        bytes_up=record.summary.get("bytes_up"),
        updates=observed.updates,
        batches=observed.batches,
        cpu=time.process_time(),
        peak_bytes=peak_bytes(),
        marks=observed.marks,
    )


def mark_chunks(service: Service, observed: Observed) -> None:
    """Has the first bulk message of each round marked."""
    handle = service.core.handle

    def marking(event: Event, now: float) -> None:
        if observed.waiting and type(event) is Arrived and event.channel == BULK:
            observed.first_chunk()
        handle(event, now)

    cast(Any, service.core).handle = marking


if __name__ == "__main__":
    main()
