"""Chunks of updates on their way in: checked, stored in one go per turn, acknowledged one by one (rule 5)."""

from __future__ import annotations

from coordinator.store import ChunkRefused, Store
from edge_sdk.messages import Chunk, Have, Verdict
from edge_sdk.mqtt import Delivery
from edge_sdk.transfer import RANGES_MAX, Ranges

__all__ = ["Uploads"]

BUSY_SECONDS = 15.0

Buffered = tuple[str, Chunk, Delivery]


class Uploads:
    """The partial updates of the open round.

    Args:
        store: Keeps the chunks, under its byte quotas.
        update_bytes_max: Largest update accepted, in bytes.
    """

    def __init__(self, store: Store, *, update_bytes_max: int) -> None:
        self._store = store
        self._update_bytes_max = update_bytes_max
        self._held: dict[bytes, tuple[bytes, Ranges]] = {}
        self._buffer: list[Buffered] = []

    def clear(self) -> None:
        """A new round: nothing is held in memory."""
        self._held.clear()
        self._buffer.clear()

    def forget(self, ticket: bytes) -> None:
        self._held.pop(ticket, None)

    def ranges(self, ticket: bytes, digest: bytes, total: int) -> Ranges:
        """What is stored of this update; chunks of another digest under the same ticket are dropped.

        (A device that lost its outbox may train again for the same ticket and come with other bytes.)
        """
        held = self._held.get(ticket)
        if held is not None and held[0] != digest:
            self._store.drop_partials(ticket)
            held = None
        if held is None:
            stored = Ranges(self._store.ranges(ticket, digest))
            self._held[ticket] = held = (digest, stored)
        return held[1]

    @staticmethod
    def have(ticket: bytes, digest: bytes, ranges: Ranges) -> Have:
        """The answer to an offer."""
        return Have(ticket=ticket, digest=digest, ranges=tuple(ranges)[:RANGES_MAX])

    def check(self, chunk: Chunk) -> Verdict | None:
        """A refusal where the chunk claims what it may not, before anything is stored."""
        if chunk.total > self._update_bytes_max:
            reason = f"oversize: {chunk.total} bytes, at most {self._update_bytes_max}"
            return Verdict(ticket=chunk.ticket, digest=chunk.digest, outcome="refused", reason=reason)
        if not chunk.data or chunk.offset + len(chunk.data) > chunk.total:
            reason = f"range: {chunk.offset} + {len(chunk.data)} of {chunk.total} bytes"
            return Verdict(ticket=chunk.ticket, digest=chunk.digest, outcome="refused", reason=reason)
        return None

    @staticmethod
    def busy(chunk: Chunk) -> Verdict:
        """Retryable: the worker's queue or a quota is full (rule 14)."""
        return Verdict(
            ticket=chunk.ticket, digest=chunk.digest, outcome="busy", reason="busy", retry_seconds=BUSY_SECONDS
        )

    def add(self, device: str, chunk: Chunk, acknowledgement: Delivery) -> None:
        """Takes a chunk into this turn's batch."""
        self._buffer.append((device, chunk, acknowledgement))

    def flush(self) -> list[tuple[str, Chunk, Delivery, Verdict | None]]:
        """Stores the batch; each chunk comes back with its acknowledgement, and a verdict where it was refused."""
        buffer, self._buffer = self._buffer, []
        refused: dict[bytes, Verdict] = {}
        while rows := [entry for entry in buffer if entry[1].ticket not in refused]:
            try:
                self._store.put_chunks([(c.ticket, c.digest, c.total, c.offset, c.data) for _, c, _ in rows])
                break
            except ChunkRefused as error:
                for _, chunk, _ in rows:
                    if chunk.ticket in error.tickets:
                        refused[chunk.ticket] = self._refusal(chunk, error)
        for _, chunk, _ in rows:
            known = self.ranges(chunk.ticket, chunk.digest, chunk.total)
            self._held[chunk.ticket] = (chunk.digest, known.add(chunk.offset, chunk.offset + len(chunk.data)))
        return [(device, chunk, number, refused.get(chunk.ticket)) for device, chunk, number in buffer]

    def complete(self, chunk: Chunk) -> bool:
        held = self._held.get(chunk.ticket)
        return held is not None and held[0] == chunk.digest and held[1].covers(chunk.total)

    def _refusal(self, chunk: Chunk, error: ChunkRefused) -> Verdict:
        if error.reason == "busy":
            return self.busy(chunk)
        return Verdict(ticket=chunk.ticket, digest=chunk.digest, outcome="refused", reason=str(error)[:400])
