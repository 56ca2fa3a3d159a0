"""Columns and the model: names decide what feeds what, texts become numbers by tables, and a misfit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_programs import table_program, written

from edge_sdk.errors import DecodeError, ExamplesError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Input, Program
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.examples import as_examples, load_examples
from edge_sdk.training.normalise import Normalise

NAMED = table_program(3, features=("rpm", "temperature", "pressure"))


def load(path: Path, text: str, program: Program = NAMED, **settings: Any) -> Any:
    return load_examples(ExamplesFile(written(path / "log.csv", text), **settings), program)


# ---- names


@pytest.mark.parametrize(
    "text",
    [
        "rpm,temperature,pressure,y\n1480,62,4.2,1\n",
        "pressure,rpm,temperature,y\n4.2,1480,62,1\n",
        "temperature,pressure,rpm,y\n62,4.2,1480,1\n",
    ],
)
def test_columns_feed_the_model_in_the_order_of_its_names(tmp_path: Path, text: str) -> None:
    examples = load(tmp_path, text)
    assert examples.inputs["x"].tolist() == [[1480, 62, np.float32(4.2)]] and examples.target.tolist() == [1]


@pytest.mark.parametrize(
    ("header", "settings", "words"),
    [
        ("RPM,temperature,pressure,y", {}, r"features \['rpm'\] are not among the columns; did you mean 'RPM'"),
        ("rpm,pressure,y", {}, r"\['temperature'\] are not among the columns"),
        ("rpm,temperature,pressure,humidity,y", {}, r"there are columns \['humidity'\], which are no features"),
        (
            "rpm,temperature,pressure,y",
            {"features": ("rpm", "temperature")},
            r"features \['pressure'\] are not among data\.features",
        ),
        (
            "rpm,temperature,pressure,humidity,y",
            {"features": ("rpm", "temperature", "pressure", "humidity")},
            r"data\.features names \['humidity'\], which are no features of the model",
        ),
        ("y,rpm,temperature,pressure", {}, r"'pressure' is a feature of the model; name another one: data\.label"),
        ("rpm,temperature,pressure,y", {"label": ("fault",)}, "no column 'fault' for the target"),
        (
            "rpm,temperature,pressure,y",
            {"features": ("rmp",)},
            r"no column 'rmp' for data\.features; did you mean 'rpm'",
        ),
        ("rpm,temperature,pressure,y", {"where": "machne == 1"}, r"no column 'machne' for data\.where"),
        ("rpm,temperature,pressure,y", {"time": "at"}, r"no column 'at' for data\.time"),
        ("rpm,temperature,pressure,y", {"group": "machine"}, r"no column 'machine' for data\.group"),
        ("rpm,temperature,pressure,y", {"where": "rpm >"}, r"data\.where cannot be read: expected a number"),
    ],
)
def test_a_column_that_is_missing_or_too_much_is_an_error_that_names_it(
    tmp_path: Path, header: str, settings: dict[str, Any], words: str
) -> None:
    row = ",".join("1" for _ in header.split(","))
    with pytest.raises(ExamplesError, match=words):
        load(tmp_path, f"{header}\n{row}\n", **settings)


def test_columns_with_another_use_are_neither_features_nor_too_much(tmp_path: Path) -> None:
    text = "at,machine,kind,temperature,pressure,rpm,y\n2,7,a,62,4,1480,1\n1,7,a,61,3,1470,2\n3,7,b,1,1,1,0\n"
    examples = load(tmp_path, text, time="at", group="machine", where="kind == 'a'")
    assert examples.inputs["x"].tolist() == [[1470, 61, 3], [1480, 62, 4]] and examples.target.tolist() == [2, 1]


def test_features_of_the_device_choose_columns_where_the_model_names_none(tmp_path: Path) -> None:
    text = "note,a,b,c,y\nsome text,1,2,3,1\n"
    examples = load(tmp_path, text, table_program(2), features=("c", "a"))
    assert examples.inputs["x"].tolist() == [[3, 1]]
    with pytest.raises(ExamplesError, match=r"4 feature columns, input 'x' of shape .* needs 2"):
        load(tmp_path, text, table_program(2))


def test_several_inputs_take_their_columns_by_name_and_one_takes_the_features(tmp_path: Path) -> None:
    inputs = (
        Input("user", "int64", (None,)),
        Input("x", "float32", (None, 2)),
        Input("age", "float32", (None, 1)),
    )
    text = "stars,b,user,a,age\n5,0.5,9007199254740991,0.25,40\n"
    for facts, settings in (({"features": ("a", "b")}, {}), ({}, {"features": ("a", "b")})):
        examples = load(tmp_path, text, table_program(inputs=inputs, target=(), **facts), label=("stars",), **settings)
        batch = examples.inputs
        assert batch["x"].tolist() == [[0.25, 0.5]] and batch["age"].tolist() == [[40]]
        assert batch["user"].astype(np.int64).tolist() == [9007199254740991]
    with pytest.raises(ExamplesError, match=r"column 'user': the cell is infinite or beyond 9\.0"):
        load(tmp_path, text.replace("991", "993"), table_program(inputs=inputs, target=()), label=("stars",))


def test_several_columns_may_be_the_target(tmp_path: Path) -> None:
    program = table_program(1, target=(2,))
    examples = load(tmp_path, "left,x0,right\n1,2,3\n", program, label=("right", "left"))
    assert examples.target.tolist() == [[3, 1]] and examples.inputs["x"].tolist() == [[2]]
    with pytest.raises(ExamplesError, match=r"name them: data\.label = "):
        load(tmp_path, "left,x0,right\n1,2,3\n", table_program(2, target=(2,)))


def test_marks_among_the_columns_are_no_features(tmp_path: Path) -> None:
    text = "time,a,b,is_test,y\n2026-01-02,1,2,true,0\n2026-01-01,3,4,False,1\n"
    examples = load(tmp_path, text, table_program(2))
    assert examples.inputs["x"].tolist() == [[3, 4], [1, 2]] and examples.is_test.tolist() == [False, True]
    named = table_program(3, features=("time", "a", "b"))
    assert load(tmp_path, "time,a,b,y\n5,1,2,0\n", named).inputs["x"].tolist() == [[5, 1, 2]]
    text = "time,a,b,y\n5,1,2,0\n"
    with pytest.raises(ExamplesError, match=r"needs 3; \['time'\] are what their names say, and features where data"):
        load(tmp_path, text, table_program(3))
    assert load(tmp_path, text, table_program(3), features=("time", "a", "b")).inputs["x"].tolist() == [[5, 1, 2]]
    with pytest.raises(ExamplesError, match="line 2, column 'is_test': the cell must be 0 or 1, true or false"):
        load(tmp_path, "a,b,is_test,y\n1,2,maybe,0\n", table_program(2))


# ---- texts


FUEL = table_program(
    4,
    features=("load", "fuel", "rpm"),
    categories={"fuel": ("diesel", "petrol")},
    labels=("ok", "worn", "fault"),
)


def test_categories_become_columns_in_place_and_labels_their_position(tmp_path: Path) -> None:
    text = "rpm,state,fuel,load\n1480,fault,petrol,0.5\n1500, ok ,diesel,0.25\n"
    examples = load(tmp_path, text, FUEL, label=("state",))
    assert examples.inputs["x"].tolist() == [[0.5, 0, 1, 1480], [0.25, 1, 0, 1500]]
    assert examples.target.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("load,fuel,rpm,y\n1,coal,1,ok\n", "column 'fuel': the cell is none of 'diesel', 'petrol'; it is 'coal'"),
        ("load,fuel,rpm,y\n1,,1,ok\n", "column 'fuel': the cell is empty or NaN"),
        ("load,fuel,rpm,y\n1,diesel,1,OK\n", "column 'y': the cell is none of 'ok', 'worn', 'fault'; it is 'OK'"),
        ("load,fuel,rpm,y\n1,diesel,1,3\n", "must be a class, a whole number from 0 to 2, or 'ok', 'worn', 'fault'"),
        ("load,fuel,rpm,y\n1,diesel,1,-1\n", "must be a class"),
        ("load,fuel,rpm,y\n1,diesel,1,0.5\n", "must be a class"),
        (
            "load,fuel,rpm,y\n1,diesel,1,\n",
            r"column 'y': the cell is empty; leave rows without a label out: data\.where",
        ),
        ("load,fuel,rpm,y\n1,diesel,fast,ok\n", r"column 'rpm': .* not a number; list its values in model\.categories"),
        ("load,fuel,rpm,y\n1,diesel,1e39,ok\n", "column 'rpm': the cell is infinite or beyond 3.4"),
        ("load,fuel,rpm,y\n1,diesel,inf,ok\n", "column 'rpm': the cell is infinite"),
    ],
)
def test_a_text_that_is_in_no_table_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ExamplesError, match=rf"log\.csv, line 2, {words}|log\.csv, line 2, .*{words}"):
        load(tmp_path, text, FUEL)


def test_labels_may_be_numbers_although_the_classes_have_names(tmp_path: Path) -> None:
    assert load(tmp_path, "load,fuel,rpm,y\n1,diesel,1,2\n1,diesel,1,0\n", FUEL).target.tolist() == [2, 0]


def test_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    program = table_program(2, labels=("3", "5", "8"))
    assert load(tmp_path, "a,b,y\n1,2,8\n3,4,3\n", program).target.tolist() == [2, 0]
    with pytest.raises(ExamplesError, match="the cell is none of '3', '5', '8'; it is '0'"):
        load(tmp_path, "a,b,y\n1,2,0\n", program)


@pytest.mark.parametrize(("loss", "pair"), [("binary_cross_entropy", [0, 1]), ("hinge", [-1, 1])])
def test_two_classes_become_the_numbers_that_the_loss_asks_for(tmp_path: Path, loss: str, pair: list[int]) -> None:
    program = table_program(2, target=(), loss=loss, labels=("ok", "fault"))
    assert load(tmp_path, "a,b,y\n1,2,fault\n3,4,ok\n", program).target.tolist() == pair[::-1]
    numbers = f"a,b,y\n1,2,{pair[1]}\n3,4,{pair[0]}\n"
    assert load(tmp_path, numbers, program).target.tolist() == pair[::-1]
    with pytest.raises(ExamplesError, match=f"line 2, column 'y': the cell must be {pair[0]} or {pair[1]}, or 'ok'"):
        load(tmp_path, "a,b,y\n1,2,7\n", program)


def test_a_category_of_an_integer_input_is_its_position(tmp_path: Path) -> None:
    inputs = (Input("x", "float32", (None, 2)), Input("machine", "int64", (None,)))
    program = table_program(inputs=inputs, categories={"machine": ("pump", "fan", "drill")}, features=("a", "b"))
    examples = load(tmp_path, "machine,a,b,y\ndrill,1,2,0\npump,3,4,1\n", program)
    assert examples.inputs["machine"].astype(int).tolist() == [2, 0]


# ---- empty cells


def takes_missing(missing: str) -> Program:
    spec = ParameterSpec([("w", (3,), "trainable"), ("mean", (3,), "constant"), ("scale", (3,), "constant")])
    normalise = Normalise("x", 1, 3, "federated", "mean", "scale")
    return table_program(3, features=NAMED.features, spec=spec, normalise=normalise, missing=missing)


@pytest.mark.parametrize("cell", ["", "  ", "nan"])
def test_an_empty_cell_is_a_missing_value_where_the_model_takes_them(tmp_path: Path, cell: str) -> None:
    text = f"rpm,temperature,pressure,y\n1480,62,4,1\n1490,{cell},5,0\n"
    found = load(tmp_path, text, takes_missing("mean")).inputs["x"]
    assert np.array_equal(found, np.array([[1480, 62, 4], [1490, np.nan, 5]], np.float32), equal_nan=True)
    with pytest.raises(ExamplesError, match=r"line 3, column 'temperature': the cell is empty or NaN.*model\.missing"):
        load(tmp_path, text, takes_missing("refuse"))


# ---- columns in memory


def test_a_dictionary_by_the_names_of_features_is_taken_like_a_file() -> None:
    value = {"rpm": [1480.0, 1500], "state": ["fault", "ok"], "load": np.array([1, 2]), "fuel": ["petrol", "diesel"]}
    value["y"] = value.pop("state")
    examples = as_examples({**value, "time": [2, 1], "overlap": 1}, FUEL)
    assert examples.inputs["x"].tolist() == [[2, 1, 0, 1500], [1, 0, 1, 1480]]
    assert examples.target.tolist() == [0, 2] and examples.overlap == 1
    with pytest.raises(ExamplesError, match="examples, row 2, column 'fuel': the cell is none of"):
        as_examples({**value, "fuel": ["petrol", "coal"]}, FUEL)
    with pytest.raises(ExamplesError, match="one dimension and one length"):
        as_examples({**value, "rpm": [1.0]}, FUEL)


def test_labels_in_memory_may_be_names_too() -> None:
    x = np.zeros((3, 4))
    for y in (
        ["ok", "fault", "worn"],
        np.array(["ok", "fault", "worn"], object),
        np.array([["ok"], ["fault"], ["worn"]]),
    ):
        assert as_examples((x, y), FUEL).target.tolist() == [0, 2, 1]
    with pytest.raises(ExamplesError, match="examples, row 3, column 'target': the cell is none of 'ok'"):
        as_examples((x, ["ok", "ok", "bad"]), FUEL)


# ---- the program


def test_names_travel_with_the_program() -> None:
    assert (back := Program.decode(FUEL.encode())) == FUEL
    assert (back.features, back.categories, back.labels) == (FUEL.features, FUEL.categories, FUEL.labels)
    unnamed = Program.decode(table_program(2).encode())
    assert (unnamed.features, unnamed.categories, unnamed.labels) == ((), {}, ())


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"features": ("a", "b", "c")}, r"features: 3 features do not fit an input of \[4\] elements"),
        ({"features": ("a", "a")}, "stands there twice"),
        ({"features": ("a", "")}, "expected text of 1..200 characters"),
        ({"features": ("a", " b")}, "blanks around it"),
        ({"features": ("a", "b"), "categories": {"a": ("one",)}}, "needs at least two names"),
        (
            {"features": ("a", "b"), "categories": {"c": ("one", "two")}},
            "'c' is neither a feature nor an integer input",
        ),
        ({"features": ("a",), "categories": {"a": ("u", "v", "w")}}, "1 features of 3 numbers do not fit"),
        ({"labels": ("ok", "fault")}, "labels: 2 names, the model has 3 classes"),
        ({"labels": ("ok", "fault"), "classes": 0, "loss": "mean_squared_error"}, "the model has no classes"),
    ],
)
def test_names_that_do_not_fit_the_model_are_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        table_program(4, **facts)
