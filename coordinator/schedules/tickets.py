"""Tickets: one device's piece of work each, the states that it goes through, and the table of all of a round. PURE.

    invited ──> accepted ──> admitted ──> journalled ──> counted | refused
       └────────────┴──────────┴──> refused | declined | late | missing

The states behind ``journalled`` are verdicts: each ticket gets exactly one, and it is final (rule 13: they partition
the tickets). *Late* is a straggler that was still at work: it had offered its update, or the goal was reached without
it. *Missing* was never heard of again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edge_sdk.wire.outcomes import INVITED, NEXT_STATES, VERDICTS

__all__ = ["Ticket", "TicketTable"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One device's piece of work.

    Attributes:
        ticket: 16 random bytes.
        device: The device's name.
        instance: 16 bytes made with the device's state directory.
        base: SHA-256 of the parameters that it trains from.
        state: One of ``OPEN`` or ``VERDICTS``.
        reason: A short code behind the state, or empty.
        digest: SHA-256 of its update, once there is one.
        seq: The update's number in the journal.
        offered: Whether the device has said that its update is ready.
        away: Whether the broker has said that the device is gone, and nothing was heard of it since.
    """

    ticket: bytes
    device: str
    instance: bytes
    base: bytes
    state: str = INVITED
    reason: str = ""
    digest: bytes = b""
    seq: int | None = None
    offered: bool = False
    away: bool = False


class TicketTable:
    """The tickets of one round, by ticket and by device, and how many stand in each state."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, Ticket] = {}
        self._by_device: dict[str, bytes] = {}
        self._states: Counter[str] = Counter()
        self._away: Counter[str] = Counter()
        self.last_seq = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets.values()))

    def __contains__(self, ticket: bytes) -> bool:
        return ticket in self._tickets

    def __getitem__(self, ticket: bytes) -> Ticket:
        return self._tickets[ticket]

    def get(self, ticket: bytes) -> Ticket | None:
        """The ticket, if it is of this round."""
        return self._tickets.get(ticket)

    def of(self, device: str) -> Ticket | None:
        """The device's ticket in this round."""
        ticket = self._by_device.get(device)
        return self._tickets[ticket] if ticket is not None else None

    def count(self, *states: str, here: bool = False) -> int:
        """How many tickets stand in these states; with ``here``, without those whose devices are away."""
        return sum(self._states[state] - (self._away[state] if here else 0) for state in states)

    def put(self, ticket: Ticket) -> None:
        """Adds a ticket, or moves one to a new state.

        Raises:
            RuntimeError: The state cannot follow the one that it has.
        """
        before = self._tickets.get(ticket.ticket)
        if before is not None:
            if ticket.state not in NEXT_STATES[before.state]:
                raise RuntimeError(f"no way for a ticket from {before.state} to {ticket.state}")
            self._states[before.state] -= 1
            self._away[before.state] -= before.away
        self._store(ticket)

    def change(self, ticket: Ticket, **changes: Any) -> Ticket:
        """Puts a changed ticket into the table and returns it."""
        changed = replace(ticket, **changes)
        self.put(changed)
        return changed

    def mark(self, ticket: Ticket, *, away: bool) -> Ticket:
        """Notes that a device has gone, or was heard of again; the ticket's state stays."""
        if ticket.away == away:
            return ticket
        marked = replace(ticket, away=away)
        self._states[ticket.state] -= 1
        self._away[ticket.state] -= ticket.away
        self._store(marked)
        return marked

    def verdicts(self) -> dict[bytes, tuple[str, str]]:
        """State and reason of every ticket, all of them final."""
        verdicts = {t.ticket: (t.state, t.reason) for t in self._tickets.values()}
        assert all(state in VERDICTS for state, _ in verdicts.values()), "verdicts partition the tickets"
        return verdicts

    def _store(self, ticket: Ticket) -> None:
        self._states[ticket.state] += 1
        self._away[ticket.state] += ticket.away
        self._tickets[ticket.ticket] = ticket
        self._by_device[ticket.device] = ticket.ticket
        self.last_seq = max(self.last_seq, ticket.seq or 0)
