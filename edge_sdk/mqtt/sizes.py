"""How many bytes each MQTT packet has: what an estimate is made of before anything is sent.

The sizes are those of MQTT 5 as we write it and as a broker answers that has nothing to add; on 3.1.1, which has no
properties, packets are smaller by a byte or more. A broker's CONNACK lists its own limits: 32 bytes cover those of
mosquitto, EMQX and HiveMQ. What travels below MQTT is not counted: a TCP segment adds 40 bytes on IPv4 (52 with time
stamps), Ethernet another 38.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = [
    "CONNACK_BYTES_MAX",
    "PING_BYTES",
    "PUBACK_BYTES",
    "TLS_CHAIN_CERTIFICATES",
    "TLS_HANDSHAKE_BYTES",
    "TLS_RECORD_BYTES",
    "TLS_RECORD_BYTES_MAX",
    "connect_bytes",
    "publish_bytes",
    "suback_bytes",
    "subscribe_bytes",
]

PUBACK_BYTES: Final = 4
PING_BYTES: Final = 2
"""PINGREQ and PINGRESP alike."""
CONNACK_BYTES_MAX: Final = 32

TLS_RECORD_BYTES: Final = {"TLSv1.3": 22, "TLSv1.2": 29}
"""What a record adds to what it carries: header 5, content type 1 and tag 16 (RFC 8446, section 5.2); header 5, nonce 8
and tag 16 with AES-GCM (RFC 5288, section 3)."""
TLS_RECORD_BYTES_MAX: Final = 29
TLS_HANDSHAKE_BYTES: Final = 1_800
"""An estimate, both ways together: hellos, signature, session tickets (RFC 8446), without any certificate."""
TLS_CHAIN_CERTIFICATES: Final = 2
"""The broker's own and one in between, taken to be as large; ours, where there is one, is not counted."""


def publish_bytes(topic: str, payload_bytes: int, qos: int = 1) -> int:
    """A PUBLISH (MQTT 5.0 section 3.3): header, topic, identifier, no properties, payload."""
    return _whole(2 + len(topic.encode()) + (2 if qos else 0) + 1 + payload_bytes)


def subscribe_bytes(filters: Iterable[str]) -> int:
    """A SUBSCRIBE (section 3.8) without properties; an UNSUBSCRIBE has a byte less for each filter."""
    return _whole(2 + 1 + sum(2 + len(name.encode()) + 1 for name in filters))


def suback_bytes(filters: int) -> int:
    """The SUBACK or UNSUBACK (sections 3.9, 3.11) for so many filters."""
    return _whole(2 + 1 + filters)


def connect_bytes(
    client_id: str, will: tuple[str, bytes] | None = None, username: str | None = None, password: str | None = None
) -> int:
    """A CONNECT (section 3.1) with receive maximum and maximum packet size, and the last will's topic and payload."""
    body = 10 + 1 + 8 + 2 + len(client_id.encode())
    if will is not None:
        body += 1 + 2 + len(will[0].encode()) + 2 + len(will[1])
    return _whole(body + sum(2 + len(text.encode()) for text in (username, password) if text is not None))


def _whole(body: int) -> int:
    """With the fixed header and its variable byte integer (section 1.5.5)."""
    return 2 + body + (body > 127) + (body > 16_383) + (body > 2_097_151)
