"""The pipeline of a round of statistics: sums of features from devices become mean and scale in the model. PURE.

Nothing is trained in it. The model stays as it is but for its constants (:mod:`edge_sdk.training.normalise`), and what
the training pipeline remembers stays too. The sums are exact, so any order or replay gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.feature_notes import feature_notes, remarkable_features
from coordinator.pipeline.aggregator import Aggregator
from coordinator.pipeline.memory import Memory
from coordinator.pipeline.round_pipeline import Finished
from edge_sdk.errors import ProtocolError, StateError
from edge_sdk.training.bundle import Program, decode_parameters, encode_parameters
from edge_sdk.training.feature_sums import FeatureSums
from edge_sdk.training.names import column_names
from edge_sdk.training.normalise import Normalise
from edge_sdk.training.program_sums import ExactProgramSums, decode_sums, out_of_range
from edge_sdk.wire.messages import Update
from edge_sdk.wire.plan import Plan

__all__ = ["FeatureStatistics"]


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """What one device has said of its features.

    Attributes:
        sums: Its sums, one for each of ``program.normalised``.
        weight: Examples that they count as, at least 1.
    """

    sums: list[FeatureSums]
    weight: int


class FeatureStatistics:
    """Adds up what devices report, as :class:`coordinator.pipeline.round_pipeline.RoundPipeline`.

    A device counts as many examples as its updates will: all of them up to ``plan.examples_max``, or one with uniform
    weighting. So nobody moves the statistics further than the model.

    Args:
        plan: What devices are asked to do.
        training: The pipeline of the rounds that follow.

    Raises:
        ValueError: Its program normalises no input.
    """

    def __init__(self, plan: Plan, training: Aggregator) -> None:
        self.program = training.program
        self.plan = plan
        self._training = training
        self._normalise = _normalise_of(self.program)
        self._names = column_names(self.program.features, self.program.categories, self._normalise.features)

    def begin(self, parameters: bytes, memory: Memory, base: bytes | None = None, stalled: int = 0) -> None:
        """See :class:`coordinator.pipeline.round_pipeline.RoundPipeline`."""
        self._vector = decode_parameters(parameters, self.program.spec)
        self._memory = memory
        self._examples = 0
        self._sums = ExactProgramSums(self.program)

    def examine(self, payload: bytes, digest: bytes | None = None, pending_weight: int = 0) -> Reported:
        """One device's report, decoded and checked; nothing is added yet.

        Raises:
            ProtocolError: It is refused.
        """
        update = Update.decode(payload)
        if update.vectors:
            raise ProtocolError(
                f"update: brings {', '.join(sorted(update.vectors))}, and this round is asked for statistics alone",
                reason="vectors",
            )
        weight = 1 if self.plan.weighting == "uniform" else min(update.examples, self.plan.examples_max)
        sums = decode_sums(self.program, update.arrays)
        beyond = out_of_range(self.program, sums)
        if beyond:
            raise ProtocolError(f"update: {beyond}", reason="clipped")
        return Reported(sums, weight)

    def again(self, payload: bytes) -> Reported:
        """A report that was examined and journalled before a crash.

        Raises:
            StateError: It cannot be used any more.
        """
        try:
            return self.examine(payload)
        except ProtocolError as error:
            raise StateError(f"the open round holds statistics that cannot be used any more ({error})") from error

    def add(self, update: Reported) -> None:
        """Adds what one device has reported."""
        self._sums.add(update.sums, update.weight)
        self._examples += update.weight

    def finish(self) -> Finished:
        """The same model with mean and scale of each feature in it, and of the target.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._sums.devices:
            raise ValueError("a round without reports has no statistics")
        constants, clipped = self._sums.constants(), self._sums.clipped()
        scale = constants[self._normalise.scale]
        about = remarkable_features(self._names, scale, clipped)
        vector = self._vector.copy()
        tensors = self.program.spec.unflatten(vector)
        for name, values in constants.items():
            tensors[name][...] = values.reshape(tensors[name].shape)
        return Finished(
            encode_parameters(vector),
            vector,
            self._memory,
            None,  # whole: nobody has fetched the parameters of before
            self._training.broadcast(vector, self._memory),
            {
                "devices": float(self._sums.devices),
                "examples": float(self._examples),
                "features": float(len(scale)),
                "features_constant": float(np.count_nonzero(scale == 0.0)),
                "features_clipped": float(np.count_nonzero(clipped)),
                "missing": float(self._sums.missing().mean()),
            },
            about,
            tuple(feature_notes(about)),  # a feature that never varies is no reason to warn: it is in the metrics
        )

    def close(self) -> None:
        """Holds nothing that would have to be given up."""


def _normalise_of(program: Program) -> Normalise:
    if program.normalise is None:
        raise ValueError(f"the program {program.name!r} normalises no input: there are no statistics to ask for")
    return program.normalise
