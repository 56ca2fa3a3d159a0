"""The session on its way from parameters that it holds to those of the round; whatever fails, they come whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_session import BASE, BLOBS, LINKS, PARAMETERS, PROGRAM, TOPICS, Bench, digest, of, serve

from edge_sdk.device.session import (
    ApplyLinks,
    LinksApplied,
    MessageArrived,
    Notify,
    Offline,
    SetEligible,
    StartTraining,
    StoreBlob,
    Subscribe,
    Unsubscribe,
)
from edge_sdk.wire.messages import CheckIn, Decline, Gone, Invite, Want

TARGET = digest(PARAMETERS)
NAMED = tuple((digest(link), len(link)) for link in LINKS)


def linked(bench: Bench, **changes: object) -> Invite:
    return replace(bench.invite(base=BASE, links=NAMED), **changes)  # type: ignore[arg-type]


def invited(**changes: object) -> Bench:
    """Holds the base and the program, and is invited with two links."""
    bench = Bench(cached=[PROGRAM], holds=(BASE,))
    bench.check_in()
    bench.hear(linked(bench, **changes))
    return bench


def fetch_links(bench: Bench) -> ApplyLinks:
    for _ in LINKS:
        want = bench.said(Want)[-1]
        serve(bench, want, BLOBS[want.digest])
    return of(bench.actions, ApplyLinks)[-1]


def fetched_whole(bench: Bench) -> bool:
    """Whether the parameters are asked for as a whole, and training follows."""
    want = bench.said(Want)[-1]
    if want.digest != TARGET or bench.session.state != "fetching":
        return False
    while bench.session.state == "fetching":
        serve(bench, bench.said(Want)[-1], PARAMETERS)
    return of(bench.actions, StartTraining)[-1].parameters == TARGET


def test_a_check_in_names_what_is_held_the_first_four() -> None:
    held = tuple(bytes([number]) * 32 for number in range(6))
    assert Bench(holds=held).check_in().holds == held[:4]
    assert Bench().check_in().holds == ()


def test_links_are_fetched_in_order_and_applied_instead_of_the_whole() -> None:
    bench = invited()
    action = fetch_links(bench)
    assert [want.digest for want in bench.said(Want)] == [digest(link) for link in LINKS]
    assert (action.base, [bytes(link) for link in action.links], action.target) == (BASE, list(LINKS), TARGET)
    assert bench.session.state == "fetching" and not of(bench.actions, StoreBlob)
    bench.play(LinksApplied(TARGET))
    assert of(bench.actions, StartTraining)[-1].parameters == TARGET


def test_links_come_from_the_retained_cache_too() -> None:
    bench = invited(blob_bytes=1 << 14)
    for link in LINKS:
        topic = TOPICS.blob(digest(link), 0)
        assert of(bench.actions, Subscribe)[-1].filters == (topic,)
        bench.play(MessageArrived(topic, link))
        assert of(bench.actions, Unsubscribe)[-1].filters == (topic,)
    bench.play(LinksApplied(TARGET))
    assert bench.session.state == "training" and not bench.said(Want)


def test_a_newcomers_program_is_fetched_before_its_links() -> None:
    bench = Bench(holds=(BASE,))
    bench.check_in()
    bench.hear(linked(bench))
    while (want := bench.said(Want)[-1]).digest == digest(PROGRAM):
        serve(bench, want, PROGRAM)
    fetch_links(bench)


def test_links_that_could_not_be_applied_are_followed_by_the_whole() -> None:
    bench = invited()
    fetch_links(bench)
    bench.play(LinksApplied(TARGET, "the digest is another one"))
    assert of(bench.actions, Notify)[-1].what == "links_failed"
    assert fetched_whole(bench) and not bench.said(Decline)


def test_the_whole_is_asked_for_where_only_the_links_were_promised_to_be_retained() -> None:
    bench = invited(blob_bytes=1 << 14)
    bench.hear(Gone(digest=NAMED[0][0]))
    assert of(bench.actions, Unsubscribe)[-1].filters == (TOPICS.blob(NAMED[0][0], 0),)
    assert fetched_whole(bench)


@pytest.mark.parametrize("after", [0, 1])
def test_a_link_that_is_gone_is_followed_by_the_whole(after: int) -> None:
    bench = invited()
    for link in LINKS[:after]:
        serve(bench, bench.said(Want)[-1], link)
    bench.hear(Gone(digest=NAMED[after][0]))
    assert fetched_whole(bench)


def test_a_link_with_another_digest_is_followed_by_the_whole_at_once() -> None:
    bench = invited()
    serve(bench, bench.said(Want)[-1], b"x" * len(LINKS[0]))
    assert "bad_digest" in [notice.what for notice in of(bench.actions, Notify)]
    assert fetched_whole(bench)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": b"other".ljust(32)},
        {"base": b""},
        {"links": ()},
        {"links": (NAMED[0], NAMED[0])},
        {"links": (NAMED[0], (NAMED[1][0], len(PARAMETERS)))},
    ],
    ids=["another base", "no base", "no links", "a link twice", "more than the whole"],
)
def test_links_that_cannot_be_of_use_are_not_fetched(changes: dict[str, object]) -> None:
    bench = invited(**changes)
    assert fetched_whole(bench)
    assert {want.digest for want in bench.said(Want)} == {TARGET}


def test_parameters_that_are_here_already_need_no_links() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS], holds=(BASE, TARGET))
    bench.check_in()
    bench.hear(linked(bench))
    assert bench.session.state == "training" and not bench.said(Want)


def test_after_a_reconnect_the_links_that_have_come_are_not_fetched_again() -> None:
    bench = invited()
    serve(bench, bench.said(Want)[-1], LINKS[0])
    bench.play(Offline(), after=1.0)
    bench.connect()
    assert [want.digest for want in bench.said(Want)] == [NAMED[0][0], NAMED[1][0], NAMED[1][0]]
    serve(bench, bench.said(Want)[-1], LINKS[1])
    assert of(bench.actions, ApplyLinks)


def test_links_that_fail_while_offline_are_followed_by_the_whole_after_the_reconnect() -> None:
    bench = invited()
    fetch_links(bench)
    bench.play(Offline(), after=1.0)
    before = len(bench.said(Want))
    bench.play(LinksApplied(TARGET, "nonsense"))
    assert len(bench.said(Want)) == before, "nobody would hear it"
    bench.connect()
    assert fetched_whole(bench)


@pytest.mark.parametrize("error", ["", "nonsense"])
def test_links_applied_after_the_ticket_was_given_back_change_nothing(error: str) -> None:
    bench = invited()
    fetch_links(bench)
    bench.play(SetEligible(False))
    assert bench.said(Decline)[0].reason == "not_eligible"
    assert bench.play(LinksApplied(TARGET, error)) == []
    assert bench.session.state == "idle"


def test_links_that_are_never_applied_end_at_the_deadline() -> None:
    bench = invited(report_seconds=30.0)
    fetch_links(bench)
    bench.tick()
    assert bench.said(Decline)[0].reason == "deadline" and len(bench.said(CheckIn)) == 1
