"""What a local algorithm is, what it is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.extension import load
from edge_sdk.training.algorithms.table import LOCAL_ALGORITHMS
from edge_sdk.training.engine import Engine
from edge_sdk.training.examples import Examples
from edge_sdk.training.local import Trainer, TrainResult, train_locally, train_with_trainer
from edge_sdk.training.program import Program
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["LocalAlgorithm", "LocalResult", "LocalWork", "find_local_algorithm"]

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What a local algorithm is given for one round.

    Attributes:
        program: The task's program.
        parameters: float32[P], the round's parameters; not to be changed. Empty where the plan does without them.
        examples: The local examples, checked against the program.
        plan: How to train.
        engine: Runs the program; None for a program without graphs.
        trainer: The application's own training, which stands in for the engine where there is one.
        received: float32[P] by name, what the coordinator's algorithm broadcasts; not to be changed.
        kept: float32 vectors by name, what this algorithm kept when an update of this device last counted.
        settings: Numbers from the coordinator's algorithm.
        rng: The round's own chance on this device; never to be used for privacy.
        clock: Monotonic seconds.
        stop: Asked often; true ends training.
        progress: Told ``(steps, loss)``.
    """

    program: Program
    parameters: Vector
    examples: Examples
    plan: TrainingPlan
    engine: Engine | None
    trainer: Trainer | None
    received: Mapping[str, Vector]
    kept: Mapping[str, Vector]
    settings: Mapping[str, float]
    rng: np.random.Generator
    clock: Callable[[], float]
    stop: Callable[[], bool]
    progress: Callable[[int, float], None]

    @property
    def engine_name(self) -> str:
        """What trains: ``trainer``, or the engine's name."""
        return "trainer" if self.trainer is not None or self.engine is None else self.engine.name

    def train(self, shift: Vector | None = None) -> TrainResult:
        """The training that the plan describes, by the trainer or the engine.

        Args:
            shift: float32[P], added to the parameters after each step; only an engine can.

        Raises:
            TrainingError: Training failed, or there is nothing that could train, or a trainer would have to shift.
        """
        if not self.parameters.size:
            raise TrainingError("the plan does without parameters: there is nothing to train from")
        if self.trainer is not None:
            if shift is not None:
                raise TrainingError("the application's own trainer cannot shift parameters after each step")
            return train_with_trainer(
                self.trainer,
                self.program,
                self.parameters,
                self.examples,
                self.plan,
                rng=self.rng,
                clock=self.clock,
                stop=self.stop,
                progress=self.progress,
            )
        if self.engine is None:
            raise TrainingError("this program brings no graph: give EdgeClient a trainer=...")
        return train_locally(
            self.engine,
            self.parameters,
            self.examples,
            self.plan,
            rng=self.rng,
            clock=self.clock,
            stop=self.stop,
            progress=self.progress,
            shift=shift,
        )


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a local algorithm gives back.

    Attributes:
        trained: The delta and what is said of it; None where nothing was trained, and then no vector is sent.
        vectors: float32[P] by name, sent beside the delta, with the plan's codec.
        numbers: Finite numbers by name, sent beside the delta.
        keep: float32 vectors by name, kept by this device if the update counts.
        arrays: Bytes by name, sent as they are; the coordinator's side knows what they hold.
        examples: Examples that were looked at, where nothing was trained.
    """

    trained: TrainResult | None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    keep: Mapping[str, Vector] = field(default_factory=dict)
    arrays: Mapping[str, bytes] = field(default_factory=dict)
    examples: int = 0


class LocalAlgorithm(Protocol):
    """The device's half of an algorithm: an object without state of its own."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the vectors that it sends beside the delta: they share the bytes that an update may have."""

    def run(self, work: LocalWork) -> LocalResult:
        """One round on this device.

        Raises:
            EdgeFedError: There will be no update.
        """


def find_local_algorithm(name: str, own: Mapping[str, LocalAlgorithm]) -> LocalAlgorithm:
    """The local algorithm that a plan names.

    Args:
        name: As the plan has it.
        own: What the application has registered, which goes before what the SDK brings.

    Raises:
        TrainingError: There is none of that name.
    """
    if name in own:
        return own[name]
    if name not in LOCAL_ALGORITHMS:
        raise TrainingError(
            f"the plan asks for the local algorithm {name!r}, this device has "
            f"{', '.join(sorted({*own, *LOCAL_ALGORITHMS}))}: register it with EdgeClient(algorithms=...)"
        )
    return cast(LocalAlgorithm, load("plan.local", LOCAL_ALGORITHMS[name])())
