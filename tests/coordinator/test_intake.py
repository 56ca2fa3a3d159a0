"""Chunks on their way in: what the store holds is the only truth about what is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from wired import Desk, code

from coordinator.events import Acknowledge, IngestItem
from coordinator.store import Store
from edge_sdk.wire.messages import Chunk, Have, Invite, Offer, Verdict
from edge_sdk.wire.ranges import RANGES_MAX

A, B = b"a" * 32, b"b" * 32


class Counter:
    """An open round with two tickets, and what becomes of chunks that are sent for them."""

    def __init__(self, **quotas: Any) -> None:
        ids = np.random.Generator(np.random.PCG64(0))
        store = Store(":memory:", wall=lambda: 0.0, new_id=ids.bytes, **quotas)
        self.desk = Desk(store=store, update_bytes_max=100_000, chunk_bytes_max=500)
        invites = self.desk.begin("d0", "d1")
        self.store = self.desk.store
        self.tickets = [invites[f"d{number}"].ticket for number in range(2)]

    def chunk(self, offset: int, data: bytes, *, digest: bytes = A, total: int = 1000, ticket: int = 0) -> Chunk:
        return Chunk(ticket=self.tickets[ticket], digest=digest, total=total, offset=offset, data=data)

    def send(self, *chunks: Chunk) -> list[Verdict]:
        """All of them in one turn; each is acknowledged for itself. The verdicts on them."""
        arrived = [self.desk.arrived(f"d{self.tickets.index(chunk.ticket)}", chunk) for chunk in chunks]
        effects = self.desk.play(*arrived)
        receipts = [e.acknowledgement.acknowledgement for e in effects if isinstance(e, Acknowledge)]
        assert sorted(receipts) == [event.acknowledgement.acknowledgement for event in arrived]
        return [message for _, message in self.desk.said(Verdict, effects)]

    def offer(self, digest: bytes = A, *, total: int = 1000, ticket: int = 0) -> Have:
        device = f"d{ticket}"
        effects = self.desk.hear(device, Offer(ticket=self.tickets[ticket], digest=digest, total=total))
        (have,) = self.desk.told(device, Have, effects)
        return have

    def whole(self) -> list[bytes]:
        """Digests of the updates that were handed to the worker."""
        return [job.digest for job in self.desk.jobs.queue if isinstance(job, IngestItem)]


def test_chunks_in_any_order_are_complete_when_every_byte_is_stored() -> None:
    counter = Counter()
    pieces = [counter.chunk(at, bytes([at % 251]) * 100) for at in range(0, 1000, 100)]
    for piece in [*pieces[5:], *pieces[:4]]:
        assert not counter.send(piece) and not counter.whole()
    counter.send(pieces[4])
    assert counter.whole() == [A]
    assert counter.store.assemble(counter.tickets[0], A) == b"".join(piece.data for piece in pieces)


def test_an_offer_is_answered_with_what_is_stored_and_the_largest_chunk() -> None:
    counter = Counter()
    counter.send(counter.chunk(0, b"x" * 100), counter.chunk(300, b"x" * 50))
    have = counter.offer()
    assert have.ranges == ((0, 100), (300, 350)) and have.chunk_bytes_max == 500


def test_after_a_restart_the_answer_is_the_same() -> None:
    counter = Counter()
    counter.send(counter.chunk(0, b"x" * 100))
    counter.desk.crash()
    assert counter.offer().ranges == ((0, 100),)


def test_other_bytes_for_the_same_ticket_replace_the_first_and_late_chunks_of_those_are_stale() -> None:
    counter = Counter()
    counter.offer(A)
    counter.send(counter.chunk(0, b"x" * 600))
    assert counter.offer(B).ranges == ()
    assert counter.store.ranges(counter.tickets[0], A) == []
    counter.send(counter.chunk(600, b"x" * 400, digest=A))
    assert counter.store.ranges(counter.tickets[0], A) == [], "a late chunk of what the device has given up"
    counter.send(counter.chunk(0, b"y", digest=B))
    assert counter.store.ranges(counter.tickets[0], B) == [(0, 1)]


def test_chunks_of_two_digests_in_one_turn_never_make_a_whole_that_is_not_there() -> None:
    counter = Counter()
    first = [counter.chunk(at, b"x" * 500, digest=A) for at in (0, 500)]
    counter.send(*first, counter.chunk(0, b"y" * 500, digest=B))
    assert counter.whole() == [A]
    assert counter.store.assemble(counter.tickets[0], A) == b"x" * 1000


def test_a_bad_chunk_costs_its_own_ticket_only() -> None:
    counter = Counter()
    counter.send(counter.chunk(0, b"x" * 10, ticket=1))
    good = [counter.chunk(at, b"x" * 500) for at in (0, 500)]
    verdicts = counter.send(good[0], counter.chunk(0, b"x" * 10, ticket=1, total=77), good[1])
    assert [(verdict.ticket, code(verdict)) for verdict in verdicts] == [(counter.tickets[1], "malformed")]
    assert counter.whole() == [A]


def test_a_thousand_ranges_are_the_limit_whatever_a_device_sends() -> None:
    counter = Counter()
    chunks = [counter.chunk(at, b"x", total=50_000) for at in range(0, 2 * RANGES_MAX + 2, 2)]
    reasons = {code(v) for at in range(0, len(chunks), 100) for v in counter.send(*chunks[at : at + 100])}
    assert reasons == {"malformed"}
    assert len(counter.store.ranges(counter.tickets[0], A)) <= RANGES_MAX


def test_a_full_quota_is_busy_and_the_other_devices_go_on() -> None:
    counter = Counter(partial_bytes_per_device_max=2048)
    verdicts = counter.send(
        counter.chunk(0, b"x" * 1500, total=2000),
        counter.chunk(0, b"x" * 900, ticket=1),
        counter.chunk(1500, b"x" * 400, total=2000),
    )
    assert {(verdict.ticket, verdict.outcome) for verdict in verdicts} == {(counter.tickets[0], "busy")}
    assert counter.store.ranges(counter.tickets[0], A) == []
    assert counter.store.ranges(counter.tickets[1], A) == [(0, 900)]


@pytest.mark.parametrize(
    ("total", "offset", "length", "reason"),
    [(100_001, 0, 10, "oversize"), (100, 90, 11, "range"), (100, 0, 0, "range")],
)
def test_sizes_and_ranges_that_cannot_be_are_refused_before_anything_is_stored(
    total: int, offset: int, length: int, reason: str
) -> None:
    counter = Counter()
    (verdict,) = counter.send(counter.chunk(offset, b"x" * length, total=total))
    assert (verdict.outcome, code(verdict)) == ("refused", reason)
    assert counter.store.ranges(counter.tickets[0], A) == []


def test_a_new_round_forgets_what_was_offered() -> None:
    counter = Counter()
    counter.offer(A)
    counter.desk.wait(1000.0)  # this round is abandoned, the next attempt begins
    invites: dict[str, Invite] = counter.desk.begin("d0", "d1")
    counter.tickets = [invites[f"d{number}"].ticket for number in range(2)]
    counter.send(counter.chunk(0, b"x", digest=B))
    assert counter.store.ranges(counter.tickets[0], B) == [(0, 1)]
