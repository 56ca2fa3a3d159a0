"""The session alone, with hand-made events and times: every transition and every timer."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import CodecSettings
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import (
    Action,
    CancelTraining,
    CheckExamples,
    ExamplesFit,
    Leave,
    MarkReceived,
    MessageArrived,
    Notify,
    Offline,
    Online,
    Published,
    Send,
    Session,
    SessionSettings,
    SetEligible,
    Settle,
    StartTraining,
    Stop,
    Subscribe,
    Tick,
    TrainingFailed,
    TrainingFinished,
    Unsubscribe,
)
from edge_sdk.device.session.stages import HEEDED, TRANSITIONS
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
    Message,
    Offer,
    RangeData,
    RangeRequest,
    Verdict,
    introduction_id,
    short,
)
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.ranges import CHUNK_BYTES_FLOOR
from edge_sdk.wire.terms import Terms, terms_id
from edge_sdk.wire.topics import Topics

NEVER = float("inf")
A = TypeVar("A")
M = TypeVar("M")
TOPICS = Topics("garden")
EPOCH = b"lineage 1."
TICKET = b"ticket 1 ticket "
INSTANCE = b"instance instanc"
PROGRAM, PARAMETERS = b"the program" * 500, b"the parameters" * 700
BASE = b"b" * 32
LINKS = (b"the first link" * 50, b"the second link" * 50)
BLOBS = {short(hashlib.sha256(data).digest()): data for data in (PROGRAM, PARAMETERS, *LINKS)}
PLAN = Plan(training=TrainingPlan(seconds_max=100.0), codec=CodecSettings("dense"))
NEW = b"lineage 2."
TERMS = Terms(
    program=hashlib.sha256(PROGRAM).digest(),
    program_bytes=len(PROGRAM),
    parameters_bytes=len(PARAMETERS),
    plan=PLAN,
    chunk_bytes_max=4096,
)
PAYLOAD = bytes(range(256)) * 40
UPDATE_DIGEST = hashlib.sha256(PAYLOAD).digest()
CAPABILITIES = {"sdk": "0.1.0", "engine": "numpy", "supports": ["codec:dense"]}
ANNOUNCE = Announce(round=1, phase="selection", fraction=1.0, window_seconds=10.0)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pending(
    ticket: bytes = TICKET, payload: bytes | None = None, lineage: bytes = EPOCH, number: int = 0
) -> PendingUpdate:
    return PendingUpdate(ticket, UPDATE_DIGEST, lineage, "default", number, "0", bytes(32), bytes(32), payload)


class BenchBlobs:
    """What the device on the bench holds; ``made`` are the parameters that were to be made out of deltas."""

    def __init__(self, cached: Iterable[bytes], holds: tuple[bytes, ...]) -> None:
        self.here = {digest(data) for data in cached}
        self.holds = holds
        self.kept: list[tuple[str, bytes]] = []
        self.made: list[tuple[bytes, list[bytes], bytes]] = []
        self.error = ""

    def has(self, wanted: bytes) -> bool:
        return wanted in self.here

    def parameters(self) -> tuple[bytes, ...]:
        return self.holds

    def keep(self, kind: str, wanted: bytes, data: memoryview) -> None:
        assert digest(data) == wanted
        self.kept.append((kind, bytes(data)))
        self.here.add(wanted)

    def follow(self, base: bytes, deltas: tuple[memoryview, ...], target: bytes) -> str:
        self.made.append((base, [bytes(data) for data in deltas], target))
        if not self.error:
            self.here.add(target)
        return self.error


class Bench:
    """A session on a bench: events go in by hand, actions are written down."""

    def __init__(
        self,
        *,
        cached: Iterable[bytes] = (),
        holds: tuple[bytes, ...] = (),
        holding: PendingUpdate | None = None,
        seed: int = 1,
        **given: Any,
    ) -> None:
        self.now = 0.0
        self.examples_fit = True
        self.blobs = BenchBlobs(cached, holds)
        self.actions: list[Action] = []
        self.session = Session(
            SessionSettings(
                federation="garden",
                task="default",
                device="pi-1",
                instance=INSTANCE,
                supports=frozenset({"codec:dense"}),
                **given,
            ),
            rng=np.random.Generator(np.random.PCG64(seed)),
            blobs=self.blobs,
            pending=holding,
        )

    def play(self, event: Any, after: float = 0.0) -> list[Action]:
        self.now += after
        done = self.session.handle(event, self.now)
        self.actions += done
        if self.examples_fit:
            for ticket in [action.ticket for action in done if isinstance(action, CheckExamples)]:
                done = [*done, *self.play(ExamplesFit(ticket))]
        return done

    @property
    def due(self) -> float | None:
        """The next deadline, but for the one at which a device without a coordinator subscribes again."""
        session = self.session
        return None if session._liveness.deadline < NEVER else session.next_deadline()

    def tick(self) -> list[Action]:
        """Time passes until the next deadline."""
        deadline = self.session.next_deadline()
        assert deadline is not None, "nothing is due"
        return self.play(Tick(), max(0.0, deadline - self.now))

    def hear(self, message: Message, after: float = 0.0, *, lineage: bytes = EPOCH, topic: str = "") -> list[Action]:
        payload = encode_message(Envelope(lineage=lineage), message)
        return self.play(MessageArrived(topic or TOPICS.to_device("pi-1", message.kind), payload), after)

    def announce(
        self, after: float = 0.0, *, lineage: bytes = EPOCH, retained: bool = False, **changes: Any
    ) -> list[Action]:
        payload = encode_message(Envelope(lineage=lineage), replace(ANNOUNCE, **changes))
        return self.play(MessageArrived(TOPICS.announce("default"), payload, retained), after)

    def state(
        self,
        incarnation: int = 1,
        online: bool = True,
        after: float = 0.0,
        *,
        lineage: bytes = EPOCH,
        tasks: tuple[str, ...] = ("default",),
        retained: bool = False,
    ) -> list[Action]:
        """A coordinator says that it is there, or its last will that it is not."""
        payload = CoordinatorState(lineage, incarnation, online, tasks).encode("garden")
        return self.play(MessageArrived(TOPICS.lineage_state(lineage), payload, retained), after)

    def connect(self, incarnation: int = 1, packet_bytes_max: int = 1 << 20) -> list[Action]:
        return [*self.play(Online(packet_bytes_max)), *self.state(incarnation)]

    def said(self, kind: type[M]) -> list[M]:
        """Every message of one kind that was sent so far."""
        found = []
        for action in self.actions:
            if isinstance(action, Send) and action.topic.split("/")[3] in ("from", "up"):
                name = "chunk" if action.topic.split("/")[3] == "up" else action.topic.split("/")[-1]
                _, message = decode_message(action.payload, name, peer="device")
                if isinstance(message, kind):
                    found.append(message)
        return found

    def check_in(self) -> CheckIn:
        """Connected, announced, and the check-in is out."""
        self.connect()
        self.announce()
        self.tick()
        return self.said(CheckIn)[-1]

    def invite(self, **changes: Any) -> Invite:
        """An invite that brings its terms; changes are of either."""
        asked = {name: changes.pop(name) for name in list(changes) if hasattr(TERMS, name)}
        return replace(
            Invite(
                nonce=self.said(CheckIn)[-1].nonce,
                ticket=TICKET,
                round=1,
                parameters=digest(PARAMETERS),
                report_seconds=100.0,
                terms=replace(TERMS, **asked).encode(),
            ),
            **changes,
        )

    def training(self) -> StartTraining:
        """Invited, with everything in the cache."""
        self.blobs.here |= {digest(PROGRAM), digest(PARAMETERS)}
        self.check_in()
        self.hear(self.invite())
        return of(self.actions, StartTraining)[-1]

    def uploading(self) -> None:
        self.training()
        self.play(TrainingFinished(pending(payload=PAYLOAD, number=1)), after=5.0)
        assert self.session.state == "uploading"

    def received(self) -> None:
        self.uploading()
        self.hear(verdict("received"))
        assert self.session.unsettled == (TICKET,)


def verdict(outcome: str, **changes: Any) -> Verdict:
    return replace(Verdict(ticket=TICKET, digest=short(UPDATE_DIGEST), outcome=outcome), **changes)


def of(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


# --- connecting and announcements ------------------------------------------------------------------------------------


def test_a_connection_subscribes_to_three_filters_and_says_nothing_yet() -> None:
    bench = Bench()
    (subscribe,) = of(bench.play(Online(1 << 20)), Subscribe)
    assert subscribe.filters == (
        "fl/v1/garden/coordinator/+/state",
        "fl/v1/garden/tasks/default/announce",
        "fl/v1/garden/to/pi-1/+",
    )
    assert bench.due is None


def test_an_announcement_alone_moves_nobody_before_a_coordinator_is_live() -> None:
    bench = Bench()
    bench.play(Online(1 << 20))
    bench.announce()
    assert bench.due is None
    bench.state(online=False)
    assert bench.due is None
    bench.state(online=True)
    assert bench.due is not None


def test_check_ins_are_spread_over_the_announced_window() -> None:
    moments = []
    for seed in range(200):
        bench = Bench(seed=seed)
        bench.connect()
        bench.announce()
        deadline = bench.session.next_deadline()
        assert deadline is not None
        moments.append(deadline)
    assert min(moments) >= 0.0 and max(moments) <= 10.0
    assert 4.0 < float(np.mean(moments)) < 6.0 and float(np.std(moments)) > 2.0


def test_only_the_announced_share_checks_in() -> None:
    asked = 0
    for seed in range(400):
        bench = Bench(seed=seed)
        bench.connect()
        bench.announce(fraction=0.25)
        asked += bench.session.next_deadline() is not None
    assert 70 < asked < 130


def test_the_draw_for_a_round_is_made_once_however_often_it_is_announced() -> None:
    for seed in range(50):
        bench = Bench(seed=seed)
        bench.connect()
        answers = []
        for _ in range(5):
            bench.announce(fraction=0.5)
            answers.append(bench.session.next_deadline() is not None)
        assert len(set(answers)) == 1


@pytest.mark.parametrize("phase", ["waiting", "done"])
def test_other_phases_ask_for_nothing(phase: str) -> None:
    bench = Bench()
    bench.connect()
    bench.announce(phase=phase)
    assert bench.session.next_deadline() is None


def test_a_check_in_names_nonce_instance_and_unsettled_tickets() -> None:
    bench = Bench(holding=pending())
    message = bench.check_in()
    assert (message.instance, message.unsettled, len(message.nonce)) == (INSTANCE, (TICKET,), 8)
    assert bench.session.state == "checking_in"


def next_check_in(bench: Bench, *, number: int, lineage: bytes = EPOCH) -> CheckIn:
    bench.announce(round=number, lineage=lineage)
    bench.tick()
    return bench.said(CheckIn)[-1]


def test_a_device_says_once_what_it_is_and_names_it_afterwards() -> None:
    bench = Bench(capabilities=CAPABILITIES)
    first = bench.check_in()
    assert (first.instance, first.capabilities) == (INSTANCE, CAPABILITIES)
    assert first.introduction == introduction_id(INSTANCE, CAPABILITIES)
    bench.tick()
    assert bench.said(CheckIn)[-1].instance == INSTANCE, "nobody has answered"
    bench.hear(ComeBack(nonce=bench.said(CheckIn)[-1].nonce))
    second = next_check_in(bench, number=2)
    assert (second.introduction, second.instance, second.capabilities) == (first.introduction, b"", {})


def test_a_coordinator_with_another_database_is_told_what_the_device_is() -> None:
    bench = Bench(capabilities=CAPABILITIES)
    bench.hear(ComeBack(nonce=bench.check_in().nonce))
    bench.state(lineage=NEW)
    assert next_check_in(bench, number=1, lineage=NEW).instance == INSTANCE


def test_a_coordinator_that_asks_is_told_what_the_device_is_within_seconds() -> None:
    bench = Bench(capabilities=CAPABILITIES)
    bench.hear(ComeBack(nonce=bench.check_in().nonce))
    asked = next_check_in(bench, number=2)
    bench.hear(ComeBack(nonce=asked.nonce, introduce=True))
    before = bench.now
    bench.tick()
    told = bench.said(CheckIn)[-1]
    assert (told.instance, told.capabilities) == (INSTANCE, CAPABILITIES) and bench.now - before <= 2.0
    bench.hear(ComeBack(nonce=told.nonce, introduce=True))
    assert bench.due is not None and bench.due - bench.now > 0.5, "one that asks for ever is not answered at once"


def test_terms_that_a_device_knows_are_named_in_its_check_in_and_need_not_come_again() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    assert bench.check_in().terms == ()
    bench.hear(bench.invite(report_seconds=1.0))
    bench.play(SetEligible(False))
    bench.play(SetEligible(True))
    known = terms_id(TERMS.encode())
    assert next_check_in(bench, number=2).terms == (known,)
    bench.hear(bench.invite(round=2, terms=known))
    start = of(bench.actions, StartTraining)[-1]
    assert (start.round, start.program, start.plan) == (2, TERMS.program, PLAN)


def test_an_invite_on_terms_that_the_device_does_not_know_is_not_taken_and_the_check_in_is_repeated() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    bench.check_in()
    bench.hear(bench.invite(terms=b"unknown!"))
    assert bench.session.state == "checking_in" and not bench.said(Accept)
    assert "invite.terms" in of(bench.actions, Notify)[-1].detail
    bench.tick()
    assert bench.said(CheckIn)[-1].terms == ()
    bench.hear(bench.invite())
    assert bench.session.state == "training"


def test_only_the_terms_used_last_are_kept_and_named() -> None:
    bench = Bench()
    names = []
    for number in range(1, 6):
        assert len(next_check_in(bench, number=number).terms if number > 1 else bench.check_in().terms) <= 2
        asked = replace(TERMS, program_bytes=number).encode()
        names.append(terms_id(asked))
        bench.hear(bench.invite(round=number, terms=asked))
        bench.play(SetEligible(False))
        bench.play(SetEligible(True))
    assert next_check_in(bench, number=6).terms == (names[4], names[3])
    assert len(bench.session._terms._terms) == 3


def test_silence_repeats_the_check_in_with_backoff_and_a_fresh_nonce() -> None:
    bench = Bench()
    bench.check_in()
    sent_at, waits = bench.now, []
    for _ in range(8):
        before = bench.now
        bench.tick()
        waits.append(bench.now - before)
    assert len({message.nonce for message in bench.said(CheckIn)}) == 9
    assert 5.0 <= waits[0] - (10.0 - sent_at) <= 7.5 and all(300.0 <= wait <= 450.0 for wait in waits[-2:])
    assert of(bench.actions, Notify)[-1].what == "no_answer"


def test_nobody_asks_again_before_the_window_is_over_since_nobody_is_answered_before() -> None:
    bench = Bench()
    bench.connect()
    bench.announce(window_seconds=600.0)
    heard_at = bench.now
    bench.tick()
    bench.tick()
    assert len(bench.said(CheckIn)) == 2 and 605.0 <= bench.now - heard_at <= 607.5


def test_a_new_process_checks_in_once_whatever_the_share_where_the_announcement_may_be_an_old_one() -> None:
    """It may have been invited before a power cut; the announcement of a round is retained while devices work."""
    for seed in range(20):
        bench = Bench(seed=seed)
        bench.connect()
        bench.announce(fraction=0.0, window_seconds=600.0, retained=True)
        bench.tick()
        assert len(bench.said(CheckIn)) == 1 and bench.now <= 5.0
        bench.hear(ComeBack(nonce=bench.said(CheckIn)[-1].nonce, seconds=0.0))
        bench.announce(fraction=0.0, round=2)
        assert bench.due is None


def test_who_was_answered_does_not_ask_again_after_a_reconnect_but_does_after_the_coordinators_restart() -> None:
    bench = Bench()
    bench.check_in()
    bench.hear(ComeBack(nonce=bench.said(CheckIn)[-1].nonce, seconds=0.0))
    bench.play(Offline(), after=1.0)
    bench.connect()
    bench.announce(retained=True)
    assert bench.due is None
    bench.play(Offline(), after=1.0)
    bench.connect(incarnation=2)
    bench.announce(retained=True)
    assert bench.due is not None


def test_a_check_in_that_a_cut_may_have_lost_is_sent_again_soon() -> None:
    bench = Bench()
    bench.check_in()
    bench.play(Offline(), after=1.0)
    bench.connect()
    bench.announce(window_seconds=600.0, retained=True)
    before = bench.now
    bench.tick()
    assert len(bench.said(CheckIn)) == 2 and bench.now - before <= 5.0


def test_an_answer_to_one_of_the_last_check_ins_counts_and_its_seconds_run_from_that_one() -> None:
    bench = Bench()
    first = bench.check_in()
    sent_at = bench.now
    bench.tick()
    bench.hear(ComeBack(nonce=first.nonce, seconds=50.0), after=3.0)
    assert bench.session.state == "idle"
    assert bench.session.next_deadline() == pytest.approx(sent_at + 50.0)


def test_any_other_reply_is_dropped() -> None:
    bench = Bench()
    bench.check_in()
    assert bench.hear(ComeBack(nonce=b"stranger", seconds=5.0)) == []
    assert bench.hear(bench.invite(nonce=b"stranger")) == []
    assert bench.session.state == "checking_in"


def test_a_second_copy_of_the_reply_changes_nothing() -> None:
    bench = Bench()
    bench.check_in()
    invite = bench.invite()
    bench.hear(invite)
    assert bench.hear(invite) == []
    assert len(bench.said(Accept)) == 1


def test_an_answered_announcement_is_not_answered_again_but_the_next_one_is() -> None:
    bench = Bench()
    message = bench.check_in()
    bench.hear(ComeBack(nonce=message.nonce, seconds=500.0))
    deadline = bench.session.next_deadline()
    bench.announce(after=1.0)
    assert bench.session.next_deadline() == deadline
    bench.announce(after=1.0, round=2)
    assert bench.session.next_deadline() <= bench.now + 10.0  # type: ignore[operator]


def test_a_reply_to_a_check_in_for_one_round_does_not_answer_for_the_next() -> None:
    """The reply was under way when the next round was announced."""
    bench = Bench()
    message = bench.check_in()
    bench.announce(after=1.0, round=2)
    bench.hear(ComeBack(nonce=message.nonce, seconds=500.0))
    assert bench.session.next_deadline() <= bench.now + 10.0  # type: ignore[operator]


def test_a_hold_is_heeded_over_announcements_until_it_ends_or_the_coordinator_starts_anew() -> None:
    bench = Bench()
    message = bench.check_in()
    bench.hear(ComeBack(nonce=message.nonce, seconds=500.0, hold=True))
    held_until = bench.session.next_deadline()
    bench.announce(round=2)
    assert bench.session.next_deadline() == held_until
    bench.play(Offline())
    bench.connect(incarnation=1)
    assert bench.session.next_deadline() == held_until
    bench.state(incarnation=2)
    assert bench.session.next_deadline() <= bench.now + 10.0  # type: ignore[operator]


def test_an_invite_that_was_lost_with_the_connection_is_asked_for_again() -> None:
    bench = Bench()
    bench.check_in()
    bench.play(Offline(), after=1.0)
    assert bench.session.state == "idle" and bench.session.next_deadline() is None
    bench.connect()
    bench.announce(phase="working")
    bench.tick()
    assert len(bench.said(CheckIn)) == 2


def test_who_was_answered_does_not_ask_again_while_others_work() -> None:
    bench = Bench()
    message = bench.check_in()
    bench.hear(ComeBack(nonce=message.nonce, seconds=0.0))
    bench.play(Offline())
    bench.connect()
    bench.announce(phase="working")
    assert bench.session.next_deadline() is None


# --- the coordinator behind the broker -------------------------------------------------------------------------------


def test_a_late_last_will_of_an_earlier_start_is_ignored() -> None:
    bench = Bench()
    bench.connect(incarnation=4)
    bench.announce()
    deadline = bench.due
    assert deadline is not None
    bench.state(incarnation=3, online=False)
    assert bench.due == deadline
    bench.state(incarnation=4, online=False)
    assert bench.due is None


def test_a_new_incarnation_is_offered_the_update_again() -> None:
    bench = Bench()
    bench.uploading()
    assert len(bench.said(Offer)) == 1
    bench.state(incarnation=1)
    assert len(bench.said(Offer)) == 1
    bench.state(incarnation=2)
    assert len(bench.said(Offer)) == 2


def test_a_new_incarnation_hears_again_that_the_ticket_is_taken() -> None:
    bench = Bench()
    bench.training()
    bench.state(incarnation=2)
    assert len(bench.said(Accept)) == 2 and bench.session.state == "training"


def test_nothing_is_uploaded_while_no_coordinator_is_live() -> None:
    bench = Bench()
    bench.uploading()
    bench.state(online=False)
    assert bench.due is None
    assert bench.hear(Have(ticket=TICKET, digest=short(UPDATE_DIGEST), ranges=())) == []


GOOD = {"lineage": EPOCH.hex(), "incarnation": 1, "online": True, "federation": "garden", "tasks": ["default"]}


def said(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{}", b"[]", b"null", b"7", b"\xff", b"[" * 5_000, b"x" * 30_000, b"1" * 10_000),
        *(said(incarnation=value) for value in ("x", None, -1, 1.5, True, [1], 1 << 61)),
        said().replace(b"1", b"1e999"),
        said().replace(b"1", b"-1e999"),
        said().replace(b"1", b"NaN"),
        said().replace(b"1", b"1" * 5_000),
        *(said(online=value) for value in ("true", 1, None, 1e308)),
        *(said(tasks=value) for value in ("default", None, {"default": 1}, [1e308], ["a/b"], ["#"], [""], ["t"] * 300)),
        *(said(lineage=value) for value in ("", None, 7, "zz", "AB", EPOCH.hex() + "00", "00" * 40)),
    ],
)
def test_a_state_that_makes_no_sense_is_told_and_ignored(payload: bytes) -> None:
    bench = Bench()
    bench.play(Online(1 << 20))
    (notice,) = bench.play(MessageArrived(TOPICS.lineage_state(EPOCH), payload))
    assert isinstance(notice, Notify) and notice.what == "bad_message"
    assert not bench.session.coordinator_online


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_in_a_state_raises(value: Any) -> None:
    for name in GOOD:
        bench = Bench()
        bench.play(Online(1 << 20))
        for notice in bench.play(MessageArrived(TOPICS.lineage_state(EPOCH), said(**{name: value}))):
            assert isinstance(notice, Notify) and notice.what == ProgressKind.BAD_MESSAGE


# --- lineages: which coordinator is believed -------------------------------------------------------------------------


def test_a_coordinator_with_a_new_database_is_believed_at_once() -> None:
    bench = Bench()
    bench.connect(incarnation=7)
    bench.announce()
    assert bench.session.coordinator_online
    bench.state(1, lineage=NEW)
    bench.announce(lineage=NEW, round=1)
    bench.tick()
    assert bench.session._mailbox.lineage == NEW and len(bench.said(CheckIn)) == 1


def test_an_upload_is_offered_to_a_coordinator_with_a_new_database() -> None:
    bench = Bench()
    bench.uploading()
    bench.state(1, lineage=NEW)
    assert len(bench.said(Offer)) == 2


def test_a_last_will_of_another_lineage_is_ignored() -> None:
    bench = Bench()
    bench.connect()
    bench.state(1, lineage=NEW)
    bench.state(1, online=False)
    assert bench.session.coordinator_online
    bench.state(9, online=False, lineage=b"never heard")
    assert bench.session.coordinator_online
    bench.state(1, online=False, lineage=NEW)
    assert not bench.session.coordinator_online


def test_incarnations_are_ordered_within_a_lineage_alone() -> None:
    bench = Bench()
    bench.connect(incarnation=7)
    bench.state(2, lineage=NEW)
    bench.state(1, online=False, lineage=NEW)
    assert bench.session.coordinator_online, "an earlier start of the same lineage"


@pytest.mark.parametrize("order", list(itertools.permutations(["left behind", "new", "announcement"])))
def test_of_several_retained_states_the_announcement_decides(order: tuple[str, ...]) -> None:
    """A broker still has the state of a coordinator that died with it, whose last will was never published."""
    bench = Bench()
    bench.play(Online(1 << 20))
    for what in order:
        match what:
            case "left behind":
                bench.state(50, retained=True)
            case "new":
                bench.state(1, lineage=NEW, retained=True)
            case "announcement":
                bench.announce(lineage=NEW)
    bench.state(50, online=False)
    assert bench.session.coordinator_online, "that was the other one"
    bench.state(1, online=False, lineage=NEW)
    assert not bench.session.coordinator_online


def test_a_coordinator_of_other_tasks_is_not_ours() -> None:
    bench = Bench()
    bench.play(Online(1 << 20))
    bench.state(1, lineage=NEW, tasks=("another", "and-another"))
    assert not bench.session.coordinator_online
    bench.state(1)
    bench.state(2, lineage=NEW, tasks=("another",))
    bench.state(2, online=False, lineage=NEW, tasks=("another",))
    assert bench.session.coordinator_online
    bench.state(2, tasks=("another",))
    assert not bench.session.coordinator_online, "it was started again without our task"


# --- starting in the middle of a round -------------------------------------------------------------------------------


def test_a_device_that_starts_while_others_work_asks_once_and_soon() -> None:
    """It may have been invited before a power cut."""
    bench = Bench()
    bench.connect()
    bench.announce(phase="working")
    assert bench.session.next_deadline() <= bench.now + 5.0  # type: ignore[operator]
    bench.tick()
    bench.hear(ComeBack(nonce=bench.said(CheckIn)[-1].nonce, seconds=0.0))
    for _ in range(3):
        bench.announce(after=1.0, phase="working")
        assert bench.session.next_deadline() is None
    bench.announce(round=2, phase="working")
    assert bench.session.next_deadline() is None, "once a start"


def test_devices_that_start_together_do_not_ask_in_the_same_moment() -> None:
    moments = []
    for seed in range(50):
        bench = Bench(seed=seed)
        bench.connect()
        bench.announce(phase="working")
        moments.append(bench.session.next_deadline())
    assert max(moments) - min(moments) > 3.0 and len(set(moments)) == 50  # type: ignore[operator,type-var]


def test_a_rebooted_device_gets_its_ticket_again_and_trains() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    bench.connect()
    bench.announce(phase="working")
    bench.tick()
    bench.hear(bench.invite())
    assert bench.session.state == "training" and of(bench.actions, StartTraining)[0].ticket == TICKET


def test_who_has_heard_of_the_round_from_its_beginning_does_not_ask_in_its_middle() -> None:
    bench = Bench()
    bench.connect()
    bench.announce(fraction=0.0)
    assert bench.session.next_deadline() is None
    bench.announce(phase="working")
    assert bench.session.next_deadline() is None


# --- messages of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic",
    ["fl/v1/other/to/pi-1/invite", "fl/v1/garden/to/pi-2/invite", "fl/v1/garden/to/pi-1/party", "x", "$SYS/x"],
)
def test_topics_that_nobody_subscribed_to_are_ignored(topic: str) -> None:
    bench = Bench()
    bench.check_in()
    assert bench.hear(bench.invite(), topic=topic) == []


def test_a_message_of_another_task_is_ignored() -> None:
    bench = Bench()
    bench.check_in()
    payload = encode_message(Envelope("other", EPOCH), bench.invite())
    assert bench.play(MessageArrived(TOPICS.to_device("pi-1", "invite"), payload)) == []


def test_what_was_lost_is_heard_by_subscribing_again_until_a_coordinator_is_live() -> None:
    bench = Bench()
    bench.play(Online(1 << 20))
    waits = []
    for _ in range(6):
        before = bench.now
        (subscribe,) = bench.tick()
        assert subscribe == Subscribe((TOPICS.lineage_states, TOPICS.announce("default")))
        waits.append(bench.now - before)
    assert 60.0 <= waits[0] <= 90.0 and all(600.0 <= wait <= 900.0 for wait in waits[-2:])
    bench.state()
    assert bench.session.next_deadline() is None
    bench.state(online=False)
    assert bench.session.next_deadline() is not None
    bench.play(Offline())
    assert bench.session.next_deadline() is None


# --- invited ---------------------------------------------------------------------------------------------------------


def test_with_both_blobs_here_training_starts_at_once_with_the_time_that_is_left() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    bench.check_in()
    sent_at = bench.now
    bench.hear(bench.invite(), after=20.0)
    (start,) = of(bench.actions, StartTraining)
    assert start.seconds_max == pytest.approx(0.8 * (sent_at + 100.0 - bench.now))
    assert (start.ticket, start.lineage, start.round, start.shard) == (TICKET, EPOCH, 1, "0")
    assert bench.said(Accept) and bench.session.state == "training" and bench.session.round == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"requires": ("codec:dense", "phase:peers")}, "unsupported"),
        ({"program_bytes": 1 << 30}, "too_large"),
        ({"parameters_bytes": 1 << 30}, "too_large"),
    ],
)
def test_what_cannot_be_done_is_declined_with_a_reason(changes: dict[str, Any], code: str) -> None:
    bench = Bench()
    bench.check_in()
    bench.hear(bench.invite(**changes))
    assert [message.reason for message in bench.said(Decline)] == [code]
    assert not bench.said(Accept) and bench.session.state == "idle"


def test_an_invite_for_a_device_that_may_not_work_now_is_declined() -> None:
    bench = Bench()
    bench.check_in()
    bench.play(SetEligible(False, "on battery"))
    bench.hear(bench.invite())
    assert bench.said(Decline)[0].reason == "not_eligible"


def test_no_new_ticket_while_an_update_is_unsettled() -> None:
    bench = Bench(holding=pending())
    bench.check_in()
    bench.hear(bench.invite(ticket=b"another ticket!!", verdicts=(verdict("received"),)))
    assert bench.said(Decline)[0].reason == "unsettled" and bench.session.unsettled == (TICKET,)


def test_an_invite_may_settle_the_last_update_and_start_the_next() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS], holding=pending())
    bench.check_in()
    actions = bench.hear(bench.invite(ticket=b"another ticket!!", verdicts=(verdict("counted"),)))
    kinds = [type(action) for action in actions]
    assert kinds.index(Settle) < kinds.index(StartTraining)
    assert of(actions, Settle)[0].counted


# --- fetching --------------------------------------------------------------------------------------------------------


def serve(bench: Bench, want: RangeRequest, data: bytes, piece_bytes: int = 1 << 20) -> None:
    """What a coordinator answers."""
    for start, stop in want.ranges:
        for at in range(start, min(stop, len(data)), piece_bytes):
            piece = data[at : min(at + piece_bytes, stop)]
            bench.hear(RangeData(digest=want.digest, offset=at, data=piece))


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1000])
def test_both_blobs_are_fetched_by_ranges_one_after_the_other(piece_bytes: int) -> None:
    bench = Bench()
    bench.check_in()
    bench.hear(bench.invite())
    assert bench.session.state == "fetching"
    served = 0
    while bench.session.state == "fetching":
        wants = bench.said(RangeRequest)
        assert served < len(wants), "it asks for more before a stall"
        want = wants[served]
        assert all(stop - start <= 4096 for start, stop in want.ranges), "as large as the coordinator sends"
        serve(bench, want, PROGRAM if want.digest == short(digest(PROGRAM)) else PARAMETERS, piece_bytes)
        served += 1
    assert bench.blobs.kept == [("program", PROGRAM), ("parameters", PARAMETERS)]
    assert bench.session.state == "training"


def test_the_retained_cache_is_read_a_few_offsets_at_a_time_and_left_again() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite(blob_bytes=512))
    subscribed: set[str] = set(of(bench.actions, Subscribe)[-1].filters)
    assert len(subscribed) == 8 and not bench.said(RangeRequest)
    while bench.session.state == "fetching":
        topic = sorted(subscribed, key=lambda name: int(name.split("/")[-1]))[0]
        offset = int(topic.split("/")[-1])
        subscribed.discard(topic)
        for action in bench.play(MessageArrived(topic, PARAMETERS[offset : offset + 512])):
            if isinstance(action, Subscribe):
                subscribed |= set(action.filters)
            elif isinstance(action, Unsubscribe):
                subscribed -= set(action.filters)
        assert len(subscribed) <= 8
    assert bench.session.state == "training" and not subscribed, "no subscription is left behind"


def test_an_empty_retained_piece_means_gone_and_the_rest_is_asked_for() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite(blob_bytes=4096))
    topic = TOPICS.blob(digest(PARAMETERS), 0)
    bench.play(MessageArrived(topic, PARAMETERS[:4096]))
    actions = bench.play(MessageArrived(TOPICS.blob(digest(PARAMETERS), 4096), b""))
    assert of(actions, Unsubscribe)
    assert bench.said(RangeRequest)[0].ranges == ((4096, 8192), (8192, len(PARAMETERS)))


def test_a_stall_asks_again_in_smaller_pieces_for_what_is_missing_only() -> None:
    data = b"z" * 200_000
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(
        bench.invite(parameters=digest(data), parameters_bytes=len(data), chunk_bytes_max=1 << 20, report_seconds=1e4)
    )
    sizes = [bench.said(RangeRequest)[-1].ranges[0][1]]
    bench.hear(RangeData(digest=short(digest(data)), offset=0, data=data[:5000]))
    for _ in range(8):
        bench.tick()
        start, stop = bench.said(RangeRequest)[-1].ranges[0]
        assert start == 5000, "nothing that has arrived is asked for again"
        sizes.append(stop - start)
    assert sizes[-1] == CHUNK_BYTES_FLOOR and sizes == sorted(sizes, reverse=True)


def test_a_stall_in_the_cache_falls_back_to_asking() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite(blob_bytes=4096))
    actions = bench.tick()
    assert of(actions, Unsubscribe) and bench.said(RangeRequest)


def test_a_blob_with_the_wrong_digest_is_fetched_once_more_and_then_declined() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite())
    serve(bench, bench.said(RangeRequest)[-1], b"x" * len(PARAMETERS))
    assert bench.session.state == "fetching" and bench.session.next_deadline() is not None
    serve(bench, bench.said(RangeRequest)[-1], b"x" * len(PARAMETERS))
    assert bench.said(Decline)[0].reason == "digest" and bench.session.state == "idle"


def test_a_blob_that_is_gone_ends_the_work() -> None:
    bench = Bench()
    bench.check_in()
    bench.hear(bench.invite())
    bench.hear(BlobGone(digest=short(digest(PROGRAM))))
    assert bench.session.state == "idle" and not bench.said(Decline)


def test_a_download_that_takes_too_long_is_declined_at_the_deadline() -> None:
    bench = Bench()
    bench.check_in()
    sent_at = bench.now
    bench.hear(bench.invite(report_seconds=30.0))
    while bench.session.state == "fetching":
        bench.tick()
    assert bench.now == pytest.approx(sent_at + 30.0) and bench.said(Decline)[0].reason == "deadline"


def test_after_a_reconnect_only_what_is_missing_is_fetched() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite())
    bench.hear(RangeData(digest=short(digest(PARAMETERS)), offset=0, data=PARAMETERS[:4096]))
    bench.play(Offline(), after=1.0)
    assert bench.session.state == "fetching"
    bench.connect()
    assert bench.said(RangeRequest)[-1].ranges[0] == (4096, 8192)
    assert len(bench.said(Accept)) == 2


def test_nonsense_ranges_are_ignored() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite())
    for offset, data in ((len(PARAMETERS), b"beyond"), (0, b""), (len(PARAMETERS) - 1, b"across")):
        bench.hear(RangeData(digest=short(digest(PARAMETERS)), offset=offset, data=data))
    assert bench.hear(RangeData(digest=b"?" * 8, offset=0, data=b"12345")) == []
    assert bench.session.state == "fetching"


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"round": 2}, {"attempt": 1}, {"phase": "done"}], ids=["next round", "next attempt", "done"]
)
def test_a_newer_announcement_calls_the_work_off(changes: dict[str, Any]) -> None:
    bench = Bench()
    bench.training()
    actions = bench.announce(**changes)
    assert of(actions, CancelTraining)[0].ticket == TICKET and not bench.said(Decline)


def test_a_new_epoch_calls_the_work_off() -> None:
    bench = Bench()
    bench.training()
    assert of(bench.announce(lineage=b"lineage 2."), CancelTraining)
    assert bench.session.state == "idle"


def test_the_same_or_an_older_announcement_does_not() -> None:
    bench = Bench()
    bench.training()
    assert not of(bench.announce(phase="working"), CancelTraining)
    assert not of(bench.announce(round=0), CancelTraining)
    assert bench.session.state == "training"


@pytest.mark.parametrize("outcome", ["late", "missing", "refused", "abandoned"])
def test_a_final_verdict_on_the_ticket_calls_the_work_off(outcome: str) -> None:
    bench = Bench()
    bench.training()
    assert of(bench.hear(verdict(outcome, digest=b"")), CancelTraining)


def test_losing_eligibility_gives_the_ticket_back() -> None:
    bench = Bench()
    bench.training()
    actions = bench.play(SetEligible(False, "hot"))
    assert of(actions, CancelTraining) and bench.said(Decline)[0].reason == "not_eligible"
    bench.play(SetEligible(True))
    assert bench.session.state == "idle"


def test_a_training_that_fails_is_declined_with_its_reason() -> None:
    bench = Bench()
    bench.training()
    actions = bench.play(TrainingFailed(TICKET, "no_examples", "0 examples"))
    assert bench.said(Decline)[0].reason == "no_examples"
    assert of(actions, Notify)[0].detail == "0 examples"


def test_an_update_finished_after_it_was_called_off_is_settled_as_not_counted() -> None:
    bench = Bench()
    bench.training()
    bench.announce(round=2)
    (settle,) = bench.play(TrainingFinished(pending(payload=PAYLOAD, number=1)))
    assert settle == Settle(TICKET, counted=False, reason="dropped")
    assert bench.play(TrainingFailed(TICKET, "cancelled")) == []


def test_training_goes_on_without_a_connection_and_the_upload_waits_for_one() -> None:
    bench = Bench()
    bench.training()
    bench.play(Offline())
    actions = bench.play(TrainingFinished(pending(payload=PAYLOAD, number=1)))
    assert not of(actions, Send) and bench.session.state == "uploading"
    bench.connect()
    assert bench.said(Offer)[0].total == len(PAYLOAD)


def test_no_time_left_for_training_is_declined() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS])
    bench.check_in()
    bench.hear(bench.invite(report_seconds=4.0), after=4.5)
    assert bench.said(Decline)[0].reason == "deadline"


# --- uploading -------------------------------------------------------------------------------------------------------


def have(*ranges: tuple[int, int], limit: int = 1000) -> Have:
    return Have(ticket=TICKET, digest=short(UPDATE_DIGEST), ranges=ranges, chunk_bytes_max=limit)


def test_chunks_go_out_a_few_at_a_time_and_cover_what_is_missing() -> None:
    bench = Bench()
    bench.uploading()
    bench.hear(have((0, 2000), (5000, 6000)))
    assert len(bench.said(Chunk)) == 4
    published = 0
    while published < len(bench.said(Chunk)):
        tokens = [action.token for action in of(bench.actions, Send) if action.token]
        bench.play(Published(tokens[published]))
        published += 1
        assert len(bench.said(Chunk)) - published <= 4
    chunks = bench.said(Chunk)
    assert all(chunk.ticket == TICKET and chunk.digest == UPDATE_DIGEST for chunk in chunks)
    assert all(len(chunk.data) <= 1000 and chunk.total == len(PAYLOAD) for chunk in chunks)
    sent = {at for chunk in chunks for at in range(chunk.offset, chunk.offset + len(chunk.data))}
    assert sent == set(range(2000, 5000)) | set(range(6000, len(PAYLOAD)))
    assert b"".join(chunk.data for chunk in chunks) == PAYLOAD[2000:5000] + PAYLOAD[6000:]


def test_nothing_is_sent_before_the_coordinator_says_what_it_has() -> None:
    bench = Bench()
    bench.uploading()
    assert not bench.said(Chunk)
    assert bench.hear(Have(ticket=b"x" * 16, digest=short(UPDATE_DIGEST), ranges=())) == []
    assert bench.hear(Have(ticket=TICKET, digest=b"x" * 8, ranges=())) == []


def test_a_second_answer_to_the_same_offer_sends_nothing_twice() -> None:
    bench = Bench()
    bench.uploading()
    bench.hear(have())
    assert bench.hear(have()) == []


def test_silence_offers_again_with_backoff() -> None:
    bench = Bench()
    bench.uploading()
    waits = []
    for _ in range(8):
        before = bench.now
        bench.tick()
        waits.append(bench.now - before)
    assert len(bench.said(Offer)) == 9 and not bench.said(Chunk)
    assert 8.0 <= waits[0] <= 10.0 and all(300.0 <= wait <= 375.0 for wait in waits[-2:])


SMALL = bytes(range(256)) * 8


def small_update(**changes: Any) -> PendingUpdate:
    return replace(pending(payload=SMALL, number=1), digest=digest(SMALL), **changes)


def test_a_small_update_is_sent_at_once_and_whole() -> None:
    bench = Bench()
    bench.training()
    bench.play(TrainingFinished(small_update()))
    assert bench.said(Chunk) == [Chunk(ticket=TICKET, digest=short(digest(SMALL)), data=SMALL)]
    assert not bench.said(Offer) and bench.session.state == "uploading"
    bench.hear(verdict("counted", digest=short(digest(SMALL))))
    assert bench.session.state == "idle" and of(bench.actions, Settle)[-1].counted


def test_silence_a_cut_or_a_busy_coordinator_make_an_offer_of_a_small_update_too() -> None:
    for happening in ("silence", "cut", "busy"):
        bench = Bench()
        bench.training()
        bench.play(TrainingFinished(small_update()))
        if happening == "silence":
            bench.tick()
        elif happening == "cut":
            bench.play(Offline(), after=1.0)
            bench.connect()
        else:
            bench.hear(verdict("busy", retry_seconds=5.0))
            bench.tick()
        assert [offer.total for offer in bench.said(Offer)] == [len(SMALL)], happening
        assert len(bench.said(Chunk)) == 1, "never a blind resend"
        bench.hear(Have(ticket=TICKET, digest=short(digest(SMALL))))
        assert len(bench.said(Chunk)) == 2


def test_a_small_update_of_before_a_restart_or_for_another_lineage_is_offered() -> None:
    bench = Bench(holding=small_update())
    bench.connect()
    assert bench.said(Offer) and not bench.said(Chunk)
    bench = Bench()
    bench.training()
    bench.play(TrainingFinished(small_update(lineage=NEW)))
    assert bench.said(Offer) and not bench.said(Chunk)


def test_parameters_that_come_with_the_invite_are_not_asked_for() -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite(inline=(PARAMETERS,)))
    assert not bench.said(RangeRequest) and bench.session.state == "training"
    assert bench.blobs.kept == [("parameters", PARAMETERS)]


@pytest.mark.parametrize("inline", [b"x" * len(PARAMETERS), b"", b"short"])
def test_wrong_parameters_with_an_invite_are_fetched_from_the_coordinator_itself(inline: bytes) -> None:
    bench = Bench(cached=[PROGRAM])
    bench.check_in()
    bench.hear(bench.invite(inline=(inline,), blob_bytes=512))
    assert "bad_digest" in [notice.what for notice in of(bench.actions, Notify)]
    assert of(bench.actions, Subscribe)[-1].filters[0].startswith("fl/v1/garden/coordinator"), "none are retained"
    serve(bench, bench.said(RangeRequest)[-1], PARAMETERS)
    assert not any(kept != ("parameters", PARAMETERS) for kept in bench.blobs.kept)


def test_a_cut_without_progress_halves_the_chunks() -> None:
    payload = b"u" * 300_000
    bench = Bench(holding=replace(pending(payload=payload, number=1), digest=digest(payload)))
    bench.connect()
    sizes = []
    for _ in range(6):
        bench.hear(Have(ticket=TICKET, digest=short(digest(payload)), ranges=()))
        sizes.append(len(bench.said(Chunk)[-1].data))
        bench.play(Offline())
        bench.connect()
    assert sizes[0] == 58 * 1024 and sizes[1] == 29 * 1024 and sizes[-1] == CHUNK_BYTES_FLOOR


def test_chunks_fit_the_broker_that_is_found_at_the_next_connection() -> None:
    payload = b"u" * 100_000
    bench = Bench(holding=replace(pending(payload=payload, number=1), digest=digest(payload)))
    bench.connect(packet_bytes_max=10_000)
    bench.hear(Have(ticket=TICKET, digest=short(digest(payload)), ranges=()))
    assert all(len(action.payload) < 10_000 for action in of(bench.actions, Send))
    bench.play(Offline())
    bench.connect(packet_bytes_max=6_000)
    bench.hear(Have(ticket=TICKET, digest=short(digest(payload)), ranges=()))
    assert all(len(chunk.data) < 6_000 for chunk in bench.said(Chunk)[-4:])


def test_busy_waits_as_long_as_it_is_told_and_offers_again() -> None:
    bench = Bench()
    bench.uploading()
    bench.hear(verdict("busy", retry_seconds=30.0))
    assert bench.session.state == "uploading"
    assert 24.0 <= bench.session.next_deadline() - bench.now <= 36.0  # type: ignore[operator]
    bench.tick()
    assert len(bench.said(Offer)) == 2


def test_a_receipt_frees_the_outbox_and_leaves_the_ticket_unsettled() -> None:
    bench = Bench()
    bench.uploading()
    actions = bench.hear(verdict("received"))
    assert of(actions, MarkReceived)[0].ticket == TICKET and not of(actions, Settle)
    assert bench.session.unsettled == (TICKET,) and bench.session.state == "idle"


@pytest.mark.parametrize("outcome", ["counted", "refused", "late", "missing", "unknown", "declined", "abandoned"])
def test_a_final_verdict_during_the_upload_settles_at_once(outcome: str) -> None:
    bench = Bench()
    bench.uploading()
    (settle,) = of(bench.hear(verdict(outcome)), Settle)
    assert settle.counted == (outcome == "counted") and bench.session.unsettled == ()
    told = outcome if outcome in ("counted", "refused") else "not_counted"
    assert [notice.what for notice in of(bench.actions, Notify)][-1] == told


def test_a_verdict_on_other_bytes_or_another_ticket_is_not_ours() -> None:
    bench = Bench()
    bench.uploading()
    assert not of(bench.hear(verdict("refused", digest=b"x" * 32)), Settle)
    assert not of(bench.hear(verdict("counted", ticket=b"x" * 16)), Settle)
    assert bench.session.state == "uploading"


def test_an_update_from_before_a_restart_is_offered_to_the_first_live_coordinator() -> None:
    bench = Bench(holding=pending(payload=PAYLOAD, lineage=b"old", number=7))
    assert bench.session.state == "uploading"
    bench.play(Online(1 << 20))
    assert not bench.said(Offer)
    bench.state()
    (offer,) = bench.said(Offer)
    assert offer.ticket == TICKET
    envelope, _ = decode_message(of(bench.actions, Send)[-1].payload, "offer", peer="device")
    assert envelope.lineage == b"old", "the lineage that the ticket belongs to"


# --- settling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"round": 2, "phase": "working"}, {"phase": "done"}, {"round": 2, "fraction": 0.0}]
)
def test_the_next_announcement_brings_an_unsettled_device_to_ask(changes: dict[str, Any]) -> None:
    bench = Bench()
    bench.received()
    bench.announce(**changes)
    bench.tick()
    assert bench.now < 60.0, "because of the announcement, not of the timer behind it"
    assert bench.said(CheckIn)[-1].unsettled == (TICKET,)
    bench.hear(ComeBack(nonce=bench.said(CheckIn)[-1].nonce, seconds=900.0, verdicts=(verdict("counted"),)))
    assert of(bench.actions, Settle)[-1].counted and bench.session.unsettled == ()


def test_an_outcome_that_nothing_announces_is_asked_for_after_a_while() -> None:
    bench = Bench()
    bench.received()
    deadline = bench.session.next_deadline()
    assert deadline is not None and 900.0 <= deadline - bench.now <= 1350.0
    bench.tick()
    assert bench.said(CheckIn)[-1].unsettled == (TICKET,)


def test_a_receipt_again_is_no_outcome() -> None:
    bench = Bench()
    bench.received()
    assert not of(bench.hear(verdict("received")), Settle)
    assert bench.session.unsettled == (TICKET,)


def test_a_pushed_verdict_settles_without_a_check_in() -> None:
    bench = Bench()
    bench.received()
    (settle,) = of(bench.hear(verdict("counted")), Settle)
    assert settle.counted
    assert bench.hear(verdict("counted")) == [], "the second copy finds nothing to settle"


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_leaving_gives_unfinished_work_back_and_keeps_finished_work() -> None:
    bench = Bench()
    bench.training()
    actions = bench.play(Stop())
    assert bench.said(Decline)[0].reason == "leaving" and isinstance(actions[-1], Leave)
    assert bench.session.next_deadline() is None

    bench = Bench()
    bench.uploading()
    assert bench.play(Stop()) == [Leave()]


def test_after_leaving_no_announcement_brings_it_back() -> None:
    bench = Bench()
    bench.connect()
    bench.play(Stop())
    bench.announce()
    assert bench.session.next_deadline() is None


# --- any sequence ----------------------------------------------------------------------------------------------------

WORDS = (
    "tick offline online dead reborn announce working next done come_back hold invite linked blob gone broken mended "
    "trained failed have published received counted late busy ineligible eligible foreign lineage"
)
STEPS = st.sampled_from(WORDS.split())


@settings(max_examples=250, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(0, 1000))
def test_whatever_happens_only_listed_transitions_are_made_and_nothing_raises(steps: list[str], seed: int) -> None:
    bench = Bench(seed=seed, holds=(BASE,))
    bench.connect()
    number, incarnation = 1, 1
    for step in steps:
        before = bench.session.state
        ticket = bench.session.ticket or TICKET
        nonce = bench.said(CheckIn)[-1].nonce if bench.said(CheckIn) else b"nothing!"
        match step:
            case "tick":
                bench.tick() if bench.session.next_deadline() is not None else bench.play(Tick(), after=1.0)
            case "offline":
                bench.play(Offline())
            case "online":
                bench.connect(incarnation)
            case "dead":
                bench.state(incarnation, online=False)
            case "reborn":
                incarnation += 1
                bench.state(incarnation)
            case "announce" | "working" | "done":
                bench.announce(round=number, phase={"announce": "selection"}.get(step, step))
            case "next" | "lineage":
                number += 1
                bench.announce(round=number, lineage=b"lineage 2." if step == "lineage" else EPOCH)
            case "come_back" | "hold":
                bench.hear(ComeBack(nonce=nonce, seconds=20.0, hold=step == "hold"))
            case "invite" if bench.said(CheckIn):
                bench.hear(bench.invite(ticket=number.to_bytes(16, "big"), round=number))
            case "linked" if bench.said(CheckIn):
                deltas = tuple((digest(delta), len(delta)) for delta in LINKS)
                bench.hear(bench.invite(ticket=number.to_bytes(16, "big"), round=number, base=BASE, deltas=deltas))
            case "blob" if bench.said(RangeRequest):
                want = bench.said(RangeRequest)[-1]
                serve(bench, want, BLOBS[want.digest])
            case "gone":
                bench.hear(BlobGone(digest=bench.said(RangeRequest)[-1].digest if bench.said(RangeRequest) else BASE))
            case "broken" | "mended":
                bench.blobs.error = "nonsense" if step == "broken" else ""
            case "trained":
                bench.play(TrainingFinished(pending(ticket, PAYLOAD, number=number)))
            case "failed":
                bench.play(TrainingFailed(ticket, "training"))
            case "have":
                bench.hear(Have(ticket=ticket, digest=short(UPDATE_DIGEST), ranges=()))
            case "published":
                bench.play(Published(max([a.token for a in of(bench.actions, Send)], default=0)))
            case "received" | "counted" | "late" | "busy":
                bench.hear(verdict(step, ticket=bench.said(Offer)[-1].ticket if bench.said(Offer) else ticket))
            case "eligible" | "ineligible":
                bench.play(SetEligible(step == "eligible"))
            case "foreign":
                bench.hear(verdict("counted", ticket=b"x" * 16))
        after = bench.session.state
        assert after == before or reachable(before, after)
        deadline = bench.session.next_deadline()
        assert deadline is None or deadline >= 0.0
    for settled in {action.ticket for action in of(bench.actions, Settle)}:
        outcomes = [action.counted for action in of(bench.actions, Settle) if action.ticket == settled]
        assert sum(outcomes) <= 1, "counted at most once"


def reachable(start: str, goal: str) -> bool:
    """Whether listed transitions lead there (one event may make several)."""
    seen, todo = {start}, [start]
    while todo:
        for following in set(TRANSITIONS[todo.pop()].values()) - seen:
            seen.add(following)
            todo.append(following)
    return goal in seen


def test_no_unlisted_transition_is_possible() -> None:
    bench = Bench()
    with pytest.raises(RuntimeError, match="'complete' leads nowhere from idle"):
        bench.session._stage.step("complete")


def test_every_state_leads_somewhere_and_can_be_reached() -> None:
    assert {following for steps in TRANSITIONS.values() for following in steps.values()} == set(TRANSITIONS)
    assert set(HEEDED) == set(TRANSITIONS) and all(TRANSITIONS.values())
