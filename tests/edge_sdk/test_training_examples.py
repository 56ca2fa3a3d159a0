"""Examples: every usual form is taken, every misfit is named with what was expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import blobs, mlp_program

from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Input, Program
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.examples import Examples, as_examples, load_examples

PROGRAM = mlp_program((2, 4, 3))


def programmed(
    *inputs: Input, target: Input | None = None, loss: str = "mean_squared_error", classes: int = 0
) -> Program:
    """A program that takes these inputs; its graphs play no part here."""
    target = target or Input("target", "float32", (None,))
    return replace(PROGRAM, kind="trainer", inputs=inputs, target=target, loss=loss, classes=classes)


TWO = programmed(Input("user", "int64", (None,)), Input("item", "int64", (None,)))
IMAGE = programmed(Input("x", "float32", (None, 1, 2, 2)))


def test_all_usual_forms_give_the_same_examples() -> None:
    x, y = blobs(10, 2)
    forms: list[Any] = [
        (x, y),
        [x, y],
        {"x": x, "y": y},
        {"x": x, "target": y},
        {"x": {"x": x}, "y": y},
        ({"x": x}, y),
        (x.tolist(), y.tolist()),
        Examples({"x": x}, y),
    ]
    for form in forms:
        examples = as_examples(form, PROGRAM)
        assert len(examples) == 10
        batch = examples.batch(PROGRAM, np.array([3, 1]))
        assert np.array_equal(batch["x"], x[[3, 1]]) and np.array_equal(batch["target"], y[[3, 1]])
        assert batch["x"].dtype == np.float32 and batch["target"].dtype == np.int64


def test_several_inputs_go_by_name() -> None:
    value = {"user": [1, 2], "item": [3, 4], "target": [0.5, 1.0]}
    examples = as_examples(value, TWO)
    assert examples.batch(TWO, np.array([1]))["item"].tolist() == [4]
    with pytest.raises(ExamplesError, match=r"inputs .'user', 'item'.: give a dictionary"):
        as_examples(([1, 2], [1, 2]), TWO)
    with pytest.raises(ExamplesError, match="'item' is missing"):
        as_examples({"user": [1, 2], "y": [1, 2]}, TWO)


def test_inputs_keep_their_type_and_are_cast_by_the_batch() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(4, 2)
    examples = as_examples((x, [0, 1, 2, 0]), PROGRAM)
    assert np.shares_memory(examples.inputs["x"], x)
    assert examples.batch(PROGRAM, np.array([0]))["x"].dtype == np.float32


def test_whole_numbers_in_a_float_column_are_labels() -> None:
    x, _ = blobs(3, 2)
    assert as_examples((x, [0.0, 2.0, 1.0]), PROGRAM).target.dtype == np.int64


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "different numbers of examples.*'x': 3.*'target': 2"),
        (np.zeros((3, 4)), [0, 1, 2], r"'x': expected shape \[N, 2\], got \[3, 4\]"),
        (np.zeros((3, 2, 1)), [0, 1, 2], r"\.reshape\(3, 2\) would fit"),
        (np.zeros((3, 2)), [[0, 1], [1, 0], [2, 0]], r"target: expected shape \[N\], got \[3, 2\]"),
        (np.zeros((0, 2)), [], "there are none"),
        (np.float32(1), [0], r"got \[\]"),
        ([["a", "b"]], [0], "expected float32, got values of type <U1"),
        ([[1, 2], [1]], [0, 1], "different lengths"),
        ([[None, 1]], [0], "got values of type object"),
        ([[np.nan, 1], [1, np.inf]], [0, 1], "2 of 4 values are NaN or infinite"),
        ([[1e300, 1]], [0], "do not fit into float32"),
        (np.zeros((2, 2)), [0.5, 1], "expected whole numbers"),
        (np.zeros((2, 2)), [0, 3], r"the model's, 0..2; they go from 0 to 3"),
        (np.zeros((2, 2)), [-1, 0], "from -1 to 0"),
    ],
)
def test_misfits_say_what_was_expected_and_what_came(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ExamplesError, match=message):
        as_examples((x, y), PROGRAM)


@pytest.mark.parametrize("wanted", [(None,), (None, 1), (None, 1, 1)])
@pytest.mark.parametrize("given", [(3,), (3, 1), (3, 1, 1)])
def test_a_target_has_the_dimensions_of_one_at_its_end_that_the_loss_asks_for(
    wanted: tuple[int | None, ...], given: tuple[int, ...]
) -> None:
    program = programmed(Input("x", "float32", (None, 2)), target=Input("target", "float32", wanted))
    y = np.arange(3, dtype=np.float32)
    for target in (y.reshape(given), y.reshape(given).tolist()):
        examples = as_examples((np.zeros((3, 2)), target), program)
        assert examples.target.shape == (3, *wanted[1:]) and examples.target.ravel().tolist() == [0, 1, 2]


def test_a_target_of_several_values_is_never_folded_into_another_shape() -> None:
    program = programmed(Input("x", "float32", (None, 2)), target=Input("target", "float32", (None, 4)))
    with pytest.raises(ExamplesError, match=r"target: expected shape \[N, 4\], got \[3, 2, 2\]"):
        as_examples((np.zeros((3, 2)), np.zeros((3, 2, 2))), program)


@pytest.mark.parametrize("value", [None, 3, "x", (1, 2, 3), {"x": [[1, 2]]}])
def test_other_forms_are_refused(value: Any) -> None:
    with pytest.raises(ExamplesError):
        as_examples(value, PROGRAM)


@pytest.mark.parametrize(
    ("loss", "good", "bad"), [("binary_cross_entropy", [0, 1], [-1, 1]), ("hinge", [-1, 1], [0, 1])]
)
def test_two_sided_labels_are_checked_by_loss(loss: str, good: list[int], bad: list[int]) -> None:
    program = programmed(Input("x", "float32", (None, 2)), loss=loss)
    assert as_examples((np.zeros((2, 2)), good), program).target.dtype == np.float32
    with pytest.raises(ExamplesError, match=f"{loss}.*needs targets"):
        as_examples((np.zeros((2, 2)), bad), program)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"), [("bool", [0, 1], [0, 2]), ("uint8", [0, 255], [-1, 0]), ("int32", [1, 2], [1, 2**40])]
)
def test_values_must_survive_the_cast(dtype: str, good: list[int], bad: list[int]) -> None:
    program = programmed(Input("x", dtype, (None,)))
    examples = as_examples((good, [0.0, 1.0]), program)
    assert examples.batch(program, np.arange(2))["x"].astype(np.int64).tolist() == good
    with pytest.raises(ExamplesError, match="do not fit into"):
        as_examples((bad, [0.0, 1.0]), program)


# ---- files


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_npz_by_x_and_y_and_by_input_names(tmp_path: Path) -> None:
    x, y = blobs(6, 2)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    assert np.array_equal(load_examples(tmp_path / "xy.npz", PROGRAM).inputs["x"], x)
    np.savez(tmp_path / "named.npz", user=[1], item=[2], target=[0.5])
    assert load_examples(tmp_path / "named.npz", TWO).inputs["item"].tolist() == [2]


def test_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object), y=[0])
    with pytest.raises(ExamplesError, match=r"cannot be read as \.npz"):
        load_examples(tmp_path / "evil.npz", PROGRAM)


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nothing")
    for name in ("bad.npz", "none.npz", "none.csv"):
        with pytest.raises(ExamplesError, match=f"{name}.*cannot be read"):
            load_examples(tmp_path / name, PROGRAM)
    with pytest.raises(ExamplesError, match=r"ends in \.npz, \.csv, .* or \.sqlite3, not '\.xlsx'"):
        load_examples(tmp_path / "data.xlsx", PROGRAM)


def test_csv_takes_the_last_column_or_the_one_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "\ufeffa, b,label\r\n1,2,0\r\n3,4.5,2\r\n\r\n")
    examples = load_examples(path, PROGRAM)
    assert examples.inputs["x"].tolist() == [[1, 2], [3, 4.5]] and examples.target.tolist() == [0, 2]
    first = written(tmp_path / "b.csv", "label,a,b\n1,2,3\n")
    examples = load_examples(ExamplesFile(first, label=("label",)), PROGRAM)
    assert examples.inputs["x"].tolist() == [[2, 3]] and examples.target.tolist() == [1]


def test_csv_folds_columns_into_the_inputs_shape_and_takes_named_inputs(tmp_path: Path) -> None:
    path = written(tmp_path / "image.csv", "p0,p1,p2,p3,y\n1,2,3,4,0.5\n")
    assert load_examples(path, IMAGE).inputs["x"].shape == (1, 1, 2, 2)
    path = written(tmp_path / "two.csv", "when,item,user,stars\n9,3,4,5\n")
    examples = load_examples(path, TWO)
    assert (examples.inputs["user"].tolist(), examples.inputs["item"].tolist()) == ([4], [3])


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("", (), "first line must name"),
        ("1,2,3\n4,5,6\n", (), "add a header row"),
        ("a,b,y\n", (), "there are none"),
        ("a,b,y\n1,2\n", (), "line 2: 2 values, the header names 3"),
        (
            "a,b,y\n1,2,0\n1,,0\n",
            (),
            "line 3, column 'b': the cell is empty or NaN, and the model takes no missing values",
        ),
        ("a,b,y\n1,2,cat\n", (), "column 'y': the cell is not a number; give classes as 0, 1.* it is 'cat'"),
        ("a,b,y\n1,2,0\n", ("label",), r"no column 'label' for the target; the columns are \['a', 'b', 'y'\]"),
        ("a,y\n1,0\n", (), r"1 feature columns.*needs 2; the columns are \['a'\]"),
        ("a,a,y\n1,2,0\n", (), "each once"),
        ("a,b,y\n1,2,7\n", (), "line 2, column 'y': the cell must be a class, a whole number from 0 to 2; it is '7'"),
        ("a,b,y\n1,nan,0\n", (), "NaN"),
    ],
)
def test_csv_mistakes_name_the_line_and_the_remedy(
    tmp_path: Path, text: str, label: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExamplesError, match=message):
        load_examples(ExamplesFile(written(tmp_path / "bad.csv", text), label=label), PROGRAM)


def test_csv_that_is_no_text_is_an_examples_error(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    with pytest.raises(ExamplesError, match="cannot be read"):
        load_examples(tmp_path / "bytes.csv", PROGRAM)


def reconstructing() -> Program:
    from coordinator.compile import build_zoo_model, compile_model

    model = build_zoo_model("mlp", inputs=(4,), hidden=(2,), outputs=4, seed=0)
    return compile_model(model, loss="reconstruction", name="autoencoder", verify=False).program


def test_a_model_that_reconstructs_its_input_needs_no_target(tmp_path: Path) -> None:
    program = reconstructing()
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "x.npz", x=x)
    (tmp_path / "x.csv").write_text("a,b,c,d\n" + "\n".join(",".join(map(str, row)) for row in x) + "\n")
    sources: list[Any] = [x, {"x": x}, {"x": {"x": x}}, (x, x)]
    found = [as_examples(source, program) for source in sources]
    found += [load_examples(tmp_path / name, program) for name in ("x.npz", "x.csv")]
    for examples in found:
        np.testing.assert_array_equal(examples.target, x)
        np.testing.assert_array_equal(examples.inputs["x"], x)
    assert as_examples((x, x + 1), program).target[0, 0] == 1  # a noisy input and a clean target
    with pytest.raises(ExamplesError, match="3 feature columns"):
        (tmp_path / "x.csv").write_text("a,b,c\n1,2,3\n")
        load_examples(tmp_path / "x.csv", program)


def test_labels_that_are_ignored_may_be_outside_of_the_classes() -> None:
    from coordinator.compile import LossOptions, build_zoo_model, compile_model

    model = build_zoo_model("mlp", inputs=(4,), hidden=(2,), outputs=3, seed=0)
    options = LossOptions(ignore_index=-100)
    bundle = compile_model(model, loss="softmax_cross_entropy", loss_options=options, name="m", verify=False)
    program = Program.decode(bundle.program.encode())
    assert program.ignore_index == -100
    x = np.zeros((3, 4), np.float32)
    assert len(as_examples((x, np.array([0, -100, 2])), program)) == 3
    with pytest.raises(ExamplesError, match=r"the model's, 0\.\.2; they go from -1 to 2"):
        as_examples((x, np.array([-1, -100, 2])), program)
    with pytest.raises(ExamplesError, match="every label is -100"):
        as_examples((x, np.array([-100, -100, -100])), program)
