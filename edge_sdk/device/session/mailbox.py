"""What a device says, in its envelope and on its topic. PURE, a part of the session."""

from __future__ import annotations

from functools import lru_cache

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.session.download import PIECE_BYTES
from edge_sdk.device.session.events import Action, Send
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import Announce, Chunk, Message, RangeRequest
from edge_sdk.wire.topics import Topics

__all__ = ["Mailbox", "decode_announcement"]


@lru_cache(maxsize=16)
def decode_announcement(payload: bytes) -> tuple[Envelope, Message]:
    """Every device of a process hears the same bytes: they are decoded once."""
    return decode_message(payload, Announce.kind, peer="coordinator")


class Mailbox:
    """Turns messages for the coordinator into actions, and bytes for this device into messages.

    ``lineage`` is that of the last announcement.

    Args:
        settings: Whose messages they are.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.topics = Topics(settings.federation)
        self.lineage = b""
        self._settings = settings
        self._token = 0

    def to_coordinator(self, message: Message, lineage: bytes = b"") -> Action:
        """A message on the control topic; an offer says of which lineage its ticket is."""
        envelope = Envelope(self._settings.task, lineage)
        topic = self.topics.from_device(self._settings.device, message.kind)
        asked = 0
        if isinstance(message, RangeRequest):
            asked = sum(stop - start + PIECE_BYTES for start, stop in message.ranges)
        return Send(topic, encode_message(envelope, message), asked_bytes=asked)

    def chunk(self, chunk: Chunk, update: PendingUpdate) -> tuple[int, Action]:
        """A chunk on the bulk topic, with the token that its acknowledgement will have."""
        self._token += 1
        payload = encode_message(Envelope(self._settings.task, update.lineage), chunk)
        return self._token, Send(self.topics.up(update.shard or "0", self._settings.device), payload, self._token)

    def opened(self, kind: str, payload: bytes) -> tuple[Envelope, Message] | None:
        """The message in the bytes of this device's inbox; None where it is of another task.

        Raises:
            ProtocolError: They are no message of this kind.
        """
        envelope, message = decode_message(payload, kind, peer="coordinator")
        return (envelope, message) if envelope.task == self._settings.task else None
