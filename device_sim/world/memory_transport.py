"""The client's side of the in-memory broker: a ``Transport`` in virtual time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from device_sim.counters import Traffic
from device_sim.world.clock import VirtualClock
from device_sim.world.connection import Client, Connection, Packet
from device_sim.world.faults import LinkProfile, NetworkFaults
from device_sim.world.subscriber_queues import SubscriberQueues
from device_sim.world.topic_tree import is_filter
from edge_sdk.errors import ConfigurationError, ConnectionUnavailable, EdgeFedError
from edge_sdk.mqtt import (
    Connected,
    Delivery,
    Disconnected,
    DisconnectReason,
    Listener,
    Meter,
    Published,
    Subscribed,
    Will,
)
from edge_sdk.mqtt.sizes import (
    CONNACK_BYTES_MAX,
    PUBACK_BYTES,
    connect_bytes,
    publish_bytes,
    suback_bytes,
    subscribe_bytes,
)

__all__ = ["Broker", "InMemoryTransport"]

PACKET_OVERHEAD_BYTES: Final = 20  # what the paho adapter allows for, so that both refuse the same packets
CONTROL_BYTES: Final = 4
PUBLISH_OVERHEAD_BYTES: Final = 8  # fixed header, topic length, packet identifier, properties
QUEUE_MESSAGES_MAX: Final = 10_000
QUEUE_BYTES_MAX: Final = 64 << 20


class Broker(Protocol):
    """The broker's end, as far as a client's packets need it."""

    clock: VirtualClock
    faults: NetworkFaults
    desk: SubscriberQueues

    def traffic(self, client_id: str) -> Traffic:
        """Where a client's traffic is counted."""

    def open(self, transport: Client) -> Connection:
        """A client dials."""

    def on_publish(self, connection: Connection, packet: Packet, retain: bool, token: int) -> None:
        """A PUBLISH comes in."""

    def on_subscribe(self, connection: Connection, filters: tuple[str, ...], token: int) -> None:
        """A SUBSCRIBE comes in."""

    def on_unsubscribe(self, connection: Connection, filters: tuple[str, ...]) -> None:
        """An UNSUBSCRIBE comes in."""

    def on_goodbye(self, connection: Connection, will: bool) -> None:
        """A DISCONNECT comes in."""

    def on_vanish(self, connection: Connection) -> None:
        """The client's machine went dark."""


class InMemoryTransport:
    """One client; made by ``InMemoryBroker.transport``, whose arguments are documented there.

    Behaves like ``edge_sdk.mqtt.PahoTransport``: without a connection publishes, subscriptions and acknowledgements
    are dropped, as if cut off; publishes beyond the window wait here and are dropped when the connection ends. Its
    ``meter`` counts the packets by their sizes, an answer along with what it answers; there are no pings here.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        listener: Listener,
        *,
        will: Will | None,
        link: LinkProfile,
        manual_ack: bool,
        in_flight_max: int,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.link = link
        self.in_flight_max = in_flight_max
        self.meter = Meter()
        self._broker = broker
        self._desk = broker.desk
        self._clock = broker.clock
        self._traffic = broker.traffic(client_id)
        self._listener = listener
        self._manual_ack = manual_ack
        self._window = min(in_flight_max, broker.faults.receive_max)
        self._body_bytes_max = broker.faults.packet_bytes_max - PACKET_OVERHEAD_BYTES
        self._connection: Connection | None = None
        self._in_flight = 0
        self._queue: deque[tuple[Packet, bool, int]] = deque()
        self._queue_bytes = 0

    # --- the Transport interface -------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and we are not leaving."""
        connection = self._connection
        return connection is not None and connection.accepted and connection.client_open

    @property
    def waiting(self) -> int:
        """How many publishes are queued or not answered by the broker yet."""
        return len(self._queue) + self._in_flight

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the payloads that are queued."""
        return self._queue_bytes

    def connect(self) -> None:
        """Start to connect; ends in Connected or Disconnected, without effect while a connection is there."""
        if self._connection is None:
            will = self.will
            self.meter.sent += connect_bytes(self.client_id, None if will is None else (will.topic, will.payload))
            self._connection = self._broker.open(self)

    def disconnect(self, will: bool = False) -> None:
        """Leave; with ``will`` the broker publishes our last will, as if the connection had been cut."""
        connection = self._connection
        if connection is None or not connection.client_open:
            return
        clock = self._clock
        self._let_go(connection)
        self.meter.sent += CONTROL_BYTES
        goodbye_at = connection.up.arrival(clock.now, CONTROL_BYTES)
        clock.post_at(goodbye_at, self._broker.on_goodbye, connection, will)
        clock.post_at(clock.now, self._on_left, connection)

    def vanish(self) -> None:
        """Lose power: no goodbye, no event; the broker notices when the keepalive runs out."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            if connection.client_open:
                self._let_go(connection)
                self._broker.on_vanish(connection)

    def subscribe(self, filters: Sequence[str], *, token: int = 0) -> None:
        """Subscribe to all ``filters`` at QoS 1 in one packet; raises ConfigurationError for an impossible filter."""
        self._check_filters("subscribe", filters)
        connection = self._connection
        if connection is not None and self.connected and filters:
            self.meter.sent += subscribe_bytes(filters)
            self.meter.received += suback_bytes(len(filters))
            arrival = connection.up.arrival(self._clock.now, CONTROL_BYTES + sum(map(len, filters)) + 3 * len(filters))
            self._clock.post_at(arrival, self._broker.on_subscribe, connection, tuple(filters), token)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe from all ``filters`` in one packet; raises ConfigurationError for an impossible filter."""
        self._check_filters("unsubscribe", filters)
        connection = self._connection
        if connection is not None and self.connected and filters:
            self.meter.sent += subscribe_bytes(filters) - len(filters)
            self.meter.received += suback_bytes(len(filters))
            arrival = connection.up.arrival(self._clock.now, CONTROL_BYTES + sum(map(len, filters)) + 2 * len(filters))
            self._clock.post_at(arrival, self._broker.on_unsubscribe, connection, tuple(filters))

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
        """Publish, or queue while the window is full; dropped without a connection.

        Raises:
            ConfigurationError: The topic cannot be, or the packet is above the broker's maximum.
            ConnectionUnavailable: The queue is full.
        """
        if qos not in (0, 1) or not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic) > 65_535:
            raise ConfigurationError(f"publish: {topic!r} at QoS {qos}; use a topic without wildcards and QoS 0 or 1")
        connection = self._connection
        if connection is None or not connection.accepted or not connection.client_open:
            return
        body_bytes = len(topic) + len(payload)
        if body_bytes > self._body_bytes_max:
            raise ConfigurationError(
                f"a payload of {len(payload)} bytes for {topic}: too large for the simulated broker, which"
                f" takes packets of {self._broker.faults.packet_bytes_max} bytes at most; send smaller ones"
            )
        expires_at = math.inf
        if expiry_seconds is not None and self._broker.faults.protocol == "5":
            expires_at = self._clock.now + expiry_seconds
        packet = (topic, payload, qos, False, expires_at, body_bytes + PUBLISH_OVERHEAD_BYTES)
        if not self._queue and self._in_flight < self._window:
            self._send(connection, packet, retain, token)
            return
        if len(self._queue) >= QUEUE_MESSAGES_MAX or self._queue_bytes + len(payload) > QUEUE_BYTES_MAX:
            raise ConnectionUnavailable(
                f"publish to {topic}: {len(self._queue)} messages of {self._queue_bytes} bytes wait already; publish no"
                " faster than Published comes"
            )
        self._queue.append((packet, retain, token))
        self._queue_bytes += len(payload)

    def acknowledge(self, delivery: Delivery) -> None:
        """Send the PUBACK of a delivery; without effect if it was given before or belongs to a past connection."""
        connection = self._connection
        if connection is not None and delivery.acknowledgement in connection.unacknowledged:
            connection.unacknowledged.discard(delivery.acknowledgement)
            self.meter.sent += PUBACK_BYTES
            self._desk.acknowledge(connection)

    # --- packets from the broker -------------------------------------------------------------------------------------

    def on_connack(self, connection: Connection) -> None:
        """CONNACK comes in."""
        if connection.client_open:
            connection.accepted = True
            self.meter.received += CONNACK_BYTES_MAX
            self._stop_timer(connection)
            faults = self._broker.faults
            self._listener(Connected(faults.protocol, faults.packet_bytes_max, faults.receive_max))

    def on_puback(self, connection: Connection, token: int) -> None:
        """PUBACK comes in, or a QoS 0 message has left."""
        if not connection.client_open:
            return
        self._in_flight -= 1
        while self._queue and self._in_flight < self._window:
            packet, retain, waiting_token = self._queue.popleft()
            self._queue_bytes -= len(packet[1])
            self._send(connection, packet, retain, waiting_token)
        self._listener(Published(token))

    def on_suback(self, connection: Connection, token: int, refused: tuple[str, ...]) -> None:
        """SUBACK comes in."""
        if connection.client_open:
            self._listener(Subscribed(token, refused))

    def on_delivery(self, connection: Connection, packet: Packet) -> None:
        """A PUBLISH comes in."""
        if not connection.client_open:
            return
        topic, payload, qos, retained, _, size_bytes = packet
        traffic = self._traffic
        traffic.messages_down += 1
        traffic.bytes_down += size_bytes
        self.meter.received += publish_bytes(topic, len(payload), qos)
        number = 0
        if qos and self._manual_ack:
            number = next(self._desk.numbers)
            connection.unacknowledged.add(number)
        elif qos:
            self.meter.sent += PUBACK_BYTES
            self._desk.acknowledge(connection)
        self._listener(Delivery(topic, payload, retained, number))

    def on_closed(self, connection: Connection, reason: DisconnectReason, error: EdgeFedError) -> None:
        """The connection is found to be gone, or none came about."""
        self._let_go(connection)
        self._connection = None
        self._listener(Disconnected(reason, error))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send(self, connection: Connection, packet: Packet, retain: bool, token: int) -> None:
        clock, lane, size_bytes = self._clock, connection.up, packet[5]
        traffic = self._traffic
        traffic.messages_up += 1
        traffic.bytes_up += size_bytes
        self.meter.sent += publish_bytes(packet[0], len(packet[1]), packet[2])
        self.meter.received += PUBACK_BYTES if packet[2] else 0
        self._in_flight += 1
        clock.post_at(lane.arrival(clock.now, size_bytes), self._broker.on_publish, connection, packet, retain, token)
        if not packet[2]:
            clock.post_at(lane.free_at, self.on_puback, connection, token)

    def _on_left(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._listener(Disconnected("requested", None))

    def _let_go(self, connection: Connection) -> None:
        connection.client_open = False
        connection.unacknowledged.clear()
        self._stop_timer(connection)
        self._in_flight = 0
        self._queue.clear()
        self._queue_bytes = 0

    def _stop_timer(self, connection: Connection) -> None:
        if connection.connect_timer is not None:
            self._clock.cancel(connection.connect_timer)
            connection.connect_timer = None

    @staticmethod
    def _check_filters(what: str, filters: Sequence[str]) -> None:
        wrong = [pattern for pattern in filters if not is_filter(pattern)]
        if wrong:
            raise ConfigurationError(
                f"{what}: MQTT does not allow {wrong!r}; wildcards fill whole levels, # comes last"
            )
