"""What a session must know of its device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_sdk.wire.ranges import DIRECT_BYTES_MAX

__all__ = ["SessionSettings"]


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """One device in one task of one federation.

    Attributes:
        federation: Topic segment of the federation.
        task: Topic segment of the task.
        device: Topic segment of the device, the MQTT user name where the broker has ACLs.
        instance: 16 random bytes, made with the state directory (rule 2).
        capabilities: What the check-in says of this device.
        supports: What a plan may require of this device.
        program_bytes_max: Largest program accepted, in bytes.
        parameters_bytes_max: Largest parameters blob accepted, in bytes.
        direct_bytes_max: Largest update that is sent without an offer, in bytes.
    """

    federation: str
    task: str
    device: str
    instance: bytes
    capabilities: dict[str, Any] = field(default_factory=dict)
    supports: frozenset[str] = frozenset()
    program_bytes_max: int = 64 << 20
    parameters_bytes_max: int = 256 << 20
    direct_bytes_max: int = DIRECT_BYTES_MAX
