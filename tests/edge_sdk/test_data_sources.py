"""Files of rows: what is still being written is left out or read again, and every format gives the same examples."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from table_programs import table_program, written

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.data.source import CELLS_AT_ONCE
from edge_sdk.training.data.steady import ATTEMPTS, read_steadily
from edge_sdk.training.examples import Examples, describe_file, load_examples

TWO = table_program(2)


def rows_of(examples: Examples) -> list[list[float]]:
    return np.column_stack([examples.inputs["x"], examples.target]).tolist()


# ---- a .csv that is being written


def test_whatever_byte_a_logger_has_come_to_only_whole_lines_are_read(tmp_path: Path) -> None:
    rows = [[1.5, 12.25, 0], [2.5, 113.0, 1], [3.125, 9.0, 2]]
    text = "a,b,y\r\n" + "".join(f"{a},{b},{int(y)}\r\n" for a, b, y in rows)
    first = text.index("\n", text.index("\n") + 1) + 1
    for end in range(first, len(text) + 1):
        (tmp_path / "log.csv").write_bytes(text[:end].encode())
        found = rows_of(load_examples(tmp_path / "log.csv", TWO))
        assert found == rows[: text[:end].count("\n") - 1], f"after {end} bytes"


@pytest.mark.parametrize("text", ["", "a,b", "a,b,y", "a,b,y\n", "a,b,y\n1,2,0"])
def test_a_log_without_a_whole_row_has_no_examples_yet(tmp_path: Path, text: str) -> None:
    with pytest.raises(ExamplesError, match=r"first line must name.* and end|there are none"):
        load_examples(written(tmp_path / "log.csv", text), TWO)


def test_a_quoted_cell_that_is_still_being_written_ends_the_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", 'a,b,note,y\n1,2,"two\nlines",0\n3,4,"not yet\n')
    file = ExamplesFile(path, features=("a", "b"))
    assert rows_of(load_examples(file, TWO)) == [[1, 2, 0]]


def test_a_wrong_line_in_the_middle_is_an_error_all_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", "a,b,y\n1,2\n3,4,0\n5,6")
    with pytest.raises(ExamplesError, match="line 2: 2 values, the header names 3 columns"):
        load_examples(path, TWO)


def grows(path: Path) -> None:
    with path.open("a") as file:
        file.write("7,8,2\n9")


def is_cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)
    path.write_text("a,b,y\n5,6,1\n")


def is_replaced(path: Path) -> None:
    other = written(path.with_suffix(".new"), path.read_text().replace("1,", "5,"))
    other.replace(path)


def is_written_anew_in_place(path: Path) -> None:
    text = path.read_text()
    with path.open("r+") as file:
        file.write(text.replace("1,", "5,") + text[6:])


@pytest.mark.parametrize(
    ("change", "reads"), [(grows, 1), (is_cut_to_nothing, 2), (is_replaced, 2), (is_written_anew_in_place, 2)]
)
def test_a_file_is_read_again_where_it_did_more_than_grow(
    tmp_path: Path, change: Callable[[Path], None], reads: int
) -> None:
    path = written(tmp_path / "log.csv", "a,b,y\n1,2,0\n3,4,1\n")
    seen = []

    def read() -> Examples:
        seen.append(load_examples(path, TWO))
        if len(seen) == 1:
            change(path)
        return seen[-1]

    result = read_steadily(path, read)
    assert len(seen) == reads and result is seen[-1]


def test_a_reading_that_fails_because_the_file_changed_is_tried_again(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", "a,b,y\n1,2,0\n")
    attempts = []

    def read() -> Examples:
        attempts.append(1)
        if len(attempts) == 1:
            is_cut_to_nothing(path)
            raise ExamplesError("half a row")
        return load_examples(path, TWO)

    assert rows_of(read_steadily(path, read)) == [[5, 6, 1]]
    with pytest.raises(ExamplesError, match="no file at all"):  # one that has not changed is not
        read_steadily(tmp_path / "none.csv", lambda: (_ for _ in ()).throw(ExamplesError("no file at all")))


def test_a_file_that_never_stands_still_is_given_up_with_a_remedy(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", "a,b,y\n1,2,0\n")
    attempts = []

    def read() -> None:
        attempts.append(1)
        is_replaced(path)

    with pytest.raises(ExamplesError, match=r"log\.csv: was cut short or replaced.*rename it when it is complete"):
        read_steadily(path, read)
    assert len(attempts) == ATTEMPTS


def test_no_examples_are_mixed_of_two_files_while_another_thread_replaces_them(tmp_path: Path) -> None:
    """A reading gives the rows of one file or says that they were never the same for long enough."""
    path, done = tmp_path / "log.csv", threading.Event()

    def write(generation: int) -> None:
        line = f"{generation},{generation},{generation % 3}\n"
        written(tmp_path / "new", "a,b,y\n" + line * 3000).replace(path)

    def keep_writing() -> None:
        generation = 0
        while not done.wait(0.05):
            write(generation := generation + 1)

    def is_of_one_file() -> bool:
        try:
            found = np.array(rows_of(load_examples(path, TWO)))
        except ExamplesError as error:
            return "was cut short or replaced" in str(error)
        return len(found) == 3000 and len(np.unique(found, axis=0)) == 1

    write(0)
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        assert all(is_of_one_file() for _ in range(10))
    finally:
        done.set()
        writer.join()
    assert len(load_examples(path, TWO)) == 3000


# ---- many rows


def test_rows_beyond_one_piece_come_whole_and_in_order(tmp_path: Path) -> None:
    count = CELLS_AT_ONCE // 3 + 500
    table = np.column_stack([np.arange(count), np.arange(count) / 8, np.arange(count) % 3])
    path = tmp_path / "many.csv"
    np.savetxt(path, table, delimiter=",", header="a,b,y", comments="", fmt="%.10g")
    examples = load_examples(path, TWO)
    assert np.array_equal(rows_of(examples), table)
    assert examples.inputs["x"].dtype == np.float32


@pytest.mark.parametrize("rows_max", [1, 7, 1500, 4_000, 60_000])
def test_of_more_rows_than_rows_max_the_newest_are_kept(tmp_path: Path, rows_max: int) -> None:
    count = CELLS_AT_ONCE // 3 + 2500
    path = written(tmp_path / "many.csv", "a,b,y\n" + "".join(f"{i},0,0\n" for i in range(count)))
    found = load_examples(ExamplesFile(path, rows_max=rows_max), TWO).inputs["x"][:, 0]
    assert found.tolist() == list(range(max(0, count - rows_max), count))


def test_rows_that_the_filter_leaves_out_do_not_count_for_rows_max(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", "a,b,y\n" + "".join(f"{i},{i % 2},0\n" for i in range(20)))
    examples = load_examples(ExamplesFile(path, where="b == 1", rows_max=3), TWO)
    assert examples.inputs["x"][:, 0].tolist() == [15, 17, 19]


# ---- other formats

START = datetime(2026, 1, 31, 12)
CELLS = {
    "at": [START + timedelta(minutes=3 - i) for i in range(4)],
    "rpm": [1480, 1500, 1490, 0],
    "load": [0.5, 0.25, 1.5, 2.0],
    "fuel": ["petrol", "diesel", "diesel", "petrol"],
    "state": ["ok", "ok", "fault", "ok"],
}
PUMPS = table_program(
    4,
    loss="softmax_cross_entropy",
    classes=2,
    features=("load", "fuel", "rpm"),
    categories={"fuel": ("diesel", "petrol")},
    labels=("ok", "fault"),
)
EXPECTED = [[1.5, 1, 0, 1490, 1], [0.25, 1, 0, 1500, 0], [0.5, 0, 1, 1480, 0]]
"""Sorted by time, without the row of a machine that stands still."""


def as_csv(path: Path) -> ExamplesFile:
    lines = [",".join(CELLS), *(",".join(map(str, row)) for row in zip(*CELLS.values(), strict=True))]
    return ExamplesFile(written(path / "pumps.csv", "\n".join(lines) + "\n"))


def as_parquet(path: Path) -> ExamplesFile:
    table = pa.table({**CELLS, "fuel": pa.array(CELLS["fuel"]).dictionary_encode()})
    parquet.write_table(table, path / "pumps.parquet", row_group_size=2)
    return ExamplesFile(path / "pumps.parquet")


def as_sqlite(path: Path) -> ExamplesFile:
    with closing(sqlite3.connect(path / "pumps.db")) as database, database:
        database.execute("CREATE TABLE readings (at TEXT, rpm INTEGER, load REAL, fuel TEXT, state TEXT)")
        rows = [(row[0].isoformat(), *row[1:]) for row in zip(*CELLS.values(), strict=True)]
        database.executemany("INSERT INTO readings VALUES (?, ?, ?, ?, ?)", rows)
    return ExamplesFile(path / "pumps.db", table="readings")


@pytest.mark.parametrize("make", [as_csv, as_parquet, as_sqlite])
def test_the_same_rows_are_the_same_examples_in_every_format(
    tmp_path: Path, make: Callable[[Path], ExamplesFile]
) -> None:
    file = make(tmp_path)
    file = ExamplesFile(file.path, time="at", where="rpm > 0", label=("state",), table=file.table)
    assert rows_of(load_examples(file, PUMPS)) == EXPECTED
    assert "3 rows" in describe_file(file) and "text in fuel" in describe_file(file)


@pytest.mark.parametrize("make", [as_csv, as_parquet, as_sqlite])
def test_a_wrong_cell_is_named_by_file_place_and_column_in_every_format(
    tmp_path: Path, make: Callable[[Path], ExamplesFile]
) -> None:
    file = make(tmp_path)
    file = ExamplesFile(file.path, features=("load", "state"), label=("rpm",), table=file.table)
    place = "line 4" if file.path.suffix == ".csv" else "row 3"
    with pytest.raises(ExamplesError) as caught:
        load_examples(
            file, table_program(3, features=("load", "state"), categories={"state": ("ok", "off")}, classes=0)
        )
    assert f"pumps{file.path.suffix}, {place}, column 'state': the cell is none of 'ok', 'off'" in str(caught.value)
    assert "'fault'" in str(caught.value), "this device shows what stands there"
    assert "fault" not in caught.value.public and str(tmp_path) not in caught.value.public
    assert caught.value.public.startswith(f"pumps{file.path.suffix}, {place}, column 'state'")


def test_parquet_numbers_of_every_kind_are_numbers_and_null_is_missing(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1, None, 3], pa.int16()),
            "b": pa.array([True, False, True]),
            "c": pa.array([Decimal("1.50"), Decimal("2.25"), Decimal("3.00")]),
            "y": pa.array([0, 1, 2], pa.uint64()),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ExamplesError, match=r"t\.parquet, row 2, column 'a': the cell is empty"):
        load_examples(tmp_path / "t.parquet", table_program(3))
    examples = load_examples(ExamplesFile(tmp_path / "t.parquet", where="a > 0"), table_program(3))
    assert rows_of(examples) == [[1, 1, 1.5, 0], [3, 1, 3, 2]]
    assert describe_file(ExamplesFile(tmp_path / "t.parquet")).endswith("empty cells: 1 in a")


def test_parquet_needs_an_extra_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExamplesError, match=r"needs pyarrow: pip install 'edgefed\[parquet\]'"):
        load_examples(tmp_path / "pumps.parquet", PUMPS)


@pytest.mark.parametrize("name", ["t.parquet", "t.db", "t.csv", "t.npz"])
def test_damage_and_absence_are_named_in_every_format(tmp_path: Path, name: str) -> None:
    file = ExamplesFile(tmp_path / name, table="t")
    for _ in range(2):
        with pytest.raises(ExamplesError, match=f"{name}.*cannot be read as ") as caught:
            load_examples(file, TWO)
        assert caught.value.public.startswith(f"{name}: cannot be read")
        file.path.write_bytes(b"\xff\xfe nothing of the kind\n" * 100)


def test_a_query_may_choose_rename_and_sort(tmp_path: Path) -> None:
    path = as_sqlite(tmp_path).path
    query = "SELECT rpm / 10 AS a, load AS b, 1 AS y FROM readings ORDER BY load DESC LIMIT 2"
    assert rows_of(load_examples(ExamplesFile(path, query=query), TWO)) == [[0, 2, 1], [149, 1.5, 1]]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM readings",
        "INSERT INTO readings VALUES (1, 1, 1, 1, 1) RETURNING *",
        "CREATE TABLE other (a)",
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode = DELETE",
        "SELECT 1; DELETE FROM readings",
    ],
)
def test_a_query_can_do_nothing_but_read(tmp_path: Path, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = as_sqlite(tmp_path).path
    before = path.read_bytes()
    with pytest.raises(ExamplesError, match="cannot be read as an SQLite database"):
        load_examples(ExamplesFile(path, query=query), TWO)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["pumps.db"]


def test_tables_without_rowid_and_views_are_read_and_an_index_changes_no_order(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (a, b, y)")
        database.executemany("INSERT INTO t VALUES (?, ?, ?)", [(3, 0, 0), (1, 0, 1), (2, 0, 2)])
        database.execute("CREATE INDEX everything ON t (a, b, y)")
        database.execute('CREATE VIEW "a ""view""" AS SELECT * FROM t WHERE a > 1')
        database.execute("CREATE TABLE keyed (a PRIMARY KEY, b, y) WITHOUT ROWID")
        database.execute("INSERT INTO keyed SELECT * FROM t")
    for table, expected in (("t", [3, 1, 2]), ('a "view"', [3, 2]), ("keyed", [1, 2, 3])):
        found = load_examples(ExamplesFile(path, table=table), TWO).inputs["x"][:, 0]
        assert sorted(found.tolist()) == sorted(expected)
        assert table != "t" or found.tolist() == expected


def test_a_database_is_read_while_somebody_writes_to_it(tmp_path: Path) -> None:
    path = as_sqlite(tmp_path).path
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO readings VALUES ('2026-01-01', 9, 9, 'petrol', 'ok')")
        file = ExamplesFile(path, table="readings", label=("state",), time="at")
        assert len(load_examples(file, PUMPS)) == 4, "what is not committed is not there"
        writer.execute("COMMIT")
        assert len(load_examples(file, PUMPS)) == 5


def test_a_database_without_a_table_or_with_another_one_says_so(tmp_path: Path) -> None:
    path = as_sqlite(tmp_path).path
    with pytest.raises(ExamplesError, match=r"data\.table or data\.query"):
        load_examples(path, TWO)
    with pytest.raises(ExamplesError, match="no such table: nothing"):
        load_examples(ExamplesFile(path, table="nothing"), TWO)
    with pytest.raises(ExamplesError, match="each once; give them with AS"):
        load_examples(ExamplesFile(path, query="SELECT rpm, rpm, load FROM readings"), TWO)
