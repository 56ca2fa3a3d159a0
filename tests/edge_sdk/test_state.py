"""A power cut between any two file operations, a flipped bit in any file, a full disk, a second process."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.device.files import BytesLike
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.state import DeviceState, DirectoryFiles, Files, MemoryFiles
from edge_sdk.errors import StateError

SPEC = b"s" * 32
Vector = NDArray[np.float32]


class PowerCut(Exception):
    """The simulated device loses power."""


class CrashingFiles(MemoryFiles):
    """Loses power instead of doing its n-th change; afterwards it works again, as after a reboot."""

    def __init__(self) -> None:
        super().__init__()
        self.changes_left: int | None = None

    def _spend(self) -> None:
        if self.changes_left is None:
            return
        if self.changes_left == 0:
            self.changes_left = None
            raise PowerCut
        self.changes_left -= 1

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self._spend()
        super().write(name, parts)

    def rename(self, old: str, new: str) -> None:
        self._spend()
        super().rename(old, new)

    def delete(self, name: str) -> None:
        self._spend()
        super().delete(name)


class FailingFiles(MemoryFiles):
    """Storage that refuses what ``refuses`` names, as a full or worn-out card does."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: Callable[[str, str], bool] = lambda action, name: False

    def _ask(self, action: str, name: str) -> None:
        if self.refuses(action, name):
            raise StateError(f"cannot {action} {name}")

    def read(self, name: str) -> bytes | None:
        self._ask("read", name)
        return super().read(name)

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self._ask("write", name)
        super().write(name, parts)

    def delete(self, name: str) -> None:
        self._ask("delete", name)
        super().delete(name)


def open_state(
    files: Files, *, day: Callable[[], int] = lambda: 7, budget: int = 1 << 31, cache: int = 1 << 20
) -> DeviceState:
    return DeviceState(
        files,
        new_instance=lambda: os.urandom(16),
        wall_day=day,
        state_write_bytes_per_day_max=budget,
        cache_bytes_max=cache,
        outbox_bytes_max=10_000,
    )


def entry(number: int, spec: bytes = SPEC) -> PendingUpdate:
    payload = bytes([number]) * 100
    return PendingUpdate(
        ticket=bytes([number]) * 16,
        lineage=b"lineage",
        task="digits",
        round=number,
        shard="0",
        digest=hashlib.sha256(payload).digest(),
        base=b"b" * 32,
        spec=spec,
        payload=payload,
    )


def vector(number: int) -> Vector:
    return np.full(50, number, dtype=np.float32)


def kept(number: int) -> dict[str, Vector]:
    """What is kept after the update of this number: a residual, and a longer vector of a local algorithm."""
    return {"residual": vector(number), "local.plain.mine": np.full(70, 100 + number, dtype=np.float32)}


def residual_of(state: DeviceState, spec: bytes = SPEC) -> Vector | None:
    """The residual in force; what is kept beside it is always of the same update."""
    vectors = state.vectors(spec)
    if not vectors:
        return None
    assert set(vectors) == {"residual", "local.plain.mine"}
    assert np.array_equal(vectors["local.plain.mine"], np.full(70, 100 + vectors["residual"][0]))
    return vectors["residual"]


def same(a: Vector | None, b: Vector | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or bool(np.array_equal(a, b)))


def run_round(
    state: DeviceState, number: int, counted: bool, receipt: bool, phase: list[str], keeps: bool = True
) -> None:
    phase[:] = ["save"]
    state.save_outbox(entry(number), kept(number) if keeps else {})
    phase[:] = ["saved"]
    if receipt:
        state.mark_received(entry(number).ticket)
        phase[:] = ["received"]
    phase[:] = ["settle"]
    state.settle(entry(number).ticket, counted)
    phase[:] = ["settled"]


def reopen(files: CrashingFiles, second_cut_after: int, budget: int) -> DeviceState:
    """Opens after a power cut, with another one during the opening itself."""
    files.changes_left = second_cut_after
    try:
        return open_state(files, budget=budget)
    except PowerCut:
        return open_state(files, budget=budget)
    finally:
        files.changes_left = None


def check_after_the_cut(
    state: DeviceState, phase: str, before: Vector | None, counted: bool, lossy: bool, keeps: bool
) -> None:
    found, residual = state.outbox, residual_of(state)
    after = (vector(2) if keeps else None) if counted else before
    legal: list[Vector | None] = [None] if lossy else []
    if found is None:
        assert phase in ("save", "settle", "settled"), "an update whose save_outbox returned was lost"
        legal.append(before if phase == "save" else after)
    else:
        assert phase != "settled"
        assert found.ticket == entry(2).ticket
        assert found.received or found == entry(2)
        legal.append(before)
        if not keeps and counted and phase == "settle":
            legal.append(None)  # gone already, and the verdict that comes again will find nothing to do
    assert any(same(residual, value) for value in legal)
    state.settle(entry(2).ticket, counted)  # the coordinator repeats its verdict
    assert state.unsettled == []
    if phase != "save" or found is not None:
        assert same(residual_of(state), after) or (lossy and residual_of(state) is None)


@pytest.mark.parametrize("second_cut_after", [0, 1, 99])
@pytest.mark.parametrize("receipt", [False, True])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("budget", [1 << 31, 2000, 0], ids=["ample", "runs-out", "none"])
@pytest.mark.parametrize("keeps", [True, False], ids=["sparse", "dense"])
def test_a_power_cut_between_any_two_changes_leaves_a_legal_state(
    counted: bool, receipt: bool, budget: int, second_cut_after: int, keeps: bool
) -> None:
    for cut_after in range(100):
        files = CrashingFiles()
        first = open_state(files, budget=budget)
        run_round(first, 1, True, True, [])
        before = residual_of(first)
        assert same(before, vector(1))
        files.changes_left = cut_after
        phase: list[str] = []
        try:
            run_round(first, 2, counted, receipt, phase, keeps)
        except PowerCut:
            reopened = reopen(files, second_cut_after, budget)
            assert reopened.instance == first.instance
            check_after_the_cut(reopened, phase[0], before, counted, budget < 1 << 31, keeps)
        else:
            files.changes_left = None
            reopened = open_state(files, budget=budget)
            check_after_the_cut(reopened, "settled", before, counted, budget < 1 << 31, keeps)
            assert cut_after >= 2 + keeps, "the cuts did not reach into the round"
            return
    raise AssertionError("the round never ended")


def test_a_cut_while_the_directory_is_made_never_gives_two_instances() -> None:
    for cut_after in range(4):
        files, made = CrashingFiles(), [bytes([n]) * 16 for n in range(3)]
        files.changes_left = cut_after
        try:
            seen = [DeviceState(files, new_instance=lambda: made.pop(0), wall_day=lambda: 0).instance]  # noqa: B023
        except PowerCut:
            seen = []
        files.changes_left = None
        seen += [DeviceState(files, new_instance=lambda: made.pop(0), wall_day=lambda: 0).instance for _ in range(3)]  # noqa: B023
        assert len(set(seen)) == 1


def test_the_outbox_comes_back_whole_and_then_without_its_payload() -> None:
    files = MemoryFiles()
    state = open_state(files)
    state.save_outbox(entry(3), {})
    assert open_state(files).outbox == entry(3)
    assert open_state(files).unsettled == [entry(3).ticket]
    state.mark_received(entry(3).ticket)
    assert open_state(files).outbox == entry(3).without_payload()
    assert sum(len(files.read(name) or b"") for name in files.names()) < 1000
    state.settle(entry(3).ticket, True)
    assert open_state(files).outbox is None


def test_a_second_update_is_refused_until_the_first_is_settled() -> None:
    state = open_state(MemoryFiles())
    state.save_outbox(entry(1), {})
    with pytest.raises(StateError, match="not settled"):
        state.save_outbox(entry(2), {})
    state.settle(entry(1).ticket, False)
    state.save_outbox(entry(2), {})


def test_a_verdict_on_an_unknown_ticket_changes_nothing() -> None:
    state = open_state(MemoryFiles())
    state.settle(b"x" * 16, True)
    state.save_outbox(entry(1), kept(1))
    state.settle(b"x" * 16, True)
    state.mark_received(b"x" * 16)
    assert state.outbox == entry(1)
    assert residual_of(state) is None


@pytest.mark.parametrize("budget", [1 << 31, 0], ids=["on-disk", "in-memory"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_residual_that_was_sent_whole_is_dropped_once_that_update_counts(counted: bool, budget: int) -> None:
    files = MemoryFiles()
    state = open_state(files, budget=budget)
    run_round(state, 1, True, True, [])
    run_round(state, 2, counted, True, [], keeps=False)
    assert same(residual_of(state), None if counted else vector(1))
    assert budget == 0 or same(residual_of(open_state(files)), None if counted else vector(1))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("counted", [True, False])
def test_a_verdict_that_the_storage_refused_is_tried_again_before_the_next_update(counted: bool, keeps: bool) -> None:
    files = FailingFiles()
    state = open_state(files)
    run_round(state, 1, True, True, [])
    state.save_outbox(entry(2), kept(2) if keeps else {})
    files.refuses = lambda action, name: (action, name) == ("delete", "outbox")
    with pytest.raises(StateError):
        state.settle(entry(2).ticket, counted)
    state.mark_received(entry(2).ticket)
    files.refuses = lambda action, name: False
    expected = (vector(2) if keeps else None) if counted else vector(1)
    copy = MemoryFiles()  # a power cut here asks for the verdict again, or finds that it was carried out
    for name in files.names():
        copy.write(name, [files.read(name) or b""])
    reopened = open_state(copy)
    reopened.settle(entry(2).ticket, counted)
    assert same(residual_of(reopened), expected)
    state.save_outbox(entry(3), {})
    assert state.outbox == entry(3)
    assert same(residual_of(state), expected)


def test_a_residual_of_another_spec_is_dropped_for_good() -> None:
    state = open_state(MemoryFiles())
    run_round(state, 1, True, True, [])
    assert residual_of(state, b"t" * 32) is None
    assert residual_of(state) is None


def test_the_residual_is_read_only() -> None:
    for budget in (1 << 31, 0):
        state = open_state(MemoryFiles(), budget=budget)
        run_round(state, 1, True, True, [])
        residual = residual_of(state)
        assert residual is not None
        with pytest.raises(ValueError, match="read-only"):
            residual[0] = 1.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ticket": b"short"}, "ticket"),
        ({"digest": b""}, "digest"),
        ({"payload": None}, "payload"),
        ({"round": -1}, "round"),
        ({"task": "x" * 300}, "task"),
        ({"lineage": b"x" * 33}, "lineage"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        open_state(MemoryFiles()).save_outbox(replace(entry(1), **change), {})  # type: ignore[arg-type]


def test_a_residual_that_would_spoil_later_updates_is_refused() -> None:
    state = open_state(MemoryFiles())
    for bad in (
        np.array([1, np.nan], np.float32),
        np.array([np.inf], np.float32),
        np.zeros(3),
        np.zeros((2, 2), np.float32),
    ):
        for name in ("residual", "local.plain.mine"):
            with pytest.raises(ValueError, match=name):
                state.save_outbox(entry(1), {name: bad})
    with pytest.raises(ValueError, match="name"):
        state.save_outbox(entry(1), {"ö" * 33: vector(1)})
    with pytest.raises(ValueError, match="at most 16"):
        state.save_outbox(entry(1), {str(number): vector(1) for number in range(17)})
    assert state.outbox is None


def test_an_update_above_the_limit_is_refused_with_the_remedy() -> None:
    with pytest.raises(StateError, match=r"10001 bytes is above outbox_bytes_max 10000: raise it"):
        open_state(MemoryFiles()).save_outbox(replace(entry(1), payload=bytes(10_001)), {})


# Corruption


def filled() -> MemoryFiles:
    files = MemoryFiles()
    state = open_state(files)
    run_round(state, 1, True, True, [])
    state.save_outbox(entry(2), kept(2))
    return files


@pytest.mark.parametrize("name", ["instance", "outbox", "vectors", "vectors.next"])
def test_any_flipped_bit_or_torn_file_is_set_aside_and_never_stops_the_start(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    good = filled().read(name)
    assert good is not None
    flipped = [good[:i] + bytes([good[i] ^ 0x10]) + good[i + 1 :] for i in range(len(good))]
    torn = [good[:n] for n in range(0, len(good), 7)] + [good + b"\0"]
    for bad in flipped + torn:
        files = filled()
        files.write(name, [bad])
        state = open_state(files)
        residual = residual_of(state)
        if name != "instance":
            assert f"{name}.corrupt" in files.names() and name not in files.names()
            assert residual is None or same(residual, vector(1))
        assert len(state.instance) == 16
        assert state.outbox == (None if name == "outbox" else entry(2))
    assert f"{name} is corrupt" in caplog.text


def test_a_new_residual_that_another_ticket_made_is_never_adopted() -> None:
    files, other = filled(), MemoryFiles()
    open_state(other).save_outbox(entry(3), kept(3))
    files.write("vectors.next", [other.read("vectors.next") or b""])
    state = open_state(files)
    state.settle(entry(2).ticket, True)
    assert residual_of(state) is None


def test_a_new_residual_without_its_update_is_removed_at_the_start() -> None:
    files, other = MemoryFiles(), filled()
    files.write("vectors.next", [other.read("vectors.next") or b""])
    open_state(files)
    assert files.names() == ["instance"]


@pytest.mark.parametrize("name", ["vectors.next", "outbox"])
def test_where_the_new_residual_is_lost_the_old_one_is_not_sent_twice(name: str) -> None:
    files = filled()
    files.write(name, [b"torn"])
    state = open_state(files)
    state.settle(entry(2).ticket, True)
    assert residual_of(state) is None
    assert residual_of(open_state(files)) is None


def test_where_the_new_residual_is_lost_and_the_update_does_not_count_the_old_one_stays() -> None:
    files = filled()
    files.write("vectors.next", [b"torn"])
    state = open_state(files)
    state.settle(entry(2).ticket, False)
    assert same(residual_of(state), vector(1))


def test_a_bad_sector_is_treated_as_a_corrupt_file() -> None:
    files = FailingFiles()
    run_round(open_state(files), 1, True, True, [])
    files.refuses = lambda action, name: (action, name) == ("read", "vectors")
    assert residual_of(open_state(files)) is None


def test_a_verdict_can_be_repeated_after_the_storage_failed_half_way() -> None:
    files = FailingFiles()
    state = open_state(files)
    run_round(state, 1, True, True, [])
    state.save_outbox(entry(2), kept(2))
    files.refuses = lambda action, name: (action, name) == ("delete", "outbox")
    with pytest.raises(StateError):
        state.settle(entry(2).ticket, True)
    files.refuses = lambda action, name: False
    state.settle(entry(2).ticket, True)
    assert same(residual_of(state), vector(2))
    assert same(residual_of(open_state(files)), vector(2))


def test_a_full_disk_keeps_the_residual_in_memory_and_the_outbox_raises() -> None:
    files = FailingFiles()
    state = open_state(files)
    files.refuses = lambda action, name: (action, name) == ("write", "vectors.next")
    run_round(state, 1, True, True, [])
    assert same(residual_of(state), vector(1))
    files.refuses = lambda action, name: action == "write"
    with pytest.raises(StateError):
        state.save_outbox(entry(2), kept(2))
    assert state.outbox is None
    assert not state.cache_put(hashlib.sha256(b"x").digest(), b"x", "program")


# The write budget


def test_beyond_the_write_budget_only_what_must_last_is_written() -> None:
    files, days = MemoryFiles(), [1]
    state = open_state(files, day=lambda: days[0], budget=1000)
    blob = bytes(900)
    digest = hashlib.sha256(blob).digest()
    assert state.cache_put(digest, blob, "program")
    assert not state.cache_put(hashlib.sha256(b"y" * 200).digest(), b"y" * 200, "program")
    state.save_outbox(entry(1), kept(1))
    assert {"outbox", "vectors.next"} & set(files.names()) == {"outbox"}
    state.settle(entry(1).ticket, True)
    assert same(residual_of(state), vector(1)), "in memory it lives on"
    assert residual_of(open_state(files, day=lambda: days[0], budget=1000)) is None
    days[0] = 2
    assert state.bytes_written_today == 0
    state.save_outbox(entry(2), kept(2))
    assert "vectors.next" in files.names()


def test_the_count_of_bytes_written_survives_a_restart_but_not_the_day() -> None:
    files, days = MemoryFiles(), [1]
    state = open_state(files, day=lambda: days[0], budget=2560)
    state.cache_put(hashlib.sha256(bytes(500)).digest(), bytes(500), "program")
    written = state.bytes_written_today
    assert written > 500
    again = open_state(files, day=lambda: days[0], budget=2560)
    assert written - 10 <= again.bytes_written_today <= written
    days[0] = 0  # a clock that was put back
    assert again.bytes_written_today == 0
    assert open_state(files, day=lambda: days[0], budget=2560).bytes_written_today == 0
    files.write("wear", [b"torn"])
    assert open_state(files, day=lambda: 1).bytes_written_today == 0


# The cache


def put(state: DeviceState, content: bytes, kind: str = "program") -> bytes:
    digest = hashlib.sha256(content).digest()
    assert state.cache_put(digest, content, kind)
    return digest


def test_cached_content_survives_a_restart() -> None:
    files = MemoryFiles()
    digest = put(open_state(files), b"program")
    state = open_state(files)
    assert state.cache_get(digest) == b"program"
    assert state.cache_get(bytes(32)) is None


def test_the_least_recently_used_content_goes_first() -> None:
    state = open_state(MemoryFiles(), cache=300)
    a, b, c = (put(state, bytes([n]) * 100) for n in range(3))
    assert state.cache_get(a) is not None
    d = put(state, b"d" * 100)
    assert [state.cache_get(x) is not None for x in (a, b, c, d)] == [True, False, True, True]
    too_big = bytes(301)
    assert not state.cache_put(hashlib.sha256(too_big).digest(), too_big, "program")
    assert state.cache_get(a) is not None, "what cannot fit evicts nothing"


def test_only_the_two_newest_parameters_are_kept() -> None:
    files = MemoryFiles()
    state = open_state(files)
    program = put(state, b"program")
    digests = [put(state, bytes([n]) * 10, "parameters") for n in range(4)]
    assert [state.cache_get(d) is not None for d in digests] == [False, False, True, True]
    assert state.cache_get(program) == b"program"


def test_a_smaller_cache_is_cut_down_at_the_next_start() -> None:
    files = MemoryFiles()
    for n in range(5):
        put(open_state(files), bytes([n]) * 100)
    open_state(files, cache=250)
    assert len([name for name in files.names() if name.startswith("program-")]) == 2


def test_corrupt_cached_content_is_deleted_at_the_first_read() -> None:
    files = MemoryFiles()
    digest = put(open_state(files), b"parameters", "parameters")
    files.write(f"parameters-{digest.hex()}", [b"parameterz"])
    state = open_state(files)
    assert state.cache_get(digest) is None
    assert not [name for name in files.names() if name.startswith("parameters-")]
    put(state, b"parameters", "parameters")
    assert state.cache_get(digest) == b"parameters"


def test_content_that_is_cached_already_is_not_written_again() -> None:
    state = open_state(MemoryFiles())
    put(state, b"program")
    written = state.bytes_written_today
    put(state, b"program")
    assert state.bytes_written_today == written


def test_an_unknown_kind_of_content_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="kind 'model'"):
        open_state(MemoryFiles()).cache_put(bytes(32), b"", "model")


# The directory


def test_the_state_survives_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    with DirectoryFiles(path) as files:
        state = open_state(files)
        run_round(state, 1, True, True, [])
        state.save_outbox(entry(2), kept(2))
        digest = put(state, b"program")
    assert path.stat().st_mode & 0o777 == 0o700
    with DirectoryFiles(path) as files:
        again = open_state(files)
        assert (again.instance, again.outbox) == (state.instance, entry(2))
        assert same(residual_of(again), vector(1))
        assert again.cache_get(digest) == b"program"
        again.settle(entry(2).ticket, True)
        assert same(residual_of(again), vector(2))
        assert not list(path.glob("*.tmp"))


def test_names_come_in_the_order_of_writing(tmp_path: Path) -> None:
    with DirectoryFiles(tmp_path) as files:
        for n, name in enumerate(("b", "a", "c")):
            files.write(name, [b"x"])
            os.utime(tmp_path / name, (n, n))
        assert files.names() == ["b", "a", "c"]
        assert files.size_bytes("a") == 1 and files.size_bytes("z") is None
        files.delete("a")
        files.delete("a")
        assert files.read("a") is None
        with pytest.raises(StateError, match="rename a"):
            files.rename("a", "d")


@pytest.mark.parametrize("name", ["../up", "", "lock", "a/b", "x.tmp", ".hidden", "a" * 101])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    with DirectoryFiles(tmp_path) as files, pytest.raises(ValueError, match="not a name"):
        files.write(name, [b""])


def test_half_written_files_are_removed_when_the_directory_is_opened(tmp_path: Path) -> None:
    (tmp_path / "outbox.tmp").write_bytes(b"half")
    with DirectoryFiles(tmp_path) as files:
        assert files.names() == []
    assert not (tmp_path / "outbox.tmp").exists()


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from edge_sdk.device.state import DirectoryFiles\n"
        "files = DirectoryFiles(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(StateError, match=rf"in use by another process \(pid {holder.pid}\)"):
            DirectoryFiles(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    DirectoryFiles(tmp_path).close()  # a killed process holds nothing


def test_a_full_disk_is_said_plainly_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write

    def write_then_fill_up(descriptor: int, data: memoryview) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data[:50])

    with DirectoryFiles(tmp_path) as files:
        files.write("outbox", [b"old"])
        monkeypatch.setattr(os, "write", write_then_fill_up)
        with pytest.raises(StateError, match=rf"{tmp_path}: no space for 120 bytes: free some"):
            files.write("outbox", [bytes(120)])
        monkeypatch.undo()
        assert files.read("outbox") == b"old"
        assert files.names() == ["outbox"] and not (tmp_path / "outbox.tmp").exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    with DirectoryFiles(tmp_path) as files:
        monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:7]))
        files.write("outbox", [b"abc" * 10, np.arange(9, dtype=np.float32).data.cast("B")])
        monkeypatch.undo()
        assert files.read("outbox") == b"abc" * 10 + np.arange(9, dtype=np.float32).tobytes()


def test_a_path_that_is_no_directory_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot open"):
        DirectoryFiles(tmp_path / "file")


def test_a_directory_that_vanishes_is_a_state_error(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    with DirectoryFiles(path) as files:
        (path / "lock").unlink()
        path.rmdir()
        with pytest.raises(StateError, match="cannot write"):
            files.write("outbox", [b"x"])
