"""The journal of whole updates: appended in groups, replayed in order, emptied when the round ends.

Whether a ticket is journalled is said by its row here and nowhere else; an index in memory (ticket -> number, digest)
answers for it. So journalling an update writes its bytes once, at the end of one table, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from coordinator.store.database import Database
from coordinator.store.partials import Partials
from coordinator.store.records import JournalRow, QuotaExceeded
from edge_sdk.errors import StateError
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["Journal", "JournalEntry"]

TICKETS_PER_QUERY: Final = 500


class JournalEntry(NamedTuple):
    """Where a ticket's update stands in the journal."""

    seq: int
    digest: bytes
    payload_bytes: int


class Journal:
    """The updates that are held for the open rounds.

    Args:
        database: Where they are kept.
        partials: Whose chunks are deleted once an update is here whole.
        bytes_max: Payload bytes held at most.
    """

    def __init__(self, database: Database, partials: Partials | None, *, bytes_max: int) -> None:
        self._database = database
        self._partials = partials
        self._bytes_max = bytes_max
        self._entries: dict[bytes, JournalEntry] = {}
        self._seq_next = 1
        self.held_bytes = 0
        if not database.readonly:
            database.after_rollback.append(self.load)
            self.load()

    @property
    def entries(self) -> Mapping[bytes, JournalEntry]:
        """The entry of every journalled ticket (read afresh where another process writes)."""
        if self._database.readonly:
            self.load()
        return self._entries

    def load(self) -> None:
        found = self._database.rows(
            "SELECT t.ticket, u.seq, u.digest, length(u.payload) FROM updates u JOIN tickets t ON t.id = u.ticket"
        )
        self._entries = {ticket: JournalEntry(*entry) for ticket, *entry in found}
        self.held_bytes = sum(entry.payload_bytes for entry in self._entries.values())
        highest = max((entry.seq for entry in self._entries.values()), default=0)
        self._seq_next = max(highest + 1, int(self._database.meta("seq_next") or 1))

    def append(self, rows: Sequence[JournalRow]) -> list[int]:
        with self._database.lock:
            self._check_quota(rows)
            with self._database.transaction():
                known = self._tickets([row.ticket for row in rows])
                values = [self._values(number, row, known) for number, row in enumerate(rows, self._seq_next)]
                self._database.write_many(
                    "INSERT INTO updates (seq, round, ticket, digest, payload) VALUES (?, ?, ?, ?, ?)", values
                )
                self._seq_next += len(rows)
                if self._partials is not None:
                    self._partials.drop(row.ticket for row in rows)
                return [value[0] for value in values]

    def read(self, round_id: int, up_to_seq: int | None) -> Iterator[tuple[int, bytes, str, bytes]]:
        # One row a query: the lock is free between two rows, and no cursor is open across somebody's rollback.
        last, stop = 0, (1 << 62) if up_to_seq is None else up_to_seq
        while found := self._database.row(
            "SELECT u.seq, t.ticket, t.device, u.payload FROM updates u JOIN tickets t ON t.id = u.ticket "
            "WHERE u.seq > ? AND u.seq <= ? AND u.round = ? ORDER BY u.seq LIMIT 1",
            (last, stop, round_id),
        ):
            seq, ticket, device, payload = found
            yield seq, ticket, device, payload
            last = seq

    def drop_round(self, round_id: int, tickets: Sequence[bytes]) -> None:
        """Delete a round's payloads, inside the caller's transaction; numbers are never used again."""
        self._database.set_meta("seq_next", self._seq_next)
        self._database.write("DELETE FROM updates WHERE round = ?", (round_id,))
        for ticket in tickets:
            entry = self._entries.pop(ticket, None)
            if entry is not None:
                self.held_bytes -= entry.payload_bytes

    def _check_quota(self, rows: Sequence[JournalRow]) -> None:
        total, refused = self.held_bytes, []
        for row in rows:
            if total + len(row.payload) > self._bytes_max:
                refused.append(row.ticket)
            else:
                total += len(row.payload)
        if refused:
            raise QuotaExceeded(
                f"the journal holds {self.held_bytes} of {self._bytes_max} bytes: {len(refused)} updates are refused",
                tickets=frozenset(refused),
            )

    def _tickets(self, tickets: Sequence[bytes]) -> dict[bytes, tuple[int, int, str]]:
        """Row, round and state of those tickets that are there; some hundreds a query, since each query costs."""
        found: dict[bytes, tuple[int, int, str]] = {}
        for start in range(0, len(tickets), TICKETS_PER_QUERY):
            part = tickets[start : start + TICKETS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            query = f"SELECT ticket, id, round, state FROM tickets WHERE ticket IN ({marks})"
            found.update(
                (ticket, (row, number, state)) for ticket, row, number, state in self._database.rows(query, part)
            )
        return found

    def _values(
        self, seq: int, row: JournalRow, known: Mapping[bytes, tuple[int, int, str]]
    ) -> tuple[int, int, int, bytes, bytes]:
        found = known.get(row.ticket)
        if found is None:
            raise StateError(f"ticket {row.ticket.hex()}: was never given out, so its update cannot be journalled")
        ticket_id, round_id, state = found
        if row.ticket in self._entries or state in VERDICTS:
            raise StateError(f"ticket {row.ticket.hex()}: is spent, so no second update can be journalled for it")
        self._entries[row.ticket] = JournalEntry(seq, row.digest, len(row.payload))
        self.held_bytes += len(row.payload)
        return seq, round_id, ticket_id, row.digest, row.payload
