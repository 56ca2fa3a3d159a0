"""Refusals in words, and rounds that fail again and again: what is said of them, and when they are tried again."""

from __future__ import annotations

import ast
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served
from typer.testing import CliRunner
from wired import ROUND, TASK, TOPICS, Desk, make_update

from coordinator.__main__ import app
from coordinator.advice import ADVICE, Obstacle, explain, obstacle_of, pause_seconds
from coordinator.events import Publish, RoundEnded
from coordinator.reports import rounds_report, status_report
from coordinator.server_optimizers import FedAvg
from coordinator.validate import Validation
from device_sim.broker import PrivateBroker
from device_sim.fleet_run import FleetRun, run_fleet
from edge_sdk.aggregation.algorithm import DELTA, State
from edge_sdk.aggregation.mean import Mean
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.cli.run import _line as line_of
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import Notify
from edge_sdk.device.status import Reporter
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.envelope import decode_message
from edge_sdk.wire.messages import Announce, Chunk, ComeBack, Decline, Invite, Verdict

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMINED = (
    "coordinator/intake.py",
    "coordinator/pipeline",
    "coordinator/store/partials.py",
    "coordinator/validate.py",
    "edge_sdk/aggregation",
    "edge_sdk/codecs",
    "edge_sdk/training/feature_sums.py",
    "edge_sdk/wire/safe_msgpack.py",
)
"""What looks at an update before it counts."""
TOO_LARGE = make_update(np.full(15, 40.0, np.float32))
WHAT_TO_DO = (
    "normalise inputs and labels (model.normalise, normalise_target) or lower training.learning_rate, "
    "or raise validation.value_max"
)


# --- the table -------------------------------------------------------------------------------------------------------


def literals(paths: tuple[str, ...], name: str, argument: int | str) -> set[str]:
    """The texts that calls of ``name`` (any name where empty) get for an argument, by position or by keyword."""
    found = set()
    for path in paths:
        root = REPOSITORY / path
        for file in [root] if root.is_file() else sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                values = [k.value for k in node.keywords if k.arg == argument] if isinstance(argument, str) else []
                if isinstance(argument, int) and called == name:
                    values = node.args[argument : argument + 1]
                found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found - {""}


def test_every_reason_for_which_an_update_is_refused_has_its_words_and_remedy() -> None:
    reasons = literals(EXAMINED, "", "reason") | {"malformed", "protocol", "version", "norm", "value", "nan"}
    assert len(reasons) > 20
    unsaid = {reason for reason in reasons if not (reason in ADVICE and ADVICE[reason].words)}
    assert not unsaid
    assert all(ADVICE[reason].remedy for reason in reasons - {"closed"})


def test_every_reason_for_which_a_device_gives_a_ticket_back_has_its_words() -> None:
    device = ("edge_sdk/device",)
    codes = literals(device, "TrainingFailed", 1) | literals(device, "decline", 0)
    refusals = {
        ProgressKind.UNSUPPORTED,
        ProgressKind.TOO_LARGE,
        ProgressKind.BYTES_PER_UPDATE,
        ProgressKind.BYTES_PER_DAY,
        ProgressKind.NOT_ELIGIBLE,
        ProgressKind.UNSETTLED,
    }
    assert {"no_examples", "diverged", "training", "deadline", "leaving"} <= codes
    assert {code for code in codes | refusals if not ADVICE[code].words} == set()


@given(st.text(), st.text())
def test_a_reason_is_bounded_and_printable_whatever_somebody_has_said(code: str, detail: str) -> None:
    said = explain(code[:400], detail)
    assert len(said) <= 400 and said.isprintable()


def test_what_was_found_takes_the_place_of_the_words_and_the_remedy_stays_whole() -> None:
    found = "update: values -61993..22942 exceed +-32"
    assert explain("value", found) == f"value: values -61993..22942 exceed +-32; {WHAT_TO_DO}"
    assert explain("value") == f"value: values of the update are above validation.value_max; {WHAT_TO_DO}"
    assert explain("value", "x" * 1000).endswith(f"x...; {WHAT_TO_DO}")
    assert explain("closed") == "closed: the round was over" and explain("") == ""
    assert explain("my_own") == "my_own", "a step of somebody's own may give any reason"


# --- what an attempt fails for ---------------------------------------------------------------------------------------


def ends(words: str) -> list[tuple[str, str]]:
    """``"refused/value declined/no_examples missing/"`` as states and reasons."""
    return [(state, reason) for state, _, reason in (word.partition("/") for word in words.split())]


@pytest.mark.parametrize(
    ("tickets", "expected"),
    [
        ("refused/value " * 6, ("value", 6, 6)),
        ("declined/no_examples " * 3 + "missing/ " * 2, ("no_examples", 3, 5)),
        ("refused/value " * 3 + "refused/nan " * 2, ("value", 3, 5)),
        ("refused/value " * 3 + "refused/abandoned " * 2, ("value", 3, 5)),
        ("refused/value " * 2 + "refused/abandoned " * 2, None),
        ("refused/value " + "missing/ " * 3, None),
        ("missing/ " * 4 + "late/closed", None),
        ("", None),
    ],
    ids=["all", "of those who answered", "most", "against good ones", "as many good ones", "few", "silent", "nobody"],
)
def test_an_attempt_fails_for_what_stopped_most_devices_and_more_than_were_good(
    tickets: str, expected: tuple[str, int, int] | None
) -> None:
    found = obstacle_of(ends(tickets))
    assert (None if found is None else (found.reason, found.count, found.invited)) == expected


def test_failures_are_counted_on_and_another_reason_is_news() -> None:
    first = Obstacle("value", "refused", 6, 6)
    second = first.after(first)
    third = Obstacle("nan", "refused", 5, 6).after(second)
    assert (first.failures, first.is_new) == (1, True)
    assert (second.failures, second.is_new) == (2, False)
    assert (third.failures, third.is_new) == (3, True)
    assert Obstacle.of(json.loads(json.dumps({"obstacle": third.record}))) == third and Obstacle.of({}) is None


def test_what_a_device_has_said_stands_there_cut_short() -> None:
    found = obstacle_of([("declined", "\x1b[2J" + "y" * 300)])
    assert found is not None and len(found.reason) == 64 and found.reason.isprintable()
    assert len(found.sentence(10**12)) <= 400


def test_a_remedy_in_the_model_ends_with_what_becomes_of_the_database() -> None:
    for reason in ("value", "norm", "clipped"):
        found = Obstacle(reason, "refused", 6, 6, detail="x" * 500)
        assert found.sentence(0).endswith("; a changed [model] counts from the next start on")
        assert found.sentence(1).endswith("; a changed [model] counts from the next start on")
        assert found.sentence(2).endswith("; a changed [model] needs a new federation.task")
        assert len(found.sentence(10**12)) <= 400
    assert Obstacle("no_examples", "declined", 6, 6).sentence(2).endswith(ADVICE["no_examples"].remedy)


def test_pauses_double_up_to_the_longest_one() -> None:
    assert [pause_seconds(n, 60.0, 3600.0) for n in (1, 2, 3, 6, 7, 100_000)] == [60, 120, 240, 1920, 3600, 3600]
    assert pause_seconds(9, 7200.0, 3600.0) == 7200.0
    assert [pause_seconds(n, 0.0, 3600.0) for n in (1, 2, 3, 99)] == [0.0, 2.0, 4.0, 3600.0], "zero would stay zero"


# --- a task whose rounds fail ----------------------------------------------------------------------------------------


def fail(desk: Desk, payload: bytes | None = TOO_LARGE, reason: str = "no_examples") -> float:
    """An attempt in which every device sends ``payload`` or declines; how long the pause after it is."""
    for device, invite in desk.begin("a", "b", "c").items():
        if payload is None:
            desk.hear(device, Decline(ticket=invite.ticket, reason=reason))
        else:
            send(desk, device, invite, payload)
    return pause_of(desk)


def pause_of(desk: Desk) -> float:
    """How long it is until the next attempt, which then begins."""
    assert desk.round is None
    ended = desk.now
    while desk.round is None:
        desk.wait()
    return round(desk.now - ended, 6)


def send(desk: Desk, device: str, invite: Invite, payload: bytes) -> None:
    chunk = Chunk(ticket=invite.ticket, digest=digest_of(payload), total=len(payload), offset=0, data=payload)
    desk.hear(device, chunk)
    desk.work()


def announcements(desk: Desk) -> list[Announce]:
    """All that was said to all devices."""
    topic = TOPICS.announce(TASK)
    payloads = [effect.payload for effect in desk.effects if isinstance(effect, Publish) and effect.topic == topic]
    heard = [decode_message(payload, "announce", peer="coordinator")[1] for payload in payloads]
    return [message for message in heard if isinstance(message, Announce)]


def announced(desk: Desk) -> str:
    """The reason in the last announcement between two attempts."""
    return next(message.reason for message in reversed(announcements(desk)) if message.phase == "waiting")


def shown(desk: Desk) -> dict[str, object]:
    return dict(json.loads(desk.retained[TOPICS.task_round(TASK)]))


def test_attempts_that_fail_alike_are_made_after_growing_pauses_which_a_restart_does_not_forget() -> None:
    desk = Desk(retry_seconds=10.0, retry_seconds_max=100.0)
    assert [fail(desk) for _ in range(3)] == [10.0, 20.0, 40.0]
    desk.crash()
    assert [fail(desk) for _ in range(2)] == [80.0, 100.0]
    for device, invite in desk.begin("a", "b", "c").items():
        send(desk, device, invite, make_update(0.01))
    assert desk.store.latest_checkpoint(TASK) is not None and desk.round is not None
    assert fail(desk) == 10.0, "a round that closes is a new beginning"


def test_pauses_vary_by_the_jitter() -> None:
    pauses = {fail(Desk(retry_seconds=10.0, jitter=0.2, seed=seed)) for seed in range(5)}
    assert len(pauses) == 5 and all(8.0 <= pause <= 12.0 for pause in pauses)


def test_attempts_that_fail_for_chance_are_made_as_soon_as_ever() -> None:
    desk = Desk(retry_seconds=10.0, round=replace(ROUND, minimum_count=2))
    for _ in range(3):
        desk.begin("a", "b", "c")
        while desk.round is not None:
            desk.wait()
        assert pause_of(desk) == 10.0, "nobody has said a word"
        assert shown(desk)["reason"] == "" and not any(message.reason for message in announcements(desk))


def test_a_bound_that_widens_with_each_attempt_is_tried_at_once() -> None:
    bounds = Validation(size=15, norm_median_factor=2.0, norms_needed=2)
    desk = Desk(retry_seconds=10.0, pipeline={"validation": bounds}, mended_by_attempts=("norm",))
    for _ in range(2):
        for device, invite in desk.begin("a", "b", "c").items():
            send(desk, device, invite, make_update(0.01))
    longer = make_update(0.1)
    assert [fail(desk, longer) for _ in range(3)] == [10.0, 10.0, 10.0], "the bound doubles: 2, 4, 8 times the median"
    for device, invite in desk.begin("a", "b", "c").items():
        send(desk, device, invite, longer)
    checkpoint = desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None and checkpoint.round == 3, "16 times the median lets what is 10 times as long in"


def test_announcement_and_status_say_what_is_wrong_and_what_to_do_until_a_round_closes() -> None:
    desk = Desk(pause_seconds=5.0)
    fail(desk)
    expected = f"round 1: an attempt has failed, 3 of 3 devices were refused for {explain('value')}"
    expected += "; a changed [model] counts from the next start on"
    assert announced(desk) == shown(desk)["reason"] == expected
    fail(desk)
    assert announced(desk).startswith("round 1: 2 attempts have failed, 3 of 3 devices were refused for value")
    desk.crash()
    assert str(shown(desk)["reason"]).startswith("round 1: 2 attempts have failed, 3 of 3"), "after a restart, too"
    for device, invite in desk.begin("a", "b", "c").items():
        send(desk, device, invite, make_update(0.01))
    desk.wait(1.0)
    assert announcements(desk)[-1].reason == shown(desk)["reason"] == ""


@pytest.mark.parametrize("reason", ["no_examples", "diverged", "unsupported"])
def test_devices_that_all_decline_are_an_obstacle_too(reason: str) -> None:
    desk = Desk(retry_seconds=10.0)
    assert [fail(desk, None, reason) for _ in range(3)] == [10.0, 20.0, 40.0]
    assert f"3 of 3 devices declined for {reason}: {ADVICE[reason].words}" in announced(desk)
    assert desk.store.rounds(TASK)[1].reason.endswith(f"; 3 of 3 declined: {reason}")


def test_devices_that_lack_what_the_task_requires_are_an_obstacle_though_nobody_can_be_invited() -> None:
    desk = Desk(retry_seconds=10.0, requires=("codec:newer",))
    pauses = []
    for number in range(2):
        for device in ("a", "b") if number == 0 else ():  # they are told to stay away for hours
            desk.check_in(device)
        while desk.round is not None:
            desk.wait()
        pauses.append(pause_of(desk))
    assert pauses == [10.0, 20.0]
    assert announced(desk) == (
        "round 1: 2 attempts have failed, 2 of 2 devices declined for unsupported: the device does not know what the "
        "plan requires; upgrade edgefed on the device"
    )
    assert "upgrade edgefed on this device" in desk.told("a", ComeBack)[0].reason


def test_the_log_names_an_obstacle_once_and_again_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    desk = Desk()
    for _ in range(4):
        fail(desk)
    desk.crash()
    fail(desk)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and WHAT_TO_DO in warned[0]
    fail(desk, None)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 2 and "6 attempts have failed" in warned[1] and "edge-device check" in warned[1]
    for device, invite in desk.begin("a", "b", "c").items():
        send(desk, device, invite, make_update(0.01))
    assert "round 1 has closed; what kept it from closing is over" in caplog.text
    assert sum(isinstance(effect, RoundEnded) for effect in desk.effects) == 7


class Broken(Mean):
    """An algorithm of somebody's own with a mistake in it."""

    def report(self, sums: PartialSums) -> State:
        return {DELTA: super().report(sums)[DELTA][:3]}


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [({"optimizer": FedAvg(eta=3e38)}, "diverged"), ({"algorithm": Broken()}, "aggregation")],
)
def test_good_updates_that_the_coordinator_cannot_put_together_are_not_asked_for_at_once(
    pipeline: dict[str, Any], reason: str
) -> None:
    desk = Desk(retry_seconds=10.0, pipeline=pipeline)
    good = make_update(np.full(15, 10.0, np.float32))
    assert [fail(desk, good) for _ in range(3)] == [10.0, 20.0, 40.0]
    assert f"were refused for {explain(reason)}" in announced(desk)
    assert "abandoned" in {verdict.outcome for verdict in desk.told("a", Verdict)}, "nothing is wrong with the update"


# --- what a device hears ---------------------------------------------------------------------------------------------


def test_the_verdict_names_what_was_found_and_the_remedy_and_stays_when_asked_again() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    send(desk, "a", invites["a"], TOO_LARGE)
    (verdict,) = desk.told("a", Verdict)
    assert verdict.outcome == "refused" and verdict.reason == f"value: values 40..40 exceed +-32; {WHAT_TO_DO}"
    desk.crash()
    desk.check_in("a", unsettled=(invites["a"].ticket,))
    desk.wait(ROUND.reporting_seconds_max)
    known = desk.store.ticket(invites["a"].ticket)
    assert known is not None and known.reason == "value", "the books keep the code"


def test_a_device_shows_a_refusal_until_it_has_trained_again(caplog: pytest.LogCaptureFixture) -> None:
    reporter = Reporter("pi", "auto", False, None)
    said = explain("value", "values -61993..22942 exceed +-32")
    reporter.tell(Notify(ProgressKind.REFUSED, said, 1))
    assert reporter.status.error == said and f"pi: refused: {said}" in caplog.text
    assert said in line_of(replace(reporter.status, connected=True)), "what edge-device tells systemd"
    reporter.tell(Notify(ProgressKind.TRAINED, "", 2))
    assert reporter.status.error == ""


# --- all of it, over a real broker -----------------------------------------------------------------------------------


def test_raw_units_that_every_device_is_refused_for_are_named_on_both_sides(
    tmp_path: Path, mosquitto_broker: PrivateBroker, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    np.savez(tmp_path / "raw.npz", x=(1000.0 * rng.standard_normal((200, 64))).astype(np.float32), y=y)
    served = Served(
        tmp_path,
        mosquitto_broker.settings(),
        mosquitto_broker.url,
        0,
        model={"normalise": "none"},
        codec={"name": "dense", "density": None},
        selection={"retry_seconds": 0.2},
    )
    caplog.set_level(logging.INFO, "edge_sdk.device")
    try:
        fleet = FleetRun(mosquitto_broker.url, "digits", devices=6, data=str(tmp_path / "raw.npz"), seconds=12.0)
        lines: list[str] = []
        run_fleet(fleet, lines.append)
        log = served.coordinator.output()
        assert log.count("were refused for value") == 1 and WHAT_TO_DO in log
        assert log.count("round 1 abandoned") + log.count(") abandoned") == 1, "nor is there a line for each attempt"
        with served.store() as store:
            attempts = store.rounds("default", 1000)
        assert 3 <= len(attempts) <= 7, "pauses of .2, .4, .8, 1.6 and 3.2 s, and the rounds between them"
        report = status_report(served.config)
        assert "devices were refused for value" in report["trouble"] and WHAT_TO_DO in report["trouble"]
        shown = CliRunner().invoke(app, ["status", str(served.path)])
        assert "trouble" in shown.stdout and "attempts have failed" in shown.stdout
        assert rounds_report(served.config, 1)[0]["reason"].endswith("refused: value")
        assert WHAT_TO_DO in lines[-1]
        refused = [r for r in caplog.records if r.levelno == logging.WARNING and "refused: value" in r.getMessage()]
        assert refused and WHAT_TO_DO in refused[0].getMessage() and "exceed +-32" in refused[0].getMessage()
    finally:
        served.close()
