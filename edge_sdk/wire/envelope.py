"""The envelope around every message, as it stands in one MQTT payload.

    {v: version, t: task, l: lineage, b: body}

The body is the message's own msgpack map, kept as bytes so that a signature can cover exactly what was sent. What the
topic says (federation, device, kind of message) is not said again, what is empty is not written, and neither is the
task where it is ``default``. There is room for phases of work, groups of devices and signatures: unknown keys are
ignored, except that an ``enc`` which is not nil is refused.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import octets_upto, segment
from edge_sdk.wire.messages import BODY_BYTES_MAX, MESSAGES, Message
from edge_sdk.wire.records import VERSION, check_version, from_map, pack_map, to_map, unpack_map
from edge_sdk.wire.topics import DEFAULT_TASK

__all__ = ["ENVELOPE_BYTES_MAX", "Envelope", "decode_message", "encode_message"]

ENVELOPE_BYTES_MAX: Final = 600
"""Bytes of a message beside the data in a chunk or a range, with topic and MQTT header, at most."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around a message.

    Attributes:
        task: Topic segment; an announcement leaves it out, since its topic names the task.
        lineage: Of the coordinator's database, at most 16 bytes; empty where nobody reads it, and while a device knows
            none.
    """

    task: str = DEFAULT_TASK
    lineage: bytes = b""


_LINEAGE: Final = octets_upto(16)


def encode_message(envelope: Envelope, message: Message) -> bytes:
    """One MQTT payload."""
    body = pack_map(to_map(message))
    return b"".join((_before(envelope.task, envelope.lineage), _binary_head(len(body)), body))


@functools.lru_cache(maxsize=256)
def _before(task: str, lineage: bytes) -> bytes:
    """The envelope's bytes before its body, which is its last field."""
    head: dict[str, Any] = {"v": VERSION}
    if task != DEFAULT_TASK:
        head["t"] = task
    if lineage:
        head["l"] = lineage
    return pack_map({**head, "b": None})[:-1]


def _binary_head(length: int) -> bytes:
    """What msgpack writes before so many bytes of binary data."""
    if length < 1 << 8:
        return bytes((0xC4, length))
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def decode_message(payload: bytes, kind: str, *, peer: str) -> tuple[Envelope, Message]:
    """The message in one MQTT payload, checked.

    Args:
        payload: Bytes that nobody vouches for.
        kind: The kind of message that the topic names, a key of ``MESSAGES``.
        peer: Who sent it (``device`` or ``coordinator``), for the upgrade advice in a version error.

    Raises:
        DecodeError: Malformed, truncated, oversize or out-of-range bytes, or an unknown kind.
        VersionError: A version that this side does not speak.
    """
    if len(payload) > BODY_BYTES_MAX:
        raise DecodeError(f"message of {len(payload)} bytes, at most {BODY_BYTES_MAX} are allowed", reason="oversize")
    if kind not in MESSAGES:
        raise DecodeError(f"{kind[:40]!r} is no kind of message", reason="kind")
    source = unpack_map(payload, "envelope")
    check_version(source.get("v"), "message", peer)
    if source.get("enc") is not None:
        raise DecodeError("envelope.enc: encrypted bodies are not spoken here", reason="version")
    try:
        envelope = _envelope(source.get("t", DEFAULT_TASK), source.get("l", b""))
    except TypeError:
        raise DecodeError("envelope: one of its names is a list or a map") from None
    body = source.get("b")
    if not isinstance(body, bytes):
        raise DecodeError("envelope.body: expected bytes")
    return envelope, from_map(MESSAGES[kind], unpack_map(body, kind))


@functools.lru_cache(maxsize=256)
def _envelope(task: Any, lineage: Any) -> Envelope:
    """The checked envelope; one object for all messages that share it."""
    return Envelope(segment(task, "envelope.task"), _LINEAGE(lineage, "envelope.lineage"))
