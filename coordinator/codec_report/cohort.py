"""The updates on which codecs are measured: real deltas, and what each setting has left over of those before. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.codec_report.local_rounds import LocalRound
from edge_sdk.codecs import RESIDUAL, CodecSettings, Vectors
from edge_sdk.codecs.frames import EncodedFrames, encode_frames, untrained_mask
from edge_sdk.errors import ConfigurationError
from edge_sdk.parameters import ParameterSpec

__all__ = ["Cohort", "last_cohort", "update_seed"]

SEED_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """The updates that are measured.

    Attributes:
        spec: Their layout.
        number: Of the round that they are of, the last one.
        deltas: float32[P] of each client.
        kept: By settings, what each client keeps of earlier rounds: float32[trainable] by name.
        shared_seed: Of the round.
        seed: Of everything that codecs draw.
        loss: Mean training loss of the round.
    """

    spec: ParameterSpec
    number: int
    deltas: tuple[NDArray[np.float32], ...]
    kept: dict[CodecSettings, list[Vectors]]
    shared_seed: int
    seed: int
    loss: float

    def encoded(self, settings: CodecSettings, client: int) -> EncodedFrames:
        """The frames of a client's update."""
        return encode_frames(
            self.deltas[client],
            self.kept[settings][client] if settings in self.kept else None,
            settings,
            self.spec,
            seed=update_seed(self.seed, self.number, client),
            shared_seed=self.shared_seed,
        )

    def residual(self, settings: CodecSettings, client: int) -> NDArray[np.float32] | None:
        """What is added to the delta of ``client``; None where nothing was left."""
        return self.kept[settings][client].get(RESIDUAL) if settings in self.kept else None

    def wanted(self, settings: CodecSettings, client: int) -> NDArray[np.float64]:
        """float64[P]: delta and residual, zero at buffers."""
        total = self.deltas[client].astype(np.float64)
        mask = untrained_mask(self.spec)
        trainable = slice(None) if mask is None else ~mask
        if mask is not None:
            total[mask] = 0.0
        residual = self.residual(settings, client)
        if residual is not None:
            total[trainable] += residual
        return total


def last_cohort(
    rounds: Iterable[LocalRound], spec: ParameterSpec, candidates: Sequence[CodecSettings], seed: int
) -> Cohort:
    """The updates of the last of ``rounds``, with the residuals that each candidate has left over by then.

    Raises:
        ConfigurationError: No parameter has moved.
    """
    keeping = [settings for settings in candidates if settings.keeps or settings.name == "auto"]
    kept: dict[CodecSettings, list[Vectors]] = {}
    last: LocalRound | None = None
    for current in rounds:
        if last is None:
            kept = {settings: [{} for _ in current.deltas] for settings in keeping}
        else:
            for settings in keeping:
                for client, delta in enumerate(last.deltas):
                    kept[settings][client] = encode_frames(
                        delta,
                        kept[settings][client],
                        settings,
                        spec,
                        seed=update_seed(seed, last.number, client),
                        shared_seed=last.shared_seed,
                    ).kept
        last = current
    assert last is not None, "at least one round"
    cohort = Cohort(spec, last.number, last.deltas, kept, last.shared_seed, seed, last.loss)
    if not any(cohort.wanted(CodecSettings("dense"), client).any() for client in range(len(last.deltas))):
        raise ConfigurationError("--learning-rate: training has moved no parameter, so there is nothing to measure")
    return cohort


def update_seed(seed: int, number: int, client: int) -> int:
    """64 random bits of one update."""
    return int(np.random.PCG64([seed, number, client]).random_raw()) & SEED_MASK
