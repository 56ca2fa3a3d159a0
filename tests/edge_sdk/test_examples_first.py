"""A device looks at its examples before it downloads a model, and says what is wrong without saying what they hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeBroker
from hand_made import blobs, mlp_program
from one_federation import Diary, Federation, wait
from test_session import EPOCH, PARAMETERS, PROGRAM, TICKET, Bench, digest, of, serve

from device_sim.broker import PrivateBroker
from edge_sdk.device.jobs import _told
from edge_sdk.device.session import CheckExamples, ExamplesFit, Notify, StartTraining, TrainingFailed
from edge_sdk.device.work import TrainingWork
from edge_sdk.errors import EdgeFedError, ExamplesError, TrainingError
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.wire.messages import Accept, Decline, RangeRequest, short


def invited(**changes: Any) -> Bench:
    """A device that has the program, was invited, and has not looked at its examples yet."""
    bench = Bench(cached=[PROGRAM])
    bench.examples_fit = False
    bench.check_in()
    bench.hear(bench.invite(**changes))
    return bench


def asked_for(bench: Bench) -> list[bytes]:
    return [want.digest for want in bench.said(RangeRequest)]


def test_the_program_comes_first_then_the_examples_are_looked_at_then_the_parameters_come() -> None:
    bench = Bench()
    bench.examples_fit = False
    bench.check_in()
    bench.hear(bench.invite())
    assert asked_for(bench) == [short(digest(PROGRAM))]
    serve(bench, bench.said(RangeRequest)[0], PROGRAM)
    assert of(bench.actions, CheckExamples) == [CheckExamples(TICKET, digest(PROGRAM))]
    assert asked_for(bench) == [short(digest(PROGRAM))] and bench.session.state == "fetching"
    bench.play(ExamplesFit(TICKET))
    assert asked_for(bench) == [short(digest(PROGRAM)), short(digest(PARAMETERS))]
    serve(bench, bench.said(RangeRequest)[1], PARAMETERS)
    assert of(bench.actions, StartTraining) and len(of(bench.actions, CheckExamples)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vectors": (("control", bytes(32), 100),)},
        {"base": short(digest(b"earlier")), "deltas": ((bytes(32), 10),)},
    ],
)
def test_nothing_but_the_program_is_asked_for_before(changes: dict[str, Any]) -> None:
    bench = invited(**changes)
    assert of(bench.actions, CheckExamples) and not bench.said(RangeRequest)


def test_vectors_wait_too_where_the_parameters_are_here() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    bench.examples_fit = False
    bench.check_in()
    bench.hear(bench.invite(vectors=(("control", bytes(32), 100),)))
    assert of(bench.actions, CheckExamples) and not bench.said(RangeRequest)
    bench.play(ExamplesFit(TICKET))
    assert asked_for(bench) == [bytes(8)]


def test_where_nothing_is_to_be_downloaded_training_looks_at_them_itself() -> None:
    bench = Bench()
    bench.training()
    assert not of(bench.actions, CheckExamples)


def test_examples_that_do_not_fit_give_the_ticket_back_with_the_reason_in_words_that_hold_no_value() -> None:
    bench = invited()
    local, public = "/data/log.csv, line 3: 'secret'", "log.csv, line 3, column 'y': the cell is not a number"
    bench.play(TrainingFailed(TICKET, "no_examples", local, public))
    assert bench.said(Decline) == [Decline(ticket=TICKET, reason="no_examples", detail=public)]
    assert bench.session.state == "idle" and not bench.said(RangeRequest)
    assert local in [notice.detail for notice in of(bench.actions, Notify)]


def test_a_reason_of_any_length_is_cut_to_what_a_message_may_hold() -> None:
    bench = invited()
    bench.play(TrainingFailed(TICKET, "no_examples", "", "x" * 10_000))
    assert bench.said(Decline)[0].detail == "x" * 400


def test_an_answer_about_another_ticket_or_after_the_end_moves_nobody() -> None:
    bench = invited()
    bench.play(ExamplesFit(bytes(16)))
    bench.play(TrainingFailed(bytes(16), "no_examples"))
    assert bench.session.state == "fetching" and not bench.said(RangeRequest) and not bench.said(Decline)
    bench.announce(round=2)
    assert bench.session.state == "idle"
    bench.play(ExamplesFit(TICKET))
    assert not bench.said(RangeRequest)


def test_the_deadline_and_a_new_coordinator_are_heeded_during_the_look() -> None:
    bench = invited()
    bench.state(2)
    assert len(bench.said(Accept)) == 2 and not bench.said(RangeRequest)
    bench.tick()
    assert bench.said(Decline)[0].reason == "deadline" and bench.session.state == "idle"


def test_each_ticket_has_its_own_look() -> None:
    bench = invited()
    bench.play(TrainingFailed(TICKET, "no_examples"))
    bench.announce(round=2)
    bench.tick()
    bench.hear(bench.invite(round=2, ticket=b"2" * 16), lineage=EPOCH)
    assert [look.ticket for look in of(bench.actions, CheckExamples)] == [TICKET, b"2" * 16]


# ---- the job


def test_what_was_loaded_for_the_look_is_trained_on_and_loaded_once() -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        return blobs(20, 2)

    program = mlp_program((2, 4, 3))
    work = TrainingWork(load)
    work.check(TICKET, program.digest, program.encode())
    work.check(TICKET, program.digest, program.encode())
    assert len(loads) == 2
    assert work._examples_for(TICKET, program).checked_for == program.digest and len(loads) == 2
    work._examples_for(b"2" * 16, program)
    assert len(loads) == 3, "another ticket trains on examples of its own"


def test_a_look_at_too_few_or_wrong_examples_says_why() -> None:
    program = mlp_program((2, 4, 3))
    with pytest.raises(ExamplesError, match="20 local examples, this device wants at least 21") as caught:
        TrainingWork(lambda: blobs(20, 2), examples_min=21).check(TICKET, program.digest, program.encode())
    assert caught.value.public
    with pytest.raises(ExamplesError, match="expected shape"):
        TrainingWork(lambda: blobs(20, 3)).check(TICKET, program.digest, program.encode())


@pytest.mark.parametrize(
    ("failure", "reason", "public"),
    [
        (ValueError("patient 12"), "error", "ValueError"),
        (TrainingError("the loss became nan"), "training", "the loss became nan"),
        (TrainingError("fit failed: patient 12", public="fit failed"), "training", "fit failed"),
        (ExamplesError("row 3: patient 12"), "no_examples", ""),
        (ExamplesError("row 3: patient 12", public="row 3"), "no_examples", "row 3"),
        (EdgeFedError("patient 12"), "training", ""),
    ],
)
def test_what_others_are_told_of_a_failure_holds_no_words_of_the_users_code(
    failure: Exception, reason: str, public: str
) -> None:
    def fail() -> Any:
        raise failure

    told = _told(TICKET, fail)
    assert isinstance(told, TrainingFailed)
    assert (told.reason, told.public) == (reason, public) and str(failure) in told.detail


# ---- over a broker


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


def test_a_bad_file_costs_no_download_and_its_content_stays_on_the_device(
    broker: PrivateBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    x, y = blobs(30)
    lines = [",".join(map(str, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    lines[5] = "1,2,3,4,5,s3cret,0"
    (tmp_path / "log.csv").write_text(
        "\n".join([",".join([*(f"x{i}" for i in range(x.shape[1])), "y"]), *lines]) + "\n"
    )
    diary = Diary()
    load: Callable[[], Any] = lambda: ExamplesFile(tmp_path / "log.csv")  # noqa: E731
    with (
        # Of another size than those that come with the invite.
        Federation(tmp_path / "coordinator", broker.url, "first", model={"zoo": "mlp", "hidden": [200]}) as plant,
        plant.client(tmp_path / "pi", load_examples=load, on_progress=diary) as client,
    ):
        assert f"{tmp_path}/log.csv, line 7, column 'x5': the cell is not a number" in diary.detail("training_failed")
        assert "'s3cret'" in diary.detail("training_failed")
        wait(lambda: "no_examples" in plant.reasons("declined"), plant.tickets)
        assert client._agent.blobs.parameters() == ()
        published = client._agent._reporter.retained(client.status, "online", 0.0)
        assert published is not None and b"log.csv, line 7, column 'x5'" in published
        assert b"s3cret" not in published and str(tmp_path).encode() not in published
    told = [r.getMessage() for r in caplog.records if r.name.startswith("coordinator")]
    assert [t for t in told if "pi declined, no_examples: log.csv, line 7, column 'x5': the cell is not a number" in t]
    assert not [t for t in told if "s3cret" in t or str(tmp_path / "log.csv") in t]
    assert len(list((tmp_path / "pi").glob("program-*"))) == 1, "kept for the next time, and for edge-device check"


def test_a_good_file_is_trained_on(broker: PrivateBroker, tmp_path: Path) -> None:
    x, y = blobs(30)
    header = ",".join([*(f"x{i}" for i in range(x.shape[1])), "y"])
    np.savetxt(tmp_path / "log.csv", np.column_stack([x, y]), delimiter=",", header=header, comments="", fmt="%.6g")
    load: Callable[[], Any] = lambda: ExamplesFile(tmp_path / "log.csv")  # noqa: E731
    with (
        Federation(tmp_path / "coordinator", broker.url, "second") as plant,
        plant.client(tmp_path / "pi", load_examples=load) as client,
    ):
        wait(lambda: client.status.counted >= 2, plant.tickets)
