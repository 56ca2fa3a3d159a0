"""The coordinator's half of a simulation: the shipped pipeline, round after round, and what clients have to fetch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from coordinator.config import FederationConfig
from coordinator.config.settings import downlink
from coordinator.pipeline import Aggregator, FeatureStatistics, RoundPipeline, Step
from coordinator.server_optimizers import ServerOptimizer
from coordinator.setup import pipeline_settings
from coordinator.statistics_round import first_round, statistics_plan
from coordinator.task_settings import OPENING_ROUND
from device_sim.simulation.deltas import Deltas
from edge_sdk.aggregation.algorithm import Algorithm
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.wire.plan import Plan

__all__ = ["Server"]

logger = logging.getLogger(__name__)


class Server:
    """What the coordinator knows between the rounds, and how it makes the next model.

    Args:
        bundle: The program, and the parameters to start from.
        plan: What clients are asked to do.
        config: Everything else, by name.
        algorithm: In place of the configuration's; None for that one.
        optimizer: In place of the configuration's; None for that one.
        steps: Behind those of the configuration.

    Attributes:
        parameters: The model's parameters blob.
        digest: Its SHA-256.
        vector: float32[P], the same as a vector.
        broadcast: Blobs of the vectors that clients get beside it, by name.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        config: FederationConfig,
        algorithm: Algorithm | None = None,
        optimizer: ServerOptimizer | None = None,
        steps: Sequence[tuple[str, Step]] = (),
    ) -> None:
        settings = pipeline_settings(config, bundle.program)
        optimizer = optimizer or settings.optimizer
        self._aggregator = Aggregator(
            bundle.program,
            plan,
            replace(
                settings,
                algorithm=algorithm or settings.algorithm,
                optimizer=optimizer,
                downlink=downlink(config.downlink, optimizer),
                steps=(*settings.steps, *steps),
                directory=None,
            ),
        )
        self._statistics = None
        if first_round(bundle.program, bundle.parameters) == OPENING_ROUND:
            self._statistics = FeatureStatistics(statistics_plan(plan), self._aggregator)
        self.vector = bundle.parameters
        self.parameters = encode_parameters(bundle.parameters)
        self.digest = digest_of(self.parameters)
        self._memory = self._aggregator.initial_memory()
        self.broadcast = self._aggregator.broadcast(self.vector, self._memory)
        self._deltas = Deltas()
        self._round = 0

    @property
    def asks_for_statistics(self) -> bool:
        """Whether clients report statistics of their features in round 0, before they train."""
        return self._statistics is not None

    def plan_of(self, number: int) -> Plan:
        """What clients are asked to do in the round of this number."""
        return self._pipeline_of(number).plan

    def begin(self, number: int) -> None:
        """A round begins."""
        self._round = number
        self._pipeline_of(number).begin(self.parameters, self._memory, self.digest)

    def take(self, payload: bytes, digest: bytes) -> None:
        """Adds one client's update, and its SHA-256, to the round.

        Raises:
            ProtocolError: It is refused; its reason says why.
        """
        pipeline = self._pipeline_of(self._round)
        pipeline.add(pipeline.examine(payload, digest))

    def finish(self) -> dict[str, float]:
        """The next model from the updates that were taken; returns what the clients reported.

        Raises:
            TrainingError: The model has diverged.
            ValueError: Nothing was taken.
        """
        made = self._pipeline_of(self._round).finish()
        for warning in made.warnings:
            logger.warning("round %d: %s", self._round, warning)
        self._memory, self.broadcast = made.memory, made.broadcast
        self.vector, self.parameters = made.vector, made.parameters
        before, self.digest = self.digest, digest_of(self.parameters)
        self._deltas.follow(self._round, before, self.digest, made.model_delta)
        return made.metrics

    def close(self) -> None:
        """Gives up a round that is not finished."""
        self._aggregator.close()

    def _pipeline_of(self, number: int) -> RoundPipeline[Any]:
        return self._statistics if number == OPENING_ROUND and self._statistics is not None else self._aggregator

    def bytes_down(self, holds: Collection[bytes]) -> int:
        """Bytes that bring a client that holds these parameters (by SHA-256) to the newest ones and their vectors."""
        vectors = sum(map(len, self.broadcast.values()))
        if self.digest in holds:
            return vectors
        return vectors + (self._deltas.bytes_from(holds) or len(self.parameters))
