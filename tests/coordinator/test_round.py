"""The round alone, with hand-made events and times: every phase, every timer, and counters that always add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.schedules.schedule import (
    Abandon,
    Accepted,
    Action,
    Admit,
    CheckedIn,
    Close,
    Declined,
    Event,
    HeardOf,
    Issue,
    Offered,
    PhaseChanged,
    Receipt,
    Refuse,
    Tick,
    TicketChanged,
    TurnAway,
    UpdateArrived,
    UpdateJournalled,
    UpdateRefused,
    WentAway,
)
from coordinator.schedules.synchronous import Round, RoundSettings
from coordinator.schedules.tickets import Ticket
from edge_sdk.wire.outcomes import NEXT_STATES, OPEN, VERDICTS

A = TypeVar("A")
BASE = b"b" * 32
SETTINGS = RoundSettings(
    goal_count=3,
    minimum_count=2,
    over_selection=1.3,
    window_seconds=10.0,
    selection_seconds_max=100.0,
    configuration_seconds_max=20.0,
    reporting_seconds_max=60.0,
)


class Table:
    """A round with its events played by hand; after each one the counters are added up."""

    def __init__(
        self, settings: RoundSettings = SETTINGS, expected: int = 0, seed: int = 0, awaited: tuple[str, ...] | None = ()
    ) -> None:
        self.numbers: Iterator[int] = iter(range(1, 1_000_000))
        self.now = 0.0
        self.seq = 0
        self.round = Round(
            settings,
            expected=expected,
            rng=np.random.Generator(np.random.PCG64(seed)),
            new_ticket=self.new_ticket,
            base=BASE,
            now=0.0,
            awaited=None if awaited is None else frozenset(awaited),
        )

    def new_ticket(self) -> bytes:
        return next(self.numbers).to_bytes(16, "big")

    def play(self, event: Event, at: float | None = None) -> list[Action]:
        self.now = self.now if at is None else at
        actions = self.round.handle(event, self.now)
        counts = self.round.counts()
        assert sum(counts[state] for state in (*OPEN, *VERDICTS)) == len(self.round.tickets)
        return actions

    def check_in(self, *devices: str, at: float | None = None) -> list[Action]:
        found: list[Action] = []
        for device in devices:
            found += self.play(CheckedIn(device, b"i" * 16, device.encode().ljust(8)), at)
        return found

    def configured(self, devices: int = 4) -> list[Ticket]:
        """Selection is over; the tickets that were issued."""
        self.check_in(*(f"d{i}" for i in range(devices)))
        return [action.ticket for action in of(self.play(Tick(), at=10.0), Issue)]

    def reporting(self, devices: int = 4) -> list[Ticket]:
        tickets = self.configured(devices)
        for ticket in tickets:
            self.play(Accepted(ticket.ticket))
        assert self.round.phase == "reporting"
        return tickets

    def journal(self, ticket: Ticket, digest: bytes = b"d" * 32) -> list[Action]:
        actions = self.play(UpdateArrived(ticket.ticket, digest))
        assert of(actions, Admit)
        self.seq += 1
        return actions + self.play(UpdateJournalled(ticket.ticket, self.seq))

    def state(self, ticket: Ticket) -> str:
        return self.round.tickets[ticket.ticket].state


def of(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


# --- selection -------------------------------------------------------------------------------------------------------


def test_nobody_is_chosen_before_the_window_ends() -> None:
    table = Table()
    assert table.check_in("a", "b", "c", "d", "e") == [], "they stand by"
    assert table.round.next_deadline() == 10.0
    assert not table.play(Tick(), at=9.9)
    chosen = of(table.play(Tick(), at=10.0), Issue)
    assert len(chosen) == 4 and table.round.phase == "configuration"


def test_when_everybody_who_is_expected_has_come_the_window_is_cut_short() -> None:
    table = Table(expected=4)
    table.check_in("a", "b", "c", at=1.0)
    assert table.round.phase == "selection"
    table.check_in("d", at=1.5)
    assert table.round.phase == "configuration"


AT_ONCE = replace(SETTINGS, goal_count=2, minimum_count=1, over_selection=1.0, window_seconds=0.0)


def test_without_a_window_nobody_is_chosen_before_those_who_are_known_to_be_free_have_come() -> None:
    table = Table(AT_ONCE, expected=9, awaited=("a", "b", "c"))
    table.check_in("c", "x", "b", at=0.1)
    assert table.round.phase == "selection" and table.round.next_deadline() == AT_ONCE.gather_seconds
    table.check_in("a", at=0.2)
    assert table.round.phase == "configuration"


def test_who_is_known_and_does_not_come_is_waited_for_only_so_long() -> None:
    table = Table(AT_ONCE, awaited=("a", "b", "c"))
    table.check_in("a", "b", at=0.1)
    assert not table.play(Tick(), at=1.9)
    assert len(of(table.play(Tick(), at=2.0), Issue)) == 2


def test_who_is_known_and_goes_away_is_not_waited_for() -> None:
    table = Table(AT_ONCE, awaited=("a", "b", "c"))
    table.check_in("a", "b", at=0.1)
    assert of(table.play(WentAway("c"), at=0.2), Issue)


def test_where_nobody_is_known_yet_those_who_answer_first_are_not_chosen_at_once() -> None:
    table = Table(AT_ONCE)
    table.check_in("a", "b", "c", at=0.1)
    assert table.round.phase == "selection"
    assert len(of(table.play(Tick(), at=2.0), Issue)) == 2


def test_where_each_device_draws_whether_it_comes_nobody_is_chosen_before_the_window_ends() -> None:
    """As many as are expected have come, and one may still be on its way: those that answer last take part, too."""
    table = Table(AT_ONCE, expected=3, awaited=None)
    table.check_in("a", "b", "c", "d", at=0.1)
    table.play(WentAway("d"), at=0.2)
    assert table.round.phase == "selection"
    assert len(of(table.play(Tick(), at=2.0), Issue)) == 2


def test_too_few_devices_wait_until_the_limit_and_then_start_if_they_are_enough() -> None:
    table = Table()
    table.check_in("a", "b")
    assert not table.play(Tick(), at=50.0) and table.round.next_deadline() == 100.0
    assert len(of(table.play(Tick(), at=100.0), Issue)) == 2


def test_below_the_minimum_the_round_is_abandoned_and_those_who_came_are_told() -> None:
    table = Table()
    table.check_in("a")
    actions = table.play(Tick(), at=100.0)
    assert [action.device for action in of(actions, TurnAway)] == ["a"]
    (abandoned,) = of(actions, Abandon)
    assert "1 devices checked in, at least 2" in abandoned.reason and not abandoned.verdicts
    assert table.round.phase == "abandoned" and table.round.next_deadline() is None


def test_the_cohort_depends_on_the_seed_and_not_on_the_order_of_arrival() -> None:
    names = [f"d{i}" for i in range(20)]
    cohorts = []
    for order in (names, names[::-1]):
        table = Table(seed=7)
        table.check_in(*order)
        cohorts.append({action.ticket.device for action in of(table.play(Tick(), at=10.0), Issue)})
    assert cohorts[0] == cohorts[1] and len(cohorts[0]) == 4


def test_a_repeated_check_in_is_answered_with_the_latest_nonce() -> None:
    table = Table(expected=4)
    table.play(CheckedIn("a", b"i" * 16, b"first   "))
    table.play(CheckedIn("a", b"i" * 16, b"second  "))
    issues = of(table.check_in("b", "c", "d"), Issue)
    assert {issue.nonce for issue in issues if issue.ticket.device == "a"} == {b"second  "}


# --- configuration ---------------------------------------------------------------------------------------------------


def test_a_ticket_holder_who_asks_again_gets_the_same_ticket() -> None:
    table = Table()
    (first, *_) = table.configured()
    (again,) = table.play(CheckedIn(first.device, b"i" * 16, b"later   "))
    assert isinstance(again, Issue) and again.ticket.ticket == first.ticket
    assert again.again and again.nonce == b"later   "


def test_another_instance_of_the_device_does_not_get_its_ticket() -> None:
    table = Table()
    (first, *_) = table.configured()
    (answer,) = table.play(CheckedIn(first.device, b"j" * 16, b"nonce   "))
    assert isinstance(answer, TurnAway) and answer.reason == "other_instance"


def test_a_decline_is_refilled_from_the_reserves() -> None:
    table = Table()
    tickets = table.configured(devices=6)
    assert len(tickets) == 4
    actions = table.play(Declined(tickets[0].ticket, "battery"))
    assert of(actions, TicketChanged)[0].ticket.reason == "battery"
    (refill,) = of(actions, Issue)
    assert refill.ticket.device not in {ticket.device for ticket in tickets}


def test_silence_past_half_of_the_time_is_refilled_once() -> None:
    table = Table()
    tickets = table.configured(devices=8)
    table.play(Accepted(tickets[0].ticket))
    assert table.round.next_deadline() == 20.0
    assert len(of(table.play(Tick(), at=20.0), Issue)) == 3
    assert table.round.next_deadline() == 30.0
    assert not of(table.play(Tick(), at=25.0), Issue)


def test_who_comes_during_configuration_is_a_reserve() -> None:
    table = Table()
    tickets = table.configured(devices=4)
    assert table.check_in("late") == [], "it stands by"
    (refill,) = of(table.play(Declined(tickets[0].ticket, "")), Issue)
    assert refill.ticket.device == "late"


def test_a_decline_refills_even_the_last_place() -> None:
    table = Table()
    tickets = table.configured(devices=4)
    for ticket in tickets:
        table.play(Declined(ticket.ticket, "no"))
    assert table.round.phase == "abandoned"
    assert table.round.counts()["declined"] == 4


def test_reporting_begins_when_all_have_answered_or_at_the_limit() -> None:
    assert Table().reporting() is not None
    table = Table()
    tickets = table.configured(devices=6)
    for ticket in tickets[:3]:
        table.play(Accepted(ticket.ticket))
    table.check_in("late 1", "late 2")
    assert len(of(table.play(Tick(), at=20.0), Issue)) == 1
    actions = table.play(Tick(), at=30.0)
    assert PhaseChanged("reporting") in actions
    assert len(of(actions, TurnAway)) == 3, "reserves are released"
    assert table.round.next_deadline() == 90.0


def test_what_reports_early_is_taken_at_once() -> None:
    table = Table()
    tickets = table.configured()
    table.play(Offered(tickets[0].ticket))
    assert table.state(tickets[0]) == "accepted", "an offer says accepted too"
    assert of(table.journal(tickets[0]), Receipt)


# --- reporting and the end -------------------------------------------------------------------------------------------


def test_the_goal_closes_the_round_and_freezes_one_verdict_for_each_ticket() -> None:
    table = Table()
    tickets = table.reporting()
    table.play(Offered(tickets[3].ticket))
    actions: list[Action] = []
    for ticket in tickets[:3]:
        actions = table.journal(ticket)
    (close,) = of(actions, Close)
    assert close.last_seq == 3
    assert close.verdicts == {
        **{ticket.ticket: ("counted", "") for ticket in tickets[:3]},
        tickets[3].ticket: ("late", ""),
    }
    assert table.round.phase == "closed"


def test_those_under_way_are_waited_for_and_nobody_else_is_admitted() -> None:
    table = Table()
    tickets = table.reporting(devices=5)[:4]
    table.play(UpdateArrived(tickets[3].ticket, b"e" * 32))
    for ticket in tickets[:3]:
        assert not of(table.journal(ticket), Close)
    assert table.round.phase == "closing"
    assert table.round.next_deadline() is None, "only the worker is waited for"
    (close,) = of(table.play(UpdateJournalled(tickets[3].ticket, 9)), Close)
    assert close.last_seq == 9 and [v for v, _ in close.verdicts.values()] == ["counted"] * 4


def test_a_straggler_that_offers_while_the_round_closes_is_late_for_good() -> None:
    table = Table(RoundSettings(goal_count=2, minimum_count=1, over_selection=2.0))
    tickets = table.reporting(devices=4)
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    table.journal(tickets[1]), table.journal(tickets[2])
    assert table.round.phase == "closing"
    (changed,) = of(table.play(Offered(tickets[3].ticket)), TicketChanged)
    assert changed.ticket.state == "late"
    assert not table.play(Offered(tickets[3].ticket))


def test_a_straggler_that_had_offered_before_the_round_closed_is_late_in_the_books_when_it_offers_again() -> None:
    table = Table(RoundSettings(goal_count=2, minimum_count=1, over_selection=2.0))
    tickets = table.reporting(devices=4)
    table.play(Offered(tickets[3].ticket))
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    table.journal(tickets[1]), table.journal(tickets[2])
    assert table.round.phase == "closing"
    (changed,) = of(table.play(Offered(tickets[3].ticket)), TicketChanged)
    assert changed.ticket.state == "late"


def test_at_the_deadline_enough_updates_close_and_too_few_abandon() -> None:
    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0]), table.journal(tickets[1])
    table.play(Offered(tickets[2].ticket))
    (close,) = of(table.play(Tick(), at=70.0), Close)
    verdicts = [close.verdicts[ticket.ticket][0] for ticket in tickets]
    assert verdicts == ["counted", "counted", "late", "missing"]

    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0])
    (abandoned,) = of(table.play(Tick(), at=70.0), Abandon)
    assert abandoned.verdicts[tickets[0].ticket] == ("refused", "abandoned")
    assert {abandoned.verdicts[ticket.ticket][0] for ticket in tickets[1:]} == {"missing"}


def test_the_round_ends_as_soon_as_nobody_is_left_who_could_report() -> None:
    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0]), table.journal(tickets[1])
    table.play(Declined(tickets[2].ticket, "hot"))
    actions = table.play(Declined(tickets[3].ticket, "hot"))
    assert of(actions, Close)


def test_a_bad_update_costs_its_own_ticket_only() -> None:
    table = Table()
    tickets = table.reporting()
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    actions = table.play(UpdateRefused(tickets[0].ticket, "norm"))
    assert of(actions, TicketChanged) and of(actions, Refuse)[0].outcome == "refused"
    for ticket in tickets[1:]:
        actions = table.journal(ticket)
    (close,) = of(actions, Close)
    assert close.verdicts[tickets[0].ticket] == ("refused", "norm")


def test_an_update_that_could_not_be_stored_may_come_again() -> None:
    table = Table()
    tickets = table.reporting()
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    actions = table.play(UpdateRefused(tickets[0].ticket, "busy"))
    assert of(actions, Refuse)[0].outcome == "busy" and not of(actions, TicketChanged)
    assert of(table.play(UpdateArrived(tickets[0].ticket, b"e" * 32)), Admit)


def test_a_ticket_is_spent_at_most_once() -> None:
    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0], b"a" * 32)
    assert [type(action) for action in table.play(UpdateArrived(tickets[0].ticket, b"a" * 32))] == [Receipt]
    (refusal,) = of(table.play(UpdateArrived(tickets[0].ticket, b"b" * 32)), Refuse)
    assert refusal.reason == "spent"
    assert table.round.counts()["journalled"] == 1


def test_an_admitted_update_that_comes_twice_is_admitted_once() -> None:
    table = Table()
    tickets = table.reporting()
    assert of(table.play(UpdateArrived(tickets[0].ticket, b"a" * 32)), Admit)
    assert not table.play(UpdateArrived(tickets[0].ticket, b"a" * 32))


@pytest.mark.parametrize("event", [Accepted, Offered, lambda t: Declined(t, ""), lambda t: UpdateArrived(t, b"x" * 32)])
def test_an_unknown_ticket_changes_nothing(event: Any) -> None:
    table = Table()
    table.reporting()
    assert table.play(event(b"stranger" * 2)) == []


def test_everything_durable_comes_out_before_what_makes_it_visible() -> None:
    table = Table()
    tickets = table.reporting()
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    kinds = [type(action) for action in table.play(UpdateRefused(tickets[0].ticket, "norm"))]
    assert kinds.index(TicketChanged) < kinds.index(Refuse)


def test_a_transition_that_is_not_in_the_table_raises() -> None:
    table = Table()
    tickets = table.reporting()
    table.play(UpdateArrived(tickets[0].ticket, b"e" * 32))
    table.play(UpdateRefused(tickets[0].ticket, "norm"))
    with pytest.raises(RuntimeError, match="from refused to journalled"):
        table.play(UpdateJournalled(tickets[0].ticket, 1))
    assert all(not NEXT_STATES[verdict] for verdict in VERDICTS)


# --- restoring -------------------------------------------------------------------------------------------------------


def restored(phase: str, tickets: list[Ticket], seconds: float = 7.0) -> Round:
    return Round.restore(
        SETTINGS,
        phase=phase,
        seconds_remaining=seconds,
        tickets=tickets,
        expected=0,
        rng=np.random.Generator(np.random.PCG64(0)),
        new_ticket=lambda: b"n" * 16,
        base=BASE,
        now=1000.0,
    )


def test_downtime_does_not_count() -> None:
    machine = restored("reporting", [Ticket(b"t" * 16, "a", b"i" * 16, BASE, "accepted")])
    assert machine.next_deadline() == 1007.0 and machine.seconds_remaining(1003.0) == 4.0


def test_a_restored_round_goes_on_where_it_was() -> None:
    held = [Ticket(bytes([i]) * 16, f"d{i}", b"i" * 16, BASE, "journalled", digest=b"d" * 32, seq=i) for i in (1, 2)]
    open_one = Ticket(b"o" * 16, "open", b"i" * 16, BASE, "accepted")
    machine = restored("reporting", [*held, open_one])
    (again,) = machine.handle(CheckedIn("open", b"i" * 16, b"nonce   "), 1001.0)
    assert isinstance(again, Issue) and again.ticket == open_one
    machine.handle(UpdateArrived(open_one.ticket, b"e" * 32), 1002.0)
    (close,) = of(machine.handle(UpdateJournalled(open_one.ticket, 3), 1003.0), Close)
    assert close.last_seq == 3 and len(close.verdicts) == 3


def test_silence_is_refilled_after_a_restart_too() -> None:
    machine = restored("configuration", [Ticket(b"t" * 16, "silent", b"i" * 16, BASE)], seconds=10.0)
    assert machine.next_deadline() == 1005.0
    machine.handle(CheckedIn("fresh", b"i" * 16, b"nonce   "), 1001.0)
    assert {action.ticket.device for action in of(machine.handle(Tick(), 1005.0), Issue)} <= {"fresh"}


# --- any sequence ----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["check in", "accept", "decline", "offer", "arrive", "journal", "refuse", "busy", "wait"]),
        st.integers(0, 7),
        st.floats(0.0, 15.0),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_whatever_happens_the_counters_partition_and_the_round_ends(moves: list[tuple[str, int, float]]) -> None:
    table = Table()
    admitted: list[bytes] = []
    ended: list[Action] = []
    for move, number, seconds in moves:
        tickets = [ticket.ticket for ticket in table.round.tickets]
        ticket = tickets[number % len(tickets)] if tickets else b"nothing"
        at = table.now + seconds
        actions: list[Action] = []
        if move == "check in":
            actions = table.play(CheckedIn(f"d{number}", b"i" * 16, b"nonce   "), at)
        elif move == "accept":
            actions = table.play(Accepted(ticket), at)
        elif move == "decline":
            actions = table.play(Declined(ticket, ""), at)
        elif move == "offer":
            actions = table.play(Offered(ticket), at)
        elif move == "arrive":
            actions = table.play(UpdateArrived(ticket, bytes([number]) * 32), at)
        elif move in ("journal", "refuse", "busy") and admitted:
            ticket = admitted.pop(0)
            table.seq += 1
            event = UpdateJournalled(ticket, table.seq) if move == "journal" else UpdateRefused(ticket, move)
            actions = table.play(event, at)
        else:
            actions = table.play(Tick(), at)
        admitted += [action.ticket.ticket for action in of(actions, Admit)]
        ended += [*of(actions, Close), *of(actions, Abandon)]
    for ticket in admitted:
        table.seq += 1
        ended += [a for a in table.play(UpdateJournalled(ticket, table.seq)) if isinstance(a, Close | Abandon)]
    while not ended:
        deadline = table.round.next_deadline()
        assert deadline is not None, "a round that is not over has a deadline"
        actions = table.play(Tick(), max(deadline, table.now))
        ended += [a for a in actions if isinstance(a, Close | Abandon)]
    (end,) = ended
    assert isinstance(end, Close | Abandon)
    assert end.verdicts.keys() == {ticket.ticket for ticket in table.round.tickets}
    assert all(state in VERDICTS for state, _ in end.verdicts.values())
    counts = table.round.counts()
    assert counts["tickets"] == sum(counts[state] for state in VERDICTS)
    if isinstance(end, Close):
        assert counts["counted"] >= SETTINGS.minimum_count
    else:
        assert counts["counted"] == 0


# --- devices that go away, and a clock that stands still --------------------------------------------------------------


def test_a_device_that_goes_away_is_made_up_for_by_one_that_stands_by() -> None:
    table = Table()
    tickets = table.configured(6)
    assert len(tickets) == 4
    (substitute,) = of(table.play(WentAway(tickets[0].device)), Issue)
    assert substitute.ticket.device not in {ticket.device for ticket in tickets}
    assert table.state(tickets[0]) == "invited", "its ticket stays its own"


def test_with_the_minimum_there_nobody_waits_for_a_device_that_is_away() -> None:
    table = Table()
    tickets = table.reporting()
    for ticket in tickets[:2]:
        table.journal(ticket)
    assert not of(table.play(WentAway(tickets[2].device)), Close)
    (close,) = of(table.play(WentAway(tickets[3].device)), Close)
    assert close.verdicts[tickets[2].ticket] == ("missing", "went_offline")


def test_below_the_minimum_a_device_that_is_away_is_waited_for() -> None:
    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0])
    for ticket in tickets[1:]:
        assert not of(table.play(WentAway(ticket.device)), Close) and table.round.phase == "reporting"
    (again,) = of(table.check_in(tickets[1].device), Issue)
    assert again.again and again.ticket.ticket == tickets[1].ticket
    (close,) = of(table.journal(tickets[1]), Close)
    assert sorted(state for state, _ in close.verdicts.values()) == ["counted", "counted", "missing", "missing"]


@pytest.mark.parametrize("sign", ["check-in", "heard of", "offer", "accept"])
def test_whoever_is_heard_of_again_is_waited_for_again(sign: str) -> None:
    table = Table()
    tickets = table.reporting()
    table.journal(tickets[0])
    table.play(WentAway(tickets[3].device))
    ticket = tickets[3].ticket
    if sign == "check-in":
        table.check_in(tickets[3].device)
    else:
        table.play({"heard of": HeardOf(ticket), "offer": Offered(ticket), "accept": Accepted(ticket)}[sign])
    table.journal(tickets[1])
    table.play(WentAway(tickets[2].device))
    assert table.round.phase == "reporting", "tickets[3] is still at work"


def test_a_clock_that_stood_still_gives_back_the_time() -> None:
    table = Table()
    table.reporting()
    deadline = table.round.next_deadline()
    assert deadline is not None
    table.round.pause(table.now + 5.0)
    assert table.round.next_deadline() is None
    assert not table.play(Tick(), at=deadline + 1000.0), "no deadline passes while nobody can be heard"
    assert table.round.seconds_remaining(deadline + 1000.0) == SETTINGS.reporting_seconds_max - 5.0
    table.round.resume(deadline + 1000.0)
    assert table.round.next_deadline() == deadline + 1000.0 + SETTINGS.reporting_seconds_max - 5.0
