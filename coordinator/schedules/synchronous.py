"""One round: selection -> configuration -> reporting -> closing -> closed | abandoned. PURE: no MQTT, no SQL, no clock.

* **Selection.** Check-ins gather until there are enough; then a uniform sample is invited, each with a ticket, and the
  others stay in reserve.
* **Configuration.** Invited devices accept or decline; a decline, or silence past half of the time, is refilled from
  the reserves. What reports early is taken at once.
* **Reporting.** Updates are admitted, decoded and journalled elsewhere, and counted here, up to the goal, the deadline,
  or the moment when nobody is left who could report.
* **Closing.** No new admissions; those under way finish; then ``Close(last_seq)``. A round below its minimum is
  abandoned instead, and the model stays as it is.

Each ticket has one terminal state, frozen at the end: counted, refused, declined, late or missing (rule 13). *Late* is
a straggler that was still at work (it had offered, or the goal was reached without it); *missing* was never heard of
again. Everything that must be durable comes out as an action before the action that makes it visible (rule 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from coordinator.schedules.selection import Choose, choose, wanted_count
from edge_sdk.wire.outcomes import (
    ACCEPTED,
    ADMITTED,
    BUSY,
    COUNTED,
    DECLINED,
    INVITED,
    JOURNALLED,
    LATE,
    MISSING,
    NEXT_STATES,
    OPEN,
    REFUSED,
    VERDICTS,
)

__all__ = [
    "Abandon",
    "Accepted",
    "Action",
    "Admit",
    "CheckedIn",
    "Close",
    "Declined",
    "Event",
    "Hold",
    "Issue",
    "Offered",
    "PhaseChanged",
    "Receipt",
    "Refuse",
    "Round",
    "RoundSettings",
    "Tick",
    "Ticket",
    "TicketChanged",
    "TurnAway",
    "UpdateArrived",
    "UpdateJournalled",
    "UpdateRefused",
]

SELECTION: Final = "selection"
CONFIGURATION: Final = "configuration"
REPORTING: Final = "reporting"
CLOSING: Final = "closing"
CLOSED: Final = "closed"
ABANDONED: Final = "abandoned"


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The numbers of a round.

    Attributes:
        goal_count: Updates after which the round closes.
        minimum_count: Updates below which it is abandoned.
        over_selection: Invited / goal, at least 1.
        window_seconds: Check-ins are spread over this many seconds; nobody is chosen before it ends, unless everybody
            who is expected has come.
        selection_seconds_max: Limit of the selection phase, in seconds.
        configuration_seconds_max: Limit of the configuration phase, in seconds.
        reporting_seconds_max: Limit of the reporting phase, in seconds.
    """

    goal_count: int
    minimum_count: int
    over_selection: float = 1.3
    window_seconds: float = 10.0
    selection_seconds_max: float = 600.0
    configuration_seconds_max: float = 30.0
    reporting_seconds_max: float = 600.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One device's piece of work in this round; ``state`` is one of ``OPEN`` or ``VERDICTS``."""

    ticket: bytes
    device: str
    instance: bytes
    state: str = INVITED
    reason: str = ""
    digest: bytes = b""
    seq: int | None = None
    offered: bool = False


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """A device that could work; its identity comes from the topic."""

    device: str
    instance: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    ticket: bytes


@dataclass(frozen=True, slots=True)
class Declined:
    ticket: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Offered:
    """The device has an update for this ticket and asks what is stored."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class UpdateArrived:
    """All bytes of an update are here."""

    ticket: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class UpdateJournalled:
    """An admitted update was decoded, found good and committed under ``seq``."""

    ticket: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """An admitted update was found bad (``reason`` a short code), or could not be stored."""

    ticket: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = CheckedIn | Accepted | Declined | Offered | UpdateArrived | UpdateJournalled | UpdateRefused | Tick


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    phase: str


@dataclass(frozen=True, slots=True)
class Issue:
    """Commit this ticket, then invite its device in answer to ``nonce``; also the answer to a repeated check-in."""

    ticket: Ticket
    nonce: bytes
    again: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """The device is in reserve: answer its check-in later."""

    device: str


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Answer the check-in: not this time."""

    device: str
    nonce: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class TicketChanged:
    """Commit the ticket's new state."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Admit:
    """Decode, validate, journal this update."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Receipt:
    """The update is in the journal: tell the device."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the device that this update will not be counted; ``outcome`` as in a verdict."""

    ticket: Ticket
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """All that counts is journalled up to ``last_seq``: aggregate it. ``verdicts`` are final."""

    last_seq: int
    verdicts: dict[bytes, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Abandon:
    """The round ends without a model. ``verdicts`` are final."""

    reason: str
    verdicts: dict[bytes, tuple[str, str]]


Action = PhaseChanged | Issue | Hold | TurnAway | TicketChanged | Admit | Receipt | Refuse | Close | Abandon


@dataclass(slots=True)
class _Candidate:
    device: str
    instance: bytes
    nonce: bytes


class Round:
    """The state machine of one round.

    Args:
        settings: See :class:`RoundSettings`.
        expected: Check-ins to be expected (known devices times the announced fraction), 0 if nobody knows.
        rng: StableRandom the cohort.
        new_ticket: Makes 16 fresh random bytes.
        now: Monotonic time in seconds.
        choose_by: Who takes part; a uniform sample without it.
    """

    def __init__(
        self,
        settings: RoundSettings,
        *,
        expected: int,
        rng: np.random.Generator,
        new_ticket: Callable[[], bytes],
        now: float,
        choose_by: Choose = choose,
    ) -> None:
        self.settings = settings
        self.phase = SELECTION
        self.tickets: dict[bytes, Ticket] = {}
        self._expected = expected
        self._rng = rng
        self._new_ticket = new_ticket
        self._choose = choose_by
        self._candidates: dict[str, _Candidate] = {}
        self._reserves: list[str] = []
        self._by_device: dict[str, bytes] = {}
        self._states: Counter[str] = Counter()
        self._refilled = False
        self._goal_reached = False
        self._last_seq = 0
        self._window_ends = now + settings.window_seconds
        self._deadline = now + settings.selection_seconds_max
        self._refill_at = float("inf")
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            CheckedIn: self._on_checked_in,
            Accepted: self._on_accepted,
            Declined: self._on_declined,
            Offered: self._on_offered,
            UpdateArrived: self._on_arrived,
            UpdateJournalled: self._on_journalled,
            UpdateRefused: self._on_refused,
            Tick: self._on_tick,
        }

    @classmethod
    def restore(
        cls,
        settings: RoundSettings,
        *,
        phase: str,
        seconds_remaining: float,
        tickets: Iterable[Ticket],
        expected: int,
        rng: np.random.Generator,
        new_ticket: Callable[[], bytes],
        now: float,
        choose_by: Choose = choose,
    ) -> Round:
        """The round as it was committed before a crash; downtime does not count (rule 11).

        Candidates and reserves are forgotten: they will check in again. An update that was admitted but not journalled
        was never acknowledged: its device offers it again.
        """
        machine = cls(settings, expected=expected, rng=rng, new_ticket=new_ticket, now=now, choose_by=choose_by)
        machine.phase = phase
        machine._deadline = now + seconds_remaining
        if phase == CONFIGURATION:
            machine._refill_at = now + seconds_remaining / 2
        for ticket in tickets:
            machine._put(ticket)
            machine._by_device[ticket.device] = ticket.ticket
            machine._last_seq = max(machine._last_seq, ticket.seq or 0)
        return machine

    # --- the interface ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done after ``event``."""
        actions = self._handlers[type(event)](event, now)
        return actions + self._progress(now)

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due; None once only the worker is waited for."""
        if self.phase == SELECTION:
            return min(self._deadline, self._window_ends) if self._has_enough() else self._deadline
        if self.phase == CONFIGURATION:
            return min(self._deadline, self._refill_at)
        return self._deadline if self.phase == REPORTING else None

    def seconds_remaining(self, now: float) -> float:
        """Seconds left in the phase, at least 0; what is persisted with every commit."""
        return max(0.0, self._deadline - now)

    def report_seconds(self, now: float) -> float:
        """Seconds left for an update to arrive, seen from ``now``."""
        if self.phase == CONFIGURATION:
            return self.seconds_remaining(now) + self.settings.reporting_seconds_max
        return self.seconds_remaining(now)

    def counts(self) -> dict[str, int]:
        """Candidates, tickets, and how many tickets stand in each state; terminal ones partition the invited."""
        return {
            "candidates": len(self._candidates),
            "tickets": len(self.tickets),
            **{state: self._states[state] for state in (*OPEN, *VERDICTS)},
        }

    def ticket_of(self, device: str) -> Ticket | None:
        """The device's ticket in this round."""
        ticket = self._by_device.get(device)
        return self.tickets[ticket] if ticket is not None else None

    # --- selection ---

    def _on_checked_in(self, event: CheckedIn, now: float) -> list[Action]:
        held = self.ticket_of(event.device)
        if held is not None:
            return self._answer_holder(held, event)
        if self.phase == SELECTION or (self.phase == CONFIGURATION and event.device in self._reserves):
            self._candidates[event.device] = _Candidate(event.device, event.instance, event.nonce)
            return [Hold(event.device)]
        if self.phase == CONFIGURATION:
            # Whoever comes between selection and reporting is a reserve too.
            self._candidates[event.device] = _Candidate(event.device, event.instance, event.nonce)
            self._reserves.append(event.device)
            return [Hold(event.device), *self._refill(now)]
        return [TurnAway(event.device, event.nonce, "round_full")]

    def _answer_holder(self, held: Ticket, event: CheckedIn) -> list[Action]:
        """A repeated check-in is answered idempotently: with the same ticket (rule 2)."""
        if held.instance != event.instance:
            return [TurnAway(event.device, event.nonce, "other_instance")]
        if held.state in (INVITED, ACCEPTED) and self.phase in (CONFIGURATION, REPORTING):
            return [Issue(held, event.nonce, again=True)]
        return [TurnAway(event.device, event.nonce, "reported")]

    def _has_enough(self) -> bool:
        return len(self._candidates) >= self._enough()

    def _enough(self) -> int:
        s = self.settings
        return min(wanted_count(s.goal_count, s.over_selection), max(s.goal_count, self._expected))

    def _select(self, now: float) -> list[Action]:
        s = self.settings
        wanted = wanted_count(s.goal_count, s.over_selection)
        chosen, self._reserves = self._choose(list(self._candidates), wanted, self._rng)
        self.phase = CONFIGURATION
        self._deadline = now + s.configuration_seconds_max
        self._refill_at = now + s.configuration_seconds_max / 2
        return [PhaseChanged(CONFIGURATION), *(self._issue(device) for device in chosen)]

    def _issue(self, device: str) -> Action:
        candidate = self._candidates[device]
        ticket = Ticket(self._new_ticket(), device, candidate.instance)
        self._put(ticket)
        self._by_device[device] = ticket.ticket
        return Issue(ticket, candidate.nonce)

    # --- configuration ---

    def _on_accepted(self, event: Accepted, now: float) -> list[Action]:
        ticket = self.tickets.get(event.ticket)
        if ticket is None or ticket.state != INVITED:
            return []
        return [self._change(ticket, state=ACCEPTED)]

    def _on_declined(self, event: Declined, now: float) -> list[Action]:
        ticket = self.tickets.get(event.ticket)
        if ticket is None or ticket.state not in (INVITED, ACCEPTED):
            return []
        return [self._change(ticket, state=DECLINED, reason=event.reason), *self._refill(now)]

    def _refill(self, now: float) -> list[Action]:
        """Invites reserves for those who declined, were refused or (after half of the time) kept silent."""
        if self.phase != CONFIGURATION:
            return []
        counted_on = self._states[ACCEPTED] + self._states[ADMITTED] + self._states[JOURNALLED]
        if not self._refilled:
            counted_on += self._states[INVITED]
        s = self.settings
        short = wanted_count(s.goal_count, s.over_selection) - counted_on
        actions: list[Action] = []
        while short > 0 and self._reserves:
            actions.append(self._issue(self._reserves.pop(0)))
            short -= 1
        return actions

    def _release_reserves(self, reason: str) -> list[Action]:
        reserves, self._reserves = self._reserves, []
        return [TurnAway(device, self._candidates[device].nonce, reason) for device in reserves]

    # --- reporting ---

    def _on_offered(self, event: Offered, now: float) -> list[Action]:
        ticket = self.tickets.get(event.ticket)
        if ticket is None or ticket.state not in (INVITED, ACCEPTED):
            return []
        if self.phase not in (CONFIGURATION, REPORTING):
            # Whether it has offered before or not: what it is told now must stand in the books.
            return [self._change(ticket, state=LATE, reason="closed", offered=True)]
        if ticket.offered:
            return []
        if ticket.state == ACCEPTED:
            self._put(replace(ticket, offered=True))
            return []  # nothing that would have to be durable
        # An offer says ACCEPTED too: the acceptance may have been lost.
        return [self._change(ticket, state=ACCEPTED, offered=True)]

    def _on_arrived(self, event: UpdateArrived, now: float) -> list[Action]:
        ticket = self.tickets.get(event.ticket)
        if ticket is None:
            return []
        if ticket.state == ADMITTED:
            return []
        if ticket.state == JOURNALLED:
            if ticket.digest == event.digest:
                return [Receipt(ticket)]
            return [Refuse(ticket, REFUSED, "spent")]
        if ticket.state in VERDICTS:
            return [Refuse(ticket, ticket.state, ticket.reason)]
        if self.phase not in (CONFIGURATION, REPORTING):
            return [self._change(ticket, state=LATE, reason="closed"), Refuse(ticket, LATE, "closed")]
        # Not durable before it is journalled, and not visible either: no TicketChanged.
        admitted = replace(ticket, state=ADMITTED, digest=event.digest, offered=True)
        self._put(admitted)
        return [Admit(admitted)]

    def _on_journalled(self, event: UpdateJournalled, now: float) -> list[Action]:
        ticket = replace(self.tickets[event.ticket], state=JOURNALLED, seq=event.seq)
        self._put(ticket)
        self._last_seq = max(self._last_seq, event.seq)
        return [Receipt(ticket)]

    def _on_refused(self, event: UpdateRefused, now: float) -> list[Action]:
        ticket = self.tickets[event.ticket]
        if event.reason == BUSY:  # retryable: the ticket is not spent
            self._put(replace(ticket, state=ACCEPTED))
            return [Refuse(ticket, BUSY, BUSY)]
        changed = self._change(ticket, state=REFUSED, reason=event.reason)
        return [changed, Refuse(self.tickets[event.ticket], REFUSED, event.reason), *self._refill(now)]

    # --- time and progress ---

    def _on_tick(self, event: Tick, now: float) -> list[Action]:
        if self.phase == SELECTION and now >= self._deadline:
            if len(self._candidates) >= self.settings.minimum_count:
                return self._select(now)
            return self._abandon(
                f"{len(self._candidates)} devices checked in, at least {self.settings.minimum_count} needed"
            )
        if self.phase == CONFIGURATION and now >= self._refill_at and not self._refilled:
            self._refilled = True
            self._refill_at = float("inf")
            return self._refill(now)
        if self.phase == CONFIGURATION and now >= self._deadline:
            return self._start_reporting(now)
        if self.phase == REPORTING and now >= self._deadline:
            return self._end(now)
        return []

    def _progress(self, now: float) -> list[Action]:
        """What follows from the counts alone, after any event."""
        if self.phase == SELECTION and self._has_enough():
            everybody = 0 < self._expected <= len(self._candidates)
            if now >= self._window_ends or everybody:
                return self._select(now)
            return []
        actions: list[Action] = []
        if self.phase == CONFIGURATION and not self._states[INVITED]:
            actions += self._start_reporting(now)
        if self.phase in (CONFIGURATION, REPORTING):
            if self._states[JOURNALLED] >= self.settings.goal_count:
                self._goal_reached = True
                actions += self._end(now)
            elif not self._outstanding():
                actions += self._end(now)
        elif self.phase == CLOSING and not self._states[ADMITTED]:
            actions += self._close()
        return actions

    def _outstanding(self) -> int:
        return self._states[INVITED] + self._states[ACCEPTED] + self._states[ADMITTED] + len(self._reserves)

    def _start_reporting(self, now: float) -> list[Action]:
        self.phase = REPORTING
        self._deadline = now + self.settings.reporting_seconds_max
        return [PhaseChanged(REPORTING), *self._release_reserves("not_needed")]

    def _end(self, now: float) -> list[Action]:
        """No more admissions; close once those under way are through, or abandon if it cannot be enough."""
        actions = self._release_reserves("not_needed")
        self.phase = CLOSING
        return actions + ([] if self._states[ADMITTED] else self._close())

    def _close(self) -> list[Action]:
        if self._states[JOURNALLED] < self.settings.minimum_count:
            return self._abandon(f"{self._states['journalled']} updates, at least {self.settings.minimum_count} needed")
        self._freeze(journalled=COUNTED, reason="")
        self.phase = CLOSED
        return [PhaseChanged(CLOSED), Close(self._last_seq, self._verdicts())]

    def _abandon(self, reason: str) -> list[Action]:
        actions: list[Action] = [
            TurnAway(c.device, c.nonce, ABANDONED) for d, c in self._candidates.items() if d not in self._by_device
        ]
        self._reserves.clear()
        self._freeze(journalled=REFUSED, reason=ABANDONED)
        self.phase = ABANDONED
        return [*actions, PhaseChanged(ABANDONED), Abandon(reason, self._verdicts())]

    def _freeze(self, journalled: str, reason: str) -> None:
        for ticket in list(self.tickets.values()):
            if ticket.state == JOURNALLED:
                self._put(replace(ticket, state=journalled, reason=reason))
            elif ticket.state in (INVITED, ACCEPTED):
                at_work = ticket.offered or (ticket.state == ACCEPTED and self._goal_reached)
                self._put(replace(ticket, state=LATE if at_work else MISSING))

    def _verdicts(self) -> dict[bytes, tuple[str, str]]:
        verdicts = {t.ticket: (t.state, t.reason) for t in self.tickets.values()}
        assert all(state in VERDICTS for state, _ in verdicts.values()), "verdicts partition the tickets"
        return verdicts

    def _change(self, ticket: Ticket, **changes: Any) -> TicketChanged:
        changed = replace(ticket, **changes)
        self._put(changed)
        return TicketChanged(changed)

    def _put(self, ticket: Ticket) -> None:
        before = self.tickets.get(ticket.ticket)
        if before is not None:
            if ticket.state not in NEXT_STATES[before.state]:
                raise RuntimeError(f"round: no way for a ticket from {before.state} to {ticket.state}")
            self._states[before.state] -= 1
        self._states[ticket.state] += 1
        self.tickets[ticket.ticket] = ticket
