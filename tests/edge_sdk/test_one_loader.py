"""The same examples give the same evaluation loss to every reader: a device, its file, ``simulate``, the coordinator's
held-out data, virtual time and a fleet over a broker; for examples of every kind."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from one_federation import Federation
from onnx import helper, numpy_helper, parser

from coordinator.config import FederationConfig
from coordinator.evaluation import Evaluator
from coordinator.setup import build_bundle, load_evaluator
from device_sim import Dataset, load_dataset, partition, simulate, split_held_out
from device_sim.broker import PrivateBroker
from device_sim.fleet_run import FleetRun, run_fleet, share_of
from device_sim.scenario import Scenario, run
from edge_sdk.cli.device_config import load_data_table
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import Bundle, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples, load_examples
from edge_sdk.training.local import evaluate_locally, split_by_plan
from edge_sdk.wire.plan import TrainingPlan

Arrays = dict[str, NDArray[Any]]

COUNT, HELD_OUT = 60, 20
STEADY = "dropout=0,slow_share=0,slowness_spread=0"
STANDS_STILL = 1e-30
"""A learning rate that moves no parameter of these models: what is measured is the reading."""


@dataclass(frozen=True)
class Kind:
    """Examples of one kind, and a model for them.

    graph:  of the model, in ONNX's own notation, without its weights
    weights:  shapes of the weights by name
    examples:  gives that many
    model:  of the table [model]
    rate:  a learning rate that suits the range of the inputs
    """

    graph: str
    weights: dict[str, tuple[int, ...]]
    examples: Callable[[np.random.Generator, int], Arrays]
    model: dict[str, Any] = field(default_factory=lambda: {"loss": "softmax_cross_entropy"})
    rate: float = 0.1


def features(rng: np.random.Generator, count: int) -> Arrays:
    return {"x": rng.standard_normal((count, 4)), "y": rng.integers(0, 3, count)}


def images(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "x": rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8),
        "y": rng.integers(0, 3, count).astype(np.uint8),
    }


def ratings(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "user": rng.integers(0, 9, count),
        "item": rng.integers(0, 7, count),
        "target": rng.integers(1, 6, count).astype(np.float64),
    }


def tagged(rng: np.random.Generator, count: int) -> Arrays:
    mask = np.arange(6) < rng.integers(1, 7, count)[:, None]
    return {
        "x": rng.standard_normal((count, 6, 4)),
        "mask": mask,
        "target": np.where(mask, rng.integers(0, 3, (count, 6)), -1),
    }


def with_padding(rng: np.random.Generator, count: int) -> Arrays:
    arrays = tagged(rng, count)
    return {"x": arrays["x"], "y": np.where(arrays["mask"], arrays["target"], -100)}


def pictures(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "picture": rng.integers(0, 256, (count, 2, 3, 3)).astype(np.uint8),
        "target": rng.integers(0, 3, (count, 3, 3)),
    }


def unlabelled(rng: np.random.Generator, count: int) -> Arrays:
    return {"x": rng.standard_normal((count, 5)).astype(np.float32)}


def values(rng: np.random.Generator, count: int) -> Arrays:
    return {"x": rng.standard_normal((count, 4)), "target": rng.standard_normal((count, 2))}


PER_POSITION = "(float[N, 6, 4] x) => (float[N, 6, 3] y) { h = MatMul(x, w) y = Add(h, b) }"
KINDS = {
    "features": Kind(
        "(float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, w) y = Add(h, b) }", {"w": (4, 3), "b": (3,)}, features
    ),
    "images as bytes": Kind(
        "(float[N, 1, 4, 4] x) => (float[N, 3] y) { f = Flatten(x) h = MatMul(f, w) y = Add(h, b) }",
        {"w": (16, 3), "b": (3,)},
        images,
        rate=1e-6,
    ),
    "several inputs": Kind(
        "(int64[N] user, int64[N] item) => (float[N, 1] y) "
        "{ u = Gather(users, user) i = Gather(items, item) p = Mul(u, i) y = MatMul(p, w) }",
        {"users": (9, 4), "items": (7, 4), "w": (4, 1)},
        ratings,
        {"loss": "mean_squared_error"},
    ),
    "positions and a mask": Kind(
        PER_POSITION, {"w": (4, 3), "b": (3,)}, tagged, {"loss": "softmax_cross_entropy", "mask": "mask"}
    ),
    "positions that are ignored": Kind(
        PER_POSITION, {"w": (4, 3), "b": (3,)}, with_padding, {"loss": "softmax_cross_entropy", "ignore_index": -100}
    ),
    "a label for each pixel": Kind(
        "(float[N, 2, 3, 3] picture) => (float[N, 3, 3, 3] y) { y = Conv(picture, w, b) }",
        {"w": (3, 2, 1, 1), "b": (3,)},
        pictures,
        rate=1e-6,
    ),
    "no target": Kind(
        "(float[N, 5] x) => (float[N, 5] y) { h = MatMul(x, down) y = MatMul(h, up) }",
        {"down": (5, 2), "up": (2, 5)},
        unlabelled,
        {"loss": "reconstruction"},
    ),
    "several values": Kind(
        "(float[N, 4] x) => (float[N, 2] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": (4, 2), "b": (2,)},
        values,
        {"loss": "mean_squared_error"},
    ),
}


def model_bytes(kind: str) -> bytes:
    graph = parser.parse_graph(f"{kind.split()[0]} {KINDS[kind].graph}")
    rng = np.random.default_rng(1)
    for name, shape in KINDS[kind].weights.items():
        weight = (0.5 * rng.standard_normal(shape)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, name))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


@lru_cache
def bundle_of(kind: str) -> Bundle:
    model = {"onnx": "model.onnx", **KINDS[kind].model}
    config = FederationConfig.model_validate({"federation": {"name": "loader"}, "model": model})
    return build_bundle(config, verify=False, onnx=model_bytes(kind))


def everything(kind: str) -> Arrays:
    """All examples, some of them marked, in no order of time."""
    rng = np.random.default_rng(2)
    is_test = np.zeros(COUNT, bool)
    is_test[rng.permutation(COUNT)[:HELD_OUT]] = True
    marks = {"is_test": is_test, "time": rng.permutation(COUNT), "group": rng.integers(0, 3, COUNT)}
    return {**KINDS[kind].examples(rng, COUNT), **marks}


def held_out(kind: str) -> Arrays:
    """The marked ones without their marks."""
    arrays = everything(kind)
    is_test = arrays["is_test"]
    chosen = np.flatnonzero(is_test)[np.argsort(arrays["time"][is_test])]
    return {name: array[chosen] for name, array in arrays.items() if name not in ("is_test", "time", "group")}


def loss_of(kind: str, arrays: Any) -> float:
    """On a device."""
    bundle = bundle_of(kind)
    examples = as_examples(arrays, bundle.program)
    found = evaluate_locally(make_engine(bundle.program, "numpy"), bundle.parameters, examples)
    assert found is not None and found.count == len(examples)
    return found.loss_sum / found.count


def in_a_file(kind: str, directory: Path, name: str, arrays: Arrays) -> Path:
    path = directory / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def simulated(kind: str, evaluation: Any, clients: Any = None) -> float:
    clients = {"one": held_out(kind), "two": held_out(kind)} if clients is None else clients
    settings: dict[str, Any] = {"rounds": 1, "engine": "numpy", "progress": False, "learning_rate": STANDS_STILL}
    if isinstance(clients, Dataset | Path):
        settings |= {"split": "natural"}
    return simulate(bundle_of(kind), clients, evaluation=evaluation, **settings).initial["loss"]


def coordinated(kind: str, path: Path) -> float:
    bundle = bundle_of(kind)
    tables = {"federation": {"name": "loader"}, "model": {"bundle": "m.bundle"}, "evaluation": {"data": str(path)}}
    evaluator = load_evaluator(FederationConfig.model_validate(tables), bundle.program, "numpy")
    assert evaluator is not None
    return evaluator.evaluate(encode_parameters(bundle.parameters))["loss"]


def in_virtual_time_of(bundle: Bundle, data: Dataset) -> float:
    scenario = Scenario(devices=3, rounds=1, goal_count=2, split="natural", training=TrainingPlan(scalars={"lr": 0.0}))
    return run(scenario, 0, bundle, data=data).metrics["loss"]


READERS: dict[str, Callable[[str, Path], float]] = {
    "a device's file": lambda kind, tmp: loss_of(
        kind, load_examples(in_a_file(kind, tmp, "own", held_out(kind)), bundle_of(kind).program)
    ),
    "simulate with a dictionary": lambda kind, tmp: simulated(kind, held_out(kind)),
    "simulate with a file": lambda kind, tmp: simulated(kind, in_a_file(kind, tmp, "own", held_out(kind))),
    "simulate with Examples": lambda kind, tmp: simulated(kind, as_examples(held_out(kind), bundle_of(kind).program)),
    "simulate with a data set for evaluation": lambda kind, tmp: simulated(kind, Dataset(held_out(kind))),
    "simulate with a data set": lambda kind, tmp: simulated(kind, "auto", Dataset(everything(kind))),
    "simulate with a data set in a file": lambda kind, tmp: simulated(
        kind, "auto", in_a_file(kind, tmp, "all", everything(kind))
    ),
    "the coordinator": lambda kind, tmp: coordinated(kind, in_a_file(kind, tmp, "own", held_out(kind))),
    "the coordinator with marks": lambda kind, tmp: coordinated(kind, in_a_file(kind, tmp, "all", everything(kind))),
    "virtual time": lambda kind, tmp: in_virtual_time_of(bundle_of(kind), Dataset(everything(kind))),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_examples_have_the_same_loss_for_every_reader(kind: str, reader: str, tmp_path: Path) -> None:
    assert READERS[reader](kind, tmp_path) == pytest.approx(loss_of(kind, held_out(kind)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_simulate_learns_from_examples_of_every_kind(kind: str) -> None:
    data = Dataset({name: array for name, array in everything(kind).items() if name != "is_test"})
    history = simulate(
        bundle_of(kind), data, split="natural", evaluation={"last": 0.25}, rounds=10, learning_rate=KINDS[kind].rate
    )
    assert [counts.rounds for counts in history.clients.values()] == [10, 10, 10]
    assert history.metrics["train_loss"][-1] < history.metrics["train_loss"][0]
    assert np.isfinite(history.metrics["loss"]).all()


def tables_of(kind: str, directory: Path, **tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (directory / "model.onnx").write_bytes(model_bytes(kind))
    model = {"zoo": None, "inputs": None, "outputs": None, "onnx": str(directory / "model.onnx"), **KINDS[kind].model}
    return {
        "model": model,
        "training": {"learning_rate": STANDS_STILL},
        "codec": {"name": "dense", "density": None},
        "selection": {"goal_count": 3, "minimum_count": 3, "window_seconds": 0.2},
        "stopping": {"rounds_max": 1},
        **tables,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_fleet_over_a_broker_and_its_coordinator_read_the_same_file(
    kind: str, mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    path = in_a_file(kind, tmp_path, "all", everything(kind))
    tables = tables_of(kind, tmp_path, evaluation={"data": str(path)})
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, "loader", **tables) as plant:
        settings = FleetRun(plant.url, plant.name, data=str(path), split="natural", engine="numpy", seconds=60.0)
        assert run_fleet(settings, say=lambda line: None).startswith("finished")
        metrics = plant.rounds[-1].summary["metrics"]
    assert metrics["loss"] == pytest.approx(loss_of(kind, held_out(kind)), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_devices_of_a_fleet_hold_out_their_newest_examples_and_report_their_loss(
    kind: str, mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    arrays = {name: array for name, array in everything(kind).items() if name != "is_test"}
    path = in_a_file(kind, tmp_path, "all", arrays)
    tables = tables_of(kind, tmp_path, evaluation={"held_out": {"last": 0.25}})
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, "newest", **tables) as plant:
        settings = FleetRun(
            plant.url, plant.name, data=str(path), split="natural", held_out_share="0", engine="numpy", seconds=60.0
        )
        assert run_fleet(settings, say=lambda line: None).startswith("finished")
        metrics = plant.rounds[-1].summary["metrics"]
    expected, count = 0.0, 0
    for group in range(3):
        own = np.flatnonzero(arrays["group"] == group)
        own = own[np.argsort(arrays["time"][own])]
        newest = own[len(own) - int(0.25 * len(own) + 0.5) :]
        examples = {name: array[newest] for name, array in arrays.items() if name not in ("time", "group")}
        expected, count = expected + len(newest) * loss_of(kind, examples), count + len(newest)
    assert metrics["evaluated_examples"] == count
    assert metrics["loss"] == pytest.approx(expected / count, rel=1e-5)


def test_a_fleet_says_once_why_its_examples_do_not_fit_the_model(
    mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    path = in_a_file("several inputs", tmp_path, "all", everything("several inputs"))
    tables = tables_of("features", tmp_path)
    said: list[str] = []
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, "misfit", **tables) as plant:
        run_fleet(
            FleetRun(plant.url, plant.name, data=str(path), split="natural", seconds=4.0, profile=STEADY),
            say=said.append,
        )
    reasons = [line for line in said if "input 'x' is missing; got ['item', 'user']" in line]
    assert len(reasons) == 1 and reasons[0].startswith("device-0000"), said


# --- rows of a table ---


@dataclass(frozen=True)
class Rows:
    """Rows of a table, and a model of the zoo for them.

    data:  the table [data] of a device without its path
    model:  the table [model] of the coordinator
    """

    data: dict[str, Any]
    model: dict[str, Any]


TABLES_OF_ROWS = {
    "features and labels by name": Rows(
        {"label": "state", "where": "rpm > 0"},
        {
            "zoo": "softmax_regression",
            "features": ["pressure", "fuel", "rpm"],
            "categories": {"fuel": ["diesel", "petrol"]},
            "labels": ["ok", "worn", "broken"],
        },
    ),
    "windows of each machine's series": Rows(
        {"features": ["rpm", "pressure"], "label": "pressure", "window": {"length": 5, "step": 2, "horizon": 3}},
        {"zoo": "linear_regression", "inputs": [10], "outputs": 1, "features": ["rpm", "pressure"]},
    ),
}


def write_rows(path: Path, *, marked: bool = True) -> Path:
    """The log of three machines, in no order, the newest fifth set aside; two rows are of a machine that stood."""
    rng = np.random.default_rng(5)
    lines = []
    for moment in range(60):
        for machine in ("north", "south", "west"):
            state = rng.choice(["ok", "worn", "broken"])
            fuel = rng.choice(["diesel", "petrol"])
            rpm = -1 if moment == 7 else round(float(rng.normal(1480, 30)), 3)
            newest = int(moment >= 48) if marked else ""
            lines.append(f"{moment},{machine},{fuel},{rpm},{rng.normal(4, 0.3):.4f},{state},{newest}")
    rng.shuffle(lines)
    header = "time,group,fuel,rpm,pressure,state,is_test"
    body = [header, *lines] if marked else [line.rpartition(",")[0] for line in (header, *lines)]
    path.write_text("\n".join(body) + "\n")
    return path


def write_toml(path: Path, rows: Rows, csv: Path) -> Path:
    lines = [f'path = "{csv}"']
    for name, value in rows.data.items():
        shown = (
            "{" + ", ".join(f"{k} = {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else repr(value)
        )
        lines.append(f"{name} = {shown}")
    path.write_text("[data]\n" + "\n".join(lines) + "\n")
    return path


@lru_cache
def bundle_of_rows(kind: str) -> Bundle:
    model = {**TABLES_OF_ROWS[kind].model, "normalise": "none"}
    return build_bundle(FederationConfig.model_validate({"federation": {"name": "loader"}, "model": model}))


def loss_of_rows(kind: str, toml: Path) -> float:
    """On a device that has the log of all machines: its examples that are set aside."""
    bundle = bundle_of_rows(kind)
    examples = as_examples(load_data_table(tomllib.loads(toml.read_text())["data"], toml.parent), bundle.program)
    assert examples.is_test is not None
    index = np.flatnonzero(examples.is_test)
    found = evaluate_locally(make_engine(bundle.program, "numpy"), bundle.parameters, examples, index)
    assert found is not None
    return found.loss_sum / found.count


@pytest.mark.parametrize("kind", TABLES_OF_ROWS)
def test_rows_of_a_table_have_the_same_loss_for_every_reader(
    kind: str, mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    bundle, rows = bundle_of_rows(kind), TABLES_OF_ROWS[kind]
    toml = write_toml(tmp_path / "data.toml", rows, write_rows(tmp_path / "log.csv"))
    expected = pytest.approx(loss_of_rows(kind, toml), rel=1e-6)
    data = load_dataset(toml)
    settings: dict[str, Any] = {"split": "natural", "rounds": 1, "learning_rate": STANDS_STILL, "engine": "numpy"}
    history = simulate(bundle, data, **settings)
    assert set(history.clients) == {f"device-0000{n}" for n in range(3)} and history.initial["loss"] == expected
    assert simulate(bundle, toml, **settings).initial["loss"] == expected
    whole = load_data_table(tomllib.loads(toml.read_text())["data"], tmp_path)
    assert (
        simulate(bundle, {"all": whole}, evaluation=whole, **(settings | {"split": None})).initial["loss"] == expected
    )
    assert in_virtual_time_of(bundle, data) == expected

    tables: dict[str, dict[str, Any]] = {
        "model": {"zoo": None, "inputs": None, "outputs": None, **rows.model, "normalise": "none"},
        "training": {"learning_rate": STANDS_STILL},
        "codec": {"name": "dense", "density": None},
        "selection": {"goal_count": 3, "minimum_count": 3, "window_seconds": 0.2},
        "stopping": {"rounds_max": 1},
        "evaluation": {"data": {"path": str(tmp_path / "log.csv"), **rows.data}},
    }
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, "rows", **tables) as plant:
        run = FleetRun(plant.url, plant.name, data=str(toml), split="natural", engine="numpy", seconds=60.0)
        assert run_fleet(run, say=lambda line: None).startswith("finished")
        assert plant.rounds[-1].summary["metrics"]["loss"] == expected


@pytest.mark.parametrize("share", ["last:0.2", "0.2"])
@pytest.mark.parametrize("kind", TABLES_OF_ROWS)
def test_rows_that_a_fleet_holds_out_are_read_by_the_coordinator_and_share_nothing_with_those_that_train(
    kind: str, share: str, tmp_path: Path
) -> None:
    bundle, rows = bundle_of_rows(kind), TABLES_OF_ROWS[kind]
    data = load_dataset(write_toml(tmp_path / "data.toml", rows, write_rows(tmp_path / "log.csv", marked=False)))
    number, last = share_of(share)
    train, test = split_held_out(data, number, 3, last=last)
    test.save(tmp_path / "heldout.csv")
    file = load_data_table({"path": "heldout.csv", **rows.data}, tmp_path)
    judged = Evaluator(bundle.program, as_examples(file, bundle.program), "numpy").examples
    trained = [as_examples(train.part(part).examples, bundle.program) for part in partition(train, "natural", None, 0)]
    seen = set()
    for examples in trained:
        kept, _ = split_by_plan(examples, TrainingPlan())
        seen |= {value for row in examples.part(kept).inputs["x"] for value in np.ravel(row).tolist() if value > 100}
    speeds = {value for row in judged.inputs["x"] for value in np.ravel(row).tolist() if value > 100}
    assert len(trained) == 3 and seen and speeds and not seen & speeds, "every speed is measured once"


def test_a_machine_that_is_set_aside_whole_becomes_no_device(tmp_path: Path) -> None:
    toml = tmp_path / "data.toml"
    log = write_rows(tmp_path / "log.csv", marked=False)
    header, *body = log.read_text().splitlines()
    log.write_text("\n".join([f"{header},is_test", *(f"{line},{int(',west,' in line)}" for line in body)]) + "\n")
    data = load_dataset(write_toml(toml, TABLES_OF_ROWS["windows of each machine's series"], log))
    train, test = split_held_out(data, 0.2, 0)
    assert train.marks.group is not None and set(train.marks.group) == {"north", "south"}
    bundle = bundle_of_rows("windows of each machine's series")
    assert len(Evaluator(bundle.program, as_examples(test.examples, bundle.program), "numpy").examples) == 27


def test_windows_are_not_torn_apart_by_the_way_rows_are_dealt(tmp_path: Path) -> None:
    toml = write_toml(
        tmp_path / "data.toml", TABLES_OF_ROWS["windows of each machine's series"], write_rows(tmp_path / "log.csv")
    )
    with pytest.raises(
        ConfigurationError, match="'iid' would tear the series of 'log' apart, of which windows are cut"
    ):
        partition(load_dataset(toml), "iid", 3, 0)


def test_a_number_that_is_missing_makes_no_category_of_a_column(tmp_path: Path) -> None:
    log = write_rows(tmp_path / "log.csv")
    header, first, *body = log.read_text().splitlines()
    cells = first.split(",")
    cells[4] = ""
    log.write_text("\n".join([header, ",".join(cells), *body]) + "\n")
    rows = Rows({"label": "state", "features": ["rpm", "pressure", "fuel"]}, {})
    data = load_dataset(write_toml(tmp_path / "data.toml", rows, log))
    settings: dict[str, Any] = {"rounds": 2, "normalise": "federated", "missing": "mean", "learning_rate": 0.05}
    program = simulate("mlp", data, split="natural", **settings).bundle.program
    assert program.features == ("rpm", "pressure", "fuel") and dict(program.categories) == {
        "fuel": ("diesel", "petrol")
    }


@pytest.mark.parametrize("kind", TABLES_OF_ROWS)
def test_a_model_of_the_zoo_takes_names_and_sizes_from_the_columns_of_a_table(kind: str, tmp_path: Path) -> None:
    rows = TABLES_OF_ROWS[kind]
    data = load_dataset(write_toml(tmp_path / "data.toml", rows, write_rows(tmp_path / "log.csv")))
    history = simulate(rows.model["zoo"], data, split="natural", rounds=3, learning_rate=0.01, normalise="federated")
    program = history.bundle.program
    assert set(program.features) == set(rows.model["features"])
    assert sorted(program.labels) == sorted(rows.model.get("labels", []))
    assert np.isfinite(history.final["loss"])
