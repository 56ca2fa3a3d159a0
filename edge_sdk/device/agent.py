"""The device without threads and clocks: session, state, transport and work, joined.

``EdgeClient`` drives it with one thread, a fleet drives thousands on one event loop, the simulator drives it in virtual
time: the same code everywhere. Whoever drives it hands in transport events and ticks with a monotonic ``now``, and
gives it a way to run one job elsewhere.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from edge_sdk import __version__
from edge_sdk.codecs import CODECS
from edge_sdk.device.data_quota import DataQuota
from edge_sdk.device.diagnostics import Diagnostics
from edge_sdk.device.session import (
    Action,
    ApplyModelDeltas,
    CancelTraining,
    Event,
    Leave,
    MarkReceived,
    MessageArrived,
    ModelDeltasApplied,
    Notify,
    Offline,
    Online,
    PendingUpdate,
    Send,
    Session,
    SessionSettings,
    SetEligible,
    SetSpent,
    Settle,
    StartTraining,
    Stop,
    StoreBlob,
    Subscribe,
    Tick,
    TrainingFailed,
    TrainingFinished,
    Unsubscribe,
)
from edge_sdk.device.session import Published as SentPublished
from edge_sdk.device.state import DeviceState
from edge_sdk.device.work import Cancelled, OverBudget, TrainedUpdate, TrainingJob, Work, job_seed
from edge_sdk.errors import ConnectionRefused, DecodeError, EdgeFedError, ExamplesError, StateError
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Meter, Published, Subscribed, Transport, TransportEvent
from edge_sdk.mqtt.loop import Backoff
from edge_sdk.training.model_delta import apply_model_deltas
from edge_sdk.wire.messages import Invite
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.wire_costs import Costs

__all__ = ["Agent", "AgentSettings", "BlobMemory", "Progress", "Status"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 1.0
RECONNECT_SECONDS_MAX: Final = 120.0
REFUSED_SECONDS_MIN: Final = 15.0
TAKEOVER_SECONDS: Final = 300.0
TAKEOVERS_SUSPICIOUS: Final = 3
SHORT_CONNECTION_SECONDS: Final = 5.0
ELIGIBLE_SECONDS: Final = 2.0
STATUS_SECONDS_MIN: Final = 10.0
PARAMETERS_NAMED_MAX: Final = 8
BUDGET_SECONDS: Final = 60.0
NEW_DAY_SECONDS: Final = 300.0
"""Devices that a day's limit has sent away do not all come back in the same second."""
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What a device is and how far it may go.

    Attributes:
        federation: Topic segment of the federation.
        device: Topic segment of the device.
        task: Topic segment of the task.
        engine: Engine preference, told to the coordinator.
        program_bytes_max: Largest program accepted, in bytes.
        parameters_bytes_max: Largest parameters blob accepted, in bytes.
        publish_status: Whether retained JSON about this device is published for people.
        bytes_per_update_max: Bytes on the wire that bringing one update may take, 0 for no limit.
    """

    federation: str
    device: str
    task: str = "default"
    engine: str = "auto"
    program_bytes_max: int = 64 << 20
    parameters_bytes_max: int = 256 << 20
    publish_status: bool = True
    bytes_per_update_max: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Something happened; ``what`` is a short code (``online``, ``invited``, ``training``, ``counted``, ...)."""

    what: str
    detail: str = ""
    round: int = 0
    steps: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The device at a glance, for the embedding app. Counters are since the start of the process.

    Bytes are those on the wire, with all that MQTT adds; ``bytes_today`` are both ways together, with the estimate for
    TLS, and survive a restart. ``bytes_per_day_max`` is 0 where there is no limit.
    """

    connected: bool = False
    phase: str = "idle"
    round: int = 0
    counted: int = 0
    not_counted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_today: int = 0
    bytes_per_day_max: int = 0
    last_loss: float | None = None
    last_outcome: str = ""
    error: str = ""


class BlobMemory:
    """Downloaded blobs in memory, the most recently used ones; devices of one process may share it.

    Args:
        blobs_max: How many are kept; a device works with two, its program and the round's parameters.
        trusted: Whether a device takes what another one has fetched for its own, and does not ask for it.
    """

    def __init__(self, blobs_max: int = 2, trusted: bool = False) -> None:
        self.trusted = trusted
        self._blobs_max = blobs_max
        self._blobs: OrderedDict[bytes, bytes | memoryview] = OrderedDict()

    @property
    def digests(self) -> Set[bytes]:
        """What is here."""
        return self._blobs.keys()

    def get(self, digest: bytes) -> bytes | memoryview | None:
        """The blob, if it is still here."""
        if digest in self._blobs:
            self._blobs.move_to_end(digest)
        return self._blobs.get(digest)

    def peek(self, digest: bytes) -> bytes | memoryview | None:
        """The blob, if it is still here; it does not count as used."""
        return self._blobs.get(digest)

    def keep(self, digest: bytes, data: bytes | memoryview) -> None:
        """Keeps a blob; equal blobs are kept once."""
        self._blobs.setdefault(digest, data)
        self._blobs.move_to_end(digest)
        while len(self._blobs) > self._blobs_max:
            self._blobs.popitem(last=False)


@dataclass(slots=True)
class _Job:
    start: StartTraining
    uncached: dict[bytes, tuple[bytes | memoryview, str]]
    cancelled: bool = False
    loss: float | None = None


@dataclass(slots=True)
class _Connection:
    """Reconnecting: exponential backoff with full jitter; slower after refusals, much slower after takeovers."""

    backoff: Backoff
    due: float | None = 0.0
    takeovers: int = 0
    since: float = field(default=float("-inf"))
    up: bool = False


class Agent:
    """One device.

    Args:
        settings: See :class:`AgentSettings`.
        state: The device's durable state.
        work: Turns an order into an update.
        run_job: Runs a job elsewhere and hands its event to :meth:`handle`; one job at a time is given out.
        rng: For nonces and jitter.
        eligible: Whether the device may work now; asked every few seconds, must answer at once.
        on_progress: Told what happens, on the driving thread.
        blobs: Where downloaded blobs live in memory; devices of one process may share it.
        connect_at: When to connect first, on the clock of ``now``.
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
        blobs: BlobMemory | None = None,
        connect_at: float = 0.0,
    ) -> None:
        self.settings = settings
        self.state = state
        self._status = Status()
        self.left = False
        costs = Costs(settings.federation, settings.task, settings.device)
        self._quota = DataQuota(state.traffic, costs, settings.bytes_per_update_max)
        self._budget_due = 0.0 if self._quota.limited else _NEVER
        self._days = 0
        self._resting = False  # away from the broker, because today's bytes are spent
        self._work = work
        self._run_job = run_job
        self._rng = rng
        self._eligible = eligible
        self._was_eligible = True
        self._eligible_due = float("-inf") if eligible else _NEVER
        self._on_progress = on_progress
        self._blobs = blobs or BlobMemory()
        self._fetched: set[bytes] = set()  # by this device: shared memory may hold what it has never asked for
        self._parameters: deque[bytes] = deque(maxlen=PARAMETERS_NAMED_MAX)  # by this device, the newest last
        self._uncached: dict[bytes, tuple[bytes | memoryview, str]] = {}
        self._topics = Topics(settings.federation)
        self._diagnostics = Diagnostics(self._topics, settings.task, settings.device)
        self._transport: Transport | None = None
        self._connection = _Connection(Backoff(RECONNECT_SECONDS, RECONNECT_SECONDS_MAX, rng), due=connect_at)
        self._job: _Job | None = None
        self._waiting: _Job | None = None
        self._status_due: float | None = None
        self._status_at = float("-inf")
        self._now = 0.0
        supports = frozenset({*(f"codec:{name}" for name in CODECS), "weighting:examples", "weighting:uniform"})
        outbox = state.outbox
        self.session = Session(
            SessionSettings(
                federation=settings.federation,
                task=settings.task,
                device=settings.device,
                instance=state.instance,
                capabilities={"sdk": __version__, "engine": settings.engine, "supports": sorted(supports)},
                supports=supports,
                program_bytes_max=settings.program_bytes_max,
                parameters_bytes_max=settings.parameters_bytes_max,
            ),
            rng=rng,
            has_blob=self._has_blob,
            holds=self._holds,
            over_budget=self._over_budget,
            holding=None
            if outbox is None
            else PendingUpdate(
                outbox.ticket, outbox.digest, outbox.lineage, outbox.shard, outbox.round, outbox.payload
            ),
        )

    # --- driving it ---

    def attach(self, transport: Transport) -> None:
        """The transport to use; it connects when the next tick is due."""
        self._transport = transport

    def will(self) -> tuple[str, bytes] | None:
        """Topic and payload of the last will, None where no status is published."""
        return (self._status_topic, b'{"state": "offline"}') if self.settings.publish_status else None

    def handle(self, event: Event, now: float) -> None:
        """Takes a session event (a job's result, a wish to stop) and performs what follows."""
        self._now = now
        if isinstance(event, TrainingFinished | TrainingFailed):
            job, self._job, waiting, self._waiting = self._job, None, self._waiting, None
            if job is not None and job.loss is not None:
                self._status = replace(self._status, last_loss=job.loss)
            if job is not None and isinstance(event, TrainingFailed) and event.reason == "bytes_per_update":
                self._quota.note_unfit(job.start.program, job.start.plan)
            self._perform(event, now)
            if waiting is not None and not waiting.cancelled:
                self._start(waiting)
        else:
            self._perform(event, now)
        self._meter(now)

    def on_transport(self, event: TransportEvent, now: float) -> None:
        """Takes what the transport reports. Nothing that the network does raises."""
        self._now = now
        match event:
            case Delivery(topic, payload):
                if self._transport is not None:
                    self._transport.acknowledge(event)
                self._quota.arrived(topic, len(payload))
                if self._diagnostics.on_message(topic):
                    self._status = replace(self._status, error="")
                self._perform(MessageArrived(topic, payload), now)
            case Published(token, refused):
                hint = self._diagnostics.on_refused(refused) if refused else None
                if hint is not None:
                    self._tell(hint)
                if token:
                    self._perform(SentPublished(token), now)
            case Connected(_, packet_bytes_max, _):
                self._connection.up, self._connection.since = True, now
                self._diagnostics.on_connected(now)
                self._status = replace(self._status, connected=True, error="")
                self._perform(Online(packet_bytes_max), now)
                self._publish_status(now)
            case Subscribed(_, refused):
                if refused:
                    self._tell(Notify("subscription_refused", f"the broker refused {refused}: check its ACL"))
            case Disconnected():
                self._on_disconnected(event, now)
        self._meter(now)
        if self.left:
            self.state.traffic.keep()

    def tick(self, now: float) -> None:
        """Does what is due."""
        self._now = now
        if self._budget_due <= now:
            self._check_day(now)
        if self._connection.due is not None and self._connection.due <= now and self._transport is not None:
            self._connection.due = None
            if self._quota.affords_connection():
                self._transport.connect()
            else:
                self._rest(now)
        if self._eligible_due <= now:
            self._eligible_due = now + ELIGIBLE_SECONDS
            self._ask_eligible(now)
        deadline = self.session.next_deadline()
        if deadline is not None and deadline <= now:
            self._perform(Tick(), now)
        if self._status_due is not None and self._status_due <= now:
            self._publish_status(now)
        if self._diagnostics.deadline is not None and self._diagnostics.deadline <= now:
            self._tell(self._diagnostics.on_deadline(self.session.coordinator_online))
        self._meter(now)

    def next_deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        earliest = min(self._eligible_due, self._budget_due)
        for due in (self.session.next_deadline(), self._connection.due, self._diagnostics.deadline, self._status_due):
            if due is not None and due < earliest:
                earliest = due
        return None if earliest == _NEVER else earliest

    def stop(self, now: float) -> None:
        """Leaves politely: gives back unfinished work, says offline, disconnects."""
        self.handle(Stop(), now)

    def note_failure(self, error: BaseException) -> None:
        """Whoever drove this device has given up: its status says so."""
        self._status = replace(self._status, connected=False, error=str(error) or type(error).__name__)

    @property
    def status(self) -> Status:
        """The device at a glance; what changes with every message is only put together when somebody looks."""
        meter = Meter() if self._transport is None else self._transport.meter
        return replace(
            self._status,
            phase=self.session.state,
            round=self.session.round,
            bytes_up=meter.sent,
            bytes_down=meter.received,
            bytes_today=self._quota.bytes_today(meter),
            bytes_per_day_max=self.state.traffic.bytes_max,
        )

    @property
    def job(self) -> StartTraining | None:
        """What the job that was given out is about."""
        return self._job.start if self._job is not None else None

    @property
    def busy(self) -> bool:
        """Whether a job is running somewhere."""
        return self._job is not None

    # --- connection ---

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        connection = self._connection
        was_up, connection.up = connection.up, False
        self._diagnostics.on_disconnected()
        self._quota.forget_expected()
        # A broker may hang up over a message that it has refused (mosquitto 2.0 does): that is the news then.
        refusal = self._diagnostics.refusal if was_up else ""
        error = refusal or ("" if event.error is None else str(event.error))
        self._status = replace(self._status, connected=False, error=self._status.error if self._resting else error)
        if was_up:
            self._perform(Offline(), now)
        if self.left or self._resting or event.reason == "requested":
            return
        if error and not refusal:
            self._tell(Notify("connection_failed", error))
        connection.due = now + self._reconnect_seconds(event, was_up, now)

    def _reconnect_seconds(self, event: Disconnected, was_up: bool, now: float) -> float:
        connection = self._connection
        if was_up and self._diagnostics.refusal:
            return connection.backoff.next_seconds() + REFUSED_SECONDS_MIN
        short = was_up and now - connection.since < SHORT_CONNECTION_SECONDS
        # On MQTT 3.1.1 a takeover looks like a cut right after connecting.
        connection.takeovers = connection.takeovers + 1 if event.reason == "taken_over" or short else 0
        if connection.takeovers >= TAKEOVERS_SUSPICIOUS:
            self._tell(
                Notify(
                    "taken_over",
                    f"another client seems to use the device id {self.settings.device!r}: give each device its own "
                    f"(this one waits {TAKEOVER_SECONDS:.0f} s)",
                )
            )
            return TAKEOVER_SECONDS * (1.0 + float(self._rng.random()))
        if was_up and not short:
            connection.backoff.reset()
        seconds = connection.backoff.next_seconds()
        return seconds + REFUSED_SECONDS_MIN if isinstance(event.error, ConnectionRefused) else seconds

    # --- the budget of bytes ---

    def _over_budget(self, invite: Invite, downloads: tuple[int, ...]) -> tuple[str, str] | None:
        refusal = self._quota.why_not(invite, downloads)
        if self._quota.limited and self._budget_due == _NEVER:
            self._budget_due = self._now + BUDGET_SECONDS
        if refusal is not None and refusal[0] == "bytes_per_day" and self.settings.publish_status:
            self._status_due = self._now
        return refusal

    def _meter(self, now: float) -> None:
        """Counts what has gone over the wire; at the limit the device leaves."""
        if self._transport is not None and self._quota.meter(self._transport.meter, now) and not self._resting:
            self._rest(now)

    def _check_day(self, now: float) -> None:
        """Whether a new day has begun; a limit may also have come or gone with an invite."""
        self._meter(now)
        days = self.state.traffic.turn(now)
        self._budget_due = now + BUDGET_SECONDS if self._quota.limited or self._resting else _NEVER
        if days == self._days:
            return
        self._days = days
        if self._resting:
            self._resting = False
            self._connection.due = now + NEW_DAY_SECONDS * float(self._rng.random())
        self._perform(SetSpent(False), now)

    def _rest(self, now: float) -> None:
        """Today's bytes are spent: whatever is unfinished is given back, and the broker left until the next day."""
        if self._resting or self.left:
            return
        traffic = self.state.traffic
        self._tell(Notify("bytes_per_day", f"{traffic.bytes_today} of {traffic.bytes_max} bytes are used today"))
        self._resting = True
        self._budget_due = now + BUDGET_SECONDS
        self._connection.due = None
        self._perform(SetSpent(True), now)
        self._publish_status(now, "resting")
        if self._transport is not None:
            self._transport.disconnect()
        traffic.keep()

    # --- the session's actions ---

    def _perform(self, event: Event, now: float) -> None:
        for action in self.session.handle(event, now):
            self._act(action, now)

    def _act(self, action: Action, now: float) -> None:
        try:
            self._do(action, now)
        except EdgeFedError as error:  # a message that the broker will never take, a full queue
            self._tell(Notify("action_failed", str(error)))

    def _do(self, action: Action, now: float) -> None:
        transport = self._transport
        match action:
            case Send(topic, payload, token, asked_bytes):
                if transport is not None and self._may_leave(topic, len(payload), asked_bytes, now):
                    transport.publish(topic, payload, qos=1, token=token)
            case Subscribe(filters, asked_bytes):
                if transport is not None and self._may_leave("", sum(map(len, filters)), asked_bytes, now):
                    transport.subscribe(filters)
            case Unsubscribe(filters):
                if transport is not None:
                    transport.unsubscribe(filters)
            case StoreBlob(kind, digest, data):
                self._store(kind, digest, data)
            case ApplyModelDeltas(base, deltas, target):
                error = self._apply_deltas(base, deltas, target)
                self._perform(ModelDeltasApplied(target, error), now)
            case StartTraining():
                uncached = {digest: blob for digest, blob in self._uncached.items() if digest in self._fetched}
                self._uncached = {}
                self._start(_Job(action, uncached))
            case CancelTraining(ticket, _):
                for job in (self._job, self._waiting):
                    if job is not None and job.start.ticket == ticket:
                        job.cancelled = True
            case MarkReceived(ticket):
                self._on_state(lambda: self.state.mark_received(ticket))
            case Settle(ticket, counted, reason):
                self._on_state(lambda: self.state.settle(ticket, counted))
                self._count(counted, reason, now)
            case Notify():
                self._tell(action)
            case Leave():
                self._leave()

    def _may_leave(self, topic: str, size_bytes: int, asked_bytes: int, now: float) -> bool:
        """Whether a message is within today's limit, with what it asks for; the last words before a rest always are."""
        if not self._quota.limited or self._resting:
            return True
        assert self._transport is not None
        if not self._quota.affords_message(topic, size_bytes, self._transport.waiting_bytes, asked_bytes):
            self._rest(now)
            return False
        self._quota.expect(asked_bytes)
        return True

    def _on_state(self, change: Callable[[], None]) -> None:
        """A full disk is told, not raised: the next start finds a legal state, whatever was written."""
        try:
            change()
        except StateError as error:
            self._tell(Notify("state_failed", str(error)))

    def _count(self, counted: bool, reason: str, now: float) -> None:
        status = self._status
        self._status = replace(
            status,
            counted=status.counted + counted,
            not_counted=status.not_counted + (not counted),
            last_outcome=reason or ("counted" if counted else "not counted"),
        )
        self._status_due = max(now, self._status_at + STATUS_SECONDS_MIN) if self.settings.publish_status else None

    def _leave(self) -> None:
        self.left = True
        self._connection.due = None
        self.state.traffic.keep()
        if self._transport is None:
            return
        if self._connection.up and self.settings.publish_status:
            # QoS 0: nobody waits for the answer to a goodbye.
            self._transport.publish(self._status_topic, b'{"state": "offline"}', qos=0, retain=True)
        self._transport.disconnect()

    # --- blobs ---

    def _has_blob(self, digest: bytes) -> bool:
        if (self._blobs.trusted or digest in self._fetched) and self._blobs.get(digest) is not None:
            return True
        data = self.state.cache_get(digest)
        if data is not None:
            self._keep(digest, data)
        return data is not None

    def _holds(self) -> tuple[bytes, ...]:
        """Parameters that are here, the newest first."""
        fetched = [digest for digest in reversed(self._parameters) if digest in self._fetched & self._blobs.digests]
        return tuple(dict.fromkeys((*fetched, *self.state.cached_parameters)))

    def _apply_deltas(self, base: bytes, deltas: tuple[memoryview, ...], target: bytes) -> str:
        """Makes ``target`` and keeps it; returns why it could not. It takes about as long as to check a download."""
        try:
            # A look that does not count: of two blobs in memory it is the program that must stay.
            data = self._blobs.peek(base) if base in self._fetched else None
            data = data or self.state.cache_get(base)
            if data is None:
                raise DecodeError("the parameters that they start from are not here any more")
            self._store("parameters", target, apply_model_deltas(data, deltas, target))
        except (EdgeFedError, MemoryError) as error:
            return str(error) or type(error).__name__
        return ""

    def _store(self, kind: str, digest: bytes, data: memoryview) -> None:
        self._keep(digest, data)
        self._uncached[digest] = (data, kind)
        if kind == "parameters":
            self._parameters.append(digest)

    def _keep(self, digest: bytes, data: bytes | memoryview) -> None:
        self._blobs.keep(digest, data)
        self._fetched.add(digest)
        self._fetched &= self._blobs.digests
        self._uncached = {known: blob for known, blob in self._uncached.items() if known in self._fetched}

    # --- work ---

    def _start(self, job: _Job) -> None:
        if self._job is not None:
            self._waiting = job  # the last one is still finding out that it was called off
            return
        self._job = job
        start = job.start
        program, parameters = self._blobs.get(start.program), self._blobs.get(start.parameters)
        if program is None or parameters is None:
            self._run_job(lambda: TrainingFailed(start.ticket, "gone", "the downloads are no longer in memory"))
            return
        order = TrainingJob(
            start=start,
            program=program,
            parameters=parameters,
            residual=self.state.residual,
            keeps_residual=self.state.keeps_residual,
            seed=job_seed(start.parameters, self.settings.device),
            stop=lambda: job.cancelled,
            progress=lambda steps, loss: self._on_step(start, steps, loss),
            frames_bytes_max=self._quota.frames_bytes_max(start.plan),
        )
        self._run_job(lambda: self._work_off(job, order))

    def _work_off(self, job: _Job, order: TrainingJob) -> Event:
        """The job itself, on whatever thread: trains, encodes, and saves before anything is said (rule 4).

        Downloads are kept here too: an SD card may take seconds, which the network thread does not have.
        """
        ticket = order.start.ticket
        try:
            for digest, (data, kind) in job.uncached.items():
                self.state.cache_put(digest, data, kind)
            product = self._work.run(order)
            self.state.save_outbox(product.entry, product.residual_after)
        except Cancelled:
            return TrainingFailed(ticket, "cancelled")
        except OverBudget as error:
            return TrainingFailed(ticket, "bytes_per_update", str(error))
        except ExamplesError as error:
            return TrainingFailed(ticket, "no_examples", str(error))
        except StateError as error:
            return TrainingFailed(ticket, "state", str(error))
        except EdgeFedError as error:
            return TrainingFailed(ticket, "training", str(error))
        except (Exception, SystemExit) as error:  # the user's own code: never our thread's end
            logger.exception("training failed")
            return TrainingFailed(ticket, "error", f"{type(error).__name__}: {error}")
        job.loss = float(product.result.loss)
        return _finished(product)

    def _on_step(self, start: StartTraining, steps: int, loss: float) -> None:
        if self._on_progress is not None:
            self._report(Progress("step", round=start.round, steps=steps, loss=loss))

    # --- telling ---

    def _ask_eligible(self, now: float) -> None:
        assert self._eligible is not None
        try:
            eligible, reason = bool(self._eligible()), ""
        except Exception as error:
            logger.exception("eligible() failed")
            eligible, reason = False, f"eligible() failed: {error}"
        if eligible != self._was_eligible:
            self._was_eligible = eligible
            self._perform(SetEligible(eligible, reason), now)

    def _tell(self, notice: Notify) -> None:
        level = logging.WARNING if notice.what in WARNINGS else logging.INFO
        logger.log(level, "%s: %s%s", self.settings.device, notice.what, f": {notice.detail}" if notice.detail else "")
        if notice.what in WARNINGS:
            self._status = replace(self._status, error=notice.detail or notice.what)
        elif notice.what == "trained":
            self._status = replace(self._status, error="")
        self._report(Progress(notice.what, notice.detail, notice.round))

    def _report(self, progress: Progress) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(progress)
        except Exception:  # the app's own mistake must not end its device
            logger.exception("on_progress failed")

    @property
    def _status_topic(self) -> str:
        return self._topics.status(self.settings.device)

    def _publish_status(self, now: float, state: str = "online") -> None:
        self._status_due = None
        if not self.settings.publish_status or self._transport is None or not self._connection.up:
            return
        self._status_at = now
        status = self.status
        body: dict[str, Any] = {
            "state": state,
            "phase": status.phase,
            "round": status.round,
            "counted": status.counted,
            "not_counted": status.not_counted,
            "last_outcome": status.last_outcome,
            "last_loss": status.last_loss,
            "error": status.error,
            "bytes_today": status.bytes_today,
            "bytes_per_day_max": status.bytes_per_day_max,
            "engine": self.settings.engine,
            "sdk": __version__,
        }
        self._transport.publish(
            self._status_topic, json.dumps(body).encode(), qos=1 if state == "online" else 0, retain=True
        )


WARNINGS: Final = frozenset(
    {
        "action_failed",
        "bad_digest",
        "bad_message",
        "bytes_per_day",
        "bytes_per_update",
        "connection_failed",
        "deltas_failed",
        "no_coordinator",
        "no_task",
        "publish_refused",
        "state_failed",
        "subscription_refused",
        "taken_over",
        "too_large",
        "training_failed",
        "unsupported",
    }
)


def _finished(product: TrainedUpdate) -> TrainingFinished:
    entry = product.entry
    assert entry.payload is not None
    return TrainingFinished(entry.ticket, entry.digest, entry.payload)
