"""Partials and the journal: every byte once, in order, under quotas, and gone when the round ends."""

from __future__ import annotations

import copy
import hashlib
import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import DIGEST, TASK, a_round, closed, commit, open_store, tickets_of

from coordinator.store import ChunkRefused, JournalRow, QuotaExceeded, Store
from edge_sdk.errors import ProtocolError, StateError

T, OTHER = (hashlib.sha256(name).digest()[:16] for name in (b"one", b"other"))


def with_tickets(count: int, path: Path | str = ":memory:", **limits: int) -> tuple[Store, list[bytes]]:
    store = open_store(path, **limits)
    tickets = tickets_of(a_round(store), count)
    store.insert_tickets(tickets)
    return store, [ticket.ticket for ticket in tickets]


def caches(store: Store) -> tuple[object, ...]:
    """What the store keeps in memory about uploads."""
    partials, journal = store._partials, store._journal
    uploads = {key: (u.id, u.device, u.total, u.ranges, u.charged_bytes) for key, u in partials._uploads.items()}
    held = partials._keys, partials._device_bytes, store.partial_bytes, journal.entries, store.journal_bytes
    return copy.deepcopy((uploads, *held))


# -- partials ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chunks_in_any_order_with_any_overlap_make_the_update(data: st.DataObject) -> None:
    update = bytes(i % 251 for i in range(data.draw(st.integers(1, 400))))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, len(update) - 1), st.integers(1, 200)), max_size=12))
    chunks = [(start, update[start : start + length]) for start, length in cuts]
    chunks = data.draw(st.permutations([*chunks, *[(i, update[i : i + 90]) for i in range(0, len(update), 90)]]))
    store, (ticket,) = with_tickets(1)
    held: set[int] = set()
    while chunks:
        batch = [chunks.pop() for _ in range(min(len(chunks), data.draw(st.integers(1, 5))))]
        store.put_chunks([(ticket, DIGEST, len(update), start, part) for start, part in batch])
        held |= {i for start, part in batch for i in range(start, start + len(part))}
        ranges = store.ranges(ticket, DIGEST)
        assert {i for start, stop in ranges for i in range(start, stop)} == held
        assert all(low[1] < high[0] for low, high in itertools.pairwise(ranges))
    assert store.assemble(ticket, DIGEST) == update
    stored = store._database.row("SELECT sum(length(data)) FROM chunks")
    assert stored == (len(update),)


def test_an_update_with_a_hole_is_not_assembled() -> None:
    store, (ticket,) = with_tickets(1)
    store.put_chunks([(ticket, DIGEST, 30, 0, b"a" * 10), (ticket, DIGEST, 30, 20, b"c" * 10)])
    assert store.ranges(ticket, DIGEST) == [(0, 10), (20, 30)]
    for digest in (DIGEST, b"?" * 32):
        with pytest.raises(ProtocolError) as caught:
            store.assemble(ticket, digest)
        assert caught.value.reason == "incomplete"
    assert store.ranges(ticket, b"?" * 32) == []


def test_bytes_that_came_first_stay() -> None:
    store, (ticket,) = with_tickets(1)
    store.put_chunks([(ticket, DIGEST, 6, 2, b"11")])
    store.put_chunks([(ticket, DIGEST, 6, 0, b"222222")])
    assert store.assemble(ticket, DIGEST) == b"221122"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((b"?" * 16, DIGEST, 10, 0, b"x"), "unknown_ticket"),
        ((None, DIGEST, 11, 0, b"x"), "malformed"),
        ((None, DIGEST, 10, 0, b""), "malformed"),
        ((None, DIGEST, 10, -1, b"x"), "malformed"),
        ((None, DIGEST, 10, 9, b"xx"), "malformed"),
        ((None, b"2" * 32, 1 << 40, 0, b"x"), "too_large"),
    ],
)
def test_a_chunk_that_claims_too_much_is_refused_and_nothing_of_the_call_is_stored(
    row: tuple[bytes | None, bytes, int, int, bytes], reason: str
) -> None:
    store, (first, second) = with_tickets(2)
    store.put_chunks([(first, DIGEST, 10, 0, b"abc")])
    before = caches(store)
    bad = (row[0] or first, *row[1:])
    with pytest.raises(ChunkRefused) as caught:
        store.put_chunks([(second, DIGEST, 10, 0, b"abc"), bad])
    assert caught.value.reason == reason and caught.value.tickets == {bad[0]}
    assert caches(store) == before
    store.put_chunks([(second, DIGEST, 10, 0, b"abc")])


def test_a_spent_ticket_takes_no_chunks_and_loses_those_it_had() -> None:
    store, (ticket,) = with_tickets(1)
    store.put_chunks([(ticket, DIGEST, 10, 0, b"abc")])
    store.set_ticket(ticket, "refused", "norm")
    assert store.partial_bytes == 0 and store.ranges(ticket, DIGEST) == []
    with pytest.raises(ChunkRefused) as caught:
        store.put_chunks([(ticket, DIGEST, 10, 0, b"abc")])
    assert caught.value.reason == "spent"


def test_a_device_cannot_hold_more_than_its_quota_nor_all_of_them_more_than_the_whole() -> None:
    store, tickets = with_tickets(4, partial_bytes_max=10_000, partial_bytes_per_device_max=4_000)
    store.put_chunks([(tickets[0], DIGEST, 4_000, 0, b"x" * 3_000)])
    with pytest.raises(QuotaExceeded, match="device-000") as caught:
        store.put_chunks(
            [(tickets[0], b"2" * 32, 4_000, 0, b"x" * 3_000), (tickets[1], DIGEST, 4_000, 0, b"x" * 3_000)]
        )
    assert caught.value.reason == "busy" and caught.value.tickets == {tickets[0]}
    store.put_chunks([(tickets[1], DIGEST, 4_000, 0, b"x" * 3_000), (tickets[2], DIGEST, 4_000, 0, b"x" * 3_000)])
    with pytest.raises(QuotaExceeded, match="all devices together"):
        store.put_chunks([(tickets[3], DIGEST, 4_000, 0, b"x" * 3_000)])
    store.drop_partials(tickets[0])
    store.put_chunks([(tickets[3], DIGEST, 4_000, 0, b"x" * 3_000)])
    assert store.partial_bytes == 9_000


def test_tiny_chunks_are_charged_for_their_rows() -> None:
    store, (ticket,) = with_tickets(1, partial_bytes_per_device_max=100_000)
    with pytest.raises(QuotaExceeded):
        store.put_chunks([(ticket, DIGEST, 100_000, i * 2, b"x") for i in range(100)])


def test_a_shredded_update_is_refused() -> None:
    store, (ticket,) = with_tickets(1, partial_bytes_per_device_max=1 << 24)
    rows = [(ticket, DIGEST, 10_000, i * 2, b"x") for i in range(1025)]
    store.put_chunks(rows[:1024])
    with pytest.raises(ChunkRefused, match="separate ranges"):
        store.put_chunks(rows[1024:])


def test_partials_are_there_after_a_restart(tmp_path: Path) -> None:
    store, tickets = with_tickets(2, tmp_path / "c.db")
    store.put_chunks([(tickets[0], DIGEST, 9_000, 0, b"a" * 5_000), (tickets[1], DIGEST, 9_000, 7_000, b"b" * 2_000)])
    store.put_chunks([(tickets[0], DIGEST, 9_000, 5_000, b"c" * 4_000)])
    before = caches(store)
    store.close()
    store = open_store(tmp_path / "c.db", seed=50)
    assert caches(store) == before
    assert store.assemble(tickets[0], DIGEST) == b"a" * 5_000 + b"c" * 4_000
    store.close()


# -- the journal -------------------------------------------------------------------------------------------------------


def test_the_journal_replays_in_order_up_to_a_number() -> None:
    store, tickets = with_tickets(5)
    order = [tickets[i] for i in (3, 0, 4, 1)]
    seqs = [store.journal([JournalRow(t, DIGEST, t * 3)])[0] for t in order[:2]]
    seqs += store.journal([JournalRow(t, DIGEST, t * 3) for t in order[2:]])
    assert seqs == sorted(set(seqs))
    rows = list(store.journalled(TASK, 1, 0))
    assert [(seq, ticket, payload) for seq, ticket, _, payload in rows] == [
        (seq, ticket, ticket * 3) for seq, ticket in zip(seqs, order, strict=True)
    ]
    assert [device for _, _, device, _ in rows] == ["device-003", "device-000", "device-004", "device-001"]
    assert [row[0] for row in store.journalled(TASK, 1, 0, up_to_seq=seqs[1])] == seqs[:2]
    assert list(store.journalled(TASK, 2, 0)) == []


def test_replay_goes_on_while_others_write_and_fail() -> None:
    store, tickets = with_tickets(6)
    store.journal([JournalRow(t, DIGEST, b"x") for t in tickets[:3]])
    seen = []
    for seq, *_ in store.journalled(TASK, 1, 0, up_to_seq=3):
        seen.append(seq)
        store.journal([JournalRow(tickets[2 + seq], DIGEST, b"y")])
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.retained_add(str(1 // 0))
    assert seen == [1, 2, 3]


def test_journal_numbers_are_never_used_again(tmp_path: Path) -> None:
    store, (ticket,) = with_tickets(1, tmp_path / "c.db")
    (first,) = store.journal([JournalRow(ticket, DIGEST, b"x")])
    record = store.open_round(TASK)
    assert record is not None
    commit(store, closed(record, first), {ticket: ("counted", "")})
    store.close()
    store = open_store(tmp_path / "c.db", seed=50)
    tickets = tickets_of(a_round(store, 2), 1)
    store.insert_tickets(tickets)
    assert store.journal([JournalRow(tickets[0].ticket, DIGEST, b"x")]) == [first + 1]
    store.close()


def test_a_ticket_is_spent_once() -> None:
    store, (first, second, third) = with_tickets(3)
    store.journal([JournalRow(first, DIGEST, b"x")])
    store.set_ticket(third, "refused", "norm")
    before = caches(store)
    for rows in (
        [JournalRow(second, DIGEST, b"y"), JournalRow(first, DIGEST, b"x")],
        [JournalRow(second, DIGEST, b"y"), JournalRow(second, DIGEST, b"y")],
        [JournalRow(second, DIGEST, b"y"), JournalRow(third, DIGEST, b"y")],
        [JournalRow(second, DIGEST, b"y"), JournalRow(b"?" * 16, DIGEST, b"y")],
    ):
        with pytest.raises(StateError, match=r"is spent|never given out"):
            store.journal(rows)
        assert caches(store) == before
    store.set_ticket(first, "journalled")
    found = store.ticket(first)
    assert found is not None and (found.state, found.digest, found.seq) == ("journalled", DIGEST, 1)


def test_journalling_deletes_the_chunks() -> None:
    store, (first, second) = with_tickets(2)
    store.put_chunks([(t, DIGEST, 10, 0, b"0123456789") for t in (first, second)])
    store.journal([JournalRow(first, DIGEST, store.assemble(first, DIGEST))])
    assert store.ranges(first, DIGEST) == [] and store.ranges(second, DIGEST) == [(0, 10)]
    assert store._database.row("SELECT count(*) FROM chunks") == (1,)


def test_a_full_journal_says_who_does_not_fit() -> None:
    store, tickets = with_tickets(3, journal_bytes_max=1_000)
    rows = [JournalRow(t, DIGEST, b"x" * size) for t, size in zip(tickets, (600, 600, 300), strict=True)]
    with pytest.raises(QuotaExceeded) as caught:
        store.journal(rows)
    assert caught.value.tickets == {tickets[1]} and store.journal_bytes == 0
    store.journal([row for row in rows if row.ticket not in caught.value.tickets])
    assert store.journal_bytes == 900


def test_a_rollback_forgets_what_memory_had_taken_for_stored(tmp_path: Path) -> None:
    store, tickets = with_tickets(6, tmp_path / "c.db")
    store.put_chunks([(t, DIGEST, 9_000, 0, b"a" * 5_000) for t in tickets[:3]])
    store.journal([JournalRow(tickets[0], DIGEST, b"x" * 500)])
    before = caches(store)
    record = store.open_round(TASK)
    assert record is not None
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.put_chunks([(tickets[1], DIGEST, 9_000, 5_000, b"b" * 1_000), (tickets[4], DIGEST, 99, 0, b"c")])
        store.journal([JournalRow(tickets[2], DIGEST, b"y")])
        store.drop_partials(tickets[1])
        store.abandon_round(
            replace(record, phase="abandoned"),
            {t: ("missing", "") if t not in (tickets[0], tickets[2]) else ("refused", "") for t in tickets},
        )
        raise ZeroDivisionError
    assert caches(store) == before
    store.close()
    store = open_store(tmp_path / "c.db", seed=50)
    assert caches(store) == before
    store.close()


def test_no_byte_of_an_update_is_on_the_disk_after_its_round(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store, tickets = with_tickets(40, path)
    secret = b"SECRET-PAYLOAD!!"
    store.put_chunks([(t, DIGEST, 50_000, 0, secret * 700) for t in tickets[:20]])
    store.journal([JournalRow(t, DIGEST, secret * 700) for t in tickets[10:]])
    store._database.rows("PRAGMA wal_checkpoint(PASSIVE)")
    on_disk = path.read_bytes() + Path(f"{path}-wal").read_bytes()
    assert on_disk.count(secret) > 40 * 700
    record = store.open_round(TASK)
    assert record is not None
    commit(store, closed(record, 30), {t: ("counted", "") if i >= 10 else ("late", "") for i, t in enumerate(tickets)})
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes(), file
    assert Path(f"{path}-wal").stat().st_size == 0
    store.close()


def test_a_thousand_updates_are_journalled_in_a_cpu_second(tmp_path: Path) -> None:
    store, tickets = with_tickets(640, tmp_path / "c.db")
    payload = hashlib.sha256(b"payload").digest() * 360  # 11,520 bytes
    started = time.process_time()
    for start in range(0, len(tickets), 16):
        store.journal([JournalRow(t, DIGEST, payload) for t in tickets[start : start + 16]])
    seconds = time.process_time() - started
    assert len(tickets) / seconds > 1_000, f"{seconds / len(tickets) * 1e6:.0f} us an update"
    store.close()
