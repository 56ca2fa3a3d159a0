"""A fleet, a device and a coordinator whose broker cannot be used say so, with the cause, each in its own words."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MakeBroker

from device_sim.fleet_run import FleetRun, run_fleet
from edge_sdk.errors import ConnectionUnavailable

SECONDS = 3.0


@pytest.fixture
def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def said_by_fleet(url: str) -> tuple[str, str]:
    """What a fleet that gets nowhere has said, and how it ended."""
    lines: list[str] = []
    run = FleetRun(url, "f", devices=3, train="replay", seconds=SECONDS)
    with pytest.raises(ConnectionUnavailable) as ended:
        run_fleet(run, say=lines.append)
    return "\n".join(lines), str(ended.value)


def test_a_fleet_names_the_cause_where_nothing_listens(closed_port: int) -> None:
    lines, ended = said_by_fleet(f"mqtt://127.0.0.1:{closed_port}")
    cause = f"nothing listens at 127.0.0.1:{closed_port}; is the broker running on this machine, and on this port?"
    assert f"connected 0 of 3; {cause}" in lines and "coordinator" not in lines
    assert ended == f"stopped after 3 s without the broker; {cause}"


def test_a_fleet_names_the_cause_where_the_host_has_no_address() -> None:
    lines, ended = said_by_fleet("mqtt://no-such-host.invalid")
    assert "the name 'no-such-host.invalid' cannot be resolved" in lines and "coordinator" not in lines
    assert "cannot be resolved" in ended


def test_a_fleet_names_the_cause_where_the_password_is_wrong(mosquitto: MakeBroker) -> None:
    with mosquitto(users={"coordinator": "right"}) as broker:
        lines, ended = said_by_fleet(f"mqtt://coordinator:wrong@127.0.0.1:{broker.port}")
    assert "refused user 'coordinator': the password is wrong" in lines and "refused user" in ended


def test_a_fleet_at_a_broker_without_coordinator_says_that(mosquitto: MakeBroker) -> None:
    lines: list[str] = []
    with mosquitto() as broker:
        ended = run_fleet(FleetRun(broker.url, "f", devices=3, train="replay", seconds=SECONDS), say=lines.append)
    assert lines == ["connected 3 of 3; no coordinator yet"]
    assert ended == "stopped after 3 s; connected 3 of 3; no coordinator yet"


def test_a_fleet_whose_broker_dies_says_so(mosquitto: MakeBroker) -> None:
    lines: list[str] = []
    with mosquitto() as broker:

        def say(line: str) -> None:
            lines.append(line)
            broker.stop()

        ended = run_fleet(FleetRun(broker.url, "f", devices=3, train="replay", seconds=2 * SECONDS), say=say)
    assert lines[0] == "connected 3 of 3; no coordinator yet"
    assert lines[1].startswith("connected 0 of 3; the connection to 127.0.0.1:") and "was cut" in lines[1]
    assert "nothing listens at" in ended and "coordinator" not in ended


@pytest.mark.parametrize("command", ["device", "coordinator"])
def test_device_and_coordinator_name_the_cause_and_go_on_trying(tmp_path: Path, closed_port: int, command: str) -> None:
    url = f"mqtt://127.0.0.1:{closed_port}"
    if command == "device":
        (tmp_path / "data.csv").write_text("a,b,y\n1,2,0\n3,4,1\n")
        path = tmp_path / "device.toml"
        path.write_text(
            f'[device]\nid = "pi"\nfederation = "f"\nstate_dir = "state"\n[broker]\nurl = "{url}"\n'
            '[data]\npath = "data.csv"\n'
        )
        arguments = ["-m", "edge_sdk", "run", "--config", str(path)]
    else:
        path = tmp_path / "federation.toml"
        path.write_text(
            f'[federation]\nname = "f"\n[broker]\nurl = "{url}"\n'
            '[model]\nzoo = "softmax_regression"\ninputs = [2]\noutputs = 2\n'
        )
        arguments = ["-m", "coordinator", "serve", str(path)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file)
    try:
        until = time.monotonic() + 30.0
        while "nothing listens" not in log.read_text() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        assert f"nothing listens at 127.0.0.1:{closed_port}; is the broker running" in log.read_text()
        assert process.poll() is None, "it waits for the broker"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == 0
