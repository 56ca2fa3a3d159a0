"""Updates without training: load the coordinator with many devices' precomputed updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob
from edge_sdk.device.work import make_update
from edge_sdk.errors import TrainingError
from edge_sdk.training.algorithms import LocalResult
from edge_sdk.training.algorithms.table import FEATURE_STATISTICS
from edge_sdk.training.bundle import Program
from edge_sdk.training.feature_sums import FeatureSums
from edge_sdk.training.local import TrainResult
from edge_sdk.training.program_sums import encode_sums
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["ReplayWork"]

VARIANTS: Final = 8


class ReplayWork:
    """Hands out one of a few updates, encoded once; every device of a process may share it, from one thread.

    Args:
        seed: Draws the deltas where none are given.
        deltas: float32[P] vectors to replay; Gaussian ones of scale 0.01 otherwise.
        examples: Weight that each update claims.
    """

    def __init__(self, seed: int = 0, deltas: list[NDArray[np.float32]] | None = None, examples: int = 100) -> None:
        self._seed = seed
        self._deltas = deltas
        self._examples = examples
        self._program: Program | None = None
        self._ready: dict[tuple[CodecSettings, int], list[TrainedUpdate]] = {}
        self._count = 0

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        """There are no examples."""

    def run(self, job: TrainingJob) -> TrainedUpdate:
        """An update with this job's ticket; only the first of each variant is encoded."""
        if self._program is None or self._program.digest != job.start.program:
            self._program = Program.decode(job.program)
            self._ready.clear()
        if job.start.plan.local == FEATURE_STATISTICS:
            return make_update(job, self._program, _standard_features(self._program, self._examples), "replay")
        variant = job.start.plan.codec, job.frames_bytes_max
        if variant not in self._ready:
            self._ready[variant] = [
                make_update(job, self._program, self._result(delta), "replay") for delta in self._vectors()
            ]
        self._count += 1
        return _for(job, self._ready[variant][self._count % len(self._ready[variant])])

    def _vectors(self) -> list[NDArray[np.float32]]:
        assert self._program is not None
        if self._deltas is not None:
            return self._deltas
        rng = np.random.Generator(np.random.PCG64(self._seed))
        size = self._program.spec.size
        return [(0.01 * rng.standard_normal(size)).astype(np.float32) for _ in range(VARIANTS)]

    def _result(self, delta: NDArray[np.float32]) -> LocalResult:
        return LocalResult(
            TrainResult(delta=delta, examples=self._examples, steps=1, loss=1.0, seconds=0.0, complete=True)
        )


def _standard_features(program: Program, examples: int) -> LocalResult:
    """Statistics of features that are standard normal: who replays updates has no examples."""
    if not program.normalised:
        raise TrainingError(f"the plan asks for statistics of features, and {program.name!r} normalises none")
    sums = []
    for told in program.normalised:
        nothing, counts = np.zeros(told.features), np.full(told.features, float(examples))
        sums.append(FeatureSums(counts, nothing, counts, missing=nothing, clipped=nothing))
    return LocalResult(None, arrays=encode_sums(program, sums), examples=examples)


def _for(job: TrainingJob, made: TrainedUpdate) -> TrainedUpdate:
    start = job.start
    update = replace(
        made.update,
        ticket=start.ticket,
        lineage=start.lineage,
        task=start.task,
        round=start.round,
        shard=start.shard,
        base=start.parameters,
    )
    return TrainedUpdate(update, {}, made.result)  # no residual: the next replayed update owes nothing to this one
