"""Epochs, incarnations and backups: a restored database is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_store import DIGEST, TASK, a_round, closed, commit, open_store, tickets_of

from coordinator.store import JournalRow, Store
from edge_sdk.errors import StateError


def reopened(path: Path, seed: int) -> Store:
    return open_store(path, seed=seed)


def copy_database(source: Path, target: Path) -> None:
    """What an administrator's file copy takes: the database alone, without the witness."""
    for suffix in ("", "-wal"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
        if Path(f"{source}{suffix}").exists():
            shutil.copy(f"{source}{suffix}", f"{target}{suffix}")


def test_epoch_lasts_and_incarnation_counts_starts(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    lineage = store.lineage
    assert len(lineage) == 8 and store.next_incarnation() == 1
    store.close()
    store = reopened(tmp_path / "c.db", 50)
    assert store.lineage == lineage and not store.restored and store.next_incarnation() == 2 == store.incarnation
    store.close()


def test_two_new_databases_have_different_epochs(tmp_path: Path) -> None:
    first, second = open_store(":memory:", seed=1), open_store(":memory:", seed=2)
    assert first.lineage != second.lineage


def test_a_new_epoch_abandons_the_open_round(tmp_path: Path) -> None:
    store = open_store(":memory:")
    record = a_round(store)
    tickets = tickets_of(record, 3)
    store.insert_tickets(tickets)
    store.set_ticket(tickets[1].ticket, "declined", "battery")
    store.journal([JournalRow(tickets[0].ticket, DIGEST, b"x")])
    before = store.lineage
    assert store.new_lineage() == store.lineage != before
    assert store.open_round(TASK) is None and store.rounds(TASK)[0].reason == "restored"
    assert [(t.state, t.reason) for t in store.tickets(TASK, 1, 0)] == [
        ("refused", "restored"),
        ("declined", "battery"),
        ("missing", "restored"),
    ]


@pytest.mark.parametrize("progress", ["start", "round"])
def test_a_copy_put_back_later_begins_a_new_epoch(tmp_path: Path, progress: str) -> None:
    path = tmp_path / "c.db"
    store = open_store(path)
    store.next_incarnation()
    record = a_round(store)
    (ticket,) = tickets_of(record, 1)
    store.insert_tickets([ticket])
    lineage = store.lineage
    store.close()
    copy_database(path, tmp_path / "copy.db")
    store = reopened(path, 50)
    if progress == "start":
        store.next_incarnation()
    else:
        commit(store, closed(record), {ticket.ticket: ("missing", "")})
    incarnation = store.incarnation
    store.close()
    copy_database(tmp_path / "copy.db", path)
    store = reopened(path, 100)
    assert store.restored and store.lineage != lineage
    assert store.open_round(TASK) is None and store.rounds(TASK)[0].reason == "restored"
    assert store.next_incarnation() > incarnation
    lineage = store.lineage
    store.close()
    store = reopened(path, 150)
    assert not store.restored and store.lineage == lineage
    store.close()


def test_a_database_without_its_witness_is_taken_for_restored(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    store.next_incarnation()
    store.close()
    (tmp_path / "c.db.witness").write_text("{not json")
    store = reopened(tmp_path / "c.db", 50)
    assert store.restored
    store.close()


def test_a_crash_before_the_witness_is_written_is_no_restore(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = open_store(path)
    store.next_incarnation()
    behind = (tmp_path / "c.db.witness").read_bytes()
    store.next_incarnation()
    a_round(store)
    store.close()
    (tmp_path / "c.db.witness").write_bytes(behind)
    store = reopened(path, 50)
    assert not store.restored and store.open_round(TASK) is not None
    store.close()


def test_a_crash_while_a_restored_database_is_opened_is_noticed_again(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    store = open_store(path)
    store.next_incarnation()
    a_round(store)
    store.backup(tmp_path / "backup.db")
    store.close()
    shutil.copy(tmp_path / "backup.db", path)
    witness = (tmp_path / "c.db.witness").read_bytes()
    store = reopened(path, 50)
    assert store.restored
    store.close()
    # The commit of the new lineage went through and the power failed before its witness was written.
    (tmp_path / "c.db.witness").write_bytes(witness)
    store = reopened(path, 100)
    assert store.restored
    store.close()


def test_a_new_database_beside_an_old_witness_goes_on_counting_incarnations(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    for _ in range(3):
        store.next_incarnation()
    lineage = store.lineage
    store.close()
    (tmp_path / "c.db").unlink()
    store = reopened(tmp_path / "c.db", 50)
    assert store.lineage != lineage and not store.restored and store.next_incarnation() == 4
    store.close()


def test_a_backup_keeps_the_model_but_no_updates_and_is_known_for_one(tmp_path: Path) -> None:
    store = open_store(tmp_path / "c.db")
    store.next_incarnation()
    commit(store, closed(a_round(store, 1)), {}, parameters=b"trained")
    record = a_round(store, 2)
    tickets = tickets_of(record, 2)
    store.insert_tickets(tickets)
    store.journal([JournalRow(tickets[0].ticket, DIGEST, b"SECRET-PAYLOAD" * 1000)])
    store.put_chunks([(tickets[1].ticket, DIGEST, 50_000, 0, b"SECRET-PARTIAL" * 1000)])
    store.backup(tmp_path / "backup.db")
    assert len(list(store.journalled(TASK, 2, 0))) == 1
    store.close()
    data = (tmp_path / "backup.db").read_bytes()
    assert b"SECRET" not in data
    (tmp_path / "c.db").write_bytes(data)
    store = reopened(tmp_path / "c.db", 50)
    assert store.restored and store.rounds(TASK)[0].phase == "abandoned"
    checkpoint = store.latest_checkpoint(TASK)
    assert checkpoint is not None and store.get_blob(checkpoint.parameters_digest) == b"trained"
    store.close()


def test_a_backup_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    store = open_store(":memory:")
    with pytest.raises(StateError, match="check space and permissions"):
        store.backup(tmp_path / "no" / "such" / "directory.db")
    with store.transaction(), pytest.raises(StateError, match="after the commit"):
        store.backup(tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()
