"""Every control message and the update: a frozen dataclass on this side, a msgpack map on the wire.

Each field declares its check and its key beside it; encode and decode are made from the declarations (``records.py``).
Unknown keys are ignored, so that a newer peer may say more; what must be *understood* is listed in an invite's
``requires``. Around every message stands an envelope (``envelope.py``); the end of its topic says which kind it is.

Every byte here is paid for by devices on mobile contracts, in each round. So keys are short, what equals its default
is left out (``brief``), and a digest that the other side has heard in full is named by its first eight bytes
(:func:`short`). Whoever uses what it names checks the whole digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from edge_sdk.codecs.settings import TENSOR_RULES_MAX
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import (
    boolean,
    choice,
    integer,
    list_of,
    map_of,
    mapping,
    number,
    numbered,
    octets,
    octets_upto,
    optional,
    row_of,
    text,
)
from edge_sdk.wire.outcomes import OUTCOMES, UNKNOWN
from edge_sdk.wire.records import VERSION, check_version, from_map, on_wire, pack_map, record, to_map, unpack_map

__all__ = [
    "ARRAYS_MAX",
    "BODY_BYTES_MAX",
    "DELTA",
    "DELTAS_MAX",
    "DIGEST_BYTES",
    "FRAMES_MAX",
    "HOLDS_MAX",
    "ID_BYTES",
    "MESSAGES",
    "NUMBERS_MAX",
    "REASON_CHARACTERS_MAX",
    "TERMS_NAMED_MAX",
    "TICKET_BYTES",
    "VECTORS_MAX",
    "VECTOR_NAME_CHARACTERS_MAX",
    "Accept",
    "Announce",
    "BlobGone",
    "CheckIn",
    "Chunk",
    "ComeBack",
    "Decline",
    "Have",
    "Invite",
    "Message",
    "Offer",
    "RangeData",
    "RangeRequest",
    "Update",
    "Verdict",
    "introduction_id",
    "short",
]

TICKET_BYTES: Final = 16
DIGEST_BYTES: Final = 32
ID_BYTES: Final = 8
NONCE_BYTES: Final = 8
BODY_BYTES_MAX: Final = 1 << 20
"""No message is larger than this, whatever a broker lets through; 60,000 bytes is what we send."""
BLOB_BYTES_MAX: Final = 1 << 31
SECONDS_MAX: Final = 1e9
CAPABILITIES_CHARACTERS_MAX: Final = 8192
"""A coordinator keeps them for each device."""
RANGES_MAX: Final = 1024
UNSETTLED_MAX: Final = 8
HOLDS_MAX: Final = 2
TERMS_NAMED_MAX: Final = 2
INSTANCE_BYTES: Final = 16
DELTAS_MAX: Final = 256
VECTORS_MAX: Final = 8
VECTOR_NAME_CHARACTERS_MAX: Final = 32
NUMBERS_MAX: Final = 16
ARRAYS_MAX: Final = 16
ARRAY_BYTES_MAX: Final = 1 << 24
FRAMES_MAX: Final = TENSOR_RULES_MAX + 2
"""Of one vector: one for what no pattern matches, one for each pattern's tensors, one for the buffers."""
REASON_CHARACTERS_MAX: Final = 400
DELTA: Final = "delta"
"""The vector of an update that moves the model."""

TICKET: Final = octets(TICKET_BYTES)
DIGEST: Final = octets(DIGEST_BYTES)
ID: Final = octets(ID_BYTES)
NONCE: Final = octets(NONCE_BYTES)
SECONDS: Final = number(0.0, SECONDS_MAX)
ROUND: Final = integer(0, 1 << 40)
ATTEMPT: Final = integer(0, 1 << 30)
REASON: Final = text(REASON_CHARACTERS_MAX)
SIZE: Final = integer(1, BLOB_BYTES_MAX)
OFFSET: Final = integer(0, BLOB_BYTES_MAX)
DATA: Final = octets_upto(BODY_BYTES_MAX)
NAME: Final = text(VECTOR_NAME_CHARACTERS_MAX, 1)
TOTAL: Final = number(-1e12, 1e12)
EVALUATION: Final = optional(row_of(loss_sum=TOTAL, metric_sum=TOTAL, count=integer(1, 1 << 40)))
MODEL_DELTA: Final = row_of(digest=DIGEST, bytes=SIZE)
PACKED: Final = optional(row_of(digest=DIGEST, bytes=SIZE))
VECTOR: Final = row_of(name=NAME, digest=DIGEST, bytes=SIZE)

REQUIREMENTS: Final = list_of(text(64), 32)

_SPAN: Final = row_of(start=integer(0, BLOB_BYTES_MAX), stop=integer(0, BLOB_BYTES_MAX))
_CAPABILITY: Final = text(64)
_CAPABILITIES: Final = list_of(_CAPABILITY, 64)


def _range(value: object, where: str) -> tuple[int, int]:
    span: tuple[int, int] = _SPAN(value, where)
    if span[0] >= span[1]:
        raise DecodeError(f"{where}: the range {span[0]}..{span[1]} is empty")
    return span


def _capabilities(value: object, where: str) -> dict[str, Any]:
    source = mapping(value, where)
    if len(source) > 32:
        raise DecodeError(f"{where}: more than 32 entries")
    checked = {_CAPABILITY(key, where): _capability(entry, where) for key, entry in source.items()}
    characters = sum(len(text) for entry in checked.values() for text in ([entry] if isinstance(entry, str) else entry))
    if characters > CAPABILITIES_CHARACTERS_MAX:
        raise DecodeError(f"{where}: {characters} characters, at most {CAPABILITIES_CHARACTERS_MAX} are taken")
    return checked


def _capability(value: object, where: str) -> str | list[str]:
    """Text or a list of texts; a number or a truth value is taken as its text, for people."""
    if isinstance(value, list):
        return list(_CAPABILITIES(value, where))
    if not isinstance(value, str | int | float):
        raise DecodeError(f"{where}: expected text or a list of texts, got {type(value).__name__}")
    return str(_CAPABILITY(str(value), where))


def short(digest: bytes) -> bytes:
    """The first eight bytes of a digest: its name for whoever has heard all of it."""
    return digest[:ID_BYTES]


@dataclass(frozen=True, slots=True)
class Announce:
    """Retained, to all devices: what the coordinator is doing. Only a hint (rule 3).

    ``reason`` says, between two attempts at a round, what keeps it from closing.
    """

    kind: ClassVar[str] = "announce"
    round: int = on_wire(ROUND, key="r")
    attempt: int = on_wire(ATTEMPT, 0, key="a", brief=True)
    phase: str = on_wire(choice("selection", "working", "waiting", "done"), "selection", key="p", brief=True)
    fraction: float = on_wire(number(0.0, 1.0), 1.0, key="f", brief=True)
    window_seconds: float = on_wire(SECONDS, 0.0, key="w", brief=True)
    reason: str = on_wire(REASON, "", key="x", brief=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """To one device: what became of a ticket. ``digest`` is the update's short one, empty where none is meant."""

    kind: ClassVar[str] = "verdict"
    ticket: bytes = on_wire(TICKET, key="t")
    digest: bytes = on_wire(octets_upto(ID_BYTES), b"", key="d", brief=True)
    outcome: str = on_wire(numbered(OUTCOMES), UNKNOWN, key="o", pack=OUTCOMES.index, required=True)
    reason: str = on_wire(REASON, "", key="r", brief=True)
    retry_seconds: float = on_wire(SECONDS, 0.0, key="s", brief=True)


VERDICTS_WAITING: Final = list_of(record(Verdict), UNSETTLED_MAX)


@dataclass(frozen=True, slots=True)
class CheckIn:
    """From a device: I could work.

    Attributes:
        nonce: The answer echoes it.
        introduction: Names instance and capabilities (:func:`introduction_id`). A coordinator that has heard them knows
            what is meant; else it asks for them.
        instance, capabilities: What the device is, said while the coordinator may not know it, absent afterwards.
        unsettled: The tickets whose outcome the device does not know yet.
        holds: The parameters that it has, by short digests, the newest first.
        terms: The terms that it knows, by short digests, those used last first.
    """

    kind: ClassVar[str] = "checkin"
    nonce: bytes = on_wire(NONCE, key="n")
    introduction: bytes = on_wire(ID, key="w")
    instance: bytes = on_wire(octets(INSTANCE_BYTES), b"", key="i", brief=True)
    capabilities: dict[str, Any] = on_wire(_capabilities, default_factory=dict, key="c", brief=True)
    unsettled: tuple[bytes, ...] = on_wire(list_of(TICKET, UNSETTLED_MAX), (), key="u", brief=True)
    holds: tuple[bytes, ...] = on_wire(list_of(ID, HOLDS_MAX), (), key="h", brief=True)
    terms: tuple[bytes, ...] = on_wire(list_of(ID, TERMS_NAMED_MAX), (), key="t", brief=True)


def introduction_id(instance: bytes, capabilities: Mapping[str, Any]) -> bytes:
    """The short digest of what a device is: its instance and its capabilities."""
    import hashlib  # loads OpenSSL: only when something has in fact been said

    return short(hashlib.sha256(instance + pack_map(capabilities)).digest())


@dataclass(frozen=True, slots=True)
class Invite:
    """To one device, the answer to its check-in: a ticket, what to fetch, what to do.

    Attributes:
        nonce: That of the check-in; a reply with another one is dropped.
        ticket: Names this piece of work (rule 2 of the protocol: a ticket is its identity).
        round, attempt: Number of the round, and which attempt at it.
        parameters: SHA-256 of the parameters to train from.
        report_seconds: Until when the update must have arrived, in seconds from when the device *sent* the check-in.
        terms: What is asked, encoded (:class:`edge_sdk.wire.terms.Terms`); their short digest where the check-in said
            that the device knows them.
        verdicts: On the tickets that the check-in named as unsettled.
        base: Short digest of the parameters that ``deltas`` start from, which the device said that it has.
        deltas: ``(digest, bytes)`` of model deltas, the oldest first, that lead from ``base`` to ``parameters``.
            Without them, or where they fail, the parameters are fetched whole.
        inline: Those deltas themselves where they are small, in the place of ``deltas``; without ``base`` the
            parameters.
        packed: SHA-256 and bytes of the packed parameters (``packing.py``), where the device fetches them whole.
        vectors: ``(name, digest, bytes)`` of further blobs of the size of the parameters, which the plan's local
            algorithm needs.
    """

    kind: ClassVar[str] = "invite"
    nonce: bytes = on_wire(NONCE, key="n")
    ticket: bytes = on_wire(TICKET, key="t")
    round: int = on_wire(ROUND, key="r")
    attempt: int = on_wire(ATTEMPT, 0, key="a", brief=True)
    parameters: bytes = on_wire(DIGEST, b"", key="m", required=True)
    report_seconds: float = on_wire(SECONDS, 0.0, key="s", required=True)
    terms: bytes = on_wire(octets_upto(BODY_BYTES_MAX, ID_BYTES), b"", key="k", required=True)
    verdicts: tuple[Verdict, ...] = on_wire(VERDICTS_WAITING, (), key="v", brief=True)
    base: bytes = on_wire(octets_upto(ID_BYTES), b"", key="b", brief=True)
    deltas: tuple[tuple[bytes, int], ...] = on_wire(list_of(MODEL_DELTA, DELTAS_MAX), (), key="d", brief=True)
    inline: tuple[bytes, ...] = on_wire(list_of(DATA, DELTAS_MAX), (), key="i", brief=True)
    packed: tuple[bytes, int] | None = on_wire(PACKED, None, key="z", brief=True)
    vectors: tuple[tuple[str, bytes, int], ...] = on_wire(list_of(VECTOR, VECTORS_MAX), (), key="x", brief=True)


@dataclass(frozen=True, slots=True)
class ComeBack:
    """To one device, the answer to its check-in: not now.

    Ask again after ``seconds`` if nothing is announced before; with ``hold``, heed no announcement until then. With
    ``introduce``, ask again at once and say instance and capabilities, which are not known here.
    """

    kind: ClassVar[str] = "come_back"
    nonce: bytes = on_wire(NONCE, key="n")
    seconds: float = on_wire(SECONDS, 0.0, key="s", brief=True)
    hold: bool = on_wire(boolean, False, key="h", brief=True)
    introduce: bool = on_wire(boolean, False, key="i", brief=True)
    reason: str = on_wire(REASON, "", key="r", brief=True)
    verdicts: tuple[Verdict, ...] = on_wire(VERDICTS_WAITING, (), key="v", brief=True)


@dataclass(frozen=True, slots=True)
class Accept:
    """From a device: I take this ticket."""

    kind: ClassVar[str] = "accept"
    ticket: bytes = on_wire(TICKET, key="t")


@dataclass(frozen=True, slots=True)
class Decline:
    """From a device: I give this ticket back, before or during work.

    ``reason`` is a short code. ``detail`` says more to people, in words that hold nothing of the device's examples.
    """

    kind: ClassVar[str] = "decline"
    ticket: bytes = on_wire(TICKET, key="t")
    reason: str = on_wire(REASON, "", key="r", brief=True)
    detail: str = on_wire(REASON, "", key="x", brief=True)


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """From a device: send me these byte ranges of the blob with this short digest."""

    kind: ClassVar[str] = "want"
    digest: bytes = on_wire(ID, key="d")
    ranges: tuple[tuple[int, int], ...] = on_wire(list_of(_range, 64), key="r")


@dataclass(frozen=True, slots=True)
class RangeData:
    """To one device: one byte range of a blob."""

    kind: ClassVar[str] = "bytes"
    digest: bytes = on_wire(ID, key="d")
    offset: int = on_wire(OFFSET, 0, key="o", brief=True)
    data: bytes = on_wire(DATA, b"", key="x", required=True)


@dataclass(frozen=True, slots=True)
class BlobGone:
    """To one device: nobody serves this blob any more."""

    kind: ClassVar[str] = "gone"
    digest: bytes = on_wire(ID, key="d")


@dataclass(frozen=True, slots=True)
class Offer:
    """From a device: I hold an update of ``total`` bytes; which of them do you have? First contact and resume alike."""

    kind: ClassVar[str] = "offer"
    ticket: bytes = on_wire(TICKET, key="t")
    digest: bytes = on_wire(DIGEST, key="d")
    total: int = on_wire(SIZE, key="n")


@dataclass(frozen=True, slots=True)
class Have:
    """To one device, the answer to an offer: these ranges are stored, send the others.

    ``chunk_bytes_max`` > 0 limits one chunk, in bytes. It stands here and not in the invite, so that it also reaches a
    device that has restarted since.
    """

    kind: ClassVar[str] = "have"
    ticket: bytes = on_wire(TICKET, key="t")
    digest: bytes = on_wire(ID, key="d")
    ranges: tuple[tuple[int, int], ...] = on_wire(list_of(_range, RANGES_MAX), (), key="r", brief=True)
    chunk_bytes_max: int = on_wire(integer(0, BODY_BYTES_MAX), 0, key="k", brief=True)


@dataclass(frozen=True, slots=True)
class Chunk:
    """From a device, on the bulk topic: one byte range of an update.

    ``total`` is 0 in a chunk that is the whole update: there the short ``digest`` is enough.
    """

    kind: ClassVar[str] = "chunk"
    ticket: bytes = on_wire(TICKET, key="t")
    digest: bytes = on_wire(octets_upto(DIGEST_BYTES, ID_BYTES), key="d")
    total: int = on_wire(integer(0, BLOB_BYTES_MAX), 0, key="n", brief=True)
    offset: int = on_wire(OFFSET, 0, key="o", brief=True)
    data: bytes = on_wire(DATA, b"", key="x", required=True)


Message = (
    Announce
    | Verdict
    | CheckIn
    | Invite
    | ComeBack
    | Accept
    | Decline
    | RangeRequest
    | RangeData
    | BlobGone
    | Offer
    | Have
    | Chunk
)
MESSAGES: Final[dict[str, type[Message]]] = {
    cls.kind: cls
    for cls in (
        Announce,
        Verdict,
        CheckIn,
        Invite,
        ComeBack,
        Accept,
        Decline,
        RangeRequest,
        RangeData,
        BlobGone,
        Offer,
        Have,
        Chunk,
    )
}


@dataclass(frozen=True, slots=True)
class Update:
    """What an update's bytes hold: encoded vectors and the numbers that go with them.

    Attributes:
        examples: Local examples trained on: the update's weight before the plan's cap.
        steps: Optimiser steps really done.
        loss: Mean training loss of the last epoch.
        complete: False where the time budget ended training early.
        seconds: Training time in seconds.
        engine: The engine's name.
        vectors: Frames of each vector by its name, in the order of the plan's groups. ``DELTA`` is the model's; others
            are what a local algorithm sends beside it.
        numbers: What a local algorithm reports, by name.
        arrays: What it reports in a form of its own (sums, counts), as bytes by name.
        evaluation: ``(loss_sum, metric_sum, count)`` of the *received* parameters on held-out local examples, or None.
    """

    kind: ClassVar[str] = "update"
    examples: int = on_wire(integer(1, 1 << 40), key="n")
    steps: int = on_wire(integer(0, 1 << 40), key="s")
    loss: float = on_wire(TOTAL, key="l")
    complete: bool = on_wire(boolean, True, key="c", brief=True)
    seconds: float = on_wire(SECONDS, 0.0, key="t", brief=True)
    engine: str = on_wire(text(64), "", key="e", brief=True)
    vectors: dict[str, tuple[bytes, ...]] = on_wire(
        map_of(list_of(octets_upto(BLOB_BYTES_MAX), FRAMES_MAX), VECTORS_MAX, NAME),
        default_factory=dict,
        key="u",
        required=True,
    )
    numbers: dict[str, float] = on_wire(map_of(TOTAL, NUMBERS_MAX, NAME), default_factory=dict, key="i", brief=True)
    arrays: dict[str, bytes] = on_wire(
        map_of(octets_upto(ARRAY_BYTES_MAX), ARRAYS_MAX, NAME), default_factory=dict, key="a", brief=True
    )
    evaluation: tuple[float, float, int] | None = on_wire(EVALUATION, None, key="o", brief=True)

    def frames(self, name: str = DELTA) -> tuple[bytes, ...]:
        """The frames of one vector.

        Raises:
            DecodeError: The update has no vector of that name.
        """
        found = self.vectors.get(name)
        if found is None:
            raise DecodeError(f"update.vectors: has no {name!r}", reason="vectors")
        return found

    def encode(self) -> bytes:
        """The update as the bytes that are offered, digested, journalled."""
        return pack_map({"v": VERSION, **to_map(self)})

    @classmethod
    def decode(cls, data: bytes) -> Update:
        """The inverse of :meth:`encode`, for bytes that nobody vouches for.

        Raises:
            DecodeError: The bytes are no well-formed update.
            VersionError: The update's version is not spoken here.
        """
        source: Mapping[str, Any] = unpack_map(data, "update")
        check_version(source.get("v"), "update", "device")
        return from_map(cls, source)
