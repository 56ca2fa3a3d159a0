"""Private brokers start, stop, crash and come back; the shipped configuration does what it says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MakeBroker, MakeClient, MqttClient

from device_sim import broker as broker_module
from device_sim.broker import BrokerTls, PrivateBroker, password_line
from device_sim.mosquitto import find_mosquitto
from edge_sdk.errors import ConfigurationError, ConnectionUnavailable
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published
from edge_sdk.wire.topics import Topics

USERS = {"coordinator": "c", "dev1": "d", "dev2": "e"}
TOPICS = Topics("home")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_stop_leaves_no_process_and_no_files(broker: PrivateBroker) -> None:
    pid, directory = broker.pid, broker.directory
    assert not gone(pid)
    broker.__exit__()
    assert gone(pid)
    assert not directory.exists()
    assert broker.pid == 0


def test_restart_keeps_the_port_and_changes_the_process(broker: PrivateBroker, make_client: MakeClient) -> None:
    port, pid = broker.port, broker.pid
    broker.restart()
    assert (broker.port, broker.pid != pid) == (port, True)
    make_client(broker).connected()


def test_many_brokers_stand_side_by_side() -> None:
    with PrivateBroker() as first, PrivateBroker() as second:
        assert first.port != second.port


@pytest.mark.usefixtures("mosquitto")
def test_auto_takes_mosquitto_where_it_is_installed() -> None:
    assert PrivateBroker().kind == "mosquitto"


def test_auto_takes_the_embedded_broker_where_mosquitto_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    assert PrivateBroker().kind == "iotcore"
    with pytest.raises(ConfigurationError, match="apt install mosquitto"):
        PrivateBroker("mosquitto")


def test_an_unknown_kind_and_what_iotcore_cannot_do_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'hive' is unknown"):
        PrivateBroker("hive")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="kind='mosquitto'"):
        PrivateBroker("iotcore", users=USERS)


def test_a_broker_that_does_not_start_says_why(mosquitto: MakeBroker, tmp_path: Path) -> None:
    broken = mosquitto(tmp_path, options={"no_such_setting": 1})
    with pytest.raises(ConnectionUnavailable, match=r"mosquitto ended at once; it said: (?s:.*)no_such_setting"):
        broken.start()
    assert broken.pid == 0


def test_a_given_directory_is_kept(mosquitto: MakeBroker, tmp_path: Path) -> None:
    with mosquitto(tmp_path / "b") as broker:
        assert broker.directory == tmp_path / "b"
    assert (tmp_path / "b" / "mosquitto.conf").exists()


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_the_broker_ends_with_a_process_that_is_killed(kind: str) -> None:
    code = (
        "import time; from device_sim.broker import PrivateBroker\n"
        f"broker = PrivateBroker({kind!r}); broker.start(); print(broker.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert not gone(pid)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid)


def test_a_broker_that_has_ended_by_itself_is_told(broker: PrivateBroker) -> None:
    broker.check()
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(ConnectionUnavailable, match=f"the private {broker.kind} has ended .exit code -9.; it said: "):
        for _ in range(100):
            broker.check()
            time.sleep(0.02)
    broker.stop()
    broker.check()


def test_the_embedded_broker_takes_new_clients_or_ends_and_never_goes_mute(
    iotcore_broker: PrivateBroker, make_client: MakeClient
) -> None:
    reset = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a TCP reset.
    for _ in range(3):
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", iotcore_broker.port)) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            peer.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04same")
        time.sleep(0.2)
    try:
        iotcore_broker.check()
    except ConnectionUnavailable as ended:
        assert "panicked" in str(ended)
    else:
        make_client(iotcore_broker).connected()


def test_the_embedded_broker_is_quiet(iotcore_broker: PrivateBroker, make_client: MakeClient) -> None:
    client = make_client(iotcore_broker).connected().subscribed("t/x")
    client.transport.publish("t/x", b"1")
    client.expect(Delivery)
    client.transport.disconnect(will=True)
    client.expect(Disconnected)
    iotcore_broker.stop()
    assert iotcore_broker.log_file.read_text() == ""


@pytest.mark.usefixtures("mosquitto")
def test_more_clients_than_the_usual_file_limit_can_connect() -> None:
    code = (
        "import resource, socket\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "from device_sim.broker import PrivateBroker\n"
        "with PrivateBroker('mosquitto') as broker:\n"
        "    import pathlib\n"
        "    limits = pathlib.Path(f'/proc/{broker.pid}/limits').read_text()\n"
        "    line = next(line for line in limits.splitlines() if 'open files' in line)\n"
        "    print(line.split()[3] == line.split()[4] == str(hard))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_the_queue_holds_far_more_than_the_thousand_of_mosquittos_default(
    mosquitto_broker: PrivateBroker, make_client: MakeClient
) -> None:
    receiver = make_client(mosquitto_broker, manual_ack=True).connected().subscribed("t/x")
    sender = make_client(mosquitto_broker, in_flight_max=200).connected()
    for number in range(3_000):
        sender.transport.publish("t/x", number.to_bytes(2, "big"))
    sender.expect(Published, 3_000)
    acknowledge_everything(receiver)
    receiver.expect(Delivery, 3_000)
    assert [int.from_bytes(event.payload, "big") for event in receiver.of(Delivery)] == list(range(3_000))


def test_the_queue_is_capped_in_bytes(
    mosquitto: MakeBroker, make_client: MakeClient, settle: Callable[[float], None]
) -> None:
    with mosquitto(options={"max_queued_bytes": 2_000_000}) as broker:
        receiver = make_client(broker, manual_ack=True).connected().subscribed("t/x")
        sender = make_client(broker, in_flight_max=200).connected()
        for _ in range(600):
            sender.transport.publish("t/x", bytes(10_000))
        sender.expect(Published, 600)
        acknowledge_everything(receiver)
        receiver.expect(Delivery, 150)
        settle(0.3)
        assert 150 <= len(receiver.of(Delivery)) <= 300


def acknowledge_everything(client: MqttClient) -> None:
    for delivery in client.of(Delivery):
        client.transport.acknowledge(delivery)
    client.on_event = lambda event: isinstance(event, Delivery) and client.transport.acknowledge(event)


def test_the_message_limit_is_announced(mosquitto_broker: PrivateBroker, make_client: MakeClient) -> None:
    assert make_client(mosquitto_broker).connected().of(Connected)[0].packet_bytes_max == 262_144


@pytest.fixture(scope="module")
def secured(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto(users=USERS) as started:
        yield started


def login(make_client: MakeClient, broker: PrivateBroker, user: str) -> MqttClient:
    return make_client(broker, username=user, password=USERS[user]).connected()


DEVICE_MAY_WRITE = [
    TOPICS.from_device("dev1", "checkin"),
    TOPICS.up("0", "dev1"),
    TOPICS.status("dev1"),
]
DEVICE_MAY_NOT_WRITE = [
    TOPICS.from_device("dev2", "checkin"),
    TOPICS.up("0", "dev2"),
    TOPICS.status("dev2"),
    TOPICS.to_device("dev1", "invite"),
    TOPICS.announce("digits"),
    TOPICS.blob(bytes(32), 0),
    TOPICS.lineage_state(b"lineage!"),
    "elsewhere",
]
DEVICE_MAY_READ = [
    TOPICS.to_device("dev1", "invite"),
    TOPICS.announce("digits"),
    TOPICS.blob(bytes(32), 0),
    TOPICS.lineage_state(b"lineage!"),
]
DEVICE_MAY_NOT_READ = [
    TOPICS.to_device("dev2", "invite"),
    TOPICS.from_device("dev1", "checkin"),
    TOPICS.from_device("dev2", "checkin"),
    TOPICS.up("0", "dev2"),
    TOPICS.status("dev2"),
]


def test_a_device_may_speak_only_as_itself(secured: PrivateBroker, make_client: MakeClient) -> None:
    coordinator = login(make_client, secured, "coordinator").subscribed(f"{TOPICS.root}/#")
    for topic in DEVICE_MAY_NOT_WRITE:
        # A client for each: mosquitto 2.0.11 cuts one off that has published what it may not.
        stranger = login(make_client, secured, "dev1")
        stranger.transport.publish(topic, b"1")
        assert stranger.expect(Published).refused == "Not authorized"
    device = login(make_client, secured, "dev1")
    for topic in DEVICE_MAY_WRITE:
        device.transport.publish(topic, b"1")
    coordinator.expect(Delivery, len(DEVICE_MAY_WRITE))
    assert [event.topic for event in coordinator.of(Delivery)] == DEVICE_MAY_WRITE


def test_a_device_hears_only_what_is_for_it(secured: PrivateBroker, make_client: MakeClient) -> None:
    device = login(make_client, secured, "dev1").subscribed("#")
    coordinator = login(make_client, secured, "coordinator")
    for topic in DEVICE_MAY_NOT_READ + DEVICE_MAY_READ:
        coordinator.transport.publish(topic, b"1")
    device.expect(Delivery, len(DEVICE_MAY_READ))
    assert [event.topic for event in device.of(Delivery)] == DEVICE_MAY_READ


def test_passwords_are_as_mosquitto_passwd_writes_them(secured: PrivateBroker, make_client: MakeClient) -> None:
    make_client(secured, username="dev2", password="e").connected()
    assert make_client(secured, username="dev2", password="E").failed().reason == "refused"
    assert password_line("a", "b").startswith("a:$7$101$")
    assert password_line("a", "b") != password_line("a", "b")
    with pytest.raises(ConfigurationError, match="'a:b'"):
        password_line("a:b", "c")


def test_both_listeners_serve_when_there_is_tls(mosquitto: MakeBroker, make_client: MakeClient) -> None:
    tls = Path(__file__).parents[1] / "data" / "tls"
    with mosquitto(tls=BrokerTls(tls / "broker.pem", tls / "broker.key")) as broker:
        make_client(broker).connected()
        assert broker.tls_url.startswith("mqtts://localhost:")


@pytest.mark.usefixtures("mosquitto")
def test_mosquitto_is_found_outside_an_ordinary_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_mosquitto() is not None
