"""The device's state machine. PURE: no I/O, no clock, no thread, only ``handle(event, now)`` and ``next_deadline()``.

Its legs do the work and own what they must remember: ``liveness`` (the connection and the coordinator behind it),
``checkin`` (when to check in, and the check-in that is out), ``work`` with ``fetch`` (the ticket in hand) and
``deliver`` (the update on its way to its outcome). The session composes them. ``stages`` says what leads where:

* ``idle``: waits for the right moment to check in.
* ``checking_in``: a check-in is out.
* ``fetching``: invited and accepted; what is missing is fetched, and the local examples are looked at in between.
* ``training``: the shell works. A newer announcement, a final verdict, or the loss of eligibility cancels it.
* ``uploading``: the update is on disk and goes to a *live* coordinator (rule 6) until a verdict ends it.

Beside the state there may be one *unsettled* ticket: received, but not yet known to be counted (rule 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.checkin import CheckingIn
from edge_sdk.device.session.deliver import Deliver
from edge_sdk.device.session.events import (
    Action,
    Event,
    ExamplesFit,
    Leave,
    MessageArrived,
    Notify,
    Offline,
    Online,
    Published,
    SetEligible,
    SetQuotaExhausted,
    Stop,
    Tick,
    TrainingFailed,
    TrainingFinished,
)
from edge_sdk.device.session.fetch import Blobs, Fetch
from edge_sdk.device.session.known_terms import KnownTerms
from edge_sdk.device.session.liveness import Change, Liveness
from edge_sdk.device.session.mailbox import Mailbox, decode_announcement
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.device.session.stages import CHECKING_IN, FETCHING, HEEDED, IDLE, UPLOADING, Stage
from edge_sdk.device.session.work import Refusal, Work
from edge_sdk.errors import ProtocolError
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.envelope import ENVELOPE_BYTES_MAX, Envelope
from edge_sdk.wire.messages import Announce, BlobGone, ComeBack, Have, Invite, RangeData, Verdict
from edge_sdk.wire.outcomes import FINAL_OUTCOMES
from edge_sdk.wire.ranges import CHUNK_BYTES_FLOOR, CHUNK_BYTES_MAX, ChunkSize
from edge_sdk.wire.terms import Terms

__all__ = ["Session"]

NEVER: Final = float("inf")


class Session:
    """One device's part in one task of one federation.

    Args:
        settings: See :class:`SessionSettings`.
        rng: For nonces, draws and jitter.
        blobs: What the device holds, and where downloads go.
        pending: What was not settled before a restart, if anything.
        over_quota: Why the work that an invite asks for is beyond a quota of bytes (code and explanation), given its
            terms and the sizes of what is still to be downloaded; None where it is not.
    """

    def __init__(
        self,
        settings: SessionSettings,
        *,
        rng: np.random.Generator,
        blobs: Blobs,
        pending: PendingUpdate | None = None,
        over_quota: Callable[[Terms, tuple[int, ...]], Refusal | None] = lambda terms, downloads: None,
    ) -> None:
        self._settings = settings
        self._stage = Stage()
        self._mailbox = Mailbox(settings)
        self._liveness = Liveness(self._mailbox.topics, settings.task, settings.device, rng)
        self._terms = KnownTerms()
        self._checkin = CheckingIn(settings, self._mailbox, blobs.parameters, self._terms.named, rng)
        self._fetch = Fetch(settings, self._mailbox, blobs, self._liveness, rng)
        self._work = Work(settings, self._stage, self._mailbox, self._liveness, self._fetch, over_quota)
        self._deliver = Deliver(settings, self._mailbox, self._liveness, lambda: self._fetch.chunk, rng)
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            Online: self._on_online,
            Offline: self._on_offline,
            MessageArrived: self._on_message,
            Published: lambda event, now: self._deliver.on_published(event.token, now),
            ExamplesFit: lambda event, now: self._work.after_fetch(self._fetch.on_examples_fit(event, now), now),
            TrainingFinished: self._on_training_finished,
            TrainingFailed: lambda event, now: self._work.on_training_failed(event),
            SetEligible: lambda event, now: self._on_willing("not_eligible", event.eligible, now),
            SetQuotaExhausted: lambda event, now: self._on_willing("bytes_per_day", not event.exhausted, now),
            Stop: self._on_stop,
            Tick: self._on_tick,
        }
        self._kinds: dict[str, Callable[[Any, Envelope, float], list[Action]]] = {
            Invite.kind: self._on_invite,
            ComeBack.kind: self._on_come_back,
            RangeData.kind: lambda m, _, now: self._work.after_fetch(self._fetch.on_range(m, now), now),
            BlobGone.kind: lambda m, _, now: self._work.after_fetch(self._fetch.on_gone(m, now), now),
            Have.kind: lambda m, _, now: self._deliver.on_have(m, now),
            Verdict.kind: lambda m, _, now: self._judge(m, now) + self._consider(now),
        }
        if pending is not None and pending.received:
            self._deliver.unsettled = pending
        elif pending is not None:
            self._stage.step("restored")
            self._deliver.begin(pending, 0.0)  # offline: nothing is sent before a coordinator is live

    # --- the interface ---

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done after ``event``; ``now`` is a monotonic time in seconds."""
        before = self._stage.now
        actions = self._handlers[type(event)](event, now)
        if before != IDLE and self._stage.now == IDLE:
            self._consider(now)
        return actions

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``; None while only events can change anything."""
        earliest, stage = self._checkin.deadline, self._stage.now
        if self._liveness.deadline < earliest:
            earliest = self._liveness.deadline
        if stage == FETCHING:
            earliest = min(earliest, self._fetch.deadline)
        elif stage == UPLOADING:
            earliest = min(earliest, self._deliver.deadline)
        return None if earliest == NEVER else earliest

    @property
    def state(self) -> str:
        """Where the session stands: a key of the table."""
        return self._stage.now

    @property
    def round(self) -> int:
        """The round of the ticket in hand, 0 for none."""
        ticket = self._work.ticket  # another thread may look while it goes
        return ticket.invite.round if ticket is not None else 0

    @property
    def ticket(self) -> bytes | None:
        """The ticket in hand, from the invite to the end of training."""
        return self._work.ticket.invite.ticket if self._work.ticket is not None else None

    @property
    def coordinator_online(self) -> bool:
        """Whether a live coordinator has been heard of in this connection."""
        return self._liveness.live

    @property
    def coordinator_known(self) -> bool:
        """Whether a coordinator of this task, live or not, has been heard of in this connection."""
        return self._liveness.known

    @property
    def unsettled(self) -> tuple[bytes, ...]:
        """Tickets whose outcome is not known yet."""
        left = self._deliver.unsettled
        return () if left is None else (left.ticket,)

    # --- the connection and the coordinator behind it ---

    def _on_online(self, event: Online, now: float) -> list[Action]:
        largest = max(CHUNK_BYTES_FLOOR, min(CHUNK_BYTES_MAX, event.packet_bytes_max - ENVELOPE_BYTES_MAX))
        self._fetch.chunk = ChunkSize(start=min(self._fetch.chunk.current, largest), ceiling=largest)
        return [*self._liveness.on_online(now), Notify(ProgressKind.ONLINE)]

    def _on_offline(self, event: Offline, now: float) -> list[Action]:
        self._liveness.on_offline()
        self._on_gone()
        return [Notify(ProgressKind.OFFLINE)]

    def _on_gone(self) -> None:
        """Nobody hears this device for now."""
        self._checkin.disarm()
        self._deliver.pause()
        if self._stage.now == CHECKING_IN:
            self._stage.step("cut")

    def _on_change(self, change: Change, now: float) -> list[Action]:
        if change.gone:
            self._on_gone()
        if change.anew:
            self._checkin.on_new_start()
        if not change.live:
            return []
        # Whatever was said to the coordinator before may be lost (rule 6: correctness needs no MQTT session).
        if self._stage.now == UPLOADING:
            return self._deliver.on_live(now)
        if self._work.ticket is not None:
            return self._work.on_live(now)
        return self._consider(now)

    # --- messages ---

    def _on_message(self, event: MessageArrived, now: float) -> list[Action]:
        parts = self._mailbox.topics.parse(event.topic)
        if parts is None:
            return []  # some brokers hand out what nobody subscribed to
        try:
            match parts:
                case ("coordinator", lineage, "state"):
                    state = CoordinatorState.decode(event.payload, lineage)
                    return self._on_change(self._liveness.on_state(state, event.retained, now), now)
                case ("blobs", digest, offset) if self._stage.now == FETCHING:
                    retained = self._fetch.on_retained(digest, offset, event.payload, now)
                    return self._work.after_fetch(retained, now)
                case ("tasks", self._settings.task, "announce"):
                    return self._on_announce(event.payload, event.retained, now)
                case ("to", self._settings.device, kind) if kind in HEEDED[self._stage.now]:
                    opened = self._mailbox.opened(kind, event.payload)
                    return [] if opened is None else self._kinds[kind](opened[1], opened[0], now)
        except ProtocolError as error:
            return [Notify(ProgressKind.BAD_MESSAGE, f"{event.topic}: {error}")]
        return []

    def _on_announce(self, payload: bytes, retained: bool, now: float) -> list[Action]:
        envelope, message = decode_announcement(payload)
        if not isinstance(message, Announce):
            return []
        self._mailbox.lineage = envelope.lineage
        self._checkin.on_announce(message, retained, now)
        actions = self._work.on_announce(message, envelope.lineage)
        if message.reason:
            actions.append(Notify(ProgressKind.ROUNDS_FAIL, message.reason, message.round + 1))
        actions += self._on_change(self._liveness.on_announced(envelope.lineage), now)
        return actions + self._consider(now)

    def _on_come_back(self, message: ComeBack, envelope: Envelope, now: float) -> list[Action]:
        sent_at = self._checkin.take_answer(message.nonce)
        if sent_at is None:
            return []
        self._stage.step("told to come back")
        actions = [action for verdict in message.verdicts for action in self._judge(verdict, now)]
        return [*actions, self._checkin.on_come_back(message, sent_at)]

    def _on_invite(self, invite: Invite, envelope: Envelope, now: float) -> list[Action]:
        terms = self._terms.of(invite)  # before the answer is taken: without them the check-in is repeated
        sent_at = self._checkin.take_answer(invite.nonce)
        if sent_at is None:
            return []
        actions = [action for verdict in invite.verdicts for action in self._judge(verdict, now)]
        refusal = self._why_not(invite, terms)
        if refusal is None:
            return actions + self._work.take(invite, terms, envelope, sent_at, now)
        if refusal[0] == ProgressKind.BYTES_PER_DAY:
            self._checkin.unwilling.add("bytes_per_day")
        return actions + self._work.refuse(invite, refusal)

    def _why_not(self, invite: Invite, terms: Terms) -> Refusal | None:
        if self._checkin.unwilling & {"not_eligible", "leaving"}:
            return ProgressKind.NOT_ELIGIBLE, "the device is not eligible now"
        if self._deliver.unsettled is not None:
            return ProgressKind.UNSETTLED, "the outcome of the last update is not known yet"
        return self._work.why_not(invite, terms)

    def _judge(self, verdict: Verdict, now: float) -> list[Action]:
        actions = self._deliver.judge(verdict, now)
        if actions is not None:
            if self._stage.now == UPLOADING and not self._deliver.uploading:
                self._stage.step("judged")
            return actions
        return self._work.drop(verdict.outcome) if self._ends_work(verdict) else []

    def _ends_work(self, verdict: Verdict) -> bool:
        return verdict.ticket == self.ticket and verdict.outcome in FINAL_OUTCOMES

    # --- training, the wish to work, leaving, time ---

    def _on_training_finished(self, event: TrainingFinished, now: float) -> list[Action]:
        update = event.update
        dropped = self._work.finish(update.ticket)
        return dropped or [Notify(ProgressKind.TRAINED, "", update.round), *self._deliver.begin(update, now)]

    def _on_willing(self, reason: str, willing: bool, now: float) -> list[Action]:
        unwilling = self._checkin.unwilling
        unwilling.discard(reason) if willing else unwilling.add(reason)
        actions = [] if willing else self._work.decline(reason)
        if reason == "bytes_per_day" and not willing and self._stage.now == CHECKING_IN:
            self._checkin.disarm()
            self._stage.step("exhausted")
        return actions + self._consider(now)

    def _on_stop(self, event: Stop, now: float) -> list[Action]:
        self._checkin.unwilling.add("leaving")
        self._checkin.deadline = NEVER
        self._liveness.stop()
        return [*self._work.decline("leaving"), Leave()]

    def _on_tick(self, event: Tick, now: float) -> list[Action]:
        actions: list[Action] = []
        if self._checkin.deadline <= now:
            actions += self._on_checkin_due(now)
        if self._liveness.deadline <= now:
            actions += self._liveness.on_deadline(now)
        if self._stage.now == FETCHING:
            actions += self._work.after_fetch(self._fetch.on_deadline(now), now)
        elif self._stage.now == UPLOADING:
            actions += self._deliver.on_deadline(now)
        return actions

    def _on_checkin_due(self, now: float) -> list[Action]:
        if self._stage.now == CHECKING_IN:
            return self._checkin.repeat(self.unsettled, now)
        self._stage.step("due")
        return self._checkin.begin(self.unsettled, now)

    def _consider(self, now: float) -> list[Action]:
        """Sets or clears the time of the next check-in after something that bears on it has changed."""
        if self._stage.now == IDLE and self._liveness.can_talk:
            self._checkin.arm(self._deliver.unsettled, now)
        return []
