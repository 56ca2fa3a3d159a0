"""What holds for every algorithm: any order, any replay, and hostile updates that cost nobody else anything."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from pipelines import BUFFERS, DENSE, EDEN, INITIAL, SPARSE, SPEC, aggregator, drawn, moved, update
from test_pipeline import send
from wired import Desk, make_update

from edge_sdk.aggregation.algorithm import ALGORITHMS, Algorithm, Contribution, State, make_algorithm
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.aggregation.rows import Facts, Rows
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import decode_frames, groups_of
from edge_sdk.errors import ConfigurationError, ProtocolError, StateError
from edge_sdk.wire.messages import Update

NAMES = sorted(ALGORITHMS)


@pytest.mark.parametrize("codec", [DENSE, EDEN, SPARSE], ids=lambda codec: codec.name)
@pytest.mark.parametrize("name", NAMES)
def test_any_order_gives_the_same_bits(name: str, codec: CodecSettings) -> None:
    updates = [update(delta, 3 + i, 2 + i, codec, seed=i) for i, delta in enumerate(drawn(7))]
    pipeline = aggregator(codec, algorithm=make_algorithm(name))
    orders = [np.random.Generator(np.random.PCG64(seed)).permutation(7) for seed in range(4)]
    assert len({moved(pipeline, [updates[i] for i in order]).tobytes() for order in orders}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_equal_updates_move_the_model_by_themselves(name: str) -> None:
    (delta,) = drawn(1)
    np.testing.assert_allclose(
        moved(aggregator(algorithm=make_algorithm(name)), [update(delta, pad) for pad in (5, 6, 7, 8, 9)]),
        delta,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_after_a_crash_finds_the_same_bits(name: str) -> None:
    sizes = {"a": 0.01, "b": 0.03, "c": -0.02}
    models = []
    for crashes in (False, True):
        desk = Desk(pipeline={"algorithm": make_algorithm(name)}, round=Desk().settings.round)
        invites = desk.begin(*sizes)
        payloads = {device: make_update(size, 10 + i) for i, (device, size) in enumerate(sizes.items())}
        send(desk, dict(invites), dict(list(payloads.items())[:1]))
        if crashes:
            desk.crash()
            desk.work()
        send(desk, dict(invites), dict(list(payloads.items())[1:]))
        desk.wait(100.0)
        desk.work()
        checkpoint = desk.store.latest_checkpoint("default")
        assert checkpoint is not None and checkpoint.round == 1
        models.append((checkpoint.parameters_digest, checkpoint.server_state))
    assert models[0] == models[1]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_updates_are_refused_and_change_nothing(name: str) -> None:
    pipeline = aggregator(algorithm=make_algorithm(name))
    honest = [update(delta, 10 + i) for i, delta in enumerate(drawn(4))]
    expected = moved(pipeline, honest)
    pipeline.begin(INITIAL, pipeline.initial_memory())
    large, nothing = np.full(SPEC.size, 1e30, dtype=np.float32), np.zeros(SPEC.size, dtype=np.float32)
    bad = [update(large), update(nothing)[:-3], update(nothing, examples=1 << 39), b"", b"\xc1" * 40]
    for payload in honest:
        pipeline.add(pipeline.examine(payload))
        for wrong in bad:
            with pytest.raises(ProtocolError):
                pipeline.examine(wrong)
    assert pipeline.finish().vector.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"aggregation\.options\.colour: .* has no such setting; it has"):
        make_algorithm(name, {"colour": 1})


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"choose one of mean.*your own class"):
        make_algorithm("krum")
    with pytest.raises(ConfigurationError, match="is no algorithm"):
        make_algorithm("collections:Counter")


@pytest.mark.parametrize(
    ("attribute", "names"),
    [("vectors", ("delta",)), ("vectors", ("",)), ("numbers", ("n" * 33,)), ("broadcasts", tuple("abcdefghi"))],
)
def test_names_that_do_not_fit_into_messages_are_refused(attribute: str, names: tuple[str, ...]) -> None:
    before = getattr(Loudest, attribute)
    setattr(Loudest, attribute, names)
    try:
        with pytest.raises(ConfigurationError, match=f"its {attribute} are .* different names"):
            make_algorithm("test_algorithms:Loudest")
    finally:
        setattr(Loudest, attribute, before)


# --- one's own -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loudest(Algorithm):
    """Of each coordinate the value of largest magnitude, and a share of it."""

    needs_all = True
    share: float = 1.0

    def finish(self, updates: Rows) -> State:
        def loudest(
            block: np.ndarray[tuple[int, int], np.dtype[np.float32]],
        ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            return np.take_along_axis(block, np.abs(block).argmax(axis=0)[None], axis=0)[0]

        return {"delta": np.float32(self.share) * updates.by_columns(loudest)}


@dataclass(frozen=True)
class Counting(Algorithm):
    """A mean that remembers how many updates there have been, and tells devices."""

    totals = ("updates",)
    broadcasts = ("count",)

    def init(self, size: int) -> State:
        return {"count": np.zeros(size, dtype=np.float32)}

    def broadcast(self, parameters: object, state: object) -> State:
        return {"count": state["count"]}  # type: ignore[index]

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        sums.add("delta", update.vectors["delta"], update.weight)
        sums.count(updates=1)

    def report(self, sums: PartialSums) -> State:
        return {"delta": sums.mean("delta"), "count": np.full(SPEC.size, sums.total("updates"), dtype=np.float32)}

    def apply(self, parameters: object, report: State, state: object) -> tuple[NDArray[np.float32], State]:
        return report["delta"], {"count": state["count"] + report["count"]}  # type: ignore[index]


def test_ones_own_class_by_its_dotted_name() -> None:
    deltas = drawn(3)
    stack = np.stack(deltas)
    rule = make_algorithm("test_algorithms:Loudest", {"share": 0.5})
    expected = np.float32(0.5) * np.take_along_axis(stack, np.abs(stack).argmax(0)[None], 0)[0]
    assert moved(aggregator(algorithm=rule), [update(delta) for delta in deltas]).tobytes() == expected.tobytes()


def test_what_an_algorithm_remembers_goes_on_and_is_broadcast() -> None:
    pipeline = aggregator(algorithm=Counting())
    memory, parameters = pipeline.initial_memory(), INITIAL
    for number in range(3):
        pipeline.begin(parameters, memory)
        for delta in drawn(2, seed=number):
            pipeline.add(pipeline.examine(update(delta)))
        done = pipeline.finish()
        memory, parameters = done.memory, done.parameters
    assert set(memory["algorithm"]["count"]) == {6.0}
    assert np.frombuffer(done.broadcast["count"][-4 * SPEC.size :], dtype="<f4")[0] == 6.0


# --- sums ------------------------------------------------------------------------------------------------------------


def test_partial_sums_of_gateways_merge_to_the_same_bits() -> None:
    groups = {"delta": groups_of(SPEC, EDEN)}
    updates = [Update.decode(update(delta, 5 + i, codec=EDEN, seed=i)) for i, delta in enumerate(drawn(6))]
    decoded = [decode_frames(u.frames(), EDEN, SPEC) for u in updates]
    rotation = decoded[0][0].seed  # type: ignore[union-attr]

    def summed(numbers: range) -> PartialSums:
        sums = PartialSums(groups, FixedPoint(), rotation, ("seen",))
        for number in numbers:
            sums.add("delta", decoded[number], updates[number].examples, scale=1 / (1 + number))
            sums.count(seen=0.25)
        return sums

    whole, merged = summed(range(6)), summed(range(2))
    merged.merge(summed(range(2, 3)))
    merged.merge_bytes(summed(range(3, 6)).to_bytes())
    assert merged.mean("delta", 3.0).tobytes() == whole.mean("delta", 3.0).tobytes()
    assert merged.total("seen") == whole.total("seen") == 1.5 and merged.weight_sum("delta") == 45
    assert merged.to_bytes() == whole.to_bytes()
    data = whole.to_bytes()
    for broken in (data[:-1], data[:40], data[:60] + b"\x01" + data[61:]):
        with pytest.raises((StateError, ValueError)):
            summed(range(1)).merge_bytes(broken)


def test_a_scale_that_could_overflow_is_refused_and_buffers_are_not_scaled() -> None:
    groups = {"delta": groups_of(SPEC, DENSE)}
    said = Update.decode(update(np.ones(SPEC.size, dtype=np.float32)))
    parts = decode_frames(said.frames(), DENSE, SPEC)
    sums = PartialSums(groups, FixedPoint())
    with pytest.raises(ValueError, match="at most 1"):
        sums.add("delta", parts, 1, scale=1.5)
    sums.add("delta", parts, 1, scale=0.5)
    mean = sums.mean("delta", 4.0)
    assert set(mean[BUFFERS]) == {1.0} and set(mean[~BUFFERS]) == {2.0}
    with pytest.raises(ValueError, match="no numbers"):
        sums.count(seen=1)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_come_back_by_columns_in_the_order_of_their_keys() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    matrix = rng.standard_normal((9, 1000)).astype(np.float32)
    rows = Rows(1000, ("delta", "other"), io.BytesIO(), block_bytes=4 * 9 * 7)
    for number in rng.permutation(9):
        vectors = {"delta": matrix[number], "other": -matrix[number]}
        rows.append(bytes([number]), vectors, Facts(int(number) + 1, 0, {}))
    found, other = np.empty_like(matrix), np.empty_like(matrix)
    for where, block in rows.columns():
        assert block.shape[1] <= 7
        found[:, where] = block
    for where, block in rows.columns("other"):
        other[:, where] = block
    assert found.tobytes() == matrix.tobytes() and other.tobytes() == (-matrix).tobytes()
    assert len(rows) == 9 and [facts.weight for facts in rows.facts] == list(range(1, 10))
    rows.close()
