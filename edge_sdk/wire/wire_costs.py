"""What work will cost on the wire, before any of it is done: whole MQTT packets with their answers, and TLS.

The costs are those of a connection that does not break. What a device has to send again after a cut is counted when it
happens (``edge_sdk/device/daily_traffic.py``) and not foreseen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_sdk.mqtt.sizes import PUBACK_BYTES, TLS_RECORD_BYTES_MAX, publish_bytes
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import (
    DELTA,
    DIGEST_BYTES,
    FRAMES_MAX,
    TICKET_BYTES,
    Accept,
    Chunk,
    Have,
    Message,
    Offer,
    RangeData,
    RangeRequest,
    Update,
    Verdict,
    short,
)
from edge_sdk.wire.outcomes import COUNTED, RECEIVED
from edge_sdk.wire.ranges import CHUNK_BYTES_MAX, DIRECT_BYTES_MAX
from edge_sdk.wire.topics import SHARD_CHARACTERS, Topics

__all__ = ["UPDATE_HEAD_BYTES_MAX", "Costs"]

LINEAGE: Final = bytes(8)
TICKET: Final = bytes(TICKET_BYTES)
DIGEST: Final = bytes(DIGEST_BYTES)
LARGE: Final = 1 << 30  # of the length that most numbers have in msgpack
RECORD_BYTES: Final = 1 << 14  # RFC 8446, section 5.1
LENGTH_BYTES: Final = 3  # more than in a frame of no bytes, where one has more than 64 kB
_HEAD: Final = Update(
    examples=1 << 40,
    steps=1 << 40,
    loss=0.5,
    complete=True,
    seconds=0.5,
    engine="onnxruntime",
    vectors={DELTA: (b"",) * FRAMES_MAX},
    evaluation=(0.5, 0.5, 1 << 40),
)
UPDATE_HEAD_BYTES_MAX: Final = len(_HEAD.encode()) + FRAMES_MAX * LENGTH_BYTES
"""Bytes of an update of one vector beside its frames."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What work costs one device on the wire.

    Attributes:
        federation, task, device: Its names; they are in every topic.
        tls: Whether the connection is encrypted.
        chunk_bytes_max: Bytes of the largest chunk.
        shard: Uplink inbox.
    """

    federation: str
    task: str
    device: str
    tls: bool = False
    chunk_bytes_max: int = CHUNK_BYTES_MAX
    shard: str = "0" * SHARD_CHARACTERS

    def message(self, topic: str, payload_bytes: int) -> int:
        """A message of so many bytes, either way, and its acknowledgement."""
        packet = publish_bytes(topic, payload_bytes)
        records = -(-packet // RECORD_BYTES) + 1 if self.tls else 0
        return packet + PUBACK_BYTES + records * TLS_RECORD_BYTES_MAX

    def upload(self, update_bytes: int) -> int:
        """An update: the offer and its answer if it is large, chunks, receipt and outcome."""
        if update_bytes <= self._direct_bytes_max:
            return self._verdicts + self._direct(update_bytes)
        whole, rest = divmod(update_bytes, self.chunk_bytes_max)
        chunks = whole * self._chunk(self.chunk_bytes_max) if whole else 0
        return self._question + self._verdicts + chunks + (self._chunk(rest) if rest else 0)

    def update_bytes_within(self, bytes_max: int) -> int:
        """The largest update whose ``upload`` is within ``bytes_max``, 0 where none is."""
        largest = self._offered_bytes_within(bytes_max - self._verdicts - self._question)
        if largest > self._direct_bytes_max:
            return largest
        beside = self._direct(self._direct_bytes_max) - self._direct_bytes_max
        return min(self._direct_bytes_max, max(0, bytes_max - self._verdicts - beside))

    def _offered_bytes_within(self, left: int) -> int:
        """The most that chunks can bring within ``left`` bytes."""
        whole = max(0, left) // self._chunk(self.chunk_bytes_max)
        rest = left - whole * self._chunk(self.chunk_bytes_max)
        return whole * self.chunk_bytes_max + max(0, rest - self._beside_chunk)

    @property
    def _direct_bytes_max(self) -> int:
        return min(DIRECT_BYTES_MAX, self.chunk_bytes_max)

    @property
    def _beside_chunk(self) -> int:
        return self._chunk(self.chunk_bytes_max) - self.chunk_bytes_max

    def download(self, total: int, piece_bytes: int) -> int:
        """A blob in pieces of so many bytes, each asked for by itself at most."""
        pieces = -(-total // piece_bytes)
        want = RangeRequest(digest=short(DIGEST), ranges=((LARGE, LARGE + 1),))
        empty = RangeData(digest=short(DIGEST), offset=LARGE, data=bytes(min(total, piece_bytes)))
        beside = self._to_device(empty) - min(total, piece_bytes)
        return total + pieces * (self._from_device(want) + beside)

    def accept(self) -> int:
        """The answer to an invite."""
        return self._from_device(Accept(ticket=TICKET))

    def _direct(self, size: int) -> int:
        """An update in one chunk that says no more than it must."""
        return self._bulk(Chunk(ticket=TICKET, digest=short(DIGEST), data=bytes(size)))

    def _chunk(self, size: int) -> int:
        return self._bulk(Chunk(ticket=TICKET, digest=DIGEST, total=LARGE, offset=LARGE, data=bytes(size)))

    def _bulk(self, chunk: Chunk) -> int:
        topic = Topics(self.federation).up(self.shard, self.device)
        return self.message(topic, len(encode_message(Envelope(self.task, LINEAGE), chunk)))

    @property
    def _question(self) -> int:
        offer = self._from_device(Offer(ticket=TICKET, digest=DIGEST, total=LARGE))
        have = Have(ticket=TICKET, digest=short(DIGEST), ranges=(), chunk_bytes_max=self.chunk_bytes_max)
        return offer + self._to_device(have)

    @property
    def _verdicts(self) -> int:
        """Receipt and outcome; often one message says both."""
        return sum(self._to_device(Verdict(TICKET, short(DIGEST), outcome)) for outcome in (RECEIVED, COUNTED))

    def _from_device(self, message: Message) -> int:
        topic = Topics(self.federation).from_device(self.device, message.kind)
        lineage = LINEAGE if isinstance(message, Offer) else b""
        return self.message(topic, len(encode_message(Envelope(self.task, lineage), message)))

    def _to_device(self, message: Message) -> int:
        topic = Topics(self.federation).to_device(self.device, message.kind)
        return self.message(topic, len(encode_message(Envelope(self.task), message)))
