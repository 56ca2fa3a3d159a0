"""Which scenarios the tests and the soak play: storms drawn from a seed, and one short run that dies at every place.

A storm draws everything that can be drawn, so that faults meet that nobody would have put together by hand: the fleet,
the codec, the chunk size, the broker's limits, what the network does, who loses power and how often.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from coordinator.downlink import ADAPTIVE, PLAIN, Downlink
from device_sim.profiles import FleetProfile
from device_sim.scenario import FAULTY, Outcome, Scenario, run
from device_sim.world.crashes import CrashPlan
from device_sim.world.faults import Crash, NetworkFaults, Partition
from edge_sdk.aggregation.algorithm import ALGORITHMS
from edge_sdk.codecs import CODECS, CodecSettings
from edge_sdk.mqtt.events import Protocol
from edge_sdk.wire.plan import TrainingPlan
from edge_sdk.wire.ranges import DIRECT_BYTES_MAX

__all__ = ["POWER_CUT_SEED", "crash_points", "power_cut", "storm"]

POWER_CUT_SEED: Final = 5
_TRAINING: Final = TrainingPlan(epochs=1, batch_size=16, steps_max=6, seconds_max=120.0, scalars={"lr": 0.5})
_STEP_SECONDS: Final = 2.5
"""Few steps that take long: what is played is the protocol, and much can happen during a training."""
_COMMAND: Final = "python -m benchmarks.soak"
_OPTIMIZERS: Final = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
_PROTOCOLS: Final[tuple[Protocol, ...]] = ("5", "3.1.1")


def storm(seed: int) -> Scenario:
    """A small federation in bad weather; equal seeds give equal storms."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 4])))
    devices = int(rng.integers(3, 8))
    goal_count = int(rng.integers(2, max(3, devices // 2 + 1)))
    return Scenario(
        devices=devices,
        rounds=int(rng.integers(2, 4)),
        goal_count=goal_count,
        minimum_count=int(rng.integers(1, goal_count + 1)),
        codec=CodecSettings.of(_choice(rng, sorted(CODECS)), density=0.1, block_size=64),
        server_optimizer=_choice(rng, _OPTIMIZERS),
        training=_TRAINING,
        step_seconds=_STEP_SECONDS,
        faults=_faults(rng),
        profile=FleetProfile(dropout=_sometimes(rng, 0.15)),
        device_crashes_per_hour=_sometimes(rng, 30.0),
        coordinator_crashes_per_hour=_sometimes(rng, 40.0),
        chunk_bytes_max=_choice(rng, (256, 700, 2048, 58 * 1024)),
        retained_blobs=_choice(rng, ("auto", "always", "never")),
        small_bytes_max=_choice(rng, (0, DIRECT_BYTES_MAX)),
        downlink=_downlink(rng),
        algorithm=_choice(rng, sorted(ALGORITHMS)),
        clip_norm=_sometimes(rng, 0.5),
        norm_median_factor=_choice(rng, (None, 1.05, 3.0)),
        weighting=_choice(rng, ("examples", "uniform")),
        normalise=bool(rng.random() < 1 / 3),
        replay=f"{_COMMAND} --seed {seed}",
    )


def power_cut(plan: CrashPlan | None) -> Scenario:
    """A short run on a slightly bad day, statistics first, in which the power fails once, where the plan says."""
    scenario = Scenario(
        devices=3,
        normalise=True,
        rounds=2,
        goal_count=2,
        minimum_count=1,
        training=_TRAINING,
        step_seconds=_STEP_SECONDS,
        chunk_bytes_max=256,
        retained_blobs="always",
        small_bytes_max=0,
        downlink=Downlink(density=0.1, whole_bytes_min=0),
        faults=replace(FAULTY, disconnects_per_hour=10.0),
        profile=FleetProfile(dropout=0.0),
        crash=plan,
    )
    return scenario if plan is None else replace(scenario, replay=f"{_COMMAND} --crash {plan.side}:{plan.nth}")


def crash_points(sample_per_side: int | None = None) -> list[CrashPlan]:
    """Where the power may fail in :func:`power_cut`: every place that a run without a cut passes, or an even sample."""
    passed: Outcome = run(power_cut(None), POWER_CUT_SEED)
    plans: list[CrashPlan] = []
    for side, count in sorted(passed.points.items()):
        wanted = count if sample_per_side is None else min(sample_per_side, count)
        plans += [CrashPlan(side, 1 + i * count // wanted) for i in range(wanted)]
    return plans


def _downlink(rng: np.random.Generator) -> Downlink:
    """ModelDeltas for the small model too, a chain that is soon too short, or whole models."""
    how: Downlink = _choice(
        rng, (Downlink(), Downlink(density=0.05), Downlink(density=0.05, keeps=0.7), PLAIN, ADAPTIVE)
    )
    return replace(how, deltas_max=int(rng.integers(1, 6)), whole_bytes_min=0)


def _faults(rng: np.random.Generator) -> NetworkFaults:
    delay_seconds_max = float(rng.choice([0.01, 0.1, 2.0]))
    return NetworkFaults(
        delay_seconds_max=delay_seconds_max,
        loss=_sometimes(rng, 0.1),
        duplicate=_sometimes(rng, 0.2),
        reorder=_sometimes(rng, 0.2),
        disconnects_per_hour=_sometimes(rng, 120.0),
        notice_seconds_max=_sometimes(rng, 30.0),
        partitions=tuple(
            Partition(start, start + 10.0 + 150.0 * float(rng.random()), share=float(rng.random()))
            for start in 300.0 * rng.random(int(rng.integers(0, 3)))
        ),
        crashes=tuple(
            Crash(at, 1.0 + 20.0 * float(rng.random()), retained_lost=bool(rng.random() < 0.5))
            for at in 300.0 * rng.random(int(rng.integers(0, 4)))
        ),
        protocol=_choice(rng, _PROTOCOLS),
        packet_bytes_max=_choice(rng, (8_000, 20_000, 268_435_460)),
        receive_max=int(rng.integers(1, 20)),
        inflight_max=int(rng.integers(1, 20)),
        queued_messages_max=_choice(rng, (0, 0, 60)),
    )


def _choice(rng: np.random.Generator, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


def _sometimes(rng: np.random.Generator, largest: float) -> float:
    """Nothing in one storm of three; otherwise anything up to ``largest``."""
    return 0.0 if rng.random() < 1 / 3 else largest * float(rng.random())
