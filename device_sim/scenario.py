"""Coordinator and devices in virtual time: ``run(scenario, seed) -> Outcome``; the same seed, the same bytes.

What runs is what ships: the agent, the core, the store (SQLite in memory), the codec, the engine. Only clock, network,
disk and power are simulated. The invariants of ``checkers`` are checked as it goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np

from coordinator.compile import NormaliseOptions, build_zoo_model, compile_model
from coordinator.evaluation import Evaluator
from coordinator.pipeline import Aggregator, TaskWorker, pack_memory
from coordinator.statistics_round import first_round, opening_pipeline
from coordinator.store import Store
from device_sim.auditors.rounds import InvariantBroken
from device_sim.datasets import Dataset, load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from device_sim.profiles import draw_profiles
from device_sim.world.coordinator import SimCoordinator
from device_sim.world.daily_usage import SECONDS_PER_DAY
from device_sim.world.device import SimDevice
from device_sim.world.network import NetworkFaults
from device_sim.world.world import TASK, Scenario, World
from edge_sdk.codecs import RESIDUAL
from edge_sdk.device.work import EngineCache, spec_digest
from edge_sdk.training.bundle import Bundle, encode_parameters
from edge_sdk.training.examples import as_examples
from edge_sdk.wire.topics import Topics

__all__ = ["FAULTY", "Outcome", "Scenario", "World", "run"]

SETTLE_SECONDS_MAX: Final = 7200.0
QUIET_SECONDS: Final = 60.0
HELD_OUT_SHARE: Final = 0.2

FAULTY: Final = NetworkFaults(
    loss=0.02,
    duplicate=0.05,
    reorder=0.05,
    disconnects_per_hour=20.0,
    notice_seconds_max=20.0,
)
"""A bad day: loss, duplicates, reordering, dropped connections; brokers' deaths are added by time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; equal for equal scenario and seed.

    Attributes:
        finished: Why it ended.
        virtual_seconds: How long it took, in virtual time.
        digests: SHA-256 of each round's model, here and below with round 0 first where there was one.
        cohorts: Devices that made each round's model; ``simulate(cohorts=...)`` makes the same one of them.
        rounds: Verdict counts of each committed round.
        abandoned: Rounds that were abandoned.
        crashes: Power cuts of devices and coordinator.
        messages: Messages that the broker took and delivered.
        followed: How often a device made its parameters out of deltas.
        not_followed: How often it could not, and fetched them whole.
        metrics: The last evaluation.
        points: How often each side passed its crash points.
        died_at: Where the planned crash struck.
        trace: SHA-256 over the end state of everything.
    """

    finished: str
    virtual_seconds: float
    digests: tuple[bytes, ...]
    cohorts: tuple[tuple[str, ...], ...]
    rounds: tuple[dict[str, int], ...]
    abandoned: int
    crashes: int
    messages: int
    followed: int
    not_followed: int
    metrics: dict[str, float]
    points: dict[str, int]
    died_at: str
    trace: bytes


AtEnd: TypeAlias = Callable[[World, Store, list[SimDevice]], None]


def run(
    scenario: Scenario,
    seed: int,
    bundle: Bundle | None = None,
    *,
    data: Dataset | None = None,
    at_end: AtEnd | None = None,
) -> Outcome:
    """Plays the scenario.

    Args:
        scenario: What is simulated.
        seed: Of everything drawn.
        bundle: The model, which decides whether there is a round of statistics; without one, softmax regression of
            handwritten digits (8 x 8), normalised as the scenario says.
        data: What is dealt to the devices; those digits without it. A fifth is held out where no part is marked.
        at_end: Shown everything once all is settled, for checks of its own.

    Raises:
        ConfigurationError: Data, split and model do not fit each other.
        InvariantBroken: A rule did not hold; the message ends with the command that replays the run.
    """
    try:
        halves = _digits() if data is None else _halves(data)
        return _run(scenario, seed, bundle or _bundle(scenario.normalise), halves, at_end)
    except InvariantBroken as error:
        raise InvariantBroken(f"{error}\nreplay: {replay_command(scenario, seed)}") from error


def replay_command(scenario: Scenario, seed: int) -> str:
    """The one command that plays this run again."""
    if scenario.replay:
        return scenario.replay
    words = [f"edge-fleet scenario --seed {seed} --devices {scenario.devices} --rounds {scenario.rounds}"]
    if scenario.faults != NetworkFaults():
        words.append("--faults")
    if scenario.crash is not None:
        words.append(f"--crash {scenario.crash.side}:{scenario.crash.nth}")
    for name in ("device_crashes_per_hour", "coordinator_crashes_per_hour"):
        if getattr(scenario, name):
            words.append(f"--{name.replace('_', '-')} {getattr(scenario, name):g}")
    return " ".join(words)


def _run(
    scenario: Scenario, seed: int, bundle: Bundle, halves: tuple[Dataset, Dataset], at_end: AtEnd | None
) -> Outcome:
    train, held_out = halves
    world = World(scenario, seed, bundle)
    clock, program = world.clock, bundle.program
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3])))
    store = Store(":memory:", wall=lambda: clock.now, new_id=chance.bytes)
    aggregator = Aggregator(program, world.task.plan, world.pipeline)
    memory = aggregator.initial_memory()
    store.put_initial(
        TASK,
        program.encode(),
        encode_parameters(bundle.parameters),
        pack_memory(memory),
        aggregator.broadcast(bundle.parameters, memory),
        before_round=first_round(program, bundle.parameters),
    )

    def make_ingest() -> TaskWorker:
        training = Aggregator(program, world.task.plan, world.pipeline)
        return TaskWorker(store, TASK, training, opening_pipeline(world.task, training))

    engine = "numpy" if program.train_plan.outputs else "auto"
    evaluator = None
    if len(held_out):
        evaluator = Evaluator(program, as_examples(held_out.examples, program), engine=engine)
    coordinator = SimCoordinator(world, store, make_ingest, evaluator)
    engines = EngineCache(engine)
    parts = partition(train, scenario.split, scenario.devices, seed)
    profiles = draw_profiles(scenario.devices, seed, scenario.profile)
    devices = [
        SimDevice(world, number, profile, train.part(part), engines)
        for number, (profile, part) in enumerate(zip(profiles, parts, strict=True))
    ]
    coordinator.boot()
    for device in devices:
        device.boot()
    _schedule_crashes(world, coordinator, devices, chance)
    _until_finished(world, scenario)
    _settle(world, store, devices)
    outcome = _outcome(world, coordinator, store, devices)
    if at_end is not None:
        at_end(world, store, devices)
    store.close()
    return outcome


def _until_finished(world: World, scenario: Scenario) -> None:
    while not world.finished:
        if world.clock.now > scenario.hours_max * 3600.0:
            raise InvariantBroken(f"not finished after {scenario.hours_max:g} virtual hours: a round did not end")
        world.clock.run(until=world.clock.now + 1.0)


def _settle(world: World, store: Store, devices: list[SimDevice]) -> None:
    """Time for every device to hear of its last outcome; then the books must balance."""
    seconds_max = SETTLE_SECONDS_MAX
    if world.scenario.bytes_per_device_per_day_max:
        seconds_max += SECONDS_PER_DAY  # who is at the limit asks tomorrow
    until = world.clock.now + seconds_max
    while open_ends := [*store.retained(), *(device.name for device in devices if not device.settled)]:
        if world.clock.now > until:
            raise InvariantBroken(f"not settled {seconds_max:.0f} s after the end: {open_ends}")
        world.clock.run(until=world.clock.now + 5.0)
    world.clock.run(until=world.clock.now + QUIET_SECONDS)  # what is still under way must change nothing
    world.auditor.check_store(store, TASK)
    left = world.broker.retained_topics(f"{Topics(world.scenario.federation).root}/blobs/#")
    if left:
        raise InvariantBroken(f"{len(left)} retained pieces are left at the broker: {left[0]}")
    codec = world.task.plan.codec
    # With a velocity the books are another sum.
    kept = RESIDUAL in codec.keeps and not getattr(codec.codec, "momentum", 0.0)
    for device in devices:
        if device.state is not None and device.alive:
            residual = device.state.vectors(spec_digest(world.auditor.program)).get(RESIDUAL)
            world.auditor.check_books(device.name, residual, settled=device.state.outbox is None, kept=kept)


def _schedule_crashes(
    world: World, coordinator: SimCoordinator, devices: list[SimDevice], rng: np.random.Generator
) -> None:
    scenario = world.scenario

    def cut(target: SimCoordinator | SimDevice, per_hour: float) -> None:
        if world.finished:
            return
        if isinstance(target, SimCoordinator) or target.alive:
            target.crash()
        plan(target, per_hour)

    def plan(target: SimCoordinator | SimDevice, per_hour: float) -> None:
        world.clock.call_later(float(rng.exponential(3600.0 / per_hour)) + 60.0, cut, target, per_hour)

    if scenario.coordinator_crashes_per_hour:
        plan(coordinator, scenario.coordinator_crashes_per_hour)
    if scenario.device_crashes_per_hour:
        for device in devices:
            plan(device, scenario.device_crashes_per_hour)


def _outcome(world: World, coordinator: SimCoordinator, store: Store, devices: list[SimDevice]) -> Outcome:
    records = store.rounds(TASK, limit=1_000_000)
    trace = hashlib.sha256()
    trace.update(repr(world.clock.now).encode())
    for digest in world.auditor.digests:
        trace.update(digest)
    trace.update(repr(world.auditor.rounds).encode())
    trace.update(repr(world.broker.counters).encode())
    for device in devices:
        trace.update(b"" if device.state is None else device.state.instance)
    traffic = world.broker.traffic()
    return Outcome(
        finished=world.finished,
        virtual_seconds=world.clock.now,
        digests=tuple(world.auditor.digests),
        cohorts=tuple(world.auditor.cohorts),
        rounds=tuple(world.auditor.rounds),
        abandoned=sum(record.phase == "abandoned" for record in records),
        crashes=world.crashes,
        messages=traffic.messages_up + traffic.messages_down,
        followed=world.auditor.followed,
        not_followed=world.auditor.not_followed,
        metrics=dict(coordinator.metrics),
        points=dict(world.points.passed),
        died_at=world.points.died_at,
        trace=trace.digest(),
    )


@lru_cache(maxsize=2)
def _bundle(normalise: bool) -> Bundle:
    model = build_zoo_model("softmax_regression", inputs=(64,), outputs=10, seed=0)
    return compile_model(
        model,
        loss="softmax_cross_entropy",
        optimizer="sgd",
        normalise=NormaliseOptions("federated") if normalise else None,
        name="softmax_regression",
        verify=False,
    )


@lru_cache(maxsize=1)
def _digits() -> tuple[Dataset, Dataset]:
    return _halves(load_dataset("digits"))


def _halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """Examples for the devices, and those that nobody trains on."""
    return split_held_out(data, HELD_OUT_SHARE, 0)
