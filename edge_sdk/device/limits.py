"""How far a device may go: the limits that its owner sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import ConfigurationError

__all__ = ["BYTES_PER_DAY_MIN", "MAY_BE_ZERO", "Limits"]

BYTES_PER_DAY_MIN: Final = 16_384
"""A smaller daily limit is not worth a connection."""
MAY_BE_ZERO: Final = ("cache_bytes_max", "bytes_per_update_max", "bytes_per_device_per_day_max")


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a device may go.

    Attributes:
        examples_min: Fewer local examples than this: the device declines.
        program_bytes_max: Largest program (graphs) accepted, in bytes.
        parameters_bytes_max: Largest set of parameters accepted, in bytes.
        cache_bytes_max: Disk for downloaded programs and parameters, in bytes.
        outbox_bytes_max: Largest update kept for sending, in bytes.
        state_write_bytes_per_day_max: Bound on SD-card wear, in bytes a day.
        threads: Threads of the engine.
        bytes_per_update_max: Bytes on the wire that bringing one update may take, 0 for no limit; codecs sparse and
            eden are made smaller to fit, with another one the device declines.
        bytes_per_device_per_day_max: Bytes that may be sent and received in a day (UTC), both ways together, with all
            that MQTT adds and an estimate for TLS; 0 for no limit, else at least 16384.
    """

    examples_min: int = 1
    program_bytes_max: int = 64 << 20
    parameters_bytes_max: int = 256 << 20
    cache_bytes_max: int = 64 << 20
    outbox_bytes_max: int = 64 << 20
    state_write_bytes_per_day_max: int = 2 << 30
    threads: int = 1
    bytes_per_update_max: int = 0
    bytes_per_device_per_day_max: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value, low = getattr(self, name), 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigurationError(f"limits.{name}: {value!r} is not a positive whole number")
        if 0 < self.bytes_per_device_per_day_max < BYTES_PER_DAY_MIN:
            raise ConfigurationError(
                f"limits.bytes_per_device_per_day_max: {self.bytes_per_device_per_day_max} is too little for a "
                f"connection; use at least {BYTES_PER_DAY_MIN}, or 0 for no limit"
            )
