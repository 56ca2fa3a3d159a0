"""The device without threads and clocks: session, blobs, jobs, quota and words for people, joined around a transport.

A shell drives it (``edge_sdk.device.shell``): ``EdgeClient`` with threads, a fleet with thousands on one event loop,
the simulator in virtual time. The shell hands in transport events and ticks with a monotonic ``now``, and runs its
jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from edge_sdk import __version__
from edge_sdk.device.blobs import BlobMemory, DeviceBlobs
from edge_sdk.device.data_quota import DataQuota
from edge_sdk.device.diagnostics import Diagnostics
from edge_sdk.device.jobs import Jobs
from edge_sdk.device.outgoing import Outgoing
from edge_sdk.device.progress import Progress, ProgressKind, Status
from edge_sdk.device.reconnect import Reconnect
from edge_sdk.device.resting import Resting
from edge_sdk.device.session import (
    Action,
    CancelTraining,
    CheckExamples,
    Event,
    ExamplesFit,
    Leave,
    MarkReceived,
    MessageArrived,
    Notify,
    Offline,
    Online,
    Send,
    Session,
    SessionSettings,
    SetQuotaExhausted,
    Settle,
    StartTraining,
    Stop,
    Subscribe,
    Tick,
    TrainingFailed,
    TrainingFinished,
    Unsubscribe,
)
from edge_sdk.device.session import Published as SentPublished
from edge_sdk.device.settings import AgentSettings, supported
from edge_sdk.device.state import DeviceState
from edge_sdk.device.status import OFFLINE, Reporter
from edge_sdk.device.training_job import Work
from edge_sdk.device.willingness import Willingness
from edge_sdk.errors import EdgeFedError, StateError
from edge_sdk.mqtt.events import Connected, Delivery, Disconnected, Published, Subscribed, Transport, TransportEvent
from edge_sdk.wire.terms import Terms
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.wire_costs import Costs

__all__ = ["Agent"]

NEVER: Final = float("inf")


class Agent:
    """One device.

    Args:
        settings: See :class:`AgentSettings`.
        state: The device's durable state.
        work: Turns a job into an update.
        run_job: Runs a job elsewhere and hands its event to :meth:`handle`; one job at a time is given out.
        rng: For nonces and jitter.
        eligible: Whether the device may work now; asked every few seconds, must answer at once.
        on_progress: Told what happens, on the driving thread.
        memory: Where downloaded blobs live in memory; devices of one process may share it.
        connect_at: When to connect first, on the clock of ``now``.
        on_action: Told each action of the session before it is performed and, with true, after; the places where a
            simulator may cut the power.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        state: DeviceState,
        work: Work,
        run_job: Callable[[Callable[[], Event]], None],
        rng: np.random.Generator,
        eligible: Callable[[], bool] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        memory: BlobMemory | None = None,
        connect_at: float = 0.0,
        on_action: Callable[[Action, bool], None] | None = None,
    ) -> None:
        self.settings = settings
        self.state = state
        self.left = False
        self._on_action = on_action
        self._now = 0.0
        topics = Topics(settings.federation)
        self._status_topic = topics.status(settings.device)
        self._diagnostics = Diagnostics(topics, settings.task, settings.device)
        self._reconnect = Reconnect(settings.device, rng, connect_at)
        self._reporter = Reporter(settings.device, settings.engine, settings.publish_status, on_progress)
        costs = Costs(settings.federation, settings.task, settings.device)
        self._quota = DataQuota(state.traffic, costs, settings.bytes_per_update_max)
        self._resting = Resting(self._quota, rng)
        self._outgoing = Outgoing(self._quota, lambda: self._rest(self._now))
        self._willingness = Willingness(eligible)
        self.blobs = DeviceBlobs(state, memory)
        self.jobs = Jobs(
            settings.device,
            state=state,
            work=work,
            blobs=self.blobs,
            run_job=run_job,
            frames_bytes_max=self._quota.frames_bytes_max,
            on_step=lambda start, steps, loss: self._reporter.on_step(start.round, steps, loss),
        )
        supports = supported(settings)
        capabilities = {"sdk": __version__, "engine": settings.engine, "supports": sorted(supports)}
        self.session = Session(
            SessionSettings(
                federation=settings.federation,
                task=settings.task,
                device=settings.device,
                instance=state.instance,
                capabilities=capabilities,
                supports=supports,
                program_bytes_max=settings.program_bytes_max,
                parameters_bytes_max=settings.parameters_bytes_max,
                direct_bytes_max=settings.direct_bytes_max,
            ),
            rng=rng,
            blobs=self.blobs,
            pending=state.outbox,
            over_quota=self._over_quota,
        )

    # --- driving it ---

    def attach(self, transport: Transport) -> None:
        """The transport to use; it connects when the next tick is due."""
        self._outgoing.transport = transport

    def will(self) -> tuple[str, bytes] | None:
        """Topic and payload of the last will, None where no status is published."""
        return (self._status_topic, OFFLINE) if self.settings.publish_status else None

    def handle(self, event: Event, now: float) -> None:
        """Takes a session event (a job's result, a wish to stop) and performs what follows."""
        self._now = now
        if isinstance(event, ExamplesFit | TrainingFinished | TrainingFailed):
            ended = self.jobs.end()
            if ended is not None and ended.loss is not None:
                self._reporter.update(last_loss=ended.loss)
            unfit = isinstance(event, TrainingFailed) and event.reason == "bytes_per_update"
            if unfit and ended is not None and isinstance(ended.order, StartTraining):
                self._quota.note_unfit(ended.order.program, ended.order.plan)
            self._perform(event, now)
            self.jobs.go_on()
        else:
            self._perform(event, now)
        self._meter(now)

    def on_transport(self, event: TransportEvent, now: float) -> None:
        """Takes what the transport reports. Nothing that the network does raises."""
        self._now = now
        match event:
            case Delivery(topic, payload):
                self._outgoing.acknowledge(event)
                self._quota.arrived(topic, len(payload))
                if self._diagnostics.on_message(topic):
                    self._reporter.update(error="")
                self._perform(MessageArrived(topic, payload, event.retained), now)
            case Published(token, refused):
                hint = self._diagnostics.on_refused(refused) if refused else None
                if hint is not None:
                    self._reporter.tell(hint)
                if token:
                    self._perform(SentPublished(token), now)
            case Connected(_, packet_bytes_max, _):
                self._reconnect.on_connected(now)
                self._diagnostics.on_connected(now)
                self._reporter.update(connected=True, error="")
                self._perform(Online(packet_bytes_max), now)
                self._publish_status(now)
            case Subscribed(_, refused):
                if refused:
                    text = f"the broker refused {refused}: check its ACL"
                    self._reporter.tell(Notify(ProgressKind.SUBSCRIPTION_REFUSED, text))
            case Disconnected():
                self._on_disconnected(event, now)
        self._meter(now)
        if self.left:
            self.state.traffic.keep()

    def tick(self, now: float) -> None:
        """Does what is due."""
        self._now = now
        if self._resting.due <= now:
            self._check_day(now)
        if self._reconnect.due is not None and self._reconnect.due <= now:
            self._reconnect.due = None
            if not self._outgoing.connect():
                self._rest(now)
        if self._willingness.due <= now:
            changed = self._willingness.ask(now)
            if changed is not None:
                self._perform(changed, now)
        deadline = self.session.next_deadline()
        if deadline is not None and deadline <= now:
            self._perform(Tick(), now)
        if self._reporter.due is not None and self._reporter.due <= now:
            self._publish_status(now)
        if self._diagnostics.deadline is not None and self._diagnostics.deadline <= now:
            session = self.session
            self._reporter.tell(self._diagnostics.on_deadline(session.coordinator_known, session.coordinator_online))
        self._meter(now)

    def next_deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        earliest = min(self._willingness.due, self._resting.due)
        others = (self.session.next_deadline(), self._reconnect.due, self._diagnostics.deadline, self._reporter.due)
        for due in others:
            if due is not None and due < earliest:
                earliest = due
        return None if earliest == NEVER else earliest

    def stop(self, now: float) -> None:
        """Leaves politely: gives back unfinished work, says offline, disconnects."""
        self.handle(Stop(), now)

    def note_failure(self, error: BaseException) -> None:
        """Whoever drove this device has given up: its status says so."""
        self._reporter.update(connected=False, error=str(error) or type(error).__name__)

    @property
    def status(self) -> Status:
        """The device at a glance; what changes with every message is only put together when somebody looks."""
        meter = self._outgoing.meter
        return replace(
            self._reporter.status,
            phase=self.session.state,
            round=self.session.round,
            bytes_up=meter.sent,
            bytes_down=meter.received,
            bytes_today=self._quota.bytes_today(meter),
            bytes_per_day_max=self.state.traffic.bytes_max,
        )

    @property
    def busy(self) -> bool:
        """Whether a job is running somewhere."""
        return self.jobs.current is not None

    # --- connection and quota ---

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        was_up = self._reconnect.on_disconnected()
        self._diagnostics.on_disconnected()
        self._quota.forget_expected()
        # A broker may hang up over a message that it has refused (mosquitto 2.0 does): that is the news then.
        refusal = self._diagnostics.refusal if was_up else ""
        error = refusal or ("" if event.error is None else str(event.error))
        shown = self._reporter.status.error if self._resting.active else error
        self._reporter.update(connected=False, error=shown)
        if was_up:
            self._perform(Offline(), now)
        if self.left or self._resting.active or event.reason == "requested":
            return
        if error and not refusal:
            self._reporter.tell(Notify(ProgressKind.CONNECTION_FAILED, error))
        notice = self._reconnect.plan(event, was_up, bool(refusal), now)
        if notice is not None:
            self._reporter.tell(notice)

    def _over_quota(self, terms: Terms, downloads: tuple[int, ...]) -> tuple[ProgressKind, str] | None:
        refusal = self._resting.why_not(terms, downloads, self._now)
        if refusal is not None and refusal[0] == ProgressKind.BYTES_PER_DAY:
            self._reporter.publish_soon(self._now)
        return refusal

    def _meter(self, now: float) -> None:
        """Counts what has gone over the wire; at the limit the device leaves."""
        if self._quota.meter(self._outgoing.meter, now):
            self._rest(now)

    def _check_day(self, now: float) -> None:
        self._meter(now)
        new_day = self._resting.turn(now)
        if new_day is None:
            return
        if new_day.reconnect_at is not None:
            self._reconnect.due = new_day.reconnect_at
        self._outgoing.unlimited = False
        self._perform(SetQuotaExhausted(False), now)

    def _rest(self, now: float) -> None:
        """Today's bytes are spent: whatever is unfinished is given back, and the broker left until the next day."""
        if self._resting.active or self.left:
            return
        self._reporter.tell(self._resting.begin(now))
        self._outgoing.unlimited = True
        self._reconnect.due = None
        self._perform(SetQuotaExhausted(True), now)
        self._publish_status(now, "resting")
        self._outgoing.disconnect()
        self.state.traffic.keep()

    # --- the session's actions ---

    def _perform(self, event: Event, now: float) -> None:
        watch = self._on_action
        for action in self.session.handle(event, now):
            if watch is not None:
                watch(action, False)
            try:
                self._do(action, now)
            except EdgeFedError as error:  # a message that the broker will never take, a full queue
                self._reporter.tell(Notify(ProgressKind.ACTION_FAILED, str(error)))
            if watch is not None:
                watch(action, True)

    def _do(self, action: Action, now: float) -> None:
        match action:
            case Send() | Subscribe() | Unsubscribe():
                self._outgoing.perform(action)
            case CheckExamples():
                self.jobs.check(action)
            case StartTraining():
                self.jobs.start(action)
            case CancelTraining(ticket, _):
                self.jobs.cancel(ticket)
            case MarkReceived(ticket):
                self._on_state(lambda: self.state.mark_received(ticket))
            case Settle(ticket, counted, reason):
                self._on_state(lambda: self.state.settle(ticket, counted))
                self._reporter.count(counted, reason, now)
            case Notify():
                self._reporter.tell(action)
            case Leave():
                self._leave()

    def _on_state(self, change: Callable[[], None]) -> None:
        """A full disk is told, not raised: the next start finds a legal state, whatever was written."""
        try:
            change()
        except StateError as error:
            self._reporter.tell(Notify(ProgressKind.STATE_FAILED, str(error)))

    def _leave(self) -> None:
        self.left = True
        self._reconnect.due = None
        self.state.traffic.keep()
        if self._reconnect.up and self.settings.publish_status:
            self._outgoing.publish_status(self._status_topic, OFFLINE, sure=False)
        self._outgoing.disconnect()

    def _publish_status(self, now: float, state: str = "online") -> None:
        if not self._reconnect.up:
            self._reporter.due = None
            return
        body = self._reporter.retained(self.status, state, now)
        if body is not None:
            self._outgoing.publish_status(self._status_topic, body, sure=state == "online")
