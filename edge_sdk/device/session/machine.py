"""The device's state machine. PURE: no I/O, no clock, no thread, only ``handle(event, now)`` and ``next_deadline()``.

What it does, in prose:

* ``idle``: an announcement is a hint (rule 3). When one says ``selection``, the device draws whether it is within the
  announced fraction and, if so, at which moment of the window it checks in.
* ``checking_in``: a check-in is out. Replies that echo one of its nonces count, all others are dropped; seconds in a
  reply count from when *that* check-in was sent. Silence repeats it with backoff.
* ``fetching``: invited and accepted; program and parameters come by digest, unless they are here already. Where the
  invite names deltas from parameters that are here, the deltas are fetched and applied; if any of that fails, the
  parameters come whole.
* ``training``: the shell works. A newer announcement, a final verdict, or the loss of eligibility cancels it.
* ``uploading``: the update is on disk and goes to a *live* coordinator (rule 6) until a verdict ends it.

Beside the state there may be one *unsettled* ticket: received, but not yet known to be counted (rule 4). It is named
in every check-in, and while it stands no new ticket is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np

from edge_sdk.device.session.download import PIECE_BYTES, Download
from edge_sdk.device.session.events import (
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
    Published,
    Send,
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
)
from edge_sdk.device.session.upload import Upload
from edge_sdk.errors import DecodeError, ProtocolError
from edge_sdk.wire.envelope import ENVELOPE_BYTES_MAX, Envelope, decode_message, encode_message
from edge_sdk.wire.messages import (
    HOLDS_MAX,
    Accept,
    Announce,
    BlobGone,
    CheckIn,
    Chunk,
    ComeBack,
    Decline,
    Have,
    Invite,
    Message,
    RangeData,
    RangeRequest,
    Verdict,
)
from edge_sdk.wire.outcomes import BUSY, COUNTED, FINAL_OUTCOMES, RECEIVED
from edge_sdk.wire.ranges import CHUNK_BYTES_FLOOR, CHUNK_BYTES_MAX, ChunkSize
from edge_sdk.wire.topics import Topics

__all__ = ["Session", "SessionSettings"]

IDLE: Final = "idle"
CHECKING_IN: Final = "checking_in"
FETCHING: Final = "fetching"
TRAINING: Final = "training"
UPLOADING: Final = "uploading"

TRANSITIONS: Final[dict[str, frozenset[str]]] = {
    IDLE: frozenset({CHECKING_IN, UPLOADING}),
    CHECKING_IN: frozenset({IDLE, FETCHING, TRAINING}),
    FETCHING: frozenset({IDLE, TRAINING}),
    TRAINING: frozenset({IDLE, UPLOADING}),
    UPLOADING: frozenset({IDLE}),
}

REPLY_SECONDS: Final = 5.0
REPLY_SECONDS_MAX: Final = 60.0
ATTEMPTS_UNTIL_HINT: Final = 4
NONCES_KEPT: Final = 4
TRAINING_SHARE: Final = 0.8
"""Share of the time left that training may take; the rest is for encoding and the link."""
STATE_BYTES_MAX: Final = 20_000
SETTLE_WINDOW_SECONDS: Final = 10.0
NEVER: Final = float("inf")
SETTLE_SECONDS_MAX: Final = 900.0
RESUME_WINDOW_SECONDS: Final = 5.0
LISTEN_SECONDS: Final = 60.0
LISTEN_SECONDS_MAX: Final = 600.0

Asked = tuple[bytes, int, int, bool]
"""What an announcement asks for, so that it is answered once: lineage, round, attempt, whether all is done."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What a session must know of its device.

    Attributes:
        federation: Topic segment of the federation.
        task: Topic segment of the task.
        device: Topic segment of the device, the MQTT user name where the broker has ACLs.
        instance: 16 random bytes, made with the state directory (rule 2).
        capabilities: What the check-in says of this device.
        supports: What a plan may require of this device.
        program_bytes_max: Largest program accepted, in bytes.
        parameters_bytes_max: Largest parameters blob accepted, in bytes.
    """

    federation: str
    task: str
    device: str
    instance: bytes
    capabilities: dict[str, Any] = field(default_factory=dict)
    supports: frozenset[str] = frozenset()
    program_bytes_max: int = 64 << 20
    parameters_bytes_max: int = 256 << 20


@lru_cache(maxsize=16)
def _decode_announcement(payload: bytes, federation: str) -> tuple[Envelope, Message]:
    """Every device of a process hears the same bytes: they are decoded once."""
    return decode_message(payload, federation=federation, expected=(Announce.kind,), peer="coordinator")


class Session:
    """One device's part in one task of one federation.

    Args:
        settings: See :class:`SessionSettings`.
        rng: For nonces, shares and jitter.
        has_blob: Whether a blob is cached, by its digest. A pure look-up.
        holds: Digests of the parameters that are cached, the newest first. A pure look-up.
        holding: What was not settled before a restart, if anything.
        over_budget: Why the work of an invite is beyond a budget of bytes (code and explanation), given the sizes of
            what is still to be downloaded; None where it is not.
    """

    def __init__(
        self,
        settings: SessionSettings,
        *,
        rng: np.random.Generator,
        has_blob: Callable[[bytes], bool],
        holds: Callable[[], tuple[bytes, ...]] = lambda: (),
        holding: PendingUpdate | None = None,
        over_budget: Callable[[Invite, tuple[int, ...]], tuple[str, str] | None] = lambda invite, downloads: None,
    ) -> None:
        self.settings = settings
        self.state = IDLE
        self.topics = Topics(settings.federation)
        self._rng = rng
        self._has_blob = has_blob
        self._holds = holds
        self._over_budget = over_budget
        self._timers: dict[str, float] = {}
        self._envelope_kept: Envelope | None = None
        self._token = 0
        self._chunk = ChunkSize()
        # the connection and the coordinator behind it
        self._online = False
        self._incarnation: int | None = None
        self._live = False
        # announcements
        self._lineage = b""
        self._announce: Announce | None = None
        self._incarnation_before: int | None = None
        self._listen_seconds = LISTEN_SECONDS
        self._drawn: Asked | None = None
        self._draw = 0.0
        self._answered: Asked | None = None
        self._unanswered: Asked | None = None
        self._hold_until = float("-inf")
        self._come_back_at: float | None = None
        # the check-in that is out
        self._nonces: dict[bytes, tuple[float, Asked | None]] = {}
        self._attempts = 0
        # the ticket in hand
        self._invite: Invite | None = None
        self._invite_lineage = b""
        self._invite_shard = ""
        self._report_by = float("inf")
        self._download: Download | None = None
        self._fetched_digests: set[bytes] = set()  # for this ticket; the shell may not have stored them yet
        self._wrong_digests = 0
        self._deltas: dict[bytes, memoryview | None] | None = None  # of this ticket, by digest; None: whole parameters
        self._upload: Upload | None = None
        self._unsettled: PendingUpdate | None = None
        self._eligible = True
        self._spent = False  # today's bytes are: no more work before the day changes
        self._stopping = False
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            Online: self._on_online,
            Offline: self._on_offline,
            MessageArrived: self._on_message,
            Published: self._on_published,
            ModelDeltasApplied: self._on_deltas_applied,
            TrainingFinished: self._on_training_finished,
            TrainingFailed: self._on_training_failed,
            SetEligible: self._on_eligible,
            SetSpent: self._on_spent,
            Stop: self._on_stop,
            Tick: self._on_tick,
        }
        self._kinds: dict[str, Callable[[Any, Envelope, float], list[Action]]] = {
            Invite.kind: self._on_invite,
            ComeBack.kind: self._on_come_back,
            RangeData.kind: self._on_bytes,
            BlobGone.kind: self._on_gone,
            Have.kind: self._on_have,
            Verdict.kind: self._on_verdict,
        }
        if holding is not None:
            self._restore(holding)

    # --- the interface ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done after ``event``; ``now`` is a monotonic time in seconds."""
        return self._handlers[type(event)](event, now)

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``; None while only events can change anything."""
        earliest = min(self._timers.values()) if self._timers else NEVER
        if self._can_talk:
            if self._download is not None and self._download.deadline < earliest:
                earliest = self._download.deadline
            if self._upload is not None and self._upload.deadline < earliest:
                earliest = self._upload.deadline
        return None if earliest == NEVER else earliest

    @property
    def round(self) -> int:
        """The round of the ticket in hand, 0 for none."""
        invite = self._invite  # another thread may look while it goes
        return invite.round if invite is not None else 0

    @property
    def coordinator_online(self) -> bool:
        """Whether a live coordinator has been heard of in this connection."""
        return self._live

    @property
    def unsettled(self) -> tuple[bytes, ...]:
        """Tickets whose outcome is not known yet."""
        return tuple(h.ticket for h in (self._unsettled,) if h)

    # --- connection ---

    @property
    def _can_talk(self) -> bool:
        return self._online and self._live

    def _on_online(self, event: Online, now: float) -> list[Action]:
        self._online = True
        self._live = False
        self._incarnation = None
        self._listen(now, LISTEN_SECONDS)
        largest = max(CHUNK_BYTES_FLOOR, min(CHUNK_BYTES_MAX, event.packet_bytes_max - ENVELOPE_BYTES_MAX))
        self._chunk = ChunkSize(start=min(self._chunk.current, largest), ceiling=largest)
        inbox = self.topics.to_device(self.settings.device, "+")
        return [Subscribe((*self._retained_filters, inbox)), Notify("online")]

    @property
    def _retained_filters(self) -> tuple[str, str]:
        return self.topics.coordinator_state, self.topics.announce(self.settings.task)

    def _listen(self, now: float, seconds: float) -> None:
        """While no coordinator is live, what it has said may have been lost: subscribing again brings it once more."""
        self._listen_seconds = min(seconds, LISTEN_SECONDS_MAX)
        self._timers["listen"] = now + self._listen_seconds * (1.0 + 0.5 * float(self._rng.random()))

    def _on_offline(self, event: Offline, now: float) -> list[Action]:
        self._online = False
        self._timers.pop("listen", None)
        return [*self._on_coordinator_gone(), Notify("offline")]

    def _on_coordinator_gone(self) -> list[Action]:
        self._live = False
        self._nonces.clear()
        self._timers.pop("checkin", None)
        if self._upload is not None:
            self._upload.pause()
        if self.state == CHECKING_IN:
            self._timers.pop("reply", None)
            self._enter(IDLE)
        return []

    def _on_coordinator_live(self, now: float) -> list[Action]:
        """A (new) incarnation: whatever was said to the old one may be lost (rule 6)."""
        self._live = True
        self._timers.pop("listen", None)
        if self._upload is not None:
            return self._upload.offer(now)
        if self._invite is not None and self.state in (FETCHING, TRAINING):
            actions = [self._to_coordinator(Accept(ticket=self._invite.ticket))]
            return actions + (self._download.start(now) if self._download else [])
        self._answered = None
        return self._consider(now)

    # --- messages ---

    def _on_message(self, event: MessageArrived, now: float) -> list[Action]:
        parts = self.topics.parse(event.topic)
        if parts is None:
            return []  # amqtt hands out what nobody subscribed to
        try:
            if parts == ("coordinator", "state"):
                return self._on_coordinator_state(event.payload, now)
            if parts[0] == "blobs":
                return self._on_blob(parts[1], parts[2], event.payload, now)
            if parts == ("tasks", self.settings.task, "announce"):
                return self._on_announce(event.payload, now)
            if parts[0] == "to" and parts[1] == self.settings.device and parts[2] in self._kinds:
                envelope, message = decode_message(
                    event.payload, federation=self.settings.federation, expected=(parts[2],), peer="coordinator"
                )
                if envelope.task != self.settings.task:
                    return []
                return self._kinds[parts[2]](message, envelope, now)
        except ProtocolError as error:
            return [Notify("bad_message", f"{event.topic}: {error}")]
        return []

    def _on_coordinator_state(self, payload: bytes, now: float) -> list[Action]:
        if len(payload) > STATE_BYTES_MAX:
            raise DecodeError(f"coordinator state of {len(payload)} bytes", reason="oversize")
        try:
            state = json.loads(payload)
            incarnation, live = int(state["incarnation"]), bool(state["online"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DecodeError("coordinator state: expected JSON with incarnation and online") from error
        if self._incarnation is not None and incarnation < self._incarnation:
            return []  # the last will of an earlier start, late
        if not live:
            if "listen" not in self._timers:
                self._listen(now, LISTEN_SECONDS)
            return self._on_coordinator_gone() if self._live else []
        if self._live and incarnation == self._incarnation:
            return []
        actions = self._on_coordinator_gone() if self._live else []
        self._incarnation = incarnation
        if incarnation != self._incarnation_before:
            self._incarnation_before = incarnation
            self._hold_until = float("-inf")  # somebody may have put right what we were held for
        return actions + self._on_coordinator_live(now)

    def _on_announce(self, payload: bytes, now: float) -> list[Action]:
        envelope, message = _decode_announcement(payload, self.settings.federation)
        if not isinstance(message, Announce) or envelope.task != self.settings.task:
            return []
        self._announce, self._lineage = message, envelope.lineage
        invite = self._invite
        if invite is not None and self.state in (FETCHING, TRAINING):
            later = message.phase == "done" or (message.round, message.attempt) > (invite.round, invite.attempt)
            if later or self._invite_lineage != self._lineage:
                return self._drop_work("late", now) + self._consider(now)
        return self._consider(now)

    # --- when to check in ---

    def _consider(self, now: float) -> list[Action]:
        """Arms or disarms the check-in timer after anything that bears on it has changed."""
        self._timers.pop("checkin", None)
        if self.state != IDLE or self._stopping or not self._eligible or self._spent or not self._can_talk:
            return []
        due = self._checkin_due(now)
        if due is not None:
            self._timers["checkin"] = max(due, self._hold_until)
        return []

    def _checkin_due(self, now: float) -> float | None:
        announce, left, asked = self._announce, self._unsettled, self._asked
        if announce is not None and asked != self._answered:
            if asked != self._drawn:
                self._drawn, self._draw = asked, float(self._rng.random())
            chance = float(self._rng.random())
            if announce.phase == "selection" and self._draw < announce.fraction:
                return now + chance * announce.window_seconds
            if announce.phase == "working" and asked == self._unanswered:
                return now + chance * RESUME_WINDOW_SECONDS  # an invite may have been lost with the connection
            if left is not None and (announce.phase == "done" or announce.round > left.round):
                return now + chance * max(announce.window_seconds, SETTLE_WINDOW_SECONDS)
        if left is not None and self._come_back_at is None:
            # The announcement that would tell may be lost.
            self._come_back_at = now + SETTLE_SECONDS_MAX * (1.0 + 0.5 * float(self._rng.random()))
        return self._come_back_at

    @property
    def _asked(self) -> Asked | None:
        announce = self._announce
        if announce is None:
            return None
        return self._lineage, announce.round, announce.attempt, announce.phase == "done"

    def _check_in(self, now: float) -> list[Action]:
        self._enter(CHECKING_IN)
        self._attempts = 0
        self._come_back_at = None
        return self._send_check_in(now)

    def _send_check_in(self, now: float) -> list[Action]:
        nonce = self._rng.bytes(8)
        self._nonces[nonce] = (now, self._asked)
        self._unanswered = self._asked
        while len(self._nonces) > NONCES_KEPT:
            del self._nonces[next(iter(self._nonces))]
        self._timers["reply"] = now + self._backoff(self._attempts)
        self._attempts += 1
        message = CheckIn(
            nonce=nonce,
            instance=self.settings.instance,
            capabilities=self.settings.capabilities,
            unsettled=self.unsettled,
            holds=self._holds()[:HOLDS_MAX],
        )
        return [self._to_coordinator(message)]

    def _backoff(self, attempt: int) -> float:
        seconds = min(REPLY_SECONDS * 2.0 ** min(attempt, 8), REPLY_SECONDS_MAX)
        return seconds * (1.0 + 0.5 * float(self._rng.random()))

    def _answer_to(self, nonce: bytes) -> float | None:
        """When the check-in with this nonce was sent; None for a reply to nothing that is out."""
        found = self._nonces.get(nonce) if self.state == CHECKING_IN else None
        if found is None:
            return None
        sent_at, self._answered = found
        self._unanswered = None
        self._nonces.clear()
        self._timers.pop("reply", None)
        self._hold_until = float("-inf")
        return sent_at

    def _on_come_back(self, message: ComeBack, envelope: Envelope, now: float) -> list[Action]:
        sent_at = self._answer_to(message.nonce)
        if sent_at is None:
            return []
        self._enter(IDLE)
        actions = self._judge_all(message.verdicts)
        self._come_back_at = sent_at + message.seconds if message.seconds > 0 else None
        if message.hold:
            self._hold_until = sent_at + message.seconds
        actions.append(Notify("come_back", message.reason or f"in {message.seconds:.0f} s"))
        return actions + self._consider(now)

    # --- invited ---

    def _on_invite(self, invite: Invite, envelope: Envelope, now: float) -> list[Action]:
        sent_at = self._answer_to(invite.nonce)
        if sent_at is None:
            return []
        actions = self._judge_all(invite.verdicts)
        self._invite, self._invite_lineage, self._invite_shard = invite, envelope.lineage, envelope.shard
        self._fetched_digests.clear()
        self._deltas = self._usable_deltas(invite)
        refusal = self._why_not(invite)
        if refusal:
            code, detail = refusal
            self._spent = self._spent or code == "bytes_per_day"
            return [*actions, Notify(code, detail, invite.round), *self._decline(code, now)]
        self._report_by = sent_at + invite.report_seconds
        actions += [self._to_coordinator(Accept(ticket=invite.ticket)), Notify("invited", "", invite.round)]
        return actions + self._fetch(now)

    def _why_not(self, invite: Invite) -> tuple[str, str] | None:
        s = self.settings
        if self._stopping or not self._eligible:
            return "not_eligible", "the device is not eligible now"
        if self._unsettled is not None:
            return "unsettled", "the outcome of the last update is not known yet"
        unknown = sorted(set(invite.requires) - s.supports)
        if unknown:
            return "unsupported", f"the plan requires {unknown}: upgrade edgefed on this device"
        for what, size, limit in (
            ("program", invite.program_bytes, s.program_bytes_max),
            ("parameters", invite.parameters_bytes, s.parameters_bytes_max),
        ):
            if size > limit:
                return (
                    "too_large",
                    f"the {what} has {size} bytes, this device takes {limit}: raise limits.{what}_bytes_max",
                )
        return self._over_budget(invite, self._missing_bytes(invite))

    def _missing_bytes(self, invite: Invite) -> tuple[int, ...]:
        """Sizes of what is to be downloaded for an invite."""
        sizes = [invite.program_bytes] if self._is_missing(invite.program) else []
        if self._is_missing(invite.parameters):
            sizes += [invite.parameters_bytes] if self._deltas is None else [size for _, size in invite.deltas]
        return tuple(sizes)

    def _usable_deltas(self, invite: Invite) -> dict[bytes, memoryview | None] | None:
        """The deltas to fetch, if they start from what is here and cost less than the parameters themselves."""
        deltas = dict(invite.deltas)
        if not deltas or len(deltas) != len(invite.deltas) or sum(deltas.values()) >= invite.parameters_bytes:
            return None
        return dict.fromkeys(deltas) if invite.base in self._holds() else None

    def _fetch(self, now: float) -> list[Action]:
        """The next thing that is missing; training, if nothing is."""
        invite = self._invite
        assert invite is not None
        if self._is_missing(invite.program):
            return self._download_blob(
                "program", invite.program, invite.program_bytes, self.settings.program_bytes_max, now
            )
        if not self._is_missing(invite.parameters):
            return self._train(invite, now)
        limit = self.settings.parameters_bytes_max
        if self._deltas is None:
            return self._download_blob("parameters", invite.parameters, invite.parameters_bytes, limit, now)
        for digest, total in invite.deltas:
            if self._deltas[digest] is None:
                return self._download_blob("model_delta", digest, total, limit, now)
        fetched = tuple(data for data in self._deltas.values() if data is not None)
        return [ApplyModelDeltas(invite.base, fetched, invite.parameters)]

    def _is_missing(self, digest: bytes) -> bool:
        return digest not in self._fetched_digests and not self._has_blob(digest)

    def _download_blob(self, kind: str, digest: bytes, total: int, limit: int, now: float) -> list[Action]:
        invite = self._invite
        assert invite is not None
        if self.state != FETCHING:
            self._enter(FETCHING)
        self._timers["report"] = self._report_by
        self._download = Download(
            kind,
            digest,
            total,
            # An invite with deltas promises that these are retained; the whole parameters must then be asked for.
            blob_bytes=0 if kind == "parameters" and invite.deltas else invite.blob_bytes,
            bytes_max=limit,
            chunk=lambda: self._chunk,
            range_bytes_max=invite.chunk_bytes_max,
            topics=self.topics,
            send=self._to_coordinator,
            rng=self._rng,
        )
        return self._download.start(now) if self._can_talk else []

    def _fetched(self, now: float) -> list[Action]:
        download = self._download
        assert download is not None
        actions = download.stop()
        try:
            data = download.take()
        except DecodeError as error:
            actions.append(Notify("bad_digest", str(error)))
            if download.kind == "model_delta":
                return actions + self._without_deltas("a model delta has another digest", now)
            self._wrong_digests += 1
            if self._wrong_digests > 1:
                return actions + self._decline("digest", now)
            return actions + download.start(now)
        self._wrong_digests = 0
        self._download = None
        if self._deltas is not None and download.kind == "model_delta":
            self._deltas[download.digest] = data
            return actions + self._fetch(now)
        self._fetched_digests.add(download.digest)
        return [*actions, StoreBlob(download.kind, download.digest, data), *self._fetch(now)]

    def _on_deltas_applied(self, event: ModelDeltasApplied, now: float) -> list[Action]:
        invite = self._invite
        waiting = self.state == FETCHING and self._deltas is not None and self._download is None
        if not waiting or invite is None or event.target != invite.parameters:
            return []
        if event.error:
            return self._without_deltas(event.error, now)
        self._deltas = None
        self._fetched_digests.add(event.target)
        return self._fetch(now)

    def _without_deltas(self, why: str, now: float) -> list[Action]:
        """Whatever is wrong with them, the parameters are there as a whole too."""
        self._deltas, self._download = None, None
        return [Notify("deltas_failed", why, self.round), *self._fetch(now)]

    def _on_bytes(self, message: RangeData, envelope: Envelope, now: float) -> list[Action]:
        download = self._download
        if download is None or message.digest != download.digest:
            return []
        actions = download.on_range(message.offset, message.data, now)
        return actions + (self._fetched(now) if download.complete else [])

    def _on_blob(self, digest: str, offset: str, payload: bytes, now: float) -> list[Action]:
        download = self._download
        if download is None or digest != download.digest.hex() or not offset.isdecimal():
            return []
        actions = download.on_retained(int(offset), payload, now)
        return actions + (self._fetched(now) if download.complete else [])

    def _on_gone(self, message: BlobGone, envelope: Envelope, now: float) -> list[Action]:
        download = self._download
        if download is None or message.digest != download.digest:
            return []
        if download.kind == "model_delta":
            return download.stop() + self._without_deltas("a model delta is gone", now)
        return self._drop_work("gone", now) + self._consider(now)

    # --- training ---

    def _train(self, invite: Invite, now: float) -> list[Action]:
        seconds = (self._report_by - now) * TRAINING_SHARE
        if seconds <= 0:
            return self._decline("deadline", now)
        self._enter(TRAINING)
        return [
            StartTraining(
                ticket=invite.ticket,
                lineage=self._invite_lineage,
                task=self.settings.task,
                round=invite.round,
                attempt=invite.attempt,
                shard=self._invite_shard,
                program=invite.program,
                parameters=invite.parameters,
                plan=invite.plan,
                seconds_max=min(seconds, invite.plan.training.seconds_max),
            ),
            Notify("training", "", invite.round),
        ]

    def _on_training_finished(self, event: TrainingFinished, now: float) -> list[Action]:
        invite = self._invite
        if self.state != TRAINING or invite is None or event.ticket != invite.ticket:
            # The work was dropped while it was being finished: nobody will ask for this update.
            return [Settle(event.ticket, counted=False, reason="dropped")]
        holding = PendingUpdate(
            event.ticket, event.digest, self._invite_lineage, self._invite_shard, invite.round, event.payload
        )
        self._invite = self._deltas = None
        return [Notify("trained", "", holding.round), *self._start_upload(holding, now)]

    def _on_training_failed(self, event: TrainingFailed, now: float) -> list[Action]:
        invite = self._invite
        if self.state != TRAINING or invite is None or event.ticket != invite.ticket:
            return []
        notice = Notify("training_failed", event.detail or event.reason, invite.round)
        return [notice, *self._decline(event.reason, now)]

    def _drop_work(self, reason: str, now: float) -> list[Action]:
        """Gives up the ticket in hand without a word to the coordinator (it knows, or cannot be told)."""
        invite, self._invite, self._deltas = self._invite, None, None
        actions: list[Action] = []
        if self._download is not None:
            actions += self._download.stop() if self._online else []
            self._download = None
        self._timers.pop("report", None)
        if invite is not None and self.state == TRAINING:
            actions.append(CancelTraining(invite.ticket, reason))
        if self.state != IDLE:
            self._enter(IDLE)
        return [*actions, Notify("dropped", reason, invite.round if invite else 0)]

    def _decline(self, reason: str, now: float) -> list[Action]:
        invite = self._invite
        assert invite is not None
        said = [self._to_coordinator(Decline(ticket=invite.ticket, reason=reason))] if self._can_talk else []
        return [*said, *self._drop_work(reason, now), *self._consider(now)]

    # --- uploading and settling ---

    def _start_upload(self, holding: PendingUpdate, now: float) -> list[Action]:
        self._enter(UPLOADING)
        self._upload = Upload(
            holding,
            chunk=lambda: self._chunk,
            send_offer=lambda offer: self._to_coordinator(offer, lineage=holding.lineage),
            send_chunk=lambda chunk: self._chunk_action(chunk, holding),
            rng=self._rng,
        )
        return self._upload.offer(now) if self._can_talk else []

    def _restore(self, holding: PendingUpdate) -> None:
        if holding.payload is None:
            self._unsettled = holding
        else:
            self._start_upload(holding, 0.0)  # offline: nothing is sent before a coordinator is live

    def _on_have(self, message: Have, envelope: Envelope, now: float) -> list[Action]:
        upload = self._upload
        if upload is None or (message.ticket, message.digest) != (upload.holding.ticket, upload.holding.digest):
            return []
        return upload.on_have(message, now)

    def _on_published(self, event: Published, now: float) -> list[Action]:
        return self._upload.on_published(event.token, now) if self._upload is not None else []

    def _on_verdict(self, verdict: Verdict, envelope: Envelope, now: float) -> list[Action]:
        return self._judge(verdict, now) + self._consider(now)

    def _judge_all(self, verdicts: tuple[Verdict, ...]) -> list[Action]:
        """Verdicts inside a reply: they speak of unsettled tickets only, so no timer is concerned."""
        return [action for verdict in verdicts for action in self._judge(verdict, 0.0)]

    def _judge(self, verdict: Verdict, now: float) -> list[Action]:
        upload, left, invite = self._upload, self._unsettled, self._invite
        if upload is not None and verdict.ticket == upload.holding.ticket:
            return self._judge_upload(upload, verdict, now)
        if left is not None and verdict.ticket == left.ticket and verdict.outcome in FINAL_OUTCOMES:
            return self._settle(left, verdict)
        working = self.state in (FETCHING, TRAINING)
        if working and invite is not None and verdict.ticket == invite.ticket and verdict.outcome in FINAL_OUTCOMES:
            return self._drop_work(verdict.outcome, now)
        return []

    def _judge_upload(self, upload: Upload, verdict: Verdict, now: float) -> list[Action]:
        holding = upload.holding
        if verdict.digest not in (b"", holding.digest):
            return []
        if verdict.outcome == BUSY:
            upload.postpone(verdict.retry_seconds, now)
            return [Notify("busy", verdict.reason, holding.round)]
        self._upload = None
        self._enter(IDLE)
        if verdict.outcome == RECEIVED:
            self._unsettled = PendingUpdate(
                holding.ticket, holding.digest, holding.lineage, holding.shard, holding.round, payload=None
            )
            return [MarkReceived(holding.ticket), Notify("received", "", holding.round)]
        return self._settle(holding, verdict)

    def _settle(self, holding: PendingUpdate, verdict: Verdict) -> list[Action]:
        self._unsettled = None
        counted = verdict.outcome == COUNTED
        detail = verdict.reason or verdict.outcome
        return [
            Settle(holding.ticket, counted, detail),
            Notify("counted" if counted else "not_counted", detail, holding.round),
        ]

    # --- eligibility, leaving, time ---

    def _on_eligible(self, event: SetEligible, now: float) -> list[Action]:
        self._eligible = event.eligible
        if not event.eligible and self.state in (FETCHING, TRAINING):
            return self._decline("not_eligible", now)
        return self._consider(now)

    def _on_spent(self, event: SetSpent, now: float) -> list[Action]:
        self._spent = event.spent
        if event.spent and self.state in (FETCHING, TRAINING):
            return self._decline("bytes_per_day", now)
        if event.spent and self.state == CHECKING_IN:
            self._nonces.clear()
            self._timers.pop("reply", None)
            self._enter(IDLE)
        return self._consider(now)

    def _on_stop(self, event: Stop, now: float) -> list[Action]:
        self._stopping = True
        self._timers.clear()
        actions = self._decline("leaving", now) if self.state in (FETCHING, TRAINING) else []
        return [*actions, Leave()]

    def _on_tick(self, event: Tick, now: float) -> list[Action]:
        actions: list[Action] = []
        for name in [name for name, due in self._timers.items() if due <= now]:
            if self._timers.pop(name, None) is not None:
                actions += self._on_timer(name, now)
        if self._can_talk and self._download is not None and self._download.deadline <= now:
            actions += self._download.on_stall(now)
        if self._can_talk and self._upload is not None and self._upload.deadline <= now:
            actions += self._upload.on_silence(now)
        return actions

    def _on_timer(self, name: str, now: float) -> list[Action]:
        if name == "checkin" and self.state == IDLE and self._can_talk:
            return self._check_in(now)
        if name == "reply" and self.state == CHECKING_IN:
            hint = [Notify("no_answer", self._silence_explained)] if self._attempts == ATTEMPTS_UNTIL_HINT else []
            return [*hint, *self._send_check_in(now)]
        if name == "listen" and self._online and not self._live:
            self._listen(now, 2.0 * self._listen_seconds)
            return [Subscribe(self._retained_filters)]
        if name == "report" and self.state == FETCHING:
            return self._decline("deadline", now)
        return []

    @property
    def _silence_explained(self) -> str:
        root, device = self.topics.root, self.settings.device
        return (
            f"no answer to {self._attempts} check-ins: the round waits for more devices; or, if others take part, the "
            f"broker's ACL keeps this device from writing {root}/from/{device}/# or reading {root}/to/{device}/#"
        )

    # --- sending ---

    def _enter(self, state: str) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"session: no way from {self.state} to {state}")
        self.state = state
        if state != FETCHING:
            self._timers.pop("report", None)

    def _envelope(self, lineage: bytes, shard: str = "") -> Envelope:
        kept = self._envelope_kept
        if kept is None or kept.lineage != lineage or kept.shard != shard:
            s = self.settings
            self._envelope_kept = kept = Envelope(federation=s.federation, task=s.task, lineage=lineage, shard=shard)
        return kept

    def _to_coordinator(self, message: Message, lineage: bytes | None = None) -> Action:
        envelope = self._envelope(self._lineage if lineage is None else lineage)
        topic = self.topics.from_device(self.settings.device, message.kind)
        asked = (
            sum(stop - start + PIECE_BYTES for start, stop in message.ranges)
            if isinstance(message, RangeRequest)
            else 0
        )
        return Send(topic, encode_message(envelope, message), asked_bytes=asked)

    def _chunk_action(self, chunk: Chunk, holding: PendingUpdate) -> tuple[int, Action]:
        self._token += 1
        payload = encode_message(self._envelope(holding.lineage, holding.shard), chunk)
        return self._token, Send(self.topics.up(holding.shard or "0", self.settings.device), payload, self._token)
