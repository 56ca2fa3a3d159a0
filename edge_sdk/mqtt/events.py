"""What a transport reports, and what it can be asked to do.

The state machines and their shells know these names only, so that the same code runs over paho and a real broker
and over the simulator's in-memory one. A transport keeps nothing for later: what was published or acknowledged
while there is no connection is lost like a packet on the wire, and whoever needs it sends it again.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt.meter import Meter

__all__ = [
    "Connected",
    "Delivery",
    "DisconnectReason",
    "Disconnected",
    "Listener",
    "Message",
    "Protocol",
    "Published",
    "Subscribed",
    "Transport",
    "TransportEvent",
]

Protocol = Literal["5", "3.1.1"]

DisconnectReason = Literal[
    "requested",  # disconnect() was called
    "unavailable",  # connect() did not reach a broker, or none answered in time
    "refused",  # the broker answered and refused: password, identifier, ban
    "lost",  # the connection was cut
    "keepalive",  # the broker fell silent
    "taken_over",  # another client came with the same client identifier (told apart on MQTT 5 only)
    "closed_by_broker",  # the broker said goodbye (MQTT 5 only): shutdown, quota, not authorised
    "protocol",  # bytes came that are not MQTT, or a packet over the limit
    "listener_failed",  # our own listener raised: logged, and the connection given up
]


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us; there are no subscriptions yet.

    ``packet_bytes_max`` is the largest whole packet that the broker takes, ``receive_max`` how many unacknowledged
    QoS 1 messages (MQTT 5.0 sections 3.2.2.3.3 and 3.2.2.3.6; the protocol's own limits where the broker names none).
    """

    protocol: Protocol
    packet_bytes_max: int
    receive_max: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is no connection any more, or none came about; ``error`` says what to do, None when it was asked for."""

    reason: DisconnectReason
    error: EdgeFedError | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message arrived; give it to ``Transport.acknowledge`` once it is safe (no effect unless acks are manual)."""

    topic: str
    payload: bytes
    retained: bool
    acknowledgement: int


@dataclass(frozen=True, slots=True)
class Published:
    """The broker took the message of ``token`` (QoS 1), or it left this machine (QoS 0).

    ``refused`` holds the broker's reason when it dropped the message instead (MQTT 5 only: ACL, quota), else "".
    """

    token: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker answered the subscribe of ``token``; ``refused`` names the filters that it did not grant."""

    token: int
    refused: tuple[str, ...]


TransportEvent = Connected | Disconnected | Delivery | Published | Subscribed
Listener = Callable[[TransportEvent], None]


class Message(NamedTuple):
    """A publish on its way out, as ``Transport.publish`` was given it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_seconds: int | None
    token: int


class Transport(typing.Protocol):
    """One connection to a broker, used from one thread; what happens comes to a ``Listener`` in order."""

    @property
    def meter(self) -> Meter:
        """What was sent and received so far, over all connections."""

    @property
    def waiting(self) -> int:
        """Publishes that are queued, or not answered by the broker yet."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were published and are not on the wire yet."""

    def connect(self) -> None:
        """Start to connect; ends in Connected or Disconnected, without effect while a connection is there."""

    def disconnect(self, will: bool = False) -> None:
        """Leave; with ``will`` the broker publishes our last will, as if the connection had been cut."""

    def subscribe(self, filters: Sequence[str], *, token: int = 0) -> None:
        """Subscribe to all ``filters`` at QoS 1 in one packet."""

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe from all ``filters`` in one packet."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_seconds: int | None = None,
        token: int = 0,
    ) -> None:
        """Publish, or queue behind the broker's receive maximum; raises ConfigurationError if it can never fit."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Send the PUBACK of a delivery; without effect if it was given before or belongs to a past connection."""
