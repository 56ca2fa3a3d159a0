"""The socket that paho reads from and writes to, with buffers in between.

paho reads a packet's header byte by byte, writes each packet with a call of its own, takes packets of any length, and
does not tell why a connection ended. ``Stream`` reads much at once and hands it out in the pieces that paho asks for,
collects what is written until it is flushed (a burst of acknowledgements leaves as one segment), refuses a packet
over the limit before any of it is kept, and remembers what went wrong.

Once the broker has accepted (``start_packets``) it hands out whole packets to the link; paho reads only those that the
link lends it.

It reaches paho through the one public place where paho takes a socket from somebody else: its TLS context, asked by
``wrap_socket``. ``SocketSource`` answers that call for plain TCP too.
"""

from __future__ import annotations

import functools
import socket
import ssl
import threading
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt.meter import Meter
from edge_sdk.mqtt.packets import MalformedPacket
from edge_sdk.mqtt.settings import TlsSettings
from edge_sdk.mqtt.sizes import (
    TLS_CHAIN_CERTIFICATES,
    TLS_HANDSHAKE_BYTES,
    TLS_RECORD_BYTES,
    TLS_RECORD_BYTES_MAX,
)

__all__ = ["PacketTooLarge", "SocketSource", "Stream", "tls_context"]

_FILL_BYTES: Final = 256 << 10
_OUTBOX_BYTES_MAX: Final = 256 << 10
_TLS_FILLS_PER_TURN: Final = 16  # TLS hands out 16 kB at a time.
_NOTHING: Final = memoryview(b"")


class _Scratch(threading.local):
    """One buffer for all streams of a thread: paho takes all that a turn has read before the turn ends."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_FILL_BYTES))


_scratch = _Scratch()


class PacketTooLarge(OSError):
    """The peer announced a packet of more bytes than we take."""


class Stream:
    """A non-blocking socket with a bounded inbox and outbox (paho's SocketLike, and what the transport adds)."""

    __slots__ = (
        "_filled",
        "_fills_left",
        "_inbox",
        "_lent",
        "_meter",
        "_outbox",
        "_packet_bytes_max",
        "_packets",
        "_record_bytes",
        "_socket",
        "_taken",
        "_tls",
        "closed",
        "ended",
        "failure",
        "first_bytes",
    )

    def __init__(self, connection: socket.socket, packet_bytes_max: int, meter: Meter) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._meter = meter
        self._record_bytes = 0
        self._tls = connection if isinstance(connection, ssl.SSLSocket) else None
        self._packet_bytes_max = packet_bytes_max
        self._inbox = _NOTHING
        self._taken = self._filled = 0
        self._fills_left = 0
        self._outbox = bytearray()
        self._packets = False
        self._lent = _NOTHING
        self.first_bytes = b""
        self.failure: OSError | None = None
        self.ended = False
        self.closed = False

    # What paho calls.

    def recv(self, wanted: int) -> bytes | memoryview:
        if wanted > self._packet_bytes_max:
            raise self.fail(PacketTooLarge(wanted))
        if self._packets:
            return self._recv_lent(wanted)
        if self._taken >= self._filled:
            self._fill()
        start = self._taken
        self._taken = end = min(start + wanted, self._filled)
        return self._inbox[start:end]

    def _fill(self) -> None:
        """Read ahead, as much as there is, into the inbox; leave it empty at the end of the stream."""
        if self.failure is not None:
            raise self.failure
        if self._fills_left <= 0:
            raise BlockingIOError
        self._fills_left -= 1
        try:
            count = self._socket.recv_into(_scratch.view)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._fills_left = 0
            raise
        except OSError as error:
            raise self.fail(error) from None
        self._meter.received += count
        self._meter.tls += self._record_bytes  # OpenSSL gives out one record at a time, and takes one
        self.ended = count == 0
        self._inbox, self._taken, self._filled = _scratch.view, 0, count
        if not self.first_bytes:
            self.first_bytes = bytes(self._inbox[: min(count, 8)])

    def _recv_lent(self, wanted: int) -> memoryview:
        if not self._lent and self.failure is not None:
            raise self.failure
        if not self._lent and not self.ended:
            raise BlockingIOError
        data, self._lent = self._lent[:wanted], self._lent[wanted:]
        return data

    def send(self, data: bytes | bytearray) -> int:
        if self.failure is not None:
            raise self.failure
        if len(self._outbox) >= _OUTBOX_BYTES_MAX:
            raise BlockingIOError
        self._outbox += data
        return len(data)

    def close(self) -> None:
        try:
            self.flush()
        except OSError:
            pass  # The connection is over either way.
        self._socket.close()
        self.closed = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def do_handshake(self) -> None:
        if self._tls is None:
            return
        self._meter.tls += TLS_HANDSHAKE_BYTES
        try:
            self._tls.do_handshake()
        except OSError:
            self._tls.close()
            raise
        self._meter.tls += TLS_CHAIN_CERTIFICATES * len(self._tls.getpeercert(binary_form=True) or b"")
        self._record_bytes = TLS_RECORD_BYTES.get(self._tls.version() or "", TLS_RECORD_BYTES_MAX)

    def pending(self) -> int:
        return self._filled - self._taken

    # What the transport calls.

    def open_turn(self) -> None:
        """Allow this turn's reads: the socket was reported readable."""
        self._fills_left = 1 if self._tls is None else _TLS_FILLS_PER_TURN

    def start_packets(self) -> None:
        """From now on only ``next_packet`` reads, and paho gets what is lent to it."""
        self._packets = True

    def next_packet(self) -> tuple[int, memoryview] | None:
        """First byte and body of the next packet, None until all of it is here; the body is valid in this turn only.

        Raises:
            OSError: The connection is broken, or a packet is above the limit; ``failure`` says the same.
            MalformedPacket: What stands there is no packet.
        """
        while True:
            inbox, start, end = self._inbox, self._taken, self._filled
            size, at, shift = 0, start + 1, 0
            while at < end:
                octet = inbox[at]
                at += 1
                size |= (octet & 0x7F) << shift
                if octet < 0x80:
                    if at - start + size > self._packet_bytes_max:
                        raise self.fail(PacketTooLarge(size))
                    if at + size <= end:
                        self._taken = at + size
                        return inbox[start], inbox[at : at + size]
                    break
                shift += 7
                if shift > 21:
                    raise MalformedPacket("a length of more than four bytes")
            if not self._fill_more():
                return None

    def lend(self, first: int, body: memoryview) -> None:
        """Have paho read this packet."""
        octets, size = bytearray((first,)), len(body)
        while size >= 0x80:
            octets.append(size & 0x7F | 0x80)
            size >>= 7
        octets.append(size)
        self._lent = memoryview(bytes(octets) + body)

    def queue(self, data: bytes) -> None:
        """Write ``data``, whole packets, with the next flush; whoever calls keeps to a window."""
        if self.failure is None:
            self._outbox += data

    def _fill_more(self) -> bool:
        """Read behind the beginning of a packet that waits in the inbox; False if there is nothing to read now."""
        if self.failure is None and (self.ended or self._fills_left <= 0):
            return False
        rest = bytes(self._inbox[self._taken : self._filled])
        try:
            self._fill()
        except BlockingIOError:
            return False
        if rest:
            self._inbox = memoryview(rest + self._inbox[: self._filled])
            self._taken, self._filled = 0, len(self._inbox)
        return not self.ended

    def close_turn(self) -> None:
        """No more reads until the next turn; what paho has not taken yet moves out of the shared buffer."""
        self._fills_left = 0
        if self.has_input:
            rest = memoryview(bytes(self._inbox[self._taken : self._filled]))
            self._inbox, self._taken, self._filled = rest, 0, len(rest)

    @property
    def has_input(self) -> bool:
        """Whether bytes that were read ahead wait for paho."""
        return self._taken < self._filled

    @property
    def has_output(self) -> bool:
        """Whether bytes wait for the socket."""
        return bool(self._outbox)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for the socket."""
        return len(self._outbox)

    def flush(self) -> bool:
        """Send what waits; True when nothing is left, False when the socket is full. Raises OSError."""
        while self._outbox:
            if self.failure is not None:
                raise self.failure
            try:
                sent = self._socket.send(self._outbox)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            del self._outbox[:sent]
            self._meter.sent += sent
            self._meter.tls += self._record_bytes
        return True

    def fail(self, error: OSError) -> OSError:
        """Make every further call raise ``error`` (or the first one given), and forget what waits."""
        if self.failure is None:
            self.failure = error
        self._inbox, self._taken, self._filled = _NOTHING, 0, 0
        self._outbox.clear()
        return self.failure


class SocketSource:
    """Stands where paho expects a TLS context, and wraps plain and TLS connections alike."""

    check_hostname = True  # paho asks: the context checks the name itself, so that paho need not.

    def __init__(self, context: ssl.SSLContext | None, packet_bytes_max: int, meter: Meter) -> None:
        self._context = context
        self._packet_bytes_max = packet_bytes_max
        self._meter = meter

    def wrap_socket(
        self, sock: socket.socket, *, server_hostname: str | None = None, do_handshake_on_connect: bool = False
    ) -> Stream:
        if self._context is not None:
            sock = self._context.wrap_socket(
                sock, server_hostname=server_hostname, do_handshake_on_connect=do_handshake_on_connect
            )
        return Stream(sock, self._packet_bytes_max, self._meter)


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for ``settings``; thousands of connections share one, a renewed certificate makes another.

    Raises ConfigurationError when a file is missing or is not what it should be.
    """
    stamps = []
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(settings, name)
        try:
            stamps.append(Path(path).stat().st_mtime_ns if path is not None else 0)
        except OSError as error:
            raise ConfigurationError(f"{name}: {path} cannot be read ({error.strerror}); check the path") from None
    return _tls_context(settings, tuple(stamps))


@functools.lru_cache(maxsize=8)
def _tls_context(settings: TlsSettings, _stamps: tuple[int, ...]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"ca_file: {settings.ca_file} holds no PEM certificate ({error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file is not None:
        try:
            # An empty password makes a locked key an error instead of a question on the terminal.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cert_file, key_file: {settings.cert_file} and {settings.key_file} are no pair of certificate and key"
                f" in PEM form without a password ({error})"
            ) from None
    return context
