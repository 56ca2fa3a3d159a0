"""Rounds of FedAvg in one process: the updates that devices would send, from training that really happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.frames import shared_seed
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import encode_parameters
from edge_sdk.training.engine import Engine
from edge_sdk.training.examples import Examples
from edge_sdk.training.local import train_locally
from edge_sdk.training.program import digest_of
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["LocalRound", "local_rounds", "split_examples", "stepped", "train_round"]


@dataclass(frozen=True, slots=True, eq=False)
class LocalRound:
    """What came of one round.

    Attributes:
        number: From 1.
        deltas: float32[P] of each client.
        shared_seed: What the round's devices have in common; see :func:`edge_sdk.codecs.frames.shared_seed`.
        loss: Mean training loss of the clients.
        weights: Examples of each client; None for equal ones.
    """

    number: int
    deltas: tuple[NDArray[np.float32], ...]
    shared_seed: int
    loss: float
    weights: tuple[int, ...] | None = None


def split_examples(examples: Examples, clients: int, seed: int) -> list[Examples]:
    """The examples in a seeded order, dealt out to ``clients`` in equal parts.

    Raises:
        ConfigurationError: There are fewer examples than clients.
    """
    if len(examples) < clients:
        raise ConfigurationError(
            f"--clients {clients}: there are {len(examples)} examples, and each client needs one at least"
        )
    order = np.argsort(np.random.PCG64(seed).random_raw(len(examples)), kind="stable")
    hands = [order[first::clients] for first in range(clients)]
    return [examples.part(hand) for hand in hands]


def train_round(
    engine: Engine,
    vector: NDArray[np.float32],
    parts: Sequence[Examples],
    plan: TrainingPlan,
    *,
    number: int,
    seed: int,
    clock: Callable[[], float],
) -> LocalRound:
    """One round, in which every client takes part.

    Args:
        engine: Runs the program.
        vector: float32[P] to start from; not changed.
        parts: The examples of each client.
        plan: How they train.
        number: Of the round, from 1.
        seed: Shuffles.
        clock: Monotonic seconds.

    Raises:
        TrainingError: The loss or the parameters became NaN or infinite.
    """
    results = [
        train_locally(
            engine, vector, part, plan, rng=np.random.Generator(np.random.PCG64([seed, number, client])), clock=clock
        )
        for client, part in enumerate(parts)
    ]
    return LocalRound(
        number,
        tuple(result.delta for result in results),
        shared_seed(digest_of(encode_parameters(vector))),
        float(np.mean([result.loss for result in results])),
        tuple(result.examples for result in results),
    )


def stepped(
    vector: NDArray[np.float32], deltas: Sequence[NDArray[Any]], weights: Sequence[int] | None
) -> NDArray[np.float32]:
    """FedAvg: the parameters (float32[P]) after a round of updates, each [P]; None for equal weights."""
    return (vector + np.average(deltas, axis=0, weights=weights)).astype(np.float32)


def local_rounds(
    engine: Engine,
    vector: NDArray[np.float32],
    parts: Sequence[Examples],
    plan: TrainingPlan,
    *,
    rounds: int,
    seed: int,
    clock: Callable[[], float],
) -> Iterator[LocalRound]:
    """``rounds`` rounds of FedAvg with updates as they are; other arguments and errors as of :func:`train_round`."""
    for number in range(1, rounds + 1):
        current = train_round(engine, vector, parts, plan, number=number, seed=seed, clock=clock)
        yield current
        vector = stepped(vector, current.deltas, current.weights)
