"""Content by its SHA-256 (programs, parameters, deltas), the checkpoints that refer to it, and retained topics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Final

from coordinator.store.database import Database
from coordinator.store.records import Checkpoint
from edge_sdk.errors import StateError

__all__ = ["Blobs", "Checkpoints", "Retained"]

PART_BYTES: Final = 64 << 10

_USED: Final = (
    "SELECT parameters FROM checkpoints",
    "SELECT program FROM checkpoints",
    "SELECT digest FROM model_deltas",
    "SELECT digest FROM broadcasts",
    "SELECT base FROM rounds WHERE NOT ended",
    "SELECT program FROM rounds WHERE NOT ended",
)
"""Where a blob may be named that is still of use."""


class Blobs:
    """Blobs in parts of 64 KiB, so that a range is read without the rest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, data: bytes, kind: str) -> bytes:
        digest = hashlib.sha256(data).digest()
        with self._database.transaction():
            if self.size(digest) is None:
                self._database.write(
                    "INSERT INTO blobs (digest, kind, bytes) VALUES (?, ?, ?)", (digest, kind, len(data))
                )
                self._database.write_many(
                    "INSERT INTO blob_parts (blob, part, data) SELECT id, ?, ? FROM blobs WHERE digest = ?",
                    (
                        (part, data[start : start + PART_BYTES], digest)
                        for part, start in enumerate(range(0, len(data), PART_BYTES))
                    ),
                )
        return digest

    def get(self, digest: bytes) -> bytes | None:
        with self._database.reading():
            size = self.size(digest)
            return None if size is None else self._read(digest, 0, size)

    def range(self, digest: bytes, start: int, stop: int) -> bytes | None:
        with self._database.reading():
            size = self.size(digest)
            if size is None:
                return None
            if not 0 <= start <= stop <= size:
                raise StateError(f"blob {digest.hex()[:16]}: has {size} bytes, so there is no range {start}..{stop}")
            return self._read(digest, start, stop)

    def drop_others(self, keep: Set[bytes]) -> int:
        """Delete every blob but ``keep`` and those in use (checkpoints, deltas, open rounds); returns how many went."""
        with self._database.transaction():
            found = self._database.rows(" EXCEPT ".join(("SELECT digest FROM blobs", *_USED)))
            gone = [row for row in found if row[0] not in keep]
            self._database.write_many("DELETE FROM blobs WHERE digest = ?", gone)
        return len(gone)

    def drop_unused(self, digests: Iterable[bytes]) -> None:
        """Delete those of some blobs that nothing refers to, inside the caller's transaction."""
        unused = " EXCEPT ".join(("SELECT ?", *_USED))
        self._database.write_many(f"DELETE FROM blobs WHERE digest IN ({unused})", [(digest,) for digest in digests])

    def size(self, digest: bytes) -> int | None:
        row = self._database.row("SELECT bytes FROM blobs WHERE digest = ?", (digest,))
        return None if row is None else int(row[0])

    def _read(self, digest: bytes, start: int, stop: int) -> bytes:
        if start == stop:
            return b""
        first, last = start // PART_BYTES, (stop - 1) // PART_BYTES
        rows = self._database.rows(
            "SELECT p.data FROM blob_parts p JOIN blobs b ON b.id = p.blob "
            "WHERE b.digest = ? AND p.part BETWEEN ? AND ? ORDER BY p.part",
            (digest, first, last),
        )
        skipped = first * PART_BYTES
        return b"".join(data for (data,) in rows)[start - skipped : stop - skipped]


class Checkpoints:
    """The last few states of every task."""

    def __init__(self, database: Database, blobs: Blobs, *, wall: Callable[[], float], kept: int) -> None:
        self._database = database
        self._blobs = blobs
        self._wall = wall
        self._kept = kept

    def put(
        self,
        task: str,
        round_number: int,
        *,
        program: bytes,
        parameters: bytes,
        server_state: bytes,
        metrics: Mapping[str, Any],
        broadcast: Mapping[str, bytes] | None = None,
        kept_round: int | None = None,
    ) -> None:
        """Add a checkpoint (``program``: a stored blob's digest; ``parameters``: bytes) and drop the oldest ones.

        The one of ``kept_round`` stays, however old it is. ``broadcast`` is what devices get beside the parameters
        (bytes by name), in place of what they got before.
        """
        with self._database.transaction():
            self._retire(task, program, kept_round)
            self._broadcast(task, broadcast or {})
            self._database.write(
                "INSERT INTO checkpoints (task, round, parameters, program, server_state, metrics, made_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    task,
                    round_number,
                    self._blobs.put(parameters, "parameters"),
                    program,
                    server_state,
                    json.dumps(dict(metrics)),
                    self._wall(),
                ),
            )

    def tasks(self) -> list[str]:
        """Every task that has a checkpoint, by name."""
        return [name for (name,) in self._database.rows("SELECT DISTINCT task FROM checkpoints ORDER BY task")]

    def _retire(self, task: str, program: bytes, kept_round: int | None) -> None:
        """Makes room for one more, before it is written: what goes leaves its pages to what comes."""
        newest_first = "SELECT id FROM checkpoints WHERE task = ? ORDER BY round DESC LIMIT -1 OFFSET ?"
        oldest = f"id IN ({newest_first}) AND round IS NOT ?"
        beyond = (task, self._kept - 1, kept_round)
        gone = self._database.rows(f"SELECT parameters FROM checkpoints WHERE {oldest}", beyond)
        self._database.write(f"DELETE FROM checkpoints WHERE {oldest}", beyond)
        self._database.write(
            "UPDATE checkpoints SET server_state = x'' WHERE task = ? AND server_state <> x''", (task,)
        )
        self._blobs.drop_unused(digest for (digest,) in gone if digest != program)

    def _broadcast(self, task: str, vectors: Mapping[str, bytes]) -> None:
        before = self.broadcast(task)
        if not vectors and not before:
            return
        self._database.write("DELETE FROM broadcasts WHERE task = ?", (task,))
        for name, data in vectors.items():
            row = (task, name, self._blobs.put(data, "vector"))
            self._database.write("INSERT INTO broadcasts (task, name, digest) VALUES (?, ?, ?)", row)
        self._blobs.drop_unused(digest for _, digest, _ in before)

    def broadcast(self, task: str) -> tuple[tuple[str, bytes, int], ...]:
        """``(name, digest, bytes)`` of what devices get beside the newest parameters, by name."""
        rows = self._database.rows(
            "SELECT v.name, v.digest, b.bytes FROM broadcasts v JOIN blobs b ON b.digest = v.digest "
            "WHERE v.task = ? ORDER BY v.name",
            (task,),
        )
        return tuple((name, digest, size) for name, digest, size in rows)

    def put_initial(
        self,
        task: str,
        program: bytes,
        parameters: bytes,
        server_state: bytes,
        broadcast: Mapping[str, bytes] | None,
        number: int,
    ) -> Checkpoint:
        with self._database.transaction():
            standing = self.latest(task)
            digest = self._blobs.put(program, "program")
            if standing is None:
                self.put(
                    task,
                    number,
                    program=digest,
                    parameters=parameters,
                    server_state=server_state,
                    metrics={},
                    broadcast=broadcast,
                )
                standing = self.latest(task)
            if standing is None or standing.program_digest != digest:
                raise StateError(
                    f"task {task}: was started with another program; give the new model a new task name "
                    "(or a new state_dir), or put the old model back"
                )
            return standing

    def forget(self, task: str) -> None:
        """Delete all checkpoints of a task and what leads or belongs to them, inside the caller's transaction."""
        of_task = "SELECT {} FROM {} WHERE task = ?"
        named = (
            *(("parameters", "checkpoints"), ("program", "checkpoints")),
            *(("digest", "model_deltas"), ("digest", "broadcasts")),
        )
        digests = [digest for at in named for (digest,) in self._database.rows(of_task.format(*at), (task,))]
        for table in ("checkpoints", "model_deltas", "broadcasts"):
            self._database.write(f"DELETE FROM {table} WHERE task = ?", (task,))
        self._blobs.drop_unused(digests)

    def set_metrics(self, task: str, round_number: int, metrics: Mapping[str, Any]) -> None:
        """Replace the metrics of one checkpoint, inside the caller's transaction."""
        self._database.write(
            "UPDATE checkpoints SET metrics = ? WHERE task = ? AND round = ?",
            (json.dumps(dict(metrics)), task, round_number),
        )

    def latest(self, task: str) -> Checkpoint | None:
        return next(iter(self.newest(task, 1)), None)

    def newest(self, task: str, limit: int) -> list[Checkpoint]:
        rows = self._database.rows(
            "SELECT round, parameters, program, server_state, metrics "
            "FROM checkpoints WHERE task = ? ORDER BY round DESC LIMIT ?",
            (task, limit),
        )
        return [Checkpoint(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]


class Retained:
    """The topics that hold a retained message of ours (rule 7): a restarted coordinator can clear them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, topics: tuple[str, ...]) -> None:
        with self._database.transaction():
            self._database.write_many("INSERT OR IGNORE INTO retained (topic) VALUES (?)", [(t,) for t in topics])

    def remove(self, topics: tuple[str, ...]) -> None:
        with self._database.transaction():
            self._database.write_many("DELETE FROM retained WHERE topic = ?", [(t,) for t in topics])

    def all(self) -> list[str]:
        return [topic for (topic,) in self._database.rows("SELECT topic FROM retained ORDER BY topic")]
