"""All bytes of devices in real rounds, counted by a proxy before the broker: topics, headers, acknowledgements, status.

The broker is mosquitto, the coordinator a process of its own, each device an ``EdgeClient`` behind a proxy of its own.
Rounds have pauses between them in which nothing is under way, so that what a device sent and received belongs to one
round. A status is published once a minute at most, while these rounds take less: where a device published none in a
round, one is added as if it had, because slow rounds have one each. The first rounds, which bring program and whole
parameters, have no bounds and are told beside them. Of the demo everything is counted, from the first connection on.
"""

from __future__ import annotations

import functools
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

from benchmarks.device_process import Replay
from benchmarks.federation import NAME, Federation
from benchmarks.figures import Figure, at_least, at_most, skipped
from benchmarks.vectors import GAUSSIAN_MODEL, MNIST_MODEL, gaussian, mnist_file
from coordinator.store import Store
from device_sim.counting_proxy import CountingProxy
from device_sim.demo import DemoSettings, run_demo
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
MILLION: Final = {
    "FedAvg": ("", 55.0),
    "server momentum": ('server_optimizer = "fedavgm"\nlearning_rate = 0.2\nmomentum = 0.9', 180.0),
}
"""Lines of ``[aggregation]``, and the most kB."""
DEMO_MIN: Final = 40.0

Protocol = Literal["5", "3.1.1"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("5", "3.1.1")
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
        trainer: Gives a device's trainer; None trains for real.
        training: Further lines of the ``[training]`` table.
        aggregation: Lines of the ``[aggregation]`` table.
    """

    model: Mapping[str, Any]
    devices: int
    goal_count: int
    rounds: int
    protocol: Protocol
    examples: Callable[[int], tuple[Any, Any]]
    trainer: Callable[[int], Replay] | None = None
    training: str = ""
    aggregation: str = ""


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


def _gaussian(aggregation: str) -> Scenario:
    """Updates that are the same in each round, and independent from device to device."""
    inputs = int(GAUSSIAN_MODEL["inputs"][0])  # type: ignore[index]
    return Scenario(
        model=GAUSSIAN_MODEL,
        devices=10,
        goal_count=10,
        rounds=3,
        protocol="5",
        examples=lambda device: (np.zeros((1, inputs), dtype=np.float32), np.zeros(1, dtype=np.int64)),
        trainer=lambda device: Replay(gaussian(seed=device)),
        aggregation=aggregation,
    )


def _mnist(file: Path, aggregation: str) -> Scenario:
    """600 examples for each of ten devices, of all classes."""
    with np.load(file) as data:
        x, y = data["x_train"], data["y_train"]
    x = x.reshape(len(x), -1).astype(np.float32) / np.float32(255.0)
    return Scenario(
        model=MNIST_MODEL,
        devices=10,
        goal_count=10,
        rounds=4,
        protocol="5",
        examples=lambda device: (x[device::100], y[device::100].astype(np.int64)),
        training="learning_rate = 0.1\nbatch_size = 32",
        aggregation=aggregation,
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
        Federation(
            scenario.model,
            window_seconds=0.3,
            codec=CODEC,
            training=scenario.training,
            aggregation=scenario.aggregation,
            **options,
        ) as federation,
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
            _wait_for(changed, functools.partial(_is_over, devices, number, scenario.goal_count))
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
        trainer=None if scenario.trainer is None else scenario.trainer(number),
        on_progress=on_progress,
    )


def _is_over(devices: list[_Device], number: int, goal_count: int) -> bool:
    return sum(number in device.counted for device in devices) == goal_count


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
    """Bytes of a device and round, both ways; who is not invited; the first contact; the demo in all."""
    return [*tiny(), *million(), demo()]


def tiny() -> list[Figure]:
    """A fleet of pumps with a model of 257 parameters."""
    figures = []
    for protocol in PROTOCOLS:
        counted = count(replace(PUMPS, protocol=protocol))
        name = f"all bytes, 257 parameters, MQTT {protocol}"
        figures += [
            at_most(f"{name}: a device and round, both ways", total(with_status(counted)), "bytes", TINY_BYTES_MAX),
            Figure(f"{name}: first contact and first round", total(counted.first), "bytes"),
        ]
    half = count(replace(PUMPS, goal_count=3, rounds=6))
    figures.append(Figure("all bytes: a device that checks in and is not invited, a round", total(half.idle), "bytes"))
    return figures


def million() -> list[Figure]:
    """Ten devices with a model of a million parameters, under FedAvg and under server momentum.

    Gaussian updates are the hardest case, since nothing in them is structured; the others are of real training.
    """
    file = mnist_file()
    figures = []
    for name, (aggregation, bound) in MILLION.items():
        hard = f"all bytes, 1,000,000 parameters, Gaussian updates, cohort 10, {name}"
        real = f"all bytes, MLP of 987,210 parameters on MNIST, cohort 10, {name}"
        figures += _of_million(hard, _gaussian(aggregation), 1_000_000, bound)
        if file is None:
            figures.append(skipped(f"{real}: a device and round, both ways", "kB", f"<= {bound:g}"))
        else:
            figures += _of_million(real, _mnist(file, aggregation), 987_210, bound)
    return figures


def _of_million(name: str, scenario: Scenario, parameters: int, bound: float) -> list[Figure]:
    counted = count(scenario)
    spent = total(with_status(counted)) / 1e3
    return [
        at_most(f"{name}: a device and round, both ways", spent, "kB", bound),
        Figure(f"{name}: dense float32 / all bytes", 8 * parameters / 1e3 / spent, "x"),
        Figure(f"{name}: first contact and first round", total(counted.first) / 1e3, "kB"),
    ]


def demo() -> Figure:
    """``edge-fleet demo``: dense float32, up and down for each device and round, beside all bytes of the whole run."""
    with tempfile.TemporaryDirectory(prefix="edgefed-bench-") as folder, ExitStack() as stack:
        proxies: list[CountingProxy] = []

        def between(broker: BrokerSettings) -> BrokerSettings:
            proxies.append(stack.enter_context(CountingProxy(broker.port)))
            return replace(broker, port=proxies[0].port)

        settings = DemoSettings(folder=Path(folder) / "demo", between=between)
        run_demo(settings, terminal=False)
        with Store.open_readonly(settings.folder / "state" / "demo-default.db") as store:
            rounds = [record.summary for record in store.rounds("default", limit=100_000)]
        dense = sum(round_["bytes_up_dense"] + round_["bytes_down_dense"] for round_ in rounds)
        return at_least("all bytes, digits demo: dense float32 / all bytes", dense / proxies[0].total, "x", DEMO_MIN)


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
    spoken = next(each for each in PROTOCOLS if each == protocol)
    counted = count(replace(PUMPS, protocol=spoken, devices=int(devices), goal_count=int(goal)))
    show("a device and round, with a status", with_status(counted))
    if counted.idle:
        show("a device that is not invited, a round", counted.idle)
    show("first contact and first round", counted.first)


if __name__ == "__main__":
    main()
