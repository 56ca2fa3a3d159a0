"""``edge-device`` as people and systemd use it: from one file, with exit codes, and with words that help."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeBroker
from hand_made import blobs
from numpy.typing import NDArray
from one_federation import Federation, wait

from coordinator.compile import build_zoo_model, compile_model
from device_sim.broker import PrivateBroker
from edge_sdk.__main__ import main
from edge_sdk.cli.check import checks
from edge_sdk.cli.device_config import load_device_config
from edge_sdk.cli.findings import EXIT_BROKER, EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, EXIT_STATE, Finding
from edge_sdk.cli.run import make_client
from edge_sdk.cli.sd_notify import sd_notify, watchdog_seconds
from edge_sdk.cli.speed import PROGRAM, load_yardstick, step_milliseconds
from edge_sdk.device.state import DirectoryFiles
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.engine import make_engine

REPOSITORY = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


@pytest.fixture(scope="module")
def secured(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    users = {"coordinator": "c", "pi": "right", "other": "other"}
    with mosquitto(users=users) as started:
        yield started


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a device.toml and its data; further lines per table as keywords."""
    x, y = blobs(60)
    header = ",".join([*(f"x{i}" for i in range(x.shape[1])), "label"])
    np.savetxt(tmp_path / "x.csv", np.column_stack([x, y]), delimiter=",", header=header, comments="", fmt="%.6g")

    def make(url: str, **tables: str) -> Path:
        own = {
            "device": 'id = "pi"\nfederation = "plant"\nstate_dir = "state"\nengine = "numpy"',
            "broker": f'url = "{url}"',
            "data": 'path = "x.csv"',
        }
        lines = [f"[{name}]\n{own.get(name, '')}\n{tables.get(name, '')}" for name in {**own, **tables}]
        path = tmp_path / "device.toml"
        path.write_text("\n".join(lines))
        return path

    return make


def found(path: Path, **changes: Any) -> dict[str, list[Finding]]:
    """The findings of a check by subject."""
    by_subject: dict[str, list[Finding]] = {}
    for finding in checks(replace(load_device_config(path, {}), **changes)):
        by_subject.setdefault(finding.subject, []).append(finding)
    return by_subject


def started(path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_sdk", "run", "--config", str(path)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env={**os.environ, **environment}
    )


class Systemd:
    """The socket that a service of Type=notify talks to."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}

    def listen(self) -> list[str]:
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


# run


def test_a_device_without_code_takes_part_and_serves_systemd(
    broker: PrivateBroker, write: Write, tmp_path: Path, systemd: Systemd
) -> None:
    path = write(broker.url, eligibility="load_max = 1000")
    with Federation(tmp_path / "coordinator", broker.url, "plant") as plant:
        process = started(path, systemd.environment | {"WATCHDOG_USEC": "900000"})
        try:
            wait(lambda: any(t.state == "counted" for t in plant.tickets()), plant.tickets)
            wait(lambda: any(re.search(r"[1-9]\d* updates counted", line) for line in systemd.listen()), systemd.listen)
            assert systemd.heard[0] == "READY=1" and "WATCHDOG=1" in systemd.heard
            process.send_signal(signal.SIGTERM)
            assert process.wait(20.0) == EXIT_OK
        finally:
            process.kill()
            log = process.communicate()[1]
        assert systemd.listen()[-1] == "STOPPING=1"
    assert "pi: online" in log and "pi: counted" in log
    assert any(line.startswith("STATUS=connected, ") for line in systemd.heard)


def test_a_second_signal_ends_it_at_once(broker: PrivateBroker, write: Write, tmp_path: Path) -> None:
    """Even while the device's own leave would still take its time."""
    process = started(write("mqtt://127.0.0.1:9"), {})
    try:
        assert process.stderr is not None and "connection_failed" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) in (EXIT_OK, -signal.SIGINT, 130)
    finally:
        process.kill()
        process.communicate()


def test_the_journal_gets_priorities_and_no_second_time_stamp(write: Write) -> None:
    process = started(write("mqtt://127.0.0.1:9"), {"JOURNAL_STREAM": "8:1"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("<4>pi: connection_failed: nothing listens at 127.0.0.1:9")
    finally:
        process.kill()
        process.communicate()


def test_exit_codes_tell_configuration_from_state(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(tmp_path / "none.toml")]) == EXIT_CONFIGURATION
    assert "edge-device: " in capsys.readouterr().err
    path = write("mqtt://127.0.0.1:9", device='tsk = "x"')
    assert main(["run", "--config", str(path)]) == EXIT_CONFIGURATION
    assert "device.tsk: unknown key; did you mean task?" in capsys.readouterr().err
    path = write("mqtt://127.0.0.1:9")
    with DirectoryFiles(tmp_path / "state"):
        assert main(["run", "--config", str(path)]) == EXIT_STATE
    assert f"in use by another process (pid {os.getpid()})" in capsys.readouterr().err


def test_a_certificate_file_that_cannot_be_read_ends_it_with_its_name(write: Write, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    process = started(write("mqtts://127.0.0.1:9", broker='ca_file = "ca.pem"'), {})
    assert "ca.pem" in process.communicate(timeout=30.0)[1]
    assert process.returncode == EXIT_CONFIGURATION


@pytest.mark.parametrize("arguments", [[], ["run"], ["check"], ["walk"], ["check", "--config"]])
def test_wrong_arguments_are_a_mistake_of_configuration(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == EXIT_CONFIGURATION


# check


def test_all_is_well(secured: PrivateBroker, write: Write, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("right\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "coordinators").write_text("c\n")
    login = {"username": "coordinator", "password_file": str(tmp_path / "coordinators")}
    path = write(secured.url, broker='password_file = "password"', eligibility="load_max = 1000")
    with Federation(tmp_path / "coordinator", secured.url, "plant", broker=login) as plant:
        with plant.client(tmp_path / "pi", broker=load_device_config(path, {}).broker) as client:
            wait(lambda: client.status.counted >= 1)
        all_found = found(path)
    assert [f for findings in all_found.values() for f in findings if f.level == "FAIL"] == []
    assert "MQTT 5" in all_found["broker"][0].text and "up to 262144 bytes" in all_found["broker"][0].text
    assert [f.level for f in all_found["write"]] == ["ok", "ok", "ok"]
    assert all_found["read"][0].text.endswith("fl/v1/plant/to/pi/+")
    assert all_found["coordinator"][0].text == "online"
    assert all_found["task"][0].text.startswith("default: round ")
    assert "60 rows, 6 columns of inputs and the target 'label'" in all_found["data"][0].text
    assert all_found["state"][0].text.startswith(str(tmp_path / "state"))
    assert all_found["eligibility"][0].level == "ok"
    assert {f.text.split(":")[0] for f in all_found["engine"]} == {"numpy", "onnxruntime"}
    assert all(" ms a step " in f.text for f in all_found["engine"])
    assert "password" not in all_found and "login" not in all_found


def test_lines_are_aligned_and_the_same_findings_come_as_json(
    broker: PrivateBroker, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(broker.url))
    Path(path).write_text(Path(path).read_text().replace('"plant"', '"nobody"'))
    assert main(["check", "--config", path]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 10 and all(line[:4] in ("ok  ", "warn", "FAIL") and line[4:6] == "  " for line in lines)
    assert all(line[18:20] == "  " and line[20] != " " for line in lines)
    assert "coordinator   none speaks in federation 'nobody': check the name" in "\n".join(lines)
    assert main(["check", "--config", path, "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True and told["exit_code"] == 0
    assert [f["subject"] for f in told["findings"]] == [line[6:18].strip() for line in lines]
    assert set(told["findings"][0]) == {"level", "subject", "text"}


def test_a_message_that_the_acl_forbids_is_a_failure_of_each_topic(secured: PrivateBroker, write: Write) -> None:
    (write(secured.url).parent / "password").write_text("other\n")
    path = write(secured.url, broker='username = "other"\npassword_file = "password"')
    all_found = found(path)
    assert [(f.level, f.code) for f in all_found["write"]] == [("FAIL", EXIT_BROKER)] * 3
    assert "fl/v1/plant/from/pi/probe (Not authorized): let this device write it" in all_found["write"][0].text
    assert "the user name 'other' is not the device's id 'pi'" in all_found["login"][0].text
    assert "chmod 600" in all_found["password"][0].text
    assert len(found(path, publish_status=False)["write"]) == 2


def test_a_broker_of_mqtt_3_cannot_say_what_it_forbids(broker: PrivateBroker, write: Write) -> None:
    (finding,) = found(write(broker.url, broker='protocol = "3.1.1"'))["write"]
    assert finding.level == "warn" and finding.text.startswith("unknown: ")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('username = "pi"\npassword_file = "password"', "the password is wrong, the user unknown"),
        ("", "lets nobody in without a login"),
    ],
)
def test_a_refused_login_has_an_exit_code_of_its_own(
    secured: PrivateBroker, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: str, words: str
) -> None:
    (tmp_path / "password").write_text("wrong\n")
    assert main(["check", "--config", str(write(secured.url, broker=keys))]) == EXIT_BROKER
    assert words in capsys.readouterr().out


def test_a_broker_that_is_down_is_a_failure_with_a_remedy(write: Write) -> None:
    (finding,) = found(write("mqtt://127.0.0.1:9"))["broker"]
    assert (finding.level, finding.code) == ("FAIL", EXIT_BROKER)
    assert "is the broker running on this machine" in finding.text


def test_a_coordinator_that_left_is_offline(broker: PrivateBroker, write: Write, tmp_path: Path) -> None:
    with Federation(tmp_path / "coordinator", broker.url, "left") as plant, plant.client(tmp_path / "pi") as client:
        wait(lambda: client.status.counted >= 1)
    path = write(broker.url)
    path.write_text(path.read_text().replace('"plant"', '"left"'))
    assert found(path)["coordinator"][0].text == "offline: devices wait for it"
    path.write_text(path.read_text().replace("[broker]", 'task = "none"\n[broker]'))
    all_found = found(path)
    assert all_found["coordinator"][0].text == "none that speaks here serves task 'none': check its name"
    assert all_found["task"][0].text == "federation 'left' announces no task 'none'"


def test_a_state_directory_is_tried_and_a_running_device_is_no_failure(
    write: Write, tmp_path: Path, broker: PrivateBroker
) -> None:
    path = write(broker.url)
    (tmp_path / "state").write_text("a file in its place")
    (finding,) = found(path)["state"]
    assert (finding.level, finding.code) == ("FAIL", EXIT_STATE)
    (tmp_path / "state").unlink()
    assert found(path)["state"][0].level == "ok"
    assert not (tmp_path / "state").exists(), "it would belong to root after a check by root"
    with DirectoryFiles(tmp_path / "state"):
        (finding,) = found(path)["state"]
    assert finding.level == "ok" and f"in use by process {os.getpid()}" in finding.text
    found(path)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["lock"], "it leaves nothing behind"
    config = load_device_config(path, {})
    greedy = replace(config, limits=replace(config.limits, cache_bytes_max=1 << 49))
    (disk,) = [f for f in checks(greedy) if f.subject == "disk"]
    assert disk.level == "warn" and "free some, or lower limits.cache_bytes_max" in disk.text


def test_data_that_cannot_be_read_is_a_failure(broker: PrivateBroker, write: Write, tmp_path: Path) -> None:
    path = write(broker.url, data='label = "colour"')
    (finding,) = found(path)["data"]
    assert (finding.level, finding.code) == ("FAIL", EXIT_FAILED)
    assert "no column 'colour' for the target" in finding.text
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2), np.float32), y=np.zeros(3, np.int64))
    path.write_text(path.read_text().replace("x.csv", "x.npz").replace('label = "colour"', ""))
    (finding,) = found(path)["data"]
    assert finding.text.endswith("x.npz: x float32[3, 2], y int64[3]")


def test_a_clock_before_the_installation_fails_where_there_is_tls(
    write: Write, broker: PrivateBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    (finding,) = found(write(broker.url))["clock"]
    assert finding.level == "warn" and "1970-01-02" in finding.text and "timedatectl set-ntp true" in finding.text
    (finding,) = found(write("mqtts://127.0.0.1:9"))["clock"]
    assert finding.level == "FAIL" and "TLS will refuse every certificate" in finding.text


BARE = """
import sys
for name in ("onnx", "onnxruntime", "pydantic", "typer", "rich", "sklearn", "coordinator", "device_sim"):
    sys.modules[name] = None
from edge_sdk.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_bare_install_is_enough(broker: PrivateBroker, write: Write) -> None:
    path = write(broker.url)

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BARE, "check", "--config", str(path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)

    result = run()
    assert result.returncode == EXIT_OK, result.stdout + result.stderr
    assert "onnxruntime is not installed: pip install 'edgefed[onnx]'" in result.stdout
    assert "numpy: " in result.stdout
    path.write_text(path.read_text().replace('"numpy"', '"onnxruntime"'))
    assert run().returncode == EXIT_FAILED


# The yardstick


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_the_yardstick_learns_on_every_engine(engine: str) -> None:
    milliseconds, loss = step_milliseconds(engine, 1)
    assert 0.0 < milliseconds < 1_000.0
    assert loss < 2.3, "ten classes by chance are ln 10"


def test_the_yardstick_is_what_the_compiler_makes_of_the_model() -> None:
    model = build_zoo_model("mlp", inputs=(784,), outputs=10, hidden=(200, 200), seed=0)
    made = compile_model(model, loss="softmax_cross_entropy", optimizer="sgd", name="speed-check", verify=False)
    shipped = load_yardstick()
    assert shipped.spec == made.program.spec and shipped.spec.size == 199_210
    rng = np.random.default_rng(1)
    batch: dict[str, NDArray[Any]] = {
        "x": rng.random((8, 784), dtype=np.float32),
        "target": rng.integers(0, 10, 8),
    }
    after = []
    for program in (shipped, made.program):
        engine = make_engine(program, "numpy")
        handle = engine.load(made.parameters)
        engine.step(handle, batch, {"lr": 0.1})
        after.append(engine.read(handle))
    assert np.allclose(after[0], after[1], atol=1e-6), f"write the compiler's program to {PROGRAM} again"


# systemd


def test_nothing_is_said_where_no_systemd_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sd_notify("READY=1", {})
    assert not caplog.records
    sd_notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert "systemd cannot be told READY=1" in caplog.text


def test_an_abstract_socket_is_reached_too() -> None:
    name = f"edgefed-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5.0)
        sd_notify("STATUS=well", {"NOTIFY_SOCKET": f"@{name}"})
        assert listener.recv(100) == b"STATUS=well"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_is_named(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environment, 7) == seconds


# one's own classes

MINE = """
import numpy as np


class Trainer:
    def fit(self, parameters, examples, plan):
        return {name: value + np.float32(0.25) for name, value in parameters.items()}, {"steps": 7}

    def evaluate(self, parameters, examples):
        return 3.0 * len(examples), 1.0 * len(examples), len(examples)


class Local:
    vectors = ()

    def run(self, work):
        raise AssertionError("no plan asks for it")
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own on the path."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "my_device.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    return "my_device"


def test_a_trainer_of_ones_own_trains_and_evaluates(
    broker: PrivateBroker, write: Write, tmp_path: Path, own_package: str
) -> None:
    path = write(broker.url, extend='trainer = "my_device:Trainer"\nalgorithms = {mine = "my_device:Local"}')
    evaluation = {"held_out": 0.3}
    with Federation(tmp_path / "coordinator", broker.url, "plant", evaluation=evaluation) as plant:
        assert found(path)["extend"][0] == Finding("ok", "extend", "my_device:Trainer, my_device:Local")
        with make_client(load_device_config(path, {})) as client:
            wait(lambda: client.status.counted >= 2, lambda: client.status)
    metrics = plant.rounds[0].summary["metrics"]
    assert metrics["loss"] == pytest.approx(3.0) and metrics["accuracy"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('trainer = "my_device:Nobody"', "extend.trainer: 'my_device:Nobody': my_device has no 'Nobody'"),
        ('trainer = "my_device:Local"', "extend.trainer: 'my_device:Local' has no fit()"),
        ('algorithms = {mine = "nowhere:Local"}', "extend.algorithms.mine: 'nowhere:Local': there is no module"),
        ('algorithms = {mine = "my_device:Trainer"}', "extend.algorithms.mine: 'my_device:Trainer' has no run()"),
    ],
)
def test_a_class_that_is_not_there_or_cannot_do_it_is_named(
    write: Write, own_package: str, line: str, words: str
) -> None:
    path = write("mqtt://127.0.0.1:1", extend=line)
    (finding,) = found(path)["extend"]
    assert finding.level == "FAIL" and words in finding.text
    with pytest.raises(ConfigurationError, match="extend"):
        make_client(load_device_config(path, {}))
