"""The one job of a device: training handed out to wherever the shell runs it, and what comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.device.blobs import DeviceBlobs, JobBlobs
from edge_sdk.device.session import (
    CheckExamples,
    Event,
    ExamplesFit,
    StartTraining,
    TrainingFailed,
    TrainingFinished,
)
from edge_sdk.device.state import DeviceState
from edge_sdk.device.training_job import Cancelled, OverQuota, TrainingJob, Work, job_seed
from edge_sdk.errors import DivergedError, EdgeFedError, ExamplesError, StateError, TrainingError
from edge_sdk.wire.plan import Plan

__all__ = ["Ended", "Jobs"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    order: StartTraining | CheckExamples
    blobs: JobBlobs | None
    cancelled: bool = False
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a job: what it was about, and the loss of its training, None where there was none."""

    order: StartTraining | CheckExamples
    loss: float | None


class Jobs:
    """Gives out one job at a time; the next one waits until the one before knows that it was called off.

    Args:
        device: The device's name; the seed of its work follows from it.
        state: Where a finished update is saved before anything is said of it (rule 4).
        work: Turns a job into an update.
        blobs: Where program and parameters are.
        run_job: Runs a job elsewhere and hands its event back to the agent.
        frames_bytes_max: Bytes that the frames of one update may have under a plan, 0 for no limit.
        on_step: Told what is being trained, steps done and loss, on the job's thread.
    """

    def __init__(
        self,
        device: str,
        *,
        state: DeviceState,
        work: Work,
        blobs: DeviceBlobs,
        run_job: Callable[[Callable[[], Event]], None],
        frames_bytes_max: Callable[[Plan], int],
        on_step: Callable[[StartTraining, int, float], None],
    ) -> None:
        self._device = device
        self._state = state
        self._work = work
        self._blobs = blobs
        self._run_job = run_job
        self._frames_bytes_max = frames_bytes_max
        self._on_step = on_step
        self._job: _Job | None = None
        self._waiting: _Job | None = None

    @property
    def current(self) -> StartTraining | CheckExamples | None:
        """What the job that was given out is about."""
        return self._job.order if self._job is not None else None

    def start(self, start: StartTraining) -> None:
        """Gives out a training, or keeps it for when the last job has found out that it was called off."""
        parameters = None if start.plan.without_parameters else start.parameters
        self._take_up(_Job(start, self._blobs.take(start.program, parameters, dict(start.vectors))))

    def check(self, check: CheckExamples) -> None:
        """Gives out a look at the examples, likewise."""
        self._take_up(_Job(check, self._blobs.take_program(check.program)))

    def _take_up(self, job: _Job) -> None:
        if self._job is not None:
            self._waiting = job
        else:
            self._give_out(job)

    def cancel(self, ticket: bytes) -> None:
        """Calls off the work for a ticket."""
        for job in (self._job, self._waiting):
            if job is not None and job.order.ticket == ticket:
                job.cancelled = True

    def end(self) -> Ended | None:
        """The job that was given out has ended; returns what it was."""
        job, self._job = self._job, None
        return None if job is None else Ended(job.order, job.loss)

    def go_on(self) -> None:
        """Gives out the job that has waited, if it is still wanted."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.cancelled:
            return
        if self._job is None:
            self._give_out(waiting)
        else:
            self._waiting = waiting

    def _give_out(self, job: _Job) -> None:
        self._job = job
        start, blobs = job.order, job.blobs
        if blobs is None:
            self._run_job(lambda: TrainingFailed(start.ticket, "gone", "the downloads are no longer in memory"))
            return
        if isinstance(start, CheckExamples):
            self._run_job(lambda: self._look(start, blobs))
            return
        order = TrainingJob(
            start=start,
            program=blobs.program,
            parameters=blobs.parameters,
            received=blobs.vectors,
            vectors=self._state.vectors,
            keeps_vectors=self._state.keeps_vectors,
            constants=self._state.constants.get,
            seed=job_seed(start.parameters, self._device),
            stop=lambda: job.cancelled,
            progress=lambda steps, loss: self._on_step(start, steps, loss),
            frames_bytes_max=self._frames_bytes_max(start.plan),
        )
        self._run_job(lambda: self._work_off(job, order, blobs))

    def _look(self, check: CheckExamples, blobs: JobBlobs) -> Event:
        """A look at the examples, on whatever thread."""

        def look() -> Event:
            self._blobs.cache(blobs)
            self._work.check(check.ticket, check.program, blobs.program)
            return ExamplesFit(check.ticket)

        return _told(check.ticket, look)

    def _work_off(self, job: _Job, order: TrainingJob, blobs: JobBlobs) -> Event:
        """A training, on whatever thread: trains, encodes, and saves before anything is said (rule 4)."""

        def work_off() -> Event:
            self._blobs.cache(blobs)
            trained = self._work.run(order)
            self._state.save_outbox(trained.update, trained.vectors_after)
            job.loss = None if trained.result is None else float(trained.result.loss)
            return TrainingFinished(trained.update)

        return _told(order.start.ticket, work_off)


def _told(ticket: bytes, work: Callable[[], Event]) -> Event:
    """What ``work`` gives, or why it gives nothing."""
    try:
        return work()
    except Cancelled:
        return TrainingFailed(ticket, "cancelled")
    except OverQuota as error:
        return TrainingFailed(ticket, "bytes_per_update", str(error), str(error))
    except ExamplesError as error:
        return TrainingFailed(ticket, "no_examples", str(error), error.public)
    except StateError as error:
        return TrainingFailed(ticket, "state", str(error))
    except DivergedError as error:
        return TrainingFailed(ticket, "diverged", str(error), error.public)
    except TrainingError as error:
        return TrainingFailed(ticket, "training", str(error), error.public)
    except EdgeFedError as error:
        return TrainingFailed(ticket, "training", str(error))
    except (Exception, SystemExit) as error:  # the user's own code: never our thread's end
        logger.exception("training failed")
        return TrainingFailed(ticket, "error", f"{type(error).__name__}: {error}", type(error).__name__)
