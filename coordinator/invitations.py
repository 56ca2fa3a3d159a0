"""Answers to check-ins: an invite with a ticket, or when to come back; and what became of tickets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from coordinator.advice import explain
from coordinator.events import CONTROL, Effect, Subscribe, Unsubscribe
from coordinator.publisher import Publisher
from coordinator.registry import Introduction
from coordinator.round_life import RoundLife
from coordinator.schedules import schedule as schedules
from coordinator.schedules.selection import come_back_seconds
from coordinator.schedules.tickets import Ticket
from coordinator.serving import Serving
from coordinator.status import TaskStatus
from coordinator.store import Store
from coordinator.task_settings import TaskSettings
from edge_sdk.wire.messages import CheckIn, ComeBack, Invite, Message, Verdict, short
from edge_sdk.wire.outcomes import (
    ABANDONED,
    ACCEPTED,
    ADMITTED,
    COUNTED,
    INVITED,
    JOURNALLED,
    RECEIVED,
    REFUSED,
    UNKNOWN,
)
from edge_sdk.wire.terms import Terms, terms_id

__all__ = ["Invitations"]

DONE_SECONDS: Final = 4 * 3600.0
FILTERS_MAX: Final = 64
"""In one packet, which no broker finds too large."""
WATCHED_MAX: Final = 1024
"""Invited devices whose last wills are heeded; in a larger round no single device matters so much."""


class Invitations:
    """Who is invited to a task's open round, and what the others are told.

    Args:
        settings: The task.
        store: The open database.
        life: The open round.
        serving: What devices fetch.
        status: What people see.
        publisher: Makes what is said.
        effects: Where the turn's effects are gathered.
        say: Sends an answer to one device.
        rng: For jitter.
    """

    def __init__(
        self,
        settings: TaskSettings,
        store: Store,
        life: RoundLife,
        serving: Serving,
        status: TaskStatus,
        publisher: Publisher,
        effects: list[Effect],
        say: Callable[[str, Message], None],
        rng: np.random.Generator,
    ) -> None:
        self._settings = settings
        self._store = store
        self._life = life
        self._serving = serving
        self._status = status
        self._publisher = publisher
        self._effects = effects
        self._say = say
        self._rng = rng
        self._verdicts: dict[str, tuple[Verdict, ...]] = {}  # news for those whose check-in is not answered yet
        self._has: dict[str, CheckIn] = {}  # what they have said to have
        self._terms: tuple[Terms, bytes] | None = None  # the last ones, encoded
        self._watched: set[str] = set()

    def begin(self) -> None:
        """A new round: nobody has checked in."""
        self._verdicts.clear()
        self._has.clear()

    # --- check-ins ---

    def on_check_in(self, device: str, message: CheckIn, known: Introduction | None) -> schedules.CheckedIn | None:
        """Answers a check-in, or hands it to the schedule; ``known`` is what its device is, None to ask for that."""
        if known is None:
            self._say(device, ComeBack(nonce=message.nonce, introduce=True))
            return None
        verdicts = tuple(self.verdict_on(device, ticket) for ticket in message.unsettled)
        life = self._life
        if life.finished is not None:
            self._come_back(device, message.nonce, DONE_SECONDS, "done: " + life.finished, verdicts)
            return None
        supported = known.capabilities.get("supports", [])
        lacking = [r for r in self._settings.requires if r not in supported]
        if lacking:
            self._store.count("unsupported")
            life.attendance.unable.add(device)
            reason = f"this task requires {lacking}: upgrade edgefed on this device"
            self._come_back(device, message.nonce, DONE_SECONDS, reason, verdicts, hold=True)
            return None
        lacking = [r for r in life.settings.requires if r not in supported]
        if lacking:
            # Not held: it can take part in the rounds that follow.
            self._store.count("unsupported")
            life.attendance.unable.add(device)
            reason = f"round {life.number}, {life.settings.purpose}, requires {lacking}: upgrade edgefed on this device"
            self._come_back(device, message.nonce, self._come_back_time(), reason, verdicts)
            return None
        life.attendance.asked(device)
        if life.schedule is None or any(verdict.outcome == RECEIVED for verdict in verdicts):
            self._come_back(device, message.nonce, self._come_back_time(), "between rounds", verdicts)
            return None
        if verdicts:
            # The outcome is news to the device: it must settle before it trains, and the reply tells both.
            self._verdicts[device] = verdicts
        self._has[device] = message
        return schedules.CheckedIn(device, known.instance, message.nonce)

    def turn_away(self, device: str, nonce: bytes, reason: str) -> None:
        """Not this time."""
        self._has.pop(device, None)
        self._come_back(device, nonce, self._come_back_time(), reason, self._verdicts.pop(device, ()))

    def _come_back_time(self) -> float:
        return come_back_seconds(self._settings.come_back_seconds, self._settings.jitter, self._rng)

    def _come_back(
        self,
        device: str,
        nonce: bytes,
        seconds: float,
        reason: str,
        verdicts: tuple[Verdict, ...],
        *,
        hold: bool = False,
    ) -> None:
        message: Message = ComeBack(nonce=nonce, seconds=seconds, hold=hold, reason=reason, verdicts=verdicts)
        self._say(device, message)

    # --- invites ---

    def invite(self, action: schedules.Issue, now: float) -> None:
        """Answers a check-in with a ticket, and from then on heeds the device's last will."""
        ticket = action.ticket
        record, schedule = self._life.record, self._life.schedule
        assert record is not None and schedule is not None
        has = self._has.pop(ticket.device)
        way = self._serving.way_for(has.holds)
        terms = self._encoded_terms()
        if not action.again:
            self._life.issued(ticket)
            self._status.figures.invited(
                ticket.ticket,
                whole=self._serving.parameters_bytes if way.fetched else 0,
                fetched=way.fetched,
                retained=self._serving.retains,
                inline=bool(way.inline),
            )
        message: Message = Invite(
            nonce=action.nonce,
            ticket=ticket.ticket,
            round=record.number,
            attempt=record.attempt,
            parameters=ticket.base,
            report_seconds=schedule.report_seconds(now),
            terms=name if (name := terms_id(terms)) in has.terms else terms,
            verdicts=self._verdicts.pop(ticket.device, ()),
            base=short(way.base),
            deltas=way.deltas,
            inline=way.inline,
            vectors=self._serving.vectors,
        )
        self._say(ticket.device, message)
        self.watch(ticket)

    def _encoded_terms(self) -> bytes:
        s = self._life.settings
        terms = Terms(
            program=s.program_digest,
            program_bytes=self._serving.program_bytes,
            parameters_bytes=self._serving.parameters_bytes,
            plan=s.plan_for(self._life.participation),
            chunk_bytes_max=s.chunk_bytes_max,
            blob_bytes=self._serving.piece_bytes,
            requires=s.requires,
            shard=self._publisher.shard,
        )
        if self._terms is None or self._terms[0] != terms:
            self._terms = terms, terms.encode()
        return self._terms[1]

    def watch(self, ticket: Ticket) -> None:
        """From now on the last will of the ticket's device is heeded."""
        if ticket.device not in self._watched and len(self._watched) < WATCHED_MAX:
            self._watched.add(ticket.device)
            self._effects.append(Subscribe(CONTROL, (self._publisher.topics.status(ticket.device),)))

    def unwatch(self, *, cut: bool = False) -> None:
        """The round is over; or the connection is, and its subscriptions with it (``cut``)."""
        if self._watched and not cut:
            topics = [self._publisher.topics.status(device) for device in sorted(self._watched)]
            for start in range(0, len(topics), FILTERS_MAX):
                self._effects.append(Unsubscribe(CONTROL, tuple(topics[start : start + FILTERS_MAX])))
        self._watched.clear()

    # --- verdicts ---

    def verdict_on(self, device: str, ticket: bytes) -> Verdict:
        """What a device that asks after a ticket may be told."""
        schedule = self._life.schedule
        held = schedule.tickets.get(ticket) if schedule is not None else None
        if held is not None and held.device == device:
            return self.verdict(ticket, held.digest, held.state, held.reason)
        known = self._store.ticket(ticket)
        if known is None or known.device != device:
            # Of another lineage, of another device, or older than the tombstones.
            return Verdict(ticket=ticket, digest=b"", outcome=UNKNOWN, reason="no such ticket")
        return self.verdict(ticket, known.digest or b"", known.state, known.reason)

    def verdict(self, ticket: bytes, digest: bytes, state: str, reason: str) -> Verdict:
        """The state of a ticket, in the words that devices know."""
        # Until the commit a frozen "counted" is a receipt: nobody may settle on a model that is not there yet.
        outcome = RECEIVED if state in (ADMITTED, JOURNALLED) else state
        if outcome == COUNTED and self._life.committing:
            outcome = RECEIVED
        if (outcome, reason) == (REFUSED, ABANDONED):
            outcome = ABANDONED  # its round was given up: nothing is wrong with the update
        if outcome in (INVITED, ACCEPTED):
            return Verdict(ticket, short(digest), UNKNOWN, "no update arrived for this ticket")
        return Verdict(ticket=ticket, digest=short(digest), outcome=outcome, reason=explain(reason))
