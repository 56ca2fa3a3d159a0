"""Rounds, tickets, checkpoints, devices, blobs: what the store promises the coordinator."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.store import Checkpoint, JournalRow, NewDelta, RoundRecord, Store, TicketRecord
from coordinator.store.migrations import Migration, load_migrations, migrate
from edge_sdk.errors import StateError

TASK = "default"
PROGRAM = b"program bytes"
PARAMETERS = b"parameters bytes"
DIGEST = b"\x11" * 32


class Clock:
    """Wall time that only moves when told."""

    def __init__(self, seconds: float = 1_700_000_000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def ids(seed: int = 0) -> Iterator[bytes]:
    count = seed
    while True:
        count += 1
        yield hashlib.sha256(count.to_bytes(8, "big")).digest()


def open_store(path: Path | str, *, seed: int = 0, wall: Clock | None = None, **limits: int) -> Store:
    stream = ids(seed)
    return Store(path, wall=wall or Clock(), new_id=lambda n: next(stream)[:n], **limits)


def a_round(store: Store, number: int = 1, attempt: int = 0, phase: str = "reporting") -> RoundRecord:
    checkpoint = store.put_initial(TASK, PROGRAM, PARAMETERS, b"")
    record = RoundRecord(
        task=TASK,
        number=number,
        attempt=attempt,
        phase=phase,
        seconds_remaining=60.0,
        base=checkpoint.parameters_digest,
        program=checkpoint.program_digest,
    )
    store.save_round(record)
    return record


def tickets_of(record: RoundRecord, count: int, *, seed: int = 0, state: str = "invited") -> list[TicketRecord]:
    return [
        TicketRecord(
            ticket=hashlib.sha256(f"{seed}/{record.number}/{record.attempt}/{i}".encode()).digest()[:16],
            task=record.task,
            round=record.number,
            attempt=record.attempt,
            device=f"device-{i:03d}",
            instance=bytes([i % 251 + 1]) * 16,
            state=state,
        )
        for i in range(count)
    ]


def closed(record: RoundRecord, last_seq: int | None = None) -> RoundRecord:
    return replace(record, phase="closed", seconds_remaining=0.0, last_seq=last_seq)


def commit(
    store: Store,
    record: RoundRecord,
    verdicts: dict[bytes, tuple[str, str]],
    *,
    parameters: bytes = b"next",
    model_delta: NewDelta | None = None,
) -> Checkpoint:
    return store.commit_round(
        record,
        parameters=parameters,
        server_state=b"state",
        verdicts=verdicts,
        metrics={"accuracy": 0.5},
        model_delta=model_delta,
    )


@pytest.fixture
def store() -> Iterator[Store]:
    opened = open_store(":memory:")
    yield opened
    opened.close()


# -- rounds and tickets ------------------------------------------------------------------------------------------------


def test_a_saved_round_comes_back_after_reopening(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    record = a_round(store)
    store.save_round(replace(record, phase="closing", last_seq=7, seconds_remaining=1.5, summary={"invited": 3}))
    store.close()
    store = open_store(tmp_path / "c.db")
    found = store.open_round(TASK)
    assert found is not None
    assert (found.phase, found.last_seq, found.seconds_remaining, found.summary) == ("closing", 7, 1.5, {"invited": 3})
    assert found.base == record.base and found.started_at == 1_700_000_000.0 and found.ended_at is None
    store.close()


def test_a_task_has_one_open_round_at_most(store: Store) -> None:
    a_round(store, 1)
    with pytest.raises(StateError, match="contradicts"):
        a_round(store, 2)
    assert [record.number for record in store.rounds(TASK)] == [1]


def test_an_ended_round_stays_ended(store: Store) -> None:
    record = a_round(store)
    commit(store, closed(record), {})
    with pytest.raises(StateError, match="is closed and stays so"):
        store.save_round(record)
    with pytest.raises(StateError, match="is closed already"):
        commit(store, closed(record), {})
    with pytest.raises(StateError, match="is closed already"):
        store.insert_tickets(tickets_of(record, 1))


def test_rounds_come_newest_first_and_limited(store: Store) -> None:
    for number in (1, 2, 3):
        commit(store, closed(a_round(store, number)), {}, parameters=bytes([number]))
    assert [record.number for record in store.rounds(TASK, 2)] == [3, 2]


def test_tickets_are_inserted_all_or_none(store: Store) -> None:
    record = a_round(store)
    first, second = tickets_of(record, 2)
    store.insert_tickets([first])
    with pytest.raises(StateError, match="contradicts"):
        store.insert_tickets([second, first])
    assert store.tickets(TASK, 1, 0) == [first]
    assert store.ticket(second.ticket) is None


@pytest.mark.parametrize(
    ("states", "allowed"),
    [
        (["accepted", "accepted", "declined"], True),
        (["late"], True),
        (["accepted", "invited"], False),
        (["refused", "accepted"], False),
        (["missing", "late"], False),
        (["accepted", "counted"], False),
        (["accepted", "journalled"], False),
        (["accepted", "nonsense"], False),
    ],
)
def test_only_listed_ticket_states_follow_each_other(store: Store, states: list[str], allowed: bool) -> None:
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    for state in states[:-1]:
        store.set_ticket(ticket.ticket, state)
    if allowed:
        store.set_ticket(ticket.ticket, states[-1], "because")
        assert store.ticket(ticket.ticket) == replace(ticket, state=states[-1], reason="because")
    else:
        with pytest.raises(StateError, match="cannot follow"):
            store.set_ticket(ticket.ticket, states[-1])


def test_a_verdict_keeps_its_first_reason(store: Store) -> None:
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    store.set_ticket(ticket.ticket, "refused", "norm")
    store.set_ticket(ticket.ticket, "refused", "another")
    commit(store, closed(record), {ticket.ticket: ("refused", "a third")})
    found = store.ticket(ticket.ticket)
    assert found is not None and (found.state, found.reason) == ("refused", "norm")


# -- the end of a round ------------------------------------------------------------------------------------------------


def test_commit_gives_every_ticket_its_verdict_and_every_device_its_counter(store: Store) -> None:
    record = a_round(store)
    tickets = tickets_of(record, 5)
    store.insert_tickets(tickets)
    store.set_ticket(tickets[3].ticket, "declined", "battery")
    (seq,) = store.journal([JournalRow(tickets[0].ticket, DIGEST, b"x" * 100)])
    verdicts = {
        tickets[0].ticket: ("counted", ""),
        tickets[1].ticket: ("late", "goal"),
        tickets[2].ticket: ("missing", ""),
        tickets[4].ticket: ("refused", "norm"),
    }
    checkpoint = commit(store, closed(record, seq), verdicts)
    states = {t.device: t.state for t in store.tickets(TASK, 1, 0)}
    assert list(states.values()) == ["counted", "late", "missing", "declined", "refused"]
    for device in store.devices():
        counters = {s: getattr(device, s) for s in ("counted", "refused", "declined", "late", "missing")}
        assert counters == {s: int(s == states[device.device]) for s in counters}
    tombstone = store.ticket(tickets[0].ticket)
    assert tombstone == replace(tickets[0], state="counted", digest=DIGEST, seq=seq)
    assert checkpoint.round == 1 and store.get_blob(checkpoint.parameters_digest) == b"next"
    assert list(store.journalled(TASK, 1, 0)) == [] and store.journal_bytes == 0


def test_a_round_without_a_verdict_on_each_ticket_is_not_committed(store: Store) -> None:
    record = a_round(store)
    tickets = tickets_of(record, 2)
    store.insert_tickets(tickets)
    before = store.latest_checkpoint(TASK)
    for verdicts, message in [
        ({tickets[0].ticket: ("missing", "")}, "got no verdict"),
        ({tickets[0].ticket: ("counted", ""), tickets[1].ticket: ("missing", "")}, "'counted' cannot follow"),
        ({t.ticket: ("journalled", "") for t in tickets}, "cannot follow"),
        ({t.ticket: ("missing", "") for t in tickets} | {b"?" * 16: ("missing", "")}, "not of this round"),
    ]:
        with pytest.raises(StateError, match=message):
            commit(store, closed(record), verdicts)
    assert store.latest_checkpoint(TASK) == before
    assert store.open_round(TASK) is not None
    assert {t.state for t in store.tickets(TASK, 1, 0)} == {"invited"}


def test_an_update_behind_last_seq_cannot_count(store: Store) -> None:
    record = a_round(store)
    tickets = tickets_of(record, 2)
    store.insert_tickets(tickets)
    seqs = store.journal([JournalRow(t.ticket, DIGEST, b"x") for t in tickets])
    with pytest.raises(StateError, match="cannot count"):
        commit(store, closed(record, seqs[0]), {t.ticket: ("counted", "") for t in tickets})


def test_an_abandoned_round_counts_nothing_and_leaves_the_model_as_it_is(store: Store) -> None:
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    store.journal([JournalRow(ticket.ticket, DIGEST, b"x")])
    before = store.latest_checkpoint(TASK)
    ended = replace(record, phase="abandoned", reason="below the minimum")
    with pytest.raises(StateError, match="cannot count"):
        store.abandon_round(ended, {ticket.ticket: ("counted", "")})
    store.abandon_round(ended, {ticket.ticket: ("refused", "abandoned")})
    assert store.latest_checkpoint(TASK) == before
    assert store.open_round(TASK) is None and store.journal_bytes == 0
    a_round(store, 1, attempt=1)
    assert [(r.number, r.attempt, r.phase) for r in store.rounds(TASK)] == [(1, 1, "reporting"), (1, 0, "abandoned")]


def test_the_phase_must_fit_the_way_a_round_ends(store: Store) -> None:
    record = a_round(store)
    with pytest.raises(StateError, match="expected 'closed'"):
        commit(store, record, {})
    with pytest.raises(StateError, match="expected 'abandoned'"):
        store.abandon_round(closed(record), {})


def test_tombstones_are_purged_after_their_days() -> None:
    wall = Clock()
    store = open_store(":memory:", wall=wall, tombstone_days=30)
    old, new = None, None
    for number, days in ((1, 0), (2, 30), (3, 31)):
        wall.seconds = 1_700_000_000.0 + days * 86_400
        record = a_round(store, number)
        (ticket,) = tickets_of(record, 1)
        store.insert_tickets([ticket])
        commit(store, closed(record), {ticket.ticket: ("missing", "")}, parameters=bytes([number]))
        old, new = old or ticket, ticket
        assert (store.ticket(old.ticket) is None) == (days > 30)
    assert new is not None and store.ticket(new.ticket) is not None


def test_metrics_of_a_closed_round_can_be_set_later(store: Store) -> None:
    record = a_round(store)
    with pytest.raises(StateError, match="is not closed"):
        store.set_metrics(TASK, 1, {"accuracy": 0.9})
    commit(store, replace(closed(record), summary={"invited": 2}), {})
    store.set_metrics(TASK, 1, {"accuracy": 0.9})
    checkpoint = store.latest_checkpoint(TASK)
    assert checkpoint is not None and checkpoint.metrics == {"accuracy": 0.9}
    assert store.rounds(TASK)[0].summary == {"invited": 2, "metrics": {"accuracy": 0.9}}


# -- checkpoints and blobs ---------------------------------------------------------------------------------------------


def test_put_initial_starts_a_task_once(store: Store) -> None:
    first = store.put_initial(TASK, PROGRAM, PARAMETERS, b"zero")
    assert first.round == 0 and store.get_blob(first.program_digest) == PROGRAM
    assert store.put_initial(TASK, PROGRAM, b"others", b"") == first
    with pytest.raises(StateError, match="another program"):
        store.put_initial(TASK, b"another", PARAMETERS, b"")
    assert store.get_blob(hashlib.sha256(b"another").digest()) is None


def test_only_the_newest_checkpoints_and_their_blobs_are_kept() -> None:
    store = open_store(":memory:", checkpoints_kept=2)
    made = [store.put_initial(TASK, PROGRAM, PARAMETERS, b"")]
    for number in range(1, 5):
        made.append(commit(store, closed(a_round(store, number)), {}, parameters=bytes([number])))
    held = [store.get_blob(checkpoint.parameters_digest) is not None for checkpoint in made]
    assert held == [False, False, False, True, True]
    extra, other = (store.put_blob(data, "parameters") for data in (b"kept for one more round", b"nobody's"))
    assert store.drop_blobs({extra}) == 1 and store.get_blob(other) is None
    assert store.get_blob(extra) is not None
    assert store.drop_blobs(set()) == 1
    assert store.latest_checkpoint(TASK) == made[4] and store.get_blob(made[4].parameters_digest) == bytes([4])


def test_blobs_of_an_open_round_are_never_dropped() -> None:
    store = open_store(":memory:", checkpoints_kept=1)
    record = a_round(store)
    store.drop_blobs(set())
    assert store.get_blob(record.base) == PARAMETERS and store.get_blob(record.program) == PROGRAM


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_a_blob_reads_back_whole_and_by_ranges(store: Store, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    digest = store.put_blob(data, "parameters")
    assert digest == hashlib.sha256(data).digest() == store.put_blob(data, "parameters")
    assert store.get_blob(digest) == data and store.blob_bytes(digest) == size
    for start, stop in [(0, size), (0, 0), (size, size), (size // 3, size // 2), (max(size - 1, 0), size)]:
        assert store.blob_range(digest, start, stop) == data[start:stop]
    with pytest.raises(StateError, match="there is no range"):
        store.blob_range(digest, 0, size + 1)
    assert store.get_blob(b"?" * 32) is None and store.blob_range(b"?" * 32, 0, 1) is None


# -- devices, counters, retained topics --------------------------------------------------------------------------------


def test_devices_are_counted_as_population_while_they_were_seen_lately() -> None:
    wall = Clock()
    store = open_store(":memory:", wall=wall)
    store.device_seen([("a", b"1" * 16, {"engine": "numpy"}), ("b", b"2" * 16, {})])
    wall.seconds += 100
    store.device_seen([("b", b"2" * 16, {"engine": "onnxruntime"})])
    assert store.population(100) == 2 and store.population(99) == 1
    a, b = store.devices()
    assert (a.capabilities, a.first_seen, a.last_seen) == ({"engine": "numpy"}, 1_700_000_000.0, 1_700_000_000.0)
    assert (b.capabilities, b.last_seen, b.instance_changes) == ({"engine": "onnxruntime"}, 1_700_000_100.0, 0)


def test_a_changed_instance_is_recorded(store: Store) -> None:
    store.device_seen([("a", b"1" * 16, {})])
    store.device_seen([("a", b"1" * 16, {}), ("a", b"2" * 16, {})])
    (device,) = store.devices()
    assert (device.instance, device.instance_before, device.instance_changes) == (b"2" * 16, b"1" * 16, 1)


def test_a_device_known_only_by_its_tickets_is_no_population_and_no_clone(store: Store) -> None:
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    commit(store, closed(record), {ticket.ticket: ("missing", "")})
    assert store.population(1e9) == 0
    store.device_seen([(ticket.device, b"1" * 16, {})])
    (device,) = store.devices()
    assert (device.missing, device.instance_changes, device.instance_before) == (1, 0, None)


def test_the_registry_is_bounded_and_says_so() -> None:
    store = open_store(":memory:", devices_max=2)
    store.device_seen([(name, b"1" * 16, {}) for name in ("a", "b", "c")])
    store.device_seen([("a", b"2" * 16, {})])
    assert [device.device for device in store.devices()] == ["a", "b"]
    assert store.counters() == {"devices_full": 1}


def test_counters_survive_rollbacks_and_reopening(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    store.count("late")
    store.retained_add("a")  # any write takes the counters along
    store.count("late", 2)
    with pytest.raises(RuntimeError), store.transaction():
        store.count("busy")
        store.retained_add("b")
        raise RuntimeError
    assert store.counters() == {"busy": 1, "late": 3}
    store.close()
    store = open_store(tmp_path / "c.db")
    assert store.counters() == {"busy": 1, "late": 3}
    store.close()


def test_counters_are_not_lost_or_doubled_by_a_failed_commit(store: Store) -> None:
    store.count("late")

    def fail() -> None:
        raise RuntimeError("between the flush and the commit")

    store._database.before_commit.append(fail)
    with pytest.raises(RuntimeError):
        store.retained_add("a")
    store._database.before_commit.remove(fail)
    assert store.counters() == {"late": 1}
    store.retained_add("b")
    assert store.counters() == {"late": 1}
    assert store._database.rows("SELECT reason, count FROM counters") == [("late", 1)]
    assert store.retained() == ["b"]


def test_reasons_are_bounded(store: Store) -> None:
    for i in range(1100):
        store.count(f"reason_{i}")
    store.retained_add("flush")
    store.count("one_more")
    counters = store.counters()
    assert len(counters) == 1001 and counters["other"] == 101


def test_retained_topics_are_remembered_until_cleared(store: Store) -> None:
    store.retained_add("fl/v1/f/blobs/aa/16384", "fl/v1/f/blobs/aa/0")
    store.retained_add("fl/v1/f/blobs/aa/0")
    store.retained_remove("fl/v1/f/blobs/aa/16384", "never/there")
    assert store.retained() == ["fl/v1/f/blobs/aa/0"]


# -- transactions ------------------------------------------------------------------------------------------------------


def test_a_nested_failure_undoes_the_whole_transaction_even_if_it_is_swallowed(store: Store) -> None:
    with pytest.raises(StateError, match="an inner step"), store.transaction():
        store.retained_add("outer")
        try:
            with store.transaction():
                store.retained_add("inner")
                raise ValueError
        except ValueError:
            pass
    assert store.retained() == []
    store.retained_add("afterwards")
    assert store.retained() == ["afterwards"]


def test_threads_take_turns(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")

    def add(name: str) -> None:
        for i in range(20):
            with store.transaction():
                store.retained_add(f"{name}/{i}/first")
                store.retained_add(f"{name}/{i}/second")
            assert f"{name}/{i}/first" in store.retained()

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.retained()) == 120
    store.close()


def test_a_full_disk_is_a_state_error_and_nothing_is_half_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    record = a_round(store)
    tickets = tickets_of(record, 40)
    store.insert_tickets(tickets)
    rows = [JournalRow(t.ticket, DIGEST, os.urandom(20_000)) for t in tickets]
    (pages,) = store._database.rows("PRAGMA page_count")[0]
    store._database.rows(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(StateError, match="disk is full; free some space"):
        store.journal(rows)
    assert store.journal_bytes == 0 and list(store.journalled(TASK, 1, 0)) == []
    store._database.rows("PRAGMA max_page_count = 1000000")
    assert len(store.journal(rows)) == 40
    store.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    store.close()
    with pytest.raises(StateError, match="is it closed"):
        store.devices()


# -- opening -----------------------------------------------------------------------------------------------------------


def test_the_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state" / "c.db")
    store.retained_add("a")
    for name in ("c.db", "c.db-wal"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    store.close()


def test_a_second_coordinator_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    with pytest.raises(StateError, match="another coordinator uses this database"):
        open_store(tmp_path / "c.db")
    store.close()
    open_store(tmp_path / "c.db").close()


def test_a_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    open_store(tmp_path / "c.db").close()
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    before = (tmp_path / "c.db").read_bytes()
    with pytest.raises(StateError, match=r"newer edgefed .schema 999.*upgrade this coordinator"):
        open_store(tmp_path / "c.db")
    assert (tmp_path / "c.db").read_bytes() == before


def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "c.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / "c.db").read_bytes()
    with pytest.raises(StateError, match="another program"):
        open_store(tmp_path / "c.db")
    assert (tmp_path / "c.db").read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_database_is_set_aside_with_the_remedy_and_the_next_start_works(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.db"
    store = open_store(path)
    store.put_blob(os.urandom(200_000), "parameters")
    record = a_round(store)
    store.insert_tickets(tickets_of(record, 500))
    store.close()
    data = bytearray(path.read_bytes())
    start = 0 if damage == "header" else 8192
    data[start : start + 60_000] = os.urandom(60_000)
    path.write_bytes(data)
    with pytest.raises(StateError, match=r"renamed to c\.db\.corrupt-1700000000.*last backup"):
        open_store(path)
    assert (tmp_path / "c.db.corrupt-1700000000").read_bytes() == data
    store = open_store(path, seed=100)
    assert store.rounds(TASK) == []
    store.close()


def test_a_directory_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StateError, match="state_dir"):
        open_store(tmp_path / "file" / "c.db")


def test_a_failing_migration_leaves_the_step_before_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    steps = [
        *load_migrations(),
        Migration(
            len(load_migrations()) + 1, "CREATE TABLE added (x INTEGER);\nINSERT INTO added VALUES (no_such_column);\n"
        ),
    ]
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, steps, "c.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps) - 1,)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'added'").fetchone() == (0,)
    good = [
        *steps[:-1],
        Migration(
            len(steps),
            "CREATE TABLE added (x INTEGER);\n-- a remark; with a semicolon\nINSERT INTO added VALUES (1);\n",
        ),
    ]
    migrate(connection, good, "c.db")
    assert connection.execute("SELECT x FROM added").fetchone() == (1,)
    connection.close()


# -- reading while the coordinator runs --------------------------------------------------------------------------------


def test_a_reader_sees_what_was_committed_and_cannot_write(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    record = a_round(store)
    tickets = tickets_of(record, 2)
    store.insert_tickets(tickets)
    store.journal([JournalRow(tickets[0].ticket, DIGEST, b"x")])
    with Store.open_readonly(tmp_path / "c.db") as reader:
        assert reader.open_round(TASK) == store.open_round(TASK)
        assert [t.state for t in reader.tickets(TASK, 1, 0)] == ["journalled", "invited"]
        assert reader.ticket(tickets[0].ticket) == store.ticket(tickets[0].ticket)
        store.journal([JournalRow(tickets[1].ticket, DIGEST, b"y")])
        store.count("late")
        store.device_seen([("a", b"1" * 16, {})])
        assert [t.state for t in reader.tickets(TASK, 1, 0)] == ["journalled", "journalled"]
        assert reader.counters() == {"late": 1} and [d.device for d in reader.devices()] == ["a"]
        assert reader.lineage == store.lineage and reader.latest_checkpoint(TASK) == store.latest_checkpoint(TASK)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._database.connection.execute("DELETE FROM rounds")
    store.close()


def test_a_reader_works_when_no_coordinator_runs_and_says_when_there_is_no_database(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    a_round(store)
    store.close()
    with Store.open_readonly(tmp_path / "c.db") as reader:
        assert len(reader.rounds(TASK)) == 1
    with pytest.raises(StateError, match="no such database"):
        Store.open_readonly(tmp_path / "none.db")


def test_a_reader_in_the_way_only_delays_the_truncation(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    store.journal([JournalRow(ticket.ticket, DIGEST, b"SECRET-PAYLOAD" * 100)])
    with Store.open_readonly(tmp_path / "c.db") as reader:
        reader._database.connection.execute("BEGIN")
        assert len(reader.rounds(TASK)) == 1  # holds a snapshot from here on
        commit(store, closed(record, 1), {ticket.ticket: ("counted", "")})
        assert (tmp_path / "c.db-wal").stat().st_size > 0
    store.retained_add("the next commit")
    assert (tmp_path / "c.db-wal").stat().st_size == 0
    assert b"SECRET-PAYLOAD" not in (tmp_path / "c.db").read_bytes()
    store.close()
