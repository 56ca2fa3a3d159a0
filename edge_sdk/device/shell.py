"""One life of a device, from start to power cut or goodbye: the agent, its connection and its timer.

The same shell runs everywhere. ``EdgeClient`` gives it a thread's clock and a paho connection, a fleet the event loop
that thousands of devices share, and the simulator virtual time, a network in memory and a power supply that may fail
(``guard``). Whatever arrives after the life has ended is ignored, as it is when a machine has lost its power.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from edge_sdk.device.agent import Agent
from edge_sdk.device.session import Event
from edge_sdk.device.settings import AgentSettings
from edge_sdk.mqtt.events import Listener, Transport, TransportEvent

__all__ = ["DeviceShell", "Job", "TimerHandle", "Timers"]

NEVER: Final = float("inf")
T = TypeVar("T", bound=Transport)

Job = Callable[[], Event]
"""Training and saving an update, or why there is none; it may run on any thread."""


class TimerHandle(Protocol):
    """A call that was asked for."""

    def cancel(self) -> None:
        """The call is not made."""
        ...


class Timers(Protocol):
    """A monotonic clock in seconds, and calls at a time of it."""

    @property
    def clock(self) -> Callable[[], float]: ...

    def call_at(self, when: float, call: Callable[[], None]) -> TimerHandle:
        """Makes one call at ``when`` or soon after, on the thread that drives the device."""
        ...


class DeviceShell:
    """Drives one agent until the life of its device ends.

    Attributes:
        agent: The device.
        transport: Its connection.
        ended: Whether this life is over.

    Args:
        settings: What the device is.
        timers: Its clock and timer.
        connect: Makes the transport, given who listens and the topic and payload of a last will, if there is one.
        run_job: Runs a job wherever it likes, and calls the second argument with the job's event on the thread that
            drives the device.
        guard: Makes each call into the device, and catches what only the shell's owner can (a simulated power cut);
            None makes them directly.
        options: Further arguments of :class:`edge_sdk.device.agent.Agent`.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        timers: Timers,
        connect: Callable[[Listener, tuple[str, bytes] | None], Transport],
        run_job: Callable[[Job, Callable[[Event], None]], None],
        guard: Callable[[Callable[[], None]], None] | None = None,
        **options: Any,
    ) -> None:
        self.ended = False
        self._timers = timers
        self._guard = guard
        self._timer: TimerHandle | None = None
        self._timer_due = NEVER
        self.agent = Agent(settings, run_job=lambda job: run_job(job, self.deliver), **options)
        self.transport = connect(self.on_transport, self.agent.will())
        self.agent.attach(self.transport)
        self._reschedule()

    def on_transport(self, event: TransportEvent) -> None:
        """The connection reports something."""
        if not self.ended:
            if self._guard is None:
                self.agent.on_transport(event, self._timers.clock())
            else:
                self._guard(lambda: self.agent.on_transport(event, self._timers.clock()))
            self._reschedule()

    def deliver(self, event: Event) -> None:
        """A job has ended."""
        self._call(lambda: self.agent.handle(event, self._timers.clock()))

    def stop(self) -> None:
        """The device leaves politely; go on driving it until it is disconnected."""
        self._call(lambda: self.agent.stop(self._timers.clock()))

    def end(self) -> None:
        """This life is over: no timer is left, and nothing that comes later is heard."""
        self.ended = True
        self._disarm()

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, NEVER
        self._call(lambda: self.agent.tick(self._timers.clock()))

    def _call(self, call: Callable[[], None]) -> None:
        if self.ended:
            return
        if self._guard is None:
            call()
        else:
            self._guard(call)
        self._reschedule()

    def _reschedule(self) -> None:
        """A timer that is early costs one look; so it is only replaced when it would be late."""
        due = None if self.ended else self.agent.next_deadline()
        if due is None or due >= self._timer_due:
            return
        self._disarm()
        self._timer_due = due
        self._timer = self._timers.call_at(due, self._on_timer)

    def _disarm(self) -> None:
        timer, self._timer, self._timer_due = self._timer, None, NEVER
        if timer is not None:
            timer.cancel()
