"""Who is asked, who is chosen, when the others come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.schedules.selection import (
    GATHER_BELOW,
    Candidate,
    Uniform,
    announced_fraction,
    choose,
    come_back_seconds,
    select,
    wanted_count,
)
from edge_sdk.errors import ConfigurationError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(st.integers(1, 10_000), st.floats(1.0, 5.0))
def test_a_round_invites_at_least_its_goal(goal_count: int, over_selection: float) -> None:
    assert goal_count <= wanted_count(goal_count, over_selection) <= goal_count * over_selection + 1


def test_a_small_fleet_is_gathered_and_a_large_one_spread() -> None:
    assert announced_fraction(GATHER_BELOW, 10, None, 0) == 1.0
    assert announced_fraction(0, 10, None, 0) == 1.0, "nobody knows how many there are"
    assert announced_fraction(10_000, 50, None, 0) == pytest.approx(0.01)


def test_after_an_abandoned_round_twice_as_many_are_asked_up_to_all() -> None:
    shares = [announced_fraction(10_000, 50, None, attempt) for attempt in range(12)]
    assert shares[1] == 2 * shares[0] and shares[-1] == 1.0


def test_a_configured_share_is_taken_as_it_is() -> None:
    assert announced_fraction(10_000, 50, 0.3, 5) == 0.3


def test_the_choice_is_a_partition_and_does_not_depend_on_the_order_of_arrival() -> None:
    names = [f"d{i}" for i in range(30)]
    chosen, reserves = choose(names, 8, rng())
    assert sorted(chosen + reserves) == sorted(names) and len(chosen) == 8
    assert choose(names[::-1], 8, rng()) == (chosen, reserves)


def test_one_candidate_more_or_less_changes_at_most_one_of_those_chosen() -> None:
    names = [f"d{i}" for i in range(30)]
    chosen = set(choose(names, 8, rng())[0])
    for missing in names:
        fewer = set(choose([name for name in names if name != missing], 8, rng())[0])
        assert len(chosen - fewer) == (missing in chosen)
    assert set(choose(names, 8, rng(1))[0]) != chosen, "another seed, another choice"


def test_after_thousands_of_attempts_the_share_is_still_a_number() -> None:
    assert announced_fraction(10_000, 50, None, 5000) == 1.0


def test_everybody_is_chosen_equally_often() -> None:
    names = [f"d{i}" for i in range(10)]
    counts: Counter[str] = Counter()
    draw = rng(5)
    for _ in range(3000):
        counts.update(choose(names, 3, draw)[0])
    assert all(800 < counts[name] < 1000 for name in names)


def test_fewer_candidates_than_wanted_are_all_chosen() -> None:
    assert choose(["b", "a"], 5, rng())[1] == []


def test_those_who_were_turned_away_do_not_come_back_together() -> None:
    times = [come_back_seconds(100.0, 0.2, rng(seed)) for seed in range(200)]
    assert min(times) >= 80.0 and max(times) <= 120.0 and np.std(times) > 8.0
    assert come_back_seconds(100.0, 0.0, rng()) == 100.0


class Own:
    """Gives what it is told to give."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def choose(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> Sequence[str]:
        assert [c.device for c in candidates] == sorted(c.device for c in candidates)
        return self.names


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(name) for name in names]


def test_a_rule_of_ones_own_chooses_and_the_others_are_reserves() -> None:
    chosen, reserves = select(Own("c", "a"), candidates("d", "c", "b", "a"), 2, rng())
    assert chosen == ["c", "a"] and sorted(reserves) == ["b", "d"]
    assert select(Own("b"), candidates("b"), 2, rng()) == (["b"], [])


def test_the_uniform_rule_is_the_uniform_choice() -> None:
    names = [f"d{i}" for i in range(30)]
    assert select(Uniform(), candidates(*names), 8, rng()) == choose(names, 8, rng())
    assert Uniform().choose(candidates(*names), 8, rng()) == choose(names, 8, rng())[0]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a", "z"), "gives 'z', who is no candidate; it must give 2 different names out of 3 candidates"),
        (("a", "a"), "gives 2 names; it must give 2 different names"),
        (("a",), "gives 1 names"),
        (("a", "b", "c"), "gives 3 names"),
    ],
)
def test_a_rule_that_gives_others_too_many_or_too_few_is_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        select(Own(*names), candidates("a", "b", "c"), 2, rng())
