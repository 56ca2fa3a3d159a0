"""The store's face: what the coordinator calls."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from coordinator.store.backup import write_backup
from coordinator.store.blobs import Blobs, Checkpoints, Retained
from coordinator.store.counters import Counters
from coordinator.store.database import Database
from coordinator.store.devices import DeviceRow, Devices
from coordinator.store.journal import Journal
from coordinator.store.lineage import Lineage
from coordinator.store.model_deltas import ModelDeltas
from coordinator.store.partials import ChunkRow, Partials
from coordinator.store.reader import StoreReader
from coordinator.store.records import Checkpoint, JournalRow, NewDelta, RoundRecord, TicketRecord, Verdict
from coordinator.store.rounds import RoundWriter
from edge_sdk.errors import StateError

__all__ = ["Store"]

_log = logging.getLogger(__name__)


class Store(StoreReader):
    """The coordinator's database.

    Args:
        path: The file, or ``":memory:"``. Beside it stand ``<path>.lock`` and ``<path>.witness`` (see lineage.py).
        wall: Wall time in seconds since 1970: for display, for last-seen times and the age of tombstones.
        new_id: ``new_id(n)`` gives n random bytes; used for the lineage only.
        partial_bytes_max: Bytes of unfinished uploads held for all devices.
        partial_bytes_per_device_max: Bytes of unfinished uploads held for one device; no larger update can arrive.
        journal_bytes_max: Bytes of whole updates held for the open rounds.
        checkpoints_kept: Checkpoints kept of each task, at least 1.
        tombstone_days: Days for which the verdict on a ticket is remembered.
        devices_max: Devices remembered in the registry.

    Attributes:
        restored: Whether opening it found that the database is older than it was (a new lineage was begun).

    Raises:
        StateError: The database is damaged (and was renamed), in use, written by newer code, or cannot be opened.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        wall: Callable[[], float],
        new_id: Callable[[int], bytes],
        partial_bytes_max: int = 256 << 20,
        partial_bytes_per_device_max: int = 32 << 20,
        journal_bytes_max: int = 512 << 20,
        checkpoints_kept: int = 5,
        tombstone_days: int = 30,
        devices_max: int = 100_000,
    ) -> None:
        database = Database(path, wall=wall)
        self._tombstone_days = tombstone_days
        self._partials = Partials(
            database, bytes_max=partial_bytes_max, bytes_per_device_max=partial_bytes_per_device_max
        )
        self._journal = Journal(database, self._partials, bytes_max=journal_bytes_max)
        devices = Devices(database, wall=wall, devices_max=devices_max)
        rounds = RoundWriter(database, self._journal, self._partials, devices, wall)
        blobs = Blobs(database)
        super().__init__(
            database,
            rounds,
            blobs,
            Checkpoints(database, blobs, wall=wall, kept=max(checkpoints_kept, 1)),
            devices,
            Counters(database),
            Retained(database),
            ModelDeltas(database, blobs),
        )
        self._writer = rounds
        self._lineage = Lineage(database, new_id)
        self.restored = self._lineage.begin()
        if self.restored:
            _log.warning(
                "%s: this database was restored: lineage %s begins, and the open round is abandoned",
                database.path,
                self.new_lineage().hex(),
            )

    @staticmethod
    def open_readonly(path: Path) -> StoreReader:
        """Open the database of a coordinator, running or not, for reading from another process.

        Raises:
            StateError: There is no such database, or its schema is not the one that this version reads.
        """
        return StoreReader.open(path)

    def close(self) -> None:
        """Write what is pending, copy the WAL back and give up the file."""
        with contextlib.suppress(StateError):
            self._counters.flush()
        self._database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """One write transaction for everything inside; an exception undoes all of it; nested ones join the outer one.

        Raises:
            StateError: The database is full, damaged, locked or contradicts the step; nothing was stored.
        """
        return self._database.transaction()

    @property
    def in_transaction(self) -> bool:
        """Whether something is written that is not committed yet."""
        return self._database.connection.in_transaction

    # -- lineage and incarnation -------------------------------------------------------------------------------------

    def new_lineage(self) -> bytes:
        """Begin a new lineage (the database was restored): open rounds are abandoned, their tickets end "restored"."""
        with self.transaction():
            open_tasks = self._database.rows("SELECT task FROM rounds WHERE NOT ended")
            for (task,) in open_tasks:
                self._abandon_restored(task)
            return self._lineage.renew()

    def next_incarnation(self) -> int:
        """Count one more start of the coordinator; call it once, before anything is published."""
        with self.transaction():
            return self._lineage.next_incarnation()

    # -- rounds and tickets ----------------------------------------------------------------------------------------

    def save_round(self, record: RoundRecord) -> None:
        """Insert or replace one round, known by task, number and attempt.

        Raises:
            StateError: It has ended already, or another round of the task is still open.
        """
        with self.transaction():
            if self._writer.save(record):
                self._lineage.advance()

    def insert_tickets(self, records: Sequence[TicketRecord]) -> None:
        """Add tickets in state "invited" (or "accepted") to an open round that was saved before.

        Raises:
            StateError: The round is not open, or a ticket exists already; none is added.
        """
        self._writer.insert_tickets(records)

    def set_ticket(
        self, ticket: bytes, state: str, reason: str = "", digest: bytes | None = None, seq: int | None = None
    ) -> None:
        """Move a ticket to "accepted" or to a verdict other than "counted"; a verdict deletes its partials.

        "journalled" is said by ``journal`` and "counted" by ``commit_round`` alone. A verdict is final: setting the
        same one again changes nothing.

        Raises:
            StateError: There is no such ticket, or the state cannot follow the one that it has.
        """
        self._writer.set_ticket(ticket, state, reason, digest, seq)

    def set_tickets(self, moves: Sequence[tuple[bytes, str, str]]) -> None:
        """``set_ticket`` for many ``(ticket, state, reason)``, in order, in one transaction.

        Raises:
            StateError: As for ``set_ticket``; none is moved.
        """
        self._writer.set_tickets(moves)

    # -- uploads ---------------------------------------------------------------------------------------------------

    def put_chunks(self, rows: Sequence[ChunkRow]) -> None:
        """Store chunks ``(ticket, digest, total_bytes, offset, data)``: all of them, or none with an exception.

        Bytes that are held already stay as they are; ranges may come in any order and overlap.

        Raises:
            QuotaExceeded: A device's or the whole quota is full.
            ChunkRefused: Unknown or spent ticket, a range outside the update, another total than before.
        """
        self._partials.put(rows)

    def ranges(self, ticket: bytes, digest: bytes) -> list[tuple[int, int]]:
        """The byte ranges (start, stop) that are held of one update: sorted, disjoint, not adjacent."""
        return self._partials.ranges(ticket, digest)

    def assemble(self, ticket: bytes, digest: bytes) -> bytes:
        """The whole update; that its SHA-256 is ``digest`` is for the caller to check.

        Raises:
            ProtocolError: Bytes are missing (reason "incomplete").
        """
        return self._partials.assemble(ticket, digest)

    def drop_partials(self, ticket: bytes) -> None:
        """Delete all chunks held for a ticket."""
        self._partials.drop([ticket])

    def journal(self, rows: Sequence[JournalRow]) -> list[int]:
        """Journal whole updates in one transaction and delete their chunks; returns their numbers, which only grow.

        Raises:
            QuotaExceeded: The journal is full; ``tickets`` names the updates that do not fit, and none is stored.
            StateError: A ticket is unknown or spent; none is stored.
        """
        return self._journal.append(rows)

    def journalled(
        self, task: str, round: int, attempt: int, up_to_seq: int | None = None
    ) -> Iterator[tuple[int, bytes, str, bytes]]:
        """A round's updates as ``(seq, ticket, device, payload)`` in order, one in memory at a time."""
        round_id = self._rounds.round_id(task, round, attempt)
        return iter(()) if round_id is None else self._journal.read(round_id, up_to_seq)

    # -- the end of a round ----------------------------------------------------------------------------------------

    def commit_round(
        self,
        record: RoundRecord,
        *,
        parameters: bytes,
        server_state: bytes,
        verdicts: Mapping[bytes, Verdict],
        metrics: Mapping[str, Any],
        model_delta: NewDelta | None = None,
        broadcast: Mapping[str, bytes] | None = None,
        kept_round: int | None = None,
    ) -> Checkpoint:
        """Close a round: checkpoint, model delta, verdicts and the end of all its payloads, in one transaction.

        Args:
            record: The round in phase "closed".
            parameters: The new parameters blob.
            server_state: What the pipeline remembers.
            verdicts: One (state, reason) for every ticket of the round that has none yet.
            metrics: JSON values kept with the checkpoint.
            model_delta: Leads there from the parameters of before; None where devices fetch them whole.
            broadcast: Blobs of the vectors that devices get beside, by name.
            kept_round: The checkpoint of this round is kept beside the newest ones; None for no other one.

        Returns:
            The new checkpoint.

        Raises:
            StateError: The round is not open, a ticket has no or a second verdict, or counts without being in the
                journal up to ``last_seq``; nothing was stored.
        """
        self._require_phase(record, "closed")
        with self.transaction():
            self._writer.settle(record, verdicts, self._tombstone_days)
            before = self.latest_checkpoint(record.task)
            self._checkpoints.put(
                record.task,
                record.number,
                program=record.program,
                parameters=parameters,
                server_state=server_state,
                metrics=metrics,
                broadcast=broadcast,
                kept_round=kept_round,
            )
            made = self.latest_checkpoint(record.task)
            assert made is not None
            base = made if before is None else before
            self._deltas.follow(record.task, record.number, base.parameters_digest, made.parameters_digest, model_delta)
            self._lineage.advance()
        return made

    def abandon_round(self, record: RoundRecord, verdicts: Mapping[bytes, Verdict]) -> None:
        """End a round in phase "abandoned" like ``commit_round``, without a checkpoint; nothing can be counted.

        Raises:
            StateError: As for ``commit_round``.
        """
        self._require_phase(record, "abandoned")
        with self.transaction():
            self._writer.settle(record, verdicts, self._tombstone_days)
            self._lineage.advance()

    def set_metrics(self, task: str, round: int, metrics: Mapping[str, Any]) -> None:
        """Replace the metrics of a closed round, in its checkpoint and in its summary (key "metrics").

        An evaluation ends after its round; of a round whose checkpoint is gone already only the summary is changed.

        Raises:
            StateError: The round is not closed.
        """
        with self.transaction():
            self._writer.set_metrics(task, round, metrics)
            self._checkpoints.set_metrics(task, round, metrics)

    def put_initial(
        self,
        task: str,
        program: bytes,
        parameters: bytes,
        server_state: bytes,
        broadcast: Mapping[str, bytes] | None = None,
        *,
        before_round: int = 1,
    ) -> Checkpoint:
        """Store program and parameters as the checkpoint before the first round, unless the task was started before.

        Args:
            task: The task's name.
            program: Its program, as bytes.
            parameters: The parameters blob to begin from.
            server_state: What the pipeline remembers.
            broadcast: Blobs of the vectors that devices get beside the parameters, by name.
            before_round: Number of the first round; the checkpoint's own is one less.

        Returns:
            The task's latest checkpoint.

        Raises:
            StateError: The task was started with another program.
        """
        return self._checkpoints.put_initial(task, program, parameters, server_state, broadcast, before_round - 1)

    def forget_task(self, task: str) -> None:
        """Delete all that is known of a task, so that ``put_initial`` begins it anew.

        A new lineage begins with it: devices would take a round whose number and attempt they know for the same one.
        Open rounds of other tasks are abandoned and tried again.
        """
        with self.transaction():
            self.new_lineage()
            self._checkpoints.forget(task)
            self._writer.forget(task)

    # -- blobs, devices, counters, retained topics -----------------------------------------------------------------

    def put_blob(self, data: bytes, kind: str) -> bytes:
        """Store bytes under their SHA-256, which is returned; storing them again costs nothing."""
        return self._blobs.put(data, kind)

    def drop_blobs(self, keep: set[bytes]) -> int:
        """Delete all blobs but ``keep`` and those of checkpoints and open rounds; returns how many went."""
        return self._blobs.drop_others(keep)

    def device_seen(self, rows: Sequence[DeviceRow]) -> None:
        """Note check-ins ``(device, instance, capabilities)``; a changed instance is counted."""
        left_out = self._devices.seen(rows)
        if left_out:
            self.count("devices_full", left_out)

    def count(self, reason: str, n: int = 1) -> None:
        """Count a message under a reason; it is written with the next transaction that writes."""
        self._counters.count(reason, n)

    def retained_add(self, *topics: str) -> None:
        """Note topics *before* a retained message is published there."""
        self._retained.add(topics)

    def retained_remove(self, *topics: str) -> None:
        """Forget topics *after* their retained message was cleared."""
        self._retained.remove(topics)

    # -- upkeep ----------------------------------------------------------------------------------------------------

    @property
    def journal_bytes(self) -> int:
        """Payload bytes in the journal."""
        return self._journal.held_bytes

    @property
    def partial_bytes(self) -> int:
        """Bytes charged for unfinished uploads."""
        return self._partials.held_bytes

    def backup(self, path: Path) -> None:
        """Write a copy without any device's updates, replacing ``path`` at once; the coordinator may be running.

        A copy that is put back later is recognised as older: it begins a new lineage and abandons its open round, so
        updates in it would be of no use.

        Raises:
            StateError: The copy cannot be written.
        """
        write_backup(self._database, path)

    def _abandon_restored(self, task: str) -> None:
        record = self.open_round(task)
        assert record is not None
        verdicts = {
            ticket.ticket: ("refused" if ticket.state == "journalled" else "missing", "restored")
            for ticket in self.tickets(task, record.number, record.attempt)
            if ticket.state in ("invited", "accepted", "journalled")
        }
        self._writer.settle(
            RoundRecord(
                task=task,
                number=record.number,
                attempt=record.attempt,
                phase="abandoned",
                seconds_remaining=0.0,
                base=record.base,
                program=record.program,
                last_seq=record.last_seq,
                reason="restored",
                summary=record.summary,
                started_at=record.started_at,
            ),
            verdicts,
            self._tombstone_days,
        )

    @staticmethod
    def _require_phase(record: RoundRecord, phase: str) -> None:
        if record.phase != phase:
            raise StateError(f"round {record.number}: phase is {record.phase!r}, expected {phase!r}")
