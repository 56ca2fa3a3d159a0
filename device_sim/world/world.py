"""What is simulated (``Scenario``) and what the parts of one run share (``World``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from coordinator.downlink import Downlink
from coordinator.pipeline import PipelineSettings, make_step
from coordinator.schedules.selection import make_rule
from coordinator.schedules.synchronous import RoundSettings
from coordinator.server_optimizers import make_server_optimizer
from coordinator.statistics_round import statistics_round
from coordinator.stopping import StoppingRule
from coordinator.task_settings import TaskSettings
from coordinator.validate import Validation
from device_sim.auditors.rounds import Auditor
from device_sim.profiles import FleetProfile
from device_sim.world.clock import VirtualClock
from device_sim.world.crashes import CrashPlan, CrashPoints
from device_sim.world.daily_usage import DailyUsage
from device_sim.world.network import InMemoryBroker, NetworkFaults
from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import frames_bytes_max
from edge_sdk.device.blobs import BlobMemory
from edge_sdk.training.algorithms import LocalAlgorithm
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.ranges import DIRECT_BYTES_MAX

__all__ = ["TASK", "Scenario", "World"]

TASK: Final = "default"
NORMS_NEEDED: Final = 3
"""Scenarios are short: a bound that follows from norms is there from the second round on."""


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
        algorithm: Name of the algorithm, or ``"package.module:Class"``.
        reference: Which of the auditor's references says what it makes of deltas; the one of its own name where empty.
        local_algorithms: The devices' halves of algorithms of one's own, by name.
        clip_norm: L2 norm that updates are scaled down to by the coordinator; 0 for no such step.
        norm_median_factor: Largest norm of an update as a multiple of the median of recent ones; None for no bound.
        weighting: ``examples`` or ``uniform``.
        normalise: Whether the model is normalised by all devices together, which report statistics in a round 0.
        rule: Who takes part: ``uniform``, or the name of a rule of one's own.
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
        small_bytes_max: Updates up to so many bytes need no offer; such deltas come with the invite.
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
    algorithm: str = "mean"
    reference: str = ""
    local_algorithms: Mapping[str, LocalAlgorithm] = field(default_factory=dict)
    clip_norm: float = 0.0
    norm_median_factor: float | None = None
    weighting: str = "examples"
    normalise: bool = False
    rule: str = "uniform"
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
    small_bytes_max: int = DIRECT_BYTES_MAX
    step_seconds: float = 0.5
    boot_seconds: float = 5.0
    window_seconds: float = 5.0
    hours_max: float = 24.0
    federation: str = "scenario"
    replay: str = ""


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
        self.pipeline = _pipeline(scenario, bundle)
        self.auditor = Auditor(
            bundle.program,
            self.task.plan,
            self.pipeline,
            encode_parameters(bundle.parameters),
            algorithm=scenario.reference or scenario.algorithm,
            clip_norm=scenario.clip_norm,
        )
        self.digest_of = digest_of


def _pipeline(scenario: Scenario, bundle: Bundle) -> PipelineSettings:
    bounds = Validation(
        size=bundle.program.spec.size, norm_median_factor=scenario.norm_median_factor, norms_needed=NORMS_NEEDED
    )
    return PipelineSettings(
        bounds,
        make_algorithm(scenario.algorithm),
        make_server_optimizer(scenario.server_optimizer),
        downlink=scenario.downlink,
        steps=(("clip", make_step("clip", {"norm": scenario.clip_norm})),) if scenario.clip_norm else (),
    )


def _task(scenario: Scenario, seed: int, bundle: Bundle) -> TaskSettings:
    program = bundle.program
    algorithm = make_algorithm(scenario.algorithm)
    plan = Plan(
        training=scenario.training,
        codec=scenario.codec,
        weighting=scenario.weighting,
        bytes_per_update_max=scenario.bytes_per_update_max,
        bytes_per_device_per_day_max=scenario.bytes_per_device_per_day_max,
        local=algorithm.local,
        local_settings=algorithm.local_settings(),
    )
    vectors = 1 + len(algorithm.vectors)
    settings = TaskSettings(
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
        plan=plan,
        stopping=StoppingRule(rounds_max=scenario.rounds),
        program_digest=program.digest,
        requires=plan.requires,
        come_back_seconds=120.0,
        retry_seconds=10.0,
        chunk_bytes_max=scenario.chunk_bytes_max,
        update_bytes_max=vectors * frames_bytes_max(program.spec, scenario.codec) + 4096,
        retained_blobs=scenario.retained_blobs,
        inline_bytes_max=scenario.small_bytes_max,
        dense_bytes=4 * int(np.count_nonzero(~program.spec.mask("constant"))),
        mended_by_attempts=() if scenario.norm_median_factor is None else ("norm",),
        seed=seed,
        rule=make_rule(scenario.rule),
    )
    return replace(settings, opening=statistics_round(settings, program))
