"""Vectors that an algorithm broadcasts: named in the invite, served by digest, replaced with the round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from test_pipeline import play_round
from wired import TASK, Desk, bundle

from coordinator.store import Store
from edge_sdk.aggregation.algorithm import Algorithm, Contribution, State, Vector
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.training.bundle import decode_parameters, digest_of
from edge_sdk.wire.messages import BlobGone, Invite, RangeData, RangeRequest, short

SPEC = bundle().program.spec


@dataclass(frozen=True)
class Drifting(Algorithm):
    """A mean that tells devices where the model went, and how often it has been told anything."""

    broadcasts = ("drift", "model")

    def init(self, size: int) -> State:
        return {"drift": np.zeros(size, dtype=np.float32)}

    def broadcast(self, parameters: Vector, state: Mapping[str, Vector]) -> State:
        return {"drift": state["drift"], "model": 2 * parameters}

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        sums.add("delta", update.vectors["delta"], update.weight)

    def report(self, sums: PartialSums) -> State:
        return {"delta": sums.mean("delta")}

    def apply(self, parameters: Vector, report: State, state: Mapping[str, Vector]) -> tuple[Vector, State]:
        return report["delta"], {"drift": state["drift"] + report["delta"]}


def fetched(desk: Desk, device: str, digest: bytes, size: int) -> bytes | None:
    """A blob as a device gets it, range by range."""
    data = b""
    while len(data) < size:
        want = RangeRequest(digest=short(digest), ranges=((len(data), min(len(data) + 512, size)),))
        effects = desk.hear(device, want)
        if desk.told(device, BlobGone, effects):
            return None
        received = b"".join(found.data for found in desk.told(device, RangeData, effects))
        assert received, "neither bytes nor a word that there are none"
        data += received
    return data


def test_an_invite_names_the_vectors_and_devices_can_fetch_them() -> None:
    desk = Desk(pipeline={"algorithm": Drifting()})
    vectors = []
    for crash in (False, True, True):
        invite = desk.begin("a", "b")["a"]
        assert [name for name, _, _ in invite.vectors] == ["drift", "model"]
        found = {}
        for name, digest, size in invite.vectors:
            blob = fetched(desk, "a", digest, size)
            assert blob is not None and digest_of(blob) == digest
            found[name] = decode_parameters(blob, SPEC)
        vectors.append(found)
        assert play_round(desk, {"a": 0.25, "b": 0.25}) == ["counted"] * 2
        if crash:
            desk.crash()
            desk.work()
    for number, found in enumerate(vectors):
        np.testing.assert_allclose(found["drift"], 0.25 * number, atol=1e-6)
        np.testing.assert_allclose(found["model"], 2 * (bundle().parameters + 0.25 * number), atol=1e-5)


def test_the_vectors_of_the_round_before_are_served_and_older_ones_are_gone() -> None:
    desk = Desk(pipeline={"algorithm": Drifting()})
    named = []
    for _ in range(3):
        invite: Invite = desk.begin("a", "b")["a"]
        named.append(invite.vectors)
        play_round(desk, {"a": 0.25, "b": 0.25})
    assert len({digest for vectors in named for _, digest, _ in vectors}) == 6
    assert desk.store.get_blob(named[0][0][1]) is None and desk.store.get_blob(named[2][0][1]) is None
    assert [row[0] for row in desk.store.broadcast(TASK)] == ["drift", "model"]


def test_a_plain_algorithm_broadcasts_nothing() -> None:
    assert Desk().begin("a", "b")["a"].vectors == ()


def test_blobs_that_two_tasks_broadcast_alike_stay_while_one_needs_them() -> None:
    ids = np.random.Generator(np.random.PCG64(0))
    store = Store(":memory:", wall=lambda: 0.0, new_id=ids.bytes)
    for name in ("one", "two"):
        store.put_initial(name, b"program", b"parameters", b"", {"v": b"same", "w": name.encode()})
    assert store.broadcast("one") == (("v", digest_of(b"same"), 4), ("w", digest_of(b"one"), 3))
    store.put_initial("one", b"program", b"parameters", b"", {"v": b"other"})
    assert store.broadcast("one")[0][1] == digest_of(b"same"), "a task that has begun keeps what it has"
    store.close()
