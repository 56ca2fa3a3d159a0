"""What a device reports of its features before anything is trained; it needs neither parameters nor engine for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_made import mlp_program
from test_session import PARAMETERS, Bench, digest, of
from test_session import PROGRAM as PROGRAM_BYTES
from wired import raw_bundle

from edge_sdk.codecs import CodecSettings
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import Notify, StartTraining
from edge_sdk.device.training_job import OverQuota, TrainedUpdate, TrainingJob
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.errors import ExamplesError, TrainingError
from edge_sdk.training.bundle import Program, encode_parameters
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.feature_sums import FeatureSums
from edge_sdk.wire.messages import Decline, RangeData, RangeRequest, Update, short
from edge_sdk.wire.plan import Plan, TrainingPlan

PROGRAM = raw_bundle().program
PLAN = Plan(TrainingPlan(), CodecSettings("dense"), local="feature_statistics", without_parameters=True)


def examples(rows: int = 50) -> tuple[Any, Any]:
    rng = np.random.Generator(np.random.PCG64(1))
    x = rng.normal((1480.0, 62.0, 4.2, 0.0), (120.0, 5.0, 0.3, 1.0), (rows, 4)).astype(np.float32)
    return x, rng.integers(0, 3, rows)


def run(given: Any, plan: Plan = PLAN, program: Program = PROGRAM, **changes: Any) -> TrainedUpdate:
    start = StartTraining(bytes(16), b"", "default", 0, 0, "0", program.digest, bytes(32), plan, 50.0)
    order: dict[str, Any] = {
        "start": start,
        "program": program.encode(),
        "parameters": b"",
        "vectors": lambda spec: {},
        "keeps_vectors": lambda length: True,
        "seed": 0,
        "stop": lambda: False,
        "progress": lambda steps, loss: None,
    }
    work = TrainingWork(lambda: given, engines=changes.pop("engines", None), examples_min=changes.pop("least", 1))
    return work.run(TrainingJob(**{**order, **changes}))


def said(made: TrainedUpdate) -> Update:
    assert made.update.payload is not None
    return Update.decode(made.update.payload)


def sums(made: TrainedUpdate) -> FeatureSums:
    assert PROGRAM.normalise is not None
    return FeatureSums.decode(said(made).arrays, PROGRAM.normalise)


def test_a_report_holds_the_sums_of_each_feature_and_nothing_that_was_trained() -> None:
    x, y = examples()
    made = run((x, y))
    np.testing.assert_allclose(sums(made).sums, x.astype(np.float64).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums(made).squares, np.square(x.astype(np.float64)).sum(axis=0), rtol=1e-12)
    assert sums(made).counts.tolist() == [50.0] * 4
    update = said(made)
    assert (update.examples, update.steps, update.loss, update.vectors) == (50, 0, 0.0, {})
    assert made.result is None
    payload = made.update.payload or b""
    assert not any(row.tobytes() in payload for row in x), "raw examples never travel"


class NoEngines(EngineCache):
    def get(self, digest: bytes, data: Any) -> Any:
        raise AssertionError("an engine was made")


def test_no_engine_is_made_for_it() -> None:
    graph = mlp_program()
    with pytest.raises(TrainingError, match="normalises none"):
        run(([[0.0] * 6], [0]), program=graph, engines=NoEngines())


def test_the_program_is_decoded_once_and_its_engine_made_when_it_trains() -> None:
    graph, engines = mlp_program(), EngineCache("numpy")
    assert engines.program(graph.digest, graph.encode()) is engines.get(graph.digest, b"not read again")[0]
    assert engines.get(graph.digest, b"")[1] is engines.get(graph.digest, b"")[1] is not None


def test_what_a_device_keeps_stays_as_it_is() -> None:
    kept = {
        "residual": np.ones(3, np.float32),
        "residual.control": np.ones(4, np.float32),
        "local.mine.control": np.ones(5, np.float32),
    }
    made = run(examples(), vectors=lambda spec: kept)
    assert made.vectors_after.keys() == kept.keys()
    assert all(made.vectors_after[name] is kept[name] for name in kept)


def test_examples_that_are_kept_for_evaluation_have_no_part_in_the_sums() -> None:
    x, y = examples()
    made = run((x, y), replace(PLAN, training=TrainingPlan(held_out=0.4)))
    count = sums(made).counts[0]
    assert 15 < count < 45 and said(made).examples == count and said(made).evaluation is None
    test = np.arange(50) >= 35
    marked = Examples({PROGRAM.inputs[0].name: x}, y, is_test=test)
    assert sums(run(as_examples(marked, PROGRAM))).counts[0] == 35


def test_too_few_examples_are_no_basis_for_it() -> None:
    with pytest.raises(ExamplesError, match="50 local examples, this device wants at least 60"):
        run(examples(), least=60)


def test_missing_values_are_counted_apart_where_the_model_allows_them_and_refused_where_not() -> None:
    x, y = examples()
    x[:7, 1] = np.nan
    made = run((x, y))
    assert sums(made).missing.tolist() == [0.0, 7.0, 0.0, 0.0]
    np.testing.assert_allclose(sums(made).sums[1], np.nansum(x[:, 1].astype(np.float64)), rtol=1e-12)
    with pytest.raises(ExamplesError, match="NaN"):
        run((x, y), program=replace(PROGRAM, missing="refuse"))
    x[0, 1] = np.inf
    with pytest.raises(ExamplesError, match="infinite"):
        run((x, y))


def test_a_report_that_is_larger_than_an_update_may_be_is_not_sent() -> None:
    with pytest.raises(OverQuota, match="72 bytes, and bytes_per_update_max leaves 71"):
        run(examples(), frames_bytes_max=71)
    assert said(run(examples(), frames_bytes_max=72)).arrays


def test_nobody_trains_from_parameters_that_the_plan_does_without() -> None:
    with pytest.raises(TrainingError, match="does without parameters"):
        run(examples(), replace(PLAN, local="plain"))


def test_a_plan_that_trains_needs_the_parameters() -> None:
    graph = mlp_program()
    rows = [[0.0] * 6] * 4, [0, 1, 2, 0]
    plan = Plan(TrainingPlan(scalars={"lr": 0.1}), CodecSettings("dense"))
    parameters = encode_parameters(np.zeros(graph.spec.size, np.float32))
    assert said(run(rows, plan, graph, parameters=parameters)).vectors.keys() == {"delta"}


# --- the session -----------------------------------------------------------------------------------------------------


def test_for_a_plan_without_parameters_the_program_alone_is_fetched() -> None:
    bench = Bench()
    bench.check_in()
    bench.hear(bench.invite(plan=PLAN, round=0, parameters_bytes=1 << 30))
    bench.hear(RangeData(digest=short(digest(PROGRAM_BYTES)), data=PROGRAM_BYTES[:4096]))
    bench.hear(RangeData(digest=short(digest(PROGRAM_BYTES)), offset=4096, data=PROGRAM_BYTES[4096:]))
    assert {request.digest for request in bench.said(RangeRequest)} == {short(digest(PROGRAM_BYTES))}
    (begun,) = of(bench.actions, StartTraining)
    assert begun.round == 0 and not bench.blobs.has(digest(PARAMETERS))
    told = [notice for notice in of(bench.actions, Notify) if notice.what == ProgressKind.TRAINING]
    assert [notice.detail for notice in told] == ["feature_statistics"]


def test_a_device_that_does_not_know_the_local_algorithm_declines() -> None:
    bench = Bench(cached=[PROGRAM_BYTES])
    bench.check_in()
    bench.hear(bench.invite(plan=PLAN, round=0, requires=PLAN.requires))
    assert [message.reason for message in bench.said(Decline)] == ["unsupported"]
    (told,) = [notice for notice in of(bench.actions, Notify) if notice.what == ProgressKind.UNSUPPORTED]
    assert "local:feature_statistics" in told.detail and "upgrade edgefed" in told.detail
