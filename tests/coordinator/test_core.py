"""The core with a real store, hand-made messages and a queue of jobs that the test runs when it likes."""

from __future__ import annotations

import json
import logging
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from wired import ROUND, SUPPORTS, TASK, TOPICS, Desk, code, make_update

from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    Evaluated,
    Finished,
    Publish,
)
from coordinator.registry import Registry
from coordinator.stopping import StoppingRule
from coordinator.task import FEW_SECONDS, RECEIPT_SECONDS
from edge_sdk.mqtt import Delivery
from edge_sdk.training.bundle import digest_of
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
    Verdict,
    introduction_id,
    short,
)
from edge_sdk.wire.terms import Terms, terms_id
from edge_sdk.wire.topics import PROBE


def announced(desk: Desk) -> Announce:
    payload = desk.retained[TOPICS.announce(TASK)]
    message = decode_message(payload, "announce", peer="coordinator")[1]
    assert isinstance(message, Announce)
    return message


def announcements(desk: Desk) -> list[tuple[int, str]]:
    """Round and phase of all that was announced so far."""
    said = [e for e in desk.effects if isinstance(e, Publish) and e.topic == TOPICS.announce(TASK)]
    messages = [decode_message(publish.payload, "announce", peer="coordinator")[1] for publish in said]
    return [(message.round, message.phase) for message in messages if isinstance(message, Announce)]


def chunks_of(invite: Invite, payload: bytes, size: int = 32) -> list[Chunk]:
    return [
        Chunk(
            ticket=invite.ticket,
            digest=digest_of(payload),
            total=len(payload),
            offset=at,
            data=payload[at : at + size],
        )
        for at in range(0, len(payload), size)
    ]


def named(device: str) -> CheckIn:
    """A check-in of a device that names what it has said before."""
    name = introduction_id(device.encode().ljust(16), {"supports": SUPPORTS})
    return CheckIn(nonce=b"again   ", introduction=name)


def offer(invite: Invite, payload: bytes) -> Offer:
    return Offer(ticket=invite.ticket, digest=digest_of(payload), total=len(payload))


def upload(desk: Desk, device: str, invite: Invite, payload: bytes | None = None) -> bytes:
    """A whole update in one chunk, journalled."""
    payload = make_update() if payload is None else payload
    desk.hear(device, *chunks_of(invite, payload, 1 << 20))
    desk.work()
    return payload


def state_of(desk: Desk, invite: Invite) -> str:
    known = desk.store.ticket(invite.ticket)
    assert known is not None
    return known.state


# --- starting --------------------------------------------------------------------------------------------------------


def test_the_inboxes_are_open_before_anybody_is_told_that_the_coordinator_is_here() -> None:
    desk = Desk()
    kinds = [(type(e).__name__, getattr(e, "topic", "")) for e in desk.effects]
    online = kinds.index(("Publish", TOPICS.lineage_state(desk.store.lineage)))
    subscribed = [i for i, (name, _) in enumerate(kinds) if name == "Subscribe"]
    assert len(subscribed) == 2 and max(subscribed) < online
    assert json.loads(desk.retained[TOPICS.lineage_state(desk.store.lineage)])["online"] is True


def test_with_one_connection_of_two_nothing_is_announced() -> None:
    desk = Desk()
    desk.lose_broker()
    before = len(desk.effects)
    desk.play(BrokerUp(CONTROL, 1 << 20))
    assert not [effect for effect in desk.effects[before:] if isinstance(effect, Publish)]
    assert TOPICS.announce(TASK) in {e.topic for e in desk.play(BrokerUp(BULK, 1 << 20)) if isinstance(e, Publish)}


def test_a_late_last_will_is_contradicted() -> None:
    desk = Desk()
    topic, payload = desk.core.will()
    effects = desk.play(Arrived(CONTROL, topic, payload, Delivery(topic, payload, True, 1)))
    assert json.loads(desk.retained[topic])["online"] is True
    assert any(isinstance(effect, Publish) and effect.topic == topic and effect.retain for effect in effects)
    online = desk.retained[topic]
    assert not [
        e
        for e in desk.play(Arrived(CONTROL, topic, online, Delivery(topic, online, True, 2)))
        if isinstance(e, Publish)
    ]


def test_a_round_is_announced_once_it_is_committed() -> None:
    desk = Desk()
    desk.wait()
    record = desk.store.open_round(TASK)
    assert record is not None and (record.number, record.attempt, record.phase) == (1, 0, "selection")
    message = announced(desk)
    assert (message.round, message.phase, message.fraction) == (1, "selection", 1.0)


def test_people_hear_once_that_too_few_devices_have_come(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.wait()
    desk.check_in("a")
    with caplog.at_level(logging.INFO, logger="coordinator.task"):
        desk.wait(ROUND.window_seconds + FEW_SECONDS)
        desk.wait(20.0)
    assert [r.getMessage().partition(", and")[0] for r in caplog.records if "waits" in r.message] == [
        f"task {TASK}: round 1 waits for devices: 1 have checked in, the goal is 2 (selection.goal_count), at least 1 "
        "are needed"
    ]
    record = desk.store.open_round(TASK)
    assert record is not None and record.summary["checked_in"] == 1


# --- check-ins -------------------------------------------------------------------------------------------------------


def test_the_cohort_is_invited_with_everything_it_needs() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    assert len(invites) == 3 and len({invite.ticket for invite in invites.values()}) == 3
    invite = invites["a"]
    terms = Terms.decode(invite.terms)
    assert invite.nonce == b"nonce   " and terms.program == desk.settings.program_digest
    assert invite.report_seconds == pytest.approx(80.0) and terms.requires == ("codec:dense",)
    assert desk.store.ticket(invite.ticket) is not None


def test_a_round_is_announced_once_however_it_goes_on_and_the_end_of_all_rounds_is_announced_too() -> None:
    desk = Desk(pause_seconds=50.0, stopping=StoppingRule(rounds_max=2))
    for _ in range(2):
        for device, invite in desk.begin("a", "b", "c").items():
            upload(desk, device, invite)
        desk.wait(60.0)
    assert announcements(desk) == [(1, "selection"), (2, "selection"), (2, "done")]
    desk.lose_broker()
    desk.find_broker()
    assert announced(desk).phase == "done"


def test_a_coordinator_that_comes_back_says_where_the_round_stands() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    desk.lose_broker()
    desk.find_broker()
    assert (announced(desk).round, announced(desk).phase) == (1, "working")


def test_terms_that_a_device_knows_are_named_and_others_are_brought() -> None:
    desk = Desk()
    brought = desk.begin("a", "b", "c")["a"].terms
    known = terms_id(brought)
    desk.check_in("a", terms=(known,))
    assert desk.told("a", Invite)[-1].terms == known
    desk.check_in("a", terms=(b"others  ",))
    assert desk.told("a", Invite)[-1].terms == brought


def test_a_device_that_names_what_it_has_said_is_invited_as_the_same() -> None:
    desk = Desk()
    desk.wait()
    for device in ("a", "b", "c"):
        desk.check_in(device)
        desk.hear(device, named(device))
    desk.wait(ROUND.window_seconds)
    invite = desk.told("a", Invite)[-1]
    ticket = desk.store.ticket(invite.ticket)
    assert invite.nonce == b"again   " and ticket is not None and ticket.instance == b"a".ljust(16)
    assert [device.capabilities for device in desk.store.devices()] == [{"supports": SUPPORTS}] * 3


def test_a_device_that_nobody_knows_is_asked_what_it_is() -> None:
    desk = Desk()
    desk.wait()
    for message in (named("a"), replace(named("a"), introduction=b"another ")):
        desk.hear("a", message)
        assert desk.told("a", ComeBack)[-1] == ComeBack(nonce=b"again   ", introduce=True)
    desk.check_in("a")
    desk.hear("a", replace(named("a"), introduction=b"another "))
    assert desk.told("a", ComeBack)[-1].introduce, "it is not the same device any more"
    desk.hear("b", named("a"))
    assert desk.told("b", ComeBack)[-1].introduce, "what another one has said is not this one's"


def test_a_device_that_is_always_another_one_does_not_fill_the_memory() -> None:
    desk = Desk()
    registry = Registry(desk.store)

    def introduce(numbers: range) -> None:
        for number in numbers:
            texts = [f"{number}.{place}".ljust(64, "x") for place in range(60)]
            message = CheckIn(bytes(8), number.to_bytes(8, "big"), bytes(16), {"supports": texts, "more": texts})
            registry.note("a", message, 0.0)
            with desk.store.transaction():
                registry.flush()

    introduce(range(100))
    tracemalloc.start()
    try:
        introduce(range(100, 200))
        held_bytes, _ = tracemalloc.get_traced_memory()
        introduce(range(200, 400))
        held_later_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_later_bytes < held_bytes + 20 * 120 * 64, "nothing is held of what it was before"


def test_a_coordinator_that_starts_again_finds_in_its_database_what_devices_are() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    desk.wait(2.0)
    desk.crash()
    desk.hear("a", named("a"))
    assert not desk.told("a", ComeBack) and desk.told("a", Invite)[-1].nonce == b"again   "


def test_a_device_that_lacks_something_is_held_off() -> None:
    desk = Desk()
    desk.wait()
    desk.check_in("old", capabilities={"supports": ["codec:int8"]})
    (answer,) = desk.told("old", ComeBack)
    assert answer.hold and "codec:dense" in answer.reason and answer.seconds > 3600.0


def test_who_checks_in_between_rounds_is_asked_to_come_back() -> None:
    desk = Desk(pause_seconds=50.0)
    for device, invite in desk.begin("a", "b").items():
        upload(desk, device, invite)
    desk.work()
    assert desk.round is None
    desk.check_in("a")
    (answer,) = desk.told("a", ComeBack)
    assert not answer.hold and answer.seconds == pytest.approx(100.0)


def test_who_comes_too_late_for_the_round_is_turned_away() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    for device, invite in invites.items():
        desk.hear(device, Accept(ticket=invite.ticket))
    desk.check_in("late")
    assert desk.told("late", ComeBack)[0].reason == "round_full"


def test_reserves_are_told_when_they_are_not_needed() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c", "d", "e")
    assert len(invites) == 3
    for device, invite in invites.items():
        desk.hear(device, Accept(ticket=invite.ticket))
    reserves = {"a", "b", "c", "d", "e"} - invites.keys()
    assert all(desk.told(device, ComeBack)[0].reason == "not_needed" for device in reserves)


def test_a_repeated_check_in_gets_the_same_ticket_with_its_own_nonce_and_less_time() -> None:
    desk = Desk()
    first = desk.begin("a", "b", "c")["a"]
    desk.wait(7.0)
    desk.check_in("a", nonce=b"second  ")
    again = desk.told("a", Invite)[-1]
    assert (again.ticket, again.nonce) == (first.ticket, b"second  ")
    assert again.report_seconds == pytest.approx(first.report_seconds - 7.0)


# --- strangers and nonsense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("fl/v1/garden/from/a/checkin", b"", "malformed"),
        ("fl/v1/garden/from/a/checkin", b"\xc1", "malformed"),
        ("fl/v1/garden/from/a/party", b"", "kind"),
        ("fl/v1/garden/up/1/a", b"", "kind"),
        ("fl/v1/garden/from/a/b/c", b"", "stray_topic"),
        ("elsewhere", b"", "stray_topic"),
        ("fl/v1/garden/from/a/offer", encode_message(Envelope(TASK), Accept(ticket=b"t" * 16)), "malformed"),
    ],
)
def test_a_message_that_makes_no_sense_is_counted_acknowledged_and_forgotten(
    topic: str, payload: bytes, reason: str
) -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    effects = desk.play(Arrived(CONTROL, topic, payload, Delivery(topic, payload, False, 77)))
    assert desk.acknowledged(effects) == [77]
    assert desk.store.counters()[reason] == 1
    assert len(desk.begin("a")) == 1, "the round goes on"


def test_a_device_that_tries_whether_it_may_speak_is_no_refused_message() -> None:
    desk = Desk()
    topic = TOPICS.from_device("pi", PROBE)
    desk.play(Arrived(CONTROL, topic, b"{}", Delivery(topic, b"{}", False, 77)))
    assert desk.store.counters() == {}


@pytest.mark.parametrize("message", [Accept, lambda ticket: Decline(ticket=ticket, reason="")])
def test_a_stranger_cannot_touch_a_ticket(message: Any) -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    desk.hear("b", message(ticket=invite.ticket))
    assert state_of(desk, invite) == "invited" and desk.store.counters()["stranger"] == 1


def test_a_stranger_cannot_upload_for_another_device() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("mallory", offer(invite, payload), *chunks_of(invite, payload))
    desk.work()
    assert state_of(desk, invite) == "invited"
    assert {verdict.outcome for verdict in desk.told("mallory", Verdict)} == {"unknown"}


# --- downloads -------------------------------------------------------------------------------------------------------


def test_blobs_are_served_by_digest_and_unknown_ones_are_gone() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    desk.hear(
        "a", RangeRequest(digest=short(invite.parameters), ranges=((0, Terms.decode(invite.terms).parameters_bytes),))
    )
    assert b"".join(piece.data for piece in desk.told("a", RangeData)) == desk.store.get_blob(invite.parameters)
    desk.hear("a", RangeRequest(digest=b"?" * 8, ranges=((0, 5),)))
    assert desk.told("a", BlobGone)[0].digest == b"?" * 8


# --- updates ---------------------------------------------------------------------------------------------------------


def test_an_offer_is_answered_with_what_is_stored() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("a", offer(invite, payload))
    assert desk.told("a", Have)[0].ranges == () and state_of(desk, invite) == "accepted"
    desk.hear("a", *chunks_of(invite, payload)[:1])
    desk.hear("a", offer(invite, payload))
    assert desk.told("a", Have)[-1].ranges == ((0, 32),)


def test_each_chunk_is_acknowledged_for_itself_once_it_is_stored() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    for chunk in chunks_of(invite, payload)[:-1]:
        arrived = desk.arrived("a", chunk)
        assert desk.acknowledged(desk.play(arrived)) == [arrived.acknowledgement.acknowledgement]
        assert desk.store.ranges(chunk.ticket, chunk.digest) == [(0, chunk.offset + 32)]


def test_the_last_chunk_makes_the_update_whole_and_the_receipt_comes_after_the_journal() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("a", *chunks_of(invite, payload))
    assert not desk.told("a", Verdict), "nothing is journalled yet"
    desk.work()
    assert not desk.told("a", Verdict), "the outcome may come at once"
    desk.wait(RECEIPT_SECONDS)
    (receipt,) = desk.told("a", Verdict)
    assert receipt.outcome == "received" and receipt.digest == short(digest_of(payload))
    assert state_of(desk, invite) == "journalled" and desk.store.partial_bytes == 0


def test_an_update_in_one_chunk_is_acknowledged_once_it_is_journalled() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    (chunk,) = chunks_of(invite, make_update(), 1 << 20)
    assert desk.acknowledged(desk.hear("a", chunk)) == []
    effects = desk.work()
    assert len(desk.acknowledged(effects)) == 1
    desk.wait(RECEIPT_SECONDS)
    assert desk.told("a", Verdict)[0].outcome == "received"


def direct(invite: Invite, payload: bytes) -> Chunk:
    """A small update as it is sent without an offer."""
    return Chunk(ticket=invite.ticket, digest=short(digest_of(payload)), data=payload)


def test_a_small_update_needs_no_offer_and_is_journalled_under_its_whole_digest() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    payload = make_update()
    assert desk.acknowledged(desk.hear("a", direct(invites["a"], payload))) == [], "not before the journal"
    effects = desk.work()
    assert len(desk.acknowledged(effects)) == 1 and state_of(desk, invites["a"]) == "journalled"
    ticket = desk.store.ticket(invites["a"].ticket)
    assert ticket is not None and ticket.digest == digest_of(payload)
    desk.hear("a", direct(invites["a"], payload))
    assert desk.told("a", Verdict)[-1].outcome == "received", "a duplicate is told that it is one"
    desk.hear("a", direct(invites["a"], make_update(0.5)))
    assert (desk.told("a", Verdict)[-1].outcome, code(desk.told("a", Verdict)[-1])) == ("refused", "spent")


def test_a_small_update_that_comes_too_late_or_from_a_stranger_is_told_so() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    desk.hear("mallory", direct(invites["a"], make_update()))
    assert desk.told("mallory", Verdict)[-1].outcome == "unknown"
    desk.hear("c", Accept(ticket=invites["c"].ticket))
    for device in ("a", "b"):
        upload(desk, device, invites[device])
    desk.hear("c", direct(invites["c"], make_update()))
    assert desk.told("c", Verdict)[-1].outcome == "late"


@pytest.mark.parametrize("digest", [b"another ", b"another digest of 32 bytes".ljust(32)])
def test_a_small_update_that_was_damaged_on_the_way_is_refused(digest: bytes) -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    desk.hear("a", replace(direct(invite, make_update()), digest=digest))
    desk.work()
    assert (desk.told("a", Verdict)[-1].outcome, state_of(desk, invite)) == ("refused", "refused")


def test_a_part_of_an_update_that_names_it_in_short_is_refused() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    (first, *_) = chunks_of(invite, make_update())
    desk.hear("a", replace(first, digest=short(first.digest)))
    assert desk.store.partial_bytes == 0 and state_of(desk, invite) == "refused"


def test_an_outcome_that_comes_soon_is_the_receipt_too() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    upload(desk, "a", invites["a"])
    desk.wait(RECEIPT_SECONDS - 1.0)
    upload(desk, "b", invites["b"])
    desk.wait(60.0)
    assert [verdict.outcome for verdict in desk.told("a", Verdict)] == ["counted"]
    assert [verdict.outcome for verdict in desk.told("b", Verdict)] == ["counted"]


def test_duplicates_change_nothing_and_are_told_the_receipt_again() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = upload(desk, "a", invite)
    for message in (offer(invite, payload), *chunks_of(invite, payload)):
        effects = desk.hear("a", message)
        assert desk.told("a", Verdict, effects)[0].outcome == "received"
        assert len(desk.acknowledged(effects)) == 1
    desk.work()
    assert len(list(desk.store.journalled(TASK, 1, 0))) == 1


def test_a_second_update_for_a_spent_ticket_is_refused() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    upload(desk, "a", invite)
    other = make_update(0.5)
    effects = desk.hear("a", offer(invite, other))
    (verdict,) = desk.told("a", Verdict, effects)
    assert (verdict.outcome, code(verdict), verdict.digest) == ("refused", "spent", short(digest_of(other)))
    assert len(list(desk.store.journalled(TASK, 1, 0))) == 1


def test_an_oversize_update_is_refused_before_a_byte_of_it_is_stored() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    desk.hear("a", Offer(ticket=invite.ticket, digest=b"d" * 32, total=1 << 30))
    (verdict,) = desk.told("a", Verdict)
    assert (verdict.outcome, code(verdict)) == ("refused", "oversize")
    assert state_of(desk, invite) == "refused", "what the device is told is what the books say"
    assert not desk.told("a", Have)


@pytest.mark.parametrize(
    ("offset", "data", "total", "reason"),
    [(0, b"x" * 10, 5000, "oversize"), (95, b"x" * 10, 100, "range"), (0, b"", 100, "range")],
)
def test_a_chunk_that_claims_what_it_may_not_ends_its_ticket(offset: int, data: bytes, total: int, reason: str) -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    effects = desk.hear("a", Chunk(ticket=invite.ticket, digest=b"d" * 32, total=total, offset=offset, data=data))
    assert len(desk.acknowledged(effects)) == 1
    assert code(desk.told("a", Verdict)[0]) == reason and state_of(desk, invite) == "refused"


def test_bytes_that_are_no_update_are_refused_with_a_reason_and_the_round_goes_on() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    upload(desk, "a", invites["a"], b"not an update at all")
    assert desk.told("a", Verdict)[0].outcome == "refused" and state_of(desk, invites["a"]) == "refused"
    upload(desk, "b", invites["b"])
    upload(desk, "c", invites["c"])
    assert desk.task.life.record is None or desk.task.life.record.number == 2
    assert desk.told("b", Verdict)[-1].outcome == "counted"


def test_a_digest_that_is_not_that_of_the_bytes_is_refused() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("a", Chunk(ticket=invite.ticket, digest=b"d" * 32, total=len(payload), offset=0, data=payload))
    desk.work()
    assert [(v.outcome, code(v)) for v in desk.told("a", Verdict)] == [("refused", "digest")]


def test_a_full_worker_says_busy_and_takes_the_update_later() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.jobs.full = True
    effects = desk.hear("a", *chunks_of(invite, payload, 1 << 20))
    (verdict,) = desk.told("a", Verdict, effects)
    assert verdict.outcome == "busy" and verdict.retry_seconds > 0 and len(desk.acknowledged(effects)) == 1
    desk.jobs.full = False
    upload(desk, "a", invite, payload)
    assert state_of(desk, invite) == "journalled"


def test_an_update_of_another_epoch_is_refused_before_it_is_decoded() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    effects = desk.hear("a", offer(invite, payload), lineage=b"another.")
    assert desk.told("a", Verdict, effects)[0].outcome == "unknown" and not desk.told("a", Have)


def test_a_straggler_after_the_close_is_told_late() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    for device in ("a", "b", "c"):
        desk.hear(device, Accept(ticket=invites[device].ticket))
    upload(desk, "a", invites["a"])
    upload(desk, "b", invites["b"])
    effects = desk.hear("c", offer(invites["c"], make_update()))
    assert desk.told("c", Verdict, effects)[0].outcome == state_of(desk, invites["c"]) == "late"


# --- the end of a round ----------------------------------------------------------------------------------------------


def finish_round(desk: Desk) -> dict[str, Invite]:
    invites = desk.begin("a", "b", "c")
    for device, invite in invites.items():
        upload(desk, device, invite)
    return invites


def test_a_committed_round_tells_the_outcome_changes_the_model_and_leaves_no_payload() -> None:
    desk = Desk()
    before = desk.store.latest_checkpoint(TASK)
    invites = finish_round(desk)
    after = desk.store.latest_checkpoint(TASK)
    assert before is not None and after is not None
    assert after.round == 1 and after.parameters_digest != before.parameters_digest
    counted = [device for device in invites if desk.told(device, Verdict)[-1].outcome == "counted"]
    assert len(counted) >= 2
    assert desk.store.journal_bytes == desk.store.partial_bytes == 0


def test_nobody_hears_counted_before_the_model_is_committed() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    for device in ("a", "b"):
        desk.hear(device, *chunks_of(invites[device], make_update(), 1 << 20))
    while desk.jobs.queue and type(desk.jobs.queue[0]).__name__ != "CloseJob":
        job = desk.jobs.queue[0]
        rest = list(desk.jobs.queue)[1:]
        desk.jobs.queue.clear()
        desk.jobs.queue.append(job)
        for event in desk.jobs.run():
            desk.play(event)
        desk.jobs.queue.extendleft(reversed(rest))
    assert desk.jobs.queue, "the close job waits"
    effects = desk.hear("a", offer(invites["a"], make_update()))
    assert desk.told("a", Verdict, effects)[0].outcome == "received"
    desk.work()
    assert desk.told("a", Verdict)[-1].outcome == "counted"


def test_the_federation_ends_with_its_last_round_and_says_so() -> None:
    desk = Desk()
    for _ in range(3):
        finish_round(desk)
    assert announced(desk).phase == "done" and desk.core.finished == "round budget: 3 rounds done"
    assert [effect.reason for effect in desk.effects if isinstance(effect, Finished)] == ["round budget: 3 rounds done"]
    desk.check_in("a")
    assert desk.told("a", ComeBack)[-1].reason.startswith("done")


def test_an_abandoned_round_keeps_the_model_and_is_tried_again() -> None:
    desk = Desk()
    before = desk.store.latest_checkpoint(TASK)
    invites = desk.begin("a", "b", "c")
    for device, invite in invites.items():
        desk.hear(device, Decline(ticket=invite.ticket, reason="no"))
    assert desk.store.open_round(TASK) is None and desk.store.latest_checkpoint(TASK) == before
    desk.wait(10.0)
    record = desk.store.open_round(TASK)
    assert record is not None and (record.number, record.attempt) == (1, 1)
    assert announced(desk).attempt == 1


def test_a_receipt_whose_round_is_abandoned_becomes_abandoned() -> None:
    desk = Desk(round=replace(ROUND, minimum_count=2))
    invites = desk.begin("a", "b", "c")
    payload = upload(desk, "a", invites["a"])
    desk.wait(RECEIPT_SECONDS)
    for device in ("b", "c"):
        desk.hear(device, Decline(ticket=invites[device].ticket, reason="no"))
    assert [verdict.outcome for verdict in desk.told("a", Verdict)] == ["received", "abandoned"]
    desk.check_in("a", unsettled=(invites["a"].ticket,))
    assert desk.told("a", ComeBack)[-1].verdicts[0].outcome == "abandoned"
    assert desk.store.journal_bytes == 0 and payload


def test_an_evaluation_that_fails_does_not_stop_the_rounds() -> None:
    desk = Desk(evaluate_every=1)
    invites = desk.begin("a", "b", "c")
    for device, invite in invites.items():
        desk.hear(device, *chunks_of(invite, make_update(), 1 << 20))
    events = desk.jobs.run()
    for event in events:
        desk.play(event)
    for event in desk.jobs.run():
        if not isinstance(event, Evaluated):
            desk.play(event)
    desk.jobs.evaluations.clear()
    desk.play(Evaluated(TASK, 1, {}, "no memory"))
    desk.wait()
    record = desk.store.open_round(TASK)
    assert record is not None and record.number == 2


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_after_a_crash_the_phase_has_as_much_time_left_as_when_it_was_written() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    for device, invite in invites.items():
        desk.hear(device, Accept(ticket=invite.ticket))
    desk.wait(31.0)
    assert desk.round is not None
    left = desk.round.seconds_remaining(desk.now)
    desk.crash(down_seconds=5000.0)
    assert desk.round is not None and desk.round.phase == "reporting"
    assert left <= desk.round.seconds_remaining(desk.now) <= left + 15.0


def test_a_chunk_that_was_stored_before_a_crash_is_not_asked_for_again() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("a", *chunks_of(invite, payload)[:2])
    desk.crash()
    desk.hear("a", offer(invite, payload))
    assert desk.told("a", Have)[-1].ranges == ((0, 64),)


def test_an_update_that_was_admitted_but_not_journalled_is_taken_again_after_a_crash() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    payload = make_update()
    desk.hear("a", *chunks_of(invite, payload))
    assert desk.round is not None and desk.round.tickets[invite.ticket].state == "admitted"
    desk.crash()
    desk.hear("a", offer(invite, payload))
    desk.work()
    assert state_of(desk, invite) == "journalled"


def test_a_round_that_was_closing_is_closed_after_a_crash_with_the_same_bits() -> None:
    models = []
    for crash in (False, True):
        desk = Desk(seed=5)
        invites = desk.begin("a", "b", "c")
        for device in ("a", "b"):
            desk.hear(device, *chunks_of(invites[device], make_update(0.25), 1 << 20))
        for event in desk.jobs.run():
            desk.play(event)
        record = desk.store.open_round(TASK)
        assert record is not None and record.phase == "closing" and record.last_seq == 2
        if crash:
            desk.crash()
        desk.work()
        checkpoint = desk.store.latest_checkpoint(TASK)
        assert checkpoint is not None and checkpoint.round == 1
        models.append(checkpoint.parameters_digest)
        assert state_of(desk, invites["a"]) == "counted"
    assert models[0] == models[1]


def test_a_crash_between_commit_and_evaluation_evaluates_again() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    for device in ("a", "b"):
        desk.hear(device, *chunks_of(invites[device], make_update(), 1 << 20))
    for event in desk.jobs.run():
        desk.play(event)
    desk.jobs.run()  # the commit; what it says is lost with the power
    desk.crash()
    assert [number for number, _ in desk.jobs.evaluations] == [1]
    desk.work()
    desk.wait()
    record = desk.store.open_round(TASK)
    assert record is not None and record.number == 2
    assert desk.store.rounds(TASK, limit=2)[1].summary["metrics"]["accuracy"] == 0.5


def test_a_crash_after_the_last_commit_still_ends_the_federation() -> None:
    desk = Desk()
    for _ in range(3):
        finish_round(desk)
    desk.crash()
    before = len([effect for effect in desk.effects if isinstance(effect, Finished)])
    desk.work()
    assert len([effect for effect in desk.effects if isinstance(effect, Finished)]) == before + 1
    assert announced(desk).phase == "done"


def test_losing_the_broker_loses_nothing() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    desk.lose_broker()
    desk.play(BrokerDown(CONTROL))
    desk.retained.clear()
    desk.find_broker()
    assert announced(desk).phase == "working" and TOPICS.lineage_state(desk.store.lineage) in desk.retained
    for device, invite in invites.items():
        upload(desk, device, invite)
    assert desk.store.latest_checkpoint(TASK).round == 1  # type: ignore[union-attr]


# --- speaking --------------------------------------------------------------------------------------------------------


def test_effects_come_in_the_order_of_decisions_and_acknowledge_what_was_stored() -> None:
    desk = Desk()
    invite = desk.begin("a", "b", "c")["a"]
    effects = desk.hear("a", *chunks_of(invite, b"not an update" * 10)[:2])
    assert [type(effect) for effect in effects if isinstance(effect, Acknowledge)] == [Acknowledge, Acknowledge]


def test_what_people_see_adds_up() -> None:
    desk = Desk()
    invites = desk.begin("a", "b", "c")
    upload(desk, "a", invites["a"])
    desk.wait(1.0)
    shown = json.loads(desk.retained[TOPICS.task_round(TASK)])
    assert (shown["round"], shown["invited"], shown["committed"], shown["goal_count"]) == (1, 3, 1, 2)
    assert shown["phase"] in ("configuration", "reporting")
