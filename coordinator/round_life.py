"""The life of a task's rounds: begun, restored after a crash, closed, committed, evaluated, or abandoned.

The record of the open round and its schedule live here, and whatever happens to them is written here. What devices are
told of it is the task's (``coordinator/task.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from coordinator.advice import Obstacle, obstacle_of
from coordinator.attendance import Attendance
from coordinator.choosing import chooser
from coordinator.downloads import Downloads
from coordinator.events import CloseJob, Effect, Evaluated, Finished, RoundCommitted, RoundEnded, StartJob, Workers
from coordinator.registry import Registry
from coordinator.schedules.schedule import PhaseChanged, Schedule
from coordinator.schedules.selection import announced_fraction, wanted_count
from coordinator.schedules.synchronous import CLOSING, SELECTION, Round
from coordinator.schedules.tickets import Ticket, TicketTable
from coordinator.serving import Serving
from coordinator.status import TaskStatus
from coordinator.stopping import Stopping
from coordinator.store import RoundRecord, Store, TicketRecord
from coordinator.task_settings import TaskSettings
from edge_sdk.wire.outcomes import COUNTED, DECLINED, INVITED, JOURNALLED, REFUSED

__all__ = ["ATTEMPTS_MAX", "RoundLife", "last_obstacle"]

logger = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 64
"""So many attempts at a round are looked back upon."""


class RoundLife:
    """The open round of one task, and what has become of those before.

    Args:
        settings: The task.
        store: The open database.
        workers: Where jobs run.
        registry: The devices of the federation.
        serving: What devices fetch.
        downloads: Hands it out; counts the bytes.
        status: What people see.
        effects: Where the turn's effects are gathered.
        new_id: Gives so many random bytes; tickets are made of it.
        wall: Wall time in seconds, for display only.

    Attributes:
        schedule: The open round, None between rounds.
        attendance: Who would come to the next selection.
        record: What is saved of it.
        completed: Number of the newest checkpoint: of the newest committed round, or of the one before the first.
        metrics: Of the newest model.
        finished: Why training is over, None before.
        obstacle: What the last attempt at the coming round has failed for, None while there is no such thing.
        committing: Whether the worker is at the end of the round: what counts is decided, and not there yet.
        fraction: Of the devices, that are asked to check in.
        participation: The share of the rounds in which a device can expect to take part, 0 if unknown.
    """

    def __init__(
        self,
        settings: TaskSettings,
        store: Store,
        workers: Workers,
        registry: Registry,
        serving: Serving,
        downloads: Downloads,
        status: TaskStatus,
        effects: list[Effect],
        *,
        new_id: Callable[[int], bytes],
        wall: Callable[[], float],
    ) -> None:
        self.schedule: Schedule | None = None
        self.attendance = Attendance()
        self.record: RoundRecord | None = None
        self.completed = 0
        self.metrics: dict[str, float] = {}
        self.finished: str | None = None
        self.obstacle: Obstacle | None = None
        self.committing = False
        self.fraction = 1.0
        self.participation = 0.0
        self._settings = settings
        self._store = store
        self._workers = workers
        self._registry = registry
        self._serving = serving
        self._downloads = downloads
        self._status = status
        self._effects = effects
        self._new_id = new_id
        self._wall = wall
        self._final: dict[bytes, tuple[str, str]] = {}
        self._issued: list[TicketRecord] = []
        self._moved: list[tuple[bytes, str, str]] = []
        self._details: dict[str, str] = {}  # of the open round: what was found in an update, by reason
        self._stopping = Stopping(settings.stopping)
        self._choose_by = chooser(settings.rule, registry.devices)

    @property
    def settings(self) -> TaskSettings:
        """The task as the open round has it."""
        return self._settings.in_round(self.number) if self.record is not None else self._settings

    @property
    def number(self) -> int:
        """Of the open round; between rounds, of the newest one that was committed, 0 where there is none."""
        return self.record.number if self.record is not None else max(0, self.completed)

    @property
    def best(self) -> float | None:
        """The best value of the watched metric."""
        return self._stopping.best

    @property
    def trouble(self) -> str:
        """What is wrong and what to do, empty while rounds succeed."""
        return "" if self.obstacle is None else self.obstacle.sentence(self.completed + 1)

    # --- beginning ---

    def start(self, now: float) -> bool:
        """Re-enters where the store says; returns whether the next round may begin."""
        task = self._settings.task
        checkpoint = self._store.latest_checkpoint(task)
        if checkpoint is None:
            raise RuntimeError("the store has no checkpoint: put_initial comes first")
        self.completed, self.metrics = checkpoint.round, dict(checkpoint.metrics)
        self._serving.publish(checkpoint.parameters_digest)
        record = self._store.open_round(task)
        past = self._store.rounds(task, limit=100_000)
        self.obstacle = last_obstacle(past, self.completed + 1)
        # A crash may have come between a round's commit and its evaluation: it is evaluated (again).
        evaluating = bool(past) and past[0].closed and self._is_evaluated(self.completed)
        self.finished = self._stopping.replay(past[1:] if evaluating else past)
        if record is not None:
            self.finished = None
            self._restore(record, now)
        elif evaluating:
            self.finished = None
            self._workers.evaluate(task, self.completed, checkpoint.parameters_digest)
        elif self.finished is not None:
            self._finish(self.finished)
        else:
            return True
        return False

    def begin_round(self, now: float) -> None:
        """The next round, or the next attempt at it."""
        number = self.completed + 1
        s = self._settings.in_round(number)
        last = self._store.rounds(s.task, limit=1)
        attempt = last[0].attempt + 1 if last and last[0].number == number else 0
        expected, awaited = self._expected(s, attempt), self.attendance.selection_begins()
        self.record = RoundRecord(
            task=s.task,
            number=number,
            attempt=attempt,
            phase=SELECTION,
            seconds_remaining=s.round.selection_seconds_max,
            base=self._serving.parameters,
            program=s.program_digest,
            summary={"purpose": s.purpose},
            started_at=self._wall(),
        )
        self._store.save_round(self.record)
        self.schedule = Round(
            s.round,
            expected=expected,
            rng=self._cohort_rng(number, attempt),
            new_ticket=lambda: self._new_id(16),
            base=self._serving.parameters,
            now=now,
            choose_by=self._choose_by,
            awaited=awaited if self.fraction >= 1.0 else None,
        )
        self._begin(self.record, now)

    def _restore(self, record: RoundRecord, now: float) -> None:
        """The round that was open; its clock stands still until devices can be heard."""
        s = self._settings.in_round(record.number)
        known = self._store.tickets(record.task, record.number, record.attempt)
        schedule = Round.restore(
            s.round,
            phase=record.phase,
            seconds_remaining=record.seconds_remaining,
            tickets=[_ticket(row) for row in known],
            expected=self._expected(s, record.attempt),
            rng=self._cohort_rng(record.number, record.attempt),
            new_ticket=lambda: self._new_id(16),
            base=record.base,
            now=now,
            choose_by=self._choose_by,
            awaited=frozenset() if self.fraction >= 1.0 else None,
        )
        schedule.pause(now)
        self.schedule, self.record = schedule, record
        self._begin(record, now)
        if record.phase == CLOSING:
            self._close(record, record.last_seq or 0, {row.ticket: (row.state, row.reason) for row in known})
        elif schedule.takes_updates:
            self._serving.retain_all()

    def _begin(self, record: RoundRecord, now: float) -> None:
        self._status.begin(self.settings, now, self._downloads.bytes_sent)
        self._serving.begin(self.settings.plan)
        self._workers.start(StartJob(record.task, record.number, record.attempt, record.base))

    def _expected(self, s: TaskSettings, attempt: int) -> int:
        """Sets the fraction to announce; returns how many check-ins it should bring, 0 if nobody knows."""
        population = self._registry.population()
        wanted = wanted_count(s.round.goal_count, s.round.over_selection)
        self.fraction = announced_fraction(population, wanted, s.fraction, attempt)
        self.participation = round(min(1.0, wanted / population), 3) if population else 0.0
        return int(population * self.fraction)

    def _cohort_rng(self, number: int, attempt: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._settings.seed, number, attempt])))

    # --- what changes while it is open ---

    def issued(self, ticket: Ticket) -> None:
        """A ticket was given out: it is written before the turn's commit."""
        assert self.record is not None
        self._issued.append(_row(ticket, self.record))

    def moved(self, ticket: Ticket) -> None:
        """A ticket has a new state: it is written before the turn's commit."""
        self._moved.append((ticket.ticket, ticket.state, ticket.reason))

    def phase_changed(self, action: PhaseChanged, now: float) -> None:
        """The schedule is in a new phase; the end of a round is saved with its verdicts."""
        assert self.record is not None and self.schedule is not None
        self._status.figures.leave_phase(self.record.phase, now)
        if self.schedule.takes_updates:
            self.record = replace(self.record, phase=action.phase)

    def flush(self) -> None:
        """Writes what became of tickets in this turn, in few statements."""
        issued, self._issued = self._issued, []
        moved, self._moved = self._moved, []
        if issued:
            self._store.insert_tickets(issued)
        if moved:
            self._store.set_tickets(moved)

    def save(self, now: float) -> bool:
        """Writes phase and seconds remaining of the round, if one is open; returns whether one is."""
        if self.record is None or self.schedule is None or self.committing:
            return False
        summary = {**self.record.summary, "checked_in": self.schedule.counts()["candidates"]}
        seconds = self.schedule.seconds_remaining(now)
        self._store.save_round(replace(self.record, seconds_remaining=seconds, summary=summary))
        return True

    # --- ending ---

    def refused(self, reason: str, detail: str) -> None:
        """An update of the open round was found bad."""
        self._details.setdefault(reason, detail)

    def journal_close(self, last_seq: int, verdicts: dict[bytes, tuple[str, str]]) -> None:
        """``Closed(last_seq)`` is committed with this turn; the job only runs what is then decided."""
        assert self.record is not None and self.schedule is not None
        self.flush()
        for ticket, (state, reason) in verdicts.items():
            if state != COUNTED:  # these stay journalled until the commit: their rows are the payloads
                self._store.set_ticket(ticket, state, reason)
        summary = self._status.of_round(self.schedule, self._downloads.bytes_sent)
        self.record = replace(self.record, phase=CLOSING, last_seq=last_seq, seconds_remaining=0.0, summary=summary)
        self._store.save_round(self.record)
        self._close(self.record, last_seq, verdicts)

    def _close(self, record: RoundRecord, last_seq: int, verdicts: dict[bytes, tuple[str, str]]) -> None:
        self.committing = True
        self._final = {
            ticket: (COUNTED, "") if state == JOURNALLED else (state, reason)
            for ticket, (state, reason) in verdicts.items()
        }
        self._workers.close(CloseJob(record, last_seq, self._final, self._stopping.good_round))

    def abandon(self, reason: str, verdicts: dict[bytes, tuple[str, str]], failed_for: str = "") -> TicketTable:
        """Ends the round without a model, which stays as it is, byte for byte; returns its tickets.

        Args:
            reason: What is kept of it, for people.
            verdicts: State and reason of each ticket.
            failed_for: The code of what the coordinator itself could not do with good updates.
        """
        assert self.record is not None and self.schedule is not None
        self.flush()
        summary = self._status.of_round(self.schedule, self._downloads.bytes_sent)
        found = obstacle_of(verdicts.values())
        unable = len(self.attendance.unable)
        if not verdicts and unable:  # nobody could be invited, and here is who could not
            found = Obstacle("unsupported", DECLINED, unable, unable + summary["checked_in"])
        if failed_for:
            found = Obstacle(failed_for, REFUSED, summary[COUNTED], summary[INVITED])
        if found is None:
            logger.warning("task %s: round %d abandoned: %s", self._settings.task, self.record.number, reason)
        else:
            self.obstacle = found.explained(self._details).after(self.obstacle)
            summary["obstacle"] = self.obstacle.record
            reason = f"{reason}; {found.brief}"
            self.finished = self._stopping.failed(self.record.number, found.reason)
            if self.obstacle.is_new:  # the same again is no news, and attempts may go on for days
                logger.warning("task %s: %s", self._settings.task, self.trouble)
        self._store.abandon_round(self.record.abandoned(reason, summary, self._wall()), verdicts)
        self._effects.append(RoundEnded(self._settings.task, self.record.number))
        if self.finished is not None:
            self._finish(self.finished)
        self._details.clear()
        tickets, self.schedule, self.record = self.schedule.tickets, None, None
        self.attendance.round_ended(tickets)
        return tickets

    def failed(self) -> dict[bytes, tuple[str, str]]:
        """The worker could not make a model: the verdicts with which the round is abandoned."""
        self.committing = False
        return {
            ticket: (REFUSED, "abandoned") if state == COUNTED else (state, reason)
            for ticket, (state, reason) in self._final.items()
        }

    def committed(self, event: RoundCommitted) -> tuple[TicketTable, dict[bytes, tuple[str, str]]]:
        """The worker has committed the round's model; returns the tickets and their verdicts."""
        assert self.record is not None and self.schedule is not None
        self.committing = False
        self._details.clear()
        number, tickets = self.record.number, self.schedule.tickets
        self.attendance.round_ended(tickets)
        self._status.ended(number, self.record.summary, event.metrics)
        self.schedule, self.record = None, None
        if self.obstacle is not None:
            logger.info("task %s: round %d has closed; what kept it from closing is over", event.task, number)
        self.obstacle = None
        self.completed, self.metrics = number, dict(event.metrics)
        self._serving.publish(event.parameters)
        self._serving.clear()
        return tickets, self._final

    def evaluate(self, event: RoundCommitted) -> bool:
        """Has the new model scored, if it is to be; returns whether."""
        if not self._is_evaluated(event.number):
            return False
        self._workers.evaluate(self._settings.task, event.number, event.parameters)
        return True

    def evaluated(self, event: Evaluated) -> None:
        """The newest model was scored."""
        if event.error:
            logger.error("task %s: evaluation of round %d failed: %s", event.task, event.number, event.error)
        self.metrics.update(event.metrics)
        self._store.set_metrics(self._settings.task, event.number, self.metrics)
        self._status.evaluated(event.number, self.metrics)

    def over(self, number: int) -> None:
        """The round is over, evaluated if it was to be: whether training is, too, is decided here."""
        self._effects.append(RoundEnded(self._settings.task, number))
        self.finished = self._stopping.observe(number, self.metrics)
        if self.finished is not None:
            self._finish(self.finished)

    def _is_evaluated(self, number: int) -> bool:
        every = self._settings.evaluate_every
        return every > 0 and number > 0 and number % every == 0

    def _finish(self, reason: str) -> None:
        self._serving.stop()
        self._effects.append(Finished(self._settings.task, reason))


def last_obstacle(records: Iterable[RoundRecord], number: int) -> Obstacle | None:
    """What the newest attempt at round ``number`` that failed for such a reason has failed for.

    Args:
        records: The newest ones of the task, the newest first.
        number: The round.
    """
    found = (Obstacle.of(record.summary) for record in records if record.number == number)
    return next((obstacle for obstacle in found if obstacle is not None), None)


def _ticket(row: TicketRecord) -> Ticket:
    return Ticket(row.ticket, row.device, row.instance, row.base, row.state, row.reason, row.digest or b"", row.seq)


def _row(ticket: Ticket, record: RoundRecord) -> TicketRecord:
    return TicketRecord(
        ticket=ticket.ticket,
        task=record.task,
        round=record.number,
        attempt=record.attempt,
        device=ticket.device,
        instance=ticket.instance,
        base=ticket.base,
        state=ticket.state,
        reason=ticket.reason,
    )
