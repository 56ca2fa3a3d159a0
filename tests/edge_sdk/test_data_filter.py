"""``[data] where``: comparisons over columns, read by a parser of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.data.row_filter import CHARACTERS_MAX, DEPTH_MAX, parse_filter
from edge_sdk.training.data.source import Rows

CELLS: dict[str, Any] = {
    "machine": ["3", "3", "4", "", "5"],
    "rpm": ["0", "1480", " 12.5 ", "-7", ""],
    "limit": ["1", "1480", "12", "0", "9"],
    "state": ["ok", "test", " ok", "", "it's"],
    "speed (rpm)": ["1", "2", "3", "4", "5"],
    "a.b": ["1", "1", "1", "1", "0"],
}


def chosen(text: str, cells: dict[str, Any] = CELLS) -> list[int]:
    count = len(next(iter(cells.values())))
    found = parse_filter(text).matches(Rows(Path("log.csv"), "line", range(2, 2 + count), cells))
    return [i for i, matches in enumerate(found) if matches]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("machine == 3", [0, 1]),
        ("machine == 3 and rpm > 0", [1]),
        ("machine == 4 or rpm > 100", [1, 2]),
        ("machine == 3 or machine == 4 and rpm > 100", [0, 1]),
        ("(machine == 3 or machine == 4) and rpm > 1e2", [1]),
        ("rpm>=12.5 and rpm<=1480", [1, 2]),
        ("rpm < -6.5", [3]),
        ("rpm == limit", [1]),
        ("rpm > limit", [2]),
        ("state == 'ok'", [0, 2]),
        ('state == "it\'s"', [4]),
        ("state > 'p'", [1]),
        ("machine == '3'", [0, 1]),
        ("`speed (rpm)` > 3", [3, 4]),
        ("a.b != 1", [4]),
        ("((rpm > 0))", [1, 2]),
    ],
)
def test_rows_fit_by_number_text_and_column(text: str, rows: list[int]) -> None:
    assert chosen(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("rpm != 0", [1, 2, 3]),
        ("rpm <= 9999", [0, 1, 2, 3]),
        ("machine != 3", [2, 4]),
        ("state != 'ok'", [1, 4]),
        ("rpm != limit", [0, 2, 3]),
        ("state == ''", [3]),
        ("state != ''", [0, 1, 2, 4]),
        ("rpm != '' and machine != ''", [0, 1, 2]),
    ],
)
def test_an_empty_cell_fits_nothing_but_may_be_asked_for(text: str, rows: list[int]) -> None:
    assert chosen(text) == rows


def test_the_columns_that_are_asked_after_are_known() -> None:
    assert parse_filter("(a == 1 or `b c` > d) and e != ''").columns == {"a", "b c", "d", "e"}


def test_a_cell_that_is_no_number_is_named() -> None:
    with pytest.raises(ExamplesError, match=r"log\.csv, line 2, column 'state': the cell is not a number; it is 'ok'"):
        chosen("state > 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected the name of a column at the end"),
        ("rpm", "expected one of == != < <= > >= at the end"),
        ("rpm > ", "expected a number, a 'text' or a column at the end"),
        ("rpm = 3", "'= 3' is no number, 'text', column or comparison"),
        ("rpm > 3 and", "expected the name of a column at the end"),
        ("rpm > 3 rpm", "expected and, or, or the end before 'rpm'"),
        ("(rpm > 3", "expected a closing parenthesis at the end"),
        ("rpm > 3)", "expected and, or, or the end before '\\)'"),
        ("3 > rpm", "expected the name of a column before '3 > rpm'"),
        ("rpm > 3x", "is no number"),
        ("state == 'ok", "is no number, 'text'"),
        ("__import__('os')", "expected one of"),
        ("rpm.real() > 3", "expected one of"),
        ("rpm > 1; rpm > 2", "'; rpm > 2' is no number"),
        ("rpm[0] > 1", "expected one of|is no number"),
        ("not rpm > 1", "expected one of"),
        ("and > 1", "expected the name of a column"),
        ("a > 1" + " and a > 1" * 200, f"at most {CHARACTERS_MAX}"),
        ("(" * (DEPTH_MAX + 1) + "a > 1" + ")" * (DEPTH_MAX + 1), "parentheses within each other"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_filter(text)
