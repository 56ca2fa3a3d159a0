"""The chain of deltas to the newest parameters of a task (see ``edge_sdk/training/model_delta.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.records import ModelDeltaRecord, NewDelta

__all__ = ["ModelDeltas", "deltas_kept"]


class ModelDeltas:
    """Model deltas by task, one a round; only what a device may still be given is kept (rule 14)."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def follow(self, task: str, round_number: int, base: bytes, target: bytes, new: NewDelta | None) -> None:
        """Add the step from ``base`` to ``target``, inside the caller's transaction; without one, the chain ends."""
        chain = self.all(task)
        if new is not None and base != target:
            digest = self._blobs.put(new.model_delta, "model_delta")
            chain.append(ModelDeltaRecord(round_number, base, target, digest, len(new.model_delta)))
            self._database.write(
                "INSERT INTO model_deltas (task, round, base, target, digest, bytes) VALUES (?, ?, ?, ?, ?, ?)",
                (task, *chain[-1]),
            )
        gone = chain[: len(chain) - len(deltas_kept(chain, new))]
        self._database.write_many(
            "DELETE FROM model_deltas WHERE task = ? AND round = ?", [(task, x.round) for x in gone]
        )
        self._blobs.drop_unused([model_delta.digest for model_delta in gone])

    def all(self, task: str) -> list[ModelDeltaRecord]:
        """The chain, the oldest model delta first."""
        rows = self._database.rows(
            "SELECT round, base, target, digest, bytes FROM model_deltas WHERE task = ? ORDER BY round", (task,)
        )
        return [ModelDeltaRecord(*row) for row in rows]


def deltas_kept(chain: Sequence[ModelDeltaRecord], new: NewDelta | None) -> list[ModelDeltaRecord]:
    """The newest deltas of a chain that stay, the oldest first: so many, and so many bytes, as the newest came with."""
    if new is None:
        return []
    total = 0
    for count, model_delta in enumerate(reversed(chain)):
        total += model_delta.bytes
        if count >= new.deltas_max or total > new.bytes_max:
            return list(chain[len(chain) - count :])
    return list(chain)
