"""The envelope around every message, as it stands in one MQTT payload.

    {version, kind, federation, task, lineage, shard, body: bytes}

``body`` is the message's own msgpack map, kept as bytes so that a signature can cover exactly what was sent. What is
empty is not written. There is room for ``phase``, ``group``, ``sig`` and ``enc`` (phases of work, groups of devices,
signatures, encryption): unknown fields are ignored, except that an ``enc`` which is not nil is refused.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.errors import DecodeError, ProtocolError
from edge_sdk.wire.fields import octets_upto, segment
from edge_sdk.wire.messages import BODY_BYTES_MAX, MESSAGES, Message
from edge_sdk.wire.records import VERSION, check_version, from_map, pack_map, to_map, unpack_map

__all__ = ["ENVELOPE_BYTES_MAX", "Envelope", "decode_message", "encode_message"]

ENVELOPE_BYTES_MAX: Final = 600
"""Bytes of a message beside the data in a chunk or a range, with topic and MQTT header, at most."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around a message.

    Attributes:
        federation: Topic segment; a message on another federation's topic is refused.
        task: Topic segment.
        lineage: Of the coordinator's database, at most 16 bytes; empty while a device knows none.
        shard: Topic segment of the uplink inbox that an invite names; a device repeats it and reads nothing into it.
    """

    federation: str
    task: str
    lineage: bytes = b""
    shard: str = ""


_LINEAGE: Final = octets_upto(16)


def encode_message(envelope: Envelope, message: Message) -> bytes:
    """One MQTT payload."""
    before = _before(message.kind, envelope.federation, envelope.task, envelope.lineage, envelope.shard)
    body = pack_map(to_map(message))
    return b"".join((before, _binary_head(len(body)), body))


@functools.lru_cache(maxsize=256)
def _before(kind: str, federation: str, task: str, lineage: bytes, shard: str) -> bytes:
    """The envelope's bytes before its body, which is its last field: the same for every message of a kind."""
    head: dict[str, Any] = {"version": VERSION, "kind": kind, "federation": federation, "task": task}
    if lineage:
        head["lineage"] = lineage
    if shard:
        head["shard"] = shard
    return pack_map({**head, "body": None})[:-1]


def _binary_head(length: int) -> bytes:
    """What msgpack writes before so many bytes of binary data."""
    if length < 1 << 8:
        return bytes((0xC4, length))
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def decode_message(
    payload: bytes, *, federation: str, expected: tuple[str, ...], peer: str
) -> tuple[Envelope, Message]:
    """The message in one MQTT payload, checked.

    Args:
        payload: Bytes that nobody vouches for.
        federation: The federation whose topic they came on.
        expected: The kinds that this side takes on that topic.
        peer: Who sent it (``device`` or ``coordinator``), for the upgrade advice in a version error.

    Raises:
        DecodeError: Malformed, truncated, oversize or out-of-range bytes, or a kind that is not expected.
        VersionError: A version that this side does not speak.
        ProtocolError: The envelope names another federation.
    """
    if len(payload) > BODY_BYTES_MAX:
        raise DecodeError(f"message of {len(payload)} bytes, at most {BODY_BYTES_MAX} are allowed", reason="oversize")
    source = unpack_map(payload, "envelope")
    check_version(source.get("version"), "message", peer)
    kind = source.get("kind")
    if kind not in expected:
        raise DecodeError(f"envelope.kind: {str(kind)[:40]!r} is not one of {expected}", reason="kind")
    if source.get("federation") != federation:
        raise ProtocolError(
            f"envelope.federation: {str(source.get('federation'))[:64]!r} on a topic of {federation!r}",
            reason="wrong_federation",
        )
    if source.get("enc") is not None:
        raise DecodeError("envelope.enc: encrypted bodies are not spoken here", reason="version")
    try:
        envelope = _envelope(federation, source.get("task"), source.get("lineage", b""), source.get("shard", ""))
    except TypeError:
        raise DecodeError("envelope: one of its names is a list or a map") from None
    body = source.get("body")
    if not isinstance(body, bytes):
        raise DecodeError("envelope.body: expected bytes")
    return envelope, from_map(MESSAGES[kind], unpack_map(body, kind))


@functools.lru_cache(maxsize=256)
def _envelope(federation: str, task: Any, lineage: Any, shard: Any) -> Envelope:
    """The checked envelope; one object for all messages that share it."""
    inbox = segment(shard, "envelope.shard") if shard != "" else ""
    return Envelope(federation, segment(task, "envelope.task"), _LINEAGE(lineage, "envelope.lineage"), inbox)
