"""What happens to a session, and what it asks to be done: frozen data, so that a run can be replayed."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import ProgressKind
from edge_sdk.wire.plan import Plan

__all__ = [
    "Action",
    "CancelTraining",
    "CheckExamples",
    "Event",
    "ExamplesFit",
    "Leave",
    "MarkReceived",
    "MessageArrived",
    "Notify",
    "Offline",
    "Online",
    "Published",
    "Send",
    "SetEligible",
    "SetQuotaExhausted",
    "Settle",
    "StartTraining",
    "Stop",
    "Subscribe",
    "Tick",
    "TrainingFailed",
    "TrainingFinished",
    "Unsubscribe",
]


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Online:
    """The broker took the connection. ``packet_bytes_max`` is its limit for one packet, in bytes."""

    packet_bytes_max: int


@dataclass(frozen=True, slots=True)
class Offline:
    """The connection is gone; nothing that was under way in it can be relied upon."""


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """One message on a topic; nothing about it has been checked.

    ``retained`` says that the broker kept it and hands it out because this device has just subscribed.
    """

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """The broker acknowledged the message that was sent with ``token``."""

    token: int


@dataclass(frozen=True, slots=True)
class ExamplesFit:
    """The local examples fit the program of ``ticket``; what else it needs may be downloaded."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The update is encoded and safe on disk."""

    update: PendingUpdate


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """There will be no update for ``ticket``.

    ``reason`` is a short code, ``detail`` is for people on this device, and ``public`` is what others may be told:
    nothing out of the examples.
    """

    ticket: bytes
    reason: str
    detail: str = ""
    public: str = ""


@dataclass(frozen=True, slots=True)
class SetEligible:
    """The app (or the device's own health) says whether it may work now."""

    eligible: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SetQuotaExhausted:
    """Whether today's quota of bytes is used up."""

    exhausted: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave politely: give back what is not finished, keep what is."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; ``next_deadline()`` may be due."""


Event = (
    Online
    | Offline
    | MessageArrived
    | Published
    | ExamplesFit
    | TrainingFinished
    | TrainingFailed
    | SetEligible
    | SetQuotaExhausted
    | Stop
    | Tick
)


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribe:
    """``asked_bytes`` is how much retained data it will bring, as far as that is known."""

    filters: tuple[str, ...]
    asked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Publish with QoS 1; ``Published(token)`` comes back when the broker has it.

    ``asked_bytes`` is how much data the message asks for.
    """

    topic: str
    payload: bytes
    token: int = 0
    asked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CheckExamples:
    """Load the local examples and see whether they fit the program, whose digest this is and which is here.

    Come back with ``ExamplesFit``, or with ``TrainingFailed`` where they do not.
    """

    ticket: bytes
    program: bytes


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Train, encode, save to the outbox, and come back with ``TrainingFinished`` or ``TrainingFailed``.

    ``seconds_max`` is what is left for training, in seconds. ``vectors`` are the further blobs that the invite named,
    as ``(name, digest)``; they are here, like ``program`` and ``parameters``.
    """

    ticket: bytes
    lineage: bytes
    task: str
    round: int
    attempt: int
    shard: str
    program: bytes
    parameters: bytes
    plan: Plan
    seconds_max: float
    vectors: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class CancelTraining:
    ticket: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class MarkReceived:
    """The coordinator holds the bytes: the outbox frame may go (rule 4, receipt)."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class Settle:
    """The outcome is known (rule 4): ``counted`` decides which residual stays."""

    ticket: bytes
    counted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Something that an app or a person may want to know.

    ``public`` is what of ``detail`` may leave this device, None for all of it.
    """

    what: ProgressKind
    detail: str = ""
    round: int = 0
    public: str | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """All is said: the shell may disconnect."""


Action = (
    Subscribe
    | Unsubscribe
    | Send
    | CheckExamples
    | StartTraining
    | CancelTraining
    | MarkReceived
    | Settle
    | Notify
    | Leave
)
