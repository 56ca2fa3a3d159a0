"""All bytes of devices in real rounds, counted by a proxy before the broker: every topic, header, acknowledgement, status.

The broker is mosquitto, the coordinator a process of its own, each device an ``EdgeClient`` behind a proxy of its own.
Rounds have pauses between them in which nothing is under way, so that what a device sent and received belongs to one
round. A status is published every ten seconds at most, while these rounds take less: where a device published
none in a round, one is added as if it had, because slow rounds have one each.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from benchmarks.federation import NAME, Federation
from benchmarks.figures import Figure, at_most
from device_sim.counting_proxy import CountingProxy
from device_sim.packet_counts import DOWN, UP, Bytes, PacketCounts
from edge_sdk import EdgeClient, Progress
from edge_sdk.mqtt import BrokerSettings

__all__ = ["measure"]

SECONDS_MAX: Final = 120.0
QUIET_SECONDS: Final = 0.7
PAUSE_SECONDS: Final = 2.5
WARM_ROUNDS: Final = 3
"""The first rounds bring program and whole parameters, and tell the coordinator how many devices there are."""
CODEC: Final = 'name = "auto"'
STATUS: Final = "status"
TINY_BYTES_MAX: Final = 2000.0

Key = tuple[str, str]
"""Kind of message and direction."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One federation to count.

    Attributes:
        model: The ``[model]`` table.
        devices: How many there are.
        goal_count: How many of them are invited to each round.
        rounds: Rounds that are counted, after the first ones.
        protocol: Which MQTT the devices speak.
        examples: Gives a device's examples.
    """

    model: Mapping[str, Any]
    devices: int
    goal_count: int
    rounds: int
    protocol: Literal["5", "3.1.1"]
    examples: Callable[[int], tuple[Any, Any]]


def _pumps(device: int) -> tuple[Any, Any]:
    rng = np.random.Generator(np.random.PCG64(device))
    x = rng.standard_normal((64, 8), dtype=np.float32)
    return x, np.digitize(x.sum(axis=1), (-3.0, -1.0, 1.0, 3.0))


PUMPS: Final = Scenario(
    model={"zoo": "mlp", "inputs": [8], "outputs": 5, "hidden": [18]},
    devices=6,
    goal_count=6,
    rounds=4,
    protocol="5",
    examples=_pumps,
)


@dataclass(slots=True)
class _Device:
    """One device, its proxy, and what was counted of it by the end of each round."""

    proxy: CountingProxy
    counts: PacketCounts
    client: EdgeClient | None = None
    counted: set[int] = field(default_factory=set)
    at: dict[int, dict[Key, Bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counted:
    """Mean bytes of a device in a round, by kind: of those who took part, and of those who did not.

    Attributes:
        invited, idle: By kind of message and direction; packets are per device and round.
        first: All that a device's first contact took, up to the end of its first round, mean of all devices.
    """

    invited: dict[Key, dict[str, float]]
    idle: dict[Key, dict[str, float]]
    first: dict[Key, dict[str, float]]


def count(scenario: Scenario) -> Counted:
    """Runs the federation and counts."""
    last = WARM_ROUNDS + scenario.rounds
    options: dict[str, Any] = {"goal_count": scenario.goal_count, "rounds": last + 1, "pause_seconds": PAUSE_SECONDS}
    changed = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="edgefed-bench-") as folder,
        Federation(scenario.model, window_seconds=0.3, codec=CODEC, **options) as federation,
        ExitStack() as stack,
    ):
        federation.serve()
        devices = []
        for number in range(scenario.devices):
            counts = PacketCounts(NAME)
            proxy = stack.enter_context(CountingProxy(federation.broker.port, counts))
            device = _Device(proxy, counts)
            devices.append(device)
            device.client = stack.enter_context(_client(scenario, device, number, Path(folder), changed))
        for number in range(1, last + 1):
            _wait_for(changed, lambda number=number: sum(number in d.counted for d in devices) == scenario.goal_count)
            time.sleep(QUIET_SECONDS)
            for device in devices:
                device.at[number] = device.counts.snapshot()
    return _means(devices, range(WARM_ROUNDS + 1, last + 1))


def _client(scenario: Scenario, device: _Device, number: int, folder: Path, changed: threading.Event) -> EdgeClient:
    def on_progress(progress: Progress) -> None:
        if progress.what == "counted":
            device.counted.add(progress.round)
            changed.set()

    examples = scenario.examples(number)
    return EdgeClient(
        broker=BrokerSettings.parse(device.proxy.url, protocol=scenario.protocol),
        federation=NAME,
        device_id=f"pump-{number:02d}",
        load_examples=lambda: examples,
        state_dir=folder / str(number),
        engine="numpy",
        on_progress=on_progress,
    )


def _wait_for(changed: threading.Event, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not until():
        if not changed.wait(deadline - time.monotonic()):
            raise RuntimeError(f"no end of the round within {SECONDS_MAX:g} s")
        changed.clear()


def _means(devices: list[_Device], rounds: range) -> Counted:
    groups: dict[str, list[dict[Key, Bytes]]] = {"invited": [], "idle": []}
    for device in devices:
        for number in rounds:
            before, after = device.at[number - 1], device.at[number]
            spent = {key: found - before.get(key, Bytes()) for key, found in after.items()}
            groups["invited" if number in device.counted else "idle"].append(spent)
    first = [device.at[min(device.counted)] for device in devices if device.counted]
    return Counted(_mean(groups["invited"]), _mean(groups["idle"]), _mean(first))


def _mean(spent: list[dict[Key, Bytes]]) -> dict[Key, dict[str, float]]:
    sums: dict[Key, Bytes] = defaultdict(Bytes)
    for one in spent:
        for key, found in one.items():
            sums[key] = sums[key] - (Bytes() - found)
    return {
        key: {name: getattr(found, name) / len(spent) for name in (*Bytes.__dataclass_fields__, "total")}
        for key, found in sorted(sums.items())
        if found.packets
    }


def total(means: Mapping[Key, Mapping[str, float]]) -> float:
    """Bytes both ways."""
    return sum(found["total"] for found in means.values())


def with_status(counted: Counted) -> dict[Key, dict[str, float]]:
    """Those who took part, with one status in each round."""
    found = dict(counted.invited)
    seen = found.get((STATUS, UP)) or counted.first[STATUS, UP]
    found[STATUS, UP] = {name: value / seen["packets"] for name, value in seen.items()}
    return found


def measure() -> list[Figure]:
    """Bytes of a device and round, both ways, for a tiny model; who is not invited; the first contact."""
    figures = []
    for protocol in ("5", "3.1.1"):
        counted = count(replace(PUMPS, protocol=protocol))
        name = f"all bytes, 257 parameters, MQTT {protocol}"
        figures += [
            at_most(f"{name}: a device and round, both ways", total(with_status(counted)), "bytes", TINY_BYTES_MAX),
            Figure(f"{name}: first contact and first round", total(counted.first), "bytes"),
        ]
    half = count(replace(PUMPS, goal_count=3, rounds=6))
    figures.append(Figure("all bytes: a device that checks in and is not invited, a round", total(half.idle), "bytes"))
    return figures


def show(title: str, means: Mapping[Key, Mapping[str, float]]) -> None:
    """Prints a table by kind."""
    print(f"{title}: {total(means):.0f} bytes")
    print(f"  {'kind':20} {'':5} {'packets':>8} {'header':>8} {'topic':>8} {'payload':>8} {'acks':>8} {'total':>8}")
    for (kind, way), found in sorted(means.items(), key=lambda item: -item[1]["total"]):
        values = " ".join(f"{found[name]:8.2f}" for name in (*Bytes.__dataclass_fields__, "total"))
        print(f"  {kind:20} {way:5} {values}")
    for way in (UP, DOWN):
        print(f"  {way}: {sum(found['total'] for (_, w), found in means.items() if w == way):.0f}")


def main() -> None:
    """Prints the tables that the figures are made of; arguments: protocol, devices, goal_count."""
    protocol, devices, goal = (*sys.argv[1:], *("5", "6", "6")[len(sys.argv) - 1 :])
    counted = count(replace(PUMPS, protocol=protocol, devices=int(devices), goal_count=int(goal)))
    show("a device and round, with a status", with_status(counted))
    if counted.idle:
        show("a device that is not invited, a round", counted.idle)
    show("first contact and first round", counted.first)


if __name__ == "__main__":
    main()
