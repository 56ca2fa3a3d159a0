"""Who takes part: everybody equally often, however short the window, and the same cohorts again with the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import MakeBroker
from serving import FEDERATION, Served

from coordinator.store import StoreReader
from device_sim.fleet_run import FleetRun, run_fleet
from device_sim.profiles import FleetProfile
from device_sim.scenario import Scenario, run
from device_sim.world.device import SimDevice
from device_sim.world.world import World
from edge_sdk.wire.plan import TrainingPlan

STEADY = "dropout=0,slow_share=0,slowness_spread=0"


def invited(store: StoreReader) -> list[frozenset[str]]:
    """The devices that each round has invited, the first round first."""
    rounds = sorted(store.rounds("default", 100_000), key=lambda record: (record.number, record.attempt))
    return [frozenset(t.device for t in store.tickets("default", r.number, r.attempt)) for r in rounds]


def chi_square(cohorts: Iterable[Iterable[str]], devices: int) -> float:
    """Pearson's statistic against equal shares; of drawings without replacement it is smaller than in the tables."""
    counts = Counter(name for cohort in cohorts for name in cohort)
    expected = counts.total() / devices
    return sum((count - expected) ** 2 for count in (*counts.values(), *[0] * (devices - len(counts)))) / expected


@pytest.mark.parametrize(
    "profile", [FleetProfile(dropout=0.0), FleetProfile(dropout=0.05, slow_share=0.2, slow_factor=10.0)]
)
def test_with_a_window_of_zero_every_device_takes_part_equally_often(profile: FleetProfile) -> None:
    found: list[frozenset[str]] = []

    def at_end(world: World, store: StoreReader, devices: list[SimDevice]) -> None:
        found.extend(invited(store))

    scenario = Scenario(
        devices=100,
        rounds=50,
        goal_count=10,
        minimum_count=3,
        window_seconds=0.0,
        step_seconds=0.01,
        profile=profile,
        training=TrainingPlan(epochs=1, batch_size=64, seconds_max=120.0, scalars={"lr": 0.5}),
    )
    outcome = run(scenario, 3, at_end=at_end)
    assert len(set().union(*found)) == 100, "nobody is never invited"
    assert chi_square(found, 100) < 148.2, "99.9 % of uniform drawings are below, with 99 degrees of freedom"
    assert len(set().union(*map(set, outcome.cohorts))) >= 97, "nearly everybody has counted"


def fleet_cohorts(directory: Path, mosquitto: MakeBroker, seed: int) -> tuple[list[frozenset[str]], list[bytes]]:
    """Thirty devices over a real broker: who was invited to each round, and the digest of each model."""
    directory.mkdir()
    with mosquitto() as broker:
        served = Served(
            directory,
            broker.settings(),
            broker.url,
            0,
            federation={"seed": seed},
            selection={"goal_count": 6, "over_selection": 1.0, "window_seconds": 0.0, "gather_seconds": 6.0},
            stopping={"rounds_max": 25},
            store={"checkpoints_kept": 100},
        )
        try:
            fleet = FleetRun(broker.url, FEDERATION, devices=30, split="shards:2", profile=STEADY, seconds=90.0)
            said = run_fleet(fleet, lambda line: None)
            assert said.startswith("finished"), said
            with served.store() as store:
                return invited(store), [checkpoint.parameters_digest for checkpoint in store.checkpoints("default")]
        finally:
            served.close()


def test_over_a_real_broker_participation_is_uniform_and_the_seed_decides_it(
    tmp_path: Path, mosquitto: MakeBroker
) -> None:
    first, models = fleet_cohorts(tmp_path / "first", mosquitto, seed=5)
    again, models_again = fleet_cohorts(tmp_path / "again", mosquitto, seed=5)
    assert first == again and models == models_again, "cohorts and models are the same, to the bit"
    assert chi_square(first, 30) < 58.3, "99.9 % of uniform drawings are below, with 29 degrees of freedom"
