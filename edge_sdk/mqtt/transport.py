"""PahoTransport: the ``Transport`` over paho-mqtt, driven by somebody else's loop.

Rules that the code below and ``connection`` keep:

* Every connection is a new link with a clean start. After a reconnect nothing old is sent: retransmission belongs
  to the session alone.
* The listener is called outside paho, so that it may publish, disconnect or raise.
* Nothing from the network raises; strange bytes end the connection with the reason ``protocol``.
* Our own window and queue stand before paho's: they follow the broker's Receive Maximum, and are bounded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import ConfigurationError, ConnectionUnavailable, EdgeFedError
from edge_sdk.mqtt.events import Delivery, Disconnected, DisconnectReason, Listener, Message, Protocol, TransportEvent
from edge_sdk.mqtt.failures import explain_unreachable
from edge_sdk.mqtt.meter import Meter
from edge_sdk.mqtt.settings import BrokerSettings

if TYPE_CHECKING:
    from edge_sdk.mqtt.connection import Connection

__all__ = ["PahoTransport"]

_log = logging.getLogger(__name__)

_LEAVING_SECONDS_MAX: Final = 5.0
# Some brokers of 3.1.1 neither answer a CONNECT of MQTT 5 nor hang up: amqtt 0.12 takes its properties for a name.
_PROBE_SECONDS_MAX: Final = 2.0
_PACKET_OVERHEAD_BYTES: Final = 20  # fixed header, packet identifier, topic length and properties, rounded up


class PahoTransport:
    """One connection to a broker without a thread: a loop watches ``fileno()`` and calls the ``on_`` methods.

    settings, listener:  the broker, and who is told what happens
    manual_ack:  deliveries are acknowledged by ``acknowledge()``, not as they come
    queue_messages_max, queue_bytes_max:  publishes that may wait behind the window

    ``watcher`` is called with the transport whenever the loop should look at it again: its socket came or went,
    bytes wait to be written, or events wait to be told (``on_writable`` does both). ``connections`` counts the
    sockets, so that a loop can tell a new one with the same number from the old; ``meter`` counts their bytes. Time
    comes in with ``on_timer(now)``, about once a second.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        listener: Listener,
        *,
        manual_ack: bool = False,
        queue_messages_max: int = 100_000,
        queue_bytes_max: int = 64 << 20,
    ) -> None:
        self.settings = settings
        self.watcher: Callable[[PahoTransport], None] | None = None
        self.connections = 0
        self.meter = Meter()
        self._listener = listener
        self._manual_ack = manual_ack
        self._queue_messages_max = queue_messages_max
        self._queue_bytes_max = queue_bytes_max
        self._spoken: Protocol | None = None
        self._connection: Connection | None = None
        self._events: deque[TransportEvent] = deque()
        self._dispatching = False
        self._reading = False
        self._queue: deque[Message] = deque()
        self._queue_bytes = 0
        self._deadline: float | None = None
        self._keep_alive_at = 0.0

    # The Transport interface.

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and we are not leaving."""
        return self._connection is not None and self._connection.accepted and not self._connection.leaving

    @property
    def waiting(self) -> int:
        """How many publishes are queued or not answered by the broker yet."""
        return len(self._queue) + (self._connection.in_flight if self._connection is not None else 0)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were given to ``publish`` and are not on the wire yet; of those in the queue payloads only."""
        stream = None if self._connection is None else self._connection.stream
        return self._queue_bytes + (0 if stream is None else stream.waiting_bytes)

    def connect(self) -> None:
        """Connect; blocks for the name look-up, TCP and TLS at most, and raises ConfigurationError for a bad TLS file.

        The outcome comes as an event from a later ``on_`` call. Without effect while a connection is there.
        """
        if self._connection is None:
            wanted = self.settings.protocol
            self._open(wanted if wanted != "auto" else self._spoken or "5")

    def disconnect(self, will: bool = False) -> None:
        """Leave at once: what the window held back is dropped, the rest is written first (as far as it goes).

        will:  let the broker publish our last will, as if the connection had been cut
        """
        if self._connection is not None and not self._connection.leaving:
            self._deadline = None
            self._connection.leave(will)
            self._settle()
            self._wake()

    def subscribe(self, filters: Sequence[str], *, token: int = 0) -> None:
        """Subscribe to all ``filters`` at QoS 1 in one packet; dropped without a connection.

        Raises ConfigurationError for a filter that MQTT does not allow, or too many for one packet.
        """
        connection = self._connected_link()
        if connection is not None and filters:
            self._check_size(
                connection, sum(len(name.encode()) + 3 for name in filters), f"{len(filters)} subscriptions"
            )
            try:
                connection.subscribe(filters, token)
            except ValueError as error:
                raise ConfigurationError(f"subscribe: MQTT does not allow {list(filters)!r} ({error})") from None

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe from all ``filters`` in one packet; dropped without a connection."""
        connection = self._connected_link()
        if connection is not None and filters:
            self._check_size(
                connection, sum(len(name.encode()) + 2 for name in filters), f"{len(filters)} subscriptions"
            )
            try:
                connection.unsubscribe(filters)
            except ValueError as error:
                raise ConfigurationError(f"unsubscribe: MQTT does not allow {list(filters)!r} ({error})") from None

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
        """Publish, or queue while the window is full; without a connection the message is dropped, as if cut off.

        topic, payload:  where to and what, at most the broker's ``packet_bytes_max`` together
        qos:  0 or 1
        expiry_seconds:  the broker drops the message after that (MQTT 5 only; ignored on 3.1.1)
        token:  comes back in Published

        Raises ConfigurationError for a topic that cannot be and for a packet above the broker's maximum,
        ConnectionUnavailable when the queue is full.
        """
        if qos not in (0, 1) or not topic or "+" in topic or "#" in topic or "\0" in topic:
            raise ConfigurationError(f"publish: {topic!r} at QoS {qos}; use a topic without wildcards and QoS 0 or 1")
        if expiry_seconds is not None and not 1 <= expiry_seconds <= 0xFFFFFFFF:
            raise ConfigurationError(f"publish: expiry_seconds {expiry_seconds!r}; use a whole number from 1, or None")
        connection = self._connected_link()
        if connection is None:
            return
        self._check_size(
            connection, len(topic.encode()) + len(payload), f"a payload of {len(payload)} bytes for {topic}"
        )
        message = Message(topic, payload, qos, retain, expiry_seconds, token)
        if not self._queue and connection.in_flight < self._window(connection):
            connection.send(message)
            return
        if len(self._queue) >= self._queue_messages_max or self._queue_bytes + len(payload) > self._queue_bytes_max:
            raise ConnectionUnavailable(
                f"publish to {topic}: {len(self._queue)} messages of {self._queue_bytes} bytes wait already for"
                f" {self.settings.address}; publish no faster than Published comes, or raise queue_messages_max and"
                " queue_bytes_max"
            )
        self._queue.append(message)
        self._queue_bytes += len(payload)

    def acknowledge(self, delivery: Delivery) -> None:
        """Send the PUBACK; without effect if it was sent, or if the delivery belongs to a past connection."""
        if self._connection is not None:
            self._connection.acknowledge(delivery.acknowledgement)

    # What a loop calls.

    def fileno(self) -> int:
        """The socket's number, or -1 while there is none."""
        stream = None if self._connection is None else self._connection.stream
        return -1 if stream is None else stream.fileno()

    def wants_read(self) -> bool:
        """Whether to watch for incoming bytes; not while too many deliveries are unacknowledged."""
        return self._connection is not None and not self._connection.paused

    def wants_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._connection is not None and self._connection.wants_write()

    def on_readable(self) -> None:
        """Read what came, tell the listener, and write what it has to say to that."""
        if self._connection is None:
            return
        self._reading = True
        try:
            self._connection.read()
            self._settle()
            self._dispatch()
        finally:
            self._reading = False
        if self.wants_write():
            self._connection.write()
            self._settle()
            if self.wants_write():
                self._wake()

    def on_writable(self) -> None:
        """Write what waits, and tell the listener what it has not heard yet."""
        if self._connection is not None:
            self._connection.write()
        self._settle()
        self._dispatch()

    def on_timer(self, now: float) -> None:
        """Keep the connection alive, give up what takes too long.

        now:  seconds on a monotonic clock
        """
        connection = self._connection
        if connection is not None and connection.accepted and not connection.leaving:
            if now < self._keep_alive_at:
                return
            self._keep_alive_at = now + self.settings.keepalive_seconds / 8
            connection.keep_alive(now)
        elif connection is not None:
            self._check_deadline(connection, now)
        elif not self._events:
            return
        self._settle()
        self._dispatch()

    # Inside.

    def _open(self, protocol: Protocol) -> None:
        from edge_sdk.mqtt.connection import Connection

        self.connections += 1
        self._deadline = None
        self._keep_alive_at = 0.0
        connection = Connection(
            self.settings,
            protocol,
            number=self.connections,
            manual_ack=self._manual_ack,
            notes=self._events,
            meter=self.meter,
            on_output=self._note_output,
            on_pause=self._wake,
        )
        try:
            connection.open()
        except (OSError, ValueError) as error:
            self._report("unavailable", explain_unreachable(self.settings, error))
            return
        self._connection = connection
        self._wake()

    def _connected_link(self) -> Connection | None:
        return self._connection if self.connected else None

    def _window(self, connection: Connection) -> int:
        return min(self.settings.in_flight_max, connection.receive_max)

    def _check_size(self, connection: Connection, body_bytes: int, what: str) -> None:
        if body_bytes + _PACKET_OVERHEAD_BYTES > connection.packet_bytes_max:
            raise ConfigurationError(
                f"{what}: too large for {self.settings.address}, which takes packets of {connection.packet_bytes_max} "
                "bytes at most; send smaller ones, or raise the broker's maximum packet size"
            )

    def _check_deadline(self, connection: Connection, now: float) -> None:
        if self._deadline is None:
            patience = _LEAVING_SECONDS_MAX if connection.leaving else self.settings.connect_seconds_max
            if self._is_probe(connection):
                patience = min(patience, _PROBE_SECONDS_MAX)
            self._deadline = now + patience
        elif now >= self._deadline:
            connection.give_up_waiting()

    def _is_probe(self, connection: Connection) -> bool:
        return self.settings.protocol == "auto" and connection.protocol == "5" and self._spoken is None

    def _settle(self) -> None:
        """Follow what the last step did: the link's end, or room in its window."""
        connection = self._connection
        if connection is None:
            return
        if connection.closed:
            self._connection = None
            self._queue.clear()
            self._queue_bytes = 0
            if self.settings.protocol == "auto" and connection.should_fall_back(when_told=self._spoken is not None):
                self._open("3.1.1")
            else:
                if not connection.accepted:
                    self._spoken = None  # Perhaps another broker answers there now.
                self._report(*connection.verdict())
        elif connection.accepted and not connection.leaving:
            self._spoken = connection.protocol
            while self._queue and connection.in_flight < self._window(connection):
                message = self._queue.popleft()
                self._queue_bytes -= len(message.payload)
                connection.send(message)

    def _report(self, reason: DisconnectReason, error: EdgeFedError | None) -> None:
        self._events.append(Disconnected(reason, error))
        self._wake()

    def _note_output(self) -> None:
        if not self._reading:
            self._wake()

    def _wake(self) -> None:
        if self.watcher is not None:
            self.watcher(self)

    def _dispatch(self) -> None:
        """Tell the listener what has happened up to now; what happens meanwhile waits for the next turn."""
        if self._dispatching or not self._events:
            return
        self._dispatching = True
        try:
            for _ in range(len(self._events)):
                event = self._events.popleft()
                try:
                    self._listener(event)
                except Exception:
                    _log.exception("the listener of %r failed on %s", self.settings.client_id, type(event).__name__)
                    self._give_up()
        finally:
            self._dispatching = False
        if self._events:
            self._wake()

    def _give_up(self) -> None:
        if self._connection is not None:
            error = EdgeFedError("our own code failed on what the broker sent; the log has the traceback")
            self._connection.abort("listener_failed", error)
            self._settle()
