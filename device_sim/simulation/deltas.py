"""The model deltas of a simulated coordinator, in memory: which there are, and what a client has to fetch of them."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.downlink import merged_deltas
from coordinator.store import ModelDeltaRecord, NewDelta, deltas_kept, way_from
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.messages import short

__all__ = ["Deltas"]


class Deltas:
    """Kept as the database keeps them."""

    def __init__(self) -> None:
        self._there: list[ModelDeltaRecord] = []
        self._bytes: dict[bytes, bytes] = {}

    def follow(self, number: int, base: bytes, target: bytes, new: NewDelta | None) -> None:
        """A round has led from one model to another, by SHA-256; without a model delta the chain ends."""
        if new is not None and base != target:
            new = merged_deltas(new, number, self._there, self._bytes.get)
            for rounds, start, data in ((1, base, new.model_delta), *new.merged):
                record = ModelDeltaRecord(number, rounds, start, target, digest_of(data), len(data))
                self._there.append(record)
                self._bytes[record.digest] = data
        self._there = deltas_kept(self._there, new)
        self._bytes = {delta.digest: self._bytes[delta.digest] for delta in self._there}

    def bytes_from(self, holds: Collection[bytes]) -> int:
        """Bytes that lead from what a client holds, by SHA-256, to the newest model; 0 where there is no way."""
        return sum(delta.bytes for delta in way_from(self._there, [short(digest) for digest in holds]))
