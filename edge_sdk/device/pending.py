"""A finished update that waits for its outcome: one immutable object, the same in job, outbox, session and chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["PendingUpdate"]

TEXT_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """One finished update, kept until the coordinator has said whether it counted.

    Attributes:
        ticket: Identity of the piece of work, 16 bytes.
        digest: SHA-256 of the payload, 32 bytes.
        lineage: Lineage of the coordinator's database that the ticket belongs to, at most 32 bytes.
        task: Name of the task.
        round: Number of the round.
        shard: Uplink inbox that the invite named.
        base: SHA-256 of the parameters that training began from, 32 bytes.
        spec: SHA-256 of the parameter spec, 32 bytes; the vectors that a device keeps fit only their own spec.
        payload: The update's bytes; None once the coordinator has said that it holds them.
    """

    ticket: bytes
    digest: bytes
    lineage: bytes
    task: str
    round: int
    shard: str
    base: bytes
    spec: bytes
    payload: bytes | None

    @property
    def received(self) -> bool:
        """Whether the coordinator holds the bytes."""
        return self.payload is None

    def without_payload(self) -> PendingUpdate:
        """The same update after its receipt, when only the outcome is still open."""
        return replace(self, payload=None)

    def check(self) -> None:
        """Raises ValueError where a field has another type or length than documented."""
        for name, length in (("ticket", 16), ("digest", 32), ("base", 32), ("spec", 32)):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != length:
                raise ValueError(f"outbox.{name} is not {length} bytes")
        if not isinstance(self.lineage, bytes) or len(self.lineage) > 32:
            raise ValueError("outbox.lineage is not at most 32 bytes")
        for name in ("task", "shard"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.encode()) > TEXT_BYTES_MAX:
                raise ValueError(f"outbox.{name} is not text of at most {TEXT_BYTES_MAX} bytes")
        if type(self.round) is not int or not 0 <= self.round < 1 << 63:
            raise ValueError(f"outbox.round is {self.round!r}, expected an integer from 0")
