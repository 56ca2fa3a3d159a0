"""Who would come to the next selection, as far as a task can know. PURE.

A round that chose as soon as enough devices had asked would choose those who answer fastest, the same ones in every
round. So it waits for those who are known to be there and free: they have asked since the last selection began, and are
not at work any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.schedules.tickets import Ticket
from edge_sdk.wire.outcomes import COUNTED, LATE, REFUSED

__all__ = ["Attendance"]


class Attendance:
    """The devices of one task that are there and free; empty after a start, when nobody is known.

    Attributes:
        unable: Those that would come and lack what the task requires; they are told to stay away for hours.
    """

    def __init__(self) -> None:
        self.unable: set[str] = set()
        self._free: set[str] = set()

    def asked(self, device: str) -> None:
        """A device has checked in; one that is invited is taken out again when its ticket ends, if it is not free."""
        self._free.add(device)
        self.unable.discard(device)

    def went_away(self, device: str) -> None:
        """The broker says that it is gone."""
        self._free.discard(device)

    def round_ended(self, tickets: Iterable[Ticket]) -> None:
        """The tickets have their verdicts: who is still at work, unwilling or gone is not waited for."""
        for ticket in tickets:
            done = ticket.state in (COUNTED, REFUSED) or (ticket.state == LATE and ticket.offered)
            if not done or ticket.away:
                self._free.discard(ticket.device)

    def selection_begins(self) -> frozenset[str]:
        """Those to wait for. Who does not come to this selection is not waited for in the next one."""
        awaited, self._free = frozenset(self._free), set()
        return awaited
