"""Whether a device may work now: rules over what the kernel says in /sys and /proc, for people who write no code.

A reading that is not there is *unknown*, and unknown is never "ok": whoever sets a rule wants it kept. A rule that is
not set reads nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Eligibility", "Reading", "Rules", "network_manager_metered"]

logger = logging.getLogger(__name__)

METERED_SECONDS: Final = 60.0
BUSCTL_SECONDS_MAX: Final = 2.0
ETHERNET: Final = "1"  # ARPHRD_ETHER of if_arp.h; Wi-Fi has it too
MOBILE_PREFIXES: Final = ("wwan", "ppp", "rmnet")
ROUTE_UP: Final = 0x1  # RTF_UP of route.h
CHARGED: Final = ("Charging", "Full", "Not charging")  # the last one: on mains, and the battery is spared


@dataclass(frozen=True, slots=True)
class Rules:
    """When a device may work; a rule at its default is not set.

    Attributes:
        charging: Only on mains, or while the battery charges.
        unmetered: Only while no default route goes over a mobile or otherwise metered link.
        temperature_celsius_max: Only while every thermal zone is at most this warm, in degrees Celsius.
        load_max: Only while the load average of the last minute (as ``uptime`` shows it) is at most this; not asked
            during our own training, which is a load itself.
        memory_available_bytes_min: Only while so much memory is available, in bytes.
    """

    charging: bool = False
    unmetered: bool = False
    temperature_celsius_max: float | None = None
    load_max: float | None = None
    memory_available_bytes_min: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One rule's answer; ``ok`` is None where nothing is known."""

    rule: str
    ok: bool | None
    text: str


class Eligibility:
    """Answers ``eligible()`` by the rules; logs when the answer changes, and why.

    Args:
        rules: What is asked.
        root: The root of the file system that is read.
        metered: NetworkManager's property ``Metered``, None where it does not say.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        root: Path = Path("/"),
        metered: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.working: Callable[[], bool] = lambda: False
        """Whether our own training runs at this moment."""
        self._rules = rules
        self._root = root
        self._ask_metered = metered or network_manager_metered
        self._clock = clock
        self._metered: int | None = None
        self._metered_until = float("-inf")
        self._said = True

    def __call__(self) -> bool:
        """Whether all rules are kept now."""
        broken = [reading for reading in self.readings() if not reading.ok]
        if self._said != (not broken):
            self._said = not broken
            logger.info("eligible%s", f": not now: {'; '.join(r.text for r in broken)}" if broken else " again")
        return not broken

    def readings(self) -> Iterator[Reading]:
        """The rules that are set, each with what was read."""
        rules = self._rules
        if rules.charging:
            yield _charging(self._root)
        if rules.unmetered:
            yield self._unmetered()
        if rules.temperature_celsius_max is not None:
            yield _temperature(self._root, rules.temperature_celsius_max)
        if rules.load_max is not None and not self.working():
            yield _load(self._root, rules.load_max)
        if rules.memory_available_bytes_min is not None:
            yield _memory(self._root, rules.memory_available_bytes_min)

    def _unmetered(self) -> Reading:
        rule = "unmetered"
        links = sorted(_default_links(self._root))
        if not links:
            return Reading(rule, None, "unmetered: unknown, there is no default route")
        mobile = [name for name in links if _is_mobile(self._root, name)]
        if mobile:
            return Reading(rule, False, f"unmetered: no, {mobile[0]} is a mobile link")
        now = self._clock()
        if now >= self._metered_until:
            self._metered, self._metered_until = self._ask_metered(), now + METERED_SECONDS
        if self._metered in (1, 3):  # NM_METERED_YES, NM_METERED_GUESS_YES of nm-dbus-interface.h
            return Reading(rule, False, f"unmetered: no, NetworkManager calls {', '.join(links)} metered")
        strange = [name for name in links if _text(self._root, f"sys/class/net/{name}/type") != ETHERNET]
        if strange and self._metered not in (2, 4):
            return Reading(rule, None, f"unmetered: unknown, {strange[0]} is neither Ethernet nor Wi-Fi")
        return Reading(rule, True, f"unmetered: {', '.join(links)}")


def network_manager_metered() -> int | None:
    """NetworkManager's property ``Metered`` (0 unknown, 1 yes, 2 no, 3 guessed yes, 4 guessed no), by ``busctl``."""
    import subprocess

    name, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    try:
        answer = subprocess.run(
            ["busctl", "get-property", name, path, name, "Metered"],
            capture_output=True,
            timeout=BUSCTL_SECONDS_MAX,
            check=True,
        ).stdout.split()
        return int(answer[1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _charging(root: Path) -> Reading:
    found: set[bool] = set()
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if _text(supply, "scope") == "Device":
            continue  # the battery of a mouse
        kind = _text(supply, "type")
        if kind == "Battery":
            status = _text(supply, "status")
            if status in CHARGED or status == "Discharging":
                found.add(status in CHARGED)
        elif kind:
            online = _text(supply, "online")
            if online in ("0", "1"):
                found.add(online == "1")
    if not found:
        return Reading("charging", None, "charging: unknown, the kernel shows no power supply")
    return Reading("charging", True in found, "charging: yes" if True in found else "charging: no, on battery")


def _temperature(root: Path, celsius_max: float) -> Reading:
    zones = [_number(zone, "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    known = [milli / 1000.0 for milli in zones if milli is not None]
    if not known:
        return Reading("temperature_celsius_max", None, "temperature: unknown, the kernel shows no thermal zone")
    text = f"temperature: {max(known):.0f} °C, at most {celsius_max:g}"
    return Reading("temperature_celsius_max", max(known) <= celsius_max, text)


def _load(root: Path, load_max: float) -> Reading:
    words = (_text(root, "proc/loadavg") or "").split()
    try:
        load = float(words[0])
    except (IndexError, ValueError):
        return Reading("load_max", None, "load: unknown, /proc/loadavg cannot be read")
    return Reading("load_max", load <= load_max, f"load: {load:g}, at most {load_max:g}")


def _memory(root: Path, bytes_min: int) -> Reading:
    rule = "memory_available_bytes_min"
    for line in (_text(root, "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and words[1].isdecimal():
            available = int(words[1]) * 1024
            return Reading(rule, available >= bytes_min, f"memory available: {available} bytes, at least {bytes_min}")
    return Reading(rule, None, "memory available: unknown, /proc/meminfo cannot be read")


def _default_links(root: Path) -> set[str]:
    """Names of the interfaces that a default route goes over, of IPv4 and IPv6."""
    links = set()
    for line in (_text(root, "proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) >= 8 and words[1] == words[7] == "00000000" and int(words[3], 16) & ROUTE_UP:
            links.add(words[0])
    for line in (_text(root, "proc/net/ipv6_route") or "").splitlines():
        words = line.split()
        if len(words) == 10 and words[1] == "00" and words[9] != "lo":
            links.add(words[9])
    return links


def _is_mobile(root: Path, name: str) -> bool:
    return name.startswith(MOBILE_PREFIXES) or "DEVTYPE=wwan" in (_text(root, f"sys/class/net/{name}/uevent") or "")


def _text(directory: Path, name: str) -> str | None:
    try:
        return (directory / name).read_text(errors="replace").strip()
    except OSError:
        return None


def _number(directory: Path, name: str) -> int | None:
    text = _text(directory, name)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
