"""One connection's life with paho: a client made for it, its socket, and the notes that its callbacks take.

paho is driven through its external loop. Its callbacks only write down what happened; whoever steps the link hands
the notes on afterwards, so that no code of ours runs in the middle of paho's. A link is used once and then dropped
with everything that it had queued, half sent or half received.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from paho.mqtt.client import Client, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

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
from edge_sdk.mqtt.settings import BrokerSettings
from edge_sdk.mqtt.stream import PacketTooLarge, SocketSource, Stream, tls_context

if TYPE_CHECKING:
    import ssl

__all__ = ["Link"]

_log = logging.getLogger(__name__)

_PACKET_BYTES_MAX: Final = 268_435_460  # MQTT 5.0 section 2.1.4: the largest remaining length and its fixed header
_RECEIVE_MAX: Final = 65_535  # MQTT 5.0 section 3.2.2.3.3
_FAILURE, _UNSUPPORTED_VERSION, _KEEPALIVE_TIMEOUT, _DISCONNECT_WITH_WILL = 0x80, 0x84, 0x8D, 0x04  # section 2.4
_CONNACK, _TLS_ALERT, _HTTP = b"\x20", b"\x15", b"H"  # what a peer's first byte gives away


class Link:
    """A connection from its first byte to its end: ``open``, then ``read``, ``write`` and ``keep_alive`` until closed.

    number:  distinguishes this link's acknowledgements from those of links before
    notes:  where events are appended
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
        self._output_waits = on_output
        self._pause_changed = on_pause
        self._refusal = 0
        self._silent = False
        self._ending: tuple[DisconnectReason, EdgeFedError | None] | None = None
        self._tokens: dict[int, int] = {}
        self._subscribes: dict[int, tuple[int, tuple[str, ...]]] = {}
        self._unacknowledged: set[int] = set()
        self._client = self._make_client()

    def _make_client(self) -> Client:
        settings = self.settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=MQTTv5 if self.protocol == "5" else MQTTv311,
            reconnect_on_failure=False,
            manual_ack=self._manual_ack,
        )
        client.connect_timeout = settings.connect_seconds_max
        client.max_inflight_messages = 0  # The transport's window is narrower; paho's walks its queue at each PUBACK.
        client.max_queued_messages = settings.in_flight_max
        client.username_pw_set(settings.username, settings.password)
        if settings.will is not None:
            client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=settings.will.retain)
        client.on_socket_open = self._on_socket_open
        client.on_socket_register_write = self._on_output
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
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
        source = SocketSource(context, settings.packet_bytes_max)
        self._client.tls_set_context(cast("ssl.SSLContext", source))
        if self.protocol == "5":
            announced = _announced(settings.in_flight_max, settings.packet_bytes_max)
            self._client.connect(
                settings.host, settings.port, settings.keepalive_seconds, clean_start=True, properties=announced
            )
        else:
            self._client.connect(settings.host, settings.port, settings.keepalive_seconds)

    def read(self) -> None:
        """Let paho take what the socket holds."""
        stream = self.stream
        if stream is None or self.closed:
            return
        stream.open_turn()
        while self._step(self._client.loop_read) and stream.has_input:
            pass
        stream.close_turn()
        if self.paused:
            self._pause_changed()

    def wants_write(self) -> bool:
        return self.stream is not None and (self.stream.has_output or self._client.want_write())

    def write(self) -> None:
        """Write what waits, as far as the socket takes it."""
        client, stream = self._client, self.stream
        if stream is None:
            return
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

    def keep_alive(self) -> None:
        """Ping after silence; end the connection when the broker has been silent for too long."""
        self._step(self._client.loop_misc)

    def send(self, message: Message) -> None:
        """Hand a message to paho; ``in_flight`` must be below the window."""
        properties = None
        if message.expiry_seconds is not None and self.protocol == "5":
            properties = _expiring(message.expiry_seconds)
        # A packet identifier may still be held by a message that was never answered: then the next one is tried.
        for _ in range(self.settings.in_flight_max + 1):
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
            if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._tokens[info.mid] = message.token
                return

    def subscribe(self, filters: Sequence[str], token: int) -> None:
        """Raises ValueError for a filter that MQTT does not allow."""
        options: Any = SubscribeOptions(qos=1) if self.protocol == "5" else 1
        _, mid = self._client.subscribe([(name, options) for name in filters])
        if mid is not None:
            self._subscribes[mid] = (token, tuple(filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Raises ValueError for a filter that MQTT does not allow."""
        self._client.unsubscribe(list(filters))

    def acknowledge(self, number: int) -> None:
        if number not in self._unacknowledged:
            return
        was_paused = self.paused
        self._unacknowledged.discard(number)
        self._client.ack(number & 0xFFFF, 1)
        if was_paused:
            self._pause_changed()

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

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        if not self.accepted:
            return
        number = 0
        if self._manual_ack and message.qos == 1:
            number = self._number << 16 | message.mid
            self._unacknowledged.add(number)
        self._notes.append(Delivery(message.topic, bytes(message.payload), message.retain, number))

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        token = self._tokens.pop(mid, None)
        if token is not None:
            self._notes.append(Published(token, str(code) if code.value >= _FAILURE else ""))

    def _on_subscribe(
        self, _client: Client, _userdata: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        asked = self._subscribes.pop(mid, None)
        if asked is None:
            return
        token, filters = asked
        granted = [code.value < _FAILURE for code in codes[: len(filters)]]
        granted += [False] * (len(filters) - len(granted))
        refused = tuple(name for name, ok in zip(filters, granted, strict=True) if not ok)
        self._notes.append(Subscribed(token, refused))


# Properties cost paho some 100 us and 4 kB apiece, and it only reads them: equal ones are shared.


@functools.lru_cache(maxsize=64)
def _announced(receive_max: int, packet_bytes_max: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = receive_max
    properties.MaximumPacketSize = packet_bytes_max
    return properties


@functools.lru_cache(maxsize=64)
def _expiring(seconds: int) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = seconds
    return properties
