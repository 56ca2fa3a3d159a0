"""The worker's side: what is journalled is summed, what is bad costs its own refusal, a replay finds the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from wired import TASK, Desk, bundle, make_update

from coordinator.events import CloseJob, IngestItem, StartJob
from coordinator.pipeline import pack_memory, unpack_memory
from coordinator.schedules.synchronous import RoundSettings
from coordinator.store import Store
from edge_sdk.errors import StateError
from edge_sdk.training.bundle import decode_parameters, digest_of, encode_parameters
from edge_sdk.wire.messages import Update

SIZE = bundle().program.spec.size


class Worker:
    """The ingest side of a coordinator whose round is open, driven without the core."""

    def __init__(self, devices: int = 4, **quotas: int) -> None:
        names = [f"d{i}" for i in range(devices)]
        ids = np.random.Generator(np.random.PCG64(0))
        self.desk = Desk(
            store=Store(":memory:", wall=lambda: 0.0, new_id=ids.bytes, **quotas),
            round=RoundSettings(goal_count=devices, minimum_count=1, over_selection=1.0, window_seconds=5.0),
        )
        self.tickets = [invite.ticket for invite in self.desk.begin(*names).values()]
        self.store = self.desk.store
        self.ingest = self.desk.jobs.ingest_side
        self.start()

    def start(self) -> None:
        self.ingest.start(StartJob(TASK, 1, 0, digest_of(encode_parameters(bundle().parameters))))

    def item(self, number: int, payload: bytes, digest: bytes | None = None) -> IngestItem:
        return IngestItem(TASK, self.tickets[number], digest or digest_of(payload), payload)

    def close(self) -> bytes:
        record = self.store.open_round(TASK)
        assert record is not None
        held = {ticket for _, ticket, _, _ in self.store.journalled(TASK, 1, 0)}
        verdicts = {ticket: ("counted", "") if ticket in held else ("missing", "") for ticket in self.tickets}
        result = self.ingest.close(CloseJob(replace(record, phase="closing"), 1 << 40, verdicts))
        assert not result.error
        return self.ingest.parameters(result.parameters)


def deltas(count: int) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    draw = np.random.Generator(np.random.PCG64(3))
    return [draw.standard_normal(SIZE).astype(np.float32) * np.float32(0.1) for _ in range(count)]


def test_the_model_moves_by_the_mean_weighted_by_examples() -> None:
    worker = Worker()
    first, second, *_ = deltas(2)
    worker.ingest.process([worker.item(0, make_update(first, 30)), worker.item(1, make_update(second, 10))])
    moved = decode_parameters(worker.close(), bundle().program.spec)
    expected = bundle().parameters + (30 * first.astype(np.float64) + 10 * second) / 40
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_any_order_and_any_batches_give_the_same_bits() -> None:
    updates = [make_update(delta, 7 + i) for i, delta in enumerate(deltas(4))]
    models = set()
    for order, batch in (([0, 1, 2, 3], 4), ([3, 1, 0, 2], 1), ([2, 3, 1, 0], 3)):
        worker = Worker()
        items = [worker.item(i, updates[i]) for i in order]
        for at in range(0, 4, batch):
            worker.ingest.process(items[at : at + batch])
        models.add(worker.close())
    assert len(models) == 1


def test_a_replay_of_the_journal_finds_the_same_bits() -> None:
    updates = [make_update(delta, 5) for delta in deltas(3)]
    straight, crashed = Worker(), Worker()
    for worker in (straight, crashed):
        worker.ingest.process([worker.item(0, updates[0]), worker.item(1, updates[1])])
    crashed.start()  # empty sums again, then what the journal holds
    for worker in (straight, crashed):
        worker.ingest.process([worker.item(2, updates[2])])
    assert straight.close() == crashed.close()


def test_results_come_in_order_and_the_good_ones_are_numbered() -> None:
    worker = Worker()
    good = make_update()
    items = [
        worker.item(0, b"nonsense"),
        worker.item(1, good),
        worker.item(2, good, digest=b"d" * 32),
        worker.item(3, good),
    ]
    results = worker.ingest.process(items)
    assert [result.ticket for result in results] == worker.tickets
    assert [bool(result.seq) for result in results] == [False, True, False, True]
    assert results[2].reason == "digest" and results[0].reason == "malformed"
    assert results[1].seq < results[3].seq


@pytest.mark.parametrize("value", [1e30, -1e30, 1e6])
def test_an_update_out_of_bounds_is_refused_and_not_summed(value: float) -> None:
    worker = Worker()
    (bad,) = worker.ingest.process([worker.item(0, make_update(value))])
    assert not bad.seq and bad.reason
    worker.ingest.process([worker.item(1, make_update(0.25))])
    moved = decode_parameters(worker.close(), bundle().program.spec)
    np.testing.assert_allclose(moved, bundle().parameters + np.float32(0.25), atol=1e-6)


def test_a_frame_of_another_size_is_refused() -> None:
    worker = Worker()
    honest = Update.decode(make_update())
    (bad,) = worker.ingest.process(
        [worker.item(0, replace(honest, vectors={"delta": (honest.frames()[0][:-4],)}).encode())]
    )
    assert not bad.seq
    (worse,) = worker.ingest.process([worker.item(1, replace(honest, vectors={"delta": (b"",)}).encode())])
    assert not worse.seq


def test_a_claimed_weight_is_capped_by_the_plan() -> None:
    worker = Worker()
    first, second, *_ = deltas(2)
    cap = worker.desk.settings.plan.examples_max
    results = worker.ingest.process(
        [worker.item(0, make_update(first, cap)), worker.item(1, make_update(second, 1 << 39))]
    )
    if results[1].seq:  # either refused as implausible, or capped: never more than the plan allows
        moved = decode_parameters(worker.close(), bundle().program.spec)
        np.testing.assert_allclose(moved, bundle().parameters + (first + second) / 2, atol=1e-5)
    else:
        assert results[1].reason


def test_an_update_whose_chunks_are_stored_is_put_together_from_them() -> None:
    worker = Worker()
    payload = make_update(0.5)
    rows = [
        (worker.tickets[0], digest_of(payload), len(payload), at, payload[at : at + 50])
        for at in range(0, len(payload), 50)
    ]
    worker.store.put_chunks(rows)
    (result,) = worker.ingest.process([IngestItem(TASK, worker.tickets[0], digest_of(payload), None)])
    assert result.seq and worker.store.partial_bytes == 0


def test_an_update_with_missing_chunks_is_refused() -> None:
    worker = Worker()
    (result,) = worker.ingest.process([IngestItem(TASK, worker.tickets[0], b"d" * 32, None)])
    assert (result.seq, result.reason) == (0, "incomplete")


def test_where_one_update_of_a_batch_cannot_be_stored_the_others_are() -> None:
    first, second = make_update(0.1), make_update(0.2, pad=40)
    worker = Worker(journal_bytes_max=len(first) + 20)
    results = worker.ingest.process([worker.item(0, first), worker.item(1, second)])
    assert [(bool(result.seq), result.reason) for result in results] == [(True, ""), (False, "busy")]


def test_metrics_are_weighted_means_of_what_devices_reported() -> None:
    worker = Worker()
    losses = [
        replace(Update.decode(make_update(0.1, 10)), loss=1.0),
        replace(Update.decode(make_update(0.1, 30)), loss=2.0),
    ]
    worker.ingest.process([worker.item(i, update.encode()) for i, update in enumerate(losses)])
    worker.close()
    checkpoint = worker.store.latest_checkpoint(TASK)
    assert checkpoint is not None
    metrics = checkpoint.metrics
    assert metrics["train_loss"] == pytest.approx(1.75) and metrics["examples"] == 40
    assert "loss" not in metrics, "nobody evaluated"


def test_what_is_remembered_survives_and_nonsense_is_told() -> None:
    memory = {
        "optimizer": {"m": np.arange(3, dtype=np.float32), "v": np.zeros(2, dtype=np.float32)},
        "gate": {"norms": np.array([0.1, 1e300])},
        "algorithm": {},
    }
    again = unpack_memory(pack_memory(memory))
    assert again.keys() == memory.keys()
    for part, own in memory.items():
        assert again[part].keys() == own.keys() and all(again[part][n].tobytes() == own[n].tobytes() for n in own)
    assert unpack_memory(b"") == {}
    with pytest.raises(StateError, match="remembers"):
        unpack_memory(b"\xc1nonsense")
    with pytest.raises(StateError, match="clip wants to remember x"):
        pack_memory({"clip": {"x": np.zeros((2, 2))}})
