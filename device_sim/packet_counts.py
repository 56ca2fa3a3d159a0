"""What MQTT packets say and weigh: the bytes between clients and a broker, by kind of message.

``PacketCounts`` is handed the bytes of each connection as a proxy sees them (``CountingProxy(watch=...)``). It follows
MQTT 3.1.1 and 5 far enough to tell packets apart, and books an acknowledgement with the message that it answers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Final

from edge_sdk.wire.topics import Topics

__all__ = ["DOWN", "UP", "Bytes", "PacketCounts"]

UP: Final = "up"
"""From a client to the broker."""
DOWN: Final = "down"

CONNECT: Final = 1
PUBLISH: Final = 3
PUBACK: Final = 4
ACKNOWLEDGEMENTS: Final = {PUBACK: PUBLISH, 9: 8, 11: 10}
"""Packet types (MQTT 5.0, section 2.1.2) that answer another one, and which."""
NAMES: Final = {1: "connect", 2: "connect", 8: "subscribe", 10: "subscribe", 12: "ping", 13: "ping", 14: "connect"}
MQTT_5: Final = 5


@dataclass(slots=True)
class Bytes:
    """One kind of message in one direction.

    Attributes:
        packets: How many, without acknowledgements.
        header: Bytes of fixed headers, lengths, identifiers and properties.
        topic: Bytes of topics; of subscriptions their filters.
        payload: Bytes of payloads.
        acknowledgements: Bytes of the answers, which travel the other way.
    """

    packets: int = 0
    header: int = 0
    topic: int = 0
    payload: int = 0
    acknowledgements: int = 0

    @property
    def total(self) -> int:
        """All bytes, both ways."""
        return self.header + self.topic + self.payload + self.acknowledgements

    def __sub__(self, other: Bytes) -> Bytes:
        return Bytes(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))


class _Connection:
    """Both directions of one connection: what has come of the next packet, and what waits for its answer."""

    def __init__(self) -> None:
        self.rest = {UP: bytearray(), DOWN: bytearray()}
        self.unanswered: dict[tuple[str, int, int], Bytes] = {}
        self.has_properties = True


class PacketCounts:
    """Bytes by kind and direction, over all connections.

    Args:
        federation: Whose topics they are.
    """

    def __init__(self, federation: str) -> None:
        self._topics = Topics(federation)
        self._connections: dict[int, _Connection] = {}
        self._counts: defaultdict[tuple[str, str], Bytes] = defaultdict(Bytes)

    def __call__(self, connection: int, way: str, data: bytes) -> None:
        """Takes what has come on a connection; ``way`` is ``UP`` or ``DOWN``."""
        known = self._connections.setdefault(connection, _Connection())
        rest = known.rest[way]
        rest += data
        while (packet := _next_packet(rest)) is not None:
            first, head, body = packet
            del rest[: head + len(body)]
            self._note(known, way, first, head, body)

    def snapshot(self) -> dict[tuple[str, str], Bytes]:
        """The counts up to now, by kind and direction."""
        return {key: found - Bytes() for key, found in list(self._counts.items())}

    def _note(self, connection: _Connection, way: str, first: int, head: int, body: bytes) -> None:
        kind, size = first >> 4, head + len(body)
        if kind == CONNECT:
            connection.has_properties = body[6] == MQTT_5
        if kind in ACKNOWLEDGEMENTS:
            key = (DOWN if way == UP else UP, ACKNOWLEDGEMENTS[kind], _number(body, 0))
            answered = connection.unanswered.pop(key, None)
            if answered is not None:
                answered.acknowledgements += size
                return
        if kind == PUBLISH:
            length = _number(body, 0)
            found = self._counts[self._kind(body[2 : 2 + length].decode()), way]
            at = 2 + length
            if first & 0x06:
                connection.unanswered[way, kind, _number(body, at)] = found
                at += 2
            if connection.has_properties:
                at += 1 + body[at]
            found.topic += length
            found.header += head + at - length
            found.payload += len(body) - at
        else:
            found = self._counts[NAMES.get(kind, "other"), way]
            if kind in ACKNOWLEDGEMENTS.values():
                connection.unanswered[way, kind, _number(body, 0)] = found
                filters = len(body) - 2
                found.topic += filters
                found.header += size - filters
            else:
                found.header += size
        found.packets += 1

    def _kind(self, topic: str) -> str:
        match self._topics.parse(topic):
            case ("to" | "from", _, kind):
                return kind
            case ("tasks", _, kind):
                return kind
            case ("up", _, _):
                return "chunk"
            case ("status", _):
                return "status"
            case ("coordinator", _, kind):
                return f"coordinator {kind}"
            case ("blobs", _, _):
                return "blobs"
        return "other"


def _next_packet(data: bytearray) -> tuple[int, int, bytes] | None:
    """First byte, bytes of the fixed header, and body of the packet that ``data`` begins with, once all is there."""
    size = shift = 0
    for at in range(1, min(len(data), 5)):
        size |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            end = at + 1 + size
            return (data[0], at + 1, bytes(data[at + 1 : end])) if end <= len(data) else None
        shift += 7
    return None


def _number(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 2], "big")
