"""One thread's loop: sockets, timers and calls from other threads, for one transport or for thousands.

A turn is: call what is due, write what waits, sleep until a socket or a timer has news, read. Bytes that several
callbacks of a turn have queued for one connection leave together at its end. Interest in a socket is kept with epoll
and changed only when a transport says that something has changed (its ``watcher``), so that a turn costs by what
happens and not by how many connections there are; once a second every transport's ``on_timer`` is swept.

The loop owns no thread and never connects by itself; when to connect again is the session's decision, and
``Backoff`` says how long to wait.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import resource
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt.backoff import Backoff

__all__ = ["Backoff", "EventLoop", "Pollable", "TimerHandle", "raise_file_limit"]

_log = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 1.0
_CANCELLED_TIMERS_MAX: Final = 1_000
_SPARE_FILES: Final = 64


class Pollable(Protocol):
    """What the loop needs of a transport (``edge_sdk.mqtt.PahoTransport`` has it)."""

    connections: int

    @property
    def watcher(self) -> Callable[..., None] | None: ...

    @watcher.setter
    def watcher(self, watcher: Callable[..., None] | None) -> None: ...

    def fileno(self) -> int: ...

    def wants_read(self) -> bool: ...

    def wants_write(self) -> bool: ...

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...

    def on_timer(self, now: float) -> None: ...


class TimerHandle:
    """A call that was asked for; ``cancel()`` it as often as you like."""

    __slots__ = ("_loop", "call", "when")

    def __init__(self, when: float, call: Callable[[], None], loop: EventLoop) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call
        self._loop = loop

    @property
    def cancelled(self) -> bool:
        """Whether the call was made or given up."""
        return self.call is None

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._loop._timer_cancelled()


class _Interest:
    """What is registered with the selector for one transport."""

    __slots__ = ("connection", "events", "fileno")

    def __init__(self) -> None:
        self.connection = -1
        self.fileno = -1
        self.events = 0


class EventLoop:
    """Drives transports, timers and calls from other threads; everything but ``call_soon_threadsafe`` is one thread's.

    clock:  seconds on a monotonic clock; timers are in its time
    on_error:  told what a callback raised (default: it is logged with its traceback); the loop goes on
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, on_error: Callable[[Exception], None] | None = None
    ) -> None:
        self.clock = clock
        self._on_error = on_error or _log_error
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._interests: dict[Pollable, _Interest] = {}
        self._changed: dict[Pollable, None] = {}
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._timer_numbers = itertools.count()
        self._cancelled_count = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._sweep_at = clock()
        self._closed = False

    def close(self) -> None:
        """Let go of everything; the transports stay as they are."""
        for transport in list(self._interests):
            self.unregister(transport)
        self._closed = True
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Transports.

    def register(self, transport: Pollable) -> None:
        """Drive ``transport`` from now on, whether it has a socket now or later."""
        if transport not in self._interests:
            self._interests[transport] = _Interest()
            transport.watcher = self._note_change
            self._note_change(transport)

    def unregister(self, transport: Pollable) -> None:
        """Forget ``transport``; without effect when it is not registered."""
        interest = self._interests.pop(transport, None)
        if interest is not None:
            transport.watcher = None
            self._changed.pop(transport, None)
            self._forget_socket(interest)

    # Timers and calls.

    def call_at(self, when: float, call: Callable[[], None]) -> TimerHandle:
        """Have ``call`` made once, at ``when`` (seconds of ``clock``) or soon after; equal times keep their order."""
        handle = TimerHandle(when, call, self)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), handle))
        return handle

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Have ``call`` made by the loop's thread in its next turn; from any thread, or a signal handler."""
        self._calls.append(call)
        try:
            self._wake_sender.send(b"\0")
        except BlockingIOError:
            pass  # The loop has not yet read the wake-ups before; one is enough.
        except OSError:
            if not self._closed:
                raise

    # Running.

    def run_until(self, stop: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Run turns until ``stop()`` is true, asked after every turn and at least once a second.

        Returns whether it became true; False means that ``timeout_seconds`` went by.
        """
        deadline = None if timeout_seconds is None else self.clock() + timeout_seconds
        while not stop():
            remaining = _SWEEP_SECONDS if deadline is None else deadline - self.clock()
            if remaining <= 0:
                return False
            self.run_once(min(remaining, _SWEEP_SECONDS))
        return True

    def run_once(self, timeout_seconds: float | None = 0.0) -> None:
        """One turn, which sleeps for at most ``timeout_seconds`` (None: until something happens)."""
        # Whoever waits for what was just told looks before we sleep.
        sleep_seconds = 0.0 if self._follow_changes() else self._sleep_seconds(timeout_seconds)
        for key, events in self._selector.select(sleep_seconds):
            transport: Pollable | None = key.data
            if transport is None:
                self._drain_wakeups()
            elif transport in self._interests:
                if events & selectors.EVENT_READ:
                    self._guarded(transport.on_readable)
                if events & selectors.EVENT_WRITE:
                    self._guarded(transport.on_writable)
                    self._note_change(transport)
        for _ in range(len(self._calls)):
            self._guarded(self._calls.popleft())
        now = self.clock()
        self._make_due_calls(now)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_SECONDS
            for transport in list(self._interests):
                try:
                    transport.on_timer(now)
                except Exception as error:
                    self._on_error(error)
        self._follow_changes()

    # Inside.

    def _note_change(self, transport: Pollable) -> None:
        if transport in self._interests:
            self._changed[transport] = None

    def _follow_changes(self) -> bool:
        """Write and tell what waits, bring the selector up to date for the transports that have changed; if any had."""
        if not self._changed:
            return False
        changed, self._changed = self._changed, {}
        for transport in changed:
            if transport in self._interests:
                self._guarded(transport.on_writable)
        # Old sockets go before new ones come: the system hands out a closed one's number again at once.
        registered = [(transport, self._interests[transport]) for transport in changed if transport in self._interests]
        for transport, interest in registered:
            if interest.fileno != transport.fileno() or interest.connection != transport.connections:
                self._forget_socket(interest)
        for transport, interest in registered:
            self._watch_socket(transport, interest)
        return True

    def _forget_socket(self, interest: _Interest) -> None:
        if interest.fileno >= 0:
            self._selector.unregister(interest.fileno)
            interest.fileno, interest.events = -1, 0

    def _watch_socket(self, transport: Pollable, interest: _Interest) -> None:
        fileno = transport.fileno()
        if fileno < 0:
            return
        events = selectors.EVENT_READ if transport.wants_read() else 0
        if transport.wants_write():
            events |= selectors.EVENT_WRITE
        if not events:
            self._forget_socket(interest)
            return
        if interest.fileno < 0:
            self._selector.register(fileno, events, transport)
        elif events != interest.events:
            self._selector.modify(fileno, events, transport)
        interest.fileno, interest.connection, interest.events = fileno, transport.connections, events

    def _sleep_seconds(self, timeout_seconds: float | None) -> float:
        if self._changed or self._calls:
            return 0.0
        now = self.clock()
        until = self._sweep_at
        if self._timers:
            until = min(until, self._timers[0][0])
        if timeout_seconds is not None:
            until = min(until, now + timeout_seconds)
        return max(0.0, until - now)

    def _make_due_calls(self, now: float) -> None:
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for handle in due:
            call, handle.call = handle.call, None
            if call is None:
                self._cancelled_count -= 1
            else:
                self._guarded(call)

    def _timer_cancelled(self) -> None:
        self._cancelled_count += 1
        if self._cancelled_count > max(_CANCELLED_TIMERS_MAX, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if entry[2].call is not None]
            heapq.heapify(self._timers)
            self._cancelled_count = 0

    def _drain_wakeups(self) -> None:
        try:
            while self._wake_receiver.recv(4_096):
                pass
        except BlockingIOError:
            pass

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._on_error(error)


def _log_error(error: Exception) -> None:
    _log.error("a callback of the loop failed: %r", error, exc_info=error)


def raise_file_limit(needed: int) -> None:
    """Make sure that this process may hold ``needed`` sockets and a few files more.

    Raises ConfigurationError with the command that helps when the hard limit is too low.
    """
    wanted = needed + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    new_hard = hard if hard == resource.RLIM_INFINITY or hard >= wanted else wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, new_hard))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"open files: {needed} connections need {wanted}, and the limit is {hard}; run `ulimit -n {wanted}` as root"
            f" in the shell that starts this, or set LimitNOFILE={wanted} in the systemd unit"
        ) from None
