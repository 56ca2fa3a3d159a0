"""The runs behind ``docs/codec-results.md``: pairs where they should be, and a page that says what they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.codec_methods import BOUNDS, DENSE, METHODS, make_method
from benchmarks.codec_report import ADVICE, PAGE, page
from benchmarks.codec_results import committed
from benchmarks.codec_run import Record, run
from benchmarks.codec_tasks import Federation, Task
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
