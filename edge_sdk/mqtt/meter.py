"""What a transport has put on the wire and got from it, over all its connections."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Meter"]


@dataclass(slots=True)
class Meter:
    """Bytes as the socket took and gave them: whole packets with headers, topics, acknowledgements and pings.

    Attributes:
        sent, received: Bytes of MQTT.
        tls: What TLS has added, both ways together: an estimate (``sizes``), since OpenSSL does not tell.
    """

    sent: int = 0
    received: int = 0
    tls: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.sent + self.received + self.tls
