"""The report on codecs: its figures are those of real frames, and its pick keeps what was asked."""

from __future__ import annotations

import math
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from coordinator.cli.codec import ReportOptions, report_file
from coordinator.cli.codec_show import auto_text
from coordinator.codec_report.choice import auto_choice, candidates, codec_table, nearer_to, pick
from coordinator.codec_report.cohort import Cohort, last_cohort
from coordinator.codec_report.frame_bytes import bytes_by_element, sparse_cost
from coordinator.codec_report.local_rounds import LocalRound, local_rounds, split_examples, stepped
from coordinator.codec_report.report import Measurement, eden_nmse, measure, scaled_nmse
from coordinator.codec_report.trial import Trial, progress
from coordinator.compile import NormaliseOptions, build_zoo_model, compile_model
from coordinator.config.sections import Codec
from edge_sdk.codecs import CodecSettings, encode_update
from edge_sdk.codecs.eden import Eden
from edge_sdk.codecs.frame import pack_frame
from edge_sdk.codecs.frames import EncodedFrames, frames_bytes_max
from edge_sdk.errors import ConfigurationError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import evaluate_locally
from edge_sdk.wire.plan import TrainingPlan

CLIENTS, ROUNDS, COHORT, BUDGET = 6, 3, 6, 150
SPARSE = CodecSettings("sparse", density=0.03)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    model = build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(48, 32), seed=0)
    return compile_model(model, loss="softmax_cross_entropy", loop=False, name="digits")


@pytest.fixture(scope="module")
def rounds(bundle: Bundle) -> list[LocalRound]:
    x, y = load_digits(return_X_y=True)
    examples = as_examples(((x / 16.0).astype(np.float32), y), bundle.program)
    parts = split_examples(examples, CLIENTS, 0)
    engine = make_engine(bundle.program, "numpy")
    plan = TrainingPlan(scalars=dict(bundle.program.scalars))
    return list(local_rounds(engine, bundle.parameters, parts, plan, rounds=ROUNDS, seed=0, clock=time.monotonic))


@pytest.fixture(scope="module")
def cohort(bundle: Bundle, rounds: list[LocalRound]) -> Cohort:
    spec = bundle.program.spec
    return last_cohort(rounds, spec, candidates(spec, COHORT, BUDGET), seed=0)


@pytest.fixture(scope="module")
def measured(cohort: Cohort) -> list[Measurement]:
    return [measure(cohort, settings, COHORT) for settings in candidates(cohort.spec, COHORT, BUDGET)]


def lengths(frames: EncodedFrames) -> int:
    return sum(map(len, frames.frames))


def by_label(measured: list[Measurement], label: str) -> Measurement:
    return next(each for each in measured if each.label == label)


def test_rounds_train_and_repeat_bit_by_bit(bundle: Bundle, rounds: list[LocalRound]) -> None:
    assert [each.number for each in rounds] == [1, 2, 3] and rounds[-1].loss < 0.9 * rounds[0].loss
    assert len({each.shared_seed for each in rounds}) == ROUNDS
    x, y = load_digits(return_X_y=True)
    parts = split_examples(as_examples(((x / 16.0).astype(np.float32), y), bundle.program), CLIENTS, 0)
    assert sum(map(len, parts)) == len(y) and max(map(len, parts)) - min(map(len, parts)) <= 1
    again = local_rounds(
        make_engine(bundle.program, "numpy"), bundle.parameters, parts,
        TrainingPlan(scalars=dict(bundle.program.scalars)), rounds=1, seed=0, clock=time.monotonic,
    )  # fmt: skip
    assert np.array_equal(next(again).deltas, rounds[0].deltas)


def test_bytes_are_those_of_real_frames_and_within_the_bound(cohort: Cohort, measured: list[Measurement]) -> None:
    for each in measured:
        real = [lengths(cohort.encoded(each.settings, client)) for client in range(CLIENTS)]
        assert each.bytes == pytest.approx(sum(real) / CLIENTS)
        assert max(real) <= each.bytes_max == frames_bytes_max(cohort.spec, each.settings)
        assert each.ratio == pytest.approx(4 * cohort.spec.size / each.bytes)


def test_bytes_of_tensors_and_the_heads_add_up_to_the_frames(cohort: Cohort, measured: list[Measurement]) -> None:
    head = len(pack_frame(b"", cohort.spec.size, 1))
    for each in measured:
        assert each.head_bytes == pytest.approx(head)
        assert sum(tensor.bytes for tensor in each.tensors) + head == pytest.approx(each.bytes)


def test_rules_for_tensors_and_statistics_have_frames_whose_bytes_add_up_too() -> None:
    spec = ParameterSpec([("w", (40, 30), "trainable"), ("w.bias", (30,), "trainable"), ("mean", (30,), "buffer")])
    rng = np.random.default_rng(0)
    deltas = tuple(rng.standard_normal(spec.size).astype(np.float32) for _ in range(2))
    settings = CodecSettings(SPARSE.codec, tensors=(("*.bias", CodecSettings("dense")),))
    cohort = last_cohort([LocalRound(n, deltas, n, 1.0) for n in (1, 2)], spec, [settings], 0)
    found = measure(cohort, settings, 2)
    heads = sum(len(pack_frame(b"", tensor.size, 1)) for tensor in spec)
    assert found.bytes == lengths(cohort.encoded(settings, 0)) / 2 + lengths(cohort.encoded(settings, 1)) / 2
    assert found.head_bytes == pytest.approx(heads)
    assert [tensor.bytes for tensor in found.tensors[1:]] == pytest.approx([120, 120])
    assert found.tensors[0].sent == round(0.03 * 1200)
    assert found.tensors[1].nmse == 0.0 and found.tensors[2].nmse is None, "a buffer has no error to speak of"


def test_a_sparse_frame_is_taken_apart_into_indices_and_values() -> None:
    vector = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    frame = encode_update(vector, None, SPARSE, seed=3).frame
    cost = sparse_cost(frame, vector.size, SPARSE)
    assert cost is not None and cost.indices.size == 600
    assert cost.index_bytes + cost.value_bytes + 2 == cost.body_bytes, "and two bytes of k"
    assert cost.index_ratio is not None and 1.0 <= cost.index_ratio < 1.05, "random positions have no shorter code"
    spent = bytes_by_element(frame, vector.size, SPARSE)
    assert np.array_equal(np.flatnonzero(spent), cost.indices) and spent.sum() == pytest.approx(cost.body_bytes)
    assert sparse_cost(encode_update(vector, None, CodecSettings("int8"), seed=3).frame, 20_000, SPARSE) is None


def test_the_bytes_of_a_frame_of_rows_are_those_of_the_rows_and_of_the_rest() -> None:
    spec = ParameterSpec([("table", (1000, 8), "trainable"), ("dense", (64, 64), "trainable")])
    delta = np.random.default_rng(1).standard_normal(spec.size).astype(np.float32)
    delta[80:8000] = 0.0
    codec = CodecSettings("auto", bits=0.09)
    cohort = last_cohort([LocalRound(1, (delta, delta), 1, 1.0)], spec, [codec], 0)
    measured = measure(cohort, codec, 2)
    assert measured.codecs == ("sparse_rows",)
    spent = bytes_by_element(cohort.encoded(codec, 0).frames[0], spec.size, codec)
    assert np.array_equal(np.flatnonzero(spent), np.flatnonzero(delta))
    assert sum(tensor.bytes for tensor in measured.tensors) + measured.head_bytes == pytest.approx(measured.bytes)
    assert measured.tensors[0].sent == 80
    shown = auto_text({"cohort": 2, "auto": asdict(auto_choice(cohort, measured))})
    assert (
        shown == "auto takes sparse_rows: most rows of tables are zero in these updates, and only the others are sent"
    )
    nothing = encode_update(0.0 * delta, None, CodecSettings("sparse_rows"), seed=1, matrices=((0, 1000, 8),)).frame
    assert bytes_by_element(nothing, spec.size, CodecSettings("sparse_rows")).sum() == len(nothing) - 8


def test_a_sparse_frame_of_nothing_costs_no_coordinate_more_than_another() -> None:
    frame = encode_update(np.zeros(100, np.float32), None, SPARSE, seed=0).frame
    cost = sparse_cost(frame, 100, SPARSE)
    assert cost is not None and cost.bits_per_nonzero is None and cost.index_ratio is None
    assert bytes_by_element(frame, 100, SPARSE).sum() == pytest.approx(1.0)


def test_residuals_are_what_earlier_rounds_did_not_send(bundle: Bundle, rounds: list[LocalRound]) -> None:
    spec = bundle.program.spec
    one, two = (last_cohort(rounds[:count], spec, [SPARSE], 0) for count in (1, 2))
    assert one.residual(SPARSE, 0) is None
    left = two.residual(SPARSE, 0)
    assert left is not None and np.array_equal(left, one.encoded(SPARSE, 0).residual)
    assert np.dot(left, left) > 0.1 * np.dot(rounds[0].deltas[0], rounds[0].deltas[0])
    np.testing.assert_allclose(two.wanted(SPARSE, 0), rounds[1].deltas[0].astype(float) + left, rtol=1e-6)


def test_eden_is_as_far_from_the_limit_as_its_theory_says(measured: list[Measurement]) -> None:
    for each in measured:
        if isinstance(each.settings.codec, Eden) and each.settings.codec.bits >= 0.09:
            assert each.limit_ratio == pytest.approx(each.limit_theory, rel=0.15), each.label
    assert eden_nmse(1) == pytest.approx(math.pi / 2 - 1)
    assert eden_nmse(2) == pytest.approx(0.1175 / (1 - 0.1175), rel=0.01), "Lloyd and Max's distortion, unbiased"


def test_noise_of_a_cohort_averages_out_and_what_is_left_out_does_not(measured: list[Measurement]) -> None:
    eden, sparse = by_label(measured, "eden 1"), by_label(measured, "sparse 3%")
    assert eden.cohort_nmse < eden.nmse / 2
    assert sparse.cohort_nmse > 0.7 * sparse.nmse
    assert by_label(measured, "dense").cohort_nmse == 0.0


def test_the_scaled_error_knows_no_length() -> None:
    true, noise = np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    assert scaled_nmse(true, 0.01 * true) == pytest.approx(0.0)
    assert scaled_nmse(true, true + noise) == scaled_nmse(true, 5.0 * (true + noise)) == pytest.approx(0.5)
    assert scaled_nmse(true, np.array([1.0, 0.0, 0.0])) == pytest.approx(1.0), "half of the energy left out"
    assert scaled_nmse(true, noise) == math.inf


def test_a_pick_keeps_the_budget_and_nothing_within_it_is_better(measured: list[Measurement]) -> None:
    for budget in (BUDGET, 1000, 10**6):
        found = pick(measured, bytes_max=budget)
        assert found is not None and found.bytes <= found.bytes_max <= budget
        assert found.scaled_nmse == min(each.scaled_nmse for each in measured if each.bytes_max <= budget)
    assert pick(measured, bytes_max=10) is None


def test_a_budget_is_used_up(cohort: Cohort, measured: list[Measurement]) -> None:
    fitted = [each for each in measured if 0.8 * BUDGET <= each.bytes_max <= BUDGET]
    assert {each.settings.name for each in fitted} >= {"eden", "sparse"}


def test_a_trial_with_updates_as_they_are_is_the_run_itself_and_holding_back_shows(
    bundle: Bundle, rounds: list[LocalRound]
) -> None:
    x, y = load_digits(return_X_y=True)
    examples = as_examples(((x / 16.0).astype(np.float32), y), bundle.program)
    engine = make_engine(bundle.program, "numpy")
    trial = Trial(
        engine, bundle.parameters, split_examples(examples, CLIENTS, 0), examples,
        TrainingPlan(scalars=dict(bundle.program.scalars)), ROUNDS, 0, time.monotonic,
    )  # fmt: skip
    vector = bundle.parameters
    for each in rounds:
        vector = stepped(vector, each.deltas, each.weights)
    found = evaluate_locally(engine, vector, examples)
    plain = trial.losses(CodecSettings("dense"))
    assert len(plain) == ROUNDS + 1 and plain[-1] < plain[0] - 0.2
    assert found is not None and plain[-1] == pytest.approx(found.loss_sum / found.count, rel=1e-5)
    assert progress(trial.losses(CodecSettings("eden", bits=1))[-1], plain) > 0.9
    assert progress(trial.losses(CodecSettings("sparse", density=0.001))[-1], plain) < 0.5


def test_progress_is_the_share_of_the_rounds_that_float32_takes_to_get_there() -> None:
    plain = [2.0, 1.0, 1.1, 0.6, 0.5]
    assert [progress(loss, plain) for loss in (2.5, 2.0, 1.5, 1.0, 0.8, 0.5, 0.1, math.inf)] == pytest.approx(
        [0.0, 0.0, 0.125, 0.25, 0.625, 1.0, 1.0, 0.0]
    )
    assert progress(0.7, [*plain, 0.7]) == 1.0, "as far as float32, which was further before"


def test_a_pick_takes_no_codec_that_learns_less_for_a_smaller_error(measured: list[Measurement]) -> None:
    better, worse = replace(measured[0], scaled_nmse=2.0, progress=1.0), replace(measured[1], progress=0.9)
    assert pick([worse, better], bytes_max=10**6) == better
    assert pick([replace(worse, progress=0.99), better], bytes_max=10**6).label == worse.label  # type: ignore[union-attr]
    assert pick([worse, better], progress_min=0.85) == min(worse, better, key=lambda each: each.bytes)
    assert pick([worse, better], progress_min=0.95) == better
    assert pick(measured, progress_min=0.1) is None, "none was tried"


def test_an_accuracy_is_kept_with_the_fewest_bytes(cohort: Cohort, measured: list[Measurement]) -> None:
    for nmse in (0.001, 0.1, 1.0):
        nearer = nearer_to(nmse, measured)
        every = measured if nearer is None else [*measured, measure(cohort, nearer, COHORT)]
        found = pick(every, nmse_max=nmse)
        assert found is not None and found.scaled_nmse <= nmse
        assert found.bytes == min(each.bytes for each in every if each.scaled_nmse <= nmse)
    assert pick(measured[2:], nmse_max=1e-12) is None


def test_the_table_for_the_configuration_gives_the_settings_that_were_measured(measured: list[Measurement]) -> None:
    for each in measured:
        section = Codec(**tomllib.loads(codec_table(each.settings))["codec"])
        assert section.name == each.settings.name
        assert CodecSettings(section.name, **section.own) == each.settings


def test_auto_says_what_it_took_and_how_much_the_largest_coordinates_hold(measured: list[Measurement]) -> None:
    spec = ParameterSpec([("table", (100, 64), "trainable")])
    delta = np.zeros(spec.size, dtype=np.float32)
    delta[64:80] = 1.0
    settings = candidates(spec, 10)
    cohort = last_cohort([LocalRound(1, (delta, delta), 1, 1.0)], spec, settings, 0)
    auto = auto_choice(cohort, measure(cohort, settings[0], 10))
    assert (auto.codecs, auto.bits, auto.small, auto.energy_share) == (("sparse",), 0.09, False, pytest.approx(1.0))
    small = ParameterSpec([("w", (100,), "trainable")])
    cohort = last_cohort([LocalRound(1, (delta[:100],), 1, 1.0)], small, settings, 0)
    auto = auto_choice(cohort, measure(cohort, settings[0], 1))
    assert auto.codecs == ("int8",) and auto.small


def test_updates_that_are_zero_cannot_be_measured() -> None:
    spec = ParameterSpec([("w", (8,), "trainable")])
    with pytest.raises(ConfigurationError, match="moved no parameter"):
        last_cohort([LocalRound(1, (np.zeros(8, np.float32),), 1, 1.0)], spec, [SPARSE], 0)


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_a_model_that_normalises_is_measured_on_raw_units(tmp_path: Path, mode: str) -> None:
    source = build_zoo_model("mlp", inputs=(3,), outputs=2, hidden=(16,), seed=0)
    bundle = compile_model(
        source, loss="softmax_cross_entropy", normalise=NormaliseOptions(mode), loop=False, name="pumps"
    )
    bundle.save(tmp_path / "pumps.bundle")
    z = np.random.default_rng(0).standard_normal((400, 3))
    x = (np.array([1480.0, 62.0, 4.2]) + z * [120.0, 5.0, 0.03]).astype(np.float32)
    np.savez(tmp_path / "pumps.npz", x=x, y=(z[:, 1] > z[:, 0] + z[:, 2]).astype(np.int64))
    options = ReportOptions(clients=4, rounds=8, epochs=2, batch_size=10, cohort=4, trial=False)
    report = report_file(tmp_path / "pumps.bundle", tmp_path / "pumps.npz", options)
    assert report["loss"] < 0.4
    energies = {entry["name"]: (entry["kind"], entry["energy"]) for entry in report["tensors"]}
    assert energies["normalise/mean"] == energies["normalise/scale"] == ("constant", None)
    spent = {entry["name"]: [cost["bytes"] for cost in entry["codecs"].values()] for entry in report["tensors"]}
    assert not any(spent["normalise/mean"] + spent["normalise/scale"])
