"""One coordinator for each task: who serves, who steps back, and what is left behind by those who are gone."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.events import Effect, Publish, SteppedBack
from coordinator.presence import ANSWER_SECONDS, PAUSE_SECONDS_MAX, Presence
from edge_sdk.errors import DecodeError
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.topics import Topics

TOPICS = Topics("garden")
OURS, SMALLER, LARGER = b"\x50" * 8, b"\x10" * 8, b"\x90" * 8


class Bench:
    """One presence; its own words come back to it, as from a broker."""

    def __init__(self, *tasks: str, lineage: bytes = OURS, incarnation: int = 3) -> None:
        rng = np.random.Generator(np.random.PCG64(0))
        self.presence = Presence("garden", tasks or ("pumps",), lineage, incarnation, b"session!", rng)
        self.now = 0.0
        self.said: list[Effect] = []

    def take(self, effects: list[Effect]) -> list[Effect]:
        self.said += effects
        return effects

    def connect(self, *, echo: bool = True) -> None:
        (claim,) = self.take(self.presence.on_up(self.now))
        if echo:
            self.echo(claim)

    def echo(self, claim: Effect) -> list[Effect]:
        assert isinstance(claim, Publish)
        return self.take(self.presence.on_claim(self.presence._lineage.hex(), claim.payload, self.now))

    def hears(
        self,
        lineage: bytes,
        *tasks: str,
        online: bool = True,
        retained: bool = False,
        incarnation: int = 1,
        claim: bool = False,
        session: bytes = b"another!",
    ) -> list[Effect]:
        state = CoordinatorState(lineage, incarnation, online, tasks or ("pumps",), session).encode("garden")
        if claim:
            return self.take(self.presence.on_claim(lineage.hex(), state, self.now))
        return self.take(self.presence.on_state(lineage.hex(), state, self.now, retained=retained))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.take(self.presence.tick(self.now))


def test_where_nobody_else_is_it_serves_as_soon_as_its_claim_comes_back() -> None:
    bench = Bench()
    bench.connect()
    assert bench.presence.serving and bench.presence.due is None and bench.presence.reason == ""
    state = bench.said[-1]
    assert isinstance(state, Publish) and state.retain and state.topic == TOPICS.lineage_state(OURS)
    assert CoordinatorState.decode(state.payload, OURS.hex()).online


def test_a_claim_that_never_comes_back_delays_and_no_more() -> None:
    bench = Bench()
    bench.connect(echo=False)
    assert not bench.presence.serving
    bench.wait(ANSWER_SECONDS)
    assert bench.presence.serving


def test_coordinators_of_other_tasks_do_not_matter() -> None:
    bench = Bench("pumps")
    bench.connect(echo=False)
    bench.hears(SMALLER, "fans", retained=True)
    bench.echo(bench.said[0])
    assert bench.presence.serving
    assert bench.hears(SMALLER, "fans") == [] and bench.hears(SMALLER, "fans", claim=True) == []


def test_a_leftover_state_that_nobody_answers_for_is_cleared() -> None:
    bench = Bench()
    bench.connect(echo=False)
    bench.hears(LARGER, retained=True)
    bench.echo(bench.said[0])
    assert bench.presence.state == "asking"
    cleared, state = bench.wait(ANSWER_SECONDS)
    assert isinstance(cleared, Publish) and (cleared.topic, cleared.payload) == (TOPICS.lineage_state(LARGER), b"")
    assert isinstance(state, Publish) and state.retain and bench.presence.serving


@pytest.mark.parametrize("answered", ["before the claim is back", "after"])
def test_a_living_coordinator_is_left_alone(answered: str) -> None:
    bench = Bench()
    bench.connect(echo=False)
    bench.hears(LARGER, retained=True)
    if answered == "after":
        bench.echo(bench.said[0])
    (back,) = bench.hears(LARGER)
    assert isinstance(back, SteppedBack) and "another coordinator serves task pumps" in back.reason
    assert "database 9090909090909090, start 1" in back.reason and not bench.presence.entitled
    assert not any(isinstance(effect, Publish) and effect.retain for effect in bench.said), (
        "nothing was said to devices"
    )


def test_pauses_grow_and_the_others_last_will_ends_them() -> None:
    bench = Bench()
    bench.connect(echo=False)
    pauses = []
    for _ in range(9):
        (back,) = bench.hears(LARGER)
        assert isinstance(back, SteppedBack)
        pauses.append(back.seconds)
        (claim,) = bench.wait(back.seconds)
    assert pauses == sorted(pauses) or max(pauses) <= 1.2 * PAUSE_SECONDS_MAX
    assert pauses[0] < 6.0 and 200.0 < pauses[-1] <= 1.2 * PAUSE_SECONDS_MAX
    bench.hears(LARGER)
    (claim,) = bench.hears(LARGER, online=False)
    bench.echo(claim)
    assert bench.presence.serving


def test_whoever_serves_answers_a_claim_and_goes_on() -> None:
    bench = Bench()
    bench.connect()
    (answer,) = bench.hears(SMALLER, claim=True)
    assert isinstance(answer, Publish) and answer.retain and bench.presence.serving


def test_of_two_that_serve_the_smaller_lineage_goes_on() -> None:
    bench = Bench()
    bench.connect()
    (answer,) = bench.hears(LARGER)
    assert isinstance(answer, Publish) and bench.presence.serving
    back, offline = bench.hears(SMALLER)
    assert isinstance(back, SteppedBack) and isinstance(offline, Publish) and offline.retain
    assert not CoordinatorState.decode(offline.payload, OURS.hex()).online


def test_an_earlier_start_on_the_same_database_is_gone_and_its_late_will_is_contradicted() -> None:
    bench = Bench(incarnation=3)
    bench.connect(echo=False)
    bench.hears(OURS, incarnation=2, retained=True)
    bench.echo(bench.said[0])
    assert bench.presence.serving
    (answer,) = bench.hears(OURS, incarnation=2, online=False)
    assert isinstance(answer, Publish) and CoordinatorState.decode(answer.payload, OURS.hex()).online
    (answer,) = bench.hears(OURS, incarnation=3, online=False, session=b"session!")
    assert isinstance(answer, Publish), "the will of its own former connection"
    assert bench.hears(OURS, incarnation=3, session=b"session!") == []


def test_a_newer_start_of_a_copy_of_the_database_takes_over() -> None:
    bench = Bench(incarnation=3)
    bench.connect()
    (back,) = bench.hears(OURS, incarnation=4)
    assert isinstance(back, SteppedBack), "and the topic, which is the other one's too, is left alone"


def test_a_cut_connection_means_asking_again() -> None:
    bench = Bench()
    bench.connect()
    bench.presence.on_down(deaf=True)
    assert not bench.presence.serving and bench.presence.entitled and bench.presence.due is None
    bench.connect()
    assert bench.presence.serving


def test_what_was_heard_before_the_second_connection_was_there_is_heeded() -> None:
    bench = Bench()
    bench.hears(LARGER, retained=True)
    bench.connect()
    assert not bench.presence.serving, "its claim comes back before the other one can answer"
    (back,) = bench.hears(LARGER)
    assert isinstance(back, SteppedBack)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_cut_forgets_others_only_where_they_will_be_heard_again(deaf: bool) -> None:
    bench = Bench()
    bench.hears(LARGER, retained=True)
    bench.presence.on_down(deaf=deaf)
    bench.connect()
    assert bench.presence.serving is deaf


@pytest.mark.parametrize("payload", [b"x", b"[]", b"{}", b'{"incarnation": 1e999}', b"[" * 10_000, bytes(30_000)])
def test_what_makes_no_sense_is_refused(payload: bytes) -> None:
    bench = Bench()
    bench.connect()
    with pytest.raises(DecodeError):
        bench.presence.on_claim(SMALLER.hex(), payload, 0.0)
    with pytest.raises(DecodeError):
        bench.presence.on_state(SMALLER.hex(), payload, 0.0, retained=False)
    assert bench.presence.on_state(SMALLER.hex(), b"", 0.0, retained=False) == []
