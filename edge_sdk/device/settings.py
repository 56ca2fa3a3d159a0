"""What a device is, and how far it may go."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.ranges import DIRECT_BYTES_MAX

__all__ = ["AgentSettings", "supported"]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What a device is and how far it may go.

    Attributes:
        federation: Topic segment of the federation.
        device: Topic segment of the device.
        task: Topic segment of the task.
        engine: Engine preference, told to the coordinator.
        program_bytes_max: Largest program accepted, in bytes.
        parameters_bytes_max: Largest parameters blob accepted, in bytes.
        publish_status: Whether retained JSON about this device is published for people.
        bytes_per_update_max: Bytes on the wire that bringing one update may take, 0 for no limit.
        algorithms: Names of local algorithms that this device has beside the SDK's own.
        direct_bytes_max: Largest update that is sent without an offer, in bytes.
    """

    federation: str
    device: str
    task: str = "default"
    engine: str = "auto"
    program_bytes_max: int = 64 << 20
    parameters_bytes_max: int = 256 << 20
    publish_status: bool = True
    bytes_per_update_max: int = 0
    algorithms: tuple[str, ...] = ()
    direct_bytes_max: int = DIRECT_BYTES_MAX


def supported(settings: AgentSettings) -> frozenset[str]:
    """What a plan may require of this device: ``codec:<name>``, ``local:<name>``, ``weighting:<name>``."""
    from edge_sdk.codecs import CODECS  # a device that is only described needs neither
    from edge_sdk.training.algorithms import LOCAL_ALGORITHMS

    codecs = (f"codec:{name}" for name in CODECS)
    local = (f"local:{name}" for name in (*settings.algorithms, *LOCAL_ALGORITHMS))
    return frozenset({*codecs, *local, "weighting:examples", "weighting:uniform"})
