"""What ``edge-coordinator`` prints, and with which code it ends."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import socket
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import MakeBroker
from serving import FEDERATION, HandMade, dense_frame, update_of, write_config, write_held_out

from coordinator.__main__ import exit_code, main
from coordinator.cli.serve import RateLimitFilter, round_line
from coordinator.cli.show import bytes_text
from coordinator.compile import build_zoo_model, compile_model
from coordinator.config import load_config
from coordinator.config.settings import database_path
from coordinator.setup import prepare
from coordinator.store import JournalRow, RoundRecord, Store, TicketRecord
from device_sim.broker import PrivateBroker
from edge_sdk import __version__
from edge_sdk.errors import (
    BundleError,
    CompileError,
    ConfigurationError,
    ConnectionRefused,
    ConnectionUnavailable,
    DecodeError,
    EdgeFedError,
    ExamplesError,
    StateError,
    TrainingError,
    VersionError,
)
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.wire.coordinator_state import CoordinatorState

NOWHERE = "mqtt://127.0.0.1:1"
VERDICTS = {"counted": 2, "late": 1, "declined": 0, "missing": 0, "refused": 1}


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line through its entry point."""

    def invoke(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["edge-coordinator", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Result(code, *capsys.readouterr())

    return invoke


def train(path: Path, rounds: int = 2) -> None:
    """Commits a few rounds without any device: each moves every parameter by 0.01."""
    made = prepare([load_config(path)], wall=lambda: 1_700_000_000.0, new_id=os.urandom, engine="numpy")
    store, task = made.store, "default"
    base = store.latest_checkpoint(task)
    assert base is not None
    store.device_seen([("pi-1", bytes(16), {"sdk": "0.1.0", "engine": "numpy"})])
    store.count("malformed", 3)
    vector = np.zeros(made.tasks[0].program.spec.size, dtype=np.float32)
    for number in range(1, rounds + 1):
        vector = vector + np.float32(0.01) * np.arange(vector.size, dtype=np.float32) / vector.size
        ticket, payload = os.urandom(16), update_of(dense_frame(vector))
        summary = {"invited": 4, **VERDICTS, "bytes_up": 400, "bytes_up_dense": 5200}
        summary |= {"bytes_down": 9000, "bytes_down_dense": 30_000, "update_bytes": 300, "model_bytes": 8000}
        record = RoundRecord(task, number, 0, "reporting", 9.0, base.parameters_digest, made.tasks[0].program.digest)
        store.save_round(record)
        store.insert_tickets([TicketRecord(ticket, task, number, 0, "pi-1", bytes(16))])
        [seq] = store.journal([JournalRow(ticket, digest_of(payload), payload)])
        metrics = {"train_loss": 2.0 / number, "loss": float("nan"), "accuracy": 0.25 * number}
        ended = RoundRecord(
            task, number, 0, "closed", 0.0, base.parameters_digest, made.tasks[0].program.digest, seq,
            summary={**summary, "metrics": metrics}, ended_at=1_700_000_012.5,
        )  # fmt: skip
        store.commit_round(
            ended,
            parameters=encode_parameters(vector),
            server_state=b"\x80",
            verdicts={ticket: ("counted", "")},
            metrics=metrics,
        )
    store.close()


def open_round(path: Path) -> None:
    """Leaves a third round open."""
    store = Store(database_path(load_config(path)), wall=lambda: 1_700_000_020.0, new_id=os.urandom)
    base = store.latest_checkpoint("default")
    assert base is not None
    store.save_round(RoundRecord("default", 3, 1, "reporting", 42.0, base.parameters_digest, base.program_digest))
    rows = [TicketRecord(os.urandom(16), "default", 3, 1, f"pi-{number}", bytes(16)) for number in range(3)]
    store.insert_tickets(rows)
    store.set_ticket(rows[0].ticket, "accepted")
    store.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (ExamplesError("x"), 2),
        (CompileError("x"), 2),
        (BundleError("x"), 2),
        (VersionError("x"), 2),
        (ConnectionRefused("x"), 3),
        (ConnectionUnavailable("x"), 3),
        (StateError("x"), 4),
        (TrainingError("x"), 1),
        (DecodeError("x"), 1),
        (EdgeFedError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: EdgeFedError, code: int) -> None:
    assert exit_code(error) == code


def test_version_and_help_name_every_command(run: Run) -> None:
    assert run("--version") == (0, f"edge-coordinator {__version__}\n", "")
    shown = run("--help").out
    commands = ("serve", "check", "status", "rounds", "plot", "export", "compile", "inspect", "codec")
    assert all(name in shown for name in (*commands, "Exit codes"))


@pytest.mark.parametrize("command", [("serve",), ("status",), ("rounds",), ("export", "--onnx", "m.onnx")])
def test_a_configuration_that_is_missing_is_one_clear_line(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, out, err = run(command[0], tmp_path / "none.toml", *command[1:])
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "none.toml: cannot be read" in err and err.count("\n") == 1


def test_every_mistake_in_a_configuration_has_its_line(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, selection={"goal_count": 0}, training={"epoks": 3})
    code, _, err = run("serve", path)
    assert code == 2 and "Traceback" not in err
    assert "selection.goal_count = 0" in err and "did you mean training.epochs?" in err


@pytest.mark.parametrize("words", [("serve",), ("fly",), ("serve", "a.toml", "--linger", "-1")])
def test_a_wrong_command_line_is_code_2(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words).code == 2


def test_an_unknown_log_level_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("serve", write_config(tmp_path, NOWHERE), "--log-level", "loud")
    assert code == 2 and "--log-level loud: is none of debug, info, warning, error" in err


@pytest.mark.parametrize("command", [("status",), ("rounds",), ("export", "--bundle", "out.bundle")])
def test_without_a_database_there_is_nothing_to_show(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, _, err = run(command[0], write_config(tmp_path, NOWHERE), *command[1:])
    assert code == 4 and "no such database" in err and err.startswith("error: ")


def test_a_database_of_another_program_is_code_4(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE)
    database = database_path(load_config(path))
    database.parent.mkdir()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE t (x)")
    code, _, err = run("serve", path)
    assert code == 4 and "a database of another program" in err


def test_serving_another_model_is_code_2(run: Run, tmp_path: Path) -> None:
    train(write_config(tmp_path, NOWHERE), rounds=1)
    code, _, err = run("serve", write_config(tmp_path, NOWHERE, model={"zoo": "mlp"}))
    assert code == 2 and "the database was made for another model" in err


def test_a_federation_that_is_finished_says_so_and_ends_at_once(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, stopping={"rounds_max": 2})
    train(path)
    assert run("serve", path, "--linger", "0").out == "finished: round budget: 2 rounds done\n"


def test_status_shows_the_round_the_devices_and_the_counters(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, stopping={"rounds_max": 9})
    train(path)
    open_round(path)
    code, out, _ = run("status", path, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["federation"] == FEDERATION and not report["served"]
    assert (report["completed"], report["rounds_max"], report["finished"]) == (2, 9, None)
    assert report["round"] == {
        "number": 3,
        "attempt": 1,
        "purpose": "training",
        "checked_in": 0,
        "minimum_count": 2,
        "phase": "reporting",
        "seconds_remaining": 42.0,
        "goal_count": 4,
        "tickets": {"accepted": 1, "invited": 2},
    }
    assert report["messages"] == {"malformed": 3}
    assert report["bytes"] == {
        "bytes_up": 800,
        "bytes_up_dense": 10_400,
        "bytes_down": 18_000,
        "bytes_down_dense": 60_000,
        "update_bytes": 600,
        "model_bytes": 16_000,
    }
    assert report["metrics"] == {"train_loss": 1.0, "loss": None, "accuracy": 0.5}
    assert report["devices"]["known"] == 1 and report["devices"]["latest"][0]["counted"] == 2
    text = run("status", path).out
    for words in ("2 done of 9", "3 (attempt 2), in reporting", "accepted 1, invited 2", "malformed 3", "pi-1"):
        assert words in text
    told = " ".join(text.split())
    assert told.index("18.8 kB both ways, dense float32 70.4 kB (3.7x less)") < told.index("600 B of updates")


def test_status_of_a_finished_federation_says_why(run: Run, tmp_path: Path) -> None:
    path = write_config(
        tmp_path, NOWHERE, stopping={"rounds_max": 9, "target_metric": 0.5}, evaluation={"held_out": 0.1}
    )
    train(path)
    assert json.loads(run("status", path, "--json").out)["finished"].startswith("target reached: accuracy 0.5")


def test_rounds_are_the_same_as_table_json_and_csv(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE)
    assert run("rounds", path).code == 4
    train(path)
    open_round(path)
    rows = json.loads(run("rounds", path, "--json").out)
    assert [row["round"] for row in rows] == [1, 2], "the open round is not among them"
    assert rows[1] == {
        "round": 2,
        "attempt": 0,
        "purpose": "training",
        "phase": "closed",
        "reason": "",
        "invited": 4,
        **VERDICTS,
        "bytes_up": 400,
        "bytes_up_dense": 5200,
        "bytes_down": 9000,
        "bytes_down_dense": 30_000,
        "update_bytes": 300,
        "model_bytes": 8000,
        "train_loss": 1.0,
        "loss": None,
        "accuracy": 0.5,
        "seconds": 12.5,
    }
    table = list(csv.DictReader(io.StringIO(run("rounds", path, "--csv").out)))
    assert [row["accuracy"] for row in table] == ["0.25", "0.5"] and list(table[0]) == list(rows[0])
    text = run("rounds", path, "--last", 1).out.splitlines()
    assert len(text) == 2 and "5.2 kB" in text[1] and "accuracy" in text[0]


def test_the_line_of_a_round_has_its_counts_bytes_and_seconds() -> None:
    summary = {**VERDICTS, "bytes_up": 400, "bytes_up_dense": 5200, "metrics": {"accuracy": 0.5, "train_loss": 1.0}}
    record = RoundRecord("default", 7, 1, "closed", 0.0, b"", b"", summary=summary, started_at=10.0, ended_at=22.5)
    assert round_line(record, "accuracy") == (
        "round 7 (attempt 2) closed: counted 2, late 1, declined 0, missing 0, refused 1; train_loss 1; accuracy 0.5; "
        "400 B both ways, dense float32 5.2 kB (13.0x less); 12.5 s"
    )
    abandoned = RoundRecord("default", 1, 0, "abandoned", 0.0, b"", b"", reason="nobody came")
    assert "round 1 abandoned" in round_line(abandoned, "accuracy") and "nobody came" in round_line(abandoned, "x")


def test_a_flood_of_one_kind_of_message_does_not_fill_the_log() -> None:
    calm = RateLimitFilter(lines_max=3)

    def passes(seconds: float, line: int, message: str = "refused %s") -> str | None:
        record = logging.LogRecord("coordinator.task", logging.INFO, "task.py", line, message, ("it",), None)
        record.created = 1000.0 + seconds
        return record.getMessage() if calm.filter(record) else None

    assert [passes(n, 1) for n in range(5)] == ["refused it"] * 3 + [None] * 2
    assert passes(5, 2) == "refused it", "another place in the code is another kind"
    assert passes(60, 1) == "refused it (and 2 more of this kind)"
    assert passes(61, 1) == "refused it"


def test_systemd_hears_that_it_is_ready_alive_and_leaving(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_config(tmp_path, NOWHERE, stopping={"rounds_max": 2})
    train(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        assert run("serve", path, "--linger", "0.1").code == 0
        assert [systemd.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_an_exported_model_gives_with_onnxruntime_what_was_trained(run: Run, tmp_path: Path) -> None:
    write_held_out(tmp_path)
    path = write_config(tmp_path, NOWHERE, evaluation={"data": "heldout.npz"})
    train(path)
    code, out, _ = run("export", path, "--onnx", tmp_path / "m.onnx", "--bundle", tmp_path / "m.bundle", "--json")
    report = json.loads(out)
    assert code == 0 and report["round"] == 2 and report["examples"] > 300
    assert report["proved"].startswith("onnxruntime and the numpy engine agree on ")
    held_out = np.load(tmp_path / "heldout.npz")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    [logits] = session.run(None, {"x": held_out["x"].astype(np.float32)})
    assert np.mean(logits.argmax(axis=1) == held_out["y"]) == pytest.approx(report["accuracy"])
    bundle = Bundle.load(tmp_path / "m.bundle")
    weight = onnx.numpy_helper.to_array(onnx.load(tmp_path / "m.onnx").graph.initializer[0])
    assert np.array_equal(bundle.program.spec.unflatten(bundle.parameters)["fc1.weight"], weight)


def test_export_without_data_is_proved_on_made_up_inputs_and_older_rounds_are_there(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, store={"checkpoints_kept": 2})
    train(path)
    code, out, _ = run("export", path, "--onnx", tmp_path / "m.onnx", "--round", 1)
    assert code == 0 and "round: 1" in out and "agree on 8 examples" in out
    code, _, err = run("export", path, "--onnx", tmp_path / "m.onnx", "--round", 0)
    assert code == 2 and "--round 0: its model is not kept; there are those of rounds 1, 2" in err
    code, _, err = run("export", path)
    assert code == 2 and "give --onnx FILE, --int8 FILE or --bundle FILE" in err
    code, _, err = run("export", path, "--onnx", tmp_path / "missing" / "m.onnx")
    assert code == 2 and "m.onnx: cannot be written" in err


def test_where_a_model_cannot_be_quantised_the_other_file_is_written_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("of no use")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", broken)
    path = write_config(tmp_path, NOWHERE)
    train(path)
    code, _, err = run("export", path, "--onnx", tmp_path / "m.onnx", "--int8", tmp_path / "small.onnx")
    assert code != 0 and "cannot quantise any operator of it: of no use" in err
    assert f"{tmp_path / 'm.onnx'} is written" in err
    assert onnx.load(tmp_path / "m.onnx").graph.initializer and not (tmp_path / "small.onnx").exists()


def test_compile_and_inspect_say_how_the_input_is_normalised(run: Run, tmp_path: Path) -> None:
    onnx.save(build_zoo_model("mlp", inputs=(3,), outputs=2, hidden=(8,), seed=2), tmp_path / "mine.onnx")
    words = ("compile", tmp_path / "mine.onnx", "--out", tmp_path / "mine.bundle", "--normalise", "federated")
    code, out, err = run(*words, "--missing", "mean")
    assert code == 0, err
    assert (
        "input x takes raw units: 3 features in dimension 1, normalised with mean and scale of all devices' examples; "
        "a missing value (NaN) is taken as the mean"
    ) in out
    assert "constant: 2 tensors, 6 elements\n  normalise/mean [3]: statistics of the examples" in out
    assert run("inspect", tmp_path / "mine.bundle").out == out
    table = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle", "normalise_minimum": 2}
    assert load_config(write_config(tmp_path, NOWHERE, model=table)).model.normalise_minimum == 2
    for wrong, said in (
        (("--normalise", "everywhere"), "is not one of"),
        (("--normalise", "none", "--missing", "mean"), "go with --normalise"),
        (("--normalise-axis", "4"), "axis 4 is none of input 'x'"),
    ):
        code, _, err = run(*words, *wrong)
        assert code == 2 and said in err


def test_compile_writes_a_bundle_that_a_configuration_can_name(run: Run, tmp_path: Path) -> None:
    onnx.save(build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(8,), seed=1), tmp_path / "mine.onnx")
    code, out, _ = run("compile", tmp_path / "mine.onnx", "--out", tmp_path / "mine.bundle", "--optimizer", "momentum")
    assert code == 0 and "trainable: 4 tensors, 610 elements" in out and "one dense update: 2440 bytes" in out
    assert run("inspect", tmp_path / "mine.bundle").out == out
    facts = json.loads(run("inspect", tmp_path / "mine.bundle", "--json").out)
    assert facts["step"]["batch_size"] == 32 and facts["model_operators"] == {"Gemm": 2, "Relu": 1}
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle"}
    checks = json.loads(run("check", write_config(tmp_path, NOWHERE, model=model), "--json").out)
    assert checks[2]["state"] == "ok" and "mine: 610 parameters" in checks[2]["detail"]
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "mine.onnx").read_bytes()[:-100])
    code, _, err = run("compile", tmp_path / "cut.onnx", "--out", tmp_path / "cut.bundle")
    assert code == 2 and err.startswith("error: ") and "cut.onnx" in err


def checks_of(result: Result) -> dict[str, tuple[str, str]]:
    return {check["check"]: (check["state"], check["detail"]) for check in json.loads(result.out)}


def test_check_passes_and_changes_nothing(run: Run, tmp_path: Path, mosquitto_broker: PrivateBroker) -> None:
    write_held_out(tmp_path)
    path = write_config(tmp_path, mosquitto_broker.url, evaluation={"data": "heldout.npz"})
    result = run("check", path, "--json")
    found = checks_of(result)
    assert result.code == 0 and {state for state, _ in found.values()} == {"ok"}
    assert "examples; the initial model: loss" in found["held-out data"][1]
    assert "will be made by the first start" in found["database"][1] and not (tmp_path / "state").exists()
    assert "MQTT 5, may subscribe and publish" in found["broker"][1]
    assert run("check", path).out.count(" ok ") == 6


def test_check_warns_of_a_large_target_that_nobody_normalises(
    run: Run, tmp_path: Path, mosquitto_broker: PrivateBroker
) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    np.savez(tmp_path / "heldout.npz", x=x, y=48_000 + 900 * x[:, 0])
    for normalise, state in (("none", "warning"), ("federated", "ok")):
        model = {"zoo": "linear_regression", "inputs": [3], "outputs": 1, "hidden": None, "normalise": normalise}
        path = write_config(tmp_path, mosquitto_broker.url, model=model, evaluation={"data": "heldout.npz"})
        found = checks_of(run("check", path, "--json"))["held-out data"]
        assert found[0] == state and ("let the model normalise it" in found[1]) == (state == "warning")


def test_check_says_what_is_wrong_and_skips_what_depends_on_it(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE, training={"epoks": 3})
    result = run("check", path, "--json")
    found = checks_of(result)
    assert result.code == 2 and found["configuration"][0] == "failed" and "did you mean" in found["configuration"][1]
    assert {state for name, (state, _) in found.items() if name != "configuration"} == {"skipped"}


def test_check_without_a_broker_is_code_3(run: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, NOWHERE)
    train(path)
    result = run("check", path, "--json")
    found = checks_of(result)
    assert (
        result.code == 3 and found["broker"][0] == "failed" and "nothing listens at 127.0.0.1:1" in found["broker"][1]
    )
    assert "2 rounds done, no round is open" in found["database"][1]
    assert found["held-out data"][0] == "warning" and "nothing is evaluated" in found["held-out data"][1]


def test_check_of_another_model_and_of_missing_files_is_code_2(run: Run, tmp_path: Path) -> None:
    train(write_config(tmp_path, NOWHERE))
    tables: dict[str, Any] = {"model": {"zoo": "mlp"}, "evaluation": {"data": "none.npz"}}
    result = run("check", write_config(tmp_path, NOWHERE, **tables), "--json")
    found = checks_of(result)
    assert result.code == 2
    assert "evaluation.data: there is no file" in found["files"][1] and found["held-out data"][0] == "failed"
    assert "the database was made for another model" in found["database"][1]


def test_check_notices_what_a_broker_does_not_allow(mosquitto: MakeBroker, run: Run, tmp_path: Path) -> None:
    with mosquitto(users={"coordinator": "right", "pi-1": "pi"}) as broker:
        (tmp_path / "password").write_text("wrong\n")
        login = {"username": "coordinator", "password_file": "password"}
        path = write_config(tmp_path, broker.url, broker=login)
        result = run("check", path, "--json")
        assert (
            result.code == 3 and "refused user 'coordinator': the password is wrong" in checks_of(result)["broker"][1]
        )
        (tmp_path / "password").write_text("right\n")
        assert checks_of(run("check", path, "--json"))["broker"][0] == "ok"
        (tmp_path / "password").write_text("pi\n")
        path = write_config(tmp_path, broker.url, broker=login | {"username": "pi-1"})
        result = run("check", path, "--json")
        state, detail = checks_of(result)["broker"]
        assert (result.code, state) == (3, "failed") and "may not" in detail and "topic readwrite fl/v1/#" in detail


def test_check_notices_another_coordinator_of_the_same_name(
    run: Run, tmp_path: Path, mosquitto_broker: PrivateBroker, loop: Any
) -> None:
    other = HandMade(loop, mosquitto_broker.settings(), "other")
    assert loop.run_until(lambda: other.subscribed, 10.0)
    state = CoordinatorState(b"lineage!", 7, True, ("default",))
    other.publish(other.topics.lineage_state(b"lineage!"), state.encode(FEDERATION), retain=True)
    loop.run_until(lambda: False, 0.2)
    found = checks_of(run("check", write_config(tmp_path, mosquitto_broker.url), "--json"))["broker"]
    assert (
        found[0] == "warning"
        and "another coordinator serves default there, from another database (6c696e6561676521)" in found[1]
    )
    other.close()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (3_200_000_000, "3.2 GB")]
)
def test_bytes_are_shown_with_three_figures(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.fixture(scope="module")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "digits.bundle"
    model = build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(32,), seed=0)
    compile_model(model, loss="softmax_cross_entropy", loop=False, name="digits").save(path)
    return path


QUICK = ("--rounds", 2, "--clients", 2, "--cohort", 2)


def test_the_report_on_codecs_is_json_whose_pick_keeps_the_budget(run: Run, digits_bundle: Path) -> None:
    code, out, err = run("codec", "report", digits_bundle, *QUICK, "--bytes-max", 300, "--no-trial", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "") and report["data"] == "scikit-learn's digits" and report["parameters"] == 2410
    entries = {entry["codec"]: entry for entry in report["codecs"]}
    assert {"auto 1", "dense", "float16", "int8", "int4", "int2", "sparse 1%", "eden 0.05"} <= entries.keys()
    assert entries[report["pick"]["codec"]]["bytes_max"] <= 300
    for name, entry in entries.items():
        tensors = sum(tensor["codecs"][name]["bytes"] for tensor in report["tensors"])
        assert tensors + entry["head_bytes"] == pytest.approx(entry["bytes"])
    assert sum(tensor["energy"] for tensor in report["tensors"]) == pytest.approx(1.0)


def test_the_report_on_codecs_for_people_ends_with_the_table_to_write(
    run: Run, digits_bundle: Path, tmp_path: Path
) -> None:
    code, out, _ = run("codec", "report", digits_bundle, *QUICK, "--data", write_held_out(tmp_path))
    assert code == 0 and out.endswith('[codec]\nname = "auto"\nbits = 1\n')
    for words in ("heldout.npz", "fc1.weight [32, 64]", "of the energy", "the mean is of 2 clients' updates"):
        assert words in out
    code, out, _ = run("codec", "report", digits_bundle, *QUICK, "--nmse-max", 0.2, "--no-trial")
    assert code == 0 and out.split("[codec]")[1].startswith('\nname = "')
    code, out, _ = run("codec", "report", digits_bundle, *QUICK, "--progress-min", 0.5)
    assert code == 0 and "See what more --rounds say." in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bytes-max", 10, "--no-trial"), "--bytes-max 10: no codec keeps it; an update of this model needs "),
        (("--bytes-max", 10, "--nmse-max", 1), "give one of them"),
        (("--progress-min", 0.5, "--no-trial"), "leave --no-trial out"),
        (("--data", "none.npz"), "none.npz: cannot be read as .npz"),
        (("--data", "other.npz"), "expected shape [N, 64], got [5, 3]"),
        (("--data", "few.npz", "--clients", 3), "--clients 3: there are 2 examples"),
        (("--learning-rate", 0), "training has moved no parameter"),
    ],
)
def test_a_report_on_codecs_that_cannot_be_made_says_why(
    run: Run, digits_bundle: Path, tmp_path: Path, monkeypatch: Any, words: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", x=np.zeros((5, 3)), y=np.zeros(5, np.int64))
    np.savez("few.npz", x=np.zeros((2, 64)), y=np.zeros(2, np.int64))
    code, _, err = run("codec", "report", digits_bundle, *QUICK, *words)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_report_on_codecs_for_a_model_that_takes_no_digits_asks_for_data(run: Run, tmp_path: Path) -> None:
    model = build_zoo_model("softmax_regression", inputs=(3,), outputs=2, seed=0)
    compile_model(model, loss="softmax_cross_entropy", loop=False, name="three").save(tmp_path / "m.bundle")
    code, out, err = run("codec", "report", tmp_path / "m.bundle")
    assert (code, out) == (2, "") and "--data: is needed" in err and "['N', 3]" in err
    assert run("codec", "report", tmp_path / "none.bundle").code == 2
