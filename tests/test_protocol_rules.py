"""The sixteen rules of the protocol, each named and shown on the real machines.

The rules stand in ARCHITECTURE.md; ``tests/test_scenarios.py`` shows that together they hold in any weather.
"""

from __future__ import annotations

import ast
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from wired import FEDERATION, ROUND, TASK, TOPICS, Desk, Pair, bundle, make_update

from coordinator.events import BULK, CONTROL, Acknowledge, Publish
from coordinator.stopping import StoppingRule
from coordinator.store import Store
from coordinator.task import RECEIPT_SECONDS
from device_sim.world.clock import VirtualClock
from device_sim.world.network import InMemoryBroker, NetworkFaults
from edge_sdk.aggregation.sums import FixedPoint, WeightedMean
from edge_sdk.codecs import CodecSettings, decode_update, encode_update
from edge_sdk.device.agent import Agent
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import Progress
from edge_sdk.device.reconnect import TAKEOVER_SECONDS
from edge_sdk.device.session import MessageArrived, Offline, Online
from edge_sdk.device.settings import AgentSettings
from edge_sdk.device.state import DeviceState
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.mqtt import Delivery
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import (
    Accept,
    Announce,
    BlobGone,
    CheckIn,
    Chunk,
    ComeBack,
    Decline,
    Have,
    Invite,
    Offer,
    RangeData,
    RangeRequest,
    Update,
    Verdict,
    short,
)
from edge_sdk.wire.outcomes import VERDICTS
from edge_sdk.wire.safe_msgpack import BytesLike
from edge_sdk.wire.terms import Terms
from edge_sdk.wire.topics import check_segment

ROOT = Path(__file__).parent.parent


def whole(invite: Invite, payload: bytes) -> Chunk:
    return Chunk(ticket=invite.ticket, digest=digest_of(payload), total=len(payload), offset=0, data=payload)


def offer(invite: Invite, payload: bytes) -> Offer:
    return Offer(ticket=invite.ticket, digest=digest_of(payload), total=len(payload))


def upload(desk: Desk, device: str, invite: Invite, payload: bytes | None = None) -> bytes:
    payload = make_update() if payload is None else payload
    desk.hear(device, whole(invite, payload))
    desk.work()
    return payload


# --- 1 decide, journal, then speak -----------------------------------------------------------------------------------


def test_rule_01_what_a_device_is_told_another_process_finds_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    desk = Desk(store=Store(path, wall=lambda: 0.0, new_id=secrets.token_bytes))
    reader = Store.open_readonly(path)
    seen: list[tuple[str, str]] = []

    def look(publish: Publish) -> None:
        for _, invite in desk.said(Invite, [publish]):
            known = reader.ticket(invite.ticket)
            seen.append(("invite", known.state if known else "nothing"))
        for _, verdict in desk.said(Verdict, [publish]):
            known = reader.ticket(verdict.ticket)
            seen.append((verdict.outcome, known.state if known else "nothing"))

    desk.on_publish = look
    for device, invite in desk.begin("a", "b", "c").items():
        upload(desk, device, invite)
        desk.wait(RECEIPT_SECONDS)
    assert {("invite", "invited"), ("received", "journalled"), ("counted", "counted")} <= set(seen)
    others = {pair for pair in seen if pair[0] not in ("invite", "received")}
    assert all(outcome == state for outcome, state in others)
    reader.close()
    desk.store.close()


def test_rule_01_a_turn_that_fails_leaves_no_trace() -> None:
    desk = Desk()
    desk.wait()
    for device in ("a", "b", "c"):
        desk.check_in(device)
    desk.now += ROUND.window_seconds
    with pytest.raises(ZeroDivisionError), desk.store.transaction():
        desk.core.handle(
            desk.arrived("d", CheckIn(b"nonce   ", b"i" * 8, b"i" * 16, {"supports": ["codec:dense"]})), desk.now
        )
        raise ZeroDivisionError
    assert desk.store.tickets(TASK, 1, 0) == []


def test_rule_01_closing_refuses_new_admissions_waits_for_the_admitted_ones_and_journals_its_end() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    names = list(invites)
    for device in names:
        desk.hear(device, Accept(ticket=invites[device].ticket))
    for device in names[:2]:
        desk.hear(device, whole(invites[device], make_update()))
    first = desk.jobs.queue.popleft()  # the round's start
    desk.jobs.ingest_side.start(first)  # type: ignore[arg-type]
    waiting = list(desk.jobs.queue)
    assert len(waiting) == 2 and desk.round is not None and desk.round.phase in ("configuration", "reporting")
    desk.work()
    closed = desk.store.rounds(TASK, limit=2)[-1]
    assert (closed.phase, closed.last_seq) == ("closed", 2)
    late = desk.hear(names[2], offer(invites[names[2]], make_update()))
    assert desk.told(names[2], Verdict, late)[0].outcome == "late"


# --- 2 tickets -------------------------------------------------------------------------------------------------------


def test_rule_02_a_ticket_is_bound_to_epoch_task_base_program_device_and_instance() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    ticket, record = desk.store.ticket(invite.ticket), desk.store.open_round(TASK)
    assert ticket is not None and record is not None
    assert (ticket.device, ticket.instance, ticket.task) == ("a", b"a".ljust(16), TASK)
    assert (record.base, record.program) == (invite.parameters, Terms.decode(invite.terms).program)
    stolen = desk.hear("b", offer(invite, make_update()))
    assert desk.told("b", Verdict, stolen)[0].outcome == "unknown"
    foreign = desk.hear("a", offer(invite, make_update()), lineage=b"another.")
    assert desk.told("a", Verdict, foreign)[0].outcome == "unknown"


def test_rule_02_a_cloned_device_does_not_get_the_first_ones_ticket() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    answers = desk.check_in("a", nonce=b"of clone", instance=b"another instance")
    assert desk.told("a", ComeBack, answers)[0].reason == "other_instance" and not desk.told("a", Invite, answers)


def test_rule_02_a_ticket_is_spent_at_most_once() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    upload(desk, "a", invite)
    desk.hear("a", whole(invite, make_update(0.7)), whole(invite, make_update()))
    desk.work()
    assert len(list(desk.store.journalled(TASK, 1, 0))) == 1


def test_rule_02_a_restored_database_begins_a_new_epoch_and_abandons_its_open_round(tmp_path: Path) -> None:
    path = tmp_path / "state.db"

    def opened() -> Store:
        return Store(path, wall=lambda: 0.0, new_id=secrets.token_bytes)

    desk = Desk(store=opened())
    invite = desk.begin("a", "b", "c")["a"]
    backup = tmp_path / "backup.db"
    desk.store.backup(backup)
    for device, held in desk.begin("a", "b", "c").items():
        upload(desk, device, held)
    old = desk.store.lineage
    desk.store.close()
    path.write_bytes(backup.read_bytes())
    for leftover in (path.with_name("state.db-wal"), path.with_name("state.db-shm")):
        leftover.unlink(missing_ok=True)
    restored = Desk(store=opened(), seed=1)
    assert restored.store.restored and restored.store.lineage != old
    abandoned = [record for record in restored.store.rounds(TASK) if record.attempt == 0]
    assert [(record.phase, record.reason) for record in abandoned] == [("abandoned", "restored")]
    answer = restored.hear("a", offer(invite, make_update()), lineage=old)
    assert restored.told("a", Verdict, answer)[0].outcome in ("unknown", "missing")
    restored.store.close()


def test_rule_02_the_identity_of_a_device_is_the_topics_never_the_payloads() -> None:
    fields = {name for kind in (CheckIn, Accept, Decline, Offer, Chunk, RangeRequest) for name in kind.__slots__}
    assert not fields & {"device", "device_id", "client", "from", "sender", "name"}


# --- 3 announcements are hints ---------------------------------------------------------------------------------------


def test_rule_03_replies_echo_the_nonce_and_are_not_retained() -> None:
    desk = Desk()
    desk.wait()
    desk.check_in("old", nonce=b"nonce 42", capabilities={"supports": []})
    desk.begin("a", "b", "c")
    assert desk.told("old", ComeBack)[0].nonce == b"nonce 42"
    to_devices = [e for e in desk.effects if isinstance(e, Publish) and e.topic.startswith(f"{TOPICS.root}/to/")]
    assert to_devices and not any(publish.retain for publish in to_devices)


def test_rule_03_any_other_reply_is_dropped() -> None:
    pair = Pair("a", "b")
    pair.run(6.0)
    session = pair.sessions["a"]
    before = session.state
    payload = encode_message(
        Envelope(TASK, pair.desk.store.lineage), ComeBack(nonce=b"replayed", seconds=1e6, hold=True)
    )
    assert session.handle(MessageArrived(TOPICS.to_device("a", "come_back"), payload), pair.now) == []
    assert session.state == before


def test_rule_03_a_repeated_check_in_is_answered_idempotently() -> None:
    desk = Desk()
    first = desk.begin("a", "b", "c")["a"]
    for nonce in (b"second  ", b"third   "):
        again = desk.told("a", Invite, desk.check_in("a", nonce=nonce))[0]
        assert replace(again, nonce=first.nonce, report_seconds=0.0) == replace(first, report_seconds=0.0)
    assert len(desk.store.tickets(TASK, 1, 0)) == 3


def test_rule_03_silence_is_refilled_and_only_the_coordinator_decides_what_is_late() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c", "d", "e")
    desk.wait(10.0)
    assert len(desk.store.tickets(TASK, 1, 0)) == 5, "the reserves are asked"
    upload(desk, next(iter(invites)), invites[next(iter(invites))])
    assert not any("late" in field for kind in (Accept, Offer, Chunk, Update) for field in kind.__slots__)


def test_rule_03_selection_is_announced_with_an_expiry() -> None:
    desk = Desk()
    desk.wait()
    announcements = [e for e in desk.effects if isinstance(e, Publish) and e.topic == TOPICS.announce(TASK)]
    assert announcements[-1].expiry_seconds is not None and announcements[-1].expiry_seconds >= 2 * 60


# --- 4 receipt and outcome -------------------------------------------------------------------------------------------


def test_rule_04_receipt_and_outcome_are_two_things() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    upload(desk, "a", invites["a"])
    desk.wait(RECEIPT_SECONDS)
    assert [v.outcome for v in desk.told("a", Verdict)] == ["received"]
    upload(desk, "b", invites["b"])
    assert [v.outcome for v in desk.told("a", Verdict)] == ["received", "counted"]


@pytest.mark.parametrize("counted", [True, False])
def test_rule_04_the_residual_of_after_replaces_that_of_before_only_if_the_update_counted(counted: bool) -> None:
    files = MemoryFiles()
    state = DeviceState(files, new_instance=lambda: b"i" * 16, wall_day=lambda: 0)
    before, after = np.full(15, 1.0, dtype=np.float32), np.full(15, 2.0, dtype=np.float32)
    spec = b"s" * 32

    def entry(ticket: bytes) -> PendingUpdate:
        return PendingUpdate(ticket, b"d" * 32, b"lineage", TASK, 1, "0", b"b" * 32, spec, b"payload")

    state.save_outbox(entry(b"1" * 16), {"residual": before})
    state.settle(b"1" * 16, True)
    state.save_outbox(entry(b"2" * 16), {"residual": after})
    state.mark_received(b"2" * 16)
    held = DeviceState(files, new_instance=lambda: b"j" * 16, wall_day=lambda: 0)  # the power failed in between
    assert held.unsettled == [b"2" * 16] and held.outbox is not None and held.outbox.payload is None
    held.settle(b"2" * 16, counted)
    assert np.array_equal(held.vectors(spec)["residual"], after if counted else before)
    assert held.vectors(b"o" * 32) == {}, "a new spec drops the residual"


def test_rule_04_no_training_while_a_ticket_is_unsettled() -> None:
    pair = Pair("a", "b", "c", stopping=StoppingRule(rounds_max=3))
    pair.lose = lambda topic, way: topic.endswith("/verdict") and way == "a" and pair.receipts["a"] > 0
    for _ in range(600):
        pair.run(1.0)
        assert len(pair.trainings["a"]) - len(pair.settled["a"]) <= 1
    assert pair.desk.core.finished is not None and len(pair.trainings["a"]) >= 2


# --- 5 a PUBACK covers one chunk -------------------------------------------------------------------------------------


def test_rule_05_each_chunk_is_acknowledged_once_it_is_stored_or_refused_never_withheld_for_another() -> None:
    desk = Desk(update_bytes_max=100_000)
    invite = desk.begin("a", "b", "c")["a"]
    digest = b"d" * 32
    for at in range(0, 70_000, 100):  # 700 chunks, and the update never gets whole
        chunk = Chunk(ticket=invite.ticket, digest=digest, total=70_001, offset=at, data=b"x" * 100)
        arrived = desk.arrived("a", chunk)
        assert desk.acknowledged(desk.play(arrived)) == [arrived.acknowledgement.acknowledgement]
    assert desk.store.ranges(invite.ticket, digest) == [(0, 70_000)]
    refused = desk.hear("a", Chunk(ticket=b"?" * 16, digest=digest, total=5, offset=0, data=b"x"))
    assert len(desk.acknowledged(refused)) == 1


def test_rule_05_an_acknowledgement_comes_after_the_commit_that_stored_the_chunk() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    chunk = Chunk(ticket=invite.ticket, digest=b"d" * 32, total=100, offset=0, data=b"x" * 50)
    arrived = desk.arrived("a", chunk)
    with desk.store.transaction():
        desk.core.handle(arrived, desk.now)
        assert not any(isinstance(effect, Acknowledge) for effect in desk.core._effects)
        desk.core.end_turn(desk.now)
        assert desk.store.ranges(invite.ticket, b"d" * 32) == [(0, 50)]
    assert desk.acknowledged(desk.core.take_effects()) == [arrived.acknowledgement.acknowledgement]


def test_rule_05_after_a_cut_the_device_asks_and_sends_only_what_is_missing() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear(
        "a", Chunk(ticket=invite.ticket, digest=digest_of(payload), total=len(payload), offset=50, data=payload[50:90])
    )
    desk.lose_broker()
    desk.find_broker()
    assert desk.told("a", Have, desk.hear("a", offer(invite, payload)))[0].ranges == ((50, 90),)
    upload(desk, "a", invite, payload)
    assert desk.told("a", Verdict, desk.hear("a", offer(invite, payload)))[0].outcome == "received"


# --- 6 no MQTT session -----------------------------------------------------------------------------------------------


def test_rule_06_every_connection_starts_clean_and_subscribes_again() -> None:
    pair = Pair("a")
    first = set(pair.filters["a"])
    pair.cut("a")
    pair.connect("a")
    assert pair.filters["a"] == first
    # The paho adapter: tests/edge_sdk/test_mqtt_flow.py, "nothing old is sent after a reconnect".
    source = (ROOT / "edge_sdk" / "mqtt" / "connection.py").read_text()
    assert "clean_start=True" in source and "clean_start=False" not in source


def test_rule_06_the_adapter_sends_nothing_old_after_a_reconnect() -> None:
    clock = VirtualClock()
    broker = InMemoryBroker(clock, np.random.Generator(np.random.PCG64(0)), NetworkFaults())
    heard: list[Delivery] = []
    listener = broker.transport("listener", lambda e: heard.append(e) if isinstance(e, Delivery) else None)
    sender = broker.transport("sender", lambda event: None)
    listener.connect(), sender.connect()
    clock.run(until=1.0)
    listener.subscribe(["t"])
    clock.run(until=2.0)
    broker.cut("sender")
    for number in range(50):
        sender.publish("t", bytes([number]))
    sender.connect()
    clock.run(until=5.0)
    sender.publish("t", b"new")
    clock.run(until=10.0)
    assert b"new" in [delivery.payload for delivery in heard]
    assert len(heard) <= 20, "what waited behind the window went with the connection"


def test_rule_06_an_update_is_offered_again_to_a_new_incarnation_only() -> None:
    pair = Pair("a", "b")
    pair.lose = lambda topic, way: "/up/" in topic
    pair.run(8.0)
    offers: list[str] = []
    pair.lose = lambda topic, way: bool(offers.append(topic)) if topic.endswith("/a/offer") else "/up/" in topic
    session = pair.sessions["a"]
    assert session.state == "uploading"
    incarnation = pair.desk.core.incarnation

    def state(number: int) -> None:
        lineage = pair.desk.store.lineage
        payload = CoordinatorState(lineage, number, True, (TASK,)).encode(FEDERATION)
        pair.play("a", MessageArrived(TOPICS.lineage_state(lineage), payload))
        while pair.todo:
            pair.todo.popleft()()

    state(incarnation)
    assert offers == []
    state(incarnation + 1)
    assert len(offers) == 1


def test_rule_06_control_and_bulk_are_two_connections() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    desk.hear("a", RangeRequest(digest=short(invites["a"].parameters), ranges=((0, 10),)))
    channels = {
        type(message): effect.channel
        for kind in (Invite, RangeData)
        for effect in desk.effects
        if isinstance(effect, Publish)
        for _, message in desk.said(kind, [effect])
    }
    assert channels == {Invite: CONTROL, RangeData: BULK}


# --- 7 downloads are ranges ------------------------------------------------------------------------------------------


def test_rule_07_the_retained_cache_is_journalled_cleared_one_round_later_and_after_a_restart() -> None:
    desk = Desk(retained_blobs="always")
    first = desk.begin("a", "b", "c")["a"]
    topic = TOPICS.blob(first.parameters, 0)
    assert topic in desk.store.retained() and desk.retained[topic]
    for device, invite in desk.begin("a", "b", "c").items():
        upload(desk, device, invite)
    assert desk.retained[topic], "stragglers of the round may still be reading"
    for device, invite in desk.begin("a", "b", "c").items():
        upload(desk, device, invite)
    assert desk.retained[topic] == b"" and topic not in desk.store.retained()
    second = desk.begin("a", "b", "c")["a"]
    held = TOPICS.blob(second.parameters, 0)
    assert desk.retained[held]
    desk.crash()
    assert desk.retained[held], "the open round still serves it"
    for device, invite in desk.begin("a", "b", "c").items():
        upload(desk, device, invite)
    assert desk.core.finished is not None
    assert not desk.store.retained() and not any(p for t, p in desk.retained.items() if "/blobs/" in t)


def test_rule_07_what_nobody_serves_any_more_is_gone() -> None:
    desk = Desk()
    desk.wait()
    assert desk.told("a", BlobGone, desk.hear("a", RangeRequest(digest=b"?" * 8, ranges=((0, 9),))))


def test_rule_07_a_device_reads_from_the_cache_and_falls_back_to_asking() -> None:
    pair = Pair("a", "b", retained_blobs="always", stopping=StoppingRule(rounds_max=2))
    asked: list[str] = []
    pair.lose = lambda topic, way: bool(topic.endswith("/want") and asked.append(topic))
    pair.run(100.0)
    assert pair.desk.core.finished is not None and not asked, "everything came from the cache"

    pair = Pair("a", "b", retained_blobs="always", stopping=StoppingRule(rounds_max=1))
    pair.lose = lambda topic, way: "/blobs/" in topic or bool(topic.endswith("/want") and asked.append(topic))
    pair.desk.retained = _NoBlobs(pair.desk.retained)
    pair.run(200.0)
    assert pair.desk.core.finished is not None and asked


class _NoBlobs(dict[str, bytes]):
    """A broker that keeps no blobs."""

    def __setitem__(self, topic: str, payload: bytes) -> None:
        if "/blobs/" not in topic:
            super().__setitem__(topic, payload)


# --- 8 the envelope --------------------------------------------------------------------------------------------------


def test_rule_08_every_message_has_the_envelope_and_a_body_of_exact_bytes() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    payload = next(e.payload for e in desk.effects if isinstance(e, Publish) and e.topic.endswith("/invite"))
    envelope = msgpack.unpackb(payload)
    assert list(envelope) == ["v", "l", "b"], "what the topic says is not said again, and what is the default neither"
    assert isinstance(envelope["b"], bytes)
    assert Terms.decode(desk.told("a", Invite)[0].terms).shard == desk.shard, "the uplink inbox is named in the invite"
    later = {"phase": "masks", "group": "a", "sig": b"over the exact bytes of body"}
    read = decode_message(payload, "invite", peer="coordinator")
    assert decode_message(msgpack.packb(envelope | later), "invite", peer="coordinator") == read
    with pytest.raises(DecodeError, match="encrypted"):
        decode_message(msgpack.packb(envelope | {"enc": "scheme"}), "invite", peer="coordinator")


def test_rule_08_what_a_plan_requires_must_be_understood_or_declined() -> None:
    pair = Pair("a", requires=("codec:dense",))
    pair.desk.task.settings = replace(pair.desk.settings, requires=("codec:dense", "secure:sums"))
    pair.desk.task._invitations._settings = pair.desk.task.settings
    pair.run(20.0)
    assert not pair.trainings["a"], "the coordinator does not ask a device that cannot"

    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    session = Pair("a").session("a", 1)
    session.handle(Online(1 << 20), 0.0)
    assert session._why_not(invite, replace(Terms.decode(invite.terms), requires=("secure:sums",)))[0] == "unsupported"  # type: ignore[index]


# --- 9 sums are exact ------------------------------------------------------------------------------------------------


def test_rule_09_any_order_split_or_merge_gives_the_same_bits() -> None:
    size = 50
    draw = np.random.Generator(np.random.PCG64(0))
    codec = CodecSettings("dense")
    updates = []
    for _ in range(9):
        delta = draw.standard_normal(size).astype(np.float32)
        frame = encode_update(delta, None, codec, seed=1).frame
        updates.append((decode_update(frame, size, codec), int(draw.integers(1, 1000))))

    def summed(order: list[int]) -> WeightedMean:
        mean = WeightedMean(size, FixedPoint())
        for i in order:
            mean.accumulate(*updates[i])
        return mean

    whole_sum = summed(list(range(9))).report()
    assert np.array_equal(summed([8, 3, 1, 0, 7, 5, 2, 4, 6]).report(), whole_sum)
    left, right = summed([0, 1, 2, 3]), summed([4, 5, 6, 7, 8])
    merged = left.merge(right)
    assert np.array_equal((left if merged is None else merged).report(), whole_sum)


# --- 10 only parameters change ---------------------------------------------------------------------------------------


def test_rule_10_the_program_keeps_its_digest_over_all_rounds() -> None:
    pair = Pair("a", "b", "c")
    pair.run(300.0)
    starts = pair.trainings["a"]
    assert len(starts) == 3
    assert {start.program for start in starts} == {bundle().program.digest}
    assert len({start.parameters for start in starts}) == 3


# --- 11 clocks -------------------------------------------------------------------------------------------------------


def test_rule_11_downtime_does_not_count() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    desk.wait(3.0)
    assert desk.round is not None
    left = desk.round.seconds_remaining(desk.now)
    desk.crash(down_seconds=1e6)
    assert desk.round is not None and desk.round.phase == "configuration"
    assert desk.round.seconds_remaining(desk.now) >= left


def test_rule_11_a_phase_runs_out_however_often_the_coordinator_dies() -> None:
    desk = Desk()
    desk.wait()
    for _ in range(20):
        desk.wait(16.0)  # longer than the clock's period, far shorter than the phase
        desk.crash(down_seconds=100.0)
        if desk.store.open_round(TASK) is None:
            break
    assert desk.store.rounds(TASK, limit=50)[-1].phase == "abandoned"


def test_rule_11_no_decision_reads_the_wall_clock() -> None:
    for backwards in (1.0, -1e6):
        desk = Desk()
        desk.core._wall = _Wall(desk, backwards)
        for device, invite in desk.begin("a", "b", "c").items():
            upload(desk, device, invite)
        assert desk.store.latest_checkpoint(TASK).round == 1  # type: ignore[union-attr]


class _Wall:
    def __init__(self, desk: Desk, factor: float) -> None:
        self.desk, self.factor = desk, factor

    def __call__(self) -> float:
        return self.desk.now * self.factor


# --- 12 machines see no tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "coordinator/router.py",
        "coordinator/task.py",
        "coordinator/round_life.py",
        "coordinator/schedules/synchronous.py",
        "edge_sdk/device/session/session.py",
    ],
)
def test_rule_12_machines_decode_no_update_and_read_no_clock(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    forbidden = {"time", "datetime", "threading", "socket", "sqlite3", "edge_sdk.codecs", "edge_sdk.aggregation.sums"}
    assert not imported & (
        forbidden | {"coordinator.validate", "coordinator.server_optimizers", "edge_sdk.training.engine"}
    )
    numpy_used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_numpy(node)}
    assert numpy_used <= {"random"}, "numpy for generators only"


def _is_numpy(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "np"


# --- 13 counters partition -------------------------------------------------------------------------------------------


def test_rule_13_each_ticket_has_one_verdict_frozen_at_the_close() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    desk.hear("c", Decline(ticket=invites["c"].ticket, reason="hot"))
    upload(desk, "a", invites["a"])
    upload(desk, "b", invites["b"])
    verdicts = [ticket.state for ticket in desk.store.tickets(TASK, 1, 0)]
    assert sorted(verdicts) == ["counted", "counted", "declined"] and set(verdicts) <= set(VERDICTS)
    desk.hear("c", offer(invites["c"], make_update()), Accept(ticket=invites["c"].ticket))
    desk.hear("x", offer(invites["a"], make_update()))
    assert [ticket.state for ticket in desk.store.tickets(TASK, 1, 0)] == verdicts
    counters = desk.store.counters()
    assert counters["upload_declined"] == 1 and counters["upload_unknown"] == 1, "strangers are counted beside it"
    told = {device.device: (device.counted, device.declined) for device in desk.store.devices()}
    assert told["a"] == told["b"] == (1, 0) and told["c"] == (0, 1)


# --- 14 nothing outlives its use -------------------------------------------------------------------------------------


def test_rule_14_payloads_go_with_the_rounds_commit_and_a_tombstone_stays() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    payload = make_update()
    desk.hear("c", Chunk(ticket=invites["c"].ticket, digest=b"d" * 32, total=100, offset=0, data=b"x" * 10))
    assert desk.store.partial_bytes > 0
    upload(desk, "a", invites["a"], payload)
    assert desk.store.journal_bytes == len(payload)
    upload(desk, "b", invites["b"])
    assert desk.store.journal_bytes == desk.store.partial_bytes == 0
    tombstone = desk.store.ticket(invites["a"].ticket)
    assert tombstone is not None and (tombstone.state, tombstone.digest) == ("counted", digest_of(payload))
    assert desk.told("a", Verdict, desk.hear("a", offer(invites["a"], payload)))[0].outcome == "counted"


def test_rule_14_full_means_busy_and_busy_may_come_again() -> None:
    ids = np.random.Generator(np.random.PCG64(0))
    payload = make_update()
    full = Store(":memory:", wall=lambda: 0.0, new_id=ids.bytes, journal_bytes_max=len(payload) - 1)
    desk = Desk(store=full)
    invite = desk.begin("a", "b", "c")["a"]
    upload(desk, "a", invite, payload)
    (verdict,) = desk.told("a", Verdict)
    assert verdict.outcome == "busy" and verdict.retry_seconds > 0
    assert desk.store.ticket(invite.ticket).state == "invited"  # type: ignore[union-attr]
    assert desk.told("a", Have, desk.hear("a", offer(invite, payload)))


# --- 15 status -------------------------------------------------------------------------------------------------------


def test_rule_15_the_coordinator_hears_its_inboxes_other_coordinators_and_whom_it_has_invited() -> None:
    desk = Desk()
    inboxes = [
        "fl/v1/garden/coordinator/+/claim",
        "fl/v1/garden/coordinator/+/state",
        "fl/v1/garden/from/+/+",
        f"fl/v1/garden/up/{desk.shard}/+",
    ]
    assert sorted(desk.filters()) == inboxes
    desk.begin("a", "b", "c")
    assert sorted(desk.filters()) == [*inboxes[:3], *(f"fl/v1/garden/status/{device}" for device in "abc"), inboxes[3]]


# --- 16 clones and cards ---------------------------------------------------------------------------------------------


class _NoWork:
    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        raise AssertionError("no examples are to be looked at here")

    def run(self, job: TrainingJob) -> TrainedUpdate:
        raise AssertionError("nothing is to be trained here")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_rule_16_a_takeover_ping_pong_is_noticed_told_and_slowed_down(protocol: str) -> None:
    clock = VirtualClock()
    broker = InMemoryBroker(clock, np.random.Generator(np.random.PCG64(0)), NetworkFaults(protocol=protocol))  # type: ignore[arg-type]
    told: list[Progress] = []
    agents: list[Agent] = []
    for number in range(2):
        agent = Agent(
            AgentSettings("garden", "twin"),
            state=DeviceState(MemoryFiles(), new_instance=lambda: secrets.token_bytes(16), wall_day=lambda: 0),
            work=_NoWork(),
            run_job=lambda job: None,
            rng=np.random.Generator(np.random.PCG64(number)),
            on_progress=told.append,
        )
        agent.attach(broker.transport("twin", lambda event, agent=agent: agent.on_transport(event, clock.now)))  # type: ignore[misc]
        agents.append(agent)

    def drive(seconds: float) -> int:
        before, until = broker.counters.connections, clock.now + seconds
        while clock.now < until:
            for agent in agents:
                agent.tick(clock.now)
            clock.run(until=min(until, clock.now + 0.25))
        return broker.counters.connections - before

    drive(120.0)
    noticed = [progress for progress in told if progress.what == "taken_over"]
    assert noticed and "another client seems to use the device id 'twin'" in noticed[0].detail
    assert drive(TAKEOVER_SECONDS) <= 12, "a connection a minute or so, not one a second"


def test_rule_16_writes_a_day_are_bounded() -> None:
    state = DeviceState(
        MemoryFiles(),
        new_instance=lambda: b"i" * 16,
        wall_day=lambda: 0,
        state_write_bytes_per_day_max=100_000,
    )
    kept = [state.cache_put(secrets.token_bytes(32), secrets.token_bytes(20_000), "parameters") for _ in range(20)]
    assert kept.count(True) <= 5 and not kept[-1]
    assert state.bytes_written_today <= 100_000


# --- and beside the rules --------------------------------------------------------------------------------------------


def test_importing_the_machines_loads_no_network_no_database_and_no_engine() -> None:
    heavy = ("paho", "sqlite3", "onnx", "ssl")
    code = f"import sys, edge_sdk.device.session; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_a_federation_name_that_cannot_stand_in_a_topic_is_a_local_mistake() -> None:
    with pytest.raises(ConfigurationError, match="federation"):
        check_segment("a/b", "federation")


def test_messages_of_devices_that_are_cut_off_wait_for_nobody() -> None:
    pair = Pair("a", "b", stopping=StoppingRule(rounds_max=1))
    pair.play("a", Offline())
    pair.run(300.0)
    assert pair.desk.core.finished is not None, "the others go on"
    payload = pair.desk.retained[TOPICS.announce(TASK)]
    _, message = decode_message(payload, "announce", peer="coordinator")
    assert isinstance(message, Announce) and message.phase == "done"
