"""What leaves a device: through its quota of bytes to its transport."""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.device.data_quota import DataQuota
from edge_sdk.device.session import Send, Subscribe, Unsubscribe
from edge_sdk.mqtt.events import Delivery, Transport
from edge_sdk.mqtt.meter import Meter

__all__ = ["Outgoing"]


class Outgoing:
    """Sends what is within today's limit, with what it asks for.

    Attributes:
        transport: The connection; None before there is one, when everything is lost.
        unlimited: Whether the limit is not asked: the last words before a rest are always within the reserve.

    Args:
        quota: The quota of bytes.
        on_exhausted: Called where a message is beyond today's limit; the message is not sent.
    """

    def __init__(self, quota: DataQuota, on_exhausted: Callable[[], None]) -> None:
        self.transport: Transport | None = None
        self.unlimited = False
        self._quota = quota
        self._on_exhausted = on_exhausted

    @property
    def meter(self) -> Meter:
        """What was sent and received so far."""
        return Meter() if self.transport is None else self.transport.meter

    def connect(self) -> bool:
        """Connects; False where not even that is within today's limit."""
        if not self._quota.affords_connection():
            return False
        if self.transport is not None:
            self.transport.connect()
        return True

    def disconnect(self) -> None:
        """Leaves the broker."""
        if self.transport is not None:
            self.transport.disconnect()

    def acknowledge(self, delivery: Delivery) -> None:
        """The message is safe."""
        if self.transport is not None:
            self.transport.acknowledge(delivery)

    def perform(self, action: Send | Subscribe | Unsubscribe) -> None:
        """Sends one message of the session.

        Raises:
            ConfigurationError: The broker will never take it.
        """
        transport = self.transport
        if transport is None:
            return
        match action:
            case Send(topic, payload, token, asked_bytes):
                if self._may_leave(transport, topic, len(payload), asked_bytes):
                    transport.publish(topic, payload, qos=1, token=token)
            case Subscribe(filters, asked_bytes):
                if self._may_leave(transport, "", sum(map(len, filters)), asked_bytes):
                    transport.subscribe(filters)
            case Unsubscribe(filters):
                transport.unsubscribe(filters)

    def publish_status(self, topic: str, body: bytes, *, sure: bool) -> None:
        """The retained status. Where it is not ``sure`` to arrive (QoS 0), nobody waits for the answer to it."""
        if self.transport is not None:
            self.transport.publish(topic, body, qos=1 if sure else 0, retain=True)

    def _may_leave(self, transport: Transport, topic: str, size_bytes: int, asked_bytes: int) -> bool:
        if not self._quota.limited or self.unlimited:
            return True
        if not self._quota.affords_message(topic, size_bytes, transport.waiting_bytes, asked_bytes):
            self._on_exhausted()
            return False
        self._quota.expect(asked_bytes)
        return True
