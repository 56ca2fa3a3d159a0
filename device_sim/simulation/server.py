"""The coordinator's half of a simulation: the shipped sums, gate, server optimiser and downlink, round after round."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from coordinator.config import FederationConfig
from coordinator.config.settings import downlink, server_optimizer, validation_bounds
from coordinator.downlink import chain_from, publish
from coordinator.ingest import SUMS
from coordinator.server_optimizers import ServerOptimizer
from coordinator.setup_checks import fixed_point
from coordinator.store import ModelDeltaRecord, Published
from coordinator.store.model_deltas import deltas_kept
from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import ScalarSums
from edge_sdk.codecs import Rotated
from edge_sdk.codecs.frames import buffer_mask, decode_frames, groups_of, shared_seed
from edge_sdk.errors import ProtocolError
from edge_sdk.training.bundle import Bundle, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import buffer_spans
from edge_sdk.wire.messages import Plan, Update

__all__ = ["Server"]

EXAMPLES_CLAIMED_MAX: Final = 1 << 27
NORMS_KEPT: Final = 200


class Server:
    """What the coordinator knows between the rounds, and how it makes the next model.

    Args:
        bundle: The program, and the parameters to start from.
        plan: What clients are asked to do.
        config: Everything else.

    Attributes:
        parameters: The model's parameters blob.
        published: The blob that clients train from; the same where they get the model itself.
        base: SHA-256 of ``published``.
        vector: float32[P], the model.
        model_digest: SHA-256 of ``parameters``.
    """

    def __init__(self, bundle: Bundle, plan: Plan, config: FederationConfig, optimizer: ServerOptimizer | None) -> None:
        self.program = bundle.program
        self.plan = plan
        self.parameters = self.published = encode_parameters(bundle.parameters)
        self.base = self.model_digest = digest_of(self.published)
        self.vector = bundle.parameters
        size = self.program.spec.size
        self._optimizer = optimizer or server_optimizer(config.aggregation)
        self._state = self._optimizer.init(size)
        self._validation = validation_bounds(config.validation, size=size, examples_max=EXAMPLES_CLAIMED_MAX)
        self._downlink = downlink(config.downlink)
        self._buffers = buffer_mask(self.program.spec)
        self._spans = buffer_spans(self.program.spec)
        self._groups = groups_of(self.program.spec, plan.codec)
        self._mean = GroupedMean(self._groups, fixed_point(config))
        self._norms: list[float] = []
        self._chain: list[ModelDeltaRecord] = []
        self._round = 0

    def begin(self, plan: Plan) -> None:
        """A round begins."""
        self.plan = plan
        self._round += 1
        self._mean, self._scalars = self._mean.zero(shared_seed(self.base)), ScalarSums(SUMS)
        self._norm_bound = self._validation.norm_bound(self._norms)
        self._round_norms: list[float] = []

    def take(self, payload: bytes) -> Update:
        """Adds one client's update to the round.

        Raises:
            ProtocolError: It is refused; its reason says why.
        """
        update = Update.decode(payload)
        parts = decode_frames(update.frame, update.buffers, self.plan.codec, self.program.spec, update.parts)
        decoded = tuple(p if isinstance(p, Rotated) and p.seed == self._mean.rotation else p.plain() for p in parts)
        norm = self._validation.check(
            decoded,
            self._groups,
            examples=update.examples,
            steps=update.steps,
            loss=update.loss,
            evaluation=update.evaluation,
            metric_max=1.0 if self.program.metric == "accuracy" else None,
            norm_bound=self._norm_bound,
        )
        weight = 1 if self.plan.weighting == "uniform" else min(update.examples, self.plan.examples_max)
        if not self._mean.fits(weight):
            raise ProtocolError("update: the round's sum of weights is full", reason="weight")
        self._mean.accumulate(decoded, weight)
        numbers = {"loss": update.loss * weight, "examples": weight, "partial": 0 if update.complete else 1}
        if update.evaluation is not None:
            loss_sum, metric_sum, count = update.evaluation
            share = min(1.0, self.plan.examples_max / count)
            numbers |= {"eval_loss": loss_sum * share, "eval_metric": metric_sum * share, "eval_count": count * share}
        self._scalars.accumulate(numbers)
        self._round_norms.append(norm)
        return update

    def finish(self) -> dict[str, float]:
        """The next model from the updates that were taken; returns what the clients reported.

        Raises:
            TrainingError: The model has diverged.
            ValueError: Nothing was taken.
        """
        vector, self._state = self._optimizer.apply(
            decode_parameters(self.parameters, self.program.spec), self._mean.report(), self._state, self._buffers
        )
        self.vector = vector
        self.parameters = encode_parameters(vector)
        made = publish(self._downlink, self.published, self.parameters, vector, self._spans, before_digest=self.base)
        self._norms = [*self._norms, *self._round_norms][-NORMS_KEPT:]
        self._publish(made)
        sums = self._scalars.report()
        metrics = {"train_loss": sums["loss"] / max(sums["examples"], 1.0), "examples": sums["examples"]}
        if sums["eval_count"]:
            metrics["loss"] = sums["eval_loss"] / sums["eval_count"]
            metrics[self.program.metric] = sums["eval_metric"] / sums["eval_count"]
        return metrics

    def bytes_down(self, holds: Collection[bytes]) -> int:
        """Bytes that bring a client that holds these parameters (by SHA-256) to the newest ones."""
        if self.base in holds:
            return 0
        _, deltas = chain_from(self._chain, holds)
        return sum(delta.bytes for delta in deltas) if deltas else len(self.published)

    def _publish(self, made: Published | None) -> None:
        before = self.base
        self.model_digest = digest_of(self.parameters)
        self.published = self.parameters if made is None else made.blob
        self.base = self.model_digest if made is None else digest_of(self.published)
        if made is None:
            self._chain.clear()
        elif self.base != before:
            delta = ModelDeltaRecord(self._round, before, self.base, b"", len(made.model_delta))
            self._chain = deltas_kept([*self._chain, delta], made)
