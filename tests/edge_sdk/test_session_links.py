"""The session on its way from parameters that it holds to those of the round; whatever fails, they come whole."""

from __future__ import annotations

import pytest
from test_session import BASE, BLOBS, LINKS, PARAMETERS, PROGRAM, TOPICS, Bench, digest, of, serve

from edge_sdk.device.session import (
    MessageArrived,
    Notify,
    Offline,
    SetEligible,
    StartTraining,
    Subscribe,
    Tick,
    Unsubscribe,
)
from edge_sdk.wire.messages import BlobGone, CheckIn, Decline, Invite, RangeRequest, short

TARGET = digest(PARAMETERS)
NAMED = tuple((digest(model_delta), len(model_delta)) for model_delta in LINKS)


def followed(bench: Bench, **changes: object) -> Invite:
    return bench.invite(**{"base": short(BASE), "deltas": NAMED, **changes})


def invited(**changes: object) -> Bench:
    """Holds the base and the program, and is invited with two deltas."""
    bench = Bench(cached=[PROGRAM], holds=(BASE,))
    bench.check_in()
    bench.hear(followed(bench, **changes))
    return bench


def fetch_links(bench: Bench) -> None:
    for _ in LINKS:
        want = bench.said(RangeRequest)[-1]
        serve(bench, want, BLOBS[want.digest])
    assert len(bench.blobs.made) == 1


def fetched_whole(bench: Bench) -> bool:
    """Whether the parameters are asked for as a whole, and training follows."""
    want = bench.said(RangeRequest)[-1]
    if want.digest != short(TARGET) or bench.session.state != "fetching":
        return False
    while bench.session.state == "fetching":
        serve(bench, bench.said(RangeRequest)[-1], PARAMETERS)
    return of(bench.actions, StartTraining)[-1].parameters == TARGET


def test_a_check_in_names_what_is_held_the_first_two() -> None:
    held = tuple(bytes([number]) * 32 for number in range(6))
    assert Bench(holds=held).check_in().holds == tuple(map(short, held[:2]))
    assert Bench().check_in().holds == ()


def test_links_are_fetched_in_order_and_applied_instead_of_the_whole() -> None:
    bench = invited()
    fetch_links(bench)
    assert [want.digest for want in bench.said(RangeRequest)] == [short(digest(model_delta)) for model_delta in LINKS]
    assert bench.blobs.made == [(BASE, list(LINKS), TARGET)]
    assert not bench.blobs.kept
    assert of(bench.actions, StartTraining)[-1].parameters == TARGET


def test_links_that_come_with_the_invite_are_applied_and_nothing_is_asked_for() -> None:
    bench = invited(deltas=(), inline=LINKS)
    assert bench.blobs.made == [(BASE, list(LINKS), TARGET)] and not bench.said(RangeRequest)
    assert of(bench.actions, StartTraining)[-1].parameters == TARGET


@pytest.mark.parametrize("changes", [{}, {"base": b"other   "}], ids=["wrong", "from another base"])
def test_links_of_an_invite_that_lead_nowhere_are_followed_by_the_whole(changes: dict[str, object]) -> None:
    bench = Bench(cached=[PROGRAM], holds=(BASE,))
    bench.blobs.error = "the digest is another one"
    bench.check_in()
    bench.hear(followed(bench, deltas=(), inline=LINKS, blob_bytes=512, **changes))
    assert of(bench.actions, Notify)[-1].what == "deltas_failed"
    assert fetched_whole(bench) and not bench.said(Decline)


def test_links_come_from_the_retained_cache_too() -> None:
    bench = invited(blob_bytes=1 << 14)
    for model_delta in LINKS:
        topic = TOPICS.blob(digest(model_delta), 0)
        assert of(bench.actions, Subscribe)[-1].filters == (topic,)
        bench.play(MessageArrived(topic, model_delta))
        assert of(bench.actions, Unsubscribe)[-1].filters == (topic,)
    assert bench.session.state == "training" and not bench.said(RangeRequest)


def test_a_newcomers_program_is_fetched_before_its_links() -> None:
    bench = Bench(holds=(BASE,))
    bench.check_in()
    bench.hear(followed(bench))
    while (want := bench.said(RangeRequest)[-1]).digest == short(digest(PROGRAM)):
        serve(bench, want, PROGRAM)
    fetch_links(bench)


def test_links_that_could_not_be_applied_are_followed_by_the_whole() -> None:
    bench = invited()
    bench.blobs.error = "the digest is another one"
    fetch_links(bench)
    assert of(bench.actions, Notify)[-1].what == "deltas_failed"
    assert fetched_whole(bench) and not bench.said(Decline)


def test_the_whole_is_asked_for_where_only_the_links_were_promised_to_be_retained() -> None:
    bench = invited(blob_bytes=1 << 14)
    bench.hear(BlobGone(digest=short(NAMED[0][0])))
    assert of(bench.actions, Unsubscribe)[-1].filters == (TOPICS.blob(NAMED[0][0], 0),)
    assert fetched_whole(bench)


@pytest.mark.parametrize("after", [0, 1])
def test_a_link_that_is_gone_is_followed_by_the_whole(after: int) -> None:
    bench = invited()
    for model_delta in LINKS[:after]:
        serve(bench, bench.said(RangeRequest)[-1], model_delta)
    bench.hear(BlobGone(digest=short(NAMED[after][0])))
    assert fetched_whole(bench)


def test_a_link_with_another_digest_is_followed_by_the_whole_at_once() -> None:
    bench = invited()
    serve(bench, bench.said(RangeRequest)[-1], b"x" * len(LINKS[0]))
    assert "bad_digest" in [notice.what for notice in of(bench.actions, Notify)]
    assert fetched_whole(bench)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": b"other   "},
        {"base": b""},
        {"deltas": ()},
        {"deltas": (NAMED[0], NAMED[0])},
        {"deltas": (NAMED[0], (NAMED[1][0], len(PARAMETERS)))},
    ],
    ids=["another base", "no base", "no deltas", "a model delta twice", "more than the whole"],
)
def test_links_that_cannot_be_of_use_are_not_fetched(changes: dict[str, object]) -> None:
    bench = invited(**changes)
    assert fetched_whole(bench)
    assert {want.digest for want in bench.said(RangeRequest)} == {short(TARGET)}


def test_parameters_that_are_here_already_need_no_links() -> None:
    bench = Bench(cached=[PROGRAM, PARAMETERS], holds=(BASE, TARGET))
    bench.check_in()
    bench.hear(followed(bench))
    assert bench.session.state == "training" and not bench.said(RangeRequest)


def test_after_a_reconnect_the_links_that_have_come_are_not_fetched_again() -> None:
    bench = invited()
    serve(bench, bench.said(RangeRequest)[-1], LINKS[0])
    bench.play(Offline(), after=1.0)
    bench.connect()
    assert [want.digest for want in bench.said(RangeRequest)] == [short(NAMED[i][0]) for i in (0, 1, 1)]
    serve(bench, bench.said(RangeRequest)[-1], LINKS[1])
    assert bench.blobs.made == [(BASE, list(LINKS), TARGET)] and bench.session.state == "training"


def test_the_whole_after_links_that_failed_is_fetched_through_a_cut() -> None:
    bench = invited()
    bench.blobs.error = "nonsense"
    fetch_links(bench)
    bench.play(Offline(), after=1.0)
    before = len(bench.said(RangeRequest))
    bench.play(Tick(), after=1.0)
    assert len(bench.said(RangeRequest)) == before, "nobody would hear it"
    bench.connect()
    assert fetched_whole(bench)


def test_links_are_not_followed_after_the_ticket_was_given_back() -> None:
    bench = invited()
    want = bench.said(RangeRequest)[-1]
    serve(bench, want, BLOBS[want.digest])
    bench.play(SetEligible(False))
    assert bench.said(Decline)[0].reason == "not_eligible"
    want = bench.said(RangeRequest)[-1]
    serve(bench, want, BLOBS[want.digest])
    assert bench.session.state == "idle" and not bench.blobs.made


def test_links_that_never_come_end_at_the_deadline() -> None:
    bench = invited(report_seconds=30.0)
    while bench.session.state == "fetching":
        bench.tick()
    assert bench.said(Decline)[0].reason == "deadline" and len(bench.said(CheckIn)) == 1
