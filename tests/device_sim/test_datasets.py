"""Data sets and their split over devices: files, held-out examples, partitions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from device_sim.datasets import Dataset, load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import by_key, dirichlet, partition, shards
from device_sim.stable_random import StableRandom
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.settings import ExamplesFile

GOLDEN_PERMUTATION = [2, 0, 7, 4, 6, 3, 5, 1]
GOLDEN_UNIFORMS = [0.12348228423463581, 0.3738332717034121]
GOLDEN_NORMAL = -0.07230501286404543
GOLDEN_SIZES = [17, 9, 9, 25]

DATA = Path(os.environ.get("EDGEFED_TEST_DATA", "data"))


def small(labels: list[int], group: list[int] | None = None, **marks: Any) -> Dataset:
    y = np.array(labels, dtype=np.int64)
    return Dataset(np.arange(len(y), dtype=np.float32)[:, None], y, group=group, name="small", **marks)


def every_index_once(parts: list[NDArray[np.int64]], count: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(count))


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120)
HOWS = st.sampled_from(["iid", "shards:1", "shards:2", "shards:3", "dirichlet:0.01", "dirichlet:1", "dirichlet:100"])
BY_CLASS = st.sampled_from(["dirichlet_by_class:0.01", "dirichlet_by_class:0.5", "dirichlet_by_class:100"])


@given(LABELS, HOWS | BY_CLASS, st.integers(1, 12), st.integers(0, 2**40), st.integers(1, 4))
def test_a_partition_deals_every_index_once_with_the_minimum_for_each_device(
    labels: list[int], how: str, devices: int, seed: int, minimum: int
) -> None:
    data = small(labels)
    each = int(how.removeprefix("shards:")) if how.startswith("shards") else minimum
    if len(labels) < devices * each:
        with pytest.raises(ConfigurationError, match="too few for"):
            partition(data, how, devices, seed, minimum)
        return
    parts = partition(data, how, devices, seed, minimum)
    assert len(parts) == devices
    assert every_index_once(parts, len(labels))
    assert min(map(len, parts)) >= each
    assert all(np.all(np.diff(part) > 0) for part in parts)
    if "by_class" not in how and not how.startswith("shards"):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = partition(data, how, devices, seed, minimum)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_two_shards_give_a_device_few_classes() -> None:
    labels = np.repeat(np.arange(10), 600)[np.random.default_rng(1).permutation(6000)]
    parts = shards(labels, 100, 2, seed=7)
    classes = [len(np.unique(labels[part])) for part in parts]
    assert {len(part) for part in parts} == {60}
    assert max(classes) <= 2


def skew(labels: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> float:
    """Mean share of the commonest class of a device."""
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))


@pytest.mark.parametrize("how", ["dirichlet", "dirichlet_by_class"])
def test_the_concentration_turns_from_one_class_a_device_to_the_mixture_of_all(how: str) -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 400)
    data = small(labels.tolist())
    skews = [skew(labels, partition(data, f"{how}:{alpha}", 20, seed=3)) for alpha in (0.0001, 0.1, 1, 1000)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.75
    assert skews[-1] < 0.2


def test_dirichlet_by_class_varies_sizes_and_dirichlet_does_not() -> None:
    data = small(np.repeat(np.arange(10), 100).tolist())
    assert len({len(p) for p in partition(data, "dirichlet:0.3", 10, 1)}) == 1
    assert len({len(p) for p in partition(data, "dirichlet_by_class:0.3", 10, 1)}) > 3


def test_another_seed_deals_otherwise() -> None:
    data = small([0, 1, 2, 3] * 50)
    for how in ("iid", "shards:2", "dirichlet:0.3", "dirichlet_by_class:0.3"):
        one, two = partition(data, how, 5, 1), partition(data, how, 5, 2)
        assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True)), how


def test_the_draws_of_a_seed_are_fixed_for_ever() -> None:
    draws = StableRandom(42, "test")
    assert draws.permutation(8).tolist() == GOLDEN_PERMUTATION
    assert draws.uniforms(2).tolist() == pytest.approx(GOLDEN_UNIFORMS, abs=0)
    assert draws.normal() == pytest.approx(GOLDEN_NORMAL, rel=1e-12)
    assert [len(p) for p in partition(small([0, 1, 2] * 20), "dirichlet_by_class:0.5", 4, 42)] == GOLDEN_SIZES


def test_dirichlet_draws_have_the_moments_of_the_distribution() -> None:
    draws = StableRandom(5, "moments")
    alphas = [0.2, 1.0, 3.0]
    samples = np.array([draws.dirichlet(alphas) for _ in range(4000)])
    mean = np.array(alphas) / sum(alphas)
    variance = mean * (1 - mean) / (sum(alphas) + 1)
    assert np.allclose(samples.sum(axis=1), 1)
    assert np.allclose(samples.mean(axis=0), mean, atol=4 * np.sqrt(variance / 4000).max())
    assert np.allclose(samples.var(axis=0), variance, rtol=0.15)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=50), st.integers(0, 100))
def test_natural_deals_by_group(keys: list[int], seed: int) -> None:
    data = small([0] * len(keys), keys)
    people = sorted(set(keys))
    parts = partition(data, "natural", None, seed)
    assert every_index_once(parts, len(keys))
    assert [{keys[i] for i in part} for part in parts] == [{person} for person in people]
    fewer = partition(data, "natural", max(1, len(people) // 2), seed)
    assert len(fewer) == max(1, len(people) // 2)
    assert all(any(np.array_equal(part, whole) for whole in parts) for part in fewer)
    with pytest.raises(ConfigurationError, match=f"has {len(people)} groups"):
        partition(data, "natural", len(people) + 1, seed)


def test_groups_may_be_text() -> None:
    assert [part.tolist() for part in by_key(np.array(["b", "a", "b"]))] == [[1], [0, 2]]


@pytest.mark.parametrize(
    ("how", "devices", "message"),
    [
        ("sorted", 2, "is not understood; use one of iid"),
        ("iid:3", 2, "is not understood"),
        ("dirichlet", 2, "'' is not a number"),
        ("dirichlet:x", 2, "'x' is not a number"),
        ("dirichlet:0", 2, "concentration 0.0 is not in"),
        ("dirichlet:nan", 2, "concentration nan is not in"),
        ("shards:1.5", 2, "whole number"),
        ("shards:0", 2, "at least 1"),
        ("natural", 2, "needs a group for each example"),
        ("iid", 0, "devices: 0 must be at least 1"),
        ("iid", None, "devices: None must be at least 1"),
        ("iid", 7, "at most 6 devices"),
    ],
)
def test_a_partition_that_cannot_be_says_why(how: str, devices: int | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        partition(small([0, 1, 2] * 2), how, devices, 0)


def test_regression_targets_are_dealt_iid_only() -> None:
    data = Dataset(np.zeros((6, 1), np.float32), np.zeros(6, np.float32), name="values")
    assert every_index_once(partition(data, "iid", 2, 0), 6)
    with pytest.raises(ConfigurationError, match="needs one class label for each example"):
        partition(data, "dirichlet:1", 2, 0)


ANY_KIND = {
    "several inputs": Dataset({"user": np.arange(12), "item": np.arange(12) % 5, "target": np.ones(12)}),
    "a label for each position": Dataset(np.zeros((12, 7, 3)), np.zeros((12, 7), np.int64)),
    "images to be labelled": Dataset(np.zeros((12, 1, 4, 4), np.uint8), np.zeros((12, 4, 4), np.int64)),
    "no target": Dataset(np.zeros((12, 5))),
    "text labels": Dataset(np.zeros((12, 5)), np.array(["ok", "fault", "ok"] * 4)),
}


@pytest.mark.parametrize("kind", ANY_KIND)
def test_a_partition_deals_examples_of_any_kind(kind: str) -> None:
    data = ANY_KIND[kind]
    parts = partition(data, "iid", 3, 0)
    assert every_index_once(parts, 12)
    dealt = [data.part(part) for part in parts]
    for name, array in data.arrays.items():
        for part, own in zip(parts, dealt, strict=True):
            assert np.array_equal(own.arrays[name], array[part]) and own.arrays[name].dtype == array.dtype
    if kind == "text labels":
        assert [len(np.unique(data.y[part])) for part in partition(data, "shards:1", 3, 0)] == [1, 1, 1]
    else:
        with pytest.raises(ConfigurationError, match="needs one class label for each example"):
            partition(data, "shards:1", 3, 0)


# --- held-out examples ----------------------------------------------------------------------------------------------


@given(LABELS, st.floats(0, 0.9), st.integers(0, 99))
def test_holding_out_takes_the_share_of_each_class(labels: list[int], share: float, seed: int) -> None:
    data = small(labels)
    if all(int(share * labels.count(label) + 0.5) == labels.count(label) for label in labels):
        with pytest.raises(ConfigurationError, match="none is left to train on"):
            split_held_out(data, share, seed)
        return
    train, test = split_held_out(data, share, seed)
    assert sorted(np.concatenate([train.x, test.x]).ravel().tolist()) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        assert abs(int(np.sum(test.y == label)) - share * count) <= 0.5


def test_the_publishers_split_is_kept() -> None:
    held_out = np.array([False, True, False, True])
    x = np.zeros((4, 1), np.float32)
    data = Dataset(x, np.arange(4), group=[1, 2, 1, 2], is_test=held_out, name="people")
    train, test = split_held_out(data, 0.9, 5)
    assert (train.y.tolist(), test.y.tolist()) == ([0, 2], [1, 3])
    assert train.marks.group is not None and train.marks.group.tolist() == [1, 1]
    assert train.marks.is_test is None and test.marks.is_test is None, "the parts are what they are"


def test_the_newest_examples_are_held_out_by_time_or_by_their_order() -> None:
    train, test = split_held_out(small([0] * 10), 0.2, 0, last=True)
    assert (train.x.ravel().tolist(), test.x.ravel().tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9])
    time = np.random.default_rng(0).permutation(10)
    train, test = split_held_out(small([0] * 10, time=time), 0.2, 0, last=True)
    assert train.marks.time is not None and test.marks.time is not None
    assert sorted(train.marks.time) == list(range(8)) and sorted(test.marks.time) == [8, 9]


@pytest.mark.parametrize("last", [False, True])
def test_windows_that_overlap_with_held_out_ones_are_in_neither_part(last: bool) -> None:
    time, machine = np.repeat(np.arange(600), 2), np.tile([0, 1], 600)
    shuffled = np.random.default_rng(1).permutation(1200)
    arrays = {"x": np.zeros((1200, 1)), "y": np.zeros(1200, int), "time": time[shuffled], "group": machine[shuffled]}
    train, test = split_held_out(Dataset({**arrays, "overlap": 3}), 0.2, 4, last=last)
    assert 0.15 < len(test) / 1200 < 0.25 and len(train) + len(test) > 1100
    for here in (0, 1):
        one, other = (part.marks.time[part.marks.group == here] for part in (train, test))  # type: ignore[index]
        assert len(other) and np.abs(one[:, None] - other).min() > 3, "windows of two machines have nothing in common"


def test_where_nothing_would_be_left_to_train_on_it_is_said() -> None:
    with pytest.raises(ConfigurationError, match="4 of 4 examples are held out, and none is left to train on"):
        split_held_out(small([0] * 4, is_test=np.ones(4, bool)), 0.2, 0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="held_out"):
        split_held_out(small([0]), share, 0)


# --- files ----------------------------------------------------------------------------------------------------------


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_digits_are_flat_and_in_zero_to_one() -> None:
    data = load_dataset("digits")
    assert (data.x.shape, str(data.x.dtype), len(data)) == ((1797, 64), "float32", 1797)
    assert (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert data.reshaped((1, 8, 8)).x.shape == (1797, 1, 8, 8)
    with pytest.raises(ConfigurationError, match="cannot be reshaped"):
        data.reshaped((63,))


def test_a_file_with_arrays_and_marks_keeps_the_values_that_are_in_it(tmp_path: Path) -> None:
    path = save(
        tmp_path / "mine.npz",
        x=np.array([[0], [255]], np.uint8),
        y=np.array([1, 0], np.uint8),
        group=np.array(["ann", "bob"]),
        is_test=np.array([False, True]),
    )
    data = load_dataset(path)
    assert data.x.tolist() == [[0], [255]] and data.x.dtype == np.uint8, "nobody scales but the model"
    assert (data.labels.tolist(), data.name) == ([1, 0], "mine")  # type: ignore[union-attr]
    assert data.marks.group is not None and data.marks.group.tolist() == ["ann", "bob"]
    assert data.marks.is_test is not None and data.marks.is_test.tolist() == [False, True]


def test_a_published_split_puts_the_test_examples_last(tmp_path: Path) -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    path = save(
        tmp_path / "m.npz", x_train=images[:2], y_train=np.array([3, 4]), x_test=images[2:], y_test=np.array([5])
    )
    train, test = split_held_out(load_dataset(str(path)), 0.5, 0)
    assert (train.x.shape, train.y.tolist(), test.y.tolist()) == ((2, 2, 2), [3, 4], [5])
    assert np.array_equal(test.x[0], images[2])


def test_a_published_split_may_have_several_inputs(tmp_path: Path) -> None:
    arrays = {"user": np.arange(5), "item": np.arange(5) + 10, "target": np.arange(5.0)}
    halves = {f"{name}_train": array[:3] for name, array in arrays.items()}
    halves |= {f"{name}_test": array[3:] for name, array in arrays.items()}
    train, test = split_held_out(load_dataset(save(tmp_path / "r.npz", **halves)), 0.5, 0)
    assert train.arrays["item"].tolist() == [10, 11, 12] and test.arrays["user"].tolist() == [3, 4]


def test_windows_are_cut_from_recordings_in_the_unit_that_the_file_names(tmp_path: Path) -> None:
    signals = np.arange(20, dtype=np.int16).reshape(10, 2)
    arrays: dict[str, Any] = {
        "signals": signals,
        "scale": np.array([0.5, 2.0], np.float32),
        "window_start": np.array([0, 2, 7]),
        "window_len": np.int32(3),
        "y": np.array([0, 1, 1], np.uint8),
        "subject": np.array([4, 4, 9], np.uint8),
        "is_test": np.array([False, False, True]),
        "channels": np.array(["left", "right"]),
    }
    data = load_dataset(save(tmp_path / "w.npz", **arrays))
    assert data.x.shape == (3, 2, 3)
    assert data.x[2].tolist() == [[7.0, 8.0, 9.0], [30.0, 34.0, 38.0]]
    assert data.marks.group is not None and data.marks.group.tolist() == [4, 4, 9]
    assert data.marks.overlap == 1, "the first two have a row in common"
    raw = load_dataset(save(tmp_path / "raw.npz", **{k: v for k, v in arrays.items() if k != "scale"}))
    assert raw.x[2].tolist() == [[14, 16, 18], [15, 17, 19]] and raw.x.dtype == np.int16


GOOD: dict[str, Any] = {"x": np.zeros((2, 3), np.float32), "y": np.array([0, 1])}
SPLIT: dict[str, Any] = {
    "x_train": np.zeros((2, 3), np.uint8),
    "y_train": np.array([0, 1]),
    "x_test": np.zeros((1, 3), np.uint8),
    "y_test": np.array([0]),
}
WINDOWS: dict[str, Any] = {
    "signals": np.zeros((10, 2), np.int16),
    "scale": np.ones(2, np.float32),
    "window_start": np.array([0, 7]),
    "window_len": np.int32(3),
    "y": np.array([0, 1]),
    "subject": np.array([1, 2]),
}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((0, 3))}, "there are no examples; got x float64\\[0, 3\\]"),
        ({**GOOD, "y": np.array([0, 1, 2])}, "different numbers of examples: x float32\\[2, 3\\], y int64\\[3\\]"),
        ({"user": np.arange(2), "target": np.arange(3)}, "different numbers of examples: user int64\\[2\\]"),
        ({"x": np.float32(3)}, "there are no examples; got x float32\\[\\]"),
        ({**GOOD, "group": np.array([1.5, 2.5])}, "'group' is float64"),
        ({**GOOD, "group": np.array([1])}, "'group' has 1 entries, there are 2 examples"),
        ({**GOOD, "is_test": np.array([[True], [False]])}, "'is_test' is bool"),
        ({**GOOD, "time": np.array([[1], [2]])}, "'time' is int64\\[2, 1\\], expected one number"),
        ({**GOOD, "x": np.array([[object()], [2]], dtype=object)}, "cannot be read as .npz"),
        (
            {**SPLIT, "x_test": np.zeros((1, 4), np.uint8)},
            "'x_test' is uint8\\[1, 4\\], expected uint8\\[n, 3\\] as in 'x_train'",
        ),
        ({**SPLIT, "y_train": np.array([0])}, "'y_train' is int64\\[1\\], expected as many examples as 'x_train'"),
        ({**SPLIT, "y_test": np.array([0, 1])}, "'y_test' is int64\\[2\\], expected as many examples as 'x_test'"),
        ({**SPLIT, "y_test": np.array([0.5])}, "'y_test' is float64\\[1\\], expected int64\\[n\\] as in 'y_train'"),
        ({**WINDOWS, "window_start": np.array([0, 8])}, "row numbers in 0..7"),
        ({**WINDOWS, "window_start": np.array([-1, 0])}, "row numbers in 0..7"),
        ({**WINDOWS, "window_len": np.int32(11)}, "one whole number in 1..10"),
        ({**WINDOWS, "window_len": np.array([3])}, "one whole number in 1..10"),
        ({**WINDOWS, "scale": np.ones(3, np.float32)}, "finite floats\\[2\\]"),
        ({**WINDOWS, "signals": np.zeros(10, np.int16)}, "rows, channels"),
        ({**WINDOWS, "window_start": np.array([7, 0])}, "ascending row numbers"),
        ({**WINDOWS, "subject": np.array([1])}, "'group' has 1 entries, there are 2 examples"),
    ],
)
def test_a_bad_file_is_refused_by_key_and_shape(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigurationError, match=message):
        load_dataset(path)


TABLE = """time,group,rpm,state,is_test
3,b,1480,ok,1
1,a,1495,fault,0
2,b,-1,ok,0
4,a,1470,ok,0
"""


def table(directory: Path, ending: str, **settings: Any) -> Dataset:
    """The table above as a file of this kind."""
    path = directory / f"log.{ending}"
    if ending == "csv":
        path.write_text(TABLE)
    else:
        rows = [line.split(",") for line in TABLE.split()]
        columns = {name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}
        for name in ("time", "rpm", "is_test"):
            columns[name] = [int(cell) for cell in columns[name]]  # type: ignore[misc]
        parquet.write_table(pa.table(columns), path)
    return load_dataset(ExamplesFile(path, label=("state",), **settings))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_of_a_table_are_dealt_by_its_columns(tmp_path: Path, ending: str) -> None:
    data = table(tmp_path, ending)
    assert (len(data), data.name, data.labels.tolist()) == (4, "log", [1, 0, 1, 1])  # type: ignore[union-attr]
    train, test = split_held_out(data, 0.5, 0)
    assert (len(train), len(test)) == (3, 1) and "is_test" not in train.arrays
    assert [part.tolist() for part in partition(train, "natural", None, 0)] == [[0, 2], [1]]
    assert [len(np.unique(train.labels[part])) for part in partition(train, "shards:1", 3, 0)] == [1, 1, 1]  # type: ignore[index]
    assert len(table(tmp_path, ending, where="rpm > 0")) == 3


def test_rows_are_saved_as_a_table_and_read_again(tmp_path: Path) -> None:
    data = table(tmp_path, "csv")
    data.save(tmp_path / "again.csv")
    again = load_dataset(ExamplesFile(tmp_path / "again.csv", label=("state",)))
    assert again.labels.tolist() == data.labels.tolist()  # type: ignore[union-attr]
    assert again.marks.is_test.tolist() == [True, False, False, False]  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match=r"log has rows of a table; write them into a file that ends in \.csv"):
        data.save(tmp_path / "again.npz")
    with pytest.raises(ConfigurationError, match=r"small has arrays; write them into a file that ends in \.npz"):
        small([0, 1]).save(tmp_path / "again.csv")


def test_a_description_of_a_table_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(TABLE)
    path = tmp_path / "device.toml"
    path.write_text('[device]\nid = "pi"\n[data]\npath = "log.csv"\nlabel = "state"\nwhere = "rpm > 0"\n')
    assert len(load_dataset(path)) == 3
    path.write_text('[data]\npath = "log.csv"\nlabels = "state"\n')
    with pytest.raises(ConfigurationError, match=r"device\.toml: data\.labels: unknown key; did you mean label"):
        load_dataset(path)
    path.write_text("[data")
    with pytest.raises(ConfigurationError, match=r"device\.toml: cannot be read as TOML"):
        load_dataset(path)


def test_values_are_held_out_whatever_they_are() -> None:
    data = Dataset(np.zeros((200, 1)), np.arange(200))
    assert len(split_held_out(data, 0.2, 0)[1]) == 40, "whole numbers that are no classes have one example each"


def test_something_else_than_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="neither 'digits' nor a file that ends in"):
        load_dataset("cifar")
    with pytest.raises(ConfigurationError, match=r"cannot be read as \.npz"):
        load_dataset(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ConfigurationError, match=r"cannot be read as \.npz"):
        load_dataset(tmp_path / "text.npz")
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ConfigurationError, match="one bare array"):
        load_dataset(tmp_path / "bare.npz")
    whole = save(tmp_path / "cut.npz", **GOOD)
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_dataset(whole)


def test_a_part_of_one_run_is_a_view() -> None:
    data = small(list(range(10)))
    assert np.shares_memory(data.part(np.arange(3, 7)).x, data.x)
    assert data.part(np.array([7, 3])).y.tolist() == [7, 3]
    assert len(data.part(np.array([], dtype=np.int64))) == 0


@pytest.mark.skipif(not (DATA / "uci_har_raw.npz").exists(), reason="EDGEFED_TEST_DATA does not name the data folder")
def test_uci_har_holds_out_people_that_nobody_trains_on() -> None:
    train, test = split_held_out(load_dataset(DATA / "uci_har_raw.npz"), 0.2, 0)
    assert (len(train), len(test), train.x.shape[1:]) == (7415, 2996, (6, 128))
    assert train.marks.group is not None and test.marks.group is not None
    assert not set(train.marks.group.tolist()) & set(test.marks.group.tolist())
    assert len(partition(train, "natural", None, 0)) == 21


@pytest.mark.skipif(not (DATA / "mnist.npz").exists(), reason="EDGEFED_TEST_DATA does not name the data folder")
def test_mnist_deals_two_shards_of_300_to_each_of_100_devices() -> None:
    train, test = split_held_out(load_dataset(DATA / "mnist.npz"), 0.2, 0)
    assert (train.x.shape, test.x.shape, int(train.x.max())) == ((60000, 28, 28), (10000, 28, 28), 255)
    assert train.labels is not None
    assert {len(part) for part in partition(train, "shards:2", 100, 0)} == {600}
    assert len(dirichlet(train.labels, 1000, 0.3, 0)) == 1000
