"""The model deltas that lead to the newest parameters of a task (see ``edge_sdk/training/model_delta.py``)."""

from __future__ import annotations

from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.delta_ways import deltas_kept
from coordinator.store.records import ModelDeltaRecord, NewDelta

__all__ = ["ModelDeltas"]


class ModelDeltas:
    """Model deltas by task; only what a device may still be given is kept (rule 14)."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def follow(self, task: str, round_number: int, base: bytes, target: bytes, new: NewDelta | None) -> None:
        """Add the step from ``base`` to ``target``, inside the caller's transaction; without one, the chain ends."""
        chain = self.all(task)
        if new is not None and base != target:
            made = [ModelDeltaRecord(round_number, 1, base, target, *self._put(new.model_delta))]
            for rounds, start, data in new.merged:
                made.append(ModelDeltaRecord(round_number, rounds, start, target, *self._put(data)))
            self._database.write_many(
                "INSERT INTO model_deltas (task, round, rounds, base, target, digest, bytes) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(task, *record) for record in made],
            )
            chain += made
        kept = deltas_kept(chain, new)
        gone = [record for record in chain if record not in kept]
        self._database.write_many(
            "DELETE FROM model_deltas WHERE task = ? AND round = ? AND rounds = ?",
            [(task, record.round, record.rounds) for record in gone],
        )
        self._blobs.drop_unused([record.digest for record in gone])

    def all(self, task: str) -> list[ModelDeltaRecord]:
        """All of them, in the order of their rounds."""
        rows = self._database.rows(
            "SELECT round, rounds, base, target, digest, bytes FROM model_deltas WHERE task = ? ORDER BY round, rounds",
            (task,),
        )
        return [ModelDeltaRecord(*row) for row in rows]

    def _put(self, data: bytes) -> tuple[bytes, int]:
        return self._blobs.put(data, "model_delta"), len(data)
