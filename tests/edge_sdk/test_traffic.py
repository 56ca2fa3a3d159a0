"""The count of bytes sent and received today: over restarts, power cuts and clocks that jump."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edge_sdk.device.daily_traffic import DAY_PLAUSIBLE, DailyTraffic
from edge_sdk.device.files import BytesLike, MemoryFiles

TODAY = DAY_PLAUSIBLE + 700
HOUR = 3600.0


class CountingFiles(MemoryFiles):
    writes = 0

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self.writes += 1
        super().write(name, parts)


class Clock:
    """A wall clock that can be set."""

    def __init__(self, day: int = TODAY) -> None:
        self.day = day

    def __call__(self) -> int:
        return self.day


def test_the_smaller_limit_is_in_force_and_none_is_none() -> None:
    traffic = DailyTraffic(MemoryFiles(), Clock(), 0)
    assert traffic.bytes_max == 0
    traffic.ask(500)
    assert traffic.bytes_max == 500
    own = DailyTraffic(MemoryFiles(), Clock(), 300)
    assert own.bytes_max == 300
    own.ask(500)
    assert own.bytes_max == 300
    own.ask(200)
    assert own.bytes_max == 200


@pytest.mark.parametrize("limit", [0, 20_000, 10_000_000])
def test_a_power_cut_never_forgets_and_takes_little_too_much_for_spent(limit: int) -> None:
    rng, files, clock = np.random.default_rng(0), MemoryFiles(), Clock()
    traffic, real, cuts = DailyTraffic(files, clock, limit), 0, 0
    for number in range(2000):
        size = int(rng.integers(1, 400))
        traffic.count(size, float(number))
        real += size
        if rng.random() < 0.005:
            traffic, cuts = DailyTraffic(files, clock, limit), cuts + 1
        assert traffic.bytes_today >= real
    step = max(limit // 64, 1024) if limit else max(64 << 10, real // 8)
    assert cuts > 5 and traffic.bytes_today <= real + cuts * step


def test_after_a_polite_end_the_count_is_exact() -> None:
    files, clock = MemoryFiles(), Clock()
    for _ in range(3):
        traffic = DailyTraffic(files, clock, 1_000_000)
        traffic.count(1111, 0.0)
        traffic.keep()
    assert DailyTraffic(files, clock, 1_000_000).bytes_today == 3333


def test_what_the_coordinator_asked_for_is_known_after_a_restart() -> None:
    files, clock = MemoryFiles(), Clock()
    traffic = DailyTraffic(files, clock)
    traffic.count(10, 0.0)
    traffic.ask(50_000)
    traffic.count(10, 1.0)
    assert DailyTraffic(files, clock).bytes_max == 50_000
    clock.day += 1
    assert DailyTraffic(files, clock).bytes_max == 50_000


@pytest.mark.parametrize("limit", [0, 100_000, 100_000_000])
def test_a_days_count_costs_few_writes(limit: int) -> None:
    files = CountingFiles()
    traffic = DailyTraffic(files, Clock(), limit)
    for number in range(20_000):
        traffic.count((limit or 100_000_000) // 20_000, float(number))
    assert files.writes <= 150


def test_a_new_day_begins_at_midnight_and_a_restart_sees_it_too() -> None:
    files, clock = MemoryFiles(), Clock()
    traffic = DailyTraffic(files, clock, 100_000)
    traffic.count(70_000, 0.0)
    assert traffic.turn(HOUR) == 0
    clock.day += 1
    assert DailyTraffic(files, clock, 100_000).bytes_today == 0
    assert traffic.turn(2 * HOUR) == 1 and traffic.bytes_today == 0
    traffic.count(5, 2 * HOUR)
    assert DailyTraffic(files, clock, 100_000).bytes_today >= 5


def test_a_board_without_a_battery_gets_no_second_budget_out_of_a_restart() -> None:
    files, clock = MemoryFiles(), Clock()
    DailyTraffic(files, clock, 100_000).count(70_000, 0.0)
    clock.day = 0  # until the network has told the time
    traffic = DailyTraffic(files, clock, 100_000)
    assert traffic.bytes_today >= 70_000
    traffic.count(1, 10.0)
    clock.day = TODAY
    traffic.count(1, 20.0)
    assert traffic.bytes_today >= 70_002


def test_a_clock_that_goes_back_a_day_and_forth_again_gives_no_second_budget() -> None:
    clock = Clock()
    traffic = DailyTraffic(MemoryFiles(), clock, 100_000)
    traffic.count(70_000, 0.0)
    for day in (TODAY - 1, TODAY, TODAY - 2, TODAY):
        clock.day = day
        traffic.count(1, 60.0)
    assert traffic.bytes_today == 70_004
    clock.day = TODAY + 1
    assert traffic.turn(120.0) == 1


def test_a_clock_that_was_years_ahead_does_not_end_all_days() -> None:
    clock = Clock(TODAY + 30_000)
    traffic = DailyTraffic(MemoryFiles(), clock, 100_000)
    traffic.count(70_000, 0.0)
    clock.day = TODAY
    assert traffic.turn(60.0) == 0 and traffic.bytes_today == 70_000
    clock.day = TODAY + 1
    assert traffic.turn(120.0) == 1 and traffic.bytes_today == 0


def test_without_any_clock_a_day_is_24_hours_of_running() -> None:
    traffic = DailyTraffic(MemoryFiles(), lambda: 0, 100_000)
    traffic.count(70_000, 5.0)
    traffic.count(1, 5.0 + 23.9 * HOUR)
    assert traffic.bytes_today == 70_001
    traffic.count(1, 5.0 + 24.0 * HOUR)
    assert traffic.bytes_today == 1
    traffic.count(1, 5.0 + 47.9 * HOUR)
    assert traffic.bytes_today == 2


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"EFst" + bytes(60), bytes(10_000)])
def test_a_damaged_count_is_taken_as_absent(damage: bytes) -> None:
    files = MemoryFiles()
    files.write("traffic", [damage])
    traffic = DailyTraffic(files, Clock(), 100_000)
    traffic.count(5, 0.0)
    assert traffic.bytes_today == 5
