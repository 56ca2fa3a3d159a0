"""Synchronous rounds: selection -> configuration -> reporting -> closing -> closed | abandoned. PURE.

* **Selection.** Check-ins gather until there are enough; then a sample is invited, each with a ticket, and the others
  stand by.
* **Configuration.** Invited devices accept or decline; a decline, silence past half of the time, or a device that goes
  away is made up for from those who stand by. What reports early is taken at once.
* **Reporting.** Updates are admitted, decoded and journalled elsewhere, and counted here, up to the goal, the deadline,
  or the moment when nobody is left who could report. A device whose last will was published is not waited for once
  the minimum is there.
* **Closing.** No new admissions; those under way finish; then ``Close(last_seq)``. A round below its minimum is
  abandoned instead, and the model stays as it is.

:class:`Round` has more methods than other classes: one for each event and one for each step between two phases. They
all move the same tickets and the same deadline, and a second object would only pass these to and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import Any, Final

import numpy as np

from coordinator.schedules.round_settings import RoundSettings
from coordinator.schedules.schedule import (
    Abandon,
    Accepted,
    Action,
    Admit,
    CheckedIn,
    Close,
    Declined,
    Event,
    HeardOf,
    Issue,
    Offered,
    PhaseChanged,
    Receipt,
    Refuse,
    Tick,
    TicketChanged,
    TurnAway,
    UpdateArrived,
    UpdateJournalled,
    UpdateRefused,
    WentAway,
)
from coordinator.schedules.selection import Choose, choose, wanted_count
from coordinator.schedules.tickets import Ticket, TicketTable
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
    OPEN,
    REFUSED,
    VERDICTS,
)

__all__ = ["ABANDONED", "CLOSED", "CLOSING", "CONFIGURATION", "REPORTING", "SELECTION", "Round", "RoundSettings"]

SELECTION: Final = "selection"
CONFIGURATION: Final = "configuration"
REPORTING: Final = "reporting"
CLOSING: Final = "closing"
CLOSED: Final = "closed"
ABANDONED: Final = "abandoned"
NEVER: Final = float("inf")


class Round:
    """The state machine of one round (:class:`coordinator.schedules.schedule.Schedule`).

    Args:
        settings: See :class:`RoundSettings`.
        expected: Check-ins to be expected (known devices times the announced fraction), 0 if nobody knows.
        awaited: Devices that are known to be there and free; as soon as they have all come nobody else is waited for.
            None where only some of all devices are asked, and each draws for itself whether it comes: then nobody can
            tell who is still to come.
        rng: Draws the cohort.
        new_ticket: Makes 16 fresh random bytes.
        base: SHA-256 of the parameters that this round's tickets train from.
        choose_by: Who takes part; a uniform sample without it.
        now: Monotonic time in seconds.
    """

    def __init__(
        self,
        settings: RoundSettings,
        *,
        expected: int,
        rng: np.random.Generator,
        new_ticket: Callable[[], bytes],
        base: bytes,
        now: float,
        choose_by: Choose = choose,
        awaited: Set[str] | None = frozenset(),
    ) -> None:
        self.settings = settings
        self.phase = SELECTION
        self.tickets = TicketTable()
        self._expected = len(awaited or ()) or expected
        self._awaited = awaited
        self._rng = rng
        self._new_ticket = new_ticket
        self._base = base
        self._choose = choose_by
        self._candidates: dict[str, CheckedIn] = {}
        self._standby: list[str] = []
        self._refilled = False
        self._goal_reached = False
        self._gathered_at = now + max(settings.window_seconds, settings.gather_seconds)
        self._deadline = now + settings.selection_seconds_max
        self._refill_at = NEVER
        self._paused_at: float | None = None
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            CheckedIn: self._on_checked_in,
            Accepted: self._on_accepted,
            Declined: self._on_declined,
            Offered: self._on_offered,
            UpdateArrived: self._on_arrived,
            UpdateJournalled: self._on_journalled,
            UpdateRefused: self._on_refused,
            WentAway: self._on_went_away,
            HeardOf: self._on_heard_of,
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
        base: bytes,
        now: float,
        choose_by: Choose = choose,
        awaited: Set[str] | None = frozenset(),
    ) -> Round:
        """The round as it was committed before a crash; downtime does not count (rule 11).

        Candidates and those who stood by are forgotten: they will check in again. An update that was admitted but not
        journalled was never acknowledged: its device offers it again. A round that was closing is closed: what it was
        to count is committed.
        """
        machine = cls(
            settings,
            expected=expected,
            rng=rng,
            new_ticket=new_ticket,
            base=base,
            now=now,
            choose_by=choose_by,
            awaited=awaited,
        )
        machine.phase = CLOSED if phase == CLOSING else phase
        machine._deadline = now + seconds_remaining
        if phase == CONFIGURATION:
            machine._refill_at = now + seconds_remaining / 2
        for ticket in tickets:
            machine.tickets.put(ticket)
        return machine

    # --- the interface ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done after ``event``."""
        actions = self._handlers[type(event)](event, now)
        return actions + self._progress(now)

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due; None once only the worker is waited for, and while the clock is stopped."""
        if self._paused_at is not None:
            return None
        if self.phase == SELECTION:
            return min(self._deadline, self._gathered_at) if self._has_enough() else self._deadline
        if self.phase == CONFIGURATION:
            return min(self._deadline, self._refill_at)
        return self._deadline if self.phase == REPORTING else None

    def pause(self, now: float) -> None:
        """Stops the clock of the phase."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Lets the clock of the phase go on: every deadline is later by as long as it stood still."""
        if self._paused_at is None:
            return
        stood_still, self._paused_at = now - self._paused_at, None
        self._gathered_at += stood_still
        self._deadline += stood_still
        self._refill_at += stood_still

    def seconds_remaining(self, now: float) -> float:
        """Seconds left in the phase, at least 0."""
        return max(0.0, self._deadline - (now if self._paused_at is None else self._paused_at))

    def report_seconds(self, now: float) -> float:
        """Seconds left for an update to arrive, seen from ``now``."""
        if self.phase == CONFIGURATION:
            return self.seconds_remaining(now) + self.settings.reporting_seconds_max
        return self.seconds_remaining(now)

    @property
    def asks_for_devices(self) -> bool:
        """True in selection."""
        return self.phase == SELECTION

    @property
    def takes_updates(self) -> bool:
        """True until the round closes."""
        return self.phase in (CONFIGURATION, REPORTING)

    def counts(self) -> dict[str, int]:
        """Candidates, tickets, and how many tickets stand in each state."""
        return {
            "candidates": len(self._candidates),
            "tickets": len(self.tickets),
            **{state: self.tickets.count(state) for state in (*OPEN, *VERDICTS)},
        }

    # --- selection ---

    def _on_checked_in(self, event: CheckedIn, now: float) -> list[Action]:
        held = self.tickets.of(event.device)
        if held is not None:
            return self._answer_holder(held, event)
        if self.phase == SELECTION:
            self._candidates[event.device] = event
            return []
        if self.phase == CONFIGURATION:
            # Whoever comes between selection and reporting stands by too.
            if event.device not in self._standby:
                self._standby.append(event.device)
            self._candidates[event.device] = event
            return self._refill()
        return [TurnAway(event.device, event.nonce, "round_full")]

    def _answer_holder(self, held: Ticket, event: CheckedIn) -> list[Action]:
        """A repeated check-in is answered idempotently: with the same ticket (rule 2)."""
        if held.instance != event.instance:
            return [TurnAway(event.device, event.nonce, "other_instance")]
        held = self.tickets.mark(held, away=False)
        if held.state in (INVITED, ACCEPTED) and self.takes_updates:
            return [Issue(held, event.nonce, again=True)]
        return [TurnAway(event.device, event.nonce, "reported")]

    def _has_enough(self) -> bool:
        s = self.settings
        enough = min(wanted_count(s.goal_count, s.over_selection), max(s.goal_count, self._expected))
        return len(self._candidates) >= enough

    def _everybody_is_here(self) -> bool:
        if self._awaited is None:
            return False
        if self._awaited:
            return self._awaited <= self._candidates.keys()
        return 0 < self._expected <= len(self._candidates)

    def _select(self, now: float) -> list[Action]:
        s = self.settings
        wanted = wanted_count(s.goal_count, s.over_selection)
        chosen, self._standby = self._choose(list(self._candidates), wanted, self._rng)
        self.phase = CONFIGURATION
        self._deadline = now + s.configuration_seconds_max
        self._refill_at = now + s.configuration_seconds_max / 2
        return [PhaseChanged(CONFIGURATION), *(self._issue(device) for device in chosen)]

    def _issue(self, device: str) -> Action:
        candidate = self._candidates[device]
        ticket = Ticket(self._new_ticket(), device, candidate.instance, self._base)
        self.tickets.put(ticket)
        return Issue(ticket, candidate.nonce)

    # --- configuration ---

    def _on_accepted(self, event: Accepted, now: float) -> list[Action]:
        ticket = self._present(event.ticket)
        if ticket is None or ticket.state != INVITED:
            return []
        return [TicketChanged(self.tickets.change(ticket, state=ACCEPTED))]

    def _on_declined(self, event: Declined, now: float) -> list[Action]:
        ticket = self._present(event.ticket)
        if ticket is None or ticket.state not in (INVITED, ACCEPTED):
            return []
        declined = self.tickets.change(ticket, state=DECLINED, reason=event.reason)
        return [TicketChanged(declined), *self._refill()]

    def _on_went_away(self, event: WentAway, now: float) -> list[Action]:
        ticket = self.tickets.of(event.device)
        if ticket is not None and ticket.state in (INVITED, ACCEPTED):
            self.tickets.mark(ticket, away=True)
            return self._refill()
        if self._awaited is not None:
            self._awaited -= {event.device}
        if ticket is None and event.device in self._candidates:
            # It cannot hear an invite; it will check in again when it is back.
            del self._candidates[event.device]
            self._standby = [device for device in self._standby if device != event.device]
        return []

    def _on_heard_of(self, event: HeardOf, now: float) -> list[Action]:
        self._present(event.ticket)
        return []

    def _present(self, ticket: bytes) -> Ticket | None:
        """The ticket, whose device has just been heard of."""
        held = self.tickets.get(ticket)
        return self.tickets.mark(held, away=False) if held is not None and held.away else held

    def _refill(self) -> list[Action]:
        """Invites those who stand by for those who declined, were refused, went away or (in time) kept silent."""
        if self.phase != CONFIGURATION:
            return []
        counted_on = self.tickets.count(ACCEPTED, here=True) + self.tickets.count(ADMITTED, JOURNALLED)
        if not self._refilled:
            counted_on += self.tickets.count(INVITED, here=True)
        s = self.settings
        short = wanted_count(s.goal_count, s.over_selection) - counted_on
        actions: list[Action] = []
        while short > 0 and self._standby:
            actions.append(self._issue(self._standby.pop(0)))
            short -= 1
        return actions

    def _release_standby(self, reason: str) -> list[Action]:
        standby, self._standby = self._standby, []
        return [TurnAway(device, self._candidates[device].nonce, reason) for device in standby]

    # --- reporting ---

    def _on_offered(self, event: Offered, now: float) -> list[Action]:
        ticket = self._present(event.ticket)
        if ticket is None or ticket.state not in (INVITED, ACCEPTED):
            return []
        if not self.takes_updates:
            # Whether it has offered before or not: what it is told now must stand in the books.
            return [TicketChanged(self.tickets.change(ticket, state=LATE, reason="closed", offered=True))]
        if ticket.offered:
            return []
        if ticket.state == ACCEPTED:
            self.tickets.change(ticket, offered=True)
            return []  # nothing that would have to be durable
        # An offer says "accepted" too: the acceptance may have been lost.
        return [TicketChanged(self.tickets.change(ticket, state=ACCEPTED, offered=True))]

    def _on_arrived(self, event: UpdateArrived, now: float) -> list[Action]:
        ticket = self._present(event.ticket)
        if ticket is None or ticket.state == ADMITTED:
            return []
        if ticket.state == JOURNALLED:
            return [Receipt(ticket)] if ticket.digest == event.digest else [Refuse(ticket, REFUSED, "spent")]
        if ticket.state in VERDICTS:
            return [Refuse(ticket, ticket.state, ticket.reason)]
        if not self.takes_updates:
            late = self.tickets.change(ticket, state=LATE, reason="closed")
            return [TicketChanged(late), Refuse(ticket, LATE, "closed")]
        # Not durable before it is journalled, and not visible either: no TicketChanged.
        return [Admit(self.tickets.change(ticket, state=ADMITTED, digest=event.digest, offered=True))]

    def _on_journalled(self, event: UpdateJournalled, now: float) -> list[Action]:
        return [Receipt(self.tickets.change(self.tickets[event.ticket], state=JOURNALLED, seq=event.seq))]

    def _on_refused(self, event: UpdateRefused, now: float) -> list[Action]:
        ticket = self.tickets[event.ticket]
        if event.reason == BUSY:  # retryable: the ticket is not spent
            self.tickets.change(ticket, state=ACCEPTED)
            return [Refuse(ticket, BUSY, BUSY)]
        refused = self.tickets.change(ticket, state=REFUSED, reason=event.reason)
        return [TicketChanged(refused), Refuse(refused, REFUSED, event.reason, event.detail), *self._refill()]

    # --- time and progress ---

    def _on_tick(self, event: Tick, now: float) -> list[Action]:
        if self._paused_at is not None:
            return []
        if self.phase == SELECTION and now >= self._deadline:
            if len(self._candidates) >= self.settings.minimum_count:
                return self._select(now)
            return self._abandon(
                f"{len(self._candidates)} devices checked in, at least {self.settings.minimum_count} needed"
            )
        if self.phase == CONFIGURATION and now >= self._refill_at and not self._refilled:
            self._refilled = True
            self._refill_at = NEVER
            return self._refill()
        if self.phase == CONFIGURATION and now >= self._deadline:
            return self._start_reporting(now)
        if self.phase == REPORTING and now >= self._deadline:
            return self._end()
        return []

    def _progress(self, now: float) -> list[Action]:
        """What follows from the counts alone, after any event."""
        if self.phase == SELECTION and self._has_enough():
            gathered = self._paused_at is None and now >= self._gathered_at
            return self._select(now) if gathered or self._everybody_is_here() else []
        actions: list[Action] = []
        if self.phase == CONFIGURATION and not self.tickets.count(INVITED):
            actions += self._start_reporting(now)
        if self.takes_updates:
            if self.tickets.count(JOURNALLED) >= self.settings.goal_count:
                self._goal_reached = True
                actions += self._end()
            elif not self._waited_for():
                actions += self._end()
        elif self.phase == CLOSING and not self.tickets.count(ADMITTED):
            actions += self._close()
        return actions

    def _waited_for(self) -> int:
        """How many may still report; those who went away are waited for only while the round needs them."""
        open_states, standby = (INVITED, ACCEPTED, ADMITTED), len(self._standby)
        if self.tickets.count(JOURNALLED) >= self.settings.minimum_count:
            return self.tickets.count(*open_states, here=True) + standby
        return self.tickets.count(*open_states) + standby

    def _start_reporting(self, now: float) -> list[Action]:
        self.phase = REPORTING
        self._deadline = now + self.settings.reporting_seconds_max
        return [PhaseChanged(REPORTING), *self._release_standby("not_needed")]

    def _end(self) -> list[Action]:
        """No more admissions; close once those under way are through, or abandon if it cannot be enough."""
        actions = self._release_standby("not_needed")
        self.phase = CLOSING
        return actions + ([] if self.tickets.count(ADMITTED) else self._close())

    def _close(self) -> list[Action]:
        journalled = self.tickets.count(JOURNALLED)
        if journalled < self.settings.minimum_count:
            return self._abandon(f"{journalled} updates, at least {self.settings.minimum_count} needed")
        self._freeze(journalled=COUNTED, reason="")
        self.phase = CLOSED
        return [PhaseChanged(CLOSED), Close(self.tickets.last_seq, self.tickets.verdicts())]

    def _abandon(self, reason: str) -> list[Action]:
        actions: list[Action] = [
            TurnAway(c.device, c.nonce, "abandoned") for c in self._candidates.values() if not self.tickets.of(c.device)
        ]
        self._standby.clear()
        self._freeze(journalled=REFUSED, reason="abandoned")
        self.phase = ABANDONED
        return [*actions, PhaseChanged(ABANDONED), Abandon(reason, self.tickets.verdicts())]

    def _freeze(self, journalled: str, reason: str) -> None:
        for ticket in self.tickets:
            if ticket.state == JOURNALLED:
                self.tickets.change(ticket, state=journalled, reason=reason)
            elif ticket.state in (INVITED, ACCEPTED):
                at_work = ticket.offered or (ticket.state == ACCEPTED and self._goal_reached)
                state = LATE if at_work and not ticket.away else MISSING
                self.tickets.change(ticket, state=state, reason="went_offline" if ticket.away else "")
