"""The virtual clock: order, cancelling, limits."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.world.clock import Handle, VirtualClock

TIMES = st.lists(st.integers(0, 20), max_size=60)


@given(TIMES)
def test_events_run_by_time_and_equal_times_first_come_first_served(times: list[int]) -> None:
    clock = VirtualClock()
    seen: list[tuple[float, int]] = []
    for position, time in enumerate(times):
        schedule = clock.post_at if position % 3 == 0 else clock.call_at
        schedule(time, lambda t, p: seen.append((t, p)), time, position)
    assert clock.run() == len(times)
    assert seen == sorted((time, position) for position, time in enumerate(times))
    assert clock.now == max(times, default=0)


@given(TIMES, st.sets(st.integers(0, 59)), st.integers(0, 25))
def test_cancelled_events_never_run_and_the_others_all_do(times: list[int], cancelled: set[int], until: int) -> None:
    clock = VirtualClock()
    seen: list[int] = []
    handles = [clock.call_at(time, seen.append, position) for position, time in enumerate(times)]
    for position in cancelled & set(range(len(times))):
        assert clock.cancel(handles[position])
        assert not clock.cancel(handles[position])
    expected = [p for _, p in sorted((t, p) for p, t in enumerate(times) if p not in cancelled and t <= until)]
    assert clock.run(until=until) == len(expected)
    assert seen == expected
    assert clock.now == until
    assert clock.pending_count == sum(t > until and p not in cancelled for p, t in enumerate(times))


def test_events_scheduled_by_events_run_in_the_same_run() -> None:
    clock = VirtualClock(start=5.0)
    seen: list[tuple[str, float]] = []

    def first() -> None:
        seen.append(("first", clock.now))
        clock.call_later(0, second, "now")
        clock.call_later(1.5, second, "later")

    def second(name: str) -> None:
        seen.append((name, clock.now))

    clock.call_at(6, first)
    clock.call_at(6, second, "sibling")
    clock.run()
    assert seen == [("first", 6.0), ("sibling", 6.0), ("now", 6.0), ("later", 7.5)]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=40))
def test_events_for_the_present_moment_keep_their_turn(plan: list[tuple[int, bool, bool]]) -> None:
    clock = VirtualClock()
    seen: list[tuple[float, int]] = []
    scheduled: list[tuple[float, int]] = []

    def step(order: int) -> None:
        seen.append((clock.now, order))
        if plan:
            delay, with_handle, cancelled = plan.pop()
            for extra in (0, delay):
                schedule(extra, with_handle, cancelled and extra == 0)

    def schedule(delay: int, with_handle: bool, cancelled: bool) -> None:
        if not with_handle:
            clock.post_at(clock.now + delay, step, len(scheduled))
        else:
            handle = clock.call_later(delay, step, len(scheduled))
            if cancelled:
                clock.cancel(handle)
                return
        scheduled.append((clock.now + delay, len(scheduled)))

    schedule(0, True, False)
    clock.run()
    assert seen == sorted(scheduled)
    assert clock.pending_count == 0
    assert clock.next_time is None


def test_a_cancelled_event_lets_go_of_its_callback_and_the_heap_stays_small() -> None:
    class Payload:
        pass

    clock = VirtualClock()
    payload = Payload()
    watch = weakref.ref(payload)
    handle = clock.call_at(1e6, print, payload)
    del payload
    clock.cancel(handle)
    gc.collect()
    assert watch() is None
    keep = clock.call_at(2e6, print)
    for i in range(10_000):
        clock.cancel(clock.call_later(1000 + i, print))
    assert clock.pending_count == 1
    assert len(clock._heap) < 200
    assert keep.pending


def test_cancelling_from_inside_an_event_while_the_heap_is_swept() -> None:
    clock = VirtualClock()
    seen: list[int] = []
    handles: list[Handle] = []

    def cancel_most() -> None:
        for position, handle in enumerate(handles):
            if position % 10:
                clock.cancel(handle)

    clock.call_at(0, cancel_most)
    handles += [clock.call_at(1 + i, seen.append, i) for i in range(1000)]
    clock.run()
    assert seen == list(range(0, 1000, 10))
    assert clock.pending_count == 0


def test_a_cancelled_event_does_not_move_the_clock() -> None:
    clock = VirtualClock()
    clock.call_at(1, int)
    clock.cancel(clock.call_at(9, int))
    assert clock.run() == 1
    assert clock.now == 1


def test_next_time_skips_cancelled_events() -> None:
    clock = VirtualClock()
    assert clock.next_time is None
    early = clock.call_at(1, print)
    clock.call_at(2, print)
    assert clock.next_time == 1
    clock.cancel(early)
    assert clock.next_time == 2


def test_events_max_stops_at_the_last_event_and_a_later_run_continues() -> None:
    clock = VirtualClock()
    seen: list[int] = []
    for i in range(5):
        clock.call_at(i, seen.append, i)
    assert clock.run(until=100, events_max=3) == 3
    assert (clock.now, seen) == (2, [0, 1, 2])
    assert clock.run(until=100) == 2
    assert (clock.now, seen) == (100, [0, 1, 2, 3, 4])


def test_an_exception_passes_through_and_the_rest_stays_scheduled() -> None:
    clock = VirtualClock()
    seen: list[int] = []
    clock.call_at(1, lambda: 1 / 0)
    clock.call_at(2, seen.append, 2)
    with pytest.raises(ZeroDivisionError):
        clock.run()
    assert clock.now == 1
    assert clock.run() == 1
    assert seen == [2]


@pytest.mark.parametrize("time", [4.999, math.nan, math.inf, -math.inf])
def test_a_time_in_the_past_or_not_finite_is_refused(time: float) -> None:
    clock = VirtualClock(start=5.0)
    with pytest.raises(ValueError, match="must be finite and not before"):
        clock.call_at(time, print)
    with pytest.raises(ValueError, match="must be finite and not before"):
        clock.post_at(time, print)
    with pytest.raises(ValueError, match="start="):
        VirtualClock(start=math.inf)
    with pytest.raises(ValueError, match="until="):
        clock.run(until=4.0)


def test_run_does_not_nest() -> None:
    clock = VirtualClock()
    clock.call_at(1, clock.run)
    with pytest.raises(RuntimeError, match="inside an event"):
        clock.run()
