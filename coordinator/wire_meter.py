"""All bytes between the broker and a task's devices, as far as the coordinator can tell. PURE.

It sees every message of a device and every answer, and knows what their packets and acknowledgements weigh
(``edge_sdk/mqtt/sizes.py``). It knows how many devices hear an announcement, and who reads retained pieces in place of
asking. It does not see connections, pings, TLS, and the statuses of devices that it has not invited: a device's own
count (``Status.bytes_up``, ``bytes_down``) holds these too.
"""

from __future__ import annotations

from typing import Final

from edge_sdk.mqtt.sizes import PUBACK_BYTES, publish_bytes, suback_bytes, subscribe_bytes
from edge_sdk.wire.topics import Topics

__all__ = ["WireMeter"]

_DIGEST: Final = bytes(32)


class WireMeter:
    """Counts up, from devices to the broker, and down.

    Args:
        topics: The federation's topics.

    Attributes:
        up, down: Bytes so far; the acknowledgement of a message goes the other way.
    """

    def __init__(self, topics: Topics) -> None:
        self.up = self.down = 0
        self._topics = topics

    def arrived(self, topic: str, payload_bytes: int) -> None:
        """A device has said something."""
        self.up += publish_bytes(topic, payload_bytes)
        self.down += PUBACK_BYTES

    def sent(self, topic: str, payload_bytes: int, devices: int = 1) -> None:
        """So many devices hear something."""
        self.down += devices * publish_bytes(topic, payload_bytes)
        self.up += devices * PUBACK_BYTES

    def read(self, total: int, piece_bytes: int) -> None:
        """A device reads a blob from its retained pieces: subscribes to each, hears it, and unsubscribes."""
        for offset in range(0, total, piece_bytes):
            topic = self._topics.blob(_DIGEST, offset)
            self.up += 2 * subscribe_bytes([topic]) - 1
            self.down += 2 * suback_bytes(1)
            self.sent(topic, min(piece_bytes, total - offset))
