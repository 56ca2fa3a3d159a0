"""One task of a federation: it takes what devices and the worker say, and performs what its schedule asks for.

It sees ids, sizes and verdicts, never tensors (rule 12): decoding and sums are jobs of the worker, blobs are digests.
What it decides in a turn is written before the turn's commit and performed after it (rule 1, ``coordinator/shell.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from coordinator.advice import explain, pause_seconds
from coordinator.downloads import Downloads
from coordinator.events import BULK, Acknowledge, Effect, Evaluated, Ingested, RoundCommitted, Workers
from coordinator.intake import BUSY, BUSY_SECONDS, Intake
from coordinator.invitations import Invitations
from coordinator.publisher import Publisher
from coordinator.registry import Registry
from coordinator.round_life import RoundLife
from coordinator.schedules import schedule as schedules
from coordinator.schedules.schedule import Schedule
from coordinator.schedules.selection import come_back_seconds
from coordinator.schedules.tickets import Ticket
from coordinator.serving import Serving
from coordinator.status import TaskStatus
from coordinator.store import Store
from coordinator.task_settings import TaskSettings
from edge_sdk.mqtt import Delivery
from edge_sdk.wire.envelope import Envelope
from edge_sdk.wire.messages import Accept, CheckIn, Chunk, Decline, Message, Offer, RangeRequest, Verdict, short
from edge_sdk.wire.outcomes import ACCEPTED, COUNTED, INVITED, JOURNALLED, LATE, MISSING, REFUSED

__all__ = ["Task"]

logger = logging.getLogger(__name__)

PUBLISH_SECONDS_MIN: Final = 0.25
RECEIPT_SECONDS: Final = 4.0
"""A receipt waits so long for the outcome, which says that too: of most updates of a short round one message less. A
device that hears nothing offers its update again after 8 seconds (``edge_sdk/device/session/upload.py``)."""
CLOCK_SECONDS: Final = 15.0
"""How much of a phase a crash may cost at most: the seconds that remain are written this often (rule 11)."""
FEW_SECONDS: Final = 20.0
"""So long after the window of check-ins it is said that too few devices have come."""


class Task:
    """One task of a federation.

    Args:
        settings: See :class:`TaskSettings`.
        store: The open database, with the task's first checkpoint in it.
        workers: Where jobs run.
        registry: The devices of the federation.
        downloads: Hands out blobs.
        publisher: Makes what is said.
        effects: Where the turn's effects are gathered.
        new_id: Gives so many random bytes; tickets are made of it.
        rng: For jitter.
        wall: Wall time in seconds, for display only.
        incarnation: This start's number.
    """

    def __init__(
        self,
        settings: TaskSettings,
        store: Store,
        workers: Workers,
        registry: Registry,
        downloads: Downloads,
        publisher: Publisher,
        effects: list[Effect],
        *,
        new_id: Callable[[int], bytes],
        rng: np.random.Generator,
        wall: Callable[[], float],
        incarnation: int,
    ) -> None:
        self.settings = settings
        self.name = settings.task
        self._store = store
        self._registry = registry
        self._downloads = downloads
        self._publisher = publisher
        self._effects = effects
        self._timers: dict[str, float] = {}
        self._receipts: dict[bytes, Ticket] = {}  # by ticket: of updates that are journalled, not given yet
        self._heard = False  # whether devices hear this task, and it hears them
        self._starts_when_heard = False
        self._waits_for = ""
        self._published_at = float("-inf")
        self._saves = False  # whether the turn has changed what is saved of the round
        self._shows = False  # or what people see of it
        self._rng = rng
        self._status = TaskStatus(settings, incarnation)
        self._serving = Serving(settings, store, downloads, effects)
        self.life = RoundLife(
            settings,
            store,
            workers,
            registry,
            self._serving,
            downloads,
            self._status,
            effects,
            new_id=new_id,
            wall=wall,
        )
        self._invitations = Invitations(
            settings, store, self.life, self._serving, self._status, publisher, effects, self.say, rng
        )
        self._intake = Intake(
            self,
            store,
            workers,
            effects,
            lineage=store.lineage,
            chunk_bytes_max=settings.chunk_bytes_max,
        )

    # --- the interface ---

    @property
    def schedule(self) -> Schedule | None:
        """The open round, None between rounds."""
        return self.life.schedule

    @property
    def update_bytes_max(self) -> int:
        """Largest update that the open round takes, in bytes."""
        return self.life.settings.update_bytes_max

    @property
    def finished(self) -> str | None:
        """Why training is over, None before."""
        return self.life.finished

    def start(self, now: float) -> None:
        """Re-enters where the store says; call it inside a turn, before any event."""
        if self.life.start(now):
            self._timers["next"] = now
        self._serving.clear()
        self._saves = self._shows = True
        self.advance(schedules.Tick(), now)

    def speak(self, now: float) -> None:
        """Devices can be heard, and hear this task: its clock goes on, and all are told where it stands."""
        self._heard, self._waits_for = True, ""
        if self.schedule is not None:
            self.schedule.resume(now)
            for ticket in self.schedule.tickets:
                if ticket.state in (INVITED, ACCEPTED):
                    self._invitations.watch(ticket)
        if self._starts_when_heard:
            self._begin_round(now)
        else:
            self._announce(now)
        self._publish(now)

    def fall_silent(self, now: float, waits_for: str) -> None:
        """Nobody can be heard: the clock of the round stands still, as it does after a crash (rule 11)."""
        self._heard, self._waits_for = False, waits_for
        if self.schedule is not None:
            self.schedule.pause(now)
        self._invitations.unwatch(cut=True)

    def next_deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        earliest = min(self._timers.values(), default=None)
        deadline = self.schedule.next_deadline() if self.schedule is not None else None
        if deadline is None or (earliest is not None and earliest <= deadline):
            return earliest
        return deadline

    def tick(self, now: float) -> None:
        """Does what is due."""
        for name in [name for name, due in self._timers.items() if due <= now]:
            del self._timers[name]
            if name == "next" and self.schedule is None and self.finished is None:
                if self._heard:
                    self._begin_round(now)
                else:
                    self._starts_when_heard = True  # nobody would hear of it, and its time would run out
            elif name == "publish":
                self._publish(now)
            elif name == "receipts":
                self._give_receipts()
            elif name == "clock":
                self._saves = True
            elif name == "few":
                self._say_few(now)
        deadline = self.schedule.next_deadline() if self.schedule is not None else None
        if deadline is not None and deadline <= now:
            self.advance(schedules.Tick(), now)

    def end_turn(self, now: float) -> None:
        """Writes what the turn has changed; the last call inside the turn's transaction."""
        self._intake.flush(now)
        self.life.flush()
        if self._saves and self.life.save(now):
            self._timers["clock"] = now + CLOCK_SECONDS
            self._registry.flush()
        if self._shows:
            self._publish(now)
        self._saves = self._shows = False

    def summary(self, now: float) -> dict[str, Any]:
        """What the retained JSON of the round says."""
        life = self.life
        return self._status.now(
            number=life.number,
            attempt=life.record.attempt if life.record else 0,
            schedule=life.schedule,
            finished=life.finished,
            waits_for=self._waits_for or life.trouble,
            metrics=life.metrics,
            best=life.best,
            bytes_sent=self._downloads.bytes_sent,
            refused_messages=self._store.counters(),
            model=self._serving.told,
            now=now,
        )

    # --- devices' messages ---

    def on_message(self, device: str, message: Message, envelope: Envelope, now: float) -> None:
        """Takes a control message of a device."""
        match message:
            case CheckIn():
                known = self._registry.note(device, message, now)
                checked_in = self._invitations.on_check_in(device, message, known)
                if checked_in is not None:
                    self.advance(checked_in, now)
            case Accept(ticket):
                if self.holder(device, ticket) is not None:
                    self._status.figures.accepted(ticket)
                    self.advance(schedules.Accepted(ticket), now)
            case Decline(ticket, reason, detail):
                if self.holder(device, ticket) is not None:
                    if detail:
                        logger.info("task %s: %s declined, %s: %s", self.name, device, reason, detail)
                    self.advance(schedules.Declined(ticket, reason), now)
            case RangeRequest():
                self._heard_of(device, now)
                self._effects += self._downloads.on_want(device, message, self._publisher.wrap)
            case Offer():
                self._intake.on_offer(device, message, envelope.lineage, now)

    def on_chunk(self, device: str, chunk: Chunk, envelope: Envelope, acknowledgement: Delivery, now: float) -> bool:
        """Takes a piece of an update; True where its PUBACK is given later."""
        self._status.figures.up += len(chunk.data)
        self._heard_of(device, now)
        return self._intake.on_chunk(device, chunk, envelope.lineage, acknowledgement, now)

    def on_device_state(self, device: str, *, online: bool, now: float) -> None:
        """What the broker says of a device: its last will (not ``online``), or that it is back."""
        if online:
            self._heard_of(device, now)
        else:
            self.life.attendance.went_away(device)
            self.advance(schedules.WentAway(device), now)

    def on_refused_message(self) -> None:
        """A message was counted and dropped: people are to see that."""
        self._shows = True

    def _heard_of(self, device: str, now: float) -> None:
        held = self.schedule.tickets.of(device) if self.schedule is not None else None
        if held is not None and held.away:
            self.advance(schedules.HeardOf(held.ticket), now)

    def holder(self, device: str, ticket: bytes) -> Ticket | None:
        """The ticket, if it belongs to this device in the open round; a stranger's attempt is counted."""
        held = self.schedule.tickets.get(ticket) if self.schedule is not None else None
        if held is not None and held.device != device:
            self._store.count("stranger")
            return None
        return held

    def verdict_on(self, device: str, ticket: bytes) -> Verdict:
        """What a device that asks after a ticket may be told."""
        return self._invitations.verdict_on(device, ticket)

    # --- the schedule and what it asks for ---

    def advance(self, event: schedules.Event, now: float) -> None:
        """Lets the schedule take an event, and performs what follows."""
        if self.schedule is not None:
            self.perform(self.schedule.handle(event, now), now)

    def perform(self, actions: list[schedules.Action], now: float) -> None:
        """Performs the schedule's actions; an admission is performed by whoever has the update's bytes."""
        for action in actions:
            match action:
                case schedules.Issue(again=again):
                    self._invitations.invite(action, now)
                    self._saves = self._saves or not again
                case schedules.TurnAway(device, nonce, reason):
                    self._invitations.turn_away(device, nonce, reason)
                case schedules.TicketChanged(ticket):
                    self.life.moved(ticket)
                    self._saves = True
                case schedules.Receipt(ticket):
                    self._receipts[ticket.ticket] = ticket
                    self._timers.setdefault("receipts", now + RECEIPT_SECONDS)
                case schedules.Refuse(ticket, outcome, reason, detail):
                    retry = BUSY_SECONDS if outcome == BUSY else 0.0
                    said = reason if outcome == BUSY else explain(reason, detail)
                    self.say(ticket.device, Verdict(ticket.ticket, short(ticket.digest), outcome, said, retry))
                case schedules.PhaseChanged():
                    self.life.phase_changed(action, now)
                    self._saves = True
                    if self.schedule is not None and self.schedule.takes_updates:
                        self._serving.retain()
                case schedules.Close(last_seq, verdicts):
                    self.life.journal_close(last_seq, verdicts)
                case schedules.Abandon(reason, verdicts):
                    self._abandon(reason, verdicts, now)
                case schedules.Admit():
                    pass
        if actions:
            self._shows = True

    # --- rounds ---

    def _say_few(self, now: float) -> None:
        """People who wait for a round want to know what it waits for."""
        schedule, s = self.schedule, self.life.settings.round
        if schedule is None or not schedule.asks_for_devices or self.life.record is None:
            return
        here, seconds = schedule.counts()["candidates"], schedule.seconds_remaining(now)
        if here < s.goal_count:
            logger.info(
                "task %s: round %d waits for devices: %d have checked in, the goal is %d (selection.goal_count), at "
                "least %d are needed, and %.0f s are left",
                self.name,
                self.life.record.number,
                here,
                s.goal_count,
                s.minimum_count,
                seconds,
            )

    def _begin_round(self, now: float) -> None:
        self._starts_when_heard = False
        self._timers["few"] = now + self.settings.round.window_seconds + FEW_SECONDS
        self._invitations.begin()
        self._intake.begin()
        self._receipts.clear()
        self.life.begin_round(now)
        self._saves = self._shows = True
        self._announce(now)

    def _abandon(self, reason: str, verdicts: dict[bytes, tuple[str, str]], now: float, failed_for: str = "") -> None:
        tickets = self.life.abandon(reason, verdicts, failed_for)
        self._invitations.unwatch()
        for ticket in tickets:
            state, why = verdicts[ticket.ticket]
            if state in (REFUSED, LATE, MISSING):
                self._tell(ticket, state, why)
        if self.finished is None:
            self._timers["next"] = now + self._retry_seconds()
        if self.finished is not None or self.life.trouble:  # else the next announcement is that of the next attempt
            self._announce(now)
        self._shows = True

    def _retry_seconds(self) -> float:
        """Until the next attempt: the longer, the more of them have failed for what no attempt mends."""
        s, obstacle = self.settings, self.life.obstacle
        if obstacle is None or obstacle.reason in s.mended_by_attempts:
            return s.retry_seconds
        seconds = pause_seconds(obstacle.failures, s.retry_seconds, s.retry_seconds_max)
        return come_back_seconds(seconds, s.jitter, self._rng)

    def on_ingested(self, event: Ingested, now: float) -> None:
        """The worker is through with some updates."""
        for result in event.results:
            if result.acknowledgement is not None:
                self._effects.append(Acknowledge(BULK, result.acknowledgement))
            held = self.schedule.tickets.get(result.ticket) if self.schedule is not None else None
            if held is None:
                continue
            if result.seq:
                self.advance(schedules.UpdateJournalled(result.ticket, result.seq), now)
            else:
                self._store.count(result.reason)
                logger.info("refused the update of %s: %s", held.device, result.detail)
                self.life.refused(result.reason, result.detail)
                self.advance(schedules.UpdateRefused(result.ticket, result.reason, result.detail), now)

    def on_committed(self, event: RoundCommitted, now: float) -> None:
        """The worker has committed the round's model, or could not."""
        if event.error:
            self._abandon(event.error, self.life.failed(), now, event.reason)
            return
        tickets, final = self.life.committed(event)
        self._invitations.unwatch()
        for ticket in tickets:
            state, reason = final[ticket.ticket]
            if state in (COUNTED, LATE):
                self._tell(ticket, state, reason)
        self._shows = True
        if not self.life.evaluate(event):
            self._round_over(event.number, now)

    def on_evaluated(self, event: Evaluated, now: float) -> None:
        """The newest model was scored."""
        self.life.evaluated(event)
        self._round_over(event.number, now)

    def _round_over(self, number: int, now: float) -> None:
        self.life.over(number)
        if self.finished is None:
            self._timers["next"] = now + self.settings.in_round(number).pause_seconds
        else:
            self._announce(now)
        self._shows = True

    # --- speaking ---

    def say(self, device: str, message: Message) -> None:
        """Sends an answer to one device."""
        self._effects.append(self._publisher.to_device(device, message))

    def _give_receipts(self) -> None:
        for ticket in list(self._receipts.values()):
            self._tell(ticket, JOURNALLED, "")

    def _tell(self, ticket: Ticket, state: str, reason: str) -> None:
        self._receipts.pop(ticket.ticket, None)
        self.say(ticket.device, self._invitations.verdict(ticket.ticket, ticket.digest, state, reason))

    def _announce(self, now: float) -> None:
        if not self._heard:
            return  # said when there is somebody to hear it
        life = self.life
        attempt = life.record.attempt if life.record else 0
        self._effects.append(
            self._publisher.announce(
                life.number, attempt, life.schedule, life.finished, life.fraction, now, life.trouble
            )
        )

    def _publish(self, now: float) -> None:
        """Retained JSON for people and machines, at most a few times a second."""
        if not self._heard:
            return
        due = self._published_at + PUBLISH_SECONDS_MIN
        if now < due and self.finished is None:
            self._timers["publish"] = due
            return
        self._published_at = now
        self._timers.pop("publish", None)
        self._effects.append(self._publisher.round(self.summary(now)))
