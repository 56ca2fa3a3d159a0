"""The pipeline of a task: what it remembers survives a restart, and a replay after a crash finds the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from wired import TASK, Desk, bundle, make_update

from coordinator.pipeline import Aggregator, Counted, DecodedUpdate, PipelineSettings, Step, unpack_memory
from coordinator.pipeline.memory import PartMemory
from coordinator.pipeline.worker import stalled_attempts
from coordinator.server_optimizers import FedAvgM
from coordinator.store import TicketRecord
from coordinator.validate import Validation
from edge_sdk.errors import ConfigurationError, ProtocolError
from edge_sdk.training.bundle import digest_of, encode_parameters
from edge_sdk.wire.messages import Chunk, Update

SIZE = bundle().program.spec.size
INITIAL = encode_parameters(bundle().parameters)
ADAPTIVE = Validation(size=SIZE, norm_median_factor=3.0, norms_needed=4)


def aggregator(**settings: object) -> Aggregator:
    return Aggregator(
        bundle().program, Desk().settings.plan, PipelineSettings(**{"validation": Validation(size=SIZE), **settings})
    )


def drawn(count: int, seed: int = 3) -> list[NDArray[np.float32]]:
    rng = np.random.Generator(np.random.PCG64(seed))
    return [(0.1 * rng.standard_normal(SIZE)).astype(np.float32) for _ in range(count)]


def send(desk: Desk, invites: dict[str, object], updates: dict[str, bytes]) -> None:
    for device, payload in updates.items():
        chunk = Chunk(invites[device].ticket, digest_of(payload), len(payload), 0, payload)  # type: ignore[attr-defined]
        desk.hear(device, chunk)
    desk.work()


def play_round(desk: Desk, sizes: dict[str, float]) -> list[str]:
    """One round in which each device sends an update of that size; verdicts as the database has them."""
    invites = desk.begin(*sizes)
    send(desk, dict(invites), {device: make_update(size) for device, size in sizes.items()})
    while desk.round is not None:
        desk.wait()
        desk.work()
    found = [desk.store.ticket(invite.ticket) for invite in invites.values()]
    return [f"{known.state} {known.reason}".strip() for known in found if known is not None]


def test_the_bound_on_norms_survives_a_restart_between_rounds() -> None:
    """The same fleet with and without a restart: the same bounds, the same verdicts, the same model."""
    desks = [Desk(pipeline={"validation": ADAPTIVE}) for _ in range(2)]
    told = []
    for desk in desks:
        for size in (0.01, 0.011):
            assert play_round(desk, {"a": size, "b": size}) == ["counted"] * 2
        if desk is desks[1]:
            desk.crash()
            desk.work()  # it is evaluated again
        told.append(play_round(desk, {"a": 0.02, "b": 0.2}))
    assert told[0] == told[1] == ["counted", "refused norm"]
    checkpoints = [desk.store.latest_checkpoint(TASK) for desk in desks]
    assert checkpoints[0] == checkpoints[1]
    assert checkpoints[0] is not None
    norms = unpack_memory(checkpoints[0].server_state)["gate"]["norms"]
    np.testing.assert_allclose(norms, np.sqrt(SIZE) * np.array([0.01, 0.01, 0.011, 0.011, 0.02]), rtol=1e-6)


def test_norms_of_updates_that_a_replay_has_found_are_remembered_too() -> None:
    desk = Desk(pipeline={"validation": ADAPTIVE})
    invites = desk.begin("a", "b")
    send(desk, dict(invites), {"a": make_update(0.01)})
    desk.crash()
    desk.work()
    send(desk, dict(invites), {"b": make_update(0.02)})
    desk.wait(100.0)
    desk.work()
    checkpoint = desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None and checkpoint.round == 1
    norms = unpack_memory(checkpoint.server_state)["gate"]["norms"]
    np.testing.assert_allclose(sorted(norms), np.sqrt(SIZE) * np.array([0.01, 0.02]), rtol=1e-6)


def test_an_acknowledged_update_counts_under_a_bound_that_was_lowered_since() -> None:
    desk = Desk()
    invites = desk.begin("a", "b")
    send(desk, dict(invites), {"a": make_update(1.0)})
    desk.pipeline = replace(desk.pipeline, validation=Validation(size=SIZE, norm_max=0.1))
    desk.crash()
    desk.work()
    send(desk, dict(invites), {"b": make_update(1.0)})
    desk.wait(100.0)
    desk.work()
    known = [desk.store.ticket(invites[device].ticket) for device in "ab"]
    assert [k.state for k in known if k is not None] == ["counted", "refused"]


@dataclass(frozen=True)
class Adding(Step):
    """Moves the result by how many updates there have ever been; refuses updates of a certain size."""

    by: float = 0.5

    def init(self) -> PartMemory:
        return {"count": np.zeros(1, dtype=np.int64)}

    def admit(self, update: DecodedUpdate, view: PartMemory) -> DecodedUpdate:
        if update.norm > 100.0:
            raise ProtocolError("not that one", reason="own")
        return update

    def finish(
        self, report: dict[str, NDArray[np.float32]], counted: object, view: PartMemory
    ) -> dict[str, NDArray[np.float32]]:
        return {**report, "delta": report["delta"] + np.float32(self.by * view["count"][0])}

    def remember(self, memory: PartMemory, counted: list[Counted]) -> PartMemory:
        return {"count": memory["count"] + len(counted)}


def test_a_step_refuses_changes_and_remembers() -> None:
    pipeline = aggregator(steps=(("adding", Adding()),))
    memory, parameters = pipeline.initial_memory(), INITIAL
    for number in range(2):
        pipeline.begin(parameters, memory)
        for delta in drawn(3, seed=number):
            pipeline.add(pipeline.examine(make_update(delta)))
        with pytest.raises(ProtocolError, match="not that one"):
            pipeline.examine(make_update(30.0))
        done = pipeline.finish()
        memory, parameters = done.memory, done.parameters
    assert memory["adding"]["count"].tolist() == [6]
    mean = sum(np.mean(drawn(3, seed=number), axis=0) for number in range(2))
    np.testing.assert_allclose(done.vector, bundle().parameters + mean + 0.5 * 3, atol=1e-6)


def test_a_step_that_is_new_begins_with_nothing_and_an_optimiser_goes_on() -> None:
    first = aggregator(optimizer=FedAvgM())
    first.begin(INITIAL, first.initial_memory())
    first.add(first.examine(make_update(0.25)))
    memory = first.finish().memory
    second = aggregator(optimizer=FedAvgM(), steps=(("adding", Adding()),))
    second.begin(INITIAL, memory)
    second.add(second.examine(make_update(0.0)))
    after = second.finish().memory
    np.testing.assert_allclose(after["optimizer"]["v"], 0.9 * 0.25, rtol=1e-6)
    assert after["adding"]["count"].tolist() == [1]


def test_two_steps_of_the_same_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="same name"):
        aggregator(steps=(("a", Adding()), ("a", Adding())))


def test_a_round_of_nothing_changes_nothing() -> None:
    pipeline = aggregator()
    pipeline.begin(INITIAL, pipeline.initial_memory())
    with pytest.raises(ValueError, match="without updates"):
        pipeline.finish()


def test_weights_beyond_the_sum_are_refused_before_they_are_journalled() -> None:
    pipeline = aggregator()
    pipeline.begin(INITIAL, pipeline.initial_memory())
    full = pipeline.settings.fixed_point.weight_sum_max
    update = pipeline.examine(make_update(0.1, 10), pending_weight=full - 10)
    assert update.weight == 10
    with pytest.raises(ProtocolError, match="full"):
        pipeline.examine(make_update(0.1, 10), pending_weight=full - 9)
    assert Update.decode(make_update(0.1, 10)).examples == 10


@pytest.mark.parametrize(
    ("reasons", "stalled"),
    [
        ("norm norm norm", 1),
        ("norm norm abandoned", 1),
        ("norm abandoned", 0),
        ("norm - - -", 0),  # one speaks while the others are cut off
        ("norm norm - - - -", 1),
        ("- - -", 0),
        ("value value norm", 1),
    ],
)
def test_a_bound_gives_way_to_many_and_not_to_a_few(reasons: str, stalled: int) -> None:
    tickets = [
        TicketRecord(
            bytes([i]) * 16,
            TASK,
            1,
            0,
            f"d{i}",
            bytes(16),
            bytes(32),
            "missing" if reason == "-" else "refused",
            reason,
        )
        for i, reason in enumerate(reasons.split())
    ]
    assert stalled_attempts([tickets, []]) == stalled
    assert ADAPTIVE.norm_bound([1.0] * 4, stalled) == 3.0 * 2**stalled
    fixed = replace(ADAPTIVE, norm_max=4.0)
    assert fixed.norm_bound([1.0] * 4, 5) == 4.0, "a fixed bound stays"
