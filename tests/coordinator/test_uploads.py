"""Chunks on their way in: what the store holds is the only truth about what is complete."""

from __future__ import annotations

import numpy as np
from wired import TASK, Desk

from coordinator.store import Store
from coordinator.uploads import Uploads
from edge_sdk.mqtt import Delivery
from edge_sdk.wire.messages import Chunk
from edge_sdk.wire.ranges import RANGES_MAX

A, B = b"a" * 32, b"b" * 32


class Counter:
    """An open round with some tickets, and its uploads."""

    def __init__(self, tickets: int = 2, **quotas: int) -> None:
        ids = np.random.Generator(np.random.PCG64(0))
        store = Store(":memory:", wall=lambda: 0.0, new_id=ids.bytes, **quotas)
        desk = Desk(store=store)
        invites = desk.begin(*(f"d{i}" for i in range(tickets)))
        self.store = desk.store
        self.tickets = [invite.ticket for invite in invites.values()]
        self.uploads = Uploads(desk.store, update_bytes_max=100_000, chunk_bytes_max=500)

    def chunk(self, offset: int, data: bytes, *, digest: bytes = A, total: int = 1000, ticket: int = 0) -> Chunk:
        return Chunk(ticket=self.tickets[ticket], digest=digest, total=total, offset=offset, data=data)

    def store_chunks(self, *chunks: Chunk) -> list[str]:
        for number, chunk in enumerate(chunks):
            self.uploads.add("d", chunk, Delivery("t", b"", False, number))
        flushed = self.uploads.flush()
        assert [receipt.acknowledgement for _, _, receipt, _ in flushed] == list(range(len(chunks)))
        return [reason for _, _, _, reason in flushed]


def test_chunks_in_any_order_are_complete_when_every_byte_is_stored() -> None:
    counter = Counter()
    pieces = [counter.chunk(at, bytes([at % 251]) * 100) for at in range(0, 1000, 100)]
    for piece in [*pieces[5:], *pieces[:4]]:
        assert counter.store_chunks(piece) == [""]
        assert not counter.uploads.complete(piece)
    counter.store_chunks(pieces[4])
    assert counter.uploads.complete(pieces[0])
    assert counter.store.assemble(counter.tickets[0], A) == b"".join(piece.data for piece in pieces)


def test_an_offer_is_answered_with_what_is_stored_and_the_largest_chunk() -> None:
    counter = Counter()
    counter.store_chunks(counter.chunk(0, b"x" * 100), counter.chunk(300, b"x" * 50))
    have = counter.uploads.offered(counter.tickets[0], A)
    assert have.ranges == ((0, 100), (300, 350)) and have.chunk_bytes_max == 500


def test_after_a_restart_the_answer_is_the_same() -> None:
    counter = Counter()
    counter.store_chunks(counter.chunk(0, b"x" * 100))
    again = Uploads(counter.store, update_bytes_max=100_000, chunk_bytes_max=500)
    assert again.offered(counter.tickets[0], A).ranges == ((0, 100),)


def test_other_bytes_for_the_same_ticket_replace_the_first_and_late_chunks_of_those_are_stale() -> None:
    counter = Counter()
    counter.uploads.offered(counter.tickets[0], A)
    counter.store_chunks(counter.chunk(0, b"x" * 600))
    assert counter.uploads.offered(counter.tickets[0], B).ranges == ()
    assert counter.store.ranges(counter.tickets[0], A) == []
    assert counter.uploads.stale(counter.chunk(600, b"x" * 400, digest=A))
    assert not counter.uploads.stale(counter.chunk(0, b"y", digest=B))


def test_chunks_of_two_digests_in_one_turn_never_make_a_whole_that_is_not_there() -> None:
    counter = Counter()
    first, second = counter.chunk(0, b"x" * 1000, digest=A), counter.chunk(0, b"y" * 500, digest=B)
    counter.store_chunks(first, second)
    assert counter.uploads.complete(first) and not counter.uploads.complete(second)
    assert counter.store.assemble(counter.tickets[0], A) == b"x" * 1000


def test_a_bad_chunk_costs_its_own_ticket_only() -> None:
    counter = Counter()
    good, bad = counter.chunk(0, b"x" * 1000, ticket=0), counter.chunk(0, b"x" * 10, ticket=1)
    counter.store_chunks(bad)
    reasons = counter.store_chunks(good, counter.chunk(0, b"x" * 10, ticket=1, total=77), good)
    assert reasons == ["", "malformed", ""]
    assert counter.uploads.complete(good)


def test_a_thousand_ranges_are_the_limit_whatever_a_device_sends() -> None:
    counter = Counter()
    chunks = [counter.chunk(at, b"x", total=50_000) for at in range(0, 2 * RANGES_MAX + 2, 2)]
    reasons = {reason for at in range(0, len(chunks), 100) for reason in counter.store_chunks(*chunks[at : at + 100])}
    assert reasons == {"", "malformed"}
    assert len(counter.uploads.offered(counter.tickets[0], A).ranges) <= RANGES_MAX


def test_a_full_quota_is_busy_and_the_other_devices_go_on() -> None:
    counter = Counter(partial_bytes_per_device_max=2048)
    reasons = counter.store_chunks(
        counter.chunk(0, b"x" * 1500, total=2000),
        counter.chunk(0, b"x" * 1000, ticket=1),
        counter.chunk(1500, b"x" * 500, total=2000),
    )
    assert reasons == ["busy", "", "busy"]
    assert counter.store.ranges(counter.tickets[0], A) == []


def test_sizes_and_ranges_that_cannot_be_are_refused_before_anything_is_stored() -> None:
    why_not = Counter().uploads.why_not
    assert why_not(100_001) == "oversize"
    assert why_not(100, 90, 11) == "range" and why_not(100, 0, 0) == "range"
    assert why_not(100_000) == why_not(100, 90, 10) == ""


def test_a_new_round_forgets_what_was_offered() -> None:
    counter = Counter()
    counter.uploads.offered(counter.tickets[0], A)
    counter.uploads.clear()
    assert not counter.uploads.stale(counter.chunk(0, b"x", digest=B))
    assert counter.store.open_round(TASK) is not None
