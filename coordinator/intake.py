"""Updates on their way in: offers answered, chunks stored in one go a turn and acknowledged one by one (rule 5), whole
updates handed to the worker.

Which ranges are held is said by the store alone, so that what is called complete can also be put together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from coordinator.advice import explain
from coordinator.events import BULK, Acknowledge, Effect, IngestItem, Workers
from coordinator.schedules.schedule import (
    Action,
    Admit,
    Event,
    Offered,
    Schedule,
    UpdateArrived,
    UpdateRefused,
)
from coordinator.schedules.tickets import Ticket
from coordinator.store import ChunkRefused, Store
from edge_sdk.mqtt import Delivery
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.messages import DIGEST_BYTES, Chunk, Have, Message, Offer, Verdict, short
from edge_sdk.wire.outcomes import ACCEPTED, ADMITTED, BUSY, INVITED, LATE, REFUSED

__all__ = ["BUSY", "BUSY_SECONDS", "Intake", "TicketDesk"]

BUSY_SECONDS: Final = 15.0


class TicketDesk(Protocol):
    """Whoever knows the tickets of a task and speaks to its devices (``coordinator/task.py``)."""

    name: str

    @property
    def schedule(self) -> Schedule | None:
        """The open round, None between rounds."""

    def holder(self, device: str, ticket: bytes) -> Ticket | None:
        """The ticket, if it is of the open round and the device's own."""

    def verdict_on(self, device: str, ticket: bytes) -> Verdict:
        """What a device that asks after a ticket may be told."""

    def advance(self, event: Event, now: float) -> None:
        """Lets the schedule take an event, and performs what follows."""

    @property
    def update_bytes_max(self) -> int:
        """Largest update that the open round takes, in bytes."""

    def perform(self, actions: list[Action], now: float) -> None:
        """Performs actions of the schedule."""

    def say(self, device: str, message: Message) -> None:
        """Sends an answer to one device."""


class Intake:
    """The updates of one task's open round.

    Args:
        desk: The task.
        store: Keeps the chunks, under its limits for bytes and for separate ranges.
        workers: Where whole updates go.
        effects: Where the turn's effects are gathered.
        lineage: The database's lineage: an update for another one is a stranger's.
        chunk_bytes_max: Largest chunk that devices are asked to send, in bytes.
    """

    def __init__(
        self,
        desk: TicketDesk,
        store: Store,
        workers: Workers,
        effects: list[Effect],
        *,
        lineage: bytes,
        chunk_bytes_max: int,
    ) -> None:
        self._desk = desk
        self._store = store
        self._workers = workers
        self._effects = effects
        self._lineage = lineage
        self._chunk_bytes_max = chunk_bytes_max
        self._digests: dict[bytes, bytes] = {}  # what each ticket has offered last
        self._chunks: list[tuple[str, Chunk, Delivery]] = []

    def begin(self) -> None:
        """A new round: nothing is held in memory."""
        self._digests.clear()
        self._chunks.clear()

    def on_offer(self, device: str, offer: Offer, lineage: bytes, now: float) -> None:
        """Answers an offer with what is stored of the update, or with the verdict that ends it."""
        answer = self._refusal(device, offer.ticket, offer.digest, lineage, now)
        if answer is not None:
            self._desk.say(device, answer)
            return
        self._desk.advance(Offered(offer.ticket), now)
        why_not = self._why_not(offer.total)
        if why_not:
            self._refuse(offer.ticket, why_not, now)
            return
        have = self._held(offer.ticket, offer.digest)
        self._desk.say(device, have)
        if have.ranges == ((0, offer.total),):
            self._arrived_whole(offer.ticket, offer.digest, None, None, now)

    def on_chunk(self, device: str, chunk: Chunk, lineage: bytes, acknowledgement: Delivery, now: float) -> bool:
        """Stores or hands on one chunk; True where its PUBACK is given later."""
        named = chunk.digest
        if not chunk.total:
            chunk = replace(chunk, digest=self._digest_of(chunk), total=len(chunk.data))
        answer = self._refusal(device, chunk.ticket, chunk.digest, lineage, now)
        if answer is not None:
            self._desk.say(device, answer)
            return False
        held = self._desk.holder(device, chunk.ticket)
        assert held is not None
        stale = self._digests.get(chunk.ticket, chunk.digest) != chunk.digest
        if held.state == ADMITTED or stale:
            return False  # a duplicate of what the worker has already, or of what the device has given up
        why_not = self._why_not(chunk.total, chunk.offset, len(chunk.data))
        if not chunk.digest.startswith(named) or len(chunk.digest) != DIGEST_BYTES:
            why_not = "digest"
        if why_not:
            self._refuse(chunk.ticket, why_not, now)
            return False
        if self._workers.busy():
            self._desk.say(device, _busy(chunk.ticket, chunk.digest))
            return False
        if len(chunk.data) == chunk.total:
            self._arrived_whole(chunk.ticket, chunk.digest, chunk.data, acknowledgement, now)
        else:
            self._chunks.append((device, chunk, acknowledgement))
        return True

    def _digest_of(self, chunk: Chunk) -> bytes:
        """The whole digest of an update that has come in one chunk, which names it in short."""
        offered = self._digests.get(chunk.ticket, b"")
        return offered if offered and offered.startswith(chunk.digest) else digest_of(chunk.data)

    def flush(self, now: float) -> None:
        """Stores the turn's chunks in one go, then acknowledges them, each for itself."""
        chunks, self._chunks = self._chunks, []
        refused = self._stored(chunks)
        for device, chunk, acknowledgement in chunks:
            self._effects.append(Acknowledge(BULK, acknowledgement))
            why_not = refused.get(chunk.ticket, "")
            if why_not == BUSY:
                self._store.count(why_not)
                self._desk.say(device, _busy(chunk.ticket, chunk.digest))
            elif why_not:
                self._refuse(chunk.ticket, why_not, now)
            elif self._store.ranges(chunk.ticket, chunk.digest) == [(0, chunk.total)]:
                self._arrived_whole(chunk.ticket, chunk.digest, None, None, now)

    def _stored(self, chunks: list[tuple[str, Chunk, Delivery]]) -> dict[bytes, str]:
        """The tickets whose chunks the store does not take, with the reason; all others are stored."""
        refused: dict[bytes, str] = {}
        while rows := [chunk for _, chunk, _ in chunks if chunk.ticket not in refused]:
            try:
                self._store.put_chunks([(c.ticket, c.digest, c.total, c.offset, c.data) for c in rows])
                break
            except ChunkRefused as error:
                culprits = error.tickets & {chunk.ticket for chunk in rows}
                refused.update(dict.fromkeys(culprits or {chunk.ticket for chunk in rows}, error.reason))
        return refused

    def _held(self, ticket: bytes, digest: bytes) -> Have:
        """What is stored of this update.

        A device that lost its outbox may train again for the same ticket and come with other bytes: what is held of
        the earlier ones is dropped, and chunks of them that are still under way are ignored.
        """
        ranges = self._store.ranges(ticket, digest)
        if self._digests.get(ticket) != digest and not ranges:
            self._store.drop_partials(ticket)
        self._digests[ticket] = digest
        return Have(ticket=ticket, digest=short(digest), ranges=tuple(ranges), chunk_bytes_max=self._chunk_bytes_max)

    def _why_not(self, total: int, offset: int = 0, length: int = 1) -> str:
        """Why an update of ``total`` bytes, or this range of it, cannot be taken; empty where it can."""
        if total > self._desk.update_bytes_max:
            return "oversize"
        return "" if length and offset + length <= total else "range"

    def _refuse(self, ticket: bytes, reason: str, now: float) -> None:
        """Ends a ticket whose update cannot be taken, unless a whole one is under way already."""
        self._store.count(reason)
        schedule = self._desk.schedule
        held = schedule.tickets.get(ticket) if schedule is not None else None
        if held is not None and held.state in (INVITED, ACCEPTED):
            self._desk.advance(UpdateRefused(ticket, reason), now)

    def _refusal(self, device: str, ticket: bytes, digest: bytes, lineage: bytes, now: float) -> Verdict | None:
        """The verdict that ends an upload before anything of it is read; None where it is welcome."""
        held, schedule = self._desk.holder(device, ticket), self._desk.schedule
        if held is None or schedule is None or lineage != self._lineage:
            verdict = self._desk.verdict_on(device, ticket)
            self._store.count(f"upload_{verdict.outcome}")
            return Verdict(ticket=ticket, digest=short(digest), outcome=verdict.outcome, reason=verdict.reason)
        if held.state in (INVITED, ACCEPTED):
            if schedule.takes_updates:
                return None
            self._store.count("upload_late")
            self._desk.advance(Offered(ticket), now)
            return Verdict(ticket=ticket, digest=short(digest), outcome=LATE, reason=explain("closed"))
        if held.state == ADMITTED and held.digest == digest:
            return None
        if held.digest not in (b"", digest):
            self._store.count("upload_spent")
            return Verdict(ticket=ticket, digest=short(digest), outcome=REFUSED, reason=explain("spent"))
        self._store.count("upload_duplicate")
        verdict = self._desk.verdict_on(device, ticket)
        return Verdict(ticket=ticket, digest=short(digest), outcome=verdict.outcome, reason=verdict.reason)

    def _arrived_whole(
        self, ticket: bytes, digest: bytes, payload: bytes | None, acknowledgement: Delivery | None, now: float
    ) -> None:
        schedule = self._desk.schedule
        assert schedule is not None
        actions = schedule.handle(UpdateArrived(ticket, digest), now)
        admitted = any(isinstance(action, Admit) for action in actions)
        self._desk.perform(actions, now)
        if admitted:
            self._workers.ingest(IngestItem(self._desk.name, ticket, digest, payload, acknowledgement))
        elif acknowledgement is not None:
            self._effects.append(Acknowledge(BULK, acknowledgement))


def _busy(ticket: bytes, digest: bytes) -> Verdict:
    """Retryable: the worker's queue or a quota is full (rule 14)."""
    return Verdict(ticket=ticket, digest=short(digest), outcome=BUSY, reason=BUSY, retry_seconds=BUSY_SECONDS)
