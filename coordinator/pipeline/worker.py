"""The pipeline with the database: one task's updates are journalled, added up, and committed as the next model.

Everything here runs on one FIFO worker (rule 12: threads). An update is added to the sums only after its journal entry
is committed, and the sums are exact, so a restart that replays the journal finds the same bits (rule 9). A hostile or
broken update costs its own refusal and nothing else.

The worker keeps model and memory itself, from the latest checkpoint on: only digests go to the
core and come from it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from coordinator.downlink import merged_deltas
from coordinator.events import CloseJob, IngestItem, IngestResult, RoundCommitted, StartJob
from coordinator.pipeline.memory import Memory, pack_memory, unpack_memory
from coordinator.pipeline.round_pipeline import Examined, RoundPipeline
from coordinator.store import JournalRow, QuotaExceeded, Store, TicketRecord
from coordinator.task_settings import OPENING_ROUND
from edge_sdk.errors import DivergedError, EdgeFedError, ProtocolError, StateError
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.outcomes import BUSY, REFUSED

__all__ = ["TaskWorker", "stalled_attempts"]

ATTEMPTS_MAX: Final = 50
"""So many attempts at one round are looked back upon."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """One update that was decoded and found good."""

    item: IngestItem
    payload: bytes
    update: Examined


@dataclass(frozen=True, slots=True)
class _Held:
    """What the latest checkpoint says: the model, and what the pipeline remembers."""

    base: bytes
    parameters: bytes
    memory: Memory


class TaskWorker:
    """One task's updates and sums.

    Args:
        store: The database, with the task's first checkpoint in it.
        task: The task's name.
        training: The pipeline of rounds of training.
        opening: That of round 0, where the task begins with one.
    """

    def __init__(
        self, store: Store, task: str, training: RoundPipeline[Any], opening: RoundPipeline[Any] | None = None
    ) -> None:
        self.task = task
        self._store = store
        self._training = training
        self._opening = opening
        self._pipeline = training
        self._held: _Held | None = None
        self._round: tuple[int, int] | None = None

    def start(self, job: StartJob) -> None:
        """Begins a round: empty sums, then whatever its journal holds (after a crash).

        Raises:
            StateError: The checkpoint is not the one that the round begins from, or an update of its journal cannot be
                used any more.
        """
        self._round = job.number, job.attempt
        self._pipeline = self.pipeline_of(job.number)
        held = self._held
        if held is None or held.base != job.base:
            held = self._held = self._load(job.base)
        stalled = stalled_attempts(
            self._store.tickets(job.task, job.number, attempt)
            for attempt in range(max(0, job.attempt - ATTEMPTS_MAX), job.attempt)
        )
        self._pipeline.begin(held.parameters, held.memory, held.base, stalled)
        for _, _, _, payload in self._store.journalled(job.task, job.number, job.attempt):
            self._pipeline.add(self._pipeline.again(payload))

    def process(self, items: Sequence[IngestItem]) -> tuple[IngestResult, ...]:
        """Takes some admitted updates in one group commit; what comes back with a ``seq`` is durable and summed."""
        results: dict[bytes, IngestResult] = {}
        admitted: list[_Admitted] = []
        weight = 0
        for item in items:
            try:
                good = self._examine(item, weight)
            except ProtocolError as error:
                results[item.ticket] = IngestResult(item.ticket, 0, error.reason, str(error), item.acknowledgement)
            else:
                admitted.append(good)
                weight += good.update.weight
        for good, seq, reason, detail in self._journal(admitted):
            if seq:
                self._pipeline.add(good.update)
            item = good.item
            results[item.ticket] = IngestResult(item.ticket, seq, reason, detail, item.acknowledgement)
        return tuple(results[item.ticket] for item in items)

    def close(self, job: CloseJob) -> RoundCommitted:
        """Turns the sums into the next model and commits the round, in one transaction."""
        record, number = job.record, job.record.number
        assert self._round == (number, record.attempt)
        try:
            done = self._pipeline.finish()
        except (EdgeFedError, ValueError) as error:
            logger.error("round %d cannot be aggregated: %s", number, error)
            reason = "diverged" if isinstance(error, DivergedError) else "aggregation"
            return RoundCommitted(self.task, number, b"", {}, f"cannot be aggregated: {error}", reason)
        metrics, new = done.metrics, done.model_delta
        if new is not None:
            new = merged_deltas(new, number, self._store.deltas(self.task), self._store.get_blob)
        for warning in done.warnings:
            logger.warning("task %s: round %d: %s", self.task, number, warning)
        summary = {**record.summary, **done.about, "metrics": metrics}
        made = self._store.commit_round(
            replace(record, phase="closed", last_seq=job.last_seq, summary=summary),
            parameters=done.parameters,
            server_state=pack_memory(done.memory),
            verdicts=job.verdicts,
            kept_round=job.good_round,
            metrics=metrics,
            model_delta=new,
            broadcast=done.broadcast,
        )
        self._held = _Held(made.parameters_digest, done.parameters, done.memory)
        return RoundCommitted(self.task, number, made.parameters_digest, metrics)

    def pipeline_of(self, number: int) -> RoundPipeline[Any]:
        """What makes something of the updates of the round of this number."""
        return self._opening if number == OPENING_ROUND and self._opening is not None else self._training

    def parameters(self, digest: bytes) -> bytes:
        """The parameters blob of a committed model; may be called on any thread.

        Raises:
            StateError: The database does not have it.
        """
        blob = self._store.get_blob(digest)
        if blob is None:
            raise StateError(f"task {self.task}: the parameters {digest.hex()[:16]} are not in the database")
        return blob

    def _load(self, base: bytes) -> _Held:
        checkpoint = self._store.latest_checkpoint(self.task)
        if checkpoint is None or checkpoint.parameters_digest != base:
            raise StateError(
                f"task {self.task}: the round begins from {base.hex()[:16]}, which is not the latest model"
            )
        return _Held(base, self.parameters(base), unpack_memory(checkpoint.server_state))

    def _examine(self, item: IngestItem, pending_weight: int) -> _Admitted:
        payload = item.payload if item.payload is not None else self._store.assemble(item.ticket, item.digest)
        if digest_of(payload) != item.digest:
            raise ProtocolError("update: its SHA-256 is not the digest that it was offered under", reason="digest")
        return _Admitted(item, payload, self._pipeline.examine(payload, item.digest, pending_weight))

    def _journal(self, admitted: list[_Admitted]) -> list[tuple[_Admitted, int, str, str]]:
        """One commit for all; where that fails, one for each, so that only the culprit pays."""
        if not admitted:
            return []
        try:
            seqs = self._store.journal([JournalRow(a.item.ticket, a.item.digest, a.payload) for a in admitted])
            return [(a, seq, "", "") for a, seq in zip(admitted, seqs, strict=True)]
        except (QuotaExceeded, StateError) as error:
            if len(admitted) > 1:
                return [row for a in admitted for row in self._journal([a])]
            logger.error("an update could not be journalled: %s", error)
            return [(admitted[0], 0, BUSY, str(error))]


def stalled_attempts(attempts: Iterable[Sequence[TicketRecord]]) -> int:
    """In how many attempts, by their tickets, more updates were refused for their norm than were good.

    They must be a third of all that were asked for: a few hostile devices that speak up while the others are cut off do
    not widen a bound.
    """
    stalled = 0
    for tickets in attempts:
        reasons = Counter(ticket.reason for ticket in tickets if ticket.state == REFUSED)
        stalled += reasons["norm"] > reasons["abandoned"] and 3 * reasons["norm"] >= len(tickets)
    return stalled
