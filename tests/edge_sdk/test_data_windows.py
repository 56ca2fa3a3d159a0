"""Windows of a time series: which rows make an example, and which row its label comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_programs import table_program, written

from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Input, Program
from edge_sdk.training.data.settings import ExamplesFile, Window
from edge_sdk.training.examples import Examples, load_examples
from edge_sdk.training.local import split_by_plan
from edge_sdk.wire.plan import TrainingPlan

SERIES = table_program(3, 1, target=())
"""Three rows of one column, and a number."""


def load(path: Path, rows: list[str], window: Window, program: Program = SERIES, **settings: Any) -> Examples:
    file = written(path / "log.csv", "\n".join(rows) + "\n")
    return load_examples(ExamplesFile(file, window=window, **settings), program)


def counting(count: int) -> list[str]:
    return ["v,y", *(f"{i},{100 + i}" for i in range(count))]


@pytest.mark.parametrize(
    ("window", "starts", "labels"),
    [
        (Window(3), [0, 3, 6], [102, 105, 108]),
        (Window(3, step=1), list(range(8)), list(range(102, 110))),
        (Window(3, step=4), [0, 4], [102, 106]),
        (Window(3, step=2, horizon=2), [0, 2, 4], [104, 106, 108]),
        (Window(3, horizon=7), [0], [109]),
    ],
)
def test_windows_begin_every_step_and_have_the_label_of_the_horizon(
    tmp_path: Path, window: Window, starts: list[int], labels: list[int]
) -> None:
    examples = load(tmp_path, counting(10), window)
    assert examples.inputs["x"].tolist() == [[[s], [s + 1], [s + 2]] for s in starts]
    assert examples.target.tolist() == labels


def test_a_series_that_is_too_short_is_an_error_with_the_figures(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="no window of 3 rows, with a label 8 rows later, fits into the 10 rows"):
        load(tmp_path, counting(10), Window(3, horizon=8))


def test_no_window_reaches_from_one_group_into_another(tmp_path: Path) -> None:
    rows = ["machine,v,y"]
    for i in range(5):  # two machines write into one log, in turns
        rows += [f"a,{i},{i}", f"b,{50 + i},{50 + i}"]
    examples = load(tmp_path, rows, Window(3, step=1, horizon=1), group="machine")
    assert examples.inputs["x"][:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [50, 51, 52], [51, 52, 53]]
    assert examples.target.tolist() == [3, 4, 53, 54]


@pytest.mark.parametrize("as_text", [False, True])
def test_rows_are_sorted_by_time_and_no_window_reaches_over_a_gap(tmp_path: Path, as_text: bool) -> None:
    def time(second: int) -> str:
        return f"2026-01-31T12:{second // 60:02d}:{second % 60:02d}Z" if as_text else str(second)

    seconds = [0, 10, 20, 30, 300, 310, 320]
    rows = ["at,v,y", *(f"{time(s)},{s},{s}" for s in (310, 0, 20, 320, 10, 30, 300))]
    examples = load(tmp_path, rows, Window(3, step=1, gap=30), time="at")
    assert examples.inputs["x"][:, :, 0].tolist() == [[0, 10, 20], [10, 20, 30], [300, 310, 320]]
    without_gap = load(tmp_path, rows, Window(3, step=1), time="at")
    assert without_gap.inputs["x"][:, 0, 0].tolist() == seconds[:5]


def test_windows_of_several_groups_come_in_the_order_of_their_ends(tmp_path: Path) -> None:
    """So that the last examples are the newest, whichever machine they are of."""
    rows = ["at,machine,v,y"]
    rows += [f"{t},{m},{t},{t}" for m in ("a", "b") for t in range(0 if m == "a" else 1, 12, 2)]
    examples = load(tmp_path, rows, Window(3, step=1), time="at", group="machine")
    assert examples.target.tolist() == sorted(examples.target.tolist())
    assert examples.overlap == 4, "two windows before and behind each, of two machines"


@pytest.mark.parametrize(
    ("window", "overlap"),
    [(Window(3), 0), (Window(3, step=1), 2), (Window(3, step=2), 1), (Window(3, step=3, horizon=1), 1)],
)
def test_windows_say_with_how_many_others_they_share_rows(tmp_path: Path, window: Window, overlap: int) -> None:
    assert load(tmp_path, counting(30), window).overlap == overlap


TWO_COLUMNS = ["a,b,y", "1,10,0", "2,20,1", "3,30,2", "4,40,0"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 2), [[1, 10], [2, 20], [3, 30], [4, 40]]),
        ((2, 4), [[1, 2, 3, 4], [10, 20, 30, 40]]),
        ((8,), [1, 10, 2, 20, 3, 30, 4, 40]),
        ((1, 4, 2), [[[1, 10], [2, 20], [3, 30], [4, 40]]]),
        ((2, 1, 4), [[[1, 2, 3, 4]], [[10, 20, 30, 40]]]),
    ],
)
def test_a_window_takes_the_shape_of_the_input(tmp_path: Path, shape: tuple[int, ...], expected: Any) -> None:
    examples = load(tmp_path, TWO_COLUMNS, Window(4), table_program(*shape))
    assert examples.inputs["x"].tolist() == [expected]


def test_a_window_that_does_not_fit_the_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match=r"2 feature columns in windows of 3 rows, input 'x' of shape .* needs 8"):
        load(tmp_path, TWO_COLUMNS, Window(3), table_program(4, 2))


def test_a_target_of_one_label_for_each_row_gets_them_all(tmp_path: Path) -> None:
    examples = load(tmp_path, counting(7), Window(3, horizon=1), table_program(3, 1, target=(3,)))
    assert examples.target.tolist() == [[101, 102, 103], [104, 105, 106]]


def test_an_input_of_one_value_gets_that_of_the_last_row(tmp_path: Path) -> None:
    inputs = (Input("x", "float32", (None, 3, 1)), Input("season", "int64", (None,)))
    rows = ["v,season,y", *(f"{i},{i // 3},{i}" for i in range(6))]
    examples = load(tmp_path, rows, Window(3), table_program(inputs=inputs, target=()))
    assert examples.inputs["season"].astype(int).tolist() == [0, 1]
    assert examples.inputs["x"][:, 0, 0].tolist() == [0, 3]


def test_a_window_is_set_aside_with_all_its_rows_and_in_neither_part_with_some(tmp_path: Path) -> None:
    rows = ["v,is_test,y", *(f"{i},{int(i >= 4)},{i}" for i in range(9))]
    examples = load(tmp_path, rows, Window(3, step=1))
    assert examples.is_test is not None and examples.is_test.tolist() == [False, False, True, True, True]
    assert examples.inputs["x"][:, 0, 0].tolist() == [0, 1, 4, 5, 6]
    ahead = load(tmp_path, rows, Window(3, step=1, horizon=2))
    assert ahead.inputs["x"][:, 0, 0].tolist() == [4], "a label that is set aside is one of these rows"


def test_a_series_may_be_continued_and_its_label_be_a_feature(tmp_path: Path) -> None:
    program = table_program(3, 1, target=(), features=("v",))
    examples = load(tmp_path, counting(6), Window(3, horizon=1, step=1), program, features=("v",), label=("v",))
    assert examples.target.tolist() == [3, 4, 5]
    with pytest.raises(ExamplesError, match=r"the column .v. is a feature of the model"):
        load(tmp_path, counting(6), Window(3), program, features=("v",), label=("v",))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("machines", [1, 3])
def test_what_is_held_out_shares_no_row_with_what_is_trained_on(tmp_path: Path, machines: int, last: bool) -> None:
    rows = ["time,group,v,y", *(f"{i // machines},{i % machines},{i},{i}" for i in range(3000))]
    examples = load(tmp_path, rows, Window(3, step=1, horizon=2))
    train, held_out = split_by_plan(examples, TrainingPlan(held_out=0.2, held_out_last=last))
    assert len(train) > 1500 and len(held_out) > 300
    used = [
        {*part.inputs["x"].ravel().tolist(), *part.target.tolist()}
        for part in (examples.part(train), examples.part(held_out))
    ]
    assert not used[0] & used[1]


def test_only_the_newest_rows_are_cut(tmp_path: Path) -> None:
    examples = load(tmp_path, counting(5000), Window(3), rows_max=6)
    assert examples.target.tolist() == [5096, 5099]
    assert np.array_equal(examples.inputs["x"][:, :, 0], [[4994, 4995, 4996], [4997, 4998, 4999]])
