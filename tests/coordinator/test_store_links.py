"""Model deltas in the database: committed with their round, in a chain without gaps, gone when they are of no use."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from test_store import PARAMETERS, TASK, a_round, closed, open_store

from coordinator.store import Checkpoint, NewDelta, Store
from edge_sdk.errors import StateError


def commit_model(
    store: Store, number: int, blob: bytes, model_delta: bytes | None = b"a model delta", **limits: int
) -> Checkpoint:
    """Closes one round whose model is ``blob``; without a model delta devices fetch it whole."""
    bounds: dict[str, Any] = {"deltas_max": 16, "bytes_max": 1 << 20} | limits
    return store.commit_round(
        closed(a_round(store, number)),
        parameters=blob,
        server_state=b"state %d" % number,
        verdicts={},
        metrics={},
        model_delta=None if model_delta is None else NewDelta(model_delta, **bounds),
    )


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def chain(store: Store) -> list[tuple[int, bytes, bytes]]:
    deltas = store.deltas(TASK)
    for model_delta in deltas:
        assert len(store.get_blob(model_delta.digest) or b"") == model_delta.bytes
    for before, after in itertools.pairwise(deltas):
        assert before.target == after.base
    if deltas:
        assert deltas[-1].target == store.latest_checkpoint(TASK).parameters_digest  # type: ignore[union-attr]
    return [(model_delta.round, model_delta.base, model_delta.target) for model_delta in deltas]


def kinds(store: Store) -> dict[str, int]:
    return dict(store._database.rows("SELECT kind, count(*) FROM blobs GROUP BY kind"))  # type: ignore[arg-type]


def test_a_link_leads_from_the_model_of_before() -> None:
    store = open_store(":memory:")
    commit_model(store, 1, b"one")
    commit_model(store, 2, b"two", b"another model delta")
    assert chain(store) == [(1, sha(PARAMETERS), sha(b"one")), (2, sha(b"one"), sha(b"two"))]
    latest = store.latest_checkpoint(TASK)
    assert latest is not None and latest.parameters_digest == sha(b"two")


def test_what_the_pipeline_remembers_is_kept_with_the_newest_checkpoint_alone() -> None:
    store = open_store(":memory:", checkpoints_kept=2)
    for number in range(1, 7):
        commit_model(store, number, b"model %d" % number, b"model delta %d" % number, deltas_max=3)
    assert kinds(store) == {"program": 1, "parameters": 2, "model_delta": 3}
    assert [checkpoint.server_state for checkpoint in store.checkpoints(TASK)] == [b"state 6", b""]
    assert [number for number, _, _ in chain(store)] == [4, 5, 6]


def test_a_chain_ends_where_a_model_travels_whole() -> None:
    store = open_store(":memory:")
    commit_model(store, 1, b"one")
    commit_model(store, 2, b"model 2", None)
    assert chain(store) == [] and "model_delta" not in kinds(store)
    commit_model(store, 3, b"three")
    assert chain(store) == [(3, sha(b"model 2"), sha(b"three"))]


def test_a_chain_is_cut_where_its_bytes_are_too_many() -> None:
    store = open_store(":memory:")
    for number in range(1, 5):
        commit_model(store, number, b"p %d" % number, bytes([number]) * 40, bytes_max=100)
    assert [number for number, _, _ in chain(store)] == [3, 4]
    commit_model(store, 5, b"p 5", bytes(101), bytes_max=100)
    assert chain(store) == [] and "model_delta" not in kinds(store), "not even this one is given to anybody"
    commit_model(store, 6, b"p 6", b"x", bytes_max=100)
    assert [number for number, _, _ in chain(store)] == [6]


def test_a_round_that_changes_nothing_adds_no_link() -> None:
    store = open_store(":memory:")
    commit_model(store, 1, b"one")
    commit_model(store, 2, b"one")
    assert [number for number, _, _ in chain(store)] == [1]
    commit_model(store, 3, b"three")
    assert [number for number, _, _ in chain(store)] == [1, 3]


def test_parameters_that_come_again_keep_their_links_apart() -> None:
    store = open_store(":memory:")
    for number in range(1, 7):
        commit_model(
            store, number, b"this" if number % 2 else b"that", b"there" if number % 2 else b"back", deltas_max=3
        )
    assert [number for number, _, _ in chain(store)] == [4, 5, 6]


def test_a_round_that_is_not_committed_leaves_no_link() -> None:
    store = open_store(":memory:")
    commit_model(store, 1, b"one")
    before, held = chain(store), kinds(store)
    record = a_round(store, 2)
    with pytest.raises(StateError, match="not of this round"):
        store.commit_round(
            closed(record),
            parameters=b"model 2",
            server_state=b"",
            verdicts={b"x" * 16: ("missing", "")},
            metrics={},
            model_delta=NewDelta(b"a model delta", 16, 1 << 20),
        )
    assert (chain(store), kinds(store)) == (before, held)


def test_blobs_in_use_are_never_dropped() -> None:
    store = open_store(":memory:", checkpoints_kept=1)
    commit_model(store, 1, b"one")
    a_round(store, 2)
    assert store.drop_blobs(set()) == 0
    assert len(chain(store)) == 1 and store.get_blob(sha(b"one")) == b"one"
