"""Can this device connect, what may it read and write, and is a coordinator there? Asked of the broker itself.

Reading is asked by subscribing. Writing is asked by publishing to topics that the coordinator counts or ignores; a
broker of MQTT 5 answers with a reason code, one of 3.1.1 swallows what its ACL forbids.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from edge_sdk.cli.device_config import DeviceConfig
from edge_sdk.cli.findings import EXIT_BROKER, Finding
from edge_sdk.cli.task_model import Model, fetch_model, served_of
from edge_sdk.errors import DecodeError, EdgeFedError, ProtocolError
from edge_sdk.mqtt import (
    BrokerSettings,
    Connected,
    Delivery,
    Disconnected,
    PahoTransport,
    Published,
    Subscribed,
    TransportEvent,
)
from edge_sdk.mqtt.loop import EventLoop
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import Announce, RangeData, RangeRequest
from edge_sdk.wire.topics import PROBE, Topics, client_id

__all__ = ["check_broker"]

CONNECT_SECONDS_MAX: Final = 45.0
ANSWER_SECONDS_MAX: Final = 5.0
RETAINED_SECONDS_MAX: Final = 2.0
LEAVE_SECONDS_MAX: Final = 1.0
FETCH_SECONDS_MAX: Final = 60.0
PROBE_PAYLOAD: Final = b'{"state": "check"}'

E = TypeVar("E")


class _Conversation:
    """One connection under a client identifier of its own, so that a running device keeps its."""

    def __init__(self, settings: BrokerSettings, loop: EventLoop) -> None:
        self.events: list[TransportEvent] = []
        self.transport = PahoTransport(settings, self.events.append)
        self._loop = loop
        loop.register(self.transport)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def heard(self) -> dict[str, bytes]:
        """The newest payload of each topic."""
        return {event.topic: event.payload for event in self.of(Delivery)}

    def has_on(self, topic: str, since: int) -> bool:
        """Whether something came on a topic after so many events."""
        return any(isinstance(event, Delivery) and event.topic == topic for event in self.events[since:])

    def clock(self) -> float:
        return self._loop.clock()

    def connect(self) -> bool:
        self.transport.connect()
        return self.wait(lambda: bool(self.of(Connected)), CONNECT_SECONDS_MAX)

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        return self._loop.run_until(lambda: until() or bool(self.of(Disconnected)), seconds) and until()

    def lost(self) -> Finding:
        ended = self.of(Disconnected)
        error = ended[0].error if ended else None
        return Finding("FAIL", "broker", str(error) if error else "the broker does not answer", EXIT_BROKER)


@contextmanager
def _conversation(config: DeviceConfig) -> Iterator[_Conversation]:
    own = config.broker.client_id or client_id(config.federation, config.task, config.device)
    settings = replace(config.broker, client_id=f"{own}-check")
    with EventLoop() as loop:
        talk = _Conversation(settings, loop)
        try:
            yield talk
        finally:
            talk.transport.disconnect()
            talk.wait(lambda: False, LEAVE_SECONDS_MAX)
            loop.unregister(talk.transport)


def check_broker(config: DeviceConfig) -> Generator[Finding, None, Model | None]:
    """Connect as this device would, and look around; returns the task's model where a coordinator serves it."""
    model = None
    try:
        with _conversation(config) as talk:
            if not talk.connect():
                yield talk.lost()
                return None
            connected = talk.of(Connected)[0]
            yield from _welcome(config, connected)
            yield from _reading(config, talk)
            yield from _coordinator(config, talk)
            model = yield from _model(config, talk)
        if connected.protocol == "5":
            yield from _writing(config)
        else:
            text = "unknown: this broker speaks MQTT 3.1.1 and does not say what its ACL forbids"
            yield Finding("warn", "write", text)
    except EdgeFedError as error:  # a certificate file that cannot be used
        yield Finding("FAIL", "broker", str(error), EXIT_BROKER)
    return model


def _welcome(config: DeviceConfig, connected: Connected) -> Iterator[Finding]:
    yield Finding(
        "ok",
        "broker",
        f"{config.broker.address} accepted this device; MQTT {connected.protocol}, packets of up to "
        f"{connected.packet_bytes_max} bytes",
    )
    if config.broker.username not in (None, config.device):
        yield Finding(
            "warn",
            "login",
            f"the user name {config.broker.username!r} is not the device's id {config.device!r}: the ACL that we ship "
            "lets each user speak as the device of the same name only",
        )


def _reading(config: DeviceConfig, talk: _Conversation) -> Iterator[Finding]:
    topics = Topics(config.federation)
    filters = (topics.lineage_states, topics.announce(config.task), topics.to_device(config.device, "+"))
    talk.transport.subscribe(filters)
    if not talk.wait(lambda: bool(talk.of(Subscribed)), ANSWER_SECONDS_MAX):
        yield talk.lost()
        return
    refused = talk.of(Subscribed)[0].refused
    for topic in refused:
        yield Finding("FAIL", "read", f"the broker refuses {topic}: let this device read it in the ACL", EXIT_BROKER)
    if not refused:
        yield Finding("ok", "read", f"subscribed to {', '.join(filters)}")


def _writing(config: DeviceConfig) -> Iterator[Finding]:
    """One connection for each topic: a broker may hang up over a message that it refuses (mosquitto 2.0 does)."""
    topics = Topics(config.federation)
    wanted = [topics.from_device(config.device, PROBE), topics.up(PROBE, config.device)]
    if config.publish_status:
        wanted.append(topics.status(config.device))
    for topic in wanted:
        yield _may_write(config, topic)


def _may_write(config: DeviceConfig, topic: str) -> Finding:
    with _conversation(config) as talk:
        if talk.connect():
            talk.transport.publish(topic, PROBE_PAYLOAD, token=1)
        if not talk.wait(lambda: bool(talk.of(Published)), ANSWER_SECONDS_MAX):
            return talk.lost()
        refused = talk.of(Published)[0].refused
    if refused:
        text = f"the broker refuses {topic} ({refused}): let this device write it in the ACL"
        return Finding("FAIL", "write", text, EXIT_BROKER)
    return Finding("ok", "write", f"allowed: {topic}")


def _coordinator(config: DeviceConfig, talk: _Conversation) -> Iterator[Finding]:
    topics = Topics(config.federation)
    announce = topics.announce(config.task)

    def heard(topic: str) -> bytes | None:
        return next((event.payload for event in talk.of(Delivery) if event.topic == topic), None)

    talk.wait(lambda: bool(_states(config, talk)) and heard(announce) is not None, RETAINED_SECONDS_MAX)
    states = _states(config, talk)
    if not states:
        yield Finding(
            "warn",
            "coordinator",
            f"none speaks in federation {config.federation!r}: check the name, that it is running, and that the ACL "
            f"lets this device read {topics.lineage_states}",
        )
        return
    yield _online(states, config.task)
    payload = heard(announce)
    if payload is None:
        yield Finding("warn", "task", f"federation {config.federation!r} announces no task {config.task!r}")
        return
    try:
        _, message = decode_message(payload, "announce", peer="coordinator")
    except ProtocolError as error:
        yield Finding("FAIL", "task", str(error))
        return
    if isinstance(message, Announce):
        ended = "all rounds are done" if message.phase == "done" else f"round {message.round} was announced last"
        yield Finding("ok", "task", f"{config.task}: {ended}")


def _model(config: DeviceConfig, talk: _Conversation) -> Generator[Finding, None, Model | None]:
    """What the coordinator serves, asked for as a device asks, but without a ticket."""
    if not any(state is not None and state.online and config.task in state.tasks for state in _states(config, talk)):
        return None
    topic = Topics(config.federation).task_round(config.task)
    talk.transport.subscribe((topic,))
    talk.wait(lambda: topic in talk.heard(), RETAINED_SECONDS_MAX)
    served = served_of(talk.heard().get(topic, b""))
    if served is None:
        return None
    until = talk.clock() + FETCH_SECONDS_MAX
    try:
        return fetch_model(
            served,
            lambda request, is_enough: _ranges(config, talk, request, is_enough, until),
            config.state_dir,
            config.limits.program_bytes_max,
        )
    except EdgeFedError as error:
        yield Finding("warn", "model", str(error))
        return None


def _ranges(
    config: DeviceConfig, talk: _Conversation, request: RangeRequest, is_enough: Callable[[], bool], until: float
) -> Iterator[RangeData]:
    topics = Topics(config.federation)
    inbox = topics.to_device(config.device, RangeData.kind)
    seen = len(talk.events)
    topic = topics.from_device(config.device, request.kind)
    talk.transport.publish(topic, encode_message(Envelope(config.task), request))
    while not is_enough():
        seconds = min(ANSWER_SECONDS_MAX, until - talk.clock())
        if seconds <= 0 or not talk.wait(partial(talk.has_on, inbox, seen), seconds):
            return
        arrived, seen = talk.events[seen:], len(talk.events)
        for event in arrived:
            if isinstance(event, Delivery) and event.topic == inbox:
                _, message = decode_message(event.payload, RangeData.kind, peer="coordinator")
                if isinstance(message, RangeData) and message.digest == request.digest:
                    yield message


def _states(config: DeviceConfig, talk: _Conversation) -> list[CoordinatorState | None]:
    """What coordinators have said of themselves, None for what makes no sense."""
    topics = Topics(config.federation)
    found = [(topics.parse(event.topic), event.payload) for event in talk.of(Delivery)]
    return [_state(parts[1], said) for parts, said in found if parts is not None and parts[0] == "coordinator"]


def _state(lineage: str, payload: bytes) -> CoordinatorState | None:
    try:
        return CoordinatorState.decode(payload, lineage)
    except DecodeError:
        return None


def _online(states: list[CoordinatorState | None], task: str) -> Finding:
    known = [state for state in states if state is not None]
    if not known:
        return Finding("FAIL", "coordinator", "what it publishes is no JSON of a coordinator's state")
    ours = [state for state in known if task in state.tasks]
    if any(state.online for state in ours):
        return Finding("ok", "coordinator", "online")
    if not ours:
        return Finding("warn", "coordinator", f"none that speaks here serves task {task!r}: check its name")
    return Finding("warn", "coordinator", "offline: devices wait for it")
