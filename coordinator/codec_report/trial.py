"""What a codec does to learning: the same few rounds, with every update through the codec.

The error of one round tells codecs of one kind apart, but not one kind from another: noise averages out over rounds,
what error feedback holds back is old when it comes. The loss after some rounds tells. Losses fall ever more slowly, so
they are compared by the rounds that float32 takes to get there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.codec_report.cohort import update_seed
from coordinator.codec_report.local_rounds import stepped, train_round
from coordinator.codec_report.report import decoded_vector
from edge_sdk.codecs import CodecSettings, Vectors
from edge_sdk.codecs.frames import encode_frames
from edge_sdk.errors import TrainingError
from edge_sdk.training.engine import Engine
from edge_sdk.training.examples import Examples
from edge_sdk.training.local import evaluate_locally
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["Trial", "progress"]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Rounds that can be tried with any codec.

    Attributes:
        engine: Runs the program.
        vector: float32[P] to start from.
        parts: The examples of each client.
        examples: Those that the loss is taken over.
        plan: How clients train.
        rounds: How many, at least 1.
        seed: Shuffles, and of what codecs draw.
        clock: Monotonic seconds.
    """

    engine: Engine
    vector: NDArray[np.float32]
    parts: Sequence[Examples]
    examples: Examples
    plan: TrainingPlan
    rounds: int
    seed: int
    clock: Callable[[], float]

    def losses(self, settings: CodecSettings) -> list[float]:
        """The mean loss before the first round and after each; infinite from where the model has diverged."""
        spec, vector = self.engine.program.spec, self.vector
        kept: list[Vectors] = [{} for _ in self.parts]
        losses = [self._loss(vector)]
        try:
            for number in range(1, self.rounds + 1):
                current = train_round(
                    self.engine, vector, self.parts, self.plan, number=number, seed=self.seed, clock=self.clock
                )
                arrived = []
                for client, delta in enumerate(current.deltas):
                    frames = encode_frames(
                        delta,
                        kept[client],
                        settings,
                        spec,
                        seed=update_seed(self.seed, number, client),
                        shared_seed=current.shared_seed,
                    )
                    kept[client] = frames.kept
                    arrived.append(decoded_vector(frames, settings, spec))
                vector = stepped(vector, arrived, current.weights)
                losses.append(self._loss(vector))
        except TrainingError:
            losses += [math.inf] * (self.rounds + 1 - len(losses))
        return losses

    def _loss(self, vector: NDArray[np.float32]) -> float:
        found = evaluate_locally(self.engine, vector, self.examples)
        return math.inf if found is None else found.loss_sum / found.count


def progress(loss: float, plain: Sequence[float]) -> float:
    """After which share of its rounds training with updates as they are had come down to ``loss``, 0..1.

    Args:
        loss: What training through a codec has come to.
        plain: The losses with updates as they are, before the first round and after each; at least two.
    """
    lowest = np.minimum.accumulate(plain)
    if loss <= plain[-1]:
        return 1.0
    if not loss < lowest[0]:
        return 0.0
    after = int(np.argmax(lowest <= loss))
    fraction = (lowest[after - 1] - loss) / (lowest[after - 1] - lowest[after])
    return float((after - 1 + fraction) / (len(plain) - 1))
