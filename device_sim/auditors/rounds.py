"""The invariants of the protocol, checked while a scenario runs. What is compared here is computed a second time.

1. A ticket counts at most once, and only with the update that its device made for it.
2. A receipt is honoured: an update that the coordinator has acknowledged counts, unless its round was abandoned.
3. The verdicts partition the tickets of a round.
4. The model of a round is bit-identical to one computed from the counted updates.
5. Rounds always end (the scenario's virtual time is bounded).
6. For each device: what was counted plus its residual is the sum of the deltas of the trainings that counted.
7. Nothing is said that is not committed, and what is said of a ticket is what the database says of it.
8. No device trains while the outcome of its last update is unknown to it, and in the end each device knows it.
9. The model of a round follows from the one before by the round's model delta; a device is invited to it and trains on
   exactly these parameters, however many rounds it has missed.
10. When all is over, nothing is left: no payload, no chunk, no retained piece.
11. In a round of statistics nobody gets parameters, and all that it changes is mean and scale of the features, which
    are those of the reports that counted.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.downlink import moved_by, next_model
from coordinator.events import CloseJob, RoundCommitted
from coordinator.pipeline import PipelineSettings
from coordinator.store import Store, TicketRecord
from coordinator.task_settings import OPENING_ROUND
from device_sim.auditors.models import REFERENCES, Layout, Sent, clipped, norm_of
from device_sim.auditors.statistics import mean_and_scale
from edge_sdk.codecs import CodecSettings, Rotated, decode_update
from edge_sdk.codecs.frames import DecodedParts, decode_frames, groups_of, shared_seed, untrained_mask
from edge_sdk.codecs.grid import decode_grid
from edge_sdk.training.bundle import Program, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import ModelDelta, spans_of
from edge_sdk.wire.messages import ID_BYTES, Invite, Update, Verdict
from edge_sdk.wire.outcomes import VERDICTS
from edge_sdk.wire.plan import Plan
from edge_sdk.wire.terms import Terms, terms_id

__all__ = ["Auditor", "InvariantBroken"]

CLOSE: Final = 2e-4


class InvariantBroken(AssertionError):
    """A rule of the protocol did not hold."""


@dataclass(slots=True)
class _Training:
    device: str
    payload: bytes
    delta: NDArray[np.float32] | None


@dataclass(slots=True)
class _DeviceRecord:
    deltas: NDArray[np.float64] | None = None
    sent: NDArray[np.float64] | None = None


@dataclass(slots=True)
class Auditor:
    """What really happened, kept outside of the coordinator and the devices.

    Attributes:
        program: The task's program.
        plan: What devices are asked to do.
        pipeline: What the coordinator's pipeline is made of.
        parameters: The parameters blob of the last committed round.
        algorithm: The algorithm's name.
        clip_norm: What the coordinator clips to, 0 for nothing.
        state: The optimiser's state after it.
        norms: Norms of all counted updates.
        trainings: Every update that a device has finished, by ticket and digest.
        receipts: Tickets for which a device was told "received", with the digest.
        counted: Every counted ticket with its round's number.
        rounds: Verdict counts of each committed round.
        digests: Digest of each committed model.
        cohorts: Devices whose updates made each committed model, in the order of the journal.
        owed: float32[P], what the optimiser has moved beyond the model.
        invited: What each ticket invites to: the digest of the parameters.
        asked_for_statistics: Tickets of a round of statistics.
        terms: What each device was told, encoded, by device and short digest.
        followed: How often a device made its parameters out of deltas.
        not_followed: How often it could not, and fetched them whole.
    """

    program: Program
    plan: Plan
    pipeline: PipelineSettings
    parameters: bytes
    algorithm: str = "mean"
    clip_norm: float = 0.0
    state: dict[str, NDArray[np.float32]] = field(init=False)
    norms: list[float] = field(default_factory=list)
    trainings: dict[tuple[bytes, bytes], _Training] = field(default_factory=dict)
    receipts: dict[bytes, bytes] = field(default_factory=dict)
    counted: dict[bytes, int] = field(default_factory=dict)
    rounds: list[dict[str, int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    cohorts: list[tuple[str, ...]] = field(default_factory=list)
    books: dict[str, _DeviceRecord] = field(default_factory=dict)
    owed: NDArray[np.float32] = field(init=False)
    invited: dict[bytes, bytes] = field(default_factory=dict)
    asked_for_statistics: set[bytes] = field(default_factory=set)
    terms: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    followed: int = 0
    not_followed: int = 0

    def __post_init__(self) -> None:
        self.state = dict(self.pipeline.optimizer.init(self.program.spec.size))
        self.owed = np.zeros(self.program.spec.size, dtype=np.float32)

    # --- what devices do ---

    def on_trained(
        self, device: str, ticket: bytes, digest: bytes, payload: bytes, delta: NDArray[np.float32] | None
    ) -> None:
        """A device has finished an update (it may crash before saving it, and train again).

        ``delta`` is None for a report that no training belongs to.
        """
        self.trainings[ticket, digest] = _Training(device, payload, delta)

    def on_receipt(self, device: str, ticket: bytes, digest: bytes) -> None:
        """A device was told that its update is held."""
        self.receipts[ticket] = digest

    def on_started(self, device: str, unsettled: list[bytes]) -> None:
        """A device begins to train."""
        if unsettled:
            raise InvariantBroken(f"{device} trains, and does not know yet what became of {unsettled[0].hex()}")

    def on_training(self, device: str, ticket: bytes, digest: bytes | None) -> None:
        """A device works on parameters with this digest; None where it has fetched none."""
        if ticket in self.asked_for_statistics:
            if digest is not None:
                raise InvariantBroken(f"{device} has fetched parameters for a report of statistics")
        elif digest is None or self.invited.get(ticket) != digest:
            raise InvariantBroken(f"{device} trains on {digest and digest.hex()}, its invite does not name that")

    def on_settled(self, device: str, ticket: bytes, counted: bool) -> None:
        """A device believes to know the outcome."""
        if counted and ticket not in self.counted:
            raise InvariantBroken(f"{device} was told that {ticket.hex()} counted, and it did not")
        if not counted and ticket in self.counted:
            raise InvariantBroken(f"{device} was told that {ticket.hex()} did not count, and it did")

    # --- what the coordinator says ---

    def on_said(self, topic: str, *, committed: bool) -> None:
        """The coordinator publishes something; what it decided must be in the database by then (rule 1)."""
        if not committed:
            raise InvariantBroken(f"{topic}: it is spoken before the commit")

    def on_invited(self, device: str, invite: Invite, known: TicketRecord | None) -> None:
        """An invite leaves the coordinator; ``known`` is what is committed."""
        again = invite.ticket in self.invited
        if known is None or known.device != device or not (again or known.state in ("invited", "accepted")):
            raise InvariantBroken(f"{device} is invited with a ticket that the database has as {known}")
        if invite.parameters != digest_of(self.parameters):
            raise InvariantBroken(f"{device} is invited to {invite.parameters.hex()}, which is not the model")
        self.invited[invite.ticket] = invite.parameters
        terms = self._terms_of(device, invite)
        if invite.round == OPENING_ROUND:
            self.asked_for_statistics.add(invite.ticket)
            if not terms.plan.without_parameters or invite.deltas or invite.inline or invite.vectors:
                raise InvariantBroken(f"{device} is to fetch more than the program in a round of statistics")

    def _terms_of(self, device: str, invite: Invite) -> Terms:
        """What an invite asks; terms may only be named to a device that has heard them."""
        name = invite.terms
        if len(name) > ID_BYTES:
            name = terms_id(invite.terms)
            self.terms[device, name] = invite.terms
        if (device, name) not in self.terms:
            raise InvariantBroken(f"{device} is invited on terms that it was never told")
        return Terms.decode(self.terms[device, name])

    def on_told(self, device: str, verdict: Verdict, known: TicketRecord | None) -> None:
        """A verdict leaves the coordinator; ``known`` is what is committed."""
        state = known.state if known is not None and known.device == device else "unknown"
        if verdict.outcome == "busy" or (verdict.outcome, verdict.reason.partition(":")[0]) == ("refused", "spent"):
            return
        if verdict.outcome == "received":
            true = state in ("journalled", "counted", "refused")  # refused: its round was abandoned in the same turn
        elif verdict.outcome == "unknown":
            true = state in ("unknown", "invited", "accepted")
        elif verdict.outcome == "abandoned":
            true = known is not None and (state, known.reason) == ("refused", "abandoned")
        else:
            true = state == verdict.outcome
        if not true:
            raise InvariantBroken(f"{device} is told {verdict}, and the database says {state}")

    # --- what the coordinator does ---

    def on_committed(
        self,
        job: CloseJob,
        journalled: list[tuple[bytes, bytes]],
        result: RoundCommitted,
        model_delta: bytes | None,
        earlier: list[list[TicketRecord]],
    ) -> None:
        """A round was committed.

        Args:
            job: What was to be closed.
            journalled: ``(ticket, digest)`` of the rows up to ``last_seq``, read before the commit.
            result: What came of it.
            model_delta: The round's model delta in the database, None where there is none.
            earlier: Tickets of the attempts at the same round that were abandoned.
        """
        if result.error:
            raise InvariantBroken(f"round {job.record.number} could not be aggregated: {result.error}")
        counted = {ticket for ticket, (verdict, _) in job.verdicts.items() if verdict == "counted"}
        if counted != {ticket for ticket, _ in journalled} or len(journalled) != len(counted):
            raise InvariantBroken(f"round {job.record.number}: counted are not those in the journal")
        for ticket in counted:
            if ticket in self.counted:
                raise InvariantBroken(
                    f"ticket {ticket.hex()} counts twice: in {self.counted[ticket]} and {result.number}"
                )
            self.counted[ticket] = result.number
        self._check_verdicts(job.verdicts)
        before = self.parameters
        if job.record.number == OPENING_ROUND:
            self._check_statistics(journalled, result)
        else:
            self._check_model(job, journalled, result, earlier)
        if model_delta is not None and self._follow(before, model_delta) != self.parameters:
            raise InvariantBroken(f"round {result.number}: the model does not follow from its model delta")
        self.rounds.append(_tally(job.verdicts))
        self.digests.append(result.parameters)
        self.cohorts.append(tuple(self.trainings[row].device for row in journalled))

    def _check_verdicts(self, verdicts: dict[bytes, tuple[str, str]]) -> None:
        for ticket, (verdict, _) in verdicts.items():
            if verdict not in VERDICTS:
                raise InvariantBroken(f"ticket {ticket.hex()} ended as {verdict!r}")

    def _check_model(
        self,
        job: CloseJob,
        journalled: list[tuple[bytes, bytes]],
        result: RoundCommitted,
        earlier: list[list[TicketRecord]],
    ) -> None:
        """The model once more, from what the devices say that they sent."""
        groups, pipeline = groups_of(self.program.spec, self.plan.codec), self.pipeline
        base = digest_of(self.parameters)
        layout = Layout(
            groups, shared_seed(base) & 0xFFFF_FFFF, pipeline.fixed_point.fraction_bits, self.program.spec.size
        )
        counted: list[Sent] = []
        norms: list[tuple[bytes, float]] = []
        moved = trained = 0
        for ticket, digest in sorted(journalled, reverse=True):
            training = self.trainings.get((ticket, digest))
            if training is None:
                raise InvariantBroken(f"ticket {ticket.hex()} was counted with bytes that no device made")
            parts, update = self._decoded(training.payload, layout)
            norms.append((digest, norm_of(parts, groups)))
            moved, trained = moved + moved_by(parts), trained + sum(group.size for group in groups)
            weight = 1 if self.plan.weighting == "uniform" else min(update.examples, self.plan.examples_max)
            self._count(training, layout.whole([part.dense() for part in parts]).astype(np.float64))
            if self.clip_norm:
                parts = clipped(parts, groups, self.clip_norm)
            counted.append(Sent(parts, weight, update.steps))
        self._check_norms(job, norms, layout, earlier)
        before = decode_parameters(self.parameters, self.program.spec)
        downlink = pipeline.downlink.suited(moved / trained)
        wanted, state = pipeline.optimizer.apply(
            before + np.float32(downlink.keeps) * self.owed,
            REFERENCES[self.algorithm](counted, layout),
            self.state,
            untrained_mask(self.program.spec),
        )
        spans = (spans_of(self.program.spec, kind) for kind in ("buffer", "constant"))
        made = next_model(downlink, self.parameters, wanted, *spans)
        self.parameters, self.state = made.parameters, dict(state)
        self.owed = wanted - decode_parameters(self.parameters, self.program.spec)
        if np.linalg.norm(self.owed) > np.linalg.norm(wanted - before):
            raise InvariantBroken(f"round {result.number}: the model has moved away from what is wanted")
        if digest_of(self.parameters) != result.parameters:
            raise InvariantBroken(f"round {result.number}: the model is not the one of its counted updates")

    def _check_statistics(self, journalled: list[tuple[bytes, bytes]], result: RoundCommitted) -> None:
        """Mean and scale once more, from what the devices say that they reported."""
        if self.program.normalise is None:
            raise InvariantBroken(f"round {result.number}: statistics for a model that has no use for them")
        reports = []
        for ticket, digest in sorted(journalled, reverse=True):
            training = self.trainings.get((ticket, digest))
            if training is None or training.delta is not None:
                raise InvariantBroken(f"ticket {ticket.hex()} was counted with a report that no device made")
            update = Update.decode(training.payload)
            weight = 1 if self.plan.weighting == "uniform" else min(update.examples, self.plan.examples_max)
            reports.append((update.arrays, weight))
        vector = decode_parameters(self.parameters, self.program.spec).copy()
        tensors = self.program.spec.unflatten(vector)
        for told in self.program.normalised:
            for name, values in zip((told.mean, told.scale), mean_and_scale(reports, told.input), strict=True):
                tensors[name][...] = values.reshape(tensors[name].shape)
        self.parameters = encode_parameters(vector)
        if digest_of(self.parameters) != result.parameters:
            raise InvariantBroken("mean and scale in the model are not those of the reports that counted")

    def _decoded(self, payload: bytes, layout: Layout) -> tuple[DecodedParts, Update]:
        update = Update.decode(payload)
        parts = decode_frames(update.frames(), self.plan.codec, self.program.spec)
        summed = not self.pipeline.algorithm.needs_all
        return tuple(
            part if summed and isinstance(part, Rotated) and part.seed == layout.rotation else part.plain()
            for part in parts
        ), update

    def _check_norms(
        self,
        job: CloseJob,
        norms: list[tuple[bytes, float]],
        layout: Layout,
        earlier: list[list[TicketRecord]],
    ) -> None:
        """What the bound on norms let in and what it refused follows from the norms of the rounds before alone."""
        validation = self.pipeline.validation
        bound = math.inf
        if validation.norm_median_factor is not None and len(self.norms) >= validation.norms_needed:
            bound = validation.norm_median_factor * float(np.median(self.norms[-200:])) or math.inf
            for tickets in earlier[-50:]:
                reasons = [ticket.reason for ticket in tickets if ticket.state == "refused"]
                many = reasons.count("norm") >= max(len(tickets) / 3, reasons.count("abandoned") + 1)
                bound *= 2 if many else 1
        refused = {ticket for ticket, verdict in job.verdicts.items() if verdict == ("refused", "norm")}
        large = [
            norm_of(self._decoded(training.payload, layout)[0], layout.groups)
            for (ticket, _), training in self.trainings.items()
            if ticket in refused
        ]
        if any(norm > bound for _, norm in norms) or any(norm <= bound for norm in large):
            raise InvariantBroken(f"round {job.record.number}: the norms do not agree with the bound {bound:g}")
        self.norms += [norm for _, norm in sorted(norms)]

    def _follow(self, before: bytes, data: bytes) -> bytes:
        """The step of a model delta once more, one coordinate after the other."""
        model_delta = ModelDelta.decode(data)
        vector = decode_parameters(before, self.program.spec).copy()
        trainable = np.flatnonzero(self.program.spec.mask("trainable"))
        steps = decode_grid(model_delta.frame, trainable.size)
        for index, number in zip(steps.indices, steps.numbers, strict=True):
            place, unit = trainable[index], Fraction(2) ** steps.exponent
            vector[place] = np.float32(
                (math.floor(Fraction(float(vector[place])) / unit + Fraction(1, 2)) + int(number)) * unit
            )
        if model_delta.values:
            places = np.concatenate([np.arange(start, stop) for start, stop in model_delta.replaced])
            vector[places] = decode_update(model_delta.values, places.size, CodecSettings("dense")).dense()
        after = encode_parameters(vector)
        if (digest_of(before), digest_of(after)) != (model_delta.base, model_delta.target):
            raise InvariantBroken("a model delta does not lead from the model of before to what it names")
        return after

    def _count(self, training: _Training, sent: NDArray[np.float64]) -> None:
        if training.delta is None:
            raise InvariantBroken(f"{training.device} has trained nothing, and its update counts")
        books = self.books.setdefault(training.device, _DeviceRecord())
        delta = training.delta.astype(np.float64)
        books.deltas = delta if books.deltas is None else books.deltas + delta
        books.sent = sent if books.sent is None else books.sent + sent

    # --- at the end ---

    def check_store(self, store: Store, task: str) -> None:
        """Rounds, tickets and devices agree; a receipt counts unless its round was abandoned; nothing is left."""
        abandoned: set[bytes] = set()
        by_device: Counter[tuple[str, str]] = Counter()
        for record in store.rounds(task, limit=1_000_000):
            tickets = store.tickets(task, record.number, record.attempt)
            verdicts = {ticket.ticket: (ticket.state, ticket.reason) for ticket in tickets}
            self._check_verdicts(verdicts)
            by_device.update((ticket.device, ticket.state) for ticket in tickets)
            if record.phase == "abandoned":
                abandoned |= verdicts.keys()
            elif record.phase != "closed":
                raise InvariantBroken(f"round {record.number} is still {record.phase}")
        if abandoned & self.counted.keys():
            raise InvariantBroken("a ticket of an abandoned round counts")
        broken = self.receipts.keys() - self.counted.keys() - abandoned
        if broken:
            raise InvariantBroken(f"{len(broken)} receipts were not honoured: {min(broken).hex()}")
        told = Counter({(d.device, v): getattr(d, v) for d in store.devices() for v in VERDICTS if getattr(d, v)})
        if told != by_device:
            raise InvariantBroken(f"the counters of the devices are not those of the tickets: {told - by_device}")
        if store.journal_bytes or store.partial_bytes:
            raise InvariantBroken(f"{store.journal_bytes} + {store.partial_bytes} bytes of updates outlive their round")

    def check_books(self, device: str, residual: NDArray[np.float32] | None, *, settled: bool, kept: bool) -> None:
        """counted + residual = the deltas of the counted trainings, for a device whose last outcome is known.

        Args:
            device: Its name.
            residual: float32[trainable elements], what is on its disk.
            settled: Whether it knows the outcome of its last update.
            kept: Whether the codec keeps a residual at all.
        """
        books = self.books.get(device)
        if books is None or books.deltas is None or books.sent is None or not settled or not kept:
            return
        left = np.zeros_like(books.deltas)
        if residual is not None:
            left[self.program.spec.mask("trainable")] = residual
        gap = float(np.abs(books.sent + left - books.deltas).max())
        if gap > CLOSE * max(1.0, float(np.abs(books.deltas).max())):
            raise InvariantBroken(f"{device}: counted + residual misses the counted deltas by {gap:.3g}")


def _tally(verdicts: dict[bytes, tuple[str, str]]) -> dict[str, int]:
    tally = dict.fromkeys(sorted(VERDICTS), 0)
    for verdict, _ in verdicts.values():
        tally[verdict] += 1
    return tally
