"""Chunks of updates on their way in: checked, stored in one go per turn, acknowledged one by one (rule 5).

Which ranges are held is said by the store alone, so that what is called complete can also be put together.
"""

from __future__ import annotations

from coordinator.store import ChunkRefused, Store
from edge_sdk.mqtt import Delivery
from edge_sdk.wire.messages import Chunk, Have

__all__ = ["Uploads"]

Buffered = tuple[str, Chunk, Delivery]


class Uploads:
    """The partial updates of the open round.

    Args:
        store: Keeps the chunks, under its limits for bytes and for separate ranges.
        update_bytes_max: Largest update accepted, in bytes.
        chunk_bytes_max: Largest chunk that devices are asked to send, in bytes.
    """

    def __init__(self, store: Store, *, update_bytes_max: int, chunk_bytes_max: int) -> None:
        self._store = store
        self._update_bytes_max = update_bytes_max
        self._chunk_bytes_max = chunk_bytes_max
        self._digests: dict[bytes, bytes] = {}
        self._buffer: list[Buffered] = []

    def clear(self) -> None:
        """A new round: nothing is held in memory."""
        self._digests.clear()
        self._buffer.clear()

    def offered(self, ticket: bytes, digest: bytes) -> Have:
        """The answer to an offer: what is stored of this update.

        A device that lost its outbox may train again for the same ticket and come with other bytes: what is held of
        the earlier ones is dropped, and chunks of them that are still under way are ignored.
        """
        ranges = self._store.ranges(ticket, digest)
        if self._digests.get(ticket) != digest and not ranges:
            self._store.drop_partials(ticket)
        self._digests[ticket] = digest
        return Have(ticket=ticket, digest=digest, ranges=tuple(ranges), chunk_bytes_max=self._chunk_bytes_max)

    def why_not(self, total: int, offset: int = 0, length: int = 1) -> str:
        """Why an update of ``total`` bytes, or this range of it, cannot be taken; empty where it can."""
        if total > self._update_bytes_max:
            return "oversize"
        return "" if length and offset + length <= total else "range"

    def stale(self, chunk: Chunk) -> bool:
        """Whether the device has offered other bytes for this ticket since it sent this chunk."""
        return self._digests.get(chunk.ticket, chunk.digest) != chunk.digest

    def add(self, device: str, chunk: Chunk, acknowledgement: Delivery) -> None:
        """Takes a chunk into this turn's batch."""
        self._buffer.append((device, chunk, acknowledgement))

    def flush(self) -> list[tuple[str, Chunk, Delivery, str]]:
        """Stores the batch; each chunk comes back with its acknowledgement, and the reason where it was refused."""
        buffer, self._buffer = self._buffer, []
        refused: dict[bytes, str] = {}
        while rows := [chunk for _, chunk, _ in buffer if chunk.ticket not in refused]:
            try:
                self._store.put_chunks([(c.ticket, c.digest, c.total, c.offset, c.data) for c in rows])
                break
            except ChunkRefused as error:
                culprits = error.tickets & {chunk.ticket for chunk in rows}
                refused.update(dict.fromkeys(culprits or {chunk.ticket for chunk in rows}, error.reason))
        return [(device, chunk, receipt, refused.get(chunk.ticket, "")) for device, chunk, receipt in buffer]

    def complete(self, chunk: Chunk) -> bool:
        """Whether every byte of this chunk's update is stored."""
        return self._store.ranges(chunk.ticket, chunk.digest) == [(0, chunk.total)]
