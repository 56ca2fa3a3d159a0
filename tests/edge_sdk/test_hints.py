"""A silence that has a cause is explained, in virtual time; a name that two devices share is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from device_sim.world.clock import VirtualClock
from device_sim.world.network import InMemoryBroker
from edge_sdk.device.agent import Agent
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.progress import Progress
from edge_sdk.device.settings import AgentSettings
from edge_sdk.device.state import DeviceState
from edge_sdk.device.work import TrainingWork
from edge_sdk.mqtt import TransportEvent
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import Announce
from edge_sdk.wire.topics import Topics

TOPICS = Topics("plant")
LINEAGE = b"e" * 16


class World:
    """A broker, its clock, and whatever speaks there."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.broker = InMemoryBroker(self.clock, np.random.default_rng(0))
        self.coordinator = self.broker.transport("coordinator", lambda event: None)
        self.coordinator.connect()
        self.run(0.5)

    def run(self, seconds: float) -> None:
        self.clock.run(until=self.clock.now + seconds)

    def say_state(self, online: bool, tasks: tuple[str, ...] = ("default",)) -> None:
        state = CoordinatorState(LINEAGE, 1, online, tasks).encode("plant")
        self.coordinator.publish(TOPICS.lineage_state(LINEAGE), state, retain=True)

    def announce(self, task: str, phase: str = "working") -> None:
        announce = Announce(1, 0, phase, fraction=1.0, window_seconds=1.0)
        envelope = Envelope(lineage=b"e" * 16)
        self.coordinator.publish(TOPICS.announce(task), encode_message(envelope, announce), retain=True)


class Device:
    """The shipped agent, driven once a virtual second."""

    def __init__(self, world: World, name: str = "pi", seed: int = 0) -> None:
        self.world = world
        self.told: list[Progress] = []
        self.agent = Agent(
            AgentSettings("plant", name, publish_status=False),
            state=DeviceState(MemoryFiles(), new_instance=lambda: bytes([seed]) * 16, wall_day=lambda: 0),
            work=TrainingWork(lambda: ((), ())),
            run_job=lambda job: None,
            rng=np.random.default_rng(seed),
            on_progress=self.told.append,
        )
        self.agent.attach(world.broker.transport(name, self.on_transport))
        self.tick()

    def on_transport(self, event: TransportEvent) -> None:
        self.agent.on_transport(event, self.world.clock.now)

    def tick(self) -> None:
        due = self.agent.next_deadline()
        if due is not None and due <= self.world.clock.now:
            self.agent.tick(self.world.clock.now)
        self.world.clock.call_later(1.0, self.tick)

    def details(self, what: str) -> list[str]:
        return [entry.detail for entry in self.told if entry.what == what]


@pytest.fixture
def world() -> World:
    return World()


def test_a_federation_that_nobody_speaks_in_is_named_after_half_a_minute(world: World) -> None:
    device = Device(world)
    world.run(25.0)
    assert device.agent.status.connected and not device.details("no_coordinator")
    world.run(10.0)
    assert device.details("no_coordinator") == [device.agent.status.error]
    assert "no coordinator speaks in federation 'plant': check the name" in device.agent.status.error
    assert f"read {TOPICS.lineage_states}" in device.agent.status.error
    world.run(300.0)
    assert len(device.details("no_coordinator")) == 1, "it is said once a connection"


def test_the_hint_is_taken_back_when_a_coordinator_comes(world: World) -> None:
    device = Device(world)
    world.run(40.0)
    assert device.agent.status.error
    world.say_state(online=True)
    world.announce("default")
    world.run(5.0)
    assert device.agent.status.error == ""


@pytest.mark.parametrize(
    ("online", "tasks"), [(True, ("default",)), (True, ("another",)), (False, ("another",))], ids=str
)
def test_a_task_that_nobody_announces_is_named(world: World, online: bool, tasks: tuple[str, ...]) -> None:
    world.say_state(online=online, tasks=tasks)
    world.announce("another")
    device = Device(world)
    world.run(40.0)
    assert device.details("no_task") == ["federation 'plant' announces no task 'default': check its name"]
    assert device.agent.status.error == device.details("no_task")[0]


def test_a_coordinator_that_is_offline_is_no_mistake_of_the_device(world: World) -> None:
    world.say_state(online=False)
    device = Device(world)
    world.run(40.0)
    assert len(device.details("coordinator_offline")) == 1
    assert device.agent.status.error == ""


def test_a_federation_at_work_needs_no_hint(world: World) -> None:
    world.say_state(online=True)
    world.announce("default", phase="waiting")
    device = Device(world)
    world.run(300.0)
    assert [entry.what for entry in device.told] == ["online"]


def test_check_ins_without_an_answer_are_explained_once(world: World) -> None:
    world.say_state(online=True)
    world.announce("default", phase="selection")
    device = Device(world)
    world.run(60.0)
    assert not device.details("no_answer")
    world.run(600.0)
    (hint,) = device.details("no_answer")
    assert "no answer to 4 check-ins: the round waits for more devices" in hint
    assert "fl/v1/plant/from/pi/#" in hint and "fl/v1/plant/to/pi/#" in hint
    assert device.agent.status.error == "", "to wait is no mistake"


def test_two_devices_of_one_name_find_it_out_and_slow_down(world: World) -> None:
    twins = [Device(world, "twin", seed) for seed in (1, 2)]
    world.run(600.0)
    told: list[Any] = [device.details("taken_over") for device in twins]
    assert any(told)
    assert "another client seems to use the device id 'twin': give each device its own" in next(t[0] for t in told if t)
    connections = sum(len(device.details("connection_failed")) for device in twins)
    world.run(3_600.0)
    later = sum(len(device.details("connection_failed")) for device in twins) - connections
    assert later < 40, "an hour of it costs few connections"
