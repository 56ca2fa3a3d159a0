"""Round 0: devices report sums of their features, and mean and scale stand in the model before anything is trained."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from wired import (
    ROUND,
    TASK,
    TOPICS,
    Desk,
    Pair,
    code,
    make_report,
    make_update,
    raw_bundle,
)

from coordinator.downlink import Downlink
from coordinator.pipeline import FeatureStatistics
from coordinator.statistics_round import statistics_round
from edge_sdk.errors import ProtocolError, StateError
from edge_sdk.training.bundle import Bundle, decode_parameters, digest_of
from edge_sdk.training.feature_sums import FeatureSums
from edge_sdk.training.model_delta import apply_model_deltas
from edge_sdk.wire.envelope import decode_message
from edge_sdk.wire.messages import Accept, Announce, Chunk, ComeBack, Invite, RangeRequest, Update, Verdict, short
from edge_sdk.wire.terms import Terms

SPEC = raw_bundle().program.spec


def sensors(device: int, rows: int = 40) -> NDArray[np.float32]:
    """Raw units, another operating point on each device; the last feature never varies."""
    rng = np.random.Generator(np.random.PCG64(device))
    varying = rng.normal((1480.0 + 100 * device, 62.0, 4.2), (120.0, 5.0, 0.3), (rows, 3))
    return np.hstack([varying, np.full((rows, 1), 7.5)]).astype(np.float32)


def report(desk: Desk, device: str, invite: Invite, payload: bytes) -> None:
    desk.hear(
        device, Chunk(ticket=invite.ticket, digest=digest_of(payload), total=len(payload), offset=0, data=payload)
    )
    desk.work()


def model(desk: Desk) -> dict[str, NDArray[np.float32]]:
    checkpoint = desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None
    blob = desk.store.get_blob(checkpoint.parameters_digest)
    assert blob is not None
    return SPEC.unflatten(decode_parameters(blob, SPEC))


def announced(desk: Desk) -> Announce:
    payload = desk.retained[TOPICS.announce(TASK)]
    message = decode_message(payload, "announce", peer="coordinator")[1]
    assert isinstance(message, Announce)
    return message


def raw_desk(**changes: Any) -> Desk:
    return Desk(**{"made": raw_bundle(), **changes})


# --- the round -------------------------------------------------------------------------------------------------------


def test_mean_and_scale_of_all_devices_stand_in_the_model_before_round_1() -> None:
    desk = raw_desk()
    before = {name: array.copy() for name, array in model(desk).items()}
    invites = desk.begin("a", "b")
    assert announced(desk).round == 0
    for number, (device, invite) in enumerate(invites.items()):
        report(desk, device, invite, make_report(sensors(number)))
    pooled = np.vstack([sensors(0), sensors(1)]).astype(np.float64)
    after = model(desk)
    np.testing.assert_array_equal(after["normalise/mean"], pooled.mean(axis=0).astype(np.float32))
    np.testing.assert_allclose(after["normalise/scale"][:3], 1.0 / pooled[:, :3].std(axis=0), rtol=1e-6)
    assert after["normalise/scale"][3] == 0.0, "a feature that does not vary counts for nothing"
    for name in set(before) - {"normalise/mean", "normalise/scale"}:
        assert after[name].tobytes() == before[name].tobytes(), "nothing was trained"
    assert [v.outcome for v in desk.told("a", Verdict)] == ["counted"]
    following = desk.begin("a", "b")
    assert {invite.round for invite in following.values()} == {1}
    assert {invite.parameters for invite in following.values()} == {digest_of(parameters_of(desk))}
    assert {Terms.decode(invite.terms).plan.local for invite in following.values()} == {"plain"}


def parameters_of(desk: Desk) -> bytes:
    checkpoint = desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None
    blob = desk.store.get_blob(checkpoint.parameters_digest)
    assert blob is not None
    return blob


def test_without_normalisation_by_all_devices_training_begins_at_once() -> None:
    desk = Desk()
    assert {invite.round for invite in desk.begin("a", "b").values()} == {1}


def test_a_model_that_brings_its_statistics_keeps_them() -> None:
    made = raw_bundle()
    parameters = made.parameters.copy()
    SPEC.unflatten(parameters)["normalise/mean"][...] = 3.0
    desk = raw_desk(made=Bundle(made.program, parameters))
    assert {invite.round for invite in desk.begin("a", "b").values()} == {1}
    assert (model(desk)["normalise/mean"] == 3.0).all()


def test_devices_fetch_the_program_and_nothing_else() -> None:
    pair = Pair("a", "b", made=raw_bundle(), retained_blobs="always")
    asked: list[bytes] = []
    hear = pair.desk.shell.core.tasks[TASK].on_message

    def listen(device: str, message: Any, *rest: Any) -> None:
        if isinstance(message, RangeRequest):
            asked.append(message.digest)
        hear(device, message, *rest)

    pair.desk.task.on_message = listen  # type: ignore[method-assign]
    initial = digest_of(parameters_of(pair.desk))
    pair.make_update = lambda device: make_report(sensors(ord(device)))  # type: ignore[method-assign]
    pair.run(30.0)
    program = raw_bundle().program.digest
    assert pair.desk.store.rounds(TASK)[-1].number == 0 and pair.desk.store.rounds(TASK)[-1].closed
    assert initial not in asked and f"{TOPICS.root}/blobs/{initial.hex()}/0" not in pair.desk.retained
    assert f"{TOPICS.root}/blobs/{program.hex()}/0" in pair.desk.retained
    for device in ("a", "b"):
        assert program in pair.blobs[device] and initial not in pair.blobs[device]
        assert pair.settled[device][0] is True


def test_after_it_devices_fetch_the_parameters_with_the_statistics_and_train() -> None:
    pair = Pair("a", "b", made=raw_bundle(), stopping=Desk().settings.stopping)

    def made(device: str) -> bytes:
        start = pair.trainings[device][-1]
        if start.plan.without_parameters:
            return make_report(sensors(ord(device)))
        held = SPEC.unflatten(decode_parameters(pair.blobs[device][start.parameters], SPEC))
        assert (held["normalise/mean"][:3] != 0.0).all()
        return make_update(0.01, pad=start.round, made=raw_bundle())

    pair.make_update = made  # type: ignore[method-assign]
    pair.run(300.0)
    closed = [record.number for record in pair.desk.store.rounds(TASK) if record.closed]
    assert closed == [3, 2, 1, 0]
    assert all(pair.settled["a"]) and len(pair.settled["a"]) == 4


def test_a_device_that_holds_the_parameters_of_before_gets_the_new_ones_whole_and_then_model_deltas() -> None:
    large = raw_bundle(larger=True)
    desk = Desk(made=large, downlink=Downlink(share=0.5, whole_bytes_min=0), update_bytes_max=8192)
    initial = parameters_of(desk)
    for device, invite in desk.begin("a", "b").items():
        report(desk, device, invite, make_report(np.random.default_rng(1).normal(50.0, 3.0, (9, 64)), large))
    after = parameters_of(desk)
    desk.wait()
    desk.check_in("a", holds=(short(digest_of(initial)),))
    desk.begin("b", "c")
    invite = desk.told("a", Invite)[-1]
    assert invite.round == 1 and invite.deltas == () and invite.parameters == digest_of(after) != digest_of(initial)
    for device, delta in (("a", 0.01), ("b", 0.02)):
        report(desk, device, desk.told(device, Invite)[-1], make_update(delta, made=large))
    desk.wait()
    desk.check_in("a", holds=(short(digest_of(after)),))
    desk.begin("b", "c")
    later = desk.told("a", Invite)[-1]
    assert later.round == 2 and len(later.deltas) == 1
    step = desk.store.get_blob(later.deltas[0][0])
    assert step is not None
    assert bytes(apply_model_deltas(after, (step,), later.parameters)) == parameters_of(desk)


def test_nothing_is_evaluated_after_it_and_there_is_no_pause_before_round_1() -> None:
    desk = raw_desk(evaluate_every=1, pause_seconds=3600.0)
    for device, invite in desk.begin("a", "b").items():
        report(desk, device, invite, make_report(sensors(0)))
    assert not desk.jobs.evaluations
    assert desk.task.next_deadline() == desk.now
    desk.wait()
    assert announced(desk).round == 1


def test_people_read_what_the_round_is_for() -> None:
    desk = raw_desk()
    invites = desk.begin("a", "b", "c")
    told = json.loads(desk.retained[TOPICS.task_round(TASK)])
    assert (told["round"], told["purpose"]) == (0, "statistics of the features")
    for device, invite in invites.items():
        report(desk, device, invite, make_report(sensors(0)))
    closed = desk.store.rounds(TASK)[-1]
    assert closed.summary["metrics"] == {
        "devices": 2.0,
        "examples": 80.0,
        "features": 4.0,
        "features_constant": 1.0,
        "features_clipped": 0.0,
        "missing": 0.0,
    }
    assert closed.summary["bytes_up_dense"] == 0, "a dense update of the model is no measure for it"


def test_a_feature_that_is_beyond_the_range_on_all_devices_keeps_the_round_from_closing_and_is_named() -> None:
    desk = raw_desk()
    invites = desk.begin("a", "b")
    for number, (device, invite) in enumerate(invites.items()):
        report(desk, device, invite, make_report(sensors(number) * np.float32([1, 1, 1e6, 1])))
    assert {(v.outcome, v.reason[:8]) for v in desk.told("a", Verdict)} == {("refused", "clipped:")}
    desk.wait()
    told = json.loads(desk.retained[TOPICS.task_round(TASK)])
    for part in (
        "2 of 2 devices were refused",
        "values of feature 2 (100%) are beyond +-1e+06",
        "raise model.normalise",
    ):
        assert part in told["reason"]
    assert (model(desk)["normalise/scale"] == 1.0).all(), "nothing was learned from it"


def test_a_single_device_in_another_unit_is_refused_and_the_others_go_on() -> None:
    desk = raw_desk()
    invites = desk.begin("a", "b", "c")
    for number, (device, invite) in enumerate(invites.items()):
        unit = 1e6 if device == "a" else 1.0
        report(desk, device, invite, make_report(sensors(number) * np.float32([1, 1, unit, 1])))
    assert [v.outcome for device in "abc" for v in desk.told(device, Verdict)] == ["refused", "counted", "counted"]
    assert model(desk)["normalise/mean"][2] == pytest.approx(4.2, abs=0.2)


# --- who takes part --------------------------------------------------------------------------------------------------


def test_a_device_that_cannot_report_is_told_so_and_trains_later() -> None:
    desk = raw_desk()
    desk.wait()
    desk.check_in("old", capabilities={"supports": ["codec:dense"]})
    (answer,) = desk.told("old", ComeBack)
    assert "requires ['local:feature_statistics']: upgrade edgefed" in answer.reason and not answer.hold
    for device, invite in desk.begin("a", "b").items():
        report(desk, device, invite, make_report(sensors(0)))
    desk.wait()
    desk.check_in("old", nonce=b"later   ", capabilities={"supports": ["codec:dense"]})
    desk.begin("a", "b")
    assert [invite.round for invite in desk.told("old", Invite)] == [1]


def test_who_comes_after_the_goal_is_late() -> None:
    desk = raw_desk()
    invites = desk.begin("a", "b", "c")
    desk.hear("c", Accept(ticket=invites["c"].ticket))
    for device in ("a", "b"):
        report(desk, device, invites[device], make_report(sensors(0)))
    after = parameters_of(desk)
    report(desk, "c", invites["c"], make_report(sensors(9)))
    assert [v.outcome for v in desk.told("c", Verdict)] == ["late", "late"]
    assert parameters_of(desk) == after


def test_an_attempt_with_too_few_devices_is_abandoned_and_leaves_the_model_as_it_was() -> None:
    desk = raw_desk(round=replace(ROUND, minimum_count=2))
    before = parameters_of(desk)
    invites = desk.begin("a", "b")
    report(desk, "a", invites["a"], make_report(sensors(0)))
    desk.wait(ROUND.configuration_seconds_max + ROUND.reporting_seconds_max)
    abandoned = desk.store.rounds(TASK)[-1]
    assert (abandoned.number, abandoned.phase) == (0, "abandoned")
    assert parameters_of(desk) == before and announced(desk).round == 0
    again = desk.begin("a", "b")
    assert {(invite.round, invite.attempt) for invite in again.values()} == {(0, 1)}
    for device, invite in again.items():
        report(desk, device, invite, make_report(sensors(1)))
    expected = sensors(1).astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(model(desk)["normalise/mean"], expected), "of the second attempt alone"


def test_it_may_need_more_devices_than_a_round_of_training() -> None:
    asked = statistics_round(raw_desk().settings, raw_bundle().program, 5)
    assert asked is not None and (asked.round.minimum_count, asked.round.goal_count) == (5, 5)
    assert asked.purpose == "statistics of the features" and asked.plan.requires == (
        "codec:dense",
        "local:feature_statistics",
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(**arrays: Any) -> dict[str, bytes]:
    """The arrays of an honest report, some of them replaced; None leaves one out."""
    made = Update.decode(make_report(sensors(0))).arrays | arrays
    return {name: data for name, data in made.items() if data is not None}


def of(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


@pytest.mark.parametrize(
    ("payload", "reason", "said"),
    [
        (b"no msgpack", "malformed", "update"),
        (make_update(), "vectors", "brings delta"),
        (make_report(sensors(0), arrays={}), "feature_sums", "expected the arrays"),
        (make_report(sensors(0), arrays=changed(squares=None)), "feature_sums", "expected the arrays"),
        (make_report(sensors(0), arrays=changed(more=b"")), "feature_sums", "expected the arrays"),
        (make_report(sensors(0), arrays=changed(sums=of(1, 2, 3))), "feature_sums", "32 bytes"),
        (make_report(sensors(0), arrays=changed(sums=of(1, 2, 3, np.nan))), "feature_sums", "not finite"),
        (make_report(sensors(0), arrays=changed(missing=of(0, 0, 41, 0))), "feature_sums", "more are missing"),
        (make_report(sensors(0), arrays=changed(values=of(-1))), "feature_sums", "not whole"),
        (make_report(sensors(0), arrays=changed(values=of(0))), "feature_sums", "no value"),
        (make_report(sensors(0), arrays=changed(sums=of(0, 0, 0, 1e9))), "feature_sums", "larger than its count"),
        (make_report(sensors(0), arrays=changed(squares=of(0, 0, 0, 0))), "feature_sums", "smaller than"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused_with_a_reason_and_the_round_goes_on(
    payload: bytes, reason: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    desk = raw_desk()
    invites = desk.begin("a", "b", "c")
    report(desk, "a", invites["a"], payload)
    assert [(v.outcome, code(v)) for v in desk.told("a", Verdict)] == [("refused", reason)]
    assert said in caplog.text
    for device in ("b", "c"):
        report(desk, device, invites[device], make_report(sensors(1)))
    expected = sensors(1).astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(model(desk)["normalise/mean"], expected)


def test_a_report_is_no_update_of_the_model() -> None:
    desk = raw_desk()
    for device, invite in desk.begin("a", "b").items():
        report(desk, device, invite, make_report(sensors(0)))
    invite = desk.begin("a", "b")["a"]
    report(desk, "a", invite, make_report(sensors(0)))
    assert [(v.outcome, code(v)) for v in desk.told("a", Verdict)][-1] == ("refused", "vectors")


def test_a_report_has_at_most_the_bytes_of_its_features() -> None:
    desk = raw_desk(update_bytes_max=1 << 20)
    invite = desk.begin("a", "b")["a"]
    report(desk, "a", invite, bytes(4096))
    assert [(v.outcome, code(v)) for v in desk.told("a", Verdict)] == [("refused", "oversize")]


@pytest.mark.parametrize(("weighting", "weights"), [("examples", (30, 40)), ("uniform", (1, 1))])
def test_a_device_moves_the_statistics_no_further_than_it_moves_the_model(
    weighting: str, weights: tuple[int, int]
) -> None:
    desk = raw_desk(plan=replace(Desk().settings.plan, weighting=weighting, examples_max=40))
    few, many = sensors(0, 30), sensors(5, 1000)
    for (device, invite), rows in zip(desk.begin("a", "b").items(), (few, many), strict=True):
        report(desk, device, invite, make_report(rows))
    means = [rows.astype(np.float64).mean(axis=0) for rows in (few, many)]
    squares = [np.square(rows.astype(np.float64)).mean(axis=0) for rows in (few, many)]
    mean, square = (np.average(part, axis=0, weights=weights) for part in (means, squares))
    np.testing.assert_allclose(model(desk)["normalise/mean"], mean, rtol=1e-6)
    scale = 1.0 / np.sqrt(square - np.square(mean))[:3]
    np.testing.assert_allclose(model(desk)["normalise/scale"][:3], scale, rtol=1e-5)


# --- exact, whatever happens -----------------------------------------------------------------------------------------


def test_any_order_of_reports_gives_the_same_bits() -> None:
    digests = set()
    for order in itertools.permutations(range(3)):
        desk = raw_desk(round=replace(ROUND, goal_count=3))
        invites = desk.begin("a", "b", "c")
        for number in order:
            report(desk, "abc"[number], invites["abc"[number]], make_report(sensors(number)))
        digests.add(digest_of(parameters_of(desk)))
    assert len(digests) == 1


def test_after_a_crash_the_reports_of_the_journal_give_the_same_bits() -> None:
    ends = []
    for crashes in (False, True):
        desk = raw_desk()
        invites = desk.begin("a", "b")
        report(desk, "a", invites["a"], make_report(sensors(0)))
        if crashes:
            desk.crash()
            desk.work()
        report(desk, "b", invites["b"], make_report(sensors(1)))
        ends.append(parameters_of(desk))
    assert ends[0] == ends[1]
    assert (SPEC.unflatten(decode_parameters(ends[0], SPEC))["normalise/mean"] != 0.0).all()


def test_a_round_that_was_closing_is_closed_after_a_crash_with_the_same_bits() -> None:
    ends = []
    for crashes in (False, True):
        desk = raw_desk()
        invites = desk.begin("a", "b")
        report(desk, "a", invites["a"], make_report(sensors(0)))
        payload = make_report(sensors(1))
        desk.hear(
            "b",
            Chunk(ticket=invites["b"].ticket, digest=digest_of(payload), total=len(payload), offset=0, data=payload),
        )
        for event in desk.jobs.run():
            desk.play(event)  # decided and committed, and the worker has not closed yet
        if crashes:
            desk.crash()
        desk.work()
        ends.append(parameters_of(desk))
        assert desk.store.latest_checkpoint(TASK).round == 0  # type: ignore[union-attr]
    assert ends[0] == ends[1]


def test_a_crash_between_it_and_round_1_does_not_ask_again() -> None:
    desk = raw_desk()
    for device, invite in desk.begin("a", "b").items():
        report(desk, device, invite, make_report(sensors(0)))
    after = parameters_of(desk)
    desk.crash()
    assert {invite.round for invite in desk.begin("a", "b").values()} == {1}
    assert parameters_of(desk) == after


def test_a_restored_database_asks_again_and_knows_nothing_of_the_reports_that_it_held() -> None:
    desk = raw_desk()
    invites = desk.begin("a", "b")
    report(desk, "a", invites["a"], make_report(sensors(0)))
    desk.store.new_lineage()
    desk.crash()
    assert (desk.store.rounds(TASK)[-1].phase, desk.store.rounds(TASK)[-1].reason) == ("abandoned", "restored")
    again = desk.begin("a", "b")
    assert {(invite.round, invite.attempt) for invite in again.values()} == {(0, 1)}
    for device, invite in again.items():
        report(desk, device, invite, make_report(sensors(2)))
    expected = sensors(2).astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(model(desk)["normalise/mean"], expected)


# --- the pipeline alone ----------------------------------------------------------------------------------------------


def pipeline(desk: Desk) -> FeatureStatistics:
    assert desk.settings.opening is not None
    return FeatureStatistics(desk.settings.opening.plan, desk.aggregator())


def test_without_reports_there_are_no_statistics() -> None:
    desk = raw_desk()
    made = pipeline(desk)
    made.begin(parameters_of(desk), {})
    with pytest.raises(ValueError, match="no statistics"):
        made.finish()


def test_a_journalled_report_that_fits_the_program_no_more_is_an_error_of_the_state() -> None:
    desk = raw_desk()
    made = pipeline(desk)
    made.begin(parameters_of(desk), {})
    strange = make_report(sensors(0), arrays=FeatureSums(*(np.ones(3) for _ in range(5))).encode())
    with pytest.raises(ProtocolError, match="not 32 bytes, 4 numbers"):
        made.examine(strange)
    with pytest.raises(StateError, match="cannot be used any more"):
        made.again(strange)


def test_a_program_that_normalises_nothing_has_no_such_pipeline() -> None:
    plain = Desk()
    with pytest.raises(ValueError, match="normalises no input"):
        FeatureStatistics(plain.settings.plan, plain.aggregator())
