"""A selection rule of one's own decides who takes part, with the coordinator and the devices that ship."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from coordinator.schedules.selection import Candidate
from device_sim.profiles import FleetProfile
from device_sim.scenario import FAULTY, Outcome, Scenario, run
from edge_sdk.errors import ConfigurationError


class LeastCounted:
    """Those who have counted least often, by name."""

    def choose(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> list[str]:
        assert all(candidate.capabilities for candidate in candidates), "a check-in says what a device can do"
        return [c.device for c in sorted(candidates, key=lambda c: (c.counted, c.device))[:count]]


class Fails:
    """Divides by zero."""

    def choose(self, candidates: Sequence[Candidate], count: int, rng: np.random.Generator) -> list[str]:
        raise ZeroDivisionError


def played(rule: str, seed: int = 5, **settings: object) -> Outcome:
    steady = FleetProfile(dropout=0.0, slow_share=0.0, slowness_spread=0.0)
    scenario = Scenario(
        **{"devices": 12, "rounds": 6, "goal_count": 4, "profile": steady, "rule": rule, **settings}  # type: ignore[arg-type]
    )
    return run(scenario, seed)


def spread(outcome: Outcome) -> int:
    """Between those who counted most and least often."""
    counts = Counter(name for cohort in outcome.cohorts for name in cohort)
    return max(counts.values()) - min(counts[f"device-{number:05d}"] for number in range(12))


def test_a_rule_sees_how_often_each_has_counted() -> None:
    fair, uniform = (spread(played(rule, rounds=12)) for rule in (f"{__name__}:LeastCounted", "uniform"))
    assert 2 * fair < uniform, (fair, uniform)


def test_the_invariants_hold_under_a_rule_and_faults() -> None:
    outcome = played(f"{__name__}:LeastCounted", seed=6, faults=FAULTY, coordinator_crashes_per_hour=4.0)
    assert len(outcome.rounds) == 6


def test_a_rule_that_fails_ends_no_round(caplog: pytest.LogCaptureFixture) -> None:
    assert played(f"{__name__}:Fails").trace == played("uniform").trace
    assert "Fails.choose fails with ZeroDivisionError" in caplog.text and "chosen uniformly" in caplog.text


def test_a_rule_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"selection\.rule: 'nowhere:Rule': there is no module"):
        played("nowhere:Rule")
