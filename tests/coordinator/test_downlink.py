"""The model on its way down: whatever a device has missed, it trains on the coordinator's parameters to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from wired import ROUND, TASK, TOPICS, Desk, Pair, larger_bundle, make_update

from coordinator.downlink import ADAPTIVE, PLAIN, Downlink, next_model
from coordinator.events import BULK, BrokerUp
from coordinator.pipeline import Aggregator
from coordinator.pipeline.memory import unpack_memory
from coordinator.server_optimizers import FedAvg
from coordinator.stopping import StoppingRule
from coordinator.store import Checkpoint, ModelDeltaRecord, Store, way_from
from edge_sdk.aggregation.algorithm import DELTA
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames
from edge_sdk.device.session import SetEligible
from edge_sdk.training.bundle import decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import apply_model_deltas
from edge_sdk.wire.messages import Accept, Chunk, Invite, Update, short
from edge_sdk.wire.terms import Terms
from edge_sdk.wire.topics import blob_name

SPEC = larger_bundle().program.spec
SPARSE = Downlink(density=0.05, whole_bytes_min=0)
WHOLE_BYTES = len(encode_parameters(larger_bundle().parameters))


class Learners(Pair):
    """Devices whose updates differ, so that each round's model has something of its own."""

    def __init__(self, *devices: str, rounds: int = 3, downlink: Downlink | None = SPARSE, **changes: Any) -> None:
        super().__init__(
            *devices,
            made=larger_bundle(),
            downlink=downlink,
            stopping=StoppingRule(rounds_max=rounds),
            **changes,
        )

    def make_update(self, device: str) -> bytes:
        draw = np.random.Generator(np.random.PCG64([ord(device), len(self.trainings[device])]))
        return make_update((0.1 * draw.standard_normal(SPEC.size)).astype(np.float32), made=self.desk.made)

    def run_round(self) -> int:
        """Until the next round is committed; its number."""
        before = latest(self.desk).round
        while latest(self.desk).round == before:
            assert self.now < 5000.0
            self.run(1.0)
        return before + 1


def latest(desk: Desk) -> Checkpoint:
    checkpoint = desk.store.latest_checkpoint(TASK)
    assert checkpoint is not None
    return checkpoint


def play_round(desk: Desk, *devices: str, holds: Sequence[bytes] = (), seed: int = 0) -> dict[str, Invite]:
    """One whole round by hand; the devices' invites."""
    desk.work()  # after a start: the evaluation of the round before
    while desk.round is None:
        desk.wait()
    for device in devices:
        desk.check_in(device, holds=tuple(short(digest) for digest in holds[:2]))
    desk.wait(ROUND.window_seconds)
    invites = {device: desk.told(device, Invite)[-1] for device in devices}
    items = []
    for number, (device, invite) in enumerate(invites.items()):
        desk.hear(device, Accept(ticket=invite.ticket))
        draw = np.random.Generator(np.random.PCG64([seed, invite.round, number]))
        payload = make_update((0.1 * draw.standard_normal(SPEC.size)).astype(np.float32), made=desk.made)
        items.append((device, invite.ticket, payload))
    upload(desk, items)
    return invites


def upload(desk: Desk, items: list[tuple[str, bytes, bytes]]) -> None:
    for device, ticket, payload in items:
        digest, total = digest_of(payload), len(payload)
        for at in range(0, total, 1024):
            desk.hear(device, Chunk(ticket, digest, total, at, payload[at : at + 1024]))
    desk.work()


def by_hand(**changes: Any) -> Desk:
    changes = {"downlink": SPARSE, "stopping": StoppingRule(rounds_max=50)} | changes
    return Desk(made=larger_bundle(), **changes)


# --- devices that miss rounds -----------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from([SPARSE, PLAIN, ADAPTIVE]), st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_a_device_that_misses_any_rounds_trains_on_the_model(
    present: list[bool], how: Downlink, deltas_max: int
) -> None:
    """``Pair`` compares the bytes with their digest at each training."""
    downlink = replace(how, deltas_max=deltas_max, whole_bytes_min=0)
    everybody = replace(ROUND, goal_count=3)  # nobody is left behind by faster ones
    pair = Learners("a", "b", "c", rounds=len(present) + 1, downlink=downlink, round=everybody)
    for here in present:
        pair.play("c", SetEligible(here))
        pair.run_round()
    pair.play("c", SetEligible(True))
    pair.run(300.0)
    assert pair.desk.core.finished is not None
    bases = [training.parameters for training in pair.trainings["a"]]
    assert len(bases) == len(set(bases)) == len(present) + 1
    assert {training.parameters for training in pair.trainings["c"]} <= set(bases)
    assert pair.followed["a"] == [1] * len(present), "who misses nothing gets one model delta a round"
    assert all(count <= deltas_max for count in pair.followed["c"])


@pytest.mark.parametrize("kind", ["invite", "bytes", "want", "gone", "checkin", "announce", "accept"])
def test_messages_that_are_lost_cost_time_only(kind: str) -> None:
    pair = Learners("a", "b", "c")
    heard: dict[str, int] = {}

    def lose(topic: str, way: str) -> bool:
        if topic.endswith(f"/{kind}"):
            heard[topic] = heard.get(topic, 0) + 1
            return heard[topic] % 3 == 0
        return False

    pair.lose = lose
    pair.run(3000.0)
    assert pair.desk.core.finished is not None and sum(map(len, pair.followed.values())) > 0


def test_a_newcomer_fetches_whole_parameters_once_and_then_links() -> None:
    desk = by_hand()
    first = play_round(desk, "a", "b")
    assert all((invite.deltas, invite.base) == ((), b"") for invite in first.values())
    held = first["a"].parameters
    second = play_round(desk, "a", "b", holds=[held])
    (model_delta,) = second["a"].deltas
    assert second["a"].base == short(held) and model_delta[1] * 3 < WHOLE_BYTES
    assert play_round(desk, "new", "b")["new"].deltas == ()


def test_links_lead_from_what_is_held_to_the_rounds_parameters() -> None:
    desk = by_hand()
    held: list[bytes] = []
    for _ in range(4):
        held.append(play_round(desk, "a", "b", holds=held[-1:])["a"].parameters)
    start = encode_parameters(larger_bundle().parameters)
    invite = play_round(desk, "late", "b", holds=[held[0]])["late"]
    deltas = [desk.store.get_blob(digest) or b"" for digest, _ in invite.deltas]
    assert len(deltas) == 1 and digest_of(start) == held[0], "of four rounds, merged"
    desk = by_hand()  # and the same history again gives the same bytes
    again: list[bytes] = []
    for _ in range(5):
        again.append(play_round(desk, "a", "b", holds=again[-1:])["a"].parameters)
    assert again[:4] == held
    assert digest_of(apply_model_deltas(start, deltas, invite.parameters)) == again[4] == invite.parameters


def test_the_newest_of_what_is_held_is_where_the_links_start() -> None:
    desk = by_hand()
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(3)]
    invite = play_round(desk, "a", "b", holds=[held[2], held[1]])["a"]
    assert invite.base == short(held[2]) and len(invite.deltas) == 1


def test_who_has_the_parameters_already_is_given_nothing_to_fetch() -> None:
    desk = by_hand()
    play_round(desk, "a", "b")
    newest = latest(desk).parameters_digest
    invite = play_round(desk, "a", "b", holds=[newest])["a"]
    assert invite.parameters == newest and invite.deltas == ()
    record = desk.store.rounds(TASK, 1)[0]
    assert record.summary["bytes_down_dense"] == record.summary["model_bytes"] == 0


def test_a_chain_is_never_longer_than_configured() -> None:
    desk = by_hand(downlink=replace(SPARSE, deltas_max=2))
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(4)]
    assert [delta.base for delta in desk.store.deltas(TASK) if delta.rounds == 1] == held[2:]
    assert play_round(desk, "a", "b", holds=[held[1]])["a"].deltas == ()
    assert len(desk.store.deltas(TASK)) == 2, "the others are deleted"


def test_a_way_never_costs_more_than_the_whole() -> None:
    desk = by_hand(downlink=replace(SPARSE, density=0.9))
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(9)]
    ways = [play_round(desk, "a", "b", holds=[each])["a"].deltas for each in held]
    assert all(ways) and all(sum(size for _, size in way) < WHOLE_BYTES for way in ways)


def test_who_has_missed_rounds_gets_fewer_bytes_than_those_of_each_round() -> None:
    desk = by_hand()
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(13)]
    deltas = desk.store.deltas(TASK)
    rounds = [delta for delta in deltas if delta.rounds == 1]
    for missed in range(2, 13):
        way = way_from(deltas, [short(held[-missed])])
        assert way[0].base == held[-missed] and sum(delta.rounds for delta in way) == missed
        separate = rounds[-missed:]
        assert len(way) <= missed and sum(d.bytes for d in way) <= sum(d.bytes for d in separate)
    assert [delta.rounds for delta in way_from(deltas, [short(held[0])])] == [8, 4, 1]


# --- the model, and what is owed --------------------------------------------------------------------------------------


def model_and_owed(desk: Desk) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    checkpoint = latest(desk)
    model = decode_parameters(desk.store.get_blob(checkpoint.parameters_digest) or b"", SPEC)
    return model, unpack_memory(checkpoint.server_state)["downlink"].get("owed", np.zeros(SPEC.size, np.float32))


def test_model_and_what_is_owed_are_together_what_the_optimiser_has_come_to() -> None:
    compressed, whole = by_hand(), by_hand(downlink=Downlink())
    for number in range(3):
        for desk in (compressed, whole):
            play_round(desk, "a", "b")
        model, owed = model_and_owed(compressed)
        wanted, nothing = model_and_owed(whole)
        assert not nothing.any() and np.count_nonzero(owed) > 0.9 * SPEC.size
        # Both sides get the same deltas: what a device trains from has no part in them here.
        np.testing.assert_allclose(model + owed, wanted, atol=1e-5, err_msg=f"round {number}")


def test_what_is_exported_and_evaluated_is_what_devices_hold() -> None:
    desk = by_hand()
    play_round(desk, "a", "b")
    committed = latest(desk).parameters_digest
    assert play_round(desk, "a", "b")["a"].parameters == committed


@pytest.mark.parametrize(
    "downlink",
    [None, Downlink(whole_bytes_min=0), replace(SPARSE, whole_bytes_min=1 << 20)],
    ids=["none", "codec none", "small model"],
)
def test_without_links_devices_get_the_model_itself(downlink: Downlink | None) -> None:
    desk = by_hand(downlink=downlink)
    for _ in range(3):
        held = latest(desk).parameters_digest
        invite = play_round(desk, "a", "b", holds=[held, bytes(32)])["a"]
        assert invite.parameters == held and invite.deltas == ()
        assert not model_and_owed(desk)[1].any()
    assert desk.store.deltas(TASK) == []


def test_the_codec_may_be_changed_between_starts() -> None:
    desk = by_hand()
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(2)]
    desk.pipeline = replace(desk.pipeline, downlink=Downlink())
    desk.crash()
    invite = play_round(desk, "a", "b", holds=[held[1]])["a"]
    assert len(invite.deltas) == 1, "the chain that is there still leads to the round's parameters"
    assert not model_and_owed(desk)[1].any() and desk.store.deltas(TASK) == []
    desk.pipeline = replace(desk.pipeline, downlink=SPARSE)
    desk.crash()
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(2)]
    assert play_round(desk, "a", "b", holds=[held[1]])["a"].deltas


def test_an_abandoned_round_leaves_the_model_and_what_is_owed_as_they_are() -> None:
    desk = by_hand()
    play_round(desk, "a", "b")
    before, deltas = latest(desk), desk.store.deltas(TASK)
    desk.begin("a", "b")
    while desk.store.rounds(TASK, 1)[0].phase != "abandoned":
        desk.wait()
    assert (latest(desk), desk.store.deltas(TASK)) == (before, deltas)
    assert play_round(desk, "a", "b")["a"].parameters == before.parameters_digest


def test_a_model_that_cannot_be_sent_as_a_step_travels_whole() -> None:
    model = larger_bundle().parameters.copy()
    model[0] = np.float32(1e32)
    before = encode_parameters(larger_bundle().parameters)
    made = next_model(SPARSE, before, model, ())
    assert made.model_delta is None and made.parameters == encode_parameters(model)


# --- crashes and restored databases -----------------------------------------------------------------------------------


def test_killed_between_commit_and_announcement_it_goes_on_with_the_same_bits() -> None:
    straight, killed = by_hand(), by_hand()
    play_round(straight, "a", "b")
    run = killed.jobs.run
    killed.jobs.run = lambda: run()[:0]  # type: ignore[method-assign]  # what the workers have done is never heard of
    play_round(killed, "a", "b")
    while killed.jobs.queue:
        killed.jobs.run()
    killed.crash()
    killed.work()
    assert latest(killed) == latest(straight)
    assert killed.store.deltas(TASK) == straight.store.deltas(TASK)
    held = encode_parameters(larger_bundle().parameters)
    for desk in (straight, killed):
        newest = desk.store.get_blob(latest(desk).parameters_digest)
        invite = play_round(desk, "a", "b", holds=[digest_of(held)], seed=9)["a"]
        deltas = [desk.store.get_blob(digest) or b"" for digest, _ in invite.deltas]
        assert deltas and apply_model_deltas(held, deltas, invite.parameters) == newest
    assert latest(killed) == latest(straight)


def test_a_restart_in_the_middle_of_a_round_serves_the_same_links() -> None:
    desk = by_hand()
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(2)]
    desk.begin()
    desk.check_in("a", holds=(short(held[1]),))
    desk.check_in("b")
    desk.wait(ROUND.window_seconds)
    first = desk.told("a", Invite)[-1]
    desk.crash(1.0)
    desk.check_in("a", nonce=b"again   ", holds=(short(held[1]),))
    again = desk.told("a", Invite)[-1]
    assert first.deltas and again.ticket == first.ticket
    assert (again.base, again.deltas, again.parameters) == (first.base, first.deltas, first.parameters)


def test_a_restored_database_gives_no_links_to_those_who_are_ahead_of_it(tmp_path: Path) -> None:
    ids = np.random.Generator(np.random.PCG64(0))
    path = tmp_path / "coordinator.db"
    desk = by_hand(store=Store(path, wall=lambda: 0.0, new_id=ids.bytes))
    held = [play_round(desk, "a", "b")["a"].parameters for _ in range(2)]
    desk.store.backup(tmp_path / "backup.db")
    held += [play_round(desk, "a", "b")["a"].parameters for _ in range(2)]
    desk.store.close()
    (tmp_path / "backup.db").replace(path)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    restored = by_hand(store=Store(path, wall=lambda: 0.0, new_id=ids.bytes), seed=5)
    assert restored.store.restored
    ahead = play_round(restored, "a", "b", holds=[held[3]], seed=77)
    assert ahead["a"].deltas == () and ahead["a"].parameters == held[2]
    behind = play_round(restored, "a", "b", holds=[held[3], held[1]], seed=78)["a"]
    assert behind.base == short(held[1]) and behind.parameters not in held
    assert len(behind.deltas) == 2
    restored.store.close()


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retained", ["always", "never"])
def test_the_record_of_a_round_says_what_links_have_saved(retained: str) -> None:
    pair = Learners("a", "b", "c", rounds=4, retained_blobs=retained)
    pair.run(600.0)
    records = sorted(pair.desk.store.rounds(TASK, 10), key=lambda record: record.number)
    assert [record.phase for record in records] == ["closed"] * 4
    first, *later = (record.summary for record in records)
    assert first["bytes_down_dense"] >= 2 * WHOLE_BYTES > first["model_bytes"] > WHOLE_BYTES / 2, "whole, but packed"
    for summary in later:
        assert 0 < 5 * summary["model_bytes"] < summary["bytes_down_dense"]
        assert summary["bytes_down_dense"] >= 2 * WHOLE_BYTES


def test_small_links_and_small_parameters_come_with_the_invite_and_are_not_retained() -> None:
    desk = by_hand(retained_blobs="always", inline_bytes_max=1 << 20)
    first = play_round(desk, "a", "b")["a"]
    assert digest_of(first.inline[0]) == first.parameters and not first.base
    second = play_round(desk, "a", "b", holds=[first.parameters])["a"]
    assert second.base == short(first.parameters) and not second.deltas
    made = apply_model_deltas(first.inline[0], second.inline, second.parameters)
    assert digest_of(made) == second.parameters
    packed = Terms.decode(first.terms).program_packed
    assert packed is not None and packed[1] < Terms.decode(first.terms).program_bytes
    names = {TOPICS.parse(topic)[1] for topic in desk.store.retained()}  # type: ignore[index]
    assert names == {blob_name(packed[0])}, "the program alone, packed"


def test_what_comes_with_an_invite_leaves_it_within_the_brokers_packets() -> None:
    desk = by_hand(inline_bytes_max=1 << 20)
    desk.play(BrokerUp(BULK, WHOLE_BYTES + 100))
    first = play_round(desk, "a", "b")["a"]
    assert not first.inline, "with its terms the invite would be larger, and the broker would refuse it"
    second = play_round(desk, "a", "b", holds=[first.parameters])["a"]
    assert second.inline and sum(map(len, second.inline)) <= WHOLE_BYTES // 2


def test_only_what_somebody_needs_is_retained() -> None:
    desk = by_hand(retained_blobs="always")
    held = play_round(desk, "a", "b")["a"].parameters
    (model_delta,) = play_round(desk, "a", "b", holds=[held])["a"].deltas
    whole = [topic for topic in desk.store.retained() if blob_name(held) in topic]
    assert not whole, "one round after nothing refers to it, the first one is gone"
    desk.begin("a", "b")
    play_round(desk, "a", "b", holds=[held])
    topics = desk.store.retained()
    assert any(blob_name(model_delta[0]) in topic for topic in topics)


# --- the way ----------------------------------------------------------------------------------------------------------


def delta(number: int, rounds: int, size: int) -> ModelDeltaRecord:
    """Of the rounds up to ``number``; parameters are named after their round, a byte 32 times."""
    return ModelDeltaRecord(
        number, rounds, bytes([number - rounds]) * 32, bytes([number]) * 32, bytes([number, rounds]) * 16, size
    )


@given(st.data())
def test_the_way_of_the_fewest_bytes_is_found(data: st.DataObject) -> None:
    """Against all ways there are."""
    spans = [(number, rounds) for number in range(1, 7) for rounds in (1, 2, 4) if rounds <= number]
    there = [span for span in spans if span[1] == 1 or data.draw(st.booleans(), str(span))]
    deltas = [delta(*span, data.draw(st.integers(1, 40), f"bytes of {span}")) for span in there]
    known = data.draw(st.sets(st.integers(0, 9)), "held")
    ways: list[tuple[ModelDeltaRecord, ...]] = []
    unfinished: list[tuple[int, tuple[ModelDeltaRecord, ...]]] = [(start, ()) for start in known if start < 6]
    while unfinished:
        at, way = unfinished.pop()
        following = [(each.round, (*way, each)) for each in deltas if each.round - each.rounds == at]
        ways += [way for at, way in following if at == 6]
        unfinished += [(at, way) for at, way in following if at < 6]
    found = way_from(deltas, [bytes([start]) * 8 for start in known])
    if 6 in known or not ways:
        assert found == ()
    else:
        assert found in ways
        assert sum(each.bytes for each in found) == min(sum(each.bytes for each in way) for way in ways)
    assert way_from([], [b"x" * 8]) == ()


# --- what is owed under an optimiser with a memory --------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "keeps"), [("dense", ADAPTIVE.keeps), ("sparse", 1.0)])
def test_what_is_owed_is_forgotten_in_part_only_where_devices_push_everywhere_again(codec: str, keeps: float) -> None:
    """A second round whose updates are of no length shows what is left of the first one's debt."""
    plan = replace(by_hand().settings.plan, codec=CodecSettings.of(codec, density=0.02))
    downlink = replace(ADAPTIVE, density=0.05, whole_bytes_min=0)
    settings = replace(by_hand().pipeline, downlink=downlink, optimizer=FedAvg())
    pipeline = Aggregator(larger_bundle().program, plan, settings)
    model, memory = encode_parameters(larger_bundle().parameters), pipeline.initial_memory()
    draw = np.random.Generator(np.random.PCG64(3))
    wanted = []
    for scale in (0.1, 0.0):
        pipeline.begin(model, memory)
        delta = (scale * draw.standard_normal(SPEC.size)).astype(np.float32)
        delta[: SPEC.size // 50] += np.float32(1e-9)  # a sparse update of nothing would have no coordinates
        frames = encode_frames(delta, None, plan.codec, SPEC, seed=1).frames
        pipeline.add(pipeline.examine(replace(Update.decode(make_update(delta)), vectors={DELTA: frames}).encode()))
        finished = pipeline.finish()
        model, memory = finished.parameters, finished.memory
        wanted.append((finished.vector, memory["downlink"]["owed"]))
    (first, owed), (second, left) = wanted
    assert np.linalg.norm(owed) > 0.01
    np.testing.assert_allclose(second + left, first + np.float32(keeps) * owed, atol=1e-6)


def test_more_is_sent_where_an_update_moves_few_coordinates_and_the_optimiser_remembers() -> None:
    assert ADAPTIVE.suited(1.0) == ADAPTIVE and PLAIN.suited(0.01) == PLAIN
    few = ADAPTIVE.suited(0.01)
    assert few.keeps == 1.0 and few.share > ADAPTIVE.share
