"""Sessions and core wired together in memory: whole rounds, messages lost and doubled, a hand-turned clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from wired import ROUND, TASK, TOPICS, Pair, larger_bundle

from coordinator.downlink import Downlink
from coordinator.stopping import StoppingRule
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.session import SetEligible

SPARSE = Downlink(density=0.2, whole_bytes_min=0)


def test_three_devices_and_three_rounds() -> None:
    pair = Pair("a", "b", "c")
    pair.run(300.0)
    assert pair.desk.core.finished is not None
    assert all(outcomes == [True] * 3 for outcomes in pair.settled.values())


@pytest.mark.parametrize(
    "kind", ["invite", "come_back", "verdict", "have", "bytes", "checkin", "accept", "offer", "want", "announce"]
)
def test_losing_the_first_of_every_kind_only_costs_time(kind: str) -> None:
    pair = Pair("a", "b", "c", stopping=StoppingRule(rounds_max=2))
    lost: set[tuple[str, str]] = set()

    def lose(topic: str, way: str) -> bool:
        if topic.endswith(f"/{kind}") and (topic, way) not in lost:
            lost.add((topic, way))
            return True
        return False

    pair.lose = lose
    pair.run(3000.0)
    assert pair.desk.core.finished is not None and (lost or kind == "come_back")
    assert sum(map(sum, pair.settled.values())) >= 2 * ROUND.goal_count, "at most a straggler is late"
    assert not any(session.unsettled for session in pair.sessions.values())


@pytest.mark.parametrize("kind", ["invite", "verdict", "checkin", "accept", "chunk", "announce", "nothing"])
def test_losing_the_first_of_every_kind_only_costs_time_where_nothing_small_is_asked_for(kind: str) -> None:
    pair = Pair("a", "b", "c", small=True, made=larger_bundle(), downlink=SPARSE, stopping=StoppingRule(rounds_max=3))
    lost: set[tuple[str, str]] = set()
    heard: Counter[str] = Counter()

    def lose(topic: str, way: str) -> bool:
        name = "chunk" if "/up/" in topic else topic.rsplit("/", 1)[1]
        heard[name] += 1
        if name == kind and (topic, way) not in lost:
            lost.add((topic, way))
            return True
        return False

    pair.lose = lose
    pair.run(3000.0)
    assert pair.desk.core.finished is not None and (lost or kind == "nothing")
    assert sum(map(sum, pair.settled.values())) >= 3 * ROUND.goal_count, "at most a straggler is late"
    assert not any(session.unsettled for session in pair.sessions.values())
    assert any(pair.followed.values()), "model deltas came with the invites"
    if kind == "nothing":
        assert heard.keys().isdisjoint({"offer", "have"}), "updates were sent at once"
        pieces = -(-len(larger_bundle().program.encode()) // pair.desk.settings.chunk_bytes_max)
        assert heard["bytes"] == 3 * pieces, "the program once a device, and nothing else"


def test_losing_every_verdict_that_is_pushed_the_outcome_is_learnt_from_check_ins() -> None:
    pair = Pair("a", "b", "c")
    pushed: dict[str, int] = {}

    def lose(topic: str, way: str) -> bool:
        if topic.endswith("/verdict"):
            pushed[topic] = pushed.get(topic, 0) + 1
            return pushed[topic] % 2 == 0  # the receipt comes through, the outcome does not
        return False

    pair.lose = lose
    pair.run(4000.0)
    assert pair.desk.core.finished is not None
    assert all(True in outcomes for outcomes in pair.settled.values())
    assert not any(session.unsettled for session in pair.sessions.values())


@pytest.mark.parametrize("seed", range(8))
def test_a_fifth_of_all_messages_lost_only_costs_time(seed: int) -> None:
    pair = Pair("a", "b", "c", "d", stopping=StoppingRule(rounds_max=2))
    chance = np.random.Generator(np.random.PCG64(seed))
    pair.lose = lambda topic, way: bool(chance.random() < 0.2)
    pair.run(6000.0)
    assert pair.desk.core.finished is not None
    records = [r for r in pair.desk.store.rounds(TASK, limit=100) if r.phase == "closed"]
    assert len(records) == 2
    pair.lose = lambda topic, way: False
    pair.run(3000.0)
    assert not any(session.unsettled for session in pair.sessions.values())


def test_a_coordinator_that_crashes_in_every_phase_goes_on_where_it_was() -> None:
    for moment in np.linspace(0.0, 12.0, 13):
        pair = Pair("a", "b", "c", stopping=StoppingRule(rounds_max=1))
        pair.run(float(moment))
        pair.desk.crash(down_seconds=50.0)
        pair.run(500.0)
        assert pair.desk.core.finished is not None, f"crash after {moment:.1f} s"
        assert not any(session.unsettled for session in pair.sessions.values())


def test_a_device_that_is_cut_off_at_any_moment_comes_back_and_finishes() -> None:
    for moment in np.linspace(0.0, 8.0, 9):
        pair = Pair("a", "b", stopping=StoppingRule(rounds_max=1))
        pair.run(float(moment))
        pair.cut("a")
        pair.run(20.0)
        pair.connect("a")
        pair.run(300.0)
        assert pair.desk.core.finished is not None, f"cut after {moment:.1f} s"
        assert not pair.sessions["a"].unsettled


def test_an_upload_from_before_a_restart_counts_if_its_round_is_open() -> None:
    pair = Pair("a", "b", stopping=StoppingRule(rounds_max=1))
    pair.lose = lambda topic, way: "/up/" in topic and topic.endswith("/a")
    pair.run(8.0)
    assert pair.sessions["a"].state == "uploading"
    upload = pair.sessions["a"]._deliver._upload
    assert upload is not None
    pair.cut("a")
    pair.lose = lambda topic, way: False
    pair.sessions["a"] = pair.session("a", 9, pending=upload.update)
    pair.connect("a")
    pair.run(100.0)
    assert pair.settled["a"] == [True]


def test_an_upload_of_a_round_that_is_long_over_is_settled_as_not_counted() -> None:
    pair = Pair("b", "c", "d")
    pair.run(300.0)
    ticket = next(iter(pair.trainings["b"])).ticket
    for device, lineage in (("b", pair.desk.store.lineage), ("b", b"restored")):
        held = PendingUpdate(
            b"forgotten ticket", b"d" * 32, lineage, "default", 1, "0", bytes(32), bytes(32), b"payload"
        )
        pair.sessions[device] = pair.session(device, 5, pending=held)
        pair.connect(device)
        pair.run(20.0)
        assert pair.settled[device][-1] is False and pair.sessions[device].state == "idle"
    assert pair.desk.store.ticket(ticket) is not None


def test_a_received_update_of_an_abandoned_round_is_settled_as_not_counted() -> None:
    pair = Pair("a", "b", "c", round=replace(ROUND, goal_count=3, minimum_count=3), stopping=StoppingRule(rounds_max=1))
    pair.lose = lambda topic, way: topic.startswith(f"{TOPICS.root}/up/") and not topic.endswith("/a")
    pair.run(90.0)
    assert pair.receipts["a"] >= 1
    pair.lose = lambda topic, way: False
    pair.run(600.0)
    assert pair.desk.core.finished is not None
    assert pair.settled["a"][0] is False and pair.settled["a"][-1] is True


def test_a_device_that_may_not_work_gives_its_ticket_back_and_is_replaced() -> None:
    pair = Pair("a", "b", "c", "d", stopping=StoppingRule(rounds_max=1))
    pair.play("a", SetEligible(False, "on battery"))
    pair.run(120.0)
    assert pair.desk.core.finished is not None and not pair.trainings["a"]


def test_chunks_of_the_configured_size_make_the_update() -> None:
    pair = Pair("a", "b", stopping=StoppingRule(rounds_max=1), chunk_bytes_max=256)
    sizes: list[int] = []
    arrive = pair.desk.play

    def watch(*events: object) -> list[object]:
        sizes.extend(len(event.payload) for event in events if "/up/" in getattr(event, "topic", ""))  # type: ignore[attr-defined]
        return arrive(*events)  # type: ignore[arg-type,return-value]

    pair.desk.play = watch  # type: ignore[method-assign,assignment]
    pair.run(120.0)
    assert pair.settled["a"] == [True] and sizes and max(sizes) < 256 + 300


def test_nothing_happens_twice_when_everything_is_delivered_twice() -> None:
    pair = Pair("a", "b", "c", stopping=StoppingRule(rounds_max=2))
    deliver, arrive = pair._deliver, pair._to_coordinator

    def twice_down(device: str, topic: str, payload: bytes) -> None:
        deliver(device, topic, payload)
        deliver(device, topic, payload)

    def twice_up(device: str, topic: str, payload: bytes, token: int) -> None:
        arrive(device, topic, payload, token)
        arrive(device, topic, payload, 0)

    pair._deliver, pair._to_coordinator = twice_down, twice_up  # type: ignore[method-assign]
    pair.run(300.0)
    assert pair.desk.core.finished is not None
    assert all(outcomes == [True] * 2 for outcomes in pair.settled.values())
    assert all(len(trainings) == 2 for trainings in pair.trainings.values())
