"""Real brokers for the tests, and clients to talk through them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

from device_sim.broker import PrivateBroker
from device_sim.mosquitto import find_mosquitto
from edge_sdk.mqtt import BrokerSettings, Connected, Disconnected, PahoTransport, Subscribed, TransportEvent
from edge_sdk.mqtt.loop import EventLoop

E = TypeVar("E")


MakeBroker = Callable[..., PrivateBroker]
HOW_TO_GET_MOSQUITTO = (
    "mosquitto is missing: `make test` brings it on Debian and its relatives, with a network; elsewhere install it"
)


def need_mosquitto(found: str | None, environment: Mapping[str, str]) -> None:
    """Skips a test that needs mosquitto where there is none; fails it in CI, where a skip would prove nothing."""
    if found is None and environment.get("CI"):
        pytest.fail(HOW_TO_GET_MOSQUITTO, pytrace=False)
    if found is None:
        pytest.skip(HOW_TO_GET_MOSQUITTO)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Applies the rule here and not in the fixture: skips from one place are one line of the report."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))]
    if "mosquitto" in names:
        need_mosquitto(find_mosquitto(), os.environ)


@pytest.fixture(scope="session")
def mosquitto() -> MakeBroker:
    """Makes mosquittos of a test's own, with the keywords of ``PrivateBroker``.

    Tests get to mosquitto through this fixture, or as a parameter with the value "mosquitto": both are what
    ``need_mosquitto`` is asked about.
    """
    return functools.partial(PrivateBroker, "mosquitto")


@pytest.fixture
def mosquitto_broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    """A mosquitto of the test's own."""
    with mosquitto() as broker:
        yield broker


@pytest.fixture
def iotcore_broker() -> Iterator[PrivateBroker]:
    """An embedded broker of the test's own."""
    with PrivateBroker("iotcore") as broker:
        yield broker


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker(request: pytest.FixtureRequest) -> PrivateBroker:
    """Both brokers, one after the other."""
    found: PrivateBroker = request.getfixturevalue(f"{request.param}_broker")
    return found


class MqttClient:
    """A transport on the test's loop that writes down every event."""

    def __init__(self, loop: EventLoop, settings: BrokerSettings, **transport: Any) -> None:
        self.loop = loop
        self.events: list[TransportEvent] = []
        self.on_event: Callable[[TransportEvent], None] | None = None
        self.transport = PahoTransport(settings, self._listen, **transport)
        loop.register(self.transport)

    def _listen(self, event: TransportEvent) -> None:
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def expect(self, kind: type[E], count: int = 1, seconds: float = 10.0) -> E:
        """Run the loop until there are ``count`` events of ``kind``; the last of them."""
        assert self.loop.run_until(lambda: len(self.of(kind)) >= count, seconds), f"no {kind.__name__}: {self.events}"
        return self.of(kind)[count - 1]

    def connected(self) -> MqttClient:
        self.transport.connect()
        self.expect(Connected, len(self.of(Connected)) + 1)
        return self

    def failed(self) -> Disconnected:
        """Connect, and expect that it fails."""
        self.transport.connect()
        return self.expect(Disconnected)

    def subscribed(self, *filters: str) -> MqttClient:
        self.transport.subscribe(filters)
        self.expect(Subscribed, len(self.of(Subscribed)) + 1)
        return self


MakeClient = Callable[..., MqttClient]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """A loop in which an exception of a callback fails the test."""
    errors: list[Exception] = []
    with EventLoop(on_error=errors.append) as made:
        yield made
    assert not errors


@pytest.fixture
def make_client(loop: EventLoop) -> Iterator[MakeClient]:
    """Makes clients from a broker or a URL; ``BrokerSettings`` fields and transport arguments as keywords."""
    numbers = itertools.count()
    clients: list[MqttClient] = []

    def make(target: PrivateBroker | str, **keywords: Any) -> MqttClient:
        fields = {field.name for field in dataclasses.fields(BrokerSettings)}
        settings = {"client_id": f"client-{next(numbers)}"} | {k: v for k, v in keywords.items() if k in fields}
        parse = functools.partial(BrokerSettings.parse, target) if isinstance(target, str) else target.settings
        transport = {k: v for k, v in keywords.items() if k not in fields}
        clients.append(MqttClient(loop, parse(**settings), **transport))
        return clients[-1]

    yield make
    for client in clients:
        client.transport.disconnect()
        loop.unregister(client.transport)


@pytest.fixture
def settle(loop: EventLoop) -> Callable[[float], None]:
    """Runs the loop for a while, to show that nothing (more) happens."""

    def run(seconds: float) -> None:
        end = time.monotonic() + seconds
        loop.run_until(lambda: time.monotonic() >= end, seconds)

    return run
