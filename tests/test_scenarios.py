"""Whole federations in virtual time: bad weather drawn from seeds, and a power cut at every kind of place.

What is checked in each run stands in ``device_sim/auditors/rounds.py``. ``make soak`` plays thousands of these.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from coordinator.downlink import Downlink
from device_sim.auditors.models import REFERENCES
from device_sim.profiles import FleetProfile
from device_sim.scenario import FAULTY, Scenario, replay_command, run
from device_sim.trials import POWER_CUT_SEED, crash_points, power_cut, storm
from device_sim.world.crashes import CrashPlan
from device_sim.world.faults import Crash
from edge_sdk.aggregation.algorithm import ALGORITHMS
from edge_sdk.codecs import CODECS, CodecSettings

SEEDS = 100
SEEDS_PER_TEST = 10
CRASHES_PER_SIDE = 60


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_every_invariant_holds_in_every_storm(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        scenario = storm(seed)
        outcome = run(scenario, seed)  # a broken invariant names the seed and the command that replays it
        assert len(outcome.rounds) == scenario.rounds + scenario.normalise, replay_command(scenario, seed)
        for verdicts in outcome.rounds:
            assert verdicts["counted"] >= scenario.minimum_count, replay_command(scenario, seed)


@pytest.mark.parametrize("seed", range(4))
def test_devices_that_lose_power_in_mid_round_go_on_with_their_tickets(seed: int) -> None:
    """Every round needs all four devices. Waiting for the end of each round that one was lost in would take hours."""
    everyone = Scenario(devices=4, rounds=3, goal_count=4, minimum_count=4, profile=FleetProfile(dropout=0.4))
    outcome = run(everyone, seed)
    assert outcome.crashes > 0
    assert [tally["counted"] for tally in outcome.rounds] == [4, 4, 4]
    assert outcome.virtual_seconds < 600.0, "a round alone may wait for 300 s"


def test_the_storms_do_what_they_are_for() -> None:
    storms = [storm(seed) for seed in range(SEEDS)]
    assert sum(bool(s.faults.crashes) for s in storms) > SEEDS / 3
    assert sum(s.device_crashes_per_hour > 0 for s in storms) > SEEDS / 3
    assert sum(s.coordinator_crashes_per_hour > 0 for s in storms) > SEEDS / 3
    assert sum(s.faults.loss > 0 and s.faults.duplicate > 0 and s.faults.reorder > 0 for s in storms) > SEEDS / 10
    assert {s.codec.name for s in storms} == set(CODECS)
    assert {s.algorithm for s in storms} == set(ALGORITHMS) == set(REFERENCES)
    assert {s.weighting for s in storms} == {"examples", "uniform"}
    assert sum(s.clip_norm > 0 for s in storms) > SEEDS / 3
    assert {s.norm_median_factor for s in storms} == {None, 1.05, 3.0}
    assert SEEDS / 5 < sum(s.normalise for s in storms) < SEEDS / 2
    assert {(s.downlink.share, s.downlink.density, s.downlink.keeps) for s in storms} == {
        (0.0, 0.0, 1.0), (0.0, 0.05, 1.0), (0.0, 0.05, 0.7), (0.1, 0.0, 1.0), (0.6, 0.0, 0.7)
    }  # fmt: skip
    assert max(s.downlink.deltas_max for s in storms) > 4, "model deltas are merged"


def test_the_same_seed_gives_the_same_outcome_to_the_byte() -> None:
    scenario = replace(storm(9), device_crashes_per_hour=30.0, coordinator_crashes_per_hour=30.0)
    first, again = run(scenario, 9), run(scenario, 9)
    assert first == again
    assert run(scenario, 10).trace != first.trace


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_outcome_does_not_depend_on_the_process(hash_seed: str) -> None:
    here = run(storm(4), 4)
    code = "from device_sim.trials import *; from device_sim.scenario import run; print(run(storm(4), 4).trace.hex())"
    there = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert there.stdout.strip() == here.trace.hex()


def test_power_may_fail_anywhere() -> None:
    plans = crash_points(CRASHES_PER_SIDE)
    assert len(plans) == 2 * CRASHES_PER_SIDE
    struck: set[str] = set()
    for plan in plans:
        outcome = run(power_cut(plan), POWER_CUT_SEED)
        assert outcome.died_at and outcome.crashes >= 1, plan
        assert len(outcome.rounds) == 1 + 2, replay_command(power_cut(plan), POWER_CUT_SEED)
        struck.add(outcome.died_at.partition(" at ")[2])
    assert len(struck) > 15, "the sample strikes many different places"


def test_power_may_fail_anywhere_in_a_round_of_statistics() -> None:
    """One round of training behind it, so that half of the places are in it; ``make soak`` strikes all."""
    short = replace(power_cut(None), rounds=1)
    struck: set[str] = set()
    for side, count in run(short, POWER_CUT_SEED).points.items():
        for nth in range(1, count + 1, 3):
            outcome = run(replace(short, crash=CrashPlan(side, nth)), POWER_CUT_SEED)
            assert outcome.died_at and len(outcome.rounds) == 1 + 1, (side, nth)
            struck.add(outcome.died_at.partition(" at ")[2])
    assert len(struck) > 20 and any("round commit" in place for place in struck)


def test_power_may_fail_anywhere_where_small_updates_and_small_models_are_not_asked_for() -> None:
    small = replace(power_cut(None), rounds=1, small_bytes_max=4096, normalise=False)
    struck: set[str] = set()
    for side, count in run(small, POWER_CUT_SEED).points.items():
        for nth in range(2, count + 1, 5):
            outcome = run(replace(small, crash=CrashPlan(side, nth)), POWER_CUT_SEED)
            assert outcome.died_at and len(outcome.rounds) == 1, (side, nth)
            struck.add(outcome.died_at.partition(" at ")[2])
    assert len(struck) > 8, "the sample strikes many different places"


def test_a_failing_run_names_the_command_that_replays_it() -> None:
    with pytest.raises(AssertionError, match=r"replay: python -m benchmarks.soak --seed 3"):
        run(replace(storm(3), hours_max=0.001), 3)
    assert replay_command(power_cut(CrashPlan("device", 7)), 5) == "python -m benchmarks.soak --crash device:7"
    named = Scenario(faults=FAULTY, crash=CrashPlan("device", 3), coordinator_crashes_per_hour=2.0)
    assert replay_command(named, 8).startswith("edge-fleet scenario --seed 8 --devices 20 --rounds 4 --faults --crash")


def test_a_lost_last_outcome_is_asked_for_even_where_no_connection_ever_drops() -> None:
    """Nobody reconnects and nobody is told again: the announcement of the end alone brings the check-in."""
    scenario = Scenario(
        devices=5,
        rounds=1,
        goal_count=3,
        profile=FleetProfile(dropout=0.0),
        faults=replace(FAULTY, loss=0.3, disconnects_per_hour=0.0),
    )
    # A device that loses both the pushed outcome and the announcement (.09) is brought to ask by the timer behind them;
    # one in a hundred runs loses what that timer has brought, too.
    took = sorted(run(scenario, seed).virtual_seconds for seed in range(1, 22))
    assert took[len(took) // 2] < 900.0 and took[-2] < 2400.0, took


def test_a_coordinator_that_dies_all_the_time_still_ends_its_rounds() -> None:
    """The clock of a phase is persisted as it runs (rule 11), not only when something happens."""
    scenario = Scenario(
        devices=4,
        rounds=1,
        goal_count=3,
        minimum_count=1,
        profile=FleetProfile(dropout=0.6),
        coordinator_crashes_per_hour=60.0,
        hours_max=3.0,
    )
    assert len(run(scenario, 1).rounds) == 1


def test_devices_that_miss_rounds_follow_over_links_whoever_dies() -> None:
    """Each trains on what its invite names, to the bit: ``checkers.py`` compares."""
    for seed in range(3):
        scenario = Scenario(
            devices=6,
            rounds=6,
            goal_count=2,
            minimum_count=1,
            downlink=Downlink(density=0.05, deltas_max=4, whole_bytes_min=0),
            faults=replace(FAULTY, disconnects_per_hour=60.0),
            profile=FleetProfile(dropout=0.1),
            device_crashes_per_hour=10.0,
            coordinator_crashes_per_hour=30.0,
        )
        outcome = run(scenario, seed)
        assert len(outcome.rounds) == 6 and outcome.followed >= 6


def test_a_broker_that_forgets_everything_costs_time_only() -> None:
    crashes = tuple(Crash(at, 3.0, retained_lost=True) for at in (6.0, 14.0, 22.0, 30.0, 38.0))
    scenario = Scenario(devices=6, rounds=2, goal_count=4, faults=replace(FAULTY, crashes=crashes))
    assert len(run(scenario, 2).rounds) == 2


def test_a_bound_that_most_devices_exceed_gives_way_and_rounds_go_on() -> None:
    """Error feedback makes updates longer while none counts: without giving way no round would ever close again."""
    scenario = Scenario(
        devices=8,
        rounds=6,
        goal_count=4,
        minimum_count=3,
        norm_median_factor=1.001,
        codec=CodecSettings("sparse", density=0.05),
        profile=FleetProfile(dropout=0.0),
    )
    outcome = run(scenario, 2)
    assert len(outcome.rounds) == 6
    assert outcome.abandoned > 0, "the bound was in the way"
