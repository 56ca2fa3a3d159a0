"""One connection's life: a paho client made for it, its socket, and the notes that are taken of what happens.

paho connects, says goodbye, and keeps the connection alive, driven through its external loop. What runs in between,
messages and subscriptions with their acknowledgements, is written and read here (``packets``), because paho takes many
times as long for it. Callbacks only write down what happened; whoever steps the link hands the notes on afterwards, so
that no code of ours runs in the middle of paho's. A link is used once and then dropped with everything that it had
queued, half sent or half received.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from paho.mqtt.client import Client, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt.events import (
    Connected,
    Delivery,
    DisconnectReason,
    Message,
    Protocol,
    Published,
    Subscribed,
    TransportEvent,
)
from edge_sdk.mqtt.failures import (
    explain_goodbye,
    explain_hang_up,
    explain_loss,
    explain_no_answer,
    explain_not_mqtt,
    explain_packet_too_large,
    explain_refusal,
    explain_silence,
)
from edge_sdk.mqtt.meter import Meter
from edge_sdk.mqtt.packets import (
    PUBACK,
    PUBLISH,
    SUBACK,
    UNSUBACK,
    MalformedPacket,
    check_filter,
    decode_puback,
    decode_publish,
    decode_suback,
    encode_puback,
    encode_publish_head,
    encode_subscribe,
    encode_unsubscribe,
)
from edge_sdk.mqtt.settings import BrokerSettings
from edge_sdk.mqtt.stream import PacketTooLarge, SocketSource, Stream, tls_context

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

_PACKET_BYTES_MAX: Final = 268_435_460  # MQTT 5.0 section 2.1.4: the largest remaining length and its fixed header
_RECEIVE_MAX: Final = 65_535  # MQTT 5.0 section 3.2.2.3.3
_FAILURE, _UNSUPPORTED_VERSION, _KEEPALIVE_TIMEOUT, _DISCONNECT_WITH_WILL = 0x80, 0x84, 0x8D, 0x04  # section 2.4
_CONNACK, _TLS_ALERT, _HTTP = b"\x20", b"\x15", b"H"  # what a peer's first byte gives away
_IDENTIFIER_MAX: Final = 65_535
_PING_SHARE: Final = 7 / 8  # of the keepalive: what paho would ping after at the latest, seen an eighth before


class Connection:
    """A connection from its first byte to its end: ``open``, then ``read``, ``write`` and ``keep_alive`` until closed.

    number:  distinguishes this link's acknowledgements from those of links before
    notes:  where events are appended
    meter:  counts the bytes
    on_output:  called when bytes wait to be written
    on_pause:  called when ``paused`` may have changed
    """

    def __init__(
        self,
        settings: BrokerSettings,
        protocol: Protocol,
        *,
        number: int,
        manual_ack: bool,
        notes: deque[TransportEvent],
        meter: Meter,
        on_output: Callable[[], None],
        on_pause: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.protocol = protocol
        self.accepted = False
        self.leaving = False
        self.packet_bytes_max = _PACKET_BYTES_MAX
        self.receive_max = _RECEIVE_MAX
        self.stream: Stream | None = None
        self._number = number
        self._manual_ack = manual_ack
        self._notes = notes
        self._meter = meter
        self._output_waits = on_output
        self._pause_changed = on_pause
        self._refusal = 0
        self._silent = False
        self._ending: tuple[DisconnectReason, EdgeFedError | None] | None = None
        self._has_properties = protocol == "5"
        self._no_properties = b"\0" if self._has_properties else b""
        self._identifier = 0
        self._tokens: dict[int, int] = {}
        self._subscribes: dict[int, tuple[int, tuple[str, ...]]] = {}
        self._unsubscribes: set[int] = set()
        self._now = self._heard_at = self._spoke_at = float("-inf")
        self._unacknowledged: set[int] = set()
        self._client = self._make_client()

    def _make_client(self) -> Client:
        settings = self.settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=MQTTv5 if self.protocol == "5" else MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = settings.connect_seconds_max
        client.username_pw_set(settings.username, settings.password)
        if settings.will is not None:
            client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=settings.will.retain)
        client.on_socket_open = self._on_socket_open
        client.on_socket_register_write = self._on_output
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        return client

    # What the transport asks for.

    @property
    def closed(self) -> bool:
        return self.stream is None or self.stream.closed

    @property
    def in_flight(self) -> int:
        """Messages that were sent and not answered yet."""
        return len(self._tokens)

    @property
    def paused(self) -> bool:
        """Whether so much is unacknowledged that nothing more should be read.

        The broker should stop by itself, at our receive maximum. mosquitto 2.0.11 does not: after each PUBACK it sends
        up to a whole window more, and what waits at the broker would move into our memory.
        """
        return len(self._unacknowledged) >= 2 * self.settings.in_flight_max

    def open(self) -> None:
        """Connect and queue the CONNECT packet; raises OSError, UnicodeError, or ConfigurationError for a TLS file."""
        settings = self.settings
        context = None if settings.tls is None else tls_context(settings.tls)
        source = SocketSource(context, settings.packet_bytes_max, self._meter)
        self._client.tls_set_context(cast("ssl.SSLContext", source))
        if self.protocol == "5":
            announced = _announced(settings.in_flight_max, settings.packet_bytes_max)
            self._client.connect(
                settings.host, settings.port, settings.keepalive_seconds, clean_start=True, properties=announced
            )
        else:
            self._client.connect(settings.host, settings.port, settings.keepalive_seconds)

    def read(self) -> None:
        """Take what the socket holds."""
        stream = self.stream
        if stream is None or self.closed:
            return
        self._heard_at = self._now
        stream.open_turn()
        while not self.accepted and self._step(self._client.loop_read) and stream.has_input:
            pass
        if self.accepted and not self.closed:
            self._read_packets(stream)
        stream.close_turn()
        if self.paused:
            self._pause_changed()

    def _read_packets(self, stream: Stream) -> None:
        try:
            while (packet := stream.next_packet()) is not None:
                first, body = packet
                kind = first & 0xF0
                if kind == PUBLISH:
                    self._on_message(first, body)
                elif kind == PUBACK:
                    self._on_published(body)
                elif kind in (SUBACK, UNSUBACK):
                    self._on_subscribed(kind, body)
                else:
                    stream.lend(first, body)
                    if not self._step(self._client.loop_read):
                        return
            if stream.ended:
                self._step(self._client.loop_read)
        except MalformedPacket as error:
            _log.warning("the connection to %s ends: %s", self.settings.address, error)
            self.abort("protocol", explain_not_mqtt(self.settings))
        except OSError:
            self._step(self._client.loop_read)  # paho finds the same, and lets go of the socket

    def wants_write(self) -> bool:
        return self.stream is not None and (self.stream.has_output or self._client.want_write())

    def write(self) -> None:
        """Write what waits, as far as the socket takes it."""
        client, stream = self._client, self.stream
        if stream is None:
            return
        if stream.has_output:
            self._spoke_at = self._now
        while True:
            if client.want_write() and not self._step(client.loop_write):
                return
            try:
                if not stream.flush():
                    return
            except OSError as error:
                # What the peer said before it hung up explains more than that it has.
                self.read()
                if not self.closed:
                    stream.fail(error)
                    self.abort(*self.verdict())
                return
            if not client.want_write():
                return

    def keep_alive(self, now: float) -> None:
        """Ping after silence; end the connection when the broker has been silent for too long.

        now:  seconds on a monotonic clock; traffic is as old as the call before it, so that no other clock is read
        """
        self._now = now
        # paho knows nothing of our traffic: asked at any time, it would ping beside it.
        if now - min(self._heard_at, self._spoke_at) >= _PING_SHARE * self.settings.keepalive_seconds:
            self._step(self._client.loop_misc)

    def send(self, message: Message) -> None:
        """Queue a message; ``in_flight`` must be below the window."""
        if self.stream is None:
            return
        properties = self._no_properties
        if message.expiry_seconds is not None and self._has_properties:
            properties = b"\x05\x02" + message.expiry_seconds.to_bytes(4, "big")  # MQTT 5.0 section 3.3.2.3.3
        identifier = self._new_identifier() if message.qos else 0
        head = encode_publish_head(
            message.topic.encode(),
            len(message.payload),
            identifier=identifier,
            retain=message.retain,
            properties=properties,
        )
        self.stream.queue(head)
        self.stream.queue(message.payload)
        if identifier:
            self._tokens[identifier] = message.token
        else:
            self._notes.append(Published(message.token))
        self._output_waits()

    def subscribe(self, filters: Sequence[str], token: int) -> None:
        """Raises ValueError for a filter that MQTT does not allow."""
        names = [check_filter(name) for name in filters]
        if self.stream is not None:
            identifier = self._new_identifier()
            self._subscribes[identifier] = (token, tuple(filters))
            self.stream.queue(encode_subscribe(names, identifier, self._no_properties))
            self._output_waits()

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Raises ValueError for a filter that MQTT does not allow."""
        names = [check_filter(name) for name in filters]
        if self.stream is not None:
            identifier = self._new_identifier()
            self._unsubscribes.add(identifier)
            self.stream.queue(encode_unsubscribe(names, identifier, self._no_properties))
            self._output_waits()

    def _new_identifier(self) -> int:
        """One that nothing unanswered holds (MQTT 5.0 section 2.2.1); windows are far narrower than their number."""
        while True:
            self._identifier = self._identifier % _IDENTIFIER_MAX + 1
            held = self._tokens, self._subscribes, self._unsubscribes
            if not any(self._identifier in each for each in held):
                return self._identifier

    def acknowledge(self, number: int) -> None:
        if number not in self._unacknowledged:
            return
        was_paused = self.paused
        self._unacknowledged.discard(number)
        self._send_puback(number & 0xFFFF)
        if was_paused:
            self._pause_changed()

    def _send_puback(self, identifier: int) -> None:
        if self.stream is not None:
            self.stream.queue(encode_puback(identifier))
            self._output_waits()

    def leave(self, will: bool) -> None:
        """Write what waits and say goodbye, or (``will``) leave so that the broker publishes our last will."""
        self.leaving = True
        self._ending = self._ending or ("requested", None)
        if not self.accepted or (will and self.protocol != "5"):
            self.abort("requested", None)
            return
        if will:
            self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=_DISCONNECT_WITH_WILL))
        else:
            self._client.disconnect()
        self.write()

    def abort(self, reason: DisconnectReason, error: EdgeFedError | None) -> None:
        """Cut the connection without a word to the broker."""
        self._ending = self._ending or (reason, error)
        if self.stream is None:
            return
        self.stream.fail(ConnectionAbortedError())
        # paho lets go of a socket only by itself, on finding that it does not work any more.
        try:
            self._client.disconnect()
            self._client.loop_write()
        except Exception as failure:
            _log.debug("paho did not let go: %r", failure)
        self.stream.close()

    def give_up_waiting(self) -> None:
        """Cut a connection that was opened but never answered; ``should_fall_back`` may still find it worth a try."""
        self._silent = True
        self.abort("unavailable", explain_no_answer(self.settings))

    def should_fall_back(self, when_told: bool) -> bool:
        """Whether the broker seems not to know MQTT 5: it said so, hung up, kept silent, or answered in the older form.

        when_told:  believe only the first of these signs
        """
        if self.protocol != "5" or self.accepted or self.leaving or self.stream is None:
            return False
        if self._silent:
            return not when_told
        if self._refusal or when_told:
            return self._refusal == _UNSUPPORTED_VERSION
        return self.stream.first_bytes[:1] in (b"", _CONNACK)

    def verdict(self) -> tuple[DisconnectReason, EdgeFedError | None]:
        """Why this link has ended."""
        if self._ending is not None:
            return self._ending
        settings, stream = self.settings, self.stream
        failure = None if stream is None else stream.failure
        first_bytes = b"" if stream is None else stream.first_bytes
        if self._refusal:
            return "refused", explain_refusal(settings, self._refusal)
        if not self.accepted and first_bytes[:1] in (b"", _CONNACK, _TLS_ALERT, _HTTP):
            return "unavailable", explain_hang_up(settings, failure, first_bytes)
        if isinstance(failure, PacketTooLarge):
            return "protocol", explain_packet_too_large(settings, failure.args[0])
        if not self.accepted or (stream is not None and failure is None and not stream.ended):
            return "protocol", explain_not_mqtt(settings)
        return "lost", explain_loss(settings, failure)

    def _step(self, step: Callable[[], Any]) -> bool:
        """Let paho do something; whether the connection still stands afterwards."""
        if self.closed:
            return False
        try:
            step()
        except Exception as error:
            # paho 2.1 raises over malformed packets; another release may over what nobody has thought of.
            _log.warning("the connection to %s ends: %r", self.settings.address, error)
            self.abort("protocol", explain_not_mqtt(self.settings))
        return not self.closed

    # paho's callbacks.

    def _on_socket_open(self, _client: Client, _userdata: Any, stream: Any) -> None:
        self.stream = stream

    def _on_output(self, _client: Client, _userdata: Any, _stream: Any) -> None:
        self._output_waits()

    def _on_connect(self, _client: Client, _userdata: Any, _flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.value >= _FAILURE:
            self._refusal = code.value
            return
        if self.accepted:
            return  # A broker accepts once (MQTT 5.0 section 3.2); a second time would look like a new connection.
        self.accepted = True
        if self.stream is not None:
            self.stream.start_packets()
        self.receive_max = getattr(properties, "ReceiveMaximum", _RECEIVE_MAX)
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", _PACKET_BYTES_MAX)
        self._notes.append(Connected(self.protocol, self.packet_bytes_max, self.receive_max))

    def _on_disconnect(self, _client: Client, _userdata: Any, flags: Any, code: ReasonCode, _properties: Any) -> None:
        if self._ending is not None:
            return
        if flags.is_disconnect_packet_from_server:
            self._ending = explain_goodbye(self.settings, code.value)
        elif code.value == _KEEPALIVE_TIMEOUT:
            self._ending = ("keepalive", explain_silence(self.settings))

    # What the broker sends once it has accepted.

    def _on_message(self, first: int, body: memoryview) -> None:
        topic, payload, retained, identifier = decode_publish(first, body, self._has_properties)
        number = 0
        if identifier and self._manual_ack:
            number = self._number << 16 | identifier
            self._unacknowledged.add(number)
        self._notes.append(Delivery(topic, payload, retained, number))
        if identifier and not self._manual_ack:
            self._send_puback(identifier)

    def _on_published(self, body: memoryview) -> None:
        identifier, code = decode_puback(body)
        token = self._tokens.pop(identifier, None)
        if token is not None:
            self._notes.append(Published(token, _reason(code) if code >= _FAILURE else ""))

    def _on_subscribed(self, kind: int, body: memoryview) -> None:
        identifier, codes = decode_suback(body, self._has_properties)
        if kind == UNSUBACK:
            self._unsubscribes.discard(identifier)
            return
        asked = self._subscribes.pop(identifier, None)
        if asked is None:
            return
        token, filters = asked
        granted = [code < _FAILURE for code in codes[: len(filters)]]
        granted += [False] * (len(filters) - len(granted))
        refused = tuple(name for name, ok in zip(filters, granted, strict=True) if not ok)
        self._notes.append(Subscribed(token, refused))


def _reason(code: int) -> str:
    """The words of MQTT 5.0 section 3.4.2.1 for why a message was dropped."""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except (KeyError, ValueError):
        return f"reason code {code:#x}"


# Properties cost paho some 100 us and 4 kB apiece, and it only reads them: equal ones are shared.


@functools.lru_cache(maxsize=64)
def _announced(receive_max: int, packet_bytes_max: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = receive_max
    properties.MaximumPacketSize = packet_bytes_max
    return properties
