"""The packets that make up all traffic between CONNACK and DISCONNECT, as bytes: PUBLISH, SUBSCRIBE and their answers.

paho spends 100 to 200 us on each of them, most of it on property objects, locks and log lines; these functions spend
a tenth. What comes in is checked as MQTT 5.0 asks (sections 3.3, 3.4, 3.9; 3.1.1 differs in having no properties).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

__all__ = [
    "PUBACK",
    "PUBLISH",
    "SUBACK",
    "UNSUBACK",
    "MalformedPacket",
    "check_filter",
    "decode_puback",
    "decode_publish",
    "decode_suback",
    "encode_puback",
    "encode_publish_head",
    "encode_subscribe",
    "encode_unsubscribe",
]

PUBLISH: Final = 0x30
PUBACK: Final = 0x40
SUBACK: Final = 0x90
UNSUBACK: Final = 0xB0
SUBSCRIBE: Final = 0x82
UNSUBSCRIBE: Final = 0xA2
QOS_1: Final = 0x02
RETAIN: Final = 0x01
TEXT_BYTES_MAX: Final = 65_535
SUBSCRIPTION_QOS_1: Final = b"\x01"

_SHORT: Final = struct.Struct(">H")
_ACKNOWLEDGEMENT: Final = struct.Struct(">BBH")


class MalformedPacket(ValueError):
    """The peer sent bytes that are no MQTT packet of their kind."""


# --- out -------------------------------------------------------------------------------------------------------------


def encode_publish_head(topic: bytes, payload_bytes: int, *, identifier: int, retain: bool, properties: bytes) -> bytes:
    """Everything of a PUBLISH packet before its payload.

    Args:
        topic: UTF-8, at most 65,535 bytes.
        payload_bytes: Length of the payload that follows.
        identifier: Packet identifier; 0 makes it QoS 0.
        retain: Whether the broker keeps it.
        properties: With their length; nothing at all on MQTT 3.1.1.
    """
    kind = PUBLISH | (QOS_1 if identifier else 0) | (RETAIN if retain else 0)
    number = _SHORT.pack(identifier) if identifier else b""
    rest = 2 + len(topic) + len(number) + len(properties) + payload_bytes
    return b"".join((bytes((kind,)), _length(rest), _SHORT.pack(len(topic)), topic, number, properties))


def encode_puback(identifier: int) -> bytes:
    """The answer to a PUBLISH at QoS 1: taken. The same bytes in both versions."""
    return _ACKNOWLEDGEMENT.pack(PUBACK, 2, identifier)


def encode_subscribe(filters: Sequence[bytes], identifier: int, properties: bytes) -> bytes:
    """A SUBSCRIBE packet, all filters at QoS 1; ``properties`` as for a PUBLISH."""
    parts = [_SHORT.pack(identifier), properties]
    for name in filters:
        parts += (_SHORT.pack(len(name)), name, SUBSCRIPTION_QOS_1)
    body = b"".join(parts)
    return bytes((SUBSCRIBE,)) + _length(len(body)) + body


def encode_unsubscribe(filters: Sequence[bytes], identifier: int, properties: bytes) -> bytes:
    """An UNSUBSCRIBE packet; ``properties`` as for a PUBLISH."""
    parts = [_SHORT.pack(identifier), properties]
    for name in filters:
        parts += (_SHORT.pack(len(name)), name)
    body = b"".join(parts)
    return bytes((UNSUBSCRIBE,)) + _length(len(body)) + body


def check_filter(name: str) -> bytes:
    """The topic filter in UTF-8.

    Raises:
        ValueError: MQTT does not allow it (MQTT 5.0 section 4.7).
    """
    data = name.encode()
    if not 0 < len(data) <= TEXT_BYTES_MAX or "\0" in name:
        raise ValueError(f"a filter of {len(data)} bytes, or with a NUL in it")
    levels = name.split("/")
    if any(("+" in level and level != "+") or ("#" in level and level != "#") for level in levels):
        raise ValueError(f"{name!r} has a wildcard beside other characters")
    if "#" in levels[:-1]:
        raise ValueError(f"{name!r} goes on behind #")
    return data


def _length(value: int) -> bytes:
    """A variable byte integer (MQTT 5.0 section 1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


# --- in --------------------------------------------------------------------------------------------------------------


def decode_publish(first: int, body: memoryview, has_properties: bool) -> tuple[str, bytes, bool, int]:
    """``(topic, payload, retained, identifier)``; the identifier is 0 at QoS 0.

    Raises:
        MalformedPacket: It is none, or has QoS 2, for which nobody has asked.
    """
    if first & 0x04:
        raise MalformedPacket(f"PUBLISH: flags {first & 0x0F:#x}")
    at = 2 + _short(body, 0)
    if at == 2 or at > len(body):
        raise MalformedPacket("PUBLISH: no topic")
    try:
        topic = str(body[2:at], "utf-8")
    except UnicodeDecodeError:
        raise MalformedPacket("PUBLISH: the topic is not UTF-8") from None
    identifier = 0
    if first & QOS_1:
        identifier = _short(body, at)
        at += 2
        if not identifier:
            raise MalformedPacket("PUBLISH: identifier 0")
    if has_properties:
        at = _skip_properties(body, at)
    return topic, bytes(body[at:]), bool(first & RETAIN), identifier


def decode_puback(body: memoryview) -> tuple[int, int]:
    """``(identifier, reason code)``; no code means success (0).

    Raises:
        MalformedPacket: It is none.
    """
    return _short(body, 0), body[2] if len(body) > 2 else 0


def decode_suback(body: memoryview, has_properties: bool) -> tuple[int, bytes]:
    """``(identifier, one code for each filter)``, also of an UNSUBACK, which has none on MQTT 3.1.1.

    Raises:
        MalformedPacket: It is none.
    """
    identifier = _short(body, 0)
    return identifier, bytes(body[_skip_properties(body, 2) if has_properties else 2 :])


def _short(body: memoryview, at: int) -> int:
    if at + 2 > len(body):
        raise MalformedPacket("a packet ends too early")
    return body[at] << 8 | body[at + 1]


def _skip_properties(body: memoryview, at: int) -> int:
    """Where the properties end that begin at ``at``: we ask for none that we would have to know."""
    size = shift = 0
    while True:
        if at >= len(body) or shift > 21:
            raise MalformedPacket("the properties have no length")
        octet = body[at]
        at += 1
        size |= (octet & 0x7F) << shift
        if octet < 0x80:
            break
        shift += 7
    if size > len(body) - at:
        raise MalformedPacket("the properties end behind the packet")
    return at + size
