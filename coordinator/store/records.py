"""What the store keeps, as frozen records, and which ticket state may follow which.

A ticket's life (the last five states are verdicts; a verdict is final):

    invited ──> accepted ──> journalled ──> counted | refused | late | missing
       └────────────┴──> refused | declined | late | missing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from edge_sdk.errors import ProtocolError
from edge_sdk.wire.outcomes import (
    ACCEPTED,
    BUSY,
    COUNTED,
    DECLINED,
    INVITED,
    JOURNALLED,
    LATE,
    MISSING,
    REFUSED,
    VERDICTS,
)

__all__ = [
    "ENDED_PHASES",
    "Checkpoint",
    "ChunkRefused",
    "DeviceRecord",
    "JournalRow",
    "ModelDeltaRecord",
    "NewDelta",
    "QuotaExceeded",
    "RoundRecord",
    "TicketRecord",
    "Verdict",
    "may_follow",
]

ENDED_PHASES: Final = frozenset({"closed", "abandoned"})
"""How a round can end. The phases before are words of its schedule, which the database keeps as they are."""

Verdict = tuple[str, str]
"""A final state out of ``VERDICTS`` and a short reason code (may be empty)."""

_NEXT: Final[Mapping[str, frozenset[str]]] = {
    INVITED: frozenset({INVITED, ACCEPTED, REFUSED, DECLINED, LATE, MISSING}),
    ACCEPTED: frozenset({ACCEPTED, REFUSED, DECLINED, LATE, MISSING}),
    JOURNALLED: frozenset({JOURNALLED, COUNTED, REFUSED, LATE, MISSING}),
    **{verdict: frozenset({verdict}) for verdict in VERDICTS},
}


def may_follow(before: str, after: str) -> bool:
    """Whether a ticket in state ``before`` may be put into state ``after``."""
    return after in _NEXT[before]


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One attempt at one round of a task.

    Attributes:
        task: The task's name.
        number: The round's number, from 1, or from 0 where devices are asked for something before training.
        attempt: Which attempt at this number, from 0; an abandoned round is tried again under the same number.
        phase: A word of the schedule, or one of ``ENDED_PHASES``.
        seconds_remaining: Seconds left in the phase when it was saved (downtime does not count).
        base: SHA-256 of the parameters that the round starts from.
        program: SHA-256 of the program.
        last_seq: The last journal number that counts, once the round is closing.
        reason: Why it ended, or empty.
        summary: Figures for people and dashboards (JSON values only).
        started_at: Wall time of its first save, seconds since 1970, for display; None lets the store fill it in.
        ended_at: Wall time of its end, likewise.
    """

    task: str
    number: int
    attempt: int
    phase: str
    seconds_remaining: float
    base: bytes
    program: bytes
    last_seq: int | None = None
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it was committed or abandoned."""
        return self.phase in ENDED_PHASES

    @property
    def closed(self) -> bool:
        """Whether it was committed."""
        return self.phase == "closed"

    def abandoned(self, reason: str, summary: dict[str, Any], ended_at: float) -> RoundRecord:
        """The record of its end without a model."""
        return replace(
            self, phase="abandoned", reason=reason, seconds_remaining=0.0, summary=summary, ended_at=ended_at
        )


@dataclass(frozen=True, slots=True)
class TicketRecord:
    """One piece of work that one device was asked for.

    Attributes:
        ticket: 16 random bytes.
        task: The task's name.
        round: The round's number.
        attempt: The round's attempt.
        device: The device's name (its segment of the topic).
        instance: 16 bytes made with the device's state directory.
        base: SHA-256 of the parameters that the device was asked to train from.
        state: ``invited``, ``accepted``, ``journalled`` or one of ``VERDICTS``.
        reason: A short code behind the state, or empty.
        digest: SHA-256 of the update's frame, once one was journalled or judged.
        seq: The update's number in the journal.
    """

    ticket: bytes
    task: str
    round: int
    attempt: int
    device: str
    instance: bytes
    base: bytes = b""
    state: str = INVITED
    reason: str = ""
    digest: bytes | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One whole update to be journalled: the ticket it spends, its digest, the frame's bytes."""

    ticket: bytes
    digest: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a task after a round; before the first one, ``round`` is one less than that round's number.

    ``server_state``, what the pipeline remembers, is kept with the newest checkpoint only.
    """

    round: int
    parameters_digest: bytes
    program_digest: bytes
    server_state: bytes
    metrics: dict[str, Any]


class ModelDeltaRecord(NamedTuple):
    """A model delta of the rounds up to ``round``, mostly of that one alone: how many they are, SHA-256 of the
    parameters before and after them, its own, its length in bytes."""

    round: int
    rounds: int
    base: bytes
    target: bytes
    digest: bytes
    bytes: int


@dataclass(frozen=True, slots=True)
class NewDelta:
    """The model delta of a round.

    Attributes:
        model_delta: Leads from the model of the round before to that of this one.
        deltas_max: Rounds whose model deltas are kept.
        bytes_max: Bytes of the deltas that bring a device here from the oldest of them.
        merged: Model deltas in place of those of several rounds up to this one: how many, SHA-256 of the parameters
            before them, and the bytes.
    """

    model_delta: bytes
    deltas_max: int
    bytes_max: int
    merged: tuple[tuple[int, bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What is known of a device; the five counters partition the tickets it was given in ended rounds."""

    device: str
    instance: bytes
    instance_before: bytes | None
    instance_changes: int
    capabilities: dict[str, Any]
    first_seen: float
    last_seen: float
    counted: int
    refused: int
    declined: int
    late: int
    missing: int


class ChunkRefused(ProtocolError):
    """Chunks or updates that the store does not take; ``tickets`` names whose, and nothing of the call was stored.

    The caller refuses these tickets under ``reason``, and calls again with the other rows.
    """

    def __init__(self, message: str, *, tickets: frozenset[bytes], reason: str = "malformed") -> None:
        super().__init__(message, reason=reason)
        self.tickets = tickets


class QuotaExceeded(ChunkRefused):
    """A byte quota is full: refused as "busy", and the device may try again later."""

    def __init__(self, message: str, *, tickets: frozenset[bytes]) -> None:
        super().__init__(message, tickets=tickets, reason=BUSY)
