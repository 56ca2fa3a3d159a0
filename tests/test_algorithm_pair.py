"""Both halves of an algorithm, in this file alone: control variates, as SCAFFOLD has them (Karimireddy et al. 2020).

The coordinator broadcasts c. A device with c_i trains with c - c_i added to each gradient, sends the change of c_i
beside its delta, and keeps the new c_i if its update counts. What is proved is the seam: named vectors down, up and
kept, a number, all of it settled by the verdict, through the shipped core, session, worker and state, whoever loses
power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from wired import TASK, Pair, task

from coordinator.pipeline import unpack_memory
from coordinator.store import Store
from device_sim.profiles import FleetProfile
from device_sim.scenario import FAULTY, Scenario, run
from device_sim.world.device import SimDevice
from device_sim.world.world import World
from edge_sdk.aggregation.algorithm import Algorithm, Contribution, State, Vector
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import decode_frames
from edge_sdk.device.session import Settle
from edge_sdk.device.state import Vectors
from edge_sdk.device.training_job import TrainingJob
from edge_sdk.device.work import EngineCache, TrainingWork, spec_digest
from edge_sdk.errors import ProtocolError
from edge_sdk.training.algorithms import LocalResult, LocalWork
from edge_sdk.wire.messages import Update

LOCAL = "control_variates"
DENSE = CodecSettings("dense")


@dataclass(frozen=True)
class ControlVariates(Algorithm):
    """The coordinator's half: c moves by the mean change of the devices' c_i."""

    local = LOCAL
    vectors = ("control",)
    numbers = ("strength",)
    broadcasts = ("control",)
    strength: float = 1.0

    def init(self, size: int) -> State:
        return {"control": np.zeros(size, dtype=np.float32)}

    def broadcast(self, parameters: Vector, state: Mapping[str, Vector]) -> State:
        return {"control": state["control"]}

    def local_settings(self) -> dict[str, float]:
        return {"strength": self.strength}

    def check(self, update: Contribution) -> None:
        if update.numbers["strength"] != self.strength:
            raise ProtocolError("update: another strength than the plan's", reason="strength")

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        for name in ("delta", "control"):
            sums.add(name, update.vectors[name], update.weight)

    def report(self, sums: PartialSums) -> State:
        return {name: sums.mean(name) for name in ("delta", "control")}

    def apply(self, parameters: Vector, report: State, state: Mapping[str, Vector]) -> tuple[Vector, State]:
        return report["delta"], {"control": state["control"] + report["control"]}


class LocalControlVariates:
    """The device's half: c_i' = c_i - c - delta / (steps lr)."""

    vectors = ("control",)

    def run(self, work: LocalWork) -> LocalResult:
        strength, lr = work.settings["strength"], np.float32(work.plan.scalars["lr"])
        shared = work.received["control"]
        own = work.kept.get("control", np.zeros_like(shared))
        trained = work.train(shift=np.float32(-lr * strength) * (shared - own))
        change = -shared - trained.delta / np.float32(trained.steps * lr)
        return LocalResult(trained, {"control": change}, {"strength": strength}, {"control": own + change})


def pair(**changes: Any) -> Scenario:
    return Scenario(
        **{
            "devices": 6,
            "rounds": 4,
            "goal_count": 3,
            "codec": DENSE,
            "algorithm": "test_algorithm_pair:ControlVariates",
            "reference": "mean",
            "local_algorithms": {LOCAL: LocalControlVariates()},
            **changes,
        }
    )


def check_controls(world: World, store: Store, devices: list[SimDevice]) -> None:
    """Each c_i is the sum of the changes of its device that counted, and c the sum of the rounds' means."""
    program, auditor = world.auditor.program, world.auditor
    codec = world.task.plan.codec
    own: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    rounds: dict[int, list[tuple[int, Any]]] = {}
    for (ticket, _), training in auditor.trainings.items():
        if ticket in auditor.counted:
            update = Update.decode(training.payload)
            (part,) = decode_frames(update.frames("control"), codec, program.spec)
            change = part.dense().astype(np.float64)
            own[training.device] = own.get(training.device, 0.0) + change
            rounds.setdefault(auditor.counted[ticket], []).append((update.examples, change))
    checkpoint = store.latest_checkpoint("default")
    assert checkpoint is not None and len(rounds) == checkpoint.round
    means = [
        np.average([c for _, c in counted], axis=0, weights=[w for w, _ in counted]) for counted in rounds.values()
    ]
    shared = unpack_memory(checkpoint.server_state)["algorithm"]["control"]
    np.testing.assert_allclose(shared, np.sum(means, axis=0), atol=1e-4)
    assert np.abs(shared).max() > 0.01
    kept = 0
    for device in devices:
        if device.state is None or not device.alive or device.state.outbox is not None:
            continue
        found = device.state.vectors(spec_digest(program)).get(f"local.{LOCAL}.control")
        np.testing.assert_allclose(0.0 if found is None else found, own.get(device.name, 0.0), atol=1e-4)
        kept += found is not None
    assert kept >= 3


@pytest.mark.parametrize("codec", [DENSE, CodecSettings("int8"), CodecSettings("eden", bits=4)], ids=lambda c: c.name)
def test_named_vectors_go_down_and_up_and_are_kept(codec: CodecSettings) -> None:
    calm = pair(codec=codec, profile=FleetProfile(dropout=0.0))
    checks = (lambda *parts: None) if codec.name != "dense" else check_controls  # a codec loses some of what is kept
    outcome = run(calm, 1, at_end=checks)
    assert len(outcome.rounds) == 4 and outcome.metrics["accuracy"] > 0.7


@pytest.mark.parametrize("seed", range(6))
def test_what_is_kept_is_settled_by_the_verdict_whoever_loses_power(seed: int) -> None:
    stormy = pair(faults=FAULTY, device_crashes_per_hour=25.0, coordinator_crashes_per_hour=25.0, step_seconds=2.0)
    outcome = run(stormy, seed, at_end=check_controls)
    assert len(outcome.rounds) == 4


def test_a_device_without_its_half_is_not_asked() -> None:
    none = pair(local_algorithms={}, hours_max=0.5)
    with pytest.raises(AssertionError, match="not finished after"):
        run(none, 1)


# --- core and session alone ------------------------------------------------------------------------------------------


class LearningPair(Pair):
    """Sessions whose training really happens, with vectors that are kept in memory."""

    def __init__(self, *devices: str, **changes: Any) -> None:
        rng = np.random.Generator(np.random.PCG64(0))
        self.examples = {
            device: (rng.standard_normal((20, 4)).astype(np.float32), rng.integers(0, 3, 20)) for device in devices
        }
        self.kept: dict[str, Vectors] = {device: {} for device in devices}
        self.after: dict[str, Vectors] = {}
        super().__init__(*devices, **changes)

    def make_update(self, device: str) -> bytes:
        start = self.trainings[device][-1]
        job = TrainingJob(
            start=start,
            program=self.blobs[device][start.program],
            parameters=self.blobs[device][start.parameters],
            received={name: self.blobs[device][digest] for name, digest in dict(start.vectors).items()},
            vectors=lambda spec: self.kept[device],
            keeps_vectors=lambda size: True,
            seed=len(self.trainings[device]),
            stop=lambda: False,
            progress=lambda steps, loss: None,
        )
        own = {LOCAL: LocalControlVariates()}
        trained = TrainingWork(lambda: self.examples[device], engines=EngineCache("numpy"), algorithms=own).run(job)
        self.after[device] = trained.vectors_after
        assert trained.update.payload is not None
        return bytes(trained.update.payload)

    def _perform(self, device: str, action: Any) -> None:
        super()._perform(device, action)
        if isinstance(action, Settle) and action.counted:
            self.kept[device] = self.after[device]


def test_core_and_sessions_carry_the_vectors() -> None:
    """With all devices in every round and equal weights, c is the mean of the c_i, as the paper's theory wants it."""
    plan = replace(task().plan, local=LOCAL, local_settings={"strength": 1.0})
    both = LearningPair("a", "b", pipeline={"algorithm": ControlVariates()}, plan=plan)
    both.run(400.0)
    assert both.settled == {"a": [True] * 3, "b": [True] * 3}
    checkpoint = both.desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None and checkpoint.round == 3
    shared = unpack_memory(checkpoint.server_state)["algorithm"]["control"]
    own = [both.kept[device][f"local.{LOCAL}.control"] for device in "ab"]
    np.testing.assert_allclose(shared, np.mean(own, axis=0), atol=1e-5)
    assert np.abs(shared).max() > 0.01
    seen = [dict(start.vectors)["control"] for start in both.trainings["a"]]
    assert len(set(seen)) == 3, "every round brings another c"
