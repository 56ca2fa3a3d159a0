"""The runs behind ``docs/codec-results.md``: pairs where they should be, and a page that says what they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.codec_methods import BOUNDS, DENSE, METHODS, make_method
from benchmarks.codec_report import ADVICE, PAGE, page
from benchmarks.codec_results import committed, rows
from benchmarks.codec_run import Record, run
from benchmarks.codec_tables import Tables
from benchmarks.codec_tasks import TASKS, Federation, Task, made_up
from coordinator.compile import build_zoo_model, compile_model
from device_sim.datasets import load_dataset
from device_sim.partitions import shards
from edge_sdk.training.engine import make_engine
from edge_sdk.training.local import as_examples
from edge_sdk.wire.plan import TrainingPlan


@pytest.fixture(scope="module")
def digits() -> Federation:
    data = load_dataset("digits")
    bundle = compile_model(
        build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(24,), seed=0),
        loss="softmax_cross_entropy",
        name="digits",
        verify=False,
    )
    plan = TrainingPlan(epochs=1, batch_size=10, scalars={"lr": 0.1})
    examples = [as_examples((data.x[part], data.y[part]), bundle.program) for part in shards(data.y, 20, 2, 0)]
    return Federation(
        task=Task("digits", "2NN", 20, 4, 20, plan, every=5, last=2),
        seed=0,
        engine=make_engine(bundle.program),
        initial=bundle.parameters,
        clients=examples,
        test=as_examples((data.x, data.y), bundle.program),
        subset=np.arange(0, len(data.y), 4),
    )


def outcome(record: Record) -> tuple[float, float, float, list[tuple[int, float]]]:
    return record.accuracy, record.up_bytes, record.down_bytes, record.curve


def test_a_run_is_a_function_of_its_federation_and_method(digits: Federation) -> None:
    method = make_method("eden-0.25+sparse-10", digits.task)
    assert outcome(run(digits, method)) == outcome(run(digits, method))


def test_a_compressed_downlink_learns_as_well_in_fewer_bytes(digits: Federation) -> None:
    whole, deltas = run(digits, make_method(DENSE, digits.task)), run(digits, make_method("dense+auto", digits.task))
    assert deltas.accuracy > whole.accuracy - 0.05 > 0.5
    assert whole.fetched_bytes == whole.down_bytes > 4 * whole.parameters
    # Four of twenty clients a round: what one fetches is of five rounds, merged.
    assert deltas.down_bytes < deltas.fetched_bytes < 4 * deltas.down_bytes < whole.down_bytes


def test_bytes_are_those_of_frames_and_links(digits: Federation) -> None:
    record = run(digits, make_method("eden-0.25+sparse-10", digits.task))
    assert record.up_bytes < 4 * record.parameters / 25 and record.down_bytes < 4 * record.parameters / 5


def test_every_bound_is_of_a_method_that_runs() -> None:
    assert all(method in METHODS[task] for task, method in BOUNDS)


def test_the_page_says_what_the_committed_runs_say() -> None:
    runs = committed()
    assert PAGE.read_text() == page(runs, ADVICE.read_text())


# --- updates that are sparse by nature --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ratings", "deep", "words"])
def test_a_made_up_client_touches_about_the_share_of_the_rows_that_is_said(kind: str) -> None:
    tables = Tables(kind, 2_000, 4, 0.02, 100, hidden=8)
    train, test = tables.deal(3, 20)
    shares = [np.unique(train.x[train.client == client]).size / 2_000 for client in range(20)]
    assert 0.014 < np.mean(shares) < 0.0201
    assert train.x.min() >= 0 and train.x.max() < 2_000 and 0.1 < len(test.y) / len(train.y) < 0.4


@pytest.mark.parametrize(("kind", "eta"), [("ratings", 0.1), ("deep", 0.02)])
def test_auto_ends_where_dense_does_if_few_rows_are_touched_and_eden_does_not(kind: str, eta: float) -> None:
    tables = Tables(kind, 2_000, 8, 0.01, 30, hidden=16)
    plan = TrainingPlan(epochs=1, batch_size=10, scalars={"lr": 0.1})
    server = ("fedadam", {"eta": eta})
    task = Task("tables", kind, 30, 30, 10, plan, server, every=5, last=3, tables=tables)
    world = made_up(task, tables, 11)
    dense, auto, eden = (-run(world, make_method(name, task)).accuracy for name in (DENSE, "auto", "eden-0.048"))
    assert 0.0 < dense < -world.accuracy(world.initial, whole=True)
    assert abs(auto - dense) < 0.005 * dense < 0.005 * eden
    if kind == "ratings":
        assert eden > 1.01 * dense


def test_auto_is_within_half_a_per_cent_of_dense_in_every_committed_task_of_tables() -> None:
    found = [row for row in rows(committed()) if row.task.startswith("table-") and row.method == "auto"]
    assert {row.task for row in found} == {name for name, task in TASKS.items() if task.tables is not None}
    for row in found:
        assert row.bound is not None and row.bound.points == 0.5 and row.holds, row
    rated = [task.tables for task in TASKS.values() if task.tables is not None]
    assert min(each.rows for each in rated) == 1_000 and max(each.rows for each in rated) == 100_000
