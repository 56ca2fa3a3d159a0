"""Raw units through the whole protocol: a round of statistics first, and the auditor's own mean and scale."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from wired import TASK, Desk, make_report, raw_bundle

from coordinator.compile import NormaliseOptions, build_zoo_model, compile_model
from coordinator.events import CloseJob, RoundCommitted
from device_sim import Dataset, load_dataset, partition, simulate, split_held_out
from device_sim.auditors.rounds import Auditor, InvariantBroken
from device_sim.auditors.statistics import mean_and_scale
from device_sim.profiles import FleetProfile
from device_sim.scenario import FAULTY, Scenario, run
from edge_sdk.codecs import CodecSettings
from edge_sdk.errors import TrainingError
from edge_sdk.training.algorithms import LocalResult, LocalWork
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.training.feature_sums import ExactFeatureSums, FeatureSums, feature_sums
from edge_sdk.wire.messages import Update
from edge_sdk.wire.plan import TrainingPlan

STEADY = FleetProfile(dropout=0.0, slow_share=0.0, slowness_spread=0.0)
TRAINING = TrainingPlan(epochs=2, batch_size=16, seconds_max=290.0, scalars={"lr": 0.1})


def raw_digits() -> Dataset:
    """Handwritten digits whose pixels have units of their own: from a few thousandths to some hundred thousands."""
    data = load_dataset("digits")
    units = 10.0 ** np.linspace(-3, 5, 64)
    return Dataset((data.x * units + 3.0 * units).astype(np.float32), data.y)


@lru_cache(maxsize=2)
def bundle(normalise: bool) -> Bundle:
    graph = build_zoo_model("softmax_regression", inputs=(64,), outputs=10, seed=3)
    options = NormaliseOptions("federated") if normalise else None
    return compile_model(graph, loss="softmax_cross_entropy", normalise=options, name="raw", verify=False)


@lru_cache(maxsize=1)
def regression() -> Bundle:
    graph = build_zoo_model("linear_regression", inputs=(64,), outputs=1, seed=3)
    return compile_model(graph, loss="mean_squared_error", normalise=NormaliseOptions("federated"), name="watts")


def watts() -> Dataset:
    """How much ink a digit has, in a unit in which that is tens of thousands."""
    data = raw_digits()
    return Dataset(data.x, (40_000.0 + 10.0 * load_dataset("digits").x.sum(axis=1)).astype(np.float32))


def scenario(**changes: object) -> Scenario:
    given = Scenario(
        devices=16,
        rounds=4,
        goal_count=6,
        split="dirichlet:0.5",
        codec=CodecSettings("dense"),
        training=TRAINING,
        profile=STEADY,
        step_seconds=0.01,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_raw_units_train_on_a_bad_day_once_the_model_is_normalised() -> None:
    weather = scenario(
        split="iid", faults=FAULTY, device_crashes_per_hour=10.0, coordinator_crashes_per_hour=10.0, rounds=10
    )
    outcome = run(weather, 3, bundle(True), data=raw_digits())
    assert outcome.metrics["accuracy"] > 0.9 and len(outcome.rounds) == 11
    assert all(tally["counted"] >= weather.minimum_count for tally in outcome.rounds)


def test_a_target_in_raw_units_trains_on_a_bad_day_and_the_auditor_finds_the_same_mean_and_scale() -> None:
    weather = scenario(
        split="iid",
        faults=FAULTY,
        device_crashes_per_hour=10.0,
        coordinator_crashes_per_hour=10.0,
        rounds=10,
        training=replace(TRAINING, scalars={"lr": 0.02}),  # 64 features that go together
    )
    outcome = run(weather, 3, regression(), data=watts())
    assert len(outcome.rounds) == 11 and outcome.rounds[0]["counted"] >= weather.minimum_count
    assert outcome.metrics["mean_squared_error"] < 0.1 * float(watts().y.var()), "in raw units"


def test_the_auditor_tells_a_target_that_was_normalised_otherwise() -> None:
    rng = np.random.default_rng(2)
    columns = replace(regression().program.normalise_target, features=2)  # type: ignore[type-var]
    reports = []
    for size in (5, 40):
        values = np.column_stack([rng.normal(48_000, 900, size), np.full(size, 7.0)])
        told = {f"target_{name}": data for name, data in feature_sums(values, columns).encode().items()}
        reports.append(({**told, "sums": b"", "squares": b"", "values": b""}, size))
    mean, scale = mean_and_scale(reports, "target")
    assert abs(mean[0] - 48_000) < 600 and mean[1] == 7.0
    assert abs(scale[0] * 900 - 1) < 0.3 and scale[1] == 1.0


def test_the_same_cohorts_make_the_same_statistics_and_the_same_model() -> None:
    outcome = run(scenario(), 3, bundle(True), data=raw_digits())
    train, _ = split_held_out(raw_digits(), 0.2, 0)
    parts = partition(train, "dirichlet:0.5", 16, 3)
    history = simulate(
        bundle(True),
        [(train.x[part], train.y[part]) for part in parts],
        rounds=4,
        seed=3,
        codec="dense",
        downlink="none",
        epochs=2,
        batch_size=16,
        learning_rate=0.1,
        cohorts=outcome.cohorts,
        engine="numpy",
    )
    assert history.statistics is not None
    made = [history.statistics.digest, *(result.digest for result in history.rounds)]
    assert made == list(outcome.digests) and len(made) == 5
    assert history.cohorts == list(outcome.cohorts)


class NoReport:
    """In place of the SDK's own: says nothing."""

    vectors: tuple[str, ...] = ()

    def run(self, work: LocalWork) -> LocalResult:
        return LocalResult(None, examples=len(work.examples))


def test_a_simulation_whose_reports_are_all_refused_says_why() -> None:
    own = {"feature_statistics": NoReport()}
    with pytest.raises(TrainingError, match=r"round 0: not one of 20 updates can be used: .*expected the arrays"):
        simulate(bundle(True), raw_digits(), devices=30, rounds=1, local_algorithms=own)


def pressures(high: float) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    rng = np.random.default_rng(0)
    x = rng.normal((5.0, 9e5), (1.0, 100.0), (3, 40, 2)).astype(np.float32)
    x[:, :4, 1] = high
    return [(part, rng.integers(0, 2, 40)) for part in x]


def test_a_simulation_says_which_features_are_beyond_the_range(caplog: pytest.LogCaptureFixture) -> None:
    history = simulate("logistic_regression", pressures(2.5e6), rounds=1)
    assert history.statistics is not None and history.statistics.metrics["features_clipped"] == 1.0
    assert "round 0: values beyond model.normalise_clip" in caplog.text and "feature 1 (10.00%)" in caplog.text
    all_beyond = [(x * np.float32(10), y) for x, y in pressures(2.5e6)]
    with pytest.raises(TrainingError, match=r"round 0: .*values of feature 1 \(100%\) .* raise model\.normalise_clip"):
        simulate("logistic_regression", all_beyond, rounds=1)
    assert simulate("logistic_regression", all_beyond, rounds=1, normalise_clip=1e9).statistics is not None


def test_clients_report_once_and_no_parameters_are_counted_for_it() -> None:
    history = simulate(bundle(True), raw_digits(), devices=6, rounds=2, learning_rate=0.1)
    assert history.statistics is not None and len(history.rounds) == 2
    assert (history.statistics.number, history.statistics.bytes_down) == (0, 0)
    assert 0 < history.statistics.bytes_up < 6 * (16 * 64 + 200)
    assert history.statistics.metrics["devices"] == 6.0
    assert simulate(bundle(False), "digits", devices=6, rounds=1, learning_rate=0.1).statistics is None


# --- the auditor -----------------------------------------------------------------------------------------------------

reports = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(-3, 3), st.integers(1, 10**6)),
    min_size=1,
    max_size=6,
)


@given(reports)
@settings(max_examples=60, deadline=None)
def test_the_auditor_computes_the_same_bits_another_way(drawn: list[tuple[int, int, float, int]]) -> None:
    normalise = raw_bundle().program.normalise
    assert normalise is not None
    exact, told = ExactFeatureSums(4), []
    for seed, rows, magnitude, weight in drawn:
        rng = np.random.Generator(np.random.PCG64(seed))
        x = (10.0**magnitude * rng.standard_normal((rows, 4))).astype(np.float32)
        x[:, 3] = 7.5
        x[rng.random((rows, 4)) < 0.2] = np.nan
        arrays = feature_sums(x, normalise).encode()
        told.append((arrays, weight))
        exact.add(FeatureSums.decode(arrays, normalise), weight)
    mean, scale, _ = exact.result()
    again = mean_and_scale(told[::-1])
    assert (mean.tobytes(), scale.tobytes()) == (again[0].tobytes(), again[1].tobytes())


def audited(payload: bytes, committed: bytes) -> None:
    """A round of statistics in which one report counted, and its end as the coordinator claims it."""
    desk = Desk(made=raw_bundle())
    invite = desk.begin("a", "b")["a"]
    record = desk.store.open_round(TASK)
    assert record is not None
    made = raw_bundle()
    auditor = Auditor(made.program, desk.settings.plan, desk.pipeline, encode_parameters(made.parameters))
    auditor.on_invited("a", invite, desk.store.ticket(invite.ticket))
    auditor.on_training("a", invite.ticket, None)
    auditor.on_trained("a", invite.ticket, digest_of(payload), payload, None)
    job = CloseJob(record, 1, {invite.ticket: ("counted", "")})
    result = RoundCommitted(TASK, 0, committed, {})
    auditor.on_committed(job, [(invite.ticket, digest_of(payload))], result, None, [])


def model_with(payload: bytes, weight: int) -> bytes:
    parameters = raw_bundle().parameters.copy()
    tensors = raw_bundle().program.spec.unflatten(parameters)
    mean, scale = mean_and_scale([(Update.decode(payload).arrays, weight)])
    tensors["normalise/mean"][...], tensors["normalise/scale"][...] = mean, scale
    return digest_of(encode_parameters(parameters))


def test_the_auditor_notices_statistics_that_are_not_those_of_the_reports() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    honest, other = (make_report(rng.normal(100.0, 5.0, (20, 4))) for _ in range(2))
    audited(honest, model_with(honest, 20))
    with pytest.raises(InvariantBroken, match="not those of the reports"):
        audited(honest, model_with(other, 20))
    with pytest.raises(InvariantBroken, match="not those of the reports"):
        audited(honest, digest_of(encode_parameters(raw_bundle().parameters)))


def test_the_auditor_notices_parameters_that_were_fetched_for_a_report() -> None:
    desk = Desk(made=raw_bundle())
    invite = desk.begin("a", "b")["a"]
    made = raw_bundle()
    auditor = Auditor(made.program, desk.settings.plan, desk.pipeline, encode_parameters(made.parameters))
    auditor.on_invited("a", invite, desk.store.ticket(invite.ticket))
    with pytest.raises(InvariantBroken, match="fetched parameters"):
        auditor.on_training("a", invite.ticket, invite.parameters)
