"""What every schedule is: a pure machine that decides who works when. PURE.

A schedule takes events (a check-in, an acceptance, an update that has arrived, time) and returns actions, which the
task performs (``coordinator/task.py``). Everything that must be durable comes out as an action before the action that
makes it visible (rule 1). Its phases are data: the task saves them, shows them and hands them back after a restart,
and asks the schedule what they mean instead of comparing their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.schedules.tickets import Ticket, TicketTable

__all__ = [
    "Abandon",
    "Accepted",
    "Action",
    "Admit",
    "CheckedIn",
    "Close",
    "Declined",
    "Event",
    "HeardOf",
    "Issue",
    "Offered",
    "PhaseChanged",
    "Receipt",
    "Refuse",
    "Schedule",
    "Tick",
    "TicketChanged",
    "TurnAway",
    "UpdateArrived",
    "UpdateJournalled",
    "UpdateRefused",
    "WentAway",
]


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
    """An admitted update was found bad (``reason`` a short code, ``detail`` for people), or could not be stored."""

    ticket: bytes
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WentAway:
    """The broker has published the device's last will. It may come back, and its ticket stays its own."""

    device: str


@dataclass(frozen=True, slots=True)
class HeardOf:
    """The device that holds this ticket is there (again): it has asked for something, or sent a part of its update."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    CheckedIn
    | Accepted
    | Declined
    | Offered
    | UpdateArrived
    | UpdateJournalled
    | UpdateRefused
    | WentAway
    | HeardOf
    | Tick
)


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """Commit the new phase."""

    phase: str


@dataclass(frozen=True, slots=True)
class Issue:
    """Commit this ticket, then invite its device in answer to ``nonce``; also the answer to a repeated check-in."""

    ticket: Ticket
    nonce: bytes
    again: bool = False


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
    """Tell the device that this update will not be counted; ``outcome`` as in a verdict, ``detail`` for people."""

    ticket: Ticket
    outcome: str
    reason: str
    detail: str = ""


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


Action = PhaseChanged | Issue | TurnAway | TicketChanged | Admit | Receipt | Refuse | Close | Abandon


class Schedule(Protocol):
    """One round, from its first announcement to its end.

    Attributes:
        phase: A word of the schedule's own, saved with every commit.
        tickets: The tickets that were given out.
    """

    phase: str
    tickets: TicketTable

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done after ``event``; ``now`` is a monotonic time in seconds."""

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due; None while nothing depends on time."""

    def pause(self, now: float) -> None:
        """Stops the clock: nobody can be heard. Again is allowed."""

    def resume(self, now: float) -> None:
        """Lets the clock go on where it was stopped."""

    def seconds_remaining(self, now: float) -> float:
        """Seconds left in the phase, at least 0; what is persisted with every commit (rule 11)."""

    def report_seconds(self, now: float) -> float:
        """Seconds left for an update to arrive, seen from ``now``."""

    @property
    def asks_for_devices(self) -> bool:
        """Whether devices that hear of this phase are asked to check in."""

    @property
    def takes_updates(self) -> bool:
        """Whether an update that is offered in this phase is welcome."""

    def counts(self) -> dict[str, int]:
        """Candidates, tickets, and how many tickets stand in each state; terminal ones partition the invited."""
