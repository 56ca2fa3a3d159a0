"""EdgeClient on a real broker with a real coordinator: rounds, polite leaves, and words that help in trouble."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeBroker
from hand_made import blobs
from one_federation import CLASSES, FEATURES, Diary, Federation, wait

from device_sim.broker import BrokerTls, PrivateBroker
from edge_sdk.client import EdgeClient
from edge_sdk.device.limits import Limits
from edge_sdk.device.progress import Progress
from edge_sdk.errors import ConfigurationError, EdgeFedError, StateError
from edge_sdk.mqtt import BrokerSettings, Connected, Delivery, PahoTransport, TlsSettings, TransportEvent
from edge_sdk.mqtt.loop import EventLoop
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Bundle, Input, Program
from edge_sdk.training.examples import Examples
from edge_sdk.wire.plan import TrainingPlan
from edge_sdk.wire.topics import Topics, client_id

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TLS = HERE.parent / "data" / "tls"
NAMES = (f"plant-{number}" for number in itertools.count())
ENDLESS = {"epochs": 10_000, "batch_size": 1, "seconds_max": 50.0}
MakeFederation = Callable[..., Federation]


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    """One mosquitto for all tests here that do not end it."""
    with mosquitto() as started:
        yield started


@pytest.fixture
def federation(broker: PrivateBroker, tmp_path: Path) -> MakeFederation:
    """Makes a federation of a name of its own on the shared broker."""

    def make(**tables: dict[str, Any]) -> Federation:
        return Federation(tmp_path / "coordinator", broker.url, next(NAMES), **tables)

    return make


class Trainer:
    """Moves every parameter by a known amount."""

    def __init__(self) -> None:
        self.calls = 0

    def fit(
        self, parameters: dict[str, Any], examples: Examples, plan: TrainingPlan
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        self.calls += 1
        moved = {name: value + np.float32(0.25) for name, value in parameters.items()}
        return moved, {"examples": len(examples), "loss": 0.5, "steps": 7}


def retained(url: str, topic: str) -> Any:
    """The retained JSON under a topic, None where there is none; asked by a client of its own."""
    events: list[TransportEvent] = []
    with EventLoop() as loop:
        transport = PahoTransport(BrokerSettings.parse(url, client_id="onlooker"), events.append)
        loop.register(transport)
        transport.connect()
        loop.run_until(lambda: any(isinstance(e, Connected) for e in events), 5.0)
        transport.subscribe((topic,))
        loop.run_until(lambda: any(isinstance(e, Delivery) for e in events), 2.0)
        transport.disconnect()
        loop.unregister(transport)
    found = [event.payload for event in events if isinstance(event, Delivery)]
    return json.loads(found[0]) if found else None


def counted_anew(client: EdgeClient, updates: int = 1) -> None:
    """Wait until so many more updates counted."""
    goal = client.status.counted + updates
    wait(lambda: client.status.counted >= goal, lambda: client.status)


# Taking part


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_a_device_takes_part_in_rounds(federation: MakeFederation, tmp_path: Path, engine: str) -> None:
    diary = Diary()
    with federation() as plant, plant.client(tmp_path / "pi", engine=engine, on_progress=diary) as client:
        wait(lambda: client.status.counted >= 3, lambda: diary.entries[-5:])
        status = client.status
        told = retained(plant.url, Topics(plant.name).status("pi"))
    assert status.connected and status.last_outcome == "counted" and status.error == ""
    assert status.bytes_up > 0 and status.bytes_down > 0 and status.not_counted == 0
    assert told["state"] == "online" and told["engine"] == engine
    assert all(told.values()), "what is empty or zero is left out"
    losses = [record.summary["metrics"]["train_loss"] for record in plant.rounds]
    assert losses[2] < losses[0]
    steps = [entry for entry in diary.entries if entry.what == "step"]
    assert all(entry.steps and entry.loss for entry in steps) and {entry.round for entry in steps} >= {1, 2, 3}
    codes = [entry.what for entry in diary.entries if entry.round == 2 and entry.what != "step"]
    assert codes == ["invited", "training", "trained", "counted"]


def test_a_trainer_of_the_users_own_replaces_the_engine(federation: MakeFederation, tmp_path: Path) -> None:
    trainer = Trainer()
    with federation(codec={"name": "dense", "density": None}) as plant:
        before = plant.store.latest_checkpoint("default")
        with plant.client(tmp_path / "pi", trainer=trainer) as client:
            wait(lambda: client.status.counted >= 2)
        after = plant.store.latest_checkpoint("default")
        assert before is not None and after is not None
        assert client.status.last_loss == 0.5 and trainer.calls >= 2
        old, new = (plant.store.get_blob(c.parameters_digest) or b"" for c in (before, after))
    moved = np.frombuffer(new, "<f4")[-3:] - np.frombuffer(old, "<f4")[-3:]
    assert np.allclose(moved, 0.25 * after.round, atol=1e-5)


def test_a_model_without_a_graph_is_trained_by_a_trainer_and_refused_without_one(
    federation: MakeFederation, tmp_path: Path
) -> None:
    program = Program(
        name="own",
        kind="trainer",
        spec=ParameterSpec([("weights", (CLASSES, FEATURES), "trainable")]),
        inputs=(Input("x", "float32", (None, FEATURES)),),
        target=Input("target", "int64", (None,)),
        loss="softmax_cross_entropy",
    )
    path = tmp_path / "own.bundle"
    Bundle(program, np.zeros(program.spec.size, np.float32)).save(path)
    model = {"zoo": None, "bundle": str(path), "inputs": None, "outputs": None}
    with federation(model=model, training={"learning_rate": None}) as plant:
        with plant.client(tmp_path / "lacks", device_id="lacks") as lacking:
            wait(lambda: lacking.status.error)
            assert "give EdgeClient a trainer=" in lacking.status.error
        with plant.client(tmp_path / "has", device_id="has", trainer=Trainer()) as client:
            wait(lambda: client.status.counted >= 1)


def test_training_ends_at_the_time_budget_and_what_was_done_is_reported(
    federation: MakeFederation, tmp_path: Path
) -> None:
    with federation(training={"epochs": 10_000, "seconds_max": 0.4}) as plant:
        began = time.monotonic()
        with plant.client(tmp_path / "pi") as client:
            wait(lambda: client.status.counted >= 1)
        assert time.monotonic() - began < 8.0
    assert plant.rounds[0].summary["metrics"]["partial"] == 1.0


def test_a_jumping_wall_clock_disturbs_nothing(
    federation: MakeFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time = time.time
    shifts = [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() + shifts[-1])
    with federation() as plant, plant.client(tmp_path / "pi") as client:
        for shift in (3e7, -6e7, 0.0):
            shifts.append(shift)
            counted_anew(client)
        assert client.status.not_counted == 0 and client.status.error == ""


# Starting and leaving


def test_start_and_stop_run_it_in_the_background_and_give_the_directory_back(
    federation: MakeFederation, tmp_path: Path
) -> None:
    with federation() as plant:
        client = plant.client(tmp_path / "pi")
        began = time.monotonic()
        assert client.start() is client and time.monotonic() - began < 0.5
        with pytest.raises(ConfigurationError, match="make a new one"):
            client.start()
        wait(lambda: client.status.connected)
        assert client.running
        client.stop()
        assert not client.running and not client.status.connected
        assert retained(plant.url, Topics(plant.name).status("pi")) == {"state": "offline"}
        with pytest.raises(ConfigurationError, match="make a new one"):
            client.run()
        again = plant.client(tmp_path / "pi")
        again.stop()
        again.stop()
        plant.client(tmp_path / "pi").stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"federation": "a/b"}, "federation: 'a/b' cannot stand in a topic"),
        ({"device_id": "pi 4"}, "device_id: 'pi 4' cannot stand in a topic"),
        ({"broker": "broker.local"}, "must begin with mqtt:// or mqtts://"),
        ({"broker": 1883}, "neither an address"),
        ({"engine": "torch"}, "engine: 'torch' is not one of auto, onnxruntime, numpy"),
        ({"load_examples": None}, "load_examples: give a function"),
        ({"trainer": object()}, "trainer: object has no method fit"),
        ({"eligible": True}, "eligible: True is not a function"),
        ({"on_progress": []}, r"on_progress: \[\] is not a function"),
    ],
)
def test_a_wrong_argument_is_named_and_leaves_nothing_locked(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    right: dict[str, Any] = {
        "broker": "mqtt://localhost",
        "federation": "plant",
        "device_id": "pi",
        "load_examples": lambda: blobs(9),
        "state_dir": tmp_path,
    }
    with pytest.raises(ConfigurationError, match=words):
        EdgeClient(**(right | options))
    EdgeClient(**right).stop()


def test_a_wrong_limit_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.threads: 0 is not a positive whole number"):
        Limits(threads=0)


PROCESS = """
import sys, time
from hand_made import blobs
from edge_sdk import EdgeClient

url, federation, state_dir, hang = sys.argv[1:]

def on_progress(progress):
    if progress.what != "step":
        print(progress.what, progress.round, flush=True)
    if progress.what == hang:
        time.sleep(60)

client = EdgeClient(
    broker=url, federation=federation, device_id="pi", load_examples=lambda: blobs(60), state_dir=state_dir,
    engine="numpy", on_progress=on_progress,
)
client.run()
print("left", client.status.connected, flush=True)
"""


def device_process(plant: Federation, state_dir: Path, hang: str = "") -> subprocess.Popen[str]:
    """A device in a process of its own, that prints what happens; ``hang`` is where its network thread stands still."""
    command = [sys.executable, "-c", PROCESS, plant.url, plant.name, str(state_dir), hang]
    paths = os.pathsep.join([str(REPOSITORY), str(HERE)])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


def printed(process: subprocess.Popen[str], what: str) -> int:
    """Reads on until the device has printed ``what``; the round of it."""
    assert process.stdout is not None
    for line in iter(process.stdout.readline, ""):
        if line.split()[0] == what:
            return int(line.split()[1])
    raise AssertionError(f"it ended without {what}")


def test_sigterm_declines_the_ticket_says_offline_and_ends_well(federation: MakeFederation, tmp_path: Path) -> None:
    with federation(training=ENDLESS) as plant:
        with device_process(plant, tmp_path / "pi") as process:
            printed(process, "training")
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            rest = process.stdout.read()
            assert process.wait(10.0) == 0
        wait(lambda: "leaving" in plant.reasons("declined"), plant.tickets)
        assert rest.endswith("left False\n")
        assert retained(plant.url, Topics(plant.name).status("pi")) == {"state": "offline"}


def test_an_update_that_was_not_sent_yet_survives_sigkill_and_counts_once(
    federation: MakeFederation, tmp_path: Path
) -> None:
    diary = Diary()
    with federation() as plant:
        with device_process(plant, tmp_path / "pi", hang="trained") as process:
            number = printed(process, "trained")
            process.kill()
        with plant.client(tmp_path / "pi", on_progress=diary) as client:
            wait(lambda: client.status.counted >= 2)
    first = [(entry.what, entry.round) for entry in diary.entries if entry.what != "step"]
    assert first[:2] == [("online", 0), ("counted", number)], "it was not trained again"
    states = [ticket.state for ticket in plant.tickets()]
    assert states[:2] == ["counted", "counted"] and [r.number for r in plant.rounds[:2]] == [number, number + 1]


def test_a_device_that_is_killed_in_mid_round_goes_on_with_its_ticket_at_once(
    federation: MakeFederation, tmp_path: Path
) -> None:
    """The round would wait for it for a minute; and what it trains on is on its disk."""
    diary = Diary()
    with federation(training=ENDLESS) as plant:
        with device_process(plant, tmp_path / "pi") as process:
            number = printed(process, "training")
            wait(lambda: list((tmp_path / "pi").glob("parameters-*")))
            process.kill()
        began = time.monotonic()
        with plant.client(tmp_path / "pi", trainer=Trainer(), on_progress=diary) as client:
            counted_anew(client)
        assert time.monotonic() - began < 15.0
    first = [(entry.what, entry.round) for entry in diary.entries if entry.round == number]
    assert first[0] == ("invited", number) and ("counted", number) in first
    assert [ticket.state for ticket in plant.tickets()][:1] == ["counted"], "it was the same ticket"
    assert client.status.bytes_down < 20_000


def test_a_restarted_device_downloads_nothing_that_it_has(federation: MakeFederation, tmp_path: Path) -> None:
    down = []
    with federation() as plant:
        for _ in range(2):
            with plant.client(tmp_path / "pi") as client:
                counted_anew(client)
            down.append(client.status.bytes_down)
    program = next((tmp_path / "pi").glob("program-*"))
    assert down[0] - down[1] > program.stat().st_size / 2


def test_leaving_before_the_broker_was_reached_ends_at_once(tmp_path: Path) -> None:
    client = EdgeClient(
        broker="mqtt://127.0.0.1:9",
        federation="plant",
        device_id="pi",
        load_examples=lambda: blobs(9),
        state_dir=tmp_path,
    ).start()
    wait(lambda: client.status.error)
    began = time.monotonic()
    client.stop()
    assert time.monotonic() - began < 2.0


# The app's own mistakes


def test_callbacks_that_raise_do_not_end_the_device(
    federation: MakeFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mistakes = iter([RuntimeError("camera unplugged"), SystemExit(3), None])
    asked = itertools.count()

    def load_examples() -> Any:
        mistake = next(mistakes, None)
        if mistake is not None:
            raise mistake
        return blobs(60)

    def eligible() -> bool:
        if next(asked) == 0:
            raise OSError("no sensor")
        return True

    def on_progress(progress: Progress) -> None:
        raise ValueError(f"the app's own: {progress.what}")

    with (
        federation() as plant,
        plant.client(
            tmp_path / "pi", load_examples=load_examples, eligible=eligible, on_progress=on_progress
        ) as client,
    ):
        wait(lambda: client.status.counted >= 1, lambda: client.status)
        assert client.running
    assert "eligible() failed" in caplog.text and "no sensor" in caplog.text
    assert "on_progress failed" in caplog.text and "the app's own: online" in caplog.text
    assert "RuntimeError: camera unplugged" in caplog.text and "SystemExit: 3" in caplog.text
    assert plant.reasons("declined") == {"error"}


def test_a_device_that_is_not_eligible_any_more_gives_its_ticket_back(
    federation: MakeFederation, tmp_path: Path
) -> None:
    may = threading.Event()
    may.set()
    diary = Diary()
    with (
        federation(training=ENDLESS) as plant,
        plant.client(tmp_path / "pi", eligible=may.is_set, on_progress=diary) as client,
    ):
        wait(lambda: diary.of("step"))
        may.clear()
        wait(lambda: "not_eligible" in plant.reasons("declined"), plant.tickets)
        wait(lambda: client.status.phase == "idle")
        count = len(diary.of("invited"))
        may.set()
        wait(lambda: len(diary.of("invited")) > count, "no invitation once it is eligible again")


@pytest.mark.parametrize(
    ("examples", "words", "reason"),
    [
        (lambda: ([], []), "expected shape", "no_examples"),
        (lambda: (np.zeros((0, FEATURES), np.float32), np.zeros(0, np.int64)), "there are none", "no_examples"),
        (lambda: (np.zeros((9, 5), np.float32), np.zeros(9, np.int64)), r"expected shape \[N, 6\], got \[9, 5\]", None),
        (lambda: (blobs(9)[0], np.full(9, 7)), "classes are not the model's, 0..2; they go from 7 to 7", "no_examples"),
        (lambda: blobs(3), "this device wants at least 5", "no_examples"),
        (lambda: None, "got NoneType", "no_examples"),
        (lambda: (blobs(60)[0] * np.float32(1e30), blobs(60)[1]), "lower the learning rate", "diverged"),
    ],
    ids=["empty", "none", "shape", "labels", "few", "nothing", "nan"],
)
def test_examples_that_cannot_be_trained_on_are_explained_and_the_ticket_given_back(
    federation: MakeFederation, tmp_path: Path, examples: Callable[[], Any], words: str, reason: str | None
) -> None:
    diary = Diary()
    limits = Limits(examples_min=5)
    with (
        federation() as plant,
        plant.client(tmp_path / "pi", load_examples=examples, on_progress=diary, limits=limits) as client,
    ):
        assert re.search(words, diary.detail("training_failed")), diary.entries
        wait(lambda: client.status.error)
        wait(lambda: (reason or "no_examples") in plant.reasons("declined"), plant.tickets)
        assert client.running and client.status.counted == 0


# The machine


def test_a_state_directory_in_use_is_refused_with_its_owner(broker: PrivateBroker, tmp_path: Path) -> None:
    hold = "import sys, time; from edge_sdk.device.state import DirectoryFiles; f = DirectoryFiles(sys.argv[1])"
    command = [sys.executable, "-c", f"{hold}; print('held', flush=True); time.sleep(60)", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            with pytest.raises(StateError, match=rf"in use by another process \(pid {other.pid}\): stop that one"):
                EdgeClient(
                    broker=broker.url,
                    federation="plant",
                    device_id="pi",
                    load_examples=lambda: blobs(9),
                    state_dir=tmp_path,
                )
        finally:
            other.kill()


def test_a_full_disk_is_told_and_the_device_goes_on_once_there_is_room(
    federation: MakeFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    fsync = os.fsync

    def no_space(descriptor: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_space)
    diary = Diary()
    with federation() as plant, plant.client(tmp_path / "pi", on_progress=diary) as client:
        wait(lambda: client.status.counted >= 1)
        full.set()
        told = ("training_failed", "state_failed")
        wait(lambda: any(diary.of(what) for what in told), lambda: diary.entries[-9:])
        assert "free some on that file system" in next(diary.of(w)[0].detail for w in told if diary.of(w))
        wait(lambda: "state" in plant.reasons("declined"), plant.tickets)
        full.clear()
        counted_anew(client, 2)


@pytest.mark.parametrize(("name", "what"), [("program_bytes_max", "program"), ("parameters_bytes_max", "parameters")])
def test_a_model_above_the_limits_is_declined_with_the_limit_to_raise(
    federation: MakeFederation, tmp_path: Path, name: str, what: str
) -> None:
    diary = Diary()
    with (
        federation() as plant,
        plant.client(tmp_path / "pi", limits=Limits(**{name: 80}), on_progress=diary) as client,
    ):
        detail = diary.detail("too_large")
        assert detail.startswith(f"the {what} has ") and f"raise limits.{name}" in detail
        wait(lambda: "too_large" in plant.reasons("declined"), plant.tickets)
        assert client.status.error == detail


def test_a_hung_network_thread_can_be_seen_from_outside(federation: MakeFederation, tmp_path: Path) -> None:
    held = threading.Event()
    release = threading.Event()

    def eligible() -> bool:
        held.set()
        return release.wait(10.0)

    with federation() as plant, plant.client(tmp_path / "pi", eligible=eligible) as client:
        assert held.wait(10.0)
        wait(lambda: client.silent_seconds > 0.5)
        release.set()
        wait(lambda: client.silent_seconds < 0.2)


# The broker and the way to it


def test_a_device_comes_back_after_the_broker_was_killed(mosquitto: MakeBroker, tmp_path: Path) -> None:
    with (
        mosquitto() as own,
        Federation(tmp_path / "coordinator", own.url, "plant") as plant,
        plant.client(tmp_path / "pi") as client,
    ):
        wait(lambda: client.status.counted >= 1)
        own.kill()
        wait(lambda: not client.status.connected and client.status.error)
        own.start()
        counted_anew(client, 2)
        assert client.status.connected and client.status.error == ""


def test_a_broker_that_is_down_at_the_start_is_waited_for(mosquitto: MakeBroker, tmp_path: Path) -> None:
    with mosquitto() as own:
        own.stop()
        client = EdgeClient(
            broker=own.url, federation="plant", device_id="pi", load_examples=lambda: blobs(9), state_dir=tmp_path
        )
        with client:
            wait(lambda: client.status.error)
            assert "nothing listens at" in client.status.error and "is the broker running" in client.status.error
            own.start()
            wait(lambda: client.status.connected)
            assert client.status.error == ""


@pytest.fixture(scope="module")
def secured(mosquitto: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """Passwords, the ACL that we ship, and a TLS listener."""
    tls = BrokerTls(TLS / "broker.pem", TLS / "broker.key")
    users = {"coordinator": "c", "pi": "right", "other": "other"}
    with mosquitto(users=users, tls=tls) as started:
        yield started


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"username": "pi", "password": "wrong"}, "the password is wrong, the user unknown"),
        ({}, "lets nobody in without a login; give username and password"),
        ({"tls": TlsSettings()}, "does not answer with TLS .* use mqtt:// for a plain port"),
        ({"port": "tls"}, "speaks TLS, .* use mqtts://|if the port expects TLS use mqtts://"),
        ({"port": "tls", "tls": TlsSettings()}, "no authority that this device trusts has signed it. Give .* ca_file"),
    ],
    ids=["password", "anonymous", "tls-to-plain", "plain-to-tls", "unknown-authority"],
)
def test_a_refused_connection_says_what_to_change(
    secured: PrivateBroker, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    port = secured.tls_port if settings.get("port") == "tls" else secured.port
    assert port is not None
    broker = BrokerSettings(**({"host": "localhost"} | settings | {"port": port}))
    diary = Diary()
    with EdgeClient(
        broker=broker,
        federation="plant",
        device_id="pi",
        load_examples=lambda: blobs(9),
        state_dir=tmp_path,
        on_progress=diary,
    ) as client:
        detail = diary.detail("connection_failed")
        assert re.search(words, detail), detail
        wait(lambda: client.status.error == detail)
        assert client.running and not client.status.connected


def test_a_message_that_the_acl_forbids_is_explained(secured: PrivateBroker, tmp_path: Path) -> None:
    login = {"username": "coordinator", "password_file": str(_file(tmp_path / "password", "c"))}
    with Federation(tmp_path / "coordinator", secured.url, "plant", broker=login) as plant:
        diary = Diary()
        broker = BrokerSettings.parse(secured.url, username="other", password="other")
        with plant.client(tmp_path / "pi", broker=broker, on_progress=diary) as client:
            detail = diary.detail("publish_refused")
            assert "fl/v1/plant/from/pi/#" in detail and "the user name is the device id" in detail
            time.sleep(0.2)  # mosquitto 2.0 hangs up over it: the refusal stays the news
            assert client.status.error == detail and not diary.of("connection_failed")
        right = BrokerSettings.parse(secured.url, username="pi", password="right")
        with plant.client(tmp_path / "pi", broker=right) as client:
            wait(lambda: client.status.counted >= 1, lambda: client.status)


def test_a_device_takes_part_in_two_federations_of_one_broker(broker: PrivateBroker, tmp_path: Path) -> None:
    diaries = [Diary(), Diary()]
    clients = [
        EdgeClient(
            broker=broker.url,
            federation=name,
            device_id="pi",
            load_examples=lambda: blobs(9),
            state_dir=tmp_path / name,
            on_progress=diary,
        )
        for name, diary in zip(("plant", "garden"), diaries, strict=True)
    ]
    with clients[0], clients[1]:
        wait(lambda: all(diary.of("online") for diary in diaries))
        time.sleep(1.0)  # as long as a broker might need to cut one of them
        assert all(client.status.connected for client in clients)
    assert not any(diary.of("connection_failed") for diary in diaries)


def test_two_devices_of_one_name_are_told_so_and_slow_down(broker: PrivateBroker, tmp_path: Path) -> None:
    """The other one comes back at once, each time: a copied card with a mistaken app."""
    diary = Diary()
    events: list[TransportEvent] = []
    settings = BrokerSettings.parse(broker.url, client_id=client_id("plant", "default", "twin"), protocol="3.1.1")
    client = EdgeClient(
        broker=BrokerSettings.parse(broker.url, protocol="3.1.1"),
        federation="plant",
        device_id="twin",
        load_examples=lambda: blobs(9),
        state_dir=tmp_path,
        on_progress=diary,
    )
    with EventLoop() as loop, client:
        rival = PahoTransport(settings, events.append)
        loop.register(rival)

        def told() -> bool:
            if client.status.connected:
                rival.connect()
            return bool(diary.of("taken_over"))

        assert loop.run_until(told, 15.0), diary.entries
        rival.disconnect()
        loop.run_once(0.1)
        loop.unregister(rival)
    assert "another client seems to use the device id 'twin': give each device its own" in diary.detail("taken_over")


def test_a_client_that_cannot_go_on_says_so_at_stop(broker: PrivateBroker, tmp_path: Path) -> None:
    settings = BrokerSettings("localhost", broker.port, tls=TlsSettings(ca_file=str(tmp_path / "missing.pem")))
    client = EdgeClient(
        broker=settings, federation="plant", device_id="pi", load_examples=lambda: blobs(9), state_dir=tmp_path / "pi"
    ).start()
    wait(lambda: not client.running)
    assert "missing.pem" in client.status.error and not client.status.connected
    with pytest.raises(EdgeFedError, match=r"missing\.pem"):
        client.stop()


def test_the_log_of_a_device_says_what_happens(
    federation: MakeFederation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="edge_sdk")
    with federation() as plant, plant.client(tmp_path / "pi") as client:
        wait(lambda: client.status.counted >= 1)
    lines = [record.getMessage() for record in caplog.records if record.name == "edge_sdk.device.status"]
    assert [line.split(": ")[1] for line in lines[:5]] == ["online", "invited", "training", "trained", "counted"]


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
