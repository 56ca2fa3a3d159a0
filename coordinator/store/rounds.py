"""Rounds and tickets, and the one step that ends a round: every ticket gets its verdict, every payload goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from coordinator.store.database import Database
from coordinator.store.devices import Devices
from coordinator.store.journal import Journal, JournalEntry
from coordinator.store.partials import Partials
from coordinator.store.records import (
    ENDED_PHASES,
    RoundRecord,
    TicketRecord,
    Verdict,
    may_follow,
)
from edge_sdk.errors import StateError
from edge_sdk.wire.outcomes import ACCEPTED, INVITED, VERDICTS

__all__ = ["SECONDS_PER_DAY", "RoundWriter", "Rounds"]

SECONDS_PER_DAY: Final = 86_400
OPEN_STATES: Final = (INVITED, ACCEPTED)

_ROUND: Final = (
    "task, number, attempt, phase, seconds_remaining, base, program, last_seq, reason, summary, started_at, ended_at"
)
_TICKET: Final = (
    "SELECT t.ticket, r.task, r.number, r.attempt, t.device, t.instance, t.base, t.state, t.reason, t.digest, t.seq "
    "FROM tickets t JOIN rounds r ON r.id = t.round"
)


class Rounds:
    """Reading rounds and tickets."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    def open_round(self, task: str) -> RoundRecord | None:
        row = self._database.row(f"SELECT {_ROUND} FROM rounds WHERE task = ? AND NOT ended", (task,))
        return None if row is None else _round_record(row)

    def rounds(self, task: str, limit: int) -> list[RoundRecord]:
        rows = self._database.rows(
            f"SELECT {_ROUND} FROM rounds WHERE task = ? ORDER BY id DESC LIMIT ?", (task, limit)
        )
        return [_round_record(row) for row in rows]

    def ticket(self, ticket: bytes) -> TicketRecord | None:
        with self._database.reading():
            row = self._database.row(f"{_TICKET} WHERE t.ticket = ?", (ticket,))
            return None if row is None else self._record(row, self._journal.entries)

    def tickets(self, task: str, number: int, attempt: int) -> list[TicketRecord]:
        with self._database.reading():
            entries = self._journal.entries
            rows = self._database.rows(
                f"{_TICKET} WHERE r.task = ? AND r.number = ? AND r.attempt = ? ORDER BY t.id", (task, number, attempt)
            )
            return [self._record(row, entries) for row in rows]

    def round_id(self, task: str, number: int, attempt: int) -> int | None:
        row = self._database.row(
            "SELECT id FROM rounds WHERE task = ? AND number = ? AND attempt = ?", (task, number, attempt)
        )
        return None if row is None else int(row[0])

    @staticmethod
    def _record(row: Sequence[Any], entries: Mapping[bytes, JournalEntry]) -> TicketRecord:
        entry = entries.get(row[0])
        if entry is not None and row[7] not in VERDICTS:
            row = (*row[:7], "journalled", row[8], entry.digest, entry.seq)
        return TicketRecord(*row)


class RoundWriter(Rounds):
    """Writing rounds and tickets."""

    def __init__(
        self, database: Database, journal: Journal, partials: Partials, devices: Devices, wall: Callable[[], float]
    ) -> None:
        super().__init__(database, journal)
        self._partials = partials
        self._devices = devices
        self._wall = wall

    def save(self, record: RoundRecord) -> bool:
        """Insert or replace a round; returns whether it is a new one."""
        with self._database.transaction():
            before = self._database.row(
                "SELECT phase, started_at FROM rounds WHERE task = ? AND number = ? AND attempt = ?",
                (record.task, record.number, record.attempt),
            )
            if before is not None and before[0] in ENDED_PHASES:
                raise StateError(f"round {record.number} attempt {record.attempt} is {before[0]} and stays so")
            started_at = record.started_at if record.started_at is not None else (before[1] if before else self._wall())
            ended_at = record.ended_at
            if ended_at is None and record.phase in ENDED_PHASES:
                ended_at = self._wall()
            self._database.write(
                f"INSERT INTO rounds ({_ROUND}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (task, number, attempt) DO UPDATE SET phase = excluded.phase, "
                "seconds_remaining = excluded.seconds_remaining, base = excluded.base, program = excluded.program, "
                "last_seq = excluded.last_seq, reason = excluded.reason, summary = excluded.summary, "
                "started_at = excluded.started_at, ended_at = excluded.ended_at",
                (
                    record.task,
                    record.number,
                    record.attempt,
                    record.phase,
                    record.seconds_remaining,
                    record.base,
                    record.program,
                    record.last_seq,
                    record.reason,
                    json.dumps(record.summary),
                    started_at,
                    ended_at,
                ),
            )
            return before is None

    def set_metrics(self, task: str, number: int, metrics: Mapping[str, Any]) -> None:
        """Replace ``summary["metrics"]`` of a closed round, inside the caller's transaction."""
        row = self._database.row(
            "SELECT id, summary FROM rounds WHERE task = ? AND number = ? AND phase = 'closed'", (task, number)
        )
        if row is None:
            raise StateError(f"task {task} round {number}: is not closed, so it has no metrics")
        summary = {**json.loads(row[1]), "metrics": dict(metrics)}
        self._database.write("UPDATE rounds SET summary = ? WHERE id = ?", (json.dumps(summary), row[0]))

    def insert_tickets(self, records: Sequence[TicketRecord]) -> None:
        ids: dict[tuple[str, int, int], int] = {}
        with self._database.transaction():
            for record in records:
                key = (record.task, record.round, record.attempt)
                if key not in ids:
                    ids[key] = self._open_id(*key)
                if record.state not in OPEN_STATES:
                    raise StateError(f"ticket {record.ticket.hex()}: a new one cannot be {record.state!r}")
            self._database.write_many(
                "INSERT INTO tickets (ticket, round, device, instance, base, state, reason) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (t.ticket, ids[t.task, t.round, t.attempt], t.device, t.instance, t.base, t.state, t.reason)
                    for t in records
                ],
            )

    def set_ticket(self, ticket: bytes, state: str, reason: str, digest: bytes | None, seq: int | None) -> None:
        with self._database.transaction():
            if self._move(ticket, state, reason, digest, seq):
                return
            before = self.ticket(ticket)
            if before is None:
                raise StateError(f"ticket {ticket.hex()}: was never given out")
            if state == "counted" or not may_follow(before.state, state):
                raise StateError(f"ticket {ticket.hex()}: is {before.state}, which {state!r} cannot follow here")
            if state == "journalled" or before.state in VERDICTS:
                return  # said already, and a verdict is final with its reason
            self._database.write(
                "UPDATE tickets SET state = ?, reason = ?, digest = ?, seq = ? WHERE ticket = ?",
                (
                    state,
                    reason,
                    before.digest if digest is None else digest,
                    before.seq if seq is None else seq,
                    ticket,
                ),
            )
            if state in VERDICTS:
                self._partials.drop([ticket])

    def set_tickets(self, moves: Sequence[tuple[bytes, str, str]]) -> None:
        with self._database.transaction():
            for ticket, state, reason in moves:
                self.set_ticket(ticket, state, reason, None, None)

    def _move(self, ticket: bytes, state: str, reason: str, digest: bytes | None, seq: int | None) -> bool:
        """The usual case in one statement: the ticket is open and not journalled; False says that it is not."""
        if state in ("journalled", "counted") or ticket in self._journal.entries:
            return False
        moved = self._database.write(
            "UPDATE tickets SET state = ?, reason = ?, digest = coalesce(?, digest), seq = coalesce(?, seq) "
            "WHERE ticket = ? AND state IN (?, ?)",
            (state, reason, digest, seq, ticket, *(s if may_follow(s, state) else "" for s in OPEN_STATES)),
        )
        if moved and state in VERDICTS:
            self._partials.drop([ticket])
        return bool(moved)

    def settle(self, record: RoundRecord, verdicts: Mapping[bytes, Verdict], tombstone_days: int) -> None:
        """End a round inside the caller's transaction: verdicts, counters of the devices, no payload left."""
        round_id = self._open_id(record.task, record.number, record.attempt)
        tickets = self.tickets(record.task, record.number, record.attempt)
        final = _final_verdicts(record, tickets, verdicts)
        self.save(record)
        day = int(self._wall() // SECONDS_PER_DAY)
        self._database.write_many(
            "UPDATE tickets SET state = ?, reason = ?, digest = ?, seq = ?, day = ? WHERE ticket = ?",
            [(*final[t.ticket], t.digest, t.seq, day, t.ticket) for t in tickets],
        )
        self._devices.add_verdicts(Counter((t.device, final[t.ticket][0]) for t in tickets))
        self._partials.drop(t.ticket for t in tickets)
        self._journal.drop_round(round_id, [t.ticket for t in tickets])
        self._purge(day, tombstone_days)
        self._database.truncate_wal_after_commit()

    def forget(self, task: str) -> None:
        """Delete all rounds of a task, none of which is open, and their tickets; inside the caller's transaction."""
        self._database.write("DELETE FROM tickets WHERE round IN (SELECT id FROM rounds WHERE task = ?)", (task,))
        self._database.write("DELETE FROM rounds WHERE task = ?", (task,))

    def _purge(self, day: int, tombstone_days: int) -> None:
        if self._database.meta("purged_day") != day:
            self._database.write("DELETE FROM tickets WHERE day < ?", (day - tombstone_days,))
            self._database.set_meta("purged_day", day)

    def _open_id(self, task: str, number: int, attempt: int) -> int:
        row = self._database.row(
            "SELECT id, phase FROM rounds WHERE task = ? AND number = ? AND attempt = ?", (task, number, attempt)
        )
        if row is None:
            raise StateError(f"task {task} round {number} attempt {attempt}: was never saved")
        if row[1] in ENDED_PHASES:
            raise StateError(f"task {task} round {number} attempt {attempt}: is {row[1]} already")
        return int(row[0])


def _round_record(row: Sequence[Any]) -> RoundRecord:
    values = dict(zip(_ROUND.split(", "), row, strict=True))
    return RoundRecord(**{**values, "summary": json.loads(values["summary"])})


def _final_verdicts(
    record: RoundRecord, tickets: Sequence[TicketRecord], verdicts: Mapping[bytes, Verdict]
) -> dict[bytes, Verdict]:
    """One verdict for each ticket: the one that it has, else the one that is given now."""
    strangers = verdicts.keys() - {ticket.ticket for ticket in tickets}
    if strangers:
        raise StateError(f"verdict on ticket {min(strangers).hex()}, which is not of this round")
    final: dict[bytes, Verdict] = {}
    for ticket in tickets:
        standing = (ticket.state, ticket.reason) if ticket.state in VERDICTS else None
        given = verdicts.get(ticket.ticket, standing)
        if given is None:
            raise StateError(f"ticket {ticket.ticket.hex()}: is {ticket.state} and got no verdict at the round's end")
        if given[0] not in VERDICTS or not may_follow(ticket.state, given[0]):
            raise StateError(f"ticket {ticket.ticket.hex()}: is {ticket.state}, verdict {given[0]!r} cannot follow")
        if given[0] == "counted" and not _may_count(record, ticket):
            raise StateError(
                f"ticket {ticket.ticket.hex()}: cannot count in a round that is {record.phase} up to journal number "
                f"{record.last_seq}; its own is {ticket.seq}"
            )
        final[ticket.ticket] = standing or given
    return final


def _may_count(record: RoundRecord, ticket: TicketRecord) -> bool:
    within = record.last_seq is None or (ticket.seq is not None and ticket.seq <= record.last_seq)
    return record.phase == "closed" and within
