"""Every control message: a frozen dataclass on this side, a msgpack map on the wire, checked on the way in.

Each message travels inside an envelope (rule 8 of the protocol)::

    {version, kind, federation, lineage, task, phase, group, shard, body: bytes, sig: bytes | nil, enc: nil}

``body`` is the message's own msgpack map, kept as bytes so that a signature can cover exactly what was sent. Unknown
fields are ignored on both levels, so that a newer peer may say more; what must be *understood* is listed in an
invite's ``requires``. A field's check is declared beside it; encode and decode are made from the declarations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import msgpack

from edge_sdk.codecs import TENSOR_RULES_MAX, CodecSettings
from edge_sdk.errors import DecodeError, ProtocolError, VersionError
from edge_sdk.wire.plan import TrainingPlan, checked_int, checked_map
from edge_sdk.wire.safe_msgpack import unpack_checked
from edge_sdk.wire.topics import is_segment

__all__ = [
    "BODY_BYTES_MAX",
    "DELTAS_MAX",
    "DIGEST_BYTES",
    "HOLDS_MAX",
    "TICKET_BYTES",
    "VERSION",
    "Accept",
    "Announce",
    "BlobGone",
    "CheckIn",
    "Chunk",
    "ComeBack",
    "Decline",
    "Envelope",
    "Have",
    "Invite",
    "Message",
    "Offer",
    "Plan",
    "RangeData",
    "RangeRequest",
    "Update",
    "Verdict",
    "decode_message",
    "encode_message",
]

VERSION: Final = 1
TICKET_BYTES: Final = 16
DIGEST_BYTES: Final = 32
NONCE_BYTES: Final = 8
BODY_BYTES_MAX: Final = 1 << 20
"""No message is larger than this, whatever a broker lets through; 60,000 bytes is what we send."""
BLOB_BYTES_MAX: Final = 1 << 31
SECONDS_MAX: Final = 1e9
RANGES_MAX: Final = 1024
UNSETTLED_MAX: Final = 8
HOLDS_MAX: Final = 4
DELTAS_MAX: Final = 256
OBJECTS_MAX: Final = 4096
"""Objects in one message: a ``have`` with all its ranges needs 3,100 of them."""
DEPTH_MAX: Final = 8
BYTE_LIMITS: Final = ("bytes_per_update_max", "bytes_per_device_per_day_max")
BYTE_LIMIT_MAX: Final = 1 << 50

OUTCOMES: Final = ("received", "counted", "refused", "late", "missing", "abandoned", "declined", "unknown", "busy")
"""What a verdict may say. ``received`` is the receipt; ``busy`` is retryable; ``counted`` and the rest are final."""

Check = Callable[[object, str], Any]


# --- checks of single fields -----------------------------------------------------------------------------------------


def _data(length: int) -> Check:
    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise DecodeError(f"{where}: expected {length} bytes")
        return value

    return check


def _data_upto(length_max: int) -> Check:
    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) > length_max:
            raise DecodeError(f"{where}: expected at most {length_max} bytes")
        return value

    return check


def _text(length_max: int) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or len(value) > length_max:
            raise DecodeError(f"{where}: expected text of at most {length_max} characters")
        return value

    return check


def _choice(*allowed: str) -> Check:
    def check(value: object, where: str) -> str:
        if value not in allowed:
            raise DecodeError(f"{where}: {str(value)[:40]!r} is not one of {allowed}")
        return value

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise DecodeError(f"{where}: {str(value)[:40]!r} is not an integer in {low}..{high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DecodeError(f"{where}: {str(value)[:40]!r} is not a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise DecodeError(f"{where}: {str(value)[:40]!r} is not a finite number in {low:g}..{high:g}")
        return float(value)

    return check


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise DecodeError(f"{where}: expected true or false")
    return value


def _list_of(item: Check, length_max: int) -> Check:
    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > length_max:
            raise DecodeError(f"{where}: expected a list of at most {length_max} entries")
        return tuple([item(entry, where) for entry in value])

    return check


_POSITION: Final = _integer(0, BLOB_BYTES_MAX)
_CAPABILITY: Final = _text(64)
_CAPABILITIES: Final = _list_of(_CAPABILITY, 64)


def _range(value: object, where: str) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DecodeError(f"{where}: expected [start, stop]")
    start, stop = _POSITION(value[0], where), _POSITION(value[1], where)
    if start >= stop:
        raise DecodeError(f"{where}: the range {start}..{stop} is empty")
    return start, stop


def _capabilities(value: object, where: str) -> dict[str, Any]:
    source = checked_map(value, where)
    if len(source) > 32:
        raise DecodeError(f"{where}: more than 32 entries")
    return {_CAPABILITY(key, where): _capability(entry, where) for key, entry in source.items()}


def _capability(value: object, where: str) -> str | list[str]:
    """Text or a list of texts; a number or a truth value is taken as its text, for people."""
    if isinstance(value, list):
        return list(_CAPABILITIES(value, where))
    if not isinstance(value, str | int | float):
        raise DecodeError(f"{where}: expected text or a list of texts, got {type(value).__name__}")
    return str(_CAPABILITY(str(value), where))


def _evaluation(value: object, where: str) -> tuple[float, float, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise DecodeError(f"{where}: expected [loss_sum, metric_sum, count]")
    total = _number(-1e12, 1e12)
    return total(value[0], where), total(value[1], where), _integer(1, 1 << 40)(value[2], where)


def _link(value: object, where: str) -> tuple[bytes, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise DecodeError(f"{where}: expected [digest, bytes]")
    return digest_field(value[0], where), size_field(value[1], where)


def _verdicts(value: object, where: str) -> tuple[Verdict, ...]:
    entries = _list_of(checked_map, UNSETTLED_MAX)(value, where)
    return tuple(_from_map(Verdict, entry) for entry in entries)


def _plan(value: object, where: str) -> Plan:
    return Plan.from_wire(value)


def _on_wire(check: Check, default: Any = dataclasses.MISSING, *, brief: bool = False) -> Any:
    """A dataclass field with its wire check.

    A field with a default may be absent on the wire; a ``brief`` one is, wherever it has nothing to say.
    """
    return dataclasses.field(default=default, metadata={"check": check, "brief": brief})


# --- the messages ----------------------------------------------------------------------------------------------------

ticket_field: Final = _data(TICKET_BYTES)
digest_field: Final = _data(DIGEST_BYTES)
nonce_field: Final = _data(NONCE_BYTES)
seconds_field: Final = _number(0.0, SECONDS_MAX)
round_field: Final = _integer(0, 1 << 40)
size_field: Final = _integer(1, BLOB_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round asks of a device.

    Attributes:
        training: How to train.
        codec: How to encode the delta.
        examples_max: The largest weight, in examples, that one update may claim.
        weighting: ``examples`` (weight = number of examples) or ``uniform`` (weight 1).
        bytes_per_update_max: Bytes on the wire that bringing one update may take, 0 for no limit.
        bytes_per_device_per_day_max: Bytes on the wire that a device may send and receive in a day, 0 for no limit.
    """

    training: TrainingPlan
    codec: CodecSettings
    examples_max: int = 100_000
    weighting: str = "examples"
    bytes_per_update_max: int = 0
    bytes_per_device_per_day_max: int = 0

    def to_wire(self) -> dict[str, Any]:
        """The plan as a msgpack map; what is not limited is left out, as older peers do."""
        limits = {name: getattr(self, name) for name in BYTE_LIMITS if getattr(self, name)}
        return {
            "training": self.training.to_wire(),
            "codec": self.codec.to_wire(),
            "examples_max": self.examples_max,
            "weighting": self.weighting,
            **limits,
        }

    @classmethod
    def from_wire(cls, value: object) -> Plan:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: A field is missing or out of range.
        """
        source = checked_map(value, "plan")
        return cls(
            training=TrainingPlan.from_wire(source.get("training")),
            codec=CodecSettings.from_wire(source.get("codec")),
            examples_max=checked_int(source, "examples_max", 1, 1 << 40, "plan"),
            weighting=_choice("examples", "uniform")(source.get("weighting"), "plan.weighting"),
            **{name: checked_int(source, name, 0, BYTE_LIMIT_MAX, "plan") for name in BYTE_LIMITS if name in source},
        )


@dataclass(frozen=True, slots=True)
class Announce:
    """Retained, to all devices: what the coordinator is doing. Only a hint (rule 3)."""

    kind: ClassVar[str] = "announce"
    incarnation: int = _on_wire(_integer(0, 1 << 60))
    round: int = _on_wire(round_field)
    attempt: int = _on_wire(_integer(0, 1 << 30))
    phase: str = _on_wire(_choice("selection", "working", "waiting", "done"))
    fraction: float = _on_wire(_number(0.0, 1.0))
    window_seconds: float = _on_wire(seconds_field)
    remaining_seconds: float = _on_wire(seconds_field)
    requires: tuple[str, ...] = _on_wire(_list_of(_text(64), 32), ())
    reason: str = _on_wire(_text(400), "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """To one device: what became of a ticket. ``digest`` is empty where no update is meant."""

    kind: ClassVar[str] = "verdict"
    ticket: bytes = _on_wire(ticket_field)
    digest: bytes = _on_wire(_data_upto(DIGEST_BYTES))
    outcome: str = _on_wire(_choice(*OUTCOMES))
    reason: str = _on_wire(_text(400), "")
    retry_seconds: float = _on_wire(seconds_field, 0.0)


@dataclass(frozen=True, slots=True)
class CheckIn:
    """From a device: I could work.

    ``unsettled`` names the tickets whose outcome it does not know yet, ``holds`` by SHA-256 the parameters that it has.
    """

    kind: ClassVar[str] = "checkin"
    nonce: bytes = _on_wire(nonce_field)
    instance: bytes = _on_wire(_data(16))
    capabilities: dict[str, Any] = _on_wire(_capabilities)
    unsettled: tuple[bytes, ...] = _on_wire(_list_of(ticket_field, UNSETTLED_MAX), ())
    holds: tuple[bytes, ...] = _on_wire(_list_of(digest_field, HOLDS_MAX), (), brief=True)


@dataclass(frozen=True, slots=True)
class Invite:
    """To one device, the answer to its check-in: a ticket, what to fetch, what to do.

    ``accept_seconds`` and ``report_seconds`` count from when the device *sent* the check-in with this nonce.
    ``deltas``, the oldest first, as ``(digest, bytes)``, lead from the parameters ``base``, which the device said that
    it has, to ``parameters``; without them, or where they fail, the parameters are fetched whole. ``blob_bytes`` > 0
    says that the program, and the deltas or else the parameters, are also retained in pieces of that size (rule 7).
    """

    kind: ClassVar[str] = "invite"
    nonce: bytes = _on_wire(nonce_field)
    ticket: bytes = _on_wire(ticket_field)
    round: int = _on_wire(round_field)
    attempt: int = _on_wire(_integer(0, 1 << 30))
    program: bytes = _on_wire(digest_field)
    program_bytes: int = _on_wire(size_field)
    parameters: bytes = _on_wire(digest_field)
    parameters_bytes: int = _on_wire(size_field)
    plan: Plan = _on_wire(_plan)
    accept_seconds: float = _on_wire(seconds_field)
    report_seconds: float = _on_wire(seconds_field)
    chunk_bytes_max: int = _on_wire(_integer(256, BODY_BYTES_MAX))
    blob_bytes: int = _on_wire(_integer(0, BODY_BYTES_MAX), 0)
    requires: tuple[str, ...] = _on_wire(_list_of(_text(64), 32), ())
    verdicts: tuple[Verdict, ...] = _on_wire(_verdicts, ())
    base: bytes = _on_wire(_data_upto(DIGEST_BYTES), b"", brief=True)
    deltas: tuple[tuple[bytes, int], ...] = _on_wire(_list_of(_link, DELTAS_MAX), (), brief=True)


@dataclass(frozen=True, slots=True)
class ComeBack:
    """To one device, the answer to its check-in: not now.

    Ask again after ``seconds`` if nothing is announced before; with ``hold``, heed no announcement until then.
    """

    kind: ClassVar[str] = "come_back"
    nonce: bytes = _on_wire(nonce_field)
    seconds: float = _on_wire(seconds_field)
    hold: bool = _on_wire(_boolean, False)
    reason: str = _on_wire(_text(400), "")
    verdicts: tuple[Verdict, ...] = _on_wire(_verdicts, ())


@dataclass(frozen=True, slots=True)
class Accept:
    """From a device: I take this ticket."""

    kind: ClassVar[str] = "accept"
    ticket: bytes = _on_wire(ticket_field)


@dataclass(frozen=True, slots=True)
class Decline:
    """From a device: I give this ticket back, before or during work."""

    kind: ClassVar[str] = "decline"
    ticket: bytes = _on_wire(ticket_field)
    reason: str = _on_wire(_text(400), "")


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """From a device: send me these byte ranges of a blob."""

    kind: ClassVar[str] = "want"
    digest: bytes = _on_wire(digest_field)
    ranges: tuple[tuple[int, int], ...] = _on_wire(_list_of(_range, 64))


@dataclass(frozen=True, slots=True)
class RangeData:
    """To one device: one byte range of a blob of ``total`` bytes."""

    kind: ClassVar[str] = "bytes"
    digest: bytes = _on_wire(digest_field)
    total: int = _on_wire(size_field)
    offset: int = _on_wire(_integer(0, BLOB_BYTES_MAX))
    data: bytes = _on_wire(_data_upto(BODY_BYTES_MAX))


@dataclass(frozen=True, slots=True)
class BlobGone:
    """To one device: nobody serves this blob any more."""

    kind: ClassVar[str] = "gone"
    digest: bytes = _on_wire(digest_field)


@dataclass(frozen=True, slots=True)
class Offer:
    """From a device: I hold an update of ``total`` bytes; which of them do you have? First contact and resume alike."""

    kind: ClassVar[str] = "offer"
    ticket: bytes = _on_wire(ticket_field)
    digest: bytes = _on_wire(digest_field)
    total: int = _on_wire(size_field)


@dataclass(frozen=True, slots=True)
class Have:
    """To one device, the answer to an offer: these ranges are stored, send the others.

    ``chunk_bytes_max`` > 0 limits one chunk, in bytes. It stands here and not in the invite, so that it also reaches a
    device that has restarted since.
    """

    kind: ClassVar[str] = "have"
    ticket: bytes = _on_wire(ticket_field)
    digest: bytes = _on_wire(digest_field)
    ranges: tuple[tuple[int, int], ...] = _on_wire(_list_of(_range, RANGES_MAX))
    chunk_bytes_max: int = _on_wire(_integer(0, BODY_BYTES_MAX), 0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """From a device, on the bulk topic: one byte range of an update."""

    kind: ClassVar[str] = "chunk"
    ticket: bytes = _on_wire(ticket_field)
    digest: bytes = _on_wire(digest_field)
    total: int = _on_wire(size_field)
    offset: int = _on_wire(_integer(0, BLOB_BYTES_MAX))
    data: bytes = _on_wire(_data_upto(BODY_BYTES_MAX))


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
    """What an update's bytes hold: the encoded delta and the numbers that go with it.

    Attributes:
        examples: Local examples trained on: the update's weight before the plan's cap.
        steps: Optimiser steps really done.
        loss: Mean training loss of the last lineage.
        complete: False where the time budget ended training early.
        seconds: Training time in seconds.
        engine: The engine's name.
        frame: The codec's frame.
        evaluation: ``(loss_sum, metric_sum, count)`` of the *received* parameters on held-out local examples, or None.
        buffers: The frame of the parameters of kind buffer; absent where the model has none.
        parts: Frames of tensors that the plan has encoded apart; absent where it has none so.
    """

    kind: ClassVar[str] = "update"
    examples: int = _on_wire(_integer(1, 1 << 40))
    steps: int = _on_wire(_integer(0, 1 << 40))
    loss: float = _on_wire(_number(-1e12, 1e12))
    complete: bool = _on_wire(_boolean)
    seconds: float = _on_wire(seconds_field)
    engine: str = _on_wire(_text(64))
    frame: bytes = _on_wire(_data_upto(BLOB_BYTES_MAX))
    evaluation: tuple[float, float, int] | None = _on_wire(_evaluation, None)
    buffers: bytes | None = _on_wire(_data_upto(BLOB_BYTES_MAX), None, brief=True)
    parts: tuple[bytes, ...] = _on_wire(_list_of(_data_upto(BLOB_BYTES_MAX), TENSOR_RULES_MAX), (), brief=True)

    def encode(self) -> bytes:
        """The update as the bytes that are offered, digested, journalled."""
        return cast(bytes, msgpack.packb({"version": VERSION, **_to_map(self)}))

    @classmethod
    def decode(cls, data: bytes) -> Update:
        """The inverse of :meth:`encode`, for bytes that nobody vouches for.

        Raises:
            DecodeError: The bytes are no well-formed update.
            VersionError: The update's version is not spoken here.
        """
        source = _unpack_map(data, "update")
        _check_version(source.get("version"), "update", "device")
        return cast(Update, _from_map(cls, source))


# --- the envelope ----------------------------------------------------------------------------------------------------


_LINEAGE: Final = _data_upto(16)
_NAME: Final = _text(64)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around every message; see the module's docstring. ``lineage`` is empty while a device knows none."""

    federation: str
    task: str
    lineage: bytes = b""
    phase: str = "report"
    group: str = ""
    shard: str = ""


_ENVELOPE_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Envelope))


def encode_message(envelope: Envelope, message: Message) -> bytes:
    """One MQTT payload."""
    e = envelope
    before, after = _around(message.kind, e.federation, e.lineage, e.task, e.phase, e.group, e.shard)
    body = msgpack.packb(_to_map(message), default=_plain)
    return b"".join((before, _binary_head(len(body)), body, after))


@functools.lru_cache(maxsize=256)
def _around(
    kind: str, federation: str, lineage: bytes, task: str, phase: str, group: str, shard: str
) -> tuple[bytes, bytes]:
    """The envelope's bytes before and after its body: the same for every message of a kind."""
    head = {
        "version": VERSION,
        "kind": kind,
        "federation": federation,
        "lineage": lineage,
        "task": task,
        "phase": phase,
        "group": group,
        "shard": shard,
        "body": None,
        "sig": None,
        "enc": None,
    }
    packed = cast(bytes, msgpack.packb(head))
    tail = cast(bytes, msgpack.packb({"sig": None, "enc": None}))[1:]
    return packed[: len(packed) - len(tail) - 1], tail


def _binary_head(length: int) -> bytes:
    """What msgpack writes before so many bytes of binary data."""
    if length < 1 << 8:
        return bytes((0xC4, length))
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")


def decode_message(
    payload: bytes, *, federation: str, expected: tuple[str, ...], peer: str
) -> tuple[Envelope, Message]:
    """The message in one MQTT payload, checked.

    Args:
        payload: Bytes that nobody vouches for.
        federation: The federation whose topic they came on.
        expected: The kinds that this side takes on that topic.
        peer: Who sent it (``device`` or ``coordinator``), for the upgrade advice in a version error.

    Raises:
        DecodeError: Malformed, truncated, oversize or out-of-range bytes, or a kind that is not expected.
        VersionError: A version that this side does not speak.
        ProtocolError: The envelope names another federation.
    """
    if len(payload) > BODY_BYTES_MAX:
        raise DecodeError(f"message of {len(payload)} bytes, at most {BODY_BYTES_MAX} are allowed", reason="oversize")
    source = _unpack_map(payload, "envelope")
    _check_version(source.get("version"), "message", peer)
    kind = source.get("kind")
    if kind not in expected:
        raise DecodeError(f"envelope.kind: {str(kind)[:40]!r} is not one of {expected}", reason="kind")
    if source.get("federation") != federation:
        raise ProtocolError(
            f"envelope.federation: {str(source.get('federation'))[:64]!r} on a topic of {federation!r}",
            reason="wrong_federation",
        )
    if source.get("enc") is not None:
        raise DecodeError("envelope.enc: encrypted bodies are not spoken here", reason="version")
    try:
        envelope = _envelope(*[source.get(name) for name in _ENVELOPE_FIELDS])
    except TypeError:
        raise DecodeError("envelope: one of its names is a list or a map") from None
    body = source.get("body")
    if not isinstance(body, bytes):
        raise DecodeError("envelope.body: expected bytes")
    return envelope, _from_map(MESSAGES[kind], _unpack_map(body, kind))


@functools.lru_cache(maxsize=256)
def _envelope(federation: Any, task: Any, lineage: Any, phase: Any, group: Any, shard: Any) -> Envelope:
    """The checked envelope; one object for all messages that share it."""
    if not isinstance(task, str) or not is_segment(task):
        raise DecodeError("envelope.task: not a topic segment")
    return Envelope(
        federation=federation,
        task=task,
        lineage=_LINEAGE(lineage, "envelope.lineage"),
        phase=_NAME(phase, "envelope.phase"),
        group=_NAME(group, "envelope.group"),
        shard=_NAME(shard, "envelope.shard"),
    )


def _unpack_map(data: bytes, where: str) -> dict[str, Any]:
    return checked_map(unpack_checked(data, objects_max=OBJECTS_MAX, depth_max=DEPTH_MAX, where=where), where)


def _check_version(version: object, what: str, peer: str) -> None:
    if version == VERSION and not isinstance(version, bool):
        return
    if isinstance(version, int) and version > VERSION:
        raise VersionError(f"{what} of version {version}, this side speaks {VERSION}: upgrade edgefed on this side")
    raise VersionError(
        f"{what} of version {str(version)[:20]!r}, this side speaks {VERSION}: upgrade edgefed on the {peer}"
    )


_ABSENT: Final = object()


class _Layout:
    """A message class as encode and decode need it, made once from its declaration."""

    __slots__ = ("brief", "fields", "names", "values")

    def __init__(self, cls: Any) -> None:
        declared = dataclasses.fields(cls)
        self.names = tuple(f.name for f in declared)
        self.brief = tuple((f.name, f.default) for f in declared if f.metadata["brief"])
        self.fields = tuple((f.name, f"{cls.kind}.{f.name}", f.metadata["check"], f.default) for f in declared)
        get = operator.attrgetter(*self.names)
        self.values: Callable[[Any], tuple[Any, ...]] = get if len(self.names) > 1 else lambda message: (get(message),)


@functools.cache
def _layout(cls: Any) -> _Layout:
    return _Layout(cls)


def _from_map(cls: Any, source: dict[str, Any]) -> Any:
    values = []
    for name, where, check, default in _layout(cls).fields:
        value = source.get(name, _ABSENT)
        if value is not _ABSENT:
            values.append(check(value, where))
        elif default is dataclasses.MISSING:
            raise DecodeError(f"{where}: missing")
        else:
            values.append(default)
    return cls(*values)


def _to_map(message: Any) -> dict[str, Any]:
    cls: Any = type(message)
    layout = _layout(cls)
    fields = dict(zip(layout.names, layout.values(message), strict=True))
    for name, default in layout.brief:
        if fields[name] == default:
            del fields[name]
    return fields


def _plain(value: Any) -> Any:
    """What msgpack asks for where it does not know a type."""
    if isinstance(value, Plan):
        return value.to_wire()
    if isinstance(value, Verdict):
        return _to_map(value)
    raise TypeError(f"{type(value).__name__} does not travel")
