"""``edge-coordinator plot``: what is read from runs, what is drawn, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.cli.plot import plot_runs, read_runs
from coordinator.cli.show import rounds_csv
from coordinator.config import load_config
from coordinator.config.settings import database_path
from coordinator.pictures import Run
from coordinator.reports import rounds_report
from coordinator.setup import build_bundle
from coordinator.store import RoundRecord, Store
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import encode_parameters

PNG = b"\x89PNG\r\n\x1a\n"


def served(folder: Path, rounds: int = 3, *, bytes_down: int = 1000) -> Path:
    """A run of some rounds in which an attempt at the second one was abandoned; accuracy .1, .2, ..."""
    folder.mkdir()
    path = folder / "federation.toml"
    path.write_text(
        '[federation]\nname = "f"\n[broker]\nurl = "mqtt://localhost"\n'
        '[model]\nzoo = "softmax_regression"\ninputs = [4]\noutputs = 3\n'
    )
    config = load_config(path)
    bundle = build_bundle(config, verify=False)
    database_path(config).parent.mkdir()
    with Store(database_path(config), wall=lambda: 0.0, new_id=np.random.default_rng(0).bytes) as store:
        parameters = encode_parameters(bundle.parameters)
        store.put_initial("default", bundle.program.encode(), parameters, b"")
        summary = {"bytes_up": 100, "bytes_up_dense": 5000, "bytes_down": bytes_down, "bytes_down_dense": 9000}
        for number in range(1, rounds + 1):
            for attempt in range(2 if number == 2 else 1):
                record = RoundRecord("default", number, attempt, "selection", 0.0, b"", bundle.program.digest)
                store.save_round(record)
                if number == 2 and attempt == 0:
                    store.abandon_round(record.abandoned("nobody came", summary, 0.0), {})
                    continue
                metrics = {"train_loss": 1.0 / number, "accuracy": number / 10}
                store.commit_round(
                    RoundRecord(
                        *("default", number, attempt, "closed", 0.0, b"", bundle.program.digest, 0),
                        summary={**summary, "metrics": metrics},
                    ),
                    parameters=parameters,
                    server_state=b"",
                    verdicts={},
                    metrics=metrics,
                )
    return path


def test_a_run_is_read_alike_from_its_configuration_its_database_and_its_csv(tmp_path: Path) -> None:
    path = served(tmp_path / "greenhouse")
    config = load_config(path)
    exported = tmp_path / "greenhouse" / "rounds.csv"
    exported.write_text(rounds_csv(rounds_report(config, 1000)))
    (of_toml,), (of_db,), (of_csv,) = (read_runs(s) for s in (path, database_path(config), exported))
    assert (of_toml.name, of_db.name, of_csv.name) == ("greenhouse", "f-default", "greenhouse")
    assert of_toml.curve("accuracy") == of_db.curve("accuracy") == of_csv.curve("accuracy")


def test_bytes_count_both_ways_and_those_of_abandoned_attempts_too(tmp_path: Path) -> None:
    (run,) = read_runs(served(tmp_path / "run"))
    assert run.bytes_each == [1100.0] * 4 and run.bytes_dense == [14_000.0] * 4
    assert run.curve("accuracy") == [(1.0, 1100.0, 0.1), (2.0, 3300.0, 0.2), (3.0, 4400.0, 0.3)]
    assert run.curve("train_loss")[0] == (1.0, 1100.0, 1.0)


def test_several_runs_are_drawn_side_by_side(tmp_path: Path) -> None:
    first, second = served(tmp_path / "first"), served(tmp_path / "second", 5, bytes_down=9000)
    out = tmp_path / "curves.svg"
    lines = plot_runs([first, second], out, title="Two")
    assert lines == [
        "first: accuracy 0.3 in round 3, after 0.0044 MB up and down",
        "second: accuracy 0.5 in round 5, after 0.0546 MB up and down",
    ]
    drawn = out.read_text()
    assert "<!-- first -->" in drawn and "<!-- second -->" in drawn and "<!-- Two -->" in drawn, "legend and title"
    assert (
        "<!-- all bytes, up and down [MB] -->" in drawn and "<!-- round -->" in drawn and "<!-- accuracy -->" in drawn
    )
    plot_runs([first], out)
    assert "<!-- down -->" in out.read_text(), "of one run both directions are shown"


def test_the_command_writes_a_picture_and_a_line_for_each_run(tmp_path: Path) -> None:
    path, out = served(tmp_path / "run"), tmp_path / "curves.png"
    command = [sys.executable, "-m", "coordinator", "plot", str(path), "--out", str(out), "--name", "pumps"]
    done = subprocess.run([*command, "--metric", "train_loss"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("pumps: train_loss 0.3333 in round 3"), done.stderr
    assert out.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"metric": "f1"}, "--metric f1: run has no value of it; its columns are accuracy, "),
        ({"names": ["a", "b"]}, "--name: given 2 times for 1 runs"),
        ({"task": "pumps"}, "has no task 'pumps'"),
        ({"out": "curves.jpg"}, r"is none of \.png, \.svg, \.pdf"),
        ({"out": "missing/curves.png"}, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(tmp_path: Path, arguments: dict[str, object], says: str) -> None:
    path = served(tmp_path / "run")
    out = tmp_path / str(arguments.pop("out", "curves.png"))
    with pytest.raises(ConfigurationError, match=says):
        plot_runs([path], out, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.csv", None, "there is no such file"),
        ("model.onnx", "x", "is none of federation.toml, .db, .csv"),
        ("other.csv", "a,b\n1,2\n", "has no column 'round'"),
        ("empty.csv", "", "no round has ended yet"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        plot_runs([tmp_path / name], tmp_path / "curves.png")


def test_a_metric_that_all_runs_have_is_drawn_where_none_is_asked_for(tmp_path: Path) -> None:
    rows = "round,bytes_up,bytes_down,accuracy,train_loss\n1,10,20,,0.5\n2,10,20,,0.25\n"
    (tmp_path / "trained.csv").write_text(rows)
    lines = plot_runs([served(tmp_path / "run"), tmp_path / "trained.csv"], tmp_path / "curves.png")
    assert lines[1].startswith("trained: train_loss 0.25 in round 2"), "one of them was never evaluated"
    assert Run("empty", []).curve("accuracy") == []
