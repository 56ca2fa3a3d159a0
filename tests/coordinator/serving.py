"""A coordinator as its own process, devices in this one, and the books that must balance whatever happens to either."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coordinator.config import FederationConfig, load_config
from coordinator.config.settings import codec_settings, database_path
from coordinator.setup import build_bundle
from coordinator.store import RoundRecord, Store, StoreReader, TicketRecord
from device_sim.datasets import load_dataset
from device_sim.fleet import Fleet, FleetSettings, Member
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from device_sim.profiles import DeviceProfile
from edge_sdk.codecs import CODECS, decode_update
from edge_sdk.codecs.frame import pack_frame
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob
from edge_sdk.device.work import TrainingWork
from edge_sdk.errors import StateError
from edge_sdk.mqtt import BrokerSettings, Connected, Delivery, PahoTransport, Subscribed, TransportEvent
from edge_sdk.mqtt.loop import EventLoop
from edge_sdk.training.bundle import digest_of, encode_parameters
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import CheckIn, Chunk, Invite, Message, Update, introduction_id
from edge_sdk.wire.safe_msgpack import BytesLike
from edge_sdk.wire.topics import Topics

M = TypeVar("M")

REPOSITORY = Path(__file__).resolve().parents[2]
FEDERATION = "digits"
PATIENCE_SECONDS = 60.0
ASK_SECONDS = 0.03
DEVICES = 6

TABLES: dict[str, dict[str, Any]] = {
    "federation": {"name": FEDERATION},
    "model": {"zoo": "softmax_regression", "inputs": [64], "outputs": 10},
    "training": {"learning_rate": 0.5, "seconds_max": 10.0},
    "selection": {
        "goal_count": 4,
        "minimum_count": 2,
        "window_seconds": 0.2,
        "gather_seconds": 0.2,
        "selection_seconds_max": 60.0,
        "configuration_seconds_max": 10.0,
        "reporting_seconds_max": 60.0,
        "pause_seconds": 0.0,
        "retry_seconds": 0.5,
        "come_back_seconds": 1.0,
    },
    "codec": {"name": "sparse", "density": 0.2},
    "downlink": {"codec": "none"},  # so that a model is the mean of the updates, as the books have it
    "stopping": {"rounds_max": 3},
}


def write_config(directory: Path, url: str, **tables: dict[str, Any]) -> Path:
    """``federation.toml`` with the tables above, changed where ``tables`` says so; a table of None is left out."""
    merged: dict[str, dict[str, Any]] = {name: dict(table) for name, table in TABLES.items()}
    merged["broker"] = {"url": url} | tables.pop("broker", {})
    for name, table in tables.items():
        merged[name] = merged.get(name, {}) | table
    if merged["model"].get("zoo"):
        merged["model"].setdefault("normalise", "none")  # rounds are counted from 1, and none of them is of statistics
    lines = []
    for name, table in merged.items():
        values = [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]
        lines += [f"[{name}]", *values, ""]
    path = directory / "federation.toml"
    path.write_text("\n".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def write_held_out(directory: Path) -> Path:
    """``heldout.npz`` with the digits that no device has."""
    held_out = split_held_out(load_dataset("digits"), 0.2, 0)[1]
    path = directory / "heldout.npz"
    np.savez(path, **held_out.examples)
    return path


def digits_of(devices: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Each device's own digits."""
    if not devices:
        return []
    train = split_held_out(load_dataset("digits"), 0.2, 0)[0]
    return [(train.x[part], train.y[part]) for part in partition(train, "iid", devices, 0)]


class Coordinator:
    """``edge-coordinator serve`` as a process that can be killed."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.log = config.with_name("coordinator.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._said = 0

    def start(self) -> None:
        self._said = len(self.output())
        command = [sys.executable, "-m", "coordinator", "serve", str(self.config), "--linger", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY)

    @property
    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """SIGKILL: no goodbye, no clean close of the database."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def output(self) -> str:
        """What all its lives have said."""
        return self.log.read_text() if self.log.exists() else ""

    def new_output(self) -> str:
        """What it has said since its last start."""
        return self.output()[self._said :]

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)


class Books:
    """Every update that any device ever made, by its digest."""

    def __init__(self) -> None:
        self.payloads: dict[bytes, bytes] = {}

    def check(self, config: FederationConfig, store: StoreReader) -> None:
        """Each model is, to the bit, the one before moved by the weighted mean of the updates that counted in it."""
        task, bundle = config.federation.task, build_bundle(config, verify=False)
        vector = bundle.parameters
        checkpoints = {checkpoint.round: checkpoint.parameters_digest for checkpoint in store.checkpoints(task)}
        closed = sorted((r for r in store.rounds(task, 1000) if r.phase == "closed"), key=lambda r: r.number)
        assert [record.number for record in closed] == list(range(1, len(closed) + 1))
        for record in closed:
            tickets = store.tickets(task, record.number, record.attempt)
            counted = [ticket for ticket in tickets if ticket.state == "counted"]
            assert len({ticket.device for ticket in counted}) == len(counted) == record.summary["counted"]
            self._check_partition(record, tickets)
            vector = vector + self._mean(counted, config, vector.size)
            assert checkpoints[record.number] == digest_of(encode_parameters(vector)), f"round {record.number}"

    def _mean(self, counted: list[TicketRecord], config: FederationConfig, size: int) -> NDArray[np.float32]:
        total, weight_sum = [0] * size, 0
        for ticket in counted:
            assert ticket.digest is not None
            update = Update.decode(self.payloads[ticket.digest])
            dense = decode_update(update.frames()[0], size, codec_settings(config)).dense()
            weight_sum += update.examples
            for index in np.flatnonzero(dense):
                total[index] += round(math.ldexp(float(dense[index]) * update.examples, 30))
        divisor = math.ldexp(weight_sum, 30)
        return np.array([value / divisor for value in total], dtype=np.float32)

    @staticmethod
    def _check_partition(record: RoundRecord, tickets: list[TicketRecord]) -> None:
        states = [ticket.state for ticket in tickets]
        verdicts = ("counted", "refused", "declined", "late", "missing")
        assert record.summary["invited"] == len(tickets) == sum(record.summary[state] for state in verdicts)
        assert {state: states.count(state) for state in verdicts} == {s: record.summary[s] for s in verdicts}


class Gate:
    """Holds devices at their work until the test lets them go on."""

    def __init__(self) -> None:
        self._open = threading.Condition()
        self._held: set[str] = set()
        self.waiting: set[str] = set()

    def hold(self, *devices: str) -> None:
        with self._open:
            self._held |= set(devices)

    def release(self, *devices: str) -> None:
        """Let these go on; all of them without names."""
        with self._open:
            self._held -= set(devices) if devices else set(self._held)
            self._open.notify_all()

    def pass_through(self, device: str) -> None:
        with self._open:
            self.waiting.add(device)
            self._open.wait_for(lambda: device not in self._held, PATIENCE_SECONDS)
            self.waiting.discard(device)


class RecordedWork:
    """Real training that passes the gate and is written into the books."""

    def __init__(self, device: str, examples: tuple[Any, Any], books: Books, gate: Gate) -> None:
        self._device, self._books, self._gate = device, books, gate
        self._work = TrainingWork(lambda: examples)
        self._busy = threading.Lock()

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        with self._busy:
            self._work.check(ticket, digest, program)

    def run(self, order: TrainingJob) -> TrainedUpdate:
        with self._busy:
            product = self._work.run(order)
        self._books.payloads[product.update.digest] = product.update.payload
        self._gate.pass_through(self._device)
        return product


class Devices:
    """A fleet with books and a gate."""

    def __init__(self, broker: BrokerSettings, count: int = DEVICES) -> None:
        self.books, self.gate = Books(), Gate()
        members = [
            Member(f"device-{number}", DeviceProfile(), examples) for number, examples in enumerate(digits_of(count))
        ]
        self.names = [member.device for member in members]
        self.fleet = Fleet(
            broker,
            FleetSettings(FEDERATION, engine="numpy", training_threads=max(count, 1)),
            members,
            work=lambda member: RecordedWork(member.device, member.examples or ((), ()), self.books, self.gate),
        )

    def run_until(self, done: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Runs the devices until ``done()``, which is asked a few times a second, however quiet it is."""
        loop, reached = self.fleet.loop, False

        def ask() -> None:
            nonlocal reached, timer
            reached = done()
            timer = loop.call_at(loop.clock() + ASK_SECONDS, ask)

        timer = loop.call_at(loop.clock(), ask)
        in_time = self.fleet.run(lambda: reached, seconds)
        timer.cancel()
        assert in_time, f"not within {seconds:g} s: {what}"

    def run_for(self, seconds: float) -> None:
        """Runs the devices for a while."""
        until = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() >= until, "time passes")

    def close(self) -> None:
        self.gate.release()
        self.fleet.close()


class Served:
    """One federation under test: its configuration, its coordinator, its devices and its database."""

    def __init__(
        self, directory: Path, broker: BrokerSettings, url: str, devices: int, **tables: dict[str, Any]
    ) -> None:
        self.path = write_config(directory, url, **tables)
        self.config = load_config(self.path)
        self.coordinator = Coordinator(self.path)
        self.coordinator.start()  # it takes a while to be there; the devices are made meanwhile
        self.devices = Devices(broker, devices)

    def run_until(self, done: Callable[[], bool], what: str) -> None:
        """Runs the devices until ``done()``; a coordinator that ends before it is a failure."""
        coordinator = self.coordinator
        try:
            self.devices.run_until(lambda: coordinator.exit_code is not None or done(), what)
        except AssertionError as error:
            raise AssertionError(f"{error}; tickets {self.states()}; it said:\n{coordinator.output()}") from error
        assert done(), f"{what}: the coordinator ended with {coordinator.exit_code} and said:\n{coordinator.output()}"

    def run_until_said(self, words: str) -> None:
        """Runs the devices until the coordinator has said this since its last start."""
        self.run_until(lambda: words in self.coordinator.new_output(), f"it says {words!r}")

    def run_until_finished(self) -> None:
        self.run_until(lambda: self.coordinator.exit_code is not None, "the end")
        assert self.coordinator.exit_code == 0, self.coordinator.output()

    def run_until_tickets(self, **wanted: int) -> None:
        """Runs the devices until the open round has at least so many tickets in these states."""

        def reached() -> bool:
            states = self.states()
            return all(states[state] >= count for state, count in wanted.items())

        self.run_until(reached, f"tickets {wanted}")

    def states(self) -> Counter[str]:
        """How many tickets of the open round are in each state."""
        return Counter(ticket.state for ticket in self.tickets())

    def tickets(self) -> list[TicketRecord]:
        """Those of the open round."""
        if not database_path(self.config).exists():
            return []
        try:
            with self.store() as store:
                record = store.open_round("default")
                return [] if record is None else store.tickets("default", record.number, record.attempt)
        except StateError:  # the first start is making the database just now
            return []

    @contextmanager
    def store(self) -> Iterator[StoreReader]:
        with Store.open_readonly(database_path(self.config)) as store:
            yield store

    def check_books(self) -> None:
        with self.store() as store:
            self.devices.books.check(self.config, store)

    def close(self) -> None:
        self.devices.close()
        self.coordinator.close()


class HandMade:
    """A device that a test speaks for, message by message; it shares the loop of whoever drives it."""

    def __init__(self, loop: EventLoop, broker: BrokerSettings, device: str) -> None:
        self.device = device
        self.topics = Topics(FEDERATION)
        self.received: list[tuple[Envelope, Any]] = []
        self.subscribed = False
        self.lineage = b""
        self._loop = loop
        self._transport = PahoTransport(replace(broker, client_id=f"by-hand-{device}"), self._listen)
        loop.register(self._transport)
        self._transport.connect()

    def _listen(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            self._transport.subscribe((f"{self.topics.root}/to/{self.device}/+",))
        elif isinstance(event, Subscribed):
            self.subscribed = True
        elif isinstance(event, Delivery):
            kind = event.topic.rsplit("/", 1)[1]
            self.received.append(decode_message(event.payload, kind, peer="coordinator"))

    def close(self) -> None:
        self._transport.disconnect()
        self._loop.unregister(self._transport)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Any bytes, anywhere."""
        self._transport.publish(topic, payload, qos=1, retain=retain)

    @property
    def shard(self) -> str:
        """The uplink inbox, as an invite names it."""
        return self.lineage.hex()[:8]

    def say(self, message: Message, **envelope: Any) -> None:
        """A message in its place, in an envelope of which any field may be a wrong one."""
        fields = {"task": "default", "lineage": self.lineage} | envelope
        chunked = isinstance(message, Chunk)
        topic = (
            self.topics.up(self.shard, self.device) if chunked else self.topics.from_device(self.device, message.kind)
        )
        self.publish(topic, encode_message(Envelope(**fields), message))

    def check_in(self) -> None:
        capabilities, instance = {"supports": ["codec:dense", "codec:sparse"]}, self.device.encode().ljust(16, b".")
        name = introduction_id(instance, capabilities)
        self.say(CheckIn(os.urandom(8), introduction=name, instance=instance, capabilities=capabilities))

    def last(self, kind: type[M]) -> M | None:
        """The last message of this kind that came."""
        found = [(envelope, message) for envelope, message in self.received if isinstance(message, kind)]
        if not found:
            return None
        self.lineage = found[-1][0].lineage or self.lineage
        return found[-1][1]

    def invite(self) -> Invite:
        found = self.last(Invite)
        assert found is not None
        return found

    def send_update(self, payload: bytes, *, digest: bytes | None = None, ticket: bytes | None = None) -> None:
        """The whole update in one chunk, without any offer."""
        held = self.invite().ticket if ticket is None else ticket
        named = digest_of(payload) if digest is None else digest
        self.say(Chunk(ticket=held, digest=named, total=len(payload), offset=0, data=payload))


def update_of(frame: bytes, **fields: Any) -> bytes:
    """An update as any device would write it."""
    values = {"examples": 10, "steps": 1, "loss": 1.0, "complete": True, "seconds": 0.1, "engine": "hand"} | fields
    return Update(vectors={"delta": (frame,)}, **values).encode()


def dense_frame(vector: NDArray[np.float32]) -> bytes:
    """A frame of the dense codec with any values in it, also those that its encoder refuses."""
    return pack_frame(vector.astype("<f4").tobytes(), vector.size, CODECS["dense"].wire_id)
