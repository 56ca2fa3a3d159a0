"""The in-memory broker beside mosquitto: one script, played in virtual time and over sockets, tells the same story."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest
from conftest import MakeClient

from device_sim.broker import PrivateBroker
from device_sim.world.clock import VirtualClock
from device_sim.world.network import InMemoryBroker, LinkProfile, NetworkFaults
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published, Subscribed, Transport, TransportEvent, Will

WILL = Will("status/a", b"offline")


class Stage(Protocol):
    """What a script may do: make clients, let the network come to rest, kill the broker and start it again."""

    def client(self, name: str, listener: Callable[[TransportEvent], None], **options: Any) -> Transport: ...

    def settle(self) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class Actor:
    def __init__(self, stage: Stage, name: str, **options: Any) -> None:
        self.stage = stage
        self.events: list[TransportEvent] = []
        self.transport = stage.client(name, self.events.append, **options)

    def join(self, *filters: str) -> Actor:
        self.transport.connect()
        self.stage.settle()
        if filters:
            self.transport.subscribe(filters, token=99)
            self.stage.settle()
        return self

    @property
    def deliveries(self) -> list[Delivery]:
        return [event for event in self.events if isinstance(event, Delivery)]

    def story(self) -> dict[str, list[Any]]:
        """What it was told, by kind; the order between kinds is the network's affair."""
        return {
            "connections": [
                # mosquitto 2.0.11 takes a connection over without giving the reason.
                event.reason.replace("taken_over", "lost") if isinstance(event, Disconnected) else event.protocol
                for event in self.events
                if isinstance(event, Connected | Disconnected)
            ],
            "deliveries": [(event.topic, event.payload, event.retained) for event in self.deliveries],
            "published": [event for event in self.events if isinstance(event, Published)],
            "subscribed": [event for event in self.events if isinstance(event, Subscribed)],
        }


def subscriptions(stage: Stage) -> list[Actor]:
    a = Actor(stage, "a").join("x/+", "deep/#", "exact", "exact", "+")
    b = Actor(stage, "b").join("#")
    for token, topic in enumerate(["x/1", "x/1/2", "x", "deep", "deep/1/2", "exact", "x/", "/x"]):
        b.transport.publish(topic, b"%d" % token, token=token)
    stage.settle()
    a.transport.publish("x/own", b"own")
    stage.settle()
    a.transport.unsubscribe(["x/+"])
    stage.settle()
    b.transport.publish("x/1", b"unheard")
    b.transport.publish("exact", b"qos 0", qos=0)
    stage.settle()
    return [a, b]


def retained(stage: Stage) -> list[Actor]:
    a = Actor(stage, "a").join("status/+")
    for payload in (b"1", b"2"):
        a.transport.publish("status/x", payload, retain=True)
    a.transport.publish("status/y", b"not kept")
    stage.settle()
    late = Actor(stage, "late").join("status/#")
    late.transport.subscribe(["status/x"])
    stage.settle()
    a.transport.publish("status/x", b"", retain=True)
    stage.settle()
    return [a, late, Actor(stage, "later").join("status/#")]


def windows(stage: Stage) -> list[Actor]:
    slow = Actor(stage, "slow", manual_ack=True, in_flight_max=3).join("t")
    sender = Actor(stage, "sender").join()
    for i in range(8):
        sender.transport.publish("t", b"%d" % i, token=i)
    stage.settle()
    assert len(slow.deliveries) == 3
    # From the first PUBACK on mosquitto 2.0.11 sends more than the window allows; the in-memory broker never does.
    for i in range(8):
        slow.transport.acknowledge(slow.deliveries[i])
        stage.settle()
    slow.transport.disconnect()
    stage.settle()
    slow.join("t")
    return [slow, sender]


def endings(stage: Stage) -> list[Actor]:
    watcher = Actor(stage, "watcher").join("status/+", "t")
    first = Actor(stage, "a", will=WILL).join("t")
    first.transport.publish("status/a", b"online", retain=True)
    stage.settle()
    second = Actor(stage, "a", will=WILL).join("t")
    watcher.transport.publish("t", b"after the takeover")
    stage.settle()
    second.transport.publish("status/a", b"leaving", retain=True)
    second.transport.disconnect()
    stage.settle()
    watcher.transport.publish("t", b"while away")
    stage.settle()
    second.join("t")
    second.transport.disconnect(will=True)
    stage.settle()
    return [watcher, first, second, Actor(stage, "late").join("status/a")]


def a_crash(stage: Stage) -> list[Actor]:
    slow = Actor(stage, "slow", manual_ack=True, in_flight_max=1).join("t")
    sender = Actor(stage, "a", will=WILL).join()
    sender.transport.publish("status/b", b"kept?", retain=True, token=5)
    for i in range(3):
        sender.transport.publish("t", b"%d" % i, token=i)
    stage.settle()
    stage.kill()
    stage.settle()
    slow.transport.connect()
    stage.settle()
    stage.restart()
    slow.join("t")
    return [slow, sender, Actor(stage, "late").join("status/#")]


class Memory:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.broker = InMemoryBroker(self.clock, np.random.default_rng(0), NetworkFaults())

    def client(self, name: str, listener: Callable[[TransportEvent], None], **options: Any) -> Transport:
        return self.broker.transport(name, listener, link=LinkProfile(), **options)

    def settle(self) -> None:
        self.clock.run(until=self.clock.now + 1.0)

    def kill(self) -> None:
        self.broker.crash(down_seconds=5.0)

    def restart(self) -> None:
        self.clock.run(until=self.clock.now + 10.0)


class Real:
    def __init__(self, broker: PrivateBroker, make_client: MakeClient, settle: Callable[[float], None]) -> None:
        self.broker, self._make, self._settle = broker, make_client, settle

    def client(self, name: str, listener: Callable[[TransportEvent], None], **options: Any) -> Transport:
        made = self._make(self.broker, client_id=name, protocol="5", **options)
        made.on_event = listener
        transport: Transport = made.transport
        return transport

    def settle(self) -> None:
        self._settle(0.12)

    def kill(self) -> None:
        self.broker.kill()

    def restart(self) -> None:
        self.broker.start()


@pytest.mark.parametrize("script", [subscriptions, retained, windows, endings, a_crash])
def test_a_script_tells_the_same_story_on_both_brokers(
    script: Callable[[Stage], list[Actor]],
    mosquitto_broker: PrivateBroker,
    make_client: MakeClient,
    settle: Callable[[float], None],
) -> None:
    imagined = [actor.story() for actor in script(Memory())]
    real = [actor.story() for actor in script(Real(mosquitto_broker, make_client, settle))]
    assert imagined == real
