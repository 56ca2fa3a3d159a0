"""From the configuration to a round of statistics, and what people read of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import write_config

from coordinator.__main__ import main
from coordinator.cli.serve import round_line
from coordinator.config import FederationConfig, load_config, load_tasks
from coordinator.config.settings import database_path
from coordinator.events import CloseJob, IngestItem, StartJob
from coordinator.reports import rounds_report, status_report
from coordinator.setup import Prepared, build_bundle, prepare, task_settings
from coordinator.store import RoundRecord, Store, TicketRecord
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import Bundle, decode_parameters, digest_of
from edge_sdk.training.feature_sums import feature_sums
from edge_sdk.wire.messages import Update

NOWHERE = "mqtt://127.0.0.1:1"
RAW: dict[str, Any] = {"zoo": "softmax_regression", "inputs": [3], "outputs": 2, "normalise": "federated"}


def prepared(path: Path) -> Prepared:
    return prepare(load_tasks(path), wall=lambda: 1e9, new_id=os.urandom, engine="numpy")


def report_of(made: Prepared, rows: Any) -> bytes:
    normalise = made.tasks[0].program.normalise
    assert normalise is not None
    arrays = feature_sums(np.asarray(rows, np.float32), normalise).encode()
    return Update(len(rows), 0, 0.0, True, 0.0, "numpy", {}, arrays=arrays).encode()


def open_round(made: Prepared, attempt: int = 0) -> RoundRecord:
    """Round 0 as the core saves it, with two tickets given out."""
    task = made.tasks[0]
    base = made.store.latest_checkpoint(task.name)
    assert base is not None and base.round == -1
    purpose = {"purpose": task.settings.in_round(0).purpose}
    record = RoundRecord(
        task.name, 0, attempt, "reporting", 9.0, base.parameters_digest, task.program.digest, summary=purpose
    )
    made.store.save_round(record)
    made.store.insert_tickets(
        [TicketRecord(bytes([attempt, i] * 8), task.name, 0, attempt, f"pi-{i}", bytes(16)) for i in range(2)]
    )
    return record


def report(made: Prepared, record: RoundRecord, payloads: list[bytes] | None = None) -> None:
    """Both devices have reported, and the worker ends the round."""
    worker = made.tasks[0].worker
    worker.start(StartJob(record.task, 0, record.attempt, record.base))
    payloads = payloads or [
        report_of(made, [[1480.0, 62.0, 4.0], [1520.0, 58.0, 4.0]]),
        report_of(made, [[1500.0, 60.0, 4.0]]),
    ]
    items = [
        IngestItem(record.task, bytes([record.attempt, i] * 8), digest_of(payload), payload)
        for i, payload in enumerate(payloads)
    ]
    results = worker.process(items)
    verdicts = {result.ticket: ("counted", "") for result in results}
    counts = {"invited": 2, "counted": 2, "bytes_up": sum(map(len, payloads))}
    closing = RoundRecord(
        *(record.task, 0, record.attempt, "closing", 0.0, record.base, record.program, results[-1].seq),
        summary={**record.summary, **counts},
        started_at=10.0,
        ended_at=11.0,
    )
    assert not worker.close(CloseJob(closing, results[-1].seq, verdicts)).error


def test_a_model_that_all_devices_normalise_begins_with_a_round_of_statistics(tmp_path: Path) -> None:
    made = prepared(write_config(tmp_path, NOWHERE, model=RAW))
    record = open_round(made)
    assert made.tasks[0].settings.dense_bytes == 4 * (3 * 2 + 2), "constants are in no update, however it is encoded"
    opening = made.tasks[0].settings.in_round(record.number)
    assert opening is not made.tasks[0].settings and opening.plan.without_parameters
    report(made, record)
    checkpoint = made.store.latest_checkpoint("default")
    assert checkpoint is not None and checkpoint.round == 0
    program = made.tasks[0].program
    blob = made.store.get_blob(checkpoint.parameters_digest)
    assert blob is not None and program.normalise is not None
    tensors = program.spec.unflatten(decode_parameters(blob, program.spec))
    assert tensors[program.normalise.mean].tolist() == [1500.0, 60.0, 4.0]
    assert tensors[program.normalise.scale][2] == 0.0
    made.store.close()
    again = prepared(write_config(tmp_path, NOWHERE, model=RAW))
    later = again.store.latest_checkpoint("default")
    assert later is not None and later.round == 0, "nobody is asked again"
    again.store.close()


@pytest.mark.parametrize(
    ("model", "first"), [({}, 0), ({"normalise": None}, 0), ({"normalise": "local"}, 1), ({"normalise": "none"}, 1)]
)
def test_a_model_of_the_zoo_asks_for_statistics_unless_told_otherwise(
    tmp_path: Path, model: dict[str, Any], first: int
) -> None:
    path = write_config(tmp_path, NOWHERE, model=RAW | model)
    if model.get("normalise", "") is None:
        path.write_text(path.read_text().replace('normalise = "none"\n', ""))
        assert "normalise" not in path.read_text()
    made = prepared(path)
    checkpoint = made.store.latest_checkpoint("default")
    made.store.close()
    assert checkpoint is not None and checkpoint.round == first - 1


def test_a_trained_bundle_goes_on_with_the_statistics_that_it_was_trained_with(tmp_path: Path) -> None:
    trained = build_bundle(load_config(write_config(tmp_path, NOWHERE, model=RAW)))
    assert trained.program.normalise is not None
    parameters = trained.parameters.copy()
    trained.program.spec.unflatten(parameters)[trained.program.normalise.mean][...] = 1500.0
    Bundle(trained.program, parameters).save(tmp_path / "trained.bundle")
    table = dict.fromkeys(RAW) | {"bundle": "trained.bundle"}
    made = prepared(write_config(tmp_path, NOWHERE, model=table))
    checkpoint = made.store.latest_checkpoint("default")
    made.store.close()
    assert checkpoint is not None and checkpoint.round == 0


def test_as_many_devices_are_needed_as_the_configuration_says(tmp_path: Path) -> None:
    for given, needed in ((None, (2, 4)), (3, (3, 4)), (9, (9, 9))):
        config = load_config(write_config(tmp_path, NOWHERE, model=RAW | {"normalise_minimum": given}))
        opening = task_settings(config, build_bundle(config).program).in_round(0)
        assert (opening.round.minimum_count, opening.round.goal_count) == needed, given


def test_reports_that_could_not_arrive_are_refused_with_the_key_that_forbids_them(tmp_path: Path) -> None:
    transfer = {"partial_bytes_per_device_max": 65_536, "partial_bytes_max": 65_536}
    wide = RAW | {"inputs": [4000]}
    path = write_config(tmp_path, NOWHERE, model=wide, transfer=transfer, codec={"name": "sparse", "density": 0.01})
    with pytest.raises(ConfigurationError, match=r"transfer\.partial_bytes_per_device_max = 65536"):
        prepared(path)


def test_an_open_round_of_statistics_does_not_mind_another_codec(tmp_path: Path) -> None:
    made = prepared(write_config(tmp_path, NOWHERE, model=RAW))
    record = open_round(made)
    worker = made.tasks[0].worker
    worker.start(StartJob(record.task, 0, 0, record.base))
    payload = report_of(made, [[1.0, 2.0, 3.0]])
    assert worker.process([IngestItem(record.task, bytes(16), digest_of(payload), payload)])[0].seq
    made.store.close()
    prepared(write_config(tmp_path, NOWHERE, model=RAW, codec={"name": "int8", "density": None})).store.close()


def test_each_task_of_a_file_has_its_own_first_round(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(
        f'[federation]\nname = "farm"\n[broker]\nurl = "{NOWHERE}"\n'
        '[[task]]\nname = "pumps"\n[task.model]\nzoo = "softmax_regression"\ninputs = [3]\noutputs = 2\n'
        '[[task]]\nname = "fans"\n[task.model]\nzoo = "softmax_regression"\ninputs = [3]\noutputs = 2\n'
        'normalise = "none"\n'
    )
    made = prepared(path)
    rounds = {task.name: made.store.latest_checkpoint(task.name) for task in made.tasks}
    made.store.close()
    assert {name: checkpoint and checkpoint.round for name, checkpoint in rounds.items()} == {"pumps": -1, "fans": 0}


# --- what people read ------------------------------------------------------------------------------------------------


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["edge-coordinator", *map(str, words)])
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    return out + err


def test_status_and_rounds_say_what_round_0_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, NOWHERE, model=RAW | {"normalise_minimum": 5})
    config = load_config(path)
    made = prepared(path)
    record = open_round(made)
    now = status_report(config)
    assert now["completed"] == 0 and now["round"]["goal_count"] == 5
    assert (now["round"]["number"], now["round"]["purpose"]) == (0, "statistics of the features")
    text = said(monkeypatch, capsys, "status", path)
    assert "0 done of 3" in text and "0: statistics of the features from 5 devices, in reporting" in text
    assert "serve it first" in said(monkeypatch, capsys, "export", path, "--onnx", tmp_path / "model.onnx")
    report(made, record)
    made.store.close()
    rows = rounds_report(config, 10)
    assert [(row["round"], row["purpose"], row["counted"]) for row in rows] == [(0, "statistics of the features", 2)]
    assert "statistics of the" in said(monkeypatch, capsys, "rounds", path)
    assert json.loads(said(monkeypatch, capsys, "status", path, "--json"))["metrics"]["features_constant"] == 1.0
    assert now_says(config) == ["1 of 3 features never vary (feature 2)"]
    assert "1 of 3 features never vary (feature 2)" in said(monkeypatch, capsys, "status", path).replace("\n", " ")
    with Store.open_readonly(database_path(config)) as store:
        line = round_line(store.rounds("default")[0], "accuracy")
    assert line.startswith("round 0: statistics of the features from 2 devices; closed: counted 2, ")
    assert "1 of 3 features never vary (feature 2)" in line and "missing;" not in line


def now_says(config: FederationConfig) -> list[str]:
    return list(status_report(config)["features"])


def test_features_beyond_the_range_are_told_by_name_in_log_and_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_config(tmp_path, NOWHERE, model=RAW | {"features": ["rpm", "pascal", "door"], "normalise_clip": 1e4})
    made = prepared(path)
    record = open_round(made)
    rows = [[1480.0, 2e3, 0.0], [1520.0, 3e3, 0.0], [1500.0, 2.5e6, 0.0]]
    report(made, record, [report_of(made, rows), report_of(made, rows[:2])])
    made.store.close()
    told = "values beyond model.normalise_clip (if they are no faults, raise it for a new task): pascal (20.00%)"
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [f"task default: round 0: {told}"]
    config = load_config(path)
    assert now_says(config) == ["1 of 3 features never vary (door)", told]
    with Store.open_readonly(database_path(config)) as store:
        assert f"1 of 3 features never vary (door); {told};" in round_line(store.rounds("default")[0], "accuracy")
    assert "pascal (20.00%)" in said(monkeypatch, capsys, "status", path)
    metrics = json.loads(said(monkeypatch, capsys, "status", path, "--json"))["metrics"]
    assert (metrics["features_clipped"], metrics["features_constant"]) == (1.0, 1.0)


def test_a_report_of_a_feature_that_is_mostly_beyond_the_range_is_refused_by_name(tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, model=RAW | {"features": ["rpm", "pascal", "door"]})
    made = prepared(path)
    record = open_round(made)
    worker = made.tasks[0].worker
    worker.start(StartJob(record.task, 0, 0, record.base))
    payload = report_of(made, [[1480.0, 2.5e6, 0.0], [1520.0, 2.6e6, 0.0], [1500.0, 9e5, 0.0]])
    (result,) = worker.process([IngestItem(record.task, bytes(16), digest_of(payload), payload)])
    made.store.close()
    assert (result.seq, result.reason) == (0, "clipped")
    assert result.detail == "update: values of pascal (67%) are beyond +-1e+06 (model.normalise_clip)"


def test_check_says_that_there_will_be_a_round_of_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(monkeypatch, capsys, "check", write_config(tmp_path, NOWHERE, model=RAW))
    assert "round 0: statistics of the features from 2 devices at least" in text
    assert "statistics" not in said(
        monkeypatch, capsys, "check", write_config(tmp_path, NOWHERE, model=RAW | {"normalise": "none"})
    )


def test_an_attempt_that_was_abandoned_says_why() -> None:
    record = RoundRecord(
        *("default", 0, 1, "abandoned", 0.0, b"", b""),
        reason="1 updates, at least 2 needed",
        summary={"purpose": "statistics of the features", "missing": 3},
    )
    line = round_line(record, "accuracy")
    assert line.startswith("round 0 (attempt 2): statistics of the features; abandoned: counted 0, late 0, ")
    assert "missing 3, refused 0; 1 updates, at least 2 needed" in line
