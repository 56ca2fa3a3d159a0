"""The coordinator's core: every decision, on one thread, with time as an argument.

A shell (the service, or the simulator) hands in events and performs the effects. All events of one turn are handled
inside one database transaction, and effects are performed only after its commit: decide, journal, then speak (rule 1).
The core sees ids, sizes and verdicts, never tensors (rule 12); decoding and sums are jobs of the workers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from coordinator.choosing import chooser
from coordinator.downlink import chain_from
from coordinator.downloads import RETAINED_PIECE_BYTES, Downloads
from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    CloseJob,
    Effect,
    Evaluated,
    Event,
    Finished,
    Ingested,
    IngestItem,
    Published,
    RoundCommitted,
    RoundEnded,
    StartJob,
    Subscribe,
    Tick,
    Workers,
)
from coordinator.publisher import Publisher, round_summary, rounded
from coordinator.schedules import synchronous as rounds
from coordinator.schedules.selection import announced_fraction, come_back_seconds, wanted_count
from coordinator.schedules.synchronous import Round, Ticket
from coordinator.stopping import Stopping
from coordinator.store import Checkpoint, DeviceRecord, ModelDeltaRecord, RoundRecord, Store, TicketRecord
from coordinator.task import TaskSettings
from coordinator.uploads import Uploads
from edge_sdk.errors import ProtocolError
from edge_sdk.mqtt import Delivery
from edge_sdk.wire.envelope import ENVELOPE_BYTES_MAX, Envelope, decode_message
from edge_sdk.wire.messages import (
    Accept,
    CheckIn,
    Chunk,
    ComeBack,
    Decline,
    Invite,
    Message,
    Offer,
    RangeRequest,
    Verdict,
)
from edge_sdk.wire.outcomes import (
    ACCEPTED,
    ADMITTED,
    BUSY,
    COUNTED,
    INVITED,
    JOURNALLED,
    LATE,
    MISSING,
    RECEIVED,
    REFUSED,
    UNKNOWN,
)
from edge_sdk.wire.plan import Plan

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

SHARD: Final = "0"
ROUND_SECONDS_MIN: Final = 0.25
DONE_SECONDS: Final = 4 * 3600.0
POPULATION_SECONDS: Final = 7 * 86_400.0
RETAIN_FROM_DEVICES: Final = 8
RECENT_ROUNDS: Final = 8
WILLS_EXPECTED: Final = 8
CLOCK_SECONDS: Final = 15.0
"""How much of a phase a crash may cost at most: the seconds that remain are written this often (rule 11)."""
BUSY_SECONDS: Final = 15.0
SEEN_SECONDS: Final = 1.0
"""Check-ins are noted in the registry at most so much later."""


@dataclass(slots=True)
class _Traffic:
    """Bytes of one round, as payloads."""

    up: int = 0
    down_at_start: int = 0
    fanned_out: int = 0  # retained pieces are sent once and delivered by the broker to each who asks
    saved: int = 0  # by deltas, for those who have accepted
    saves: dict[bytes, int] = field(default_factory=dict)  # the same by ticket, for those who have not


@dataclass(slots=True)
class _Pending:
    """What the turn has to write before its commit."""

    record: bool = False
    round: bool = False
    issued: list[TicketRecord] = field(default_factory=list)
    moved: list[tuple[bytes, str, str]] = field(default_factory=list)


class Coordinator:
    """One task of one federation.

    Args:
        settings: See :class:`TaskSettings`.
        store: The open database, with the task's first checkpoint in it.
        workers: Where jobs run.
        new_id: Gives so many random bytes; tickets are made of it.
        rng: For jitter.
        wall: Wall time in seconds, for display only.
        incarnation: This start's number, from the store.
    """

    def __init__(
        self,
        settings: TaskSettings,
        store: Store,
        workers: Workers,
        *,
        new_id: Callable[[int], bytes],
        rng: np.random.Generator,
        wall: Callable[[], float],
        incarnation: int,
    ) -> None:
        self.settings = settings
        self.store = store
        self.incarnation = incarnation
        self.round: Round | None = None
        self.record: RoundRecord | None = None
        self._choose_by = chooser(settings.rule, self._known_devices)
        self.finished: str | None = None
        self.metrics: dict[str, float] = {}
        self._workers = workers
        self._new_id = new_id
        self._rng = rng
        self._wall = wall
        self._lineage = store.lineage
        self._publisher = Publisher(settings, self._lineage, incarnation)
        self._topics = self._publisher.topics
        self._effects: list[Effect] = []
        self._pending = _Pending()
        self._seen: list[tuple[str, bytes, dict[str, Any]]] = []
        self._timers: dict[str, float] = {}
        self._up: set[str] = set()
        self._traffic = _Traffic()
        self._fraction = 1.0
        self._participation = 0.0
        self._round_published_at = float("-inf")
        self._verdicts_waiting: dict[str, tuple[Verdict, ...]] = {}
        self._holds: dict[str, tuple[bytes, ...]] = {}  # what those who have checked in hold
        self._final: dict[bytes, tuple[str, str]] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROUNDS)
        self._committing = False
        self._starts_when_up = False
        self._phase_seconds: dict[str, float] = {}
        self._phase_began = 0.0
        self._stopping = Stopping(settings.stopping)
        self._downloads = Downloads(
            self._topics,
            self._publisher.wrap,
            chunk_bytes_max=settings.chunk_bytes_max,
            retained_add=store.retained_add,
            retained_remove=store.retained_remove,
        )
        self._uploads = Uploads(
            store, update_bytes_max=settings.update_bytes_max, chunk_bytes_max=settings.chunk_bytes_max
        )
        self._program = store.get_blob(settings.program_digest) or b""
        self._deltas: list[ModelDeltaRecord] = []
        self._delta_blobs: dict[bytes, bytes] = {}
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            BrokerUp: self._on_broker_up,
            BrokerDown: self._on_broker_down,
            Arrived: self._on_arrived,
            Published: self._on_published,
            Ingested: self._on_ingested,
            RoundCommitted: self._on_committed,
            Evaluated: self._on_evaluated,
            Tick: self._on_tick,
        }
        self._kinds: dict[str, Callable[[str, Any, Envelope, float], None]] = {
            CheckIn.kind: self._on_check_in,
            Accept.kind: self._on_accept,
            Decline.kind: self._on_decline,
            RangeRequest.kind: self._on_want,
            Offer.kind: self._on_offer,
        }

    # --- the interface ---

    def start(self, now: float) -> None:
        """Re-enters where the store says; call inside a turn, before any event."""
        checkpoint = self.store.latest_checkpoint(self.settings.task)
        if checkpoint is None:
            raise RuntimeError("the store has no checkpoint: put_initial comes first")
        self._take_checkpoint(checkpoint)
        self._previous: dict[bytes, bytes] | None = None
        self._completed = checkpoint.round
        self.metrics = dict(checkpoint.metrics)
        record = self.store.open_round(self.settings.task)
        history = self.store.rounds(self.settings.task, limit=100_000)
        closed = sorted((r for r in history if r.phase == rounds.CLOSED), key=lambda r: r.number)
        # A crash may have come between a round's commit and its evaluation: it is evaluated (again).
        evaluating = record is None and bool(closed) and self._is_evaluated(self._completed)
        for past in closed[:-1] if evaluating else closed:
            self.finished = self._stopping.observe(past.number, dict(past.summary.get("metrics", {})))
        self._serve()
        if record is not None:
            self.finished = None
            self._restore(record, now)
        elif evaluating:
            self.finished = None
            self._workers.evaluate(self.settings.task, self._completed, checkpoint.parameters_digest)
        elif self.finished is not None:
            self._finish(self.finished)
        else:
            self._timers["next"] = now
        self._effects += self._downloads.clear_retained(self.store.retained())

    def handle(self, event: Event, now: float) -> None:
        """Takes one event; ``now`` is a monotonic time in seconds. Effects wait in :meth:`take_effects`."""
        self._handlers[type(event)](event, now)

    def end_turn(self, now: float) -> None:
        """Writes what the turn has changed; the last call inside the turn's transaction."""
        self._flush_chunks(now)
        self._flush_tickets()
        pending, self._pending = self._pending, _Pending()
        if pending.record and self.record is not None and self.round is not None and not self._committing:
            self.store.save_round(self._record_now(now))
            self._timers["clock"] = now + CLOCK_SECONDS
            self._flush_seen()
        if pending.round:
            self._publish_round(now)

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order, after the commit."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When ``Tick`` is due, on the clock of ``now``."""
        due = list(self._timers.values())
        if self.round is not None:
            deadline = self.round.next_deadline()
            if deadline is not None:
                due.append(deadline)
        return min(due, default=None)

    def will(self) -> tuple[str, bytes]:
        """Topic and retained payload of the last will: the coordinator is gone."""
        return self._topics.lineage_state(self._lineage), self._publisher.state(online=False)

    # --- the broker ---

    def _on_broker_up(self, event: BrokerUp, now: float) -> None:
        self._up.add(event.channel)
        self._downloads.limit_chunk(event.packet_bytes_max, ENVELOPE_BYTES_MAX)
        if event.channel == BULK:
            self._effects.append(Subscribe(BULK, (self._topics.up(SHARD, "+"),)))
            self._effects += self._downloads.on_broker_up()
        else:
            # Its own state too: a last will of the connection before may come late, and all devices would wait.
            inbox = (self._topics.from_device("+", "+"), self._topics.lineage_state(self._lineage))
            self._effects.append(Subscribe(CONTROL, inbox))
            if self._starts_when_up:
                self._starts_when_up = False
                self._start_round(now)
        if len(self._up) == 2:
            # Both inboxes are open: now devices may be told that somebody is here.
            # (State and round are apart: every device hears the first, so it is said once a start, not once a second.)
            self._announce(now)
            self._effects.append(self._publisher.publish_state())
            self._publish_round(now)

    def _on_own_state(self, payload: bytes) -> None:
        """A last will of a connection or start before says that the coordinator is offline, and here it is."""
        if len(self._up) == 2 and payload in (self._publisher.state(online=False, incarnation=i) for i in self._own()):
            self._effects.append(self._publisher.publish_state())

    def _own(self) -> range:
        """Incarnations whose last will may still come: this one's and those shortly before."""
        return range(max(self.incarnation - WILLS_EXPECTED, 0), self.incarnation + 1)

    def _on_broker_down(self, event: BrokerDown, now: float) -> None:
        self._up.discard(event.channel)
        if event.channel == BULK:
            self._downloads.on_broker_down()

    def _on_published(self, event: Published, now: float) -> None:
        if event.channel == BULK:
            self._effects += self._downloads.on_published(event.token)

    def _on_arrived(self, event: Arrived, now: float) -> None:
        parts = self._topics.parse(event.topic)
        taken = False
        try:
            if parts is None:
                self.store.count("stray_topic")
            elif parts == ("coordinator", self._lineage.hex(), "state"):
                self._on_own_state(event.payload)
            elif parts[0] == "from" and parts[2] in self._kinds:
                envelope, message = self._decode(event.payload, parts[2])
                self._kinds[parts[2]](parts[1], message, envelope, now)
            elif parts[0] == "up" and parts[1] == SHARD:
                envelope, message = self._decode(event.payload, Chunk.kind)
                if isinstance(message, Chunk):
                    taken = self._on_chunk(parts[2], message, envelope, event.acknowledgement, now)
            else:
                self.store.count("kind")
        except ProtocolError as error:
            # One bad message is counted and dropped; it harms neither its round nor any other device.
            self.store.count(error.reason)
            self._pending.round = True
            logger.info("refused a message on %s: %s", event.topic, error)
        if not taken:
            self._effects.append(Acknowledge(event.channel, event.acknowledgement))

    def _decode(self, payload: bytes, kind: str) -> tuple[Envelope, Message]:
        envelope, message = decode_message(
            payload, federation=self.settings.federation, expected=(kind,), peer="device"
        )
        if envelope.task != self.settings.task:
            raise ProtocolError(f"envelope.task: {envelope.task!r} is not served here", reason="wrong_task")
        return envelope, message

    # --- check-ins ---

    def _on_check_in(self, device: str, message: CheckIn, envelope: Envelope, now: float) -> None:
        self._seen.append((device, message.instance, message.capabilities))
        self._timers.setdefault("seen", now + SEEN_SECONDS)
        verdicts = tuple(self._verdict_on(device, ticket, envelope.lineage) for ticket in message.unsettled)
        if self.finished is not None:
            self._come_back(device, message.nonce, DONE_SECONDS, "done: " + self.finished, verdicts, hold=False)
            return
        lacking = [r for r in self.settings.requires if r not in message.capabilities.get("supports", [])]
        if lacking:
            self.store.count("unsupported")
            self._come_back(device, message.nonce, DONE_SECONDS, f"this task requires {lacking}", verdicts, hold=True)
            return
        if self.round is None or any(v.outcome == RECEIVED for v in verdicts):
            self._come_back(device, message.nonce, self._come_back_time(), "between rounds", verdicts)
            return
        if verdicts:
            # The outcome is news to the device: it must settle before it trains, and the reply tells both.
            self._verdicts_waiting[device] = verdicts
        if message.holds:
            self._holds[device] = message.holds
        event = rounds.CheckedIn(device, message.instance, message.nonce)
        self._perform(self.round.handle(event, now), now)

    def _known_devices(self) -> list[DeviceRecord]:
        self._flush_seen()  # those who ask just now too
        return self.store.devices()

    def _flush_seen(self) -> None:
        """Check-ins are noted with the next write, soon at the latest: no device is told, so none needs a commit."""
        seen, self._seen = self._seen, []
        self._timers.pop("seen", None)
        if seen:
            self.store.device_seen(seen)

    def _flush_tickets(self) -> None:
        """What became of tickets in this turn, in few statements."""
        issued, self._pending.issued = self._pending.issued, []
        moved, self._pending.moved = self._pending.moved, []
        if issued:
            self.store.insert_tickets(issued)
        if moved:
            self.store.set_tickets(moved)

    def _come_back_time(self) -> float:
        return come_back_seconds(self.settings.come_back_seconds, self.settings.jitter, self._rng)

    def _come_back(
        self,
        device: str,
        nonce: bytes,
        seconds: float,
        reason: str,
        verdicts: tuple[Verdict, ...] = (),
        *,
        hold: bool = False,
    ) -> None:
        self._to(device, ComeBack(nonce=nonce, seconds=seconds, hold=hold, reason=reason, verdicts=verdicts))

    def _verdict_on(self, device: str, ticket: bytes, lineage: bytes) -> Verdict:
        """What a device that asks after a ticket may be told."""
        if self.round is not None and ticket in self.round.tickets:
            held = self.round.tickets[ticket]
            if held.device == device:
                return self._verdict(ticket, held.digest, held.state, held.reason)
        known = self.store.ticket(ticket)
        if known is None or known.device != device:
            # Of another lineage, of another device, or older than the tombstones.
            return Verdict(ticket=ticket, digest=b"", outcome=UNKNOWN, reason="no such ticket")
        return self._verdict(ticket, known.digest or b"", known.state, known.reason)

    def _verdict(self, ticket: bytes, digest: bytes, state: str, reason: str) -> Verdict:
        # Until the commit a frozen "counted" is a receipt: nobody may settle on a model that is not there yet.
        outcome = RECEIVED if state in (ADMITTED, JOURNALLED) else state
        if outcome == COUNTED and self._committing:
            outcome = RECEIVED
        if outcome in (INVITED, ACCEPTED):
            outcome, reason = UNKNOWN, "no update arrived for this ticket"
        return Verdict(ticket=ticket, digest=digest, outcome=outcome, reason=reason)

    def _on_accept(self, device: str, message: Accept, envelope: Envelope, now: float) -> None:
        ticket = self._live_ticket(device, message.ticket)
        if ticket is not None and self.round is not None:
            self._traffic.saved += self._traffic.saves.pop(message.ticket, 0)
            self._perform(self.round.handle(rounds.Accepted(message.ticket), now), now)

    def _on_decline(self, device: str, message: Decline, envelope: Envelope, now: float) -> None:
        ticket = self._live_ticket(device, message.ticket)
        if ticket is not None and self.round is not None:
            self._perform(self.round.handle(rounds.Declined(message.ticket, message.reason), now), now)

    def _on_want(self, device: str, message: RangeRequest, envelope: Envelope, now: float) -> None:
        self._effects += self._downloads.on_want(device, message)

    def _live_ticket(self, device: str, ticket: bytes) -> Ticket | None:
        """The ticket, if it belongs to this device in the open round; a stranger's attempt is counted."""
        held = self.round.tickets.get(ticket) if self.round is not None else None
        if held is not None and held.device != device:
            self.store.count("stranger")
            return None
        return held

    # --- updates ---

    def _on_offer(self, device: str, message: Offer, envelope: Envelope, now: float) -> None:
        answer = self._refusal(device, message.ticket, message.digest, envelope, now)
        if answer is not None:
            self._to(device, answer)
            return
        assert self.round is not None
        self._perform(self.round.handle(rounds.Offered(message.ticket), now), now)
        why_not = self._uploads.why_not(message.total)
        if why_not:
            self._refuse_update(message.ticket, why_not, now)
            return
        have = self._uploads.offered(message.ticket, message.digest)
        self._to(device, have, shard=SHARD)
        if have.ranges == ((0, message.total),):
            self._arrived_whole(message.ticket, message.digest, None, None, now)

    def _refuse_update(self, ticket: bytes, reason: str, now: float) -> None:
        """Ends a ticket whose update cannot be taken, unless a whole one is under way already."""
        self.store.count(reason)
        if self.round is not None and self.round.tickets[ticket].state in (INVITED, ACCEPTED):
            self._perform(self.round.handle(rounds.UpdateRefused(ticket, reason), now), now)

    def _refusal(self, device: str, ticket: bytes, digest: bytes, envelope: Envelope, now: float) -> Verdict | None:
        """The verdict that ends an upload before anything of it is read; None where it is welcome."""
        held = self._live_ticket(device, ticket)
        if held is None or envelope.lineage != self._lineage:
            verdict = self._verdict_on(device, ticket, envelope.lineage)
            self.store.count(f"upload_{verdict.outcome}")
            return Verdict(ticket=ticket, digest=digest, outcome=verdict.outcome, reason=verdict.reason)
        if held.state in (INVITED, ACCEPTED):
            if self.round is not None and self.round.phase in (rounds.CONFIGURATION, rounds.REPORTING):
                return None
            self.store.count("upload_late")
            if self.round is not None:
                self._perform(self.round.handle(rounds.Offered(ticket), now), now)
            return Verdict(ticket=ticket, digest=digest, outcome=LATE, reason="closed")
        if held.state == ADMITTED and held.digest == digest:
            return None
        if held.digest not in (b"", digest):
            self.store.count("upload_spent")
            return Verdict(ticket=ticket, digest=digest, outcome=REFUSED, reason="spent")
        self.store.count("upload_duplicate")
        return self._verdict(ticket, digest, held.state, held.reason)

    def _on_chunk(self, device: str, chunk: Chunk, envelope: Envelope, acknowledgement: Delivery, now: float) -> bool:
        """Stores or hands on one chunk; True where its PUBACK is given later."""
        self._traffic.up += len(chunk.data)
        answer = self._refusal(device, chunk.ticket, chunk.digest, envelope, now)
        if answer is not None:
            self._to(device, answer)
            return False
        assert self.round is not None
        if self.round.tickets[chunk.ticket].state == ADMITTED or self._uploads.stale(chunk):
            return False  # a duplicate of what the worker has already, or of what the device has given up
        why_not = self._uploads.why_not(chunk.total, chunk.offset, len(chunk.data))
        if why_not:
            self._refuse_update(chunk.ticket, why_not, now)
            return False
        if self._workers.busy():
            self._to(device, _busy(chunk.ticket, chunk.digest))
            return False
        if len(chunk.data) == chunk.total:
            self._arrived_whole(chunk.ticket, chunk.digest, chunk.data, acknowledgement, now)
            return True
        self._uploads.add(device, chunk, acknowledgement)
        return True

    def _flush_chunks(self, now: float) -> None:
        """Stores the turn's chunks in one go, then acknowledges them, each for itself (rule 5)."""
        for device, chunk, acknowledgement, why_not in self._uploads.flush():
            self._effects.append(Acknowledge(BULK, acknowledgement))
            if why_not == BUSY:
                self.store.count(why_not)
                self._to(device, _busy(chunk.ticket, chunk.digest))
            elif why_not:
                self._refuse_update(chunk.ticket, why_not, now)
            elif self._uploads.complete(chunk):
                self._arrived_whole(chunk.ticket, chunk.digest, None, None, now)

    def _arrived_whole(
        self,
        ticket: bytes,
        digest: bytes,
        payload: bytes | None,
        acknowledgement: Delivery | None,
        now: float,
    ) -> None:
        assert self.round is not None
        actions = self.round.handle(rounds.UpdateArrived(ticket, digest), now)
        admitted = any(isinstance(action, rounds.Admit) for action in actions)
        self._perform([a for a in actions if not isinstance(a, rounds.Admit)], now)
        if admitted:
            self._workers.ingest(IngestItem(self.settings.task, ticket, digest, payload, acknowledgement))
        elif acknowledgement is not None:
            self._effects.append(Acknowledge(BULK, acknowledgement))

    def _on_ingested(self, event: Ingested, now: float) -> None:
        for result in event.results:
            if result.acknowledgement is not None:
                self._effects.append(Acknowledge(BULK, result.acknowledgement))
            if self.round is None or result.ticket not in self.round.tickets:
                continue
            if result.seq:
                actions = self.round.handle(rounds.UpdateJournalled(result.ticket, result.seq), now)
            else:
                self.store.count(result.reason)
                logger.info("refused the update of %s: %s", self.round.tickets[result.ticket].device, result.detail)
                actions = self.round.handle(rounds.UpdateRefused(result.ticket, result.reason), now)
            self._perform(actions, now)

    # --- rounds ---

    def _start_round(self, now: float) -> None:
        s = self.settings
        last = self.store.rounds(s.task, limit=1)
        number = self._completed + 1
        attempt = last[0].attempt + 1 if last and last[0].number == number else 0
        expected = self._expected(attempt)
        self.record = RoundRecord(
            task=s.task,
            number=number,
            attempt=attempt,
            phase=rounds.SELECTION,
            seconds_remaining=s.round.selection_seconds_max,
            base=self._parameters_digest,
            program=s.program_digest,
            last_seq=None,
            reason="",
            summary={},
            started_at=self._wall(),
            ended_at=None,
        )
        self.store.save_round(self.record)
        self.round = Round(
            s.round,
            expected=expected,
            rng=self._cohort_rng(number, attempt),
            new_ticket=lambda: self._new_id(16),
            now=now,
            choose_by=self._choose_by,
        )
        self._begin(now)
        self._announce(now)

    def _expected(self, attempt: int) -> int:
        """Sets the fraction to announce; returns how many check-ins it should bring, 0 if nobody knows."""
        s = self.settings
        self._flush_seen()
        population = self.store.population(s.task, POPULATION_SECONDS)
        wanted = wanted_count(s.round.goal_count, s.round.over_selection)
        self._fraction = announced_fraction(population, wanted, s.fraction, attempt)
        self._participation = round(min(1.0, wanted / population), 3) if population else 0.0
        return int(population * self._fraction)

    def _plan(self) -> Plan:
        """What devices are asked to do; a codec that chooses is told how often they can expect to take part."""
        plan = self.settings.plan
        return replace(plan, codec=plan.codec.taking_part(self._participation))

    def _cohort_rng(self, number: int, attempt: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.settings.seed, number, attempt])))

    def _begin(self, now: float) -> None:
        assert self.record is not None
        self._verdicts_waiting, self._holds = {}, {}
        self._uploads.clear()
        self._traffic = _Traffic(down_at_start=self._downloads.bytes_sent)
        self._phase_seconds, self._phase_began = {}, now
        self._pending.record = self._pending.round = True
        self._workers.start(
            StartJob(
                self.record.task,
                self.record.number,
                self.record.attempt,
                self.record.base,
            )
        )

    def _restore(self, record: RoundRecord, now: float) -> None:
        self.record = record
        known = self.store.tickets(record.task, record.number, record.attempt)
        self.round = Round.restore(
            self.settings.round,
            phase=rounds.CLOSED if record.phase == rounds.CLOSING else record.phase,
            seconds_remaining=record.seconds_remaining,
            tickets=[_ticket(row) for row in known],
            expected=self._expected(record.attempt),
            rng=self._cohort_rng(record.number, record.attempt),
            new_ticket=lambda: self._new_id(16),
            now=now,
            choose_by=self._choose_by,
        )
        self._begin(now)
        if record.phase == rounds.CLOSING:
            verdicts = {row.ticket: (row.state, row.reason) for row in known}
            self._close(record.last_seq or 0, verdicts)
        else:
            if record.phase in (rounds.CONFIGURATION, rounds.REPORTING):
                self._retain(self._parameters_digest, *(model_delta.digest for model_delta in self._deltas))
            self._perform(self.round.handle(rounds.Tick(), now), now)

    def _perform(self, actions: list[rounds.Action], now: float) -> None:
        for action in actions:
            match action:
                case rounds.Issue():
                    self._issue(action, now)
                case rounds.TurnAway(device, nonce, reason):
                    verdicts = self._verdicts_waiting.pop(device, ())
                    self._holds.pop(device, None)
                    self._come_back(device, nonce, self._come_back_time(), reason, verdicts)
                case rounds.TicketChanged(ticket):
                    self._pending.moved.append((ticket.ticket, ticket.state, ticket.reason))
                    self._pending.record = True
                case rounds.Receipt(ticket):
                    self._to(ticket.device, self._verdict(ticket.ticket, ticket.digest, JOURNALLED, ""))
                case rounds.Refuse(ticket, outcome, reason):
                    retry = BUSY_SECONDS if outcome == BUSY else 0.0
                    self._to(
                        ticket.device,
                        Verdict(
                            ticket=ticket.ticket,
                            digest=ticket.digest,
                            outcome=outcome,
                            reason=reason,
                            retry_seconds=retry,
                        ),
                    )
                case rounds.PhaseChanged(phase):
                    self._phase_changed(phase, now)
                case rounds.Close(last_seq, verdicts):
                    self._journal_close(last_seq, verdicts, now)
                case rounds.Abandon(reason, verdicts):
                    self._abandon(reason, verdicts, now)
                case rounds.Hold() | rounds.Admit():
                    pass
        if actions:
            self._pending.round = True

    def _phase_changed(self, phase: str, now: float) -> None:
        assert self.record is not None
        before = self.record.phase
        self._phase_seconds[before] = self._phase_seconds.get(before, 0.0) + now - self._phase_began
        self._phase_began = now
        if phase in (rounds.CONFIGURATION, rounds.REPORTING):
            self.record = replace(self.record, phase=phase)
            self._pending.record = True
        if phase == rounds.CONFIGURATION:
            self._retain()
            self._announce(now)

    def _retain(self, *digests: bytes) -> None:
        """The program, and what those who are invited need beside it."""
        if self._retains():
            for digest in (self.settings.program_digest, *digests):
                self._effects += self._downloads.retain(digest)

    def _retains(self) -> bool:
        s = self.settings
        if s.retained_blobs == "auto":
            return wanted_count(s.round.goal_count, s.round.over_selection) >= RETAIN_FROM_DEVICES
        return s.retained_blobs == "always"

    def _issue(self, action: rounds.Issue, now: float) -> None:
        s, ticket = self.settings, action.ticket
        assert self.record is not None and self.round is not None
        if not action.again:
            self._pending.issued.append(_row(ticket, self.record))
            self._pending.record = True
        base, deltas = self._way_to(ticket, new=not action.again)
        report_seconds = self.round.report_seconds(now)
        invite = Invite(
            nonce=action.nonce,
            ticket=ticket.ticket,
            round=self.record.number,
            attempt=self.record.attempt,
            program=s.program_digest,
            program_bytes=len(self._program),
            parameters=self._parameters_digest,
            parameters_bytes=len(self._parameters),
            plan=self._plan(),
            report_seconds=report_seconds,
            chunk_bytes_max=s.chunk_bytes_max,
            blob_bytes=RETAINED_PIECE_BYTES if self._retains() else 0,
            requires=s.requires,
            verdicts=self._verdicts_waiting.pop(ticket.device, ()),
            base=base,
            deltas=deltas,
            vectors=self._vectors,
        )
        self._to(ticket.device, invite, shard=SHARD)

    def _way_to(self, ticket: Ticket, *, new: bool) -> tuple[bytes, tuple[tuple[bytes, int], ...]]:
        """Base and deltas for the device of a ticket; what it will fetch is retained, and counted if it is new."""
        holds, whole = self._holds.pop(ticket.device, ()), len(self._parameters)
        base, chain = chain_from(self._deltas, holds)
        deltas = tuple((model_delta.digest, model_delta.bytes) for model_delta in chain)
        if deltas:
            fetched = sum(size for _, size in deltas)
            self._retain(*(digest for digest, _ in deltas))
        elif self._parameters_digest in holds:
            fetched = whole = 0
        else:
            fetched = whole
            self._retain(self._parameters_digest)
        if new:
            self._traffic.saves[ticket.ticket] = whole - fetched
            self._traffic.fanned_out += fetched if self._retains() else 0
        return base, deltas

    def _journal_close(self, last_seq: int, verdicts: dict[bytes, tuple[str, str]], now: float) -> None:
        """``Closed(last_seq)`` is committed with this turn; the job only runs what is then decided."""
        assert self.record is not None
        self._flush_tickets()
        for ticket, (state, reason) in verdicts.items():
            if state != COUNTED:  # these stay journalled until the commit: their rows are the payloads
                self.store.set_ticket(ticket, state, reason)
        self.record = replace(
            self.record, phase=rounds.CLOSING, last_seq=last_seq, seconds_remaining=0.0, summary=self._summary()
        )
        self.store.save_round(self.record)
        self._close(last_seq, verdicts)

    def _close(self, last_seq: int, verdicts: dict[bytes, tuple[str, str]]) -> None:
        assert self.record is not None
        self._committing = True
        self._final = {
            ticket: (COUNTED, "") if state == JOURNALLED else (state, reason)
            for ticket, (state, reason) in verdicts.items()
        }
        self._workers.close(CloseJob(self.record, last_seq, self._final))

    def _abandon(self, reason: str, verdicts: dict[bytes, tuple[str, str]], now: float) -> None:
        """The model stays as it is, byte for byte."""
        assert self.record is not None and self.round is not None
        logger.warning("round %d abandoned: %s", self.record.number, reason)
        self._flush_tickets()
        ended = replace(
            self.record,
            phase=rounds.ABANDONED,
            reason=reason,
            seconds_remaining=0.0,
            summary=self._summary(),
            ended_at=self._wall(),
        )
        self.store.abandon_round(ended, verdicts)
        self._effects.append(RoundEnded(ended.number))
        tickets, self.round, self.record = self.round.tickets, None, None
        for ticket in tickets.values():
            state, why = verdicts[ticket.ticket]
            if state in (REFUSED, LATE, MISSING):
                self._to(ticket.device, self._verdict(ticket.ticket, ticket.digest, state, why))
        self._timers["next"] = now + self.settings.retry_seconds
        self._announce(now)
        self._pending.round = True

    def _on_committed(self, event: RoundCommitted, now: float) -> None:
        assert self.record is not None and self.round is not None
        self._committing = False
        if event.error:
            verdicts = {
                ticket: (REFUSED, "abandoned") if state == COUNTED else (state, reason)
                for ticket, (state, reason) in self._final.items()
            }
            self._abandon(event.error, verdicts, now)
            return
        number, tickets = self.record.number, self.round.tickets
        self._recent.append({"round": number, **self.record.summary, "metrics": rounded(event.metrics)})
        self.round, self.record = None, None
        self._completed = number
        self.metrics = dict(event.metrics)
        self._previous = {self._parameters_digest: self._parameters, **self._vector_blobs}
        checkpoint = self.store.latest_checkpoint(self.settings.task)
        assert checkpoint is not None
        self._take_checkpoint(checkpoint)
        self._serve()
        self._effects += self._downloads.clear_retained(self.store.retained())
        for ticket in tickets.values():
            state, reason = self._final[ticket.ticket]
            if state in (COUNTED, LATE):
                self._to(ticket.device, self._verdict(ticket.ticket, ticket.digest, state, reason))
        if self._is_evaluated(number):
            self._workers.evaluate(event.task, number, event.parameters)
            self._pending.round = True
        else:
            self._round_over(number, now)

    def _is_evaluated(self, number: int) -> bool:
        every = self.settings.evaluate_every
        return every > 0 and number > 0 and number % every == 0

    def _on_evaluated(self, event: Evaluated, now: float) -> None:
        if event.error:
            logger.error("evaluation of round %d failed: %s", event.number, event.error)
        self.metrics.update(event.metrics)
        self.store.set_metrics(self.settings.task, event.number, self.metrics)
        if self._recent and self._recent[-1]["round"] == event.number:
            self._recent[-1]["metrics"] = rounded(self.metrics)
        self._round_over(event.number, now)

    def _round_over(self, number: int, now: float) -> None:
        self.finished = self._stopping.observe(number, self.metrics)
        self._effects.append(RoundEnded(number))
        if self.finished is None:
            self._timers["next"] = now + self.settings.pause_seconds
        else:
            self._finish(self.finished)
        if self.finished is not None or self.settings.pause_seconds > 0:  # else the next selection says it all
            self._announce(now)
        self._pending.round = True

    def _finish(self, reason: str) -> None:
        """Nothing more will be asked of anybody: the retained cache goes (rule 14)."""
        self._downloads.serve({})
        self._effects += self._downloads.clear_retained(self.store.retained())
        self._effects.append(Finished(reason))

    def _take_checkpoint(self, checkpoint: Checkpoint) -> None:
        """What devices get of the model: ``_parameters``, the deltas that lead there, the vectors beside."""
        self._parameters_digest = checkpoint.published_digest
        self._parameters = self.store.get_blob(checkpoint.published_digest) or b""
        self._vectors = self.store.broadcast(self.settings.task)
        self._vector_blobs = {digest: self.store.get_blob(digest) or b"" for _, digest, _ in self._vectors}
        self._deltas = self.store.deltas(self.settings.task)
        self._delta_blobs = {
            model_delta.digest: self._delta_blobs.get(model_delta.digest)
            or self.store.get_blob(model_delta.digest)
            or b""
            for model_delta in self._deltas
        }

    def _serve(self) -> None:
        """The blobs of this round and of the one before (its stragglers may still be fetching; rule 7)."""
        blobs = {
            self.settings.program_digest: self._program,
            self._parameters_digest: self._parameters,
            **self._delta_blobs,
            **self._vector_blobs,
        }
        if self._previous is not None:
            blobs.update(self._previous)
        self._downloads.serve(blobs)

    # --- time ---

    def _on_tick(self, event: Tick, now: float) -> None:
        for name in [name for name, due in self._timers.items() if due <= now]:
            del self._timers[name]
            if name == "next" and self.round is None and self.finished is None:
                if CONTROL in self._up:
                    self._start_round(now)
                else:
                    self._starts_when_up = True  # nobody would hear of it, and its time would run out
            elif name == "round":
                self._publish_round(now)
            elif name == "clock":
                self._pending.record = True
            elif name == "seen":
                self._flush_seen()
        if self.round is not None:
            deadline = self.round.next_deadline()
            if deadline is not None and deadline <= now:
                self._perform(self.round.handle(rounds.Tick(), now), now)

    # --- speaking ---

    def _to(self, device: str, message: Message, shard: str = "") -> None:
        self._effects.append(self._publisher.to_device(device, message, shard))

    def _announce(self, now: float) -> None:
        if len(self._up) < 2:
            return  # said when both connections are there
        number = self.record.number if self.record else self._completed
        attempt = self.record.attempt if self.record else 0
        self._effects.append(self._publisher.announce(number, attempt, self.round, self.finished, self._fraction, now))

    def _publish_round(self, now: float) -> None:
        """Retained JSON for people and machines, at most a few times a second."""
        if len(self._up) < 2:
            return
        due = self._round_published_at + ROUND_SECONDS_MIN
        if now < due and self.finished is None:
            self._timers["round"] = due
            return
        self._round_published_at = now
        self._timers.pop("round", None)
        self._effects.append(self._publisher.publish_round(self.summary(now)))

    def summary(self, now: float) -> dict[str, Any]:
        """What ``coordinator/round`` says: plain numbers and words."""
        s, record = self.settings, self.record
        return {
            "incarnation": self.incarnation,
            "federation": s.federation,
            "task": s.task,
            "round": record.number if record else self._completed,
            "attempt": record.attempt if record else 0,
            "rounds_max": s.stopping.rounds_max,
            "phase": (self.finished and "done") or (self.round.phase if self.round else "waiting"),
            "reason": self.finished or "",
            "remaining_seconds": round(self.round.seconds_remaining(now), 1) if self.round else 0.0,
            "goal_count": s.round.goal_count,
            **(self._summary() if self.round else {}),
            "metrics": rounded(self.metrics),
            "recent": list(self._recent),
            "best": self._stopping.best,
            "refused_messages": self.store.counters(),
        }

    def _summary(self) -> dict[str, Any]:
        assert self.round is not None
        sent = self._downloads.bytes_sent - self._traffic.down_at_start
        down = max(sent, self._traffic.fanned_out)
        return round_summary(
            self.round.counts(),
            bytes_up=self._traffic.up,
            bytes_down=down,
            bytes_down_dense=down + self._traffic.saved,
            dense_bytes=self.settings.dense_bytes,
            phases=self._phase_seconds.items(),
        )

    def _record_now(self, now: float) -> RoundRecord:
        assert self.record is not None and self.round is not None
        return replace(self.record, seconds_remaining=self.round.seconds_remaining(now))


def _busy(ticket: bytes, digest: bytes) -> Verdict:
    """Retryable: the worker's queue or a quota is full (rule 14)."""
    return Verdict(ticket=ticket, digest=digest, outcome=BUSY, reason=BUSY, retry_seconds=BUSY_SECONDS)


def _ticket(row: TicketRecord) -> Ticket:
    return Ticket(row.ticket, row.device, row.instance, row.state, row.reason, row.digest or b"", row.seq)


def _row(ticket: Ticket, record: RoundRecord) -> TicketRecord:
    return TicketRecord(
        ticket=ticket.ticket,
        task=record.task,
        round=record.number,
        attempt=record.attempt,
        device=ticket.device,
        instance=ticket.instance,
        state=ticket.state,
        reason=ticket.reason,
        digest=None,
        seq=None,
    )
