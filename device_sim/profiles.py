"""What kind of device each simulated device is: how fast, how reliable, on what link.

A fleet is described by a few numbers (``FleetProfile``) from which a profile is drawn for each device. Compute times
follow FLSim: slowness is a fixed part plus the absolute value of a normal draw, so that most devices are near the
fastest and a tail is several times slower; on top a share of stragglers is slower still.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from device_sim.stable_random import StableRandom
from device_sim.world.faults import LinkProfile
from edge_sdk.errors import ConfigurationError

__all__ = ["DeviceProfile", "FleetProfile", "draw_profiles"]

_Profile = TypeVar("_Profile", "DeviceProfile", "FleetProfile")

SHARES: Final = frozenset({"dropout", "slow_share", "delay_spread"})
NOT_NEGATIVE: Final = frozenset({"delay_seconds", "slowness_spread"})


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One simulated device.

    Attributes:
        speed: Training speed; 1 is the machine that simulates, 0.1 takes ten times as long.
        dropout: Probability that the device leaves a round that it accepted without finishing it.
        delay_seconds: One-way network delay of its link, added to the network's own.
        uplink_bytes_per_second: Rate of its link towards the broker; infinite for no limit.
        downlink_bytes_per_second: Rate of its link from the broker; infinite for no limit.

    Raises:
        ConfigurationError: A value is out of range.
    """

    speed: float = 1.0
    dropout: float = 0.0
    delay_seconds: float = 0.0
    uplink_bytes_per_second: float = math.inf
    downlink_bytes_per_second: float = math.inf

    def __post_init__(self) -> None:
        _check(self)

    @property
    def link(self) -> LinkProfile:
        """The network part of the profile, as the in-memory broker wants it."""
        return LinkProfile(
            uplink_bytes_per_second=self.uplink_bytes_per_second,
            downlink_bytes_per_second=self.downlink_bytes_per_second,
            delay_seconds=self.delay_seconds,
        )

    def training_seconds(self, seconds_here: float) -> float:
        """Virtual seconds of a training that takes ``seconds_here`` on the machine that simulates."""
        return seconds_here / self.speed

    @classmethod
    def parse(cls, text: str) -> DeviceProfile:
        """A profile from ``field=value`` pairs with commas between; see :meth:`FleetProfile.parse`."""
        return _parse(cls, text, "profile")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "profile") -> DeviceProfile:
        """A profile from a TOML table; fields that are missing keep their defaults, unknown ones are refused."""
        return _from_table(cls, table, where)


@dataclass(frozen=True, slots=True)
class FleetProfile:
    """From what the devices of a fleet are drawn.

    Attributes:
        speed: Speed of the fastest device; 1 is the machine that simulates.
        slowness_spread: A device takes ``1 + slowness_spread * |z|`` times as long as the fastest, z standard normal.
        slow_share: Share of stragglers (exact up to rounding, drawn at random).
        slow_factor: How many times longer still a straggler takes, in compute and on its links.
        dropout: Probability per round and device of leaving without finishing (production: 0.06 to 0.10).
        delay_seconds: Mean one-way network delay of a device's link.
        delay_spread: Delays are uniform in ``delay_seconds * (1 -+ delay_spread)``.
        uplink_bytes_per_second: Rate towards the broker; infinite for no limit.
        downlink_bytes_per_second: Rate from the broker; infinite for no limit.

    Raises:
        ConfigurationError: A value is out of range.
    """

    speed: float = 1.0
    slowness_spread: float = 1.0
    slow_share: float = 0.1
    slow_factor: float = 5.0
    dropout: float = 0.1
    delay_seconds: float = 0.05
    delay_spread: float = 0.5
    uplink_bytes_per_second: float = math.inf
    downlink_bytes_per_second: float = math.inf

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def parse(cls, text: str) -> FleetProfile:
        """A fleet from the command line.

        Args:
            text: ``field=value`` pairs with commas between (``"dropout=0.2,slow_share=0"``, ``inf`` allowed for
                rates), the path of a ``.toml`` file with a table ``[profile]``, or nothing for the defaults.

        Raises:
            ConfigurationError: A field is unknown, a value is not a number or out of range, the file is unreadable.
        """
        return _parse(cls, text, "profile")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "profile") -> FleetProfile:
        """A fleet from a TOML table; fields that are missing keep their defaults, unknown ones are refused."""
        return _from_table(cls, table, where)


def draw_profiles(n: int, seed: int, fleet: FleetProfile | None = None, **changes: float) -> list[DeviceProfile]:
    """Draw the devices of a fleet; the first k of n + m devices are not the k of n (stragglers are drawn among all).

    Args:
        n: Number of devices.
        seed: Names the draw.
        fleet: What to draw from; the defaults of ``FleetProfile`` when None.
        changes: Single fields of ``fleet`` to replace, e.g. ``dropout=0``.

    Raises:
        ConfigurationError: A field is unknown or out of range.
    """
    if n < 0:
        raise ConfigurationError(f"devices: {n} is negative")
    base = fleet or FleetProfile()
    settings = {field.name: getattr(base, field.name) for field in fields(base)}
    fleet = FleetProfile.from_table({**settings, **changes})
    draws = StableRandom(seed, "profiles")
    stragglers = set(draws.permutation(n)[: round(fleet.slow_share * n)].tolist())
    profiles = []
    for device in range(n):
        slowness = 1.0 + fleet.slowness_spread * abs(draws.normal())
        spread = fleet.delay_spread * (2.0 * draws.uniform() - 1.0)
        factor = fleet.slow_factor if device in stragglers else 1.0
        profiles.append(
            DeviceProfile(
                speed=fleet.speed / (slowness * factor),
                dropout=fleet.dropout,
                delay_seconds=fleet.delay_seconds * (1.0 + spread),
                uplink_bytes_per_second=fleet.uplink_bytes_per_second / factor,
                downlink_bytes_per_second=fleet.downlink_bytes_per_second / factor,
            )
        )
    return profiles


def _check(profile: DeviceProfile | FleetProfile) -> None:
    for field in fields(profile):
        value = getattr(profile, field.name)
        if field.name in SHARES:
            allowed, wanted = 0.0 <= value <= 1.0, "in 0..1"
        elif field.name in NOT_NEGATIVE:
            allowed, wanted = 0.0 <= value < math.inf, "0 or more and finite"
        elif field.name.endswith("_bytes_per_second"):
            allowed, wanted = value > 0.0, "more than 0 (inf for no limit)"
        else:
            allowed, wanted = 0.0 < value < math.inf, "more than 0 and finite"
        if not allowed:
            raise ConfigurationError(f"profile.{field.name}: {value!r} must be {wanted}")


def _from_table(cls: type[_Profile], table: Mapping[str, Any], where: str) -> _Profile:
    known = [field.name for field in fields(cls)]
    values: dict[str, float] = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigurationError(f"{where}.{name}: no such field; known are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"{where}.{name}: {value!r} is not a number")
        values[name] = float(value)
    return cls(**values)


def _parse(cls: type[_Profile], text: str, where: str) -> _Profile:
    if text.strip().endswith(".toml"):
        return _from_table(cls, _toml_table(Path(text.strip()), where), where)
    table: dict[str, float] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not separator:
            raise ConfigurationError(f"{where}: {pair!r} is not of the form field=value")
        try:
            table[name] = float(value)
        except ValueError:
            raise ConfigurationError(f"{where}.{name}: {value!r} is not a number") from None
    return _from_table(cls, table, where)


def _toml_table(path: Path, where: str) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: {path} cannot be read as TOML: {error}") from error
    table = document.get(where, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where}: {path} must hold a table [{where}]")
    return table
