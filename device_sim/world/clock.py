"""Virtual time: a clock, and the events that move it.

Nothing here waits. ``run`` takes the earliest event off a heap, sets the clock to the event's time and calls it; what
the call schedules goes onto the same heap. Events of equal time run in the order in which they were scheduled, so a
program that draws its randomness from one seeded generator does exactly the same thing at every run.

An event for the present moment skips the heap: whatever the heap holds for that moment was scheduled before it.

A cancelled event lets go of its callback at once. Its place on the heap is swept together with others once they
outnumber the living ones, so cancelling costs O(log n) on average and the heap stays within twice the living events.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

__all__ = ["Handle", "VirtualClock"]

SWEEP_ENTRIES_MIN: Final = 64  # below this many cancelled entries a sweep costs more than it frees


class Handle:
    """One scheduled call: the token that ``cancel`` wants back.

    Attributes:
        time: Virtual time of the call in seconds.
    """

    __slots__ = ("_args", "_fn", "time")

    def __init__(self, time: float, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.time = time
        self._fn: Callable[..., object] | None = fn
        self._args = args

    @property
    def pending(self) -> bool:
        """Whether the call is still to come (neither run nor cancelled)."""
        return self._fn is not None

    def __repr__(self) -> str:
        return f"Handle(time={self.time!r}, pending={self.pending})"


class VirtualClock:
    """The clock of a simulation and its queue of future calls.

    Args:
        start: Virtual time at the beginning, in seconds.

    Attributes:
        now: The current virtual time in seconds; only ``run`` changes it.
    """

    # ``now`` is no property because it is read several times for each simulated packet.
    __slots__ = ("_cancelled", "_heap", "_ready", "_running", "_sequence", "now")

    def __init__(self, start: float = 0.0) -> None:
        if not math.isfinite(start):
            raise ValueError(f"start={start!r} is not a finite number of seconds")
        self.now = start
        # (time, sequence, callback, its arguments), or (time, sequence, None, handle) for a call that can be cancelled.
        self._heap: list[tuple[float, int, Callable[..., object] | None, Any]] = []
        # (callback, its arguments) or (None, handle): due now, after what the heap has for now.
        self._ready: deque[tuple[Callable[..., object] | None, Any]] = deque()
        self._sequence = 0
        self._cancelled = 0
        self._running = False

    @property
    def pending_count(self) -> int:
        """Number of calls that are still to come."""
        return len(self._ready) + len(self._heap) - self._cancelled

    @property
    def next_time(self) -> float | None:
        """Virtual time of the next call in seconds, or None when nothing is scheduled."""
        while self._heap and _is_cancelled(self._heap[0]):
            heappop(self._heap)
            self._cancelled -= 1
        if any(not _is_cancelled(entry) for entry in self._ready):
            return self.now
        return self._heap[0][0] if self._heap else None

    def call_at(self, time: float, fn: Callable[..., object], *args: Any) -> Handle:
        """Schedule ``fn(*args)`` at a virtual time.

        Args:
            time: Seconds on this clock, not before ``now``.

        Raises:
            ValueError: ``time`` lies in the past or is not finite.
        """
        if not self.now <= time < math.inf:
            raise ValueError(f"time={time!r} must be finite and not before now={self.now!r}")
        handle = Handle(time, fn, args)
        if time == self.now:
            self._ready.append((None, handle))
        else:
            heappush(self._heap, (time, self._sequence, None, handle))
            self._sequence += 1
        return handle

    def post_at(self, time: float, fn: Callable[..., object], *args: Any) -> None:
        """Like :meth:`call_at` for a call that is never cancelled: no handle, half the cost.

        Raises:
            ValueError: ``time`` lies in the past or is not finite.
        """
        if time == self.now:
            self._ready.append((fn, args))
            return
        if not self.now <= time < math.inf:
            raise ValueError(f"time={time!r} must be finite and not before now={self.now!r}")
        heappush(self._heap, (time, self._sequence, fn, args))
        self._sequence += 1

    def call_later(self, delay_seconds: float, fn: Callable[..., object], *args: Any) -> Handle:
        """Schedule ``fn(*args)`` after a delay in seconds (0 = after everything already scheduled for now).

        Raises:
            ValueError: The delay is negative or not finite.
        """
        return self.call_at(self.now + delay_seconds, fn, *args)

    def cancel(self, handle: Handle) -> bool:
        """Take back a call; returns whether it was still to come (False after it ran or was cancelled)."""
        if handle._fn is None:
            return False
        handle._fn = None
        handle._args = ()
        self._cancelled += 1
        if self._cancelled > SWEEP_ENTRIES_MIN and 2 * self._cancelled > len(self._heap):
            # In place: a running loop holds a reference to this very list.
            self._heap[:] = [entry for entry in self._heap if not _is_cancelled(entry)]
            heapify(self._heap)
            self._cancelled = sum(map(_is_cancelled, self._ready))
        return True

    def run(self, until: float | None = None, events_max: int | None = None) -> int:
        """Run events in order until none is left, the time is up, or enough of them ran.

        An exception from a callback passes through; its event counts as run and the rest stay scheduled.

        Args:
            until: Last virtual time in seconds, inclusive. When the run ends because nothing more is due by then, the
                clock is set to it.
            events_max: Number of events after which to stop, with the clock at the last one; None for no limit.

        Returns:
            The number of events that ran.

        Raises:
            ValueError: ``until`` lies in the past or is not a number.
            RuntimeError: ``run`` was called from inside one of its own events.
        """
        if until is not None and not until >= self.now:
            raise ValueError(f"until={until!r} lies before now={self.now!r}")
        if self._running:
            raise RuntimeError("run() was called from inside an event; schedule a call instead")
        self._running = True
        try:
            return self._run(math.inf if until is None else until, math.inf if events_max is None else events_max)
        finally:
            self._running = False

    def _run(self, until: float, events_max: float) -> int:
        heap, ready = self._heap, self._ready
        count = 0
        while count < events_max:
            time = self.now
            if ready and not (heap and heap[0][0] <= time):
                fn, args = ready.popleft()
            elif heap and heap[0][0] <= until:
                time, _, fn, args = heappop(heap)
            else:
                if until < math.inf:
                    self.now = until
                break
            if fn is None:
                handle: Handle = args
                fn, args = handle._fn, handle._args
                if fn is None:
                    self._cancelled -= 1
                    continue
                handle._fn, handle._args = None, ()
            self.now = time
            count += 1
            fn(*args)
        return count


def _is_cancelled(entry: tuple[Any, ...]) -> bool:
    """Whether an entry, which ends in (callback, arguments) or (None, handle), has been taken back."""
    return entry[-2] is None and entry[-1]._fn is None
