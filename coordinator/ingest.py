"""The worker's side of a round: decode, validate, journal, accumulate; at the end aggregate, apply, commit.

Everything here runs on one FIFO worker (rule 12). An update is added to the sums only after its journal entry is
committed, and the sums are exact, so a restart that replays the journal finds the same bits (rule 9). A hostile or
broken update costs its own refusal and nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from coordinator.downlink import Downlink, publish
from coordinator.events import CloseJob, IngestItem, IngestResult, RoundCommitted, StartJob
from coordinator.server_optimizers import ServerOptimizer
from coordinator.store import JournalRow, QuotaExceeded, Store
from coordinator.validate import Validation
from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import FixedPoint, ScalarSums
from edge_sdk.codecs import Rotated, frame_codec
from edge_sdk.codecs.frames import DecodedParts, buffer_mask, decode_frames, groups_of, shared_seed
from edge_sdk.errors import EdgeFedError, ProtocolError, StateError
from edge_sdk.training.bundle import Program, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import buffer_spans
from edge_sdk.wire.messages import Update
from edge_sdk.wire.outcomes import BUSY
from edge_sdk.wire.plan import Plan

__all__ = ["Ingest", "pack_state", "unpack_state"]

logger = logging.getLogger(__name__)

SUMS: Final = ("loss", "examples", "steps", "seconds", "partial", "eval_loss", "eval_metric", "eval_count")
NORMS_KEPT: Final = 200


@dataclass(frozen=True, slots=True)
class _Admitted:
    """One update that was decoded and found good."""

    item: IngestItem
    payload: bytes
    update: Update
    decoded: DecodedParts
    norm: float


class Ingest:
    """One task's updates and sums.

    Args:
        store: The database.
        program: The task's program.
        plan: What devices were asked to do.
        validation: The gate.
        optimizer: The server optimiser.
        fixed_point: Scale and bounds of the sums.
        downlink: How the model travels to devices.
    """

    def __init__(
        self,
        store: Store,
        program: Program,
        plan: Plan,
        validation: Validation,
        optimizer: ServerOptimizer,
        fixed_point: FixedPoint,
        downlink: Downlink | None = None,
    ) -> None:
        self._store = store
        self._program = program
        self._plan = plan
        self._validation = validation
        self._optimizer = optimizer
        self._downlink = downlink or Downlink()
        self._spans = buffer_spans(program.spec)
        self._buffers = buffer_mask(program.spec)
        self._groups = groups_of(program.spec, plan.codec)
        self._mean = GroupedMean(self._groups, fixed_point)
        self._scalars = ScalarSums(SUMS)
        self._norms: list[float] = []
        self._round_norms: list[float] = []
        self._chosen: Counter[str] = Counter()
        self._norm_bound = validation.norm_bound(())
        self._start: StartJob | None = None

    def start(self, job: StartJob) -> None:
        """Begins a round: empty sums, then whatever its journal holds (after a crash)."""
        self._start = job
        self._mean, self._scalars = self._mean.zero(shared_seed(job.base)), self._scalars.zero()
        self._round_norms = []
        self._chosen.clear()
        self._norm_bound = self._validation.norm_bound(self._norms)
        for _, _, _, payload in self._store.journalled(job.task, job.number, job.attempt):
            update = Update.decode(payload)
            self._accumulate(update, self._decode(update))

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
                weight += self._weight(good.update)
        for good, seq, reason, detail in self._journal(admitted):
            if seq:
                self._accumulate(good.update, good.decoded)
                self._round_norms.append(good.norm)
            item = good.item
            results[item.ticket] = IngestResult(item.ticket, seq, reason, detail, item.acknowledgement)
        return tuple(results[item.ticket] for item in items)

    def close(self, job: CloseJob) -> RoundCommitted:
        """Turns the sums into the next model and commits the round, in one transaction."""
        start, record = self._start, job.record
        assert start is not None and (start.number, start.attempt) == (record.number, record.attempt)
        try:
            vector, state = self._optimizer.apply(
                decode_parameters(start.parameters, self._program.spec),
                self._mean.report(),
                unpack_state(start.server_state),
                self._buffers,
            )
            blob = encode_parameters(vector)
        except (EdgeFedError, ValueError) as error:
            logger.error("round %d cannot be aggregated: %s", record.number, error)
            return RoundCommitted(record.number, b"", b"", {}, f"cannot be aggregated: {error}")
        before = start.published or start.parameters
        published = publish(self._downlink, before, blob, vector, self._spans, before_digest=record.base)
        metrics = self.metrics()
        made = self._store.commit_round(
            replace(record, phase="closed", last_seq=job.last_seq, summary={**record.summary, "metrics": metrics}),
            parameters=blob,
            server_state=pack_state(state),
            verdicts=job.verdicts,
            metrics=metrics,
            published=published,
        )
        self._norms = [*self._norms, *self._round_norms][-NORMS_KEPT:]
        devices_get = b"" if published is None else published.blob
        return RoundCommitted(record.number, made.parameters_digest, blob, metrics, published=devices_get)

    def metrics(self) -> dict[str, float]:
        """What the devices reported: weighted training loss, the federated evaluation where there was one, and how many
        updates came in which codec where devices choose."""
        sums = self._scalars.report()
        metrics = {"train_loss": sums["loss"] / max(sums["examples"], 1.0)}
        metrics["examples"], metrics["partial"] = sums["examples"], sums["partial"]
        metrics.update((name, float(count)) for name, count in sorted(self._chosen.items()))
        if sums["eval_count"]:
            metrics["loss"] = sums["eval_loss"] / sums["eval_count"]
            metrics[self._program.metric] = sums["eval_metric"] / sums["eval_count"]
            metrics["evaluated_examples"] = sums["eval_count"]
        return metrics

    def _examine(self, item: IngestItem, pending_weight: int) -> _Admitted:
        payload = item.payload if item.payload is not None else self._store.assemble(item.ticket, item.digest)
        if digest_of(payload) != item.digest:
            raise ProtocolError("update: its SHA-256 is not the digest that it was offered under", reason="digest")
        update = Update.decode(payload)
        decoded = self._decode(update)
        norm = self._validation.check(
            decoded,
            self._groups,
            examples=update.examples,
            steps=update.steps,
            loss=update.loss,
            evaluation=update.evaluation,
            metric_max=1.0 if self._program.metric == "accuracy" else None,
            norm_bound=self._norm_bound,
        )
        if not self._mean.fits(pending_weight + self._weight(update)):
            raise ProtocolError("update: the round's sum of weights is full", reason="weight")
        return _Admitted(item, payload, update, decoded, norm)

    def _decode(self, update: Update) -> DecodedParts:
        parts = decode_frames(update.frames(), self._plan.codec, self._program.spec)
        # What does not share the round's rotation is rotated back at once, so that its values are checked.
        return tuple(
            part if isinstance(part, Rotated) and part.seed == self._mean.rotation else part.plain() for part in parts
        )

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

    def _accumulate(self, update: Update, decoded: DecodedParts) -> None:
        weight = self._weight(update)
        self._mean.accumulate(decoded, weight)
        numbers: dict[str, Any] = {
            "loss": update.loss * weight,
            "examples": weight,
            "steps": update.steps,
            "seconds": update.seconds,
            "partial": 0 if update.complete else 1,
        }
        if update.evaluation is not None:
            loss_sum, metric_sum, count = update.evaluation
            share = min(1.0, self._plan.examples_max / count)  # nobody's opinion weighs more than his update may
            numbers["eval_loss"], numbers["eval_metric"] = loss_sum * share, metric_sum * share
            numbers["eval_count"] = count * share
        self._scalars.accumulate(numbers)
        if self._plan.codec.name == "auto" and self._groups[0].kind == "main":
            self._chosen[f"codec_{frame_codec(update.frames()[0])}"] += 1

    def _weight(self, update: Update) -> int:
        return 1 if self._plan.weighting == "uniform" else min(update.examples, self._plan.examples_max)


def pack_state(state: dict[str, NDArray[np.float32]]) -> bytes:
    """A server optimiser's state as bytes for a checkpoint."""
    packed: bytes = msgpack.packb({name: np.ascontiguousarray(a, dtype="<f4").tobytes() for name, a in state.items()})
    return packed


def unpack_state(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The inverse of :func:`pack_state`; our own bytes, from our own database.

    Raises:
        StateError: They are not.
    """
    if not data:
        return {}
    try:
        return {name: np.frombuffer(raw, dtype="<f4") for name, raw in msgpack.unpackb(data).items()}
    except Exception as error:
        raise StateError(f"checkpoint: the server optimiser's state cannot be read ({error})") from error
