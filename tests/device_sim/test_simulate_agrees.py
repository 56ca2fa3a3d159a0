"""``simulate`` gives the bit-identical model that coordinator and devices give for the same cohorts and seeds."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from test_algorithm_pair import LOCAL, ControlVariates, LocalControlVariates

from coordinator.compile import build_zoo_model, compile_model
from coordinator.config import DownlinkSection
from coordinator.config.settings import downlink
from coordinator.server_optimizers import make_server_optimizer
from device_sim import load_dataset, partition, simulate, split_held_out
from device_sim.profiles import FleetProfile
from device_sim.scenario import Outcome, Scenario, run
from edge_sdk.codecs import CodecSettings
from edge_sdk.training.bundle import Bundle
from edge_sdk.wire.plan import TrainingPlan

DEVICES, ROUNDS, GOAL, SEED = 16, 5, 6, 3
STEADY = FleetProfile(dropout=0.0, slow_share=0.0, slowness_spread=0.0)


@lru_cache
def bundle(hidden: int) -> Bundle:
    name = "mlp" if hidden else "softmax_regression"
    graph = build_zoo_model(name, inputs=(64,), outputs=10, hidden=(hidden,) if hidden else None, seed=SEED)
    return compile_model(graph, loss="softmax_cross_entropy", optimizer="sgd", name=name, verify=False)


def in_virtual_time(codec: CodecSettings, hidden: int, **settings: Any) -> Outcome:
    scenario = Scenario(
        devices=DEVICES,
        rounds=ROUNDS,
        goal_count=GOAL,
        split="dirichlet:0.5",
        codec=codec,
        training=TrainingPlan(epochs=2, batch_size=16, seconds_max=290.0, scalars={"lr": 0.1}),
        downlink=downlink(DownlinkSection(), make_server_optimizer(settings.get("server_optimizer", "fedavg"))),
        profile=STEADY,
        step_seconds=0.01,
        **settings,
    )
    return run(scenario, SEED, bundle(hidden))


def simulated(codec: dict[str, Any], hidden: int, outcome: Outcome, **settings: Any) -> list[bytes]:
    train, _ = split_held_out(load_dataset("digits"), 0.2, 0)
    parts = partition(train, "dirichlet:0.5", DEVICES, SEED)
    history = simulate(
        bundle(hidden),
        [(train.x[part], train.y[part]) for part in parts],
        rounds=ROUNDS,
        seed=SEED,
        codec=codec,
        epochs=2,
        batch_size=16,
        learning_rate=0.1,
        cohorts=outcome.cohorts,
        engine="numpy",
        **settings,
    )
    assert history.cohorts == list(outcome.cohorts)
    return [result.digest for result in history.rounds]


@pytest.mark.parametrize("hidden", [0, 200], ids=["small", "with_model_deltas"])
@pytest.mark.parametrize(
    "codec",
    [
        {"name": "dense"},
        {"name": "sparse", "density": 0.05},
        {"name": "sparse", "density": 0.05, "momentum": 0.5},
        {"name": "eden", "bits": 0.09},
        {"name": "auto", "bits": 0.09},
        {"name": "int4"},
        {"name": "eden", "bits": 0.09, "tensors": {"*.bias": {"name": "dense"}}},
    ],
    ids=lambda codec: "-".join(map(str, codec.values()))[:24],
)
def test_the_same_cohorts_make_the_same_model(codec: dict[str, Any], hidden: int) -> None:
    tensors = tuple((pattern, CodecSettings(**rule)) for pattern, rule in codec.get("tensors", {}).items())
    outcome = in_virtual_time(CodecSettings(**{**codec, "tensors": tensors}), hidden)
    assert len(outcome.cohorts) == ROUNDS and all(len(cohort) >= GOAL for cohort in outcome.cohorts)
    if hidden:
        assert outcome.followed, "devices should have made parameters out of model deltas"
    assert simulated(codec, hidden, outcome) == list(outcome.digests)


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam"])
def test_server_optimizers_too(optimizer: str) -> None:
    outcome = in_virtual_time(CodecSettings("sparse", density=0.1), 0, server_optimizer=optimizer)
    assert simulated({"name": "sparse", "density": 0.1}, 0, outcome, server_optimizer=optimizer) == list(
        outcome.digests
    )


@pytest.mark.parametrize("codec", [{"name": "int8"}, {"name": "eden", "bits": 2.0}], ids=lambda codec: codec["name"])
@pytest.mark.parametrize("algorithm", ["median", "trimmed_mean", "fednova"])
def test_every_algorithm_and_the_clip_step_too(algorithm: str, codec: dict[str, Any]) -> None:
    outcome = in_virtual_time(CodecSettings(**codec), 0, algorithm=algorithm, clip_norm=0.5)
    steps = [{"name": "clip", "norm": 0.5}]
    assert simulated(codec, 0, outcome, algorithm=algorithm, steps=steps) == list(outcome.digests)


@pytest.mark.parametrize("as_object", [False, True])
def test_an_algorithm_with_a_device_half_too(as_object: bool) -> None:
    own = {LOCAL: LocalControlVariates()}
    outcome = in_virtual_time(
        CodecSettings("dense"),
        0,
        algorithm="test_algorithm_pair:ControlVariates",
        reference="mean",
        local_algorithms=own,
    )
    chosen: Any = ControlVariates() if as_object else "test_algorithm_pair:ControlVariates"
    found = simulated({"name": "dense"}, 0, outcome, algorithm=chosen, local_algorithms=own)
    assert found == list(outcome.digests)
    assert found != simulated({"name": "dense"}, 0, outcome), "control variates change something"
