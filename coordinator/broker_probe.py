"""Whether a broker lets the coordinator in, and lets it do what it must: found out by doing it once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

from edge_sdk.errors import ConnectionRefused, ConnectionUnavailable, DecodeError
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
from edge_sdk.wire.topics import Topics

__all__ = ["BrokerFound", "probe_broker"]

E = TypeVar("E", Connected, Subscribed, Published)

ANSWER_SECONDS_MAX: Final = 10.0
ECHO_SECONDS_MAX: Final = 2.0
NAME: Final = "coordinator-check"
"""The device that nobody is: what is published to it reaches no one else."""


@dataclass(frozen=True, slots=True)
class BrokerFound:
    """What a broker answered.

    Attributes:
        address: ``host:port``.
        protocol: MQTT version spoken.
        echoed: Whether a message to ourselves came back.
        online: Tasks that a coordinator says that it serves, each with the lineage of its database in hexadecimal.
    """

    address: str
    protocol: str
    echoed: bool
    online: dict[str, str]


def probe_broker(settings: BrokerSettings, federation: str) -> BrokerFound:
    """Connect, subscribe to the coordinator's inboxes, publish one message to nobody, and leave.

    Args:
        settings: Address and credentials.
        federation: A checked topic segment.

    Raises:
        ConnectionUnavailable: No broker answered, or it fell silent.
        ConnectionRefused: It refused the login, a subscription or a publish.
        ConfigurationError: A file for TLS cannot be used.
    """
    with EventLoop() as loop:
        probe = _Probe(loop, replace(settings, client_id=f"edgefed-{federation}-check"), Topics(federation))
        try:
            return probe.run()
        finally:
            probe.leave()


class _Probe:
    def __init__(self, loop: EventLoop, settings: BrokerSettings, topics: Topics) -> None:
        self._loop = loop
        self._settings = settings
        self._topics = topics
        self._events: list[TransportEvent] = []
        self._transport = PahoTransport(settings, self._events.append)
        self._echo = topics.to_device(NAME, "check")
        loop.register(self._transport)

    def run(self) -> BrokerFound:
        self._transport.connect()
        connected = self._expect(Connected, 3 * self._settings.connect_seconds_max)
        inboxes = (self._topics.from_device("+", "+"), self._topics.up("+", "+"))
        self._transport.subscribe((*inboxes, self._echo, self._topics.lineage_states), token=1)
        refused = [topic for topic in self._expect(Subscribed, ANSWER_SECONDS_MAX).refused if topic in inboxes]
        if refused:
            raise ConnectionRefused(
                f"{self._settings.address}: may not subscribe to {', '.join(refused)}; add `topic readwrite fl/v1/#` "
                f"for user {self._settings.username!r} to the broker's ACL"
            )
        self._transport.publish(self._echo, b"check", token=2)
        reason = self._expect(Published, ANSWER_SECONDS_MAX).refused
        if reason:
            raise ConnectionRefused(
                f"{self._settings.address}: may not publish to {self._echo} ({reason}); add `topic readwrite fl/v1/#` "
                f"for user {self._settings.username!r} to the broker's ACL"
            )
        echoed = self._loop.run_until(lambda: self._delivered(self._echo) is not None, ECHO_SECONDS_MAX)
        return BrokerFound(self._settings.address, connected.protocol, echoed, self._served())

    def leave(self) -> None:
        self._transport.disconnect()
        self._loop.run_until(lambda: not self._transport.connected and self._transport.fileno() < 0, ECHO_SECONDS_MAX)

    def _expect(self, kind: type[E], seconds: float) -> E:
        """The first event of ``kind``, or the error of whatever came instead."""

        def found() -> list[TransportEvent]:
            return [event for event in self._events if isinstance(event, (kind, Disconnected))]

        self._loop.run_until(lambda: bool(found()), seconds)
        for event in found():
            if isinstance(event, kind):
                return event
            assert isinstance(event, Disconnected)
            raise event.error or ConnectionUnavailable(f"{self._settings.address}: it closed the connection")
        raise ConnectionUnavailable(
            f"{self._settings.address}: no answer within {seconds:g} s; is it an MQTT broker, and is it overloaded?"
        )

    def _delivered(self, topic: str) -> bytes | None:
        found = [event.payload for event in self._events if isinstance(event, Delivery) and event.topic == topic]
        return found[-1] if found else None

    def _served(self) -> dict[str, str]:
        """What the retained states say; they are JSON of whoever may write there, so they may be anything."""
        served: dict[str, str] = {}
        for event in self._events:
            parts = self._topics.parse(event.topic) if isinstance(event, Delivery) else None
            if parts is None or parts[0] != "coordinator" or not isinstance(event, Delivery):
                continue
            try:
                state = CoordinatorState.decode(event.payload, parts[1])
            except DecodeError:
                continue
            served.update(dict.fromkeys(state.tasks if state.online else (), parts[1]))
        return served
