"""Reading the store, also from another process while the coordinator runs."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from coordinator.store.blobs import Blobs, Checkpoints, Retained
from coordinator.store.counters import Counters
from coordinator.store.database import Database
from coordinator.store.devices import Devices
from coordinator.store.journal import Journal
from coordinator.store.model_deltas import ModelDeltas
from coordinator.store.records import Checkpoint, DeviceRecord, ModelDeltaRecord, RoundRecord, TicketRecord
from coordinator.store.rounds import Rounds

__all__ = ["StoreReader"]


class StoreReader:
    """What can be asked of the store; made by ``Store.open_readonly(path)``."""

    def __init__(
        self,
        database: Database,
        rounds: Rounds,
        blobs: Blobs,
        checkpoints: Checkpoints,
        devices: Devices,
        counters: Counters,
        retained: Retained,
        deltas: ModelDeltas,
    ) -> None:
        self._database = database
        self._rounds = rounds
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._devices = devices
        self._counters = counters
        self._retained = retained
        self._deltas = deltas

    @classmethod
    def open(cls, path: Path) -> StoreReader:
        """Open the database for reading only.

        Raises:
            StateError: There is no such database, or its schema is not the one that this version reads.
        """
        database = Database(path, wall=time.time, readonly=True)
        blobs = Blobs(database)
        return StoreReader(
            database,
            Rounds(database, Journal(database, None, bytes_max=0)),
            blobs,
            Checkpoints(database, blobs, wall=time.time, kept=0),
            Devices(database, wall=time.time, devices_max=0),
            Counters(database),
            Retained(database),
            ModelDeltas(database, blobs),
        )

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def lineage(self) -> bytes:
        """The federation lineage: 8 random bytes, new for a new or restored database (rule 2)."""
        return bytes.fromhex(str(self._database.meta("lineage")))

    @property
    def incarnation(self) -> int:
        """How often a coordinator was started on this database."""
        return int(self._database.meta("incarnation") or 0)

    def tasks(self) -> list[str]:
        """The tasks that have begun, by name."""
        return self._checkpoints.tasks()

    def open_round(self, task: str) -> RoundRecord | None:
        """The round of ``task`` that is not closed or abandoned, or None."""
        return self._rounds.open_round(task)

    def rounds(self, task: str, limit: int = 20) -> list[RoundRecord]:
        """The last ``limit`` rounds of ``task``, the newest first."""
        return self._rounds.rounds(task, limit)

    def ticket(self, ticket: bytes) -> TicketRecord | None:
        """A ticket of an open round, or of one that ended within the days that tombstones are kept; else None."""
        return self._rounds.ticket(ticket)

    def tickets(self, task: str, round: int, attempt: int) -> list[TicketRecord]:
        """All tickets of one round, in the order in which they were inserted."""
        return self._rounds.tickets(task, round, attempt)

    def latest_checkpoint(self, task: str) -> Checkpoint | None:
        """The newest checkpoint of ``task``, or None before ``put_initial``."""
        return self._checkpoints.latest(task)

    def checkpoints(self, task: str, limit: int = 100_000) -> list[Checkpoint]:
        """The checkpoints of ``task`` that are kept, the newest first."""
        return self._checkpoints.newest(task, limit)

    def deltas(self, task: str) -> list[ModelDeltaRecord]:
        """The model deltas that lead to the newest parameters, in the order of their rounds."""
        return self._deltas.all(task)

    def broadcast(self, task: str) -> tuple[tuple[str, bytes, int], ...]:
        """``(name, digest, bytes)`` of the vectors that devices get beside the newest parameters, by name."""
        return self._checkpoints.broadcast(task)

    def get_blob(self, digest: bytes) -> bytes | None:
        """The bytes with this SHA-256, or None."""
        return self._blobs.get(digest)

    def blob_range(self, digest: bytes, start: int, stop: int) -> bytes | None:
        """Bytes ``start..stop`` of a blob, or None if there is none; only the parts asked for are read.

        Raises:
            StateError: The range is not within the blob.
        """
        return self._blobs.range(digest, start, stop)

    def blob_bytes(self, digest: bytes) -> int | None:
        """The length of a blob in bytes, or None if there is no such blob."""
        return self._blobs.size(digest)

    def devices(self) -> list[DeviceRecord]:
        """All devices that ever checked in, by name."""
        return self._devices.all()

    def device(self, name: str) -> DeviceRecord | None:
        """What is known of one device."""
        return self._devices.one(name)

    def population(self, seen_within_seconds: float) -> int:
        """How many devices checked in within so many seconds."""
        return self._devices.population(seen_within_seconds)

    def counters(self) -> dict[str, int]:
        """The message counters by reason."""
        return self._counters.all()

    def retained(self) -> list[str]:
        """The topics that hold a retained message of ours, sorted (so that offsets of one blob stand together)."""
        return self._retained.all()
