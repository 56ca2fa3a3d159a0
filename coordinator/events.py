"""What reaches the coordinator's core, and what it asks its shell to do. Frozen data, so that a run can be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.store import RoundRecord
from edge_sdk.mqtt import Delivery

__all__ = [
    "BULK",
    "CONTROL",
    "Acknowledge",
    "Arrived",
    "BrokerDown",
    "BrokerUp",
    "CloseJob",
    "Effect",
    "Evaluated",
    "Event",
    "Finished",
    "IngestItem",
    "IngestResult",
    "Ingested",
    "Publish",
    "Published",
    "RoundCommitted",
    "RoundEnded",
    "StartJob",
    "SteppedBack",
    "Subscribe",
    "Tick",
    "Unsubscribe",
    "Workers",
]

CONTROL = "control"
BULK = "bulk"


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokerUp:
    """A connection (``control`` or ``bulk``) is made; ``packet_bytes_max`` is the broker's limit in bytes."""

    channel: str
    packet_bytes_max: int


@dataclass(frozen=True, slots=True)
class BrokerDown:
    channel: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message; ``acknowledgement`` goes back in ``Acknowledge`` once it is stored or refused."""

    channel: str
    topic: str
    payload: bytes
    acknowledgement: Delivery


@dataclass(frozen=True, slots=True)
class Published:
    """The broker has the message that was published with ``token``."""

    channel: str
    token: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of one admitted update: ``seq`` > 0 in the journal, or refused for ``reason``."""

    ticket: bytes
    seq: int
    reason: str = ""
    detail: str = ""
    acknowledgement: Delivery | None = None


@dataclass(frozen=True, slots=True)
class Ingested:
    """The worker is through with some admitted updates; those with a ``seq`` are committed."""

    task: str
    results: tuple[IngestResult, ...]


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """The worker committed the round, or could not (``error`` for people, ``reason`` its code).

    ``parameters`` is the SHA-256 of the model.
    """

    task: str
    number: int
    parameters: bytes
    metrics: dict[str, float]
    error: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The model of round ``number`` was evaluated; ``metrics`` by name, or ``error`` for people."""

    task: str
    number: int
    metrics: dict[str, float]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = BrokerUp | BrokerDown | Arrived | Published | Ingested | RoundCommitted | Evaluated | Tick


# --- effects: performed after the turn's commit, in order (rule 1) ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribe:
    channel: str
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    channel: str
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish on a channel; ``token`` > 0 asks for ``Published``. Expiry is for brokers that speak MQTT 5."""

    channel: str
    topic: str
    payload: bytes
    retain: bool = False
    expiry_seconds: int | None = None
    token: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Give the broker its PUBACK: the message is stored or refused (rule 5)."""

    channel: str
    acknowledgement: Delivery


@dataclass(frozen=True, slots=True)
class Finished:
    """Training of a task is over; ``reason`` says why. The service may end, or stay to answer check-ins."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class SteppedBack:
    """Another coordinator serves a task of ours: this one is silent and asks again in ``seconds``."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """Round ``number`` was committed and evaluated, or abandoned: its record is the newest one of its task."""

    task: str
    number: int


Effect = Subscribe | Unsubscribe | Publish | Acknowledge | RoundEnded | Finished | SteppedBack


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartJob:
    """Begin a round with empty sums, then add what its journal holds already (after a crash).

    ``base`` is the SHA-256 of the parameters that the devices train from. The model and all that the worker remembers
    are those of the task's newest checkpoint.
    """

    task: str
    number: int
    attempt: int
    base: bytes


@dataclass(frozen=True, slots=True)
class IngestItem:
    """One admitted update: decode, validate, journal, accumulate. ``payload`` is None where its chunks are stored."""

    task: str
    ticket: bytes
    digest: bytes
    payload: bytes | None
    acknowledgement: Delivery | None = None


@dataclass(frozen=True, slots=True)
class CloseJob:
    """Aggregate what is journalled up to ``last_seq``, apply the server optimiser, commit the round.

    The model of ``good_round`` stays in the database, however old it is.
    """

    record: RoundRecord
    last_seq: int
    verdicts: dict[bytes, tuple[str, str]]
    good_round: int = 0


class Workers(Protocol):
    """Where jobs run: threads in the service, inline at a drawn virtual time in the simulator.

    ``start``, ``ingest`` and ``close`` share one FIFO; ``evaluate`` has its own.
    """

    def start(self, job: StartJob) -> None: ...

    def ingest(self, item: IngestItem) -> None: ...

    def close(self, job: CloseJob) -> None: ...

    def evaluate(self, task: str, number: int, parameters: bytes) -> None:
        """Scores the model whose blob has the SHA-256 ``parameters``."""
        ...

    def busy(self) -> bool:
        """Whether the queue of updates is full: refuse as busy, retryable (rule 14)."""
        ...
