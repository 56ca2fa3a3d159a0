"""The terms of an invite: what it asks that mostly stays the same from round to round.

They are sent while they are new to a device, and named by their short digest afterwards: a check-in says which terms
the device knows. The digest is that of the bytes that were sent, so both sides name the same thing whatever a newer
peer puts in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from edge_sdk.wire.fields import integer, segment
from edge_sdk.wire.messages import BODY_BYTES_MAX, DIGEST, REQUIREMENTS, SIZE, short
from edge_sdk.wire.plan import Plan
from edge_sdk.wire.records import from_map, on_wire, pack_map, record, to_map, unpack_map

__all__ = ["Terms", "terms_id"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What rounds ask of a device.

    Attributes:
        program: SHA-256 of the program.
        program_bytes: Its length.
        parameters_bytes: Length of the parameters, whole.
        plan: How to train and encode.
        chunk_bytes_max: Largest range of bytes that the coordinator puts into one message.
        blob_bytes: Above 0, the program, and the deltas or else the parameters, are also retained in pieces of that
            size (rule 7: downloads are ranges).
        requires: What the device must understand, or decline.
        shard: Where updates are to be sent: the last segment but one of their topic.
    """

    kind: ClassVar[str] = "terms"
    program: bytes = on_wire(DIGEST, key="g")
    program_bytes: int = on_wire(SIZE, key="G")
    parameters_bytes: int = on_wire(SIZE, key="M")
    plan: Plan = on_wire(record(Plan), key="p")
    chunk_bytes_max: int = on_wire(integer(256, BODY_BYTES_MAX), key="k")
    blob_bytes: int = on_wire(integer(0, BODY_BYTES_MAX), 0, key="e", brief=True)
    requires: tuple[str, ...] = on_wire(REQUIREMENTS, (), key="q", brief=True)
    shard: str = on_wire(segment, "0", key="u", brief=True)

    def encode(self) -> bytes:
        """The terms as they stand in an invite."""
        return pack_map(to_map(self))

    @staticmethod
    @lru_cache(maxsize=16)
    def decode(data: bytes) -> Terms:
        """The inverse of :meth:`encode`, for bytes that nobody vouches for; devices of one process share what it gives.

        Raises:
            DecodeError: They are no terms.
            VersionError: The plan's codec is one that this side does not know.
        """
        return from_map(Terms, unpack_map(data, Terms.kind))


def terms_id(data: bytes) -> bytes:
    """The short digest of encoded terms."""
    import hashlib  # loads OpenSSL: only when something has in fact been said

    return short(hashlib.sha256(data).digest())
