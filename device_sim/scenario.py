"""Coordinator and devices in virtual time: ``run(scenario, seed) -> Outcome``; the same seed, the same bytes.

What runs is what ships: the agent, the core, the store (SQLite in memory), the codec, the engine. Only clock, network,
disk and power are simulated. The invariants of ``checkers`` are checked as it goes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np

from coordinator.compile import build_zoo_model, compile_model
from coordinator.downlink import Downlink
from coordinator.evaluation import Evaluator
from coordinator.ingest import Ingest, pack_state
from coordinator.schedules.synchronous import RoundSettings
from coordinator.server_optimizers import make_server_optimizer
from coordinator.stopping import StoppingRule
from coordinator.store import Store
from coordinator.task import TaskSettings
from coordinator.validate import Validation
from device_sim.auditors.rounds import Auditor, InvariantBroken
from device_sim.datasets import Dataset, load_dataset, split_held_out
from device_sim.partitions import partition
from device_sim.profiles import FleetProfile, draw_profiles
from device_sim.world.clock import VirtualClock
from device_sim.world.coordinator import SimCoordinator
from device_sim.world.crashes import CrashPlan, CrashPoints
from device_sim.world.daily_usage import SECONDS_PER_DAY, DailyUsage
from device_sim.world.device import SimDevice
from device_sim.world.network import InMemoryBroker, NetworkFaults
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings, keeps_residual
from edge_sdk.codecs.frames import frames_bytes_max
from edge_sdk.device.agent import BlobMemory
from edge_sdk.device.work import EngineCache, spec_digest
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.training.examples import as_examples
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.topics import Topics

__all__ = ["FAULTY", "Outcome", "Scenario", "World", "run"]

TASK: Final = "default"
SETTLE_SECONDS_MAX: Final = 7200.0
QUIET_SECONDS: Final = 60.0

FAULTY: Final = NetworkFaults(
    loss=0.02,
    duplicate=0.05,
    reorder=0.05,
    disconnects_per_hour=20.0,
    notice_seconds_max=20.0,
)
"""A bad day: loss, duplicates, reordering, dropped connections; brokers' deaths are added by time."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        devices: Size of the fleet.
        rounds: Rounds to commit.
        goal_count: Updates that close a round.
        minimum_count: Updates below which it is abandoned.
        split: How ``digits`` is split over the devices, as in ``edge-fleet run --split``.
        codec: The update codec.
        downlink: How the model travels to devices.
        server_optimizer: Name of the server optimiser.
        training: How devices train.
        faults: The network.
        profile: From what the devices are drawn.
        crash: Where the power fails once; None for nowhere.
        device_crashes_per_hour: Random power cuts of each device.
        coordinator_crashes_per_hour: Random power cuts of the coordinator.
        bytes_per_update_max: As in the plan; 0 for no limit.
        bytes_per_device_per_day_max: As in the plan, and in each device's own configuration; 0 for no limit.
        chunk_bytes_max: Small, so that even a toy model travels in several pieces.
        retained_blobs: ``auto``, ``always`` or ``never``.
        step_seconds: Virtual time of one training step at speed 1.
        boot_seconds: Devices start within this time.
        window_seconds: Check-ins spread over this time.
        hours_max: Virtual time after which the scenario has failed.
        federation: Its name.
        replay: The command that plays it again; made up from the fields where empty.
    """

    devices: int = 20
    rounds: int = 4
    goal_count: int = 6
    minimum_count: int = 2
    split: str = "iid"
    codec: CodecSettings = field(default_factory=lambda: CodecSettings("sparse", density=0.1))
    downlink: Downlink = field(default_factory=Downlink)
    server_optimizer: str = "fedavg"
    training: TrainingPlan = field(
        default_factory=lambda: TrainingPlan(epochs=1, batch_size=16, seconds_max=120.0, scalars={"lr": 0.5})
    )
    faults: NetworkFaults = field(default_factory=NetworkFaults)
    profile: FleetProfile = field(default_factory=lambda: FleetProfile(dropout=0.05))
    crash: CrashPlan | None = None
    device_crashes_per_hour: float = 0.0
    coordinator_crashes_per_hour: float = 0.0
    bytes_per_update_max: int = 0
    bytes_per_device_per_day_max: int = 0
    chunk_bytes_max: int = 1024
    retained_blobs: str = "auto"
    step_seconds: float = 0.5
    boot_seconds: float = 5.0
    window_seconds: float = 5.0
    hours_max: float = 24.0
    federation: str = "scenario"
    replay: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; equal for equal scenario and seed.

    Attributes:
        finished: Why it ended.
        virtual_seconds: How long it took, in virtual time.
        digests: SHA-256 of each round's model.
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


class World:
    """What the parts of one run share."""

    def __init__(self, scenario: Scenario, seed: int, bundle: Bundle) -> None:
        self.scenario = scenario
        self.seed = seed
        self.clock = VirtualClock()
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0])))
        self.broker = InMemoryBroker(self.clock, rng, scenario.faults)
        self.points = CrashPoints(scenario.crash)
        self.blobs = BlobMemory(16)
        self.crashes = 0
        self.finished = ""
        self.daily_usage = DailyUsage(self.clock, scenario.bytes_per_device_per_day_max)
        self.task = _task(scenario, seed, bundle)
        self.fixed_point = FixedPoint()
        self.optimizer = make_server_optimizer(scenario.server_optimizer)
        self.auditor = Auditor(
            bundle.program,
            self.task.plan,
            self.optimizer,
            self.fixed_point,
            encode_parameters(bundle.parameters),
            pack_state(self.optimizer.init(bundle.program.spec.size)),
        )
        self.digest_of = digest_of


def run(scenario: Scenario, seed: int, bundle: Bundle | None = None) -> Outcome:
    """Plays the scenario with ``bundle``, a model of handwritten digits (8 x 8); softmax regression without one.

    Raises:
        InvariantBroken: A rule did not hold; the message ends with the command that replays the run.
    """
    try:
        return _run(scenario, seed, bundle or _bundle())
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


def _run(scenario: Scenario, seed: int, bundle: Bundle) -> Outcome:
    train, held_out = _digits()
    world = World(scenario, seed, bundle)
    clock, program = world.clock, bundle.program
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3])))
    store = Store(":memory:", wall=lambda: clock.now, new_id=chance.bytes)
    store.put_initial(
        TASK,
        program.encode(),
        encode_parameters(bundle.parameters),
        pack_state(world.optimizer.init(program.spec.size)),
    )

    def make_ingest() -> Ingest:
        validation = Validation(size=program.spec.size)
        return Ingest(
            store, program, world.task.plan, validation, world.optimizer, world.fixed_point, scenario.downlink
        )

    evaluator = Evaluator(program, as_examples((held_out.x, held_out.y), program), engine="numpy")
    coordinator = SimCoordinator(world, store, make_ingest, evaluator)
    engines = EngineCache("numpy")
    parts = partition(train, scenario.split, scenario.devices, seed)
    profiles = draw_profiles(scenario.devices, seed, scenario.profile)
    devices = [
        SimDevice(world, number, profile, (train.x[part], train.y[part]), engines)
        for number, (profile, part) in enumerate(zip(profiles, parts, strict=True))
    ]
    coordinator.boot()
    for device in devices:
        device.boot()
    _schedule_crashes(world, coordinator, devices, chance)
    _until_finished(world, scenario)
    _settle(world, store, devices)
    outcome = _outcome(world, coordinator, store, devices)
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
    kept = keeps_residual(world.task.plan.codec)
    for device in devices:
        if device.state is not None and device.alive:
            residual = device.state.residual(spec_digest(world.auditor.program))
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


@lru_cache(maxsize=1)
def _bundle() -> Bundle:
    model = build_zoo_model("softmax_regression", inputs=(64,), outputs=10, seed=0)
    return compile_model(model, loss="softmax_cross_entropy", optimizer="sgd", name="softmax_regression", verify=False)


@lru_cache(maxsize=1)
def _digits() -> tuple[Dataset, Dataset]:
    return split_held_out(load_dataset("digits"), 0.2, 0)


def _task(scenario: Scenario, seed: int, bundle: Bundle) -> TaskSettings:
    program = bundle.program
    return TaskSettings(
        federation=scenario.federation,
        task=TASK,
        round=RoundSettings(
            goal_count=scenario.goal_count,
            minimum_count=scenario.minimum_count,
            over_selection=1.3,
            window_seconds=scenario.window_seconds,
            selection_seconds_max=300.0,
            configuration_seconds_max=60.0,
            reporting_seconds_max=300.0,
        ),
        plan=Plan(
            training=scenario.training,
            codec=scenario.codec,
            bytes_per_update_max=scenario.bytes_per_update_max,
            bytes_per_device_per_day_max=scenario.bytes_per_device_per_day_max,
        ),
        stopping=StoppingRule(rounds_max=scenario.rounds),
        program_digest=program.digest,
        requires=(f"codec:{scenario.codec.name}",),
        come_back_seconds=120.0,
        retry_seconds=10.0,
        chunk_bytes_max=scenario.chunk_bytes_max,
        update_bytes_max=frames_bytes_max(program.spec, scenario.codec) + 4096,
        retained_blobs=scenario.retained_blobs,
        dense_bytes=4 * program.spec.size,
        seed=seed,
    )
