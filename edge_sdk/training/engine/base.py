"""What every engine offers to ``training``: load parameters, step, read them back, evaluate, infer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.training.program import Program

__all__ = ["Batch", "Engine", "Handle", "check_vector", "merged_scalars", "steps_one_by_one"]

Batch: TypeAlias = Mapping[str, NDArray[Any]]
"""Model inputs by name and ``target``, each with the batch as its first dimension and of the program's dtype."""

Handle: TypeAlias = Any
"""A model in training, inside an engine's memory: each engine has its own kind and nobody else looks into it."""


class Engine(Protocol):
    """Runs one program. Engines are made once per program, keep their sessions, and are used by one thread."""

    @property
    def name(self) -> str:
        """``"onnxruntime"`` or ``"numpy"``."""

    @property
    def program(self) -> Program:
        """The program that this engine runs."""

    @property
    def steps_at_once(self) -> int:
        """How many steps :meth:`steps` is worth calling with; 1 where it brings nothing."""

    def load(self, vector: NDArray[np.float32]) -> Handle:
        """Start from the parameters ``vector`` (float32[P]), with zero optimiser state; they are also the anchor.

        ``vector`` is read during the whole training and must not be changed meanwhile.
        """

    def step(self, handle: Handle, batch: Batch, scalars: Mapping[str, float]) -> float:
        """One optimiser step in place; returns the batch's mean loss. Scalars not given have the program's defaults.

        Raises:
            TrainingError: The graph failed on this batch, or the program lacks a scalar.
        """

    def shift(self, handle: Handle, vector: NDArray[np.float32]) -> None:
        """Adds ``vector`` (float32[P]) to the parameters in training.

        After a step of plain SGD with learning rate ``lr`` this is what adding ``-vector / lr`` to its gradient gives.
        """

    def steps(self, handle: Handle, batches: Batch, scalars: Mapping[str, float]) -> NDArray[np.float32]:
        """One step after another over ``batches``, each array ``[steps, batch, ...]``; their losses, float32[steps].

        Gives what as many calls of :meth:`step` give; cheaper where ``steps_at_once`` is above 1.

        Raises:
            TrainingError: As :meth:`step`.
        """

    def read(self, handle: Handle) -> NDArray[np.float32]:
        """The parameters as a new float32[P]."""

    def evaluate(self, model: NDArray[np.float32] | Handle, batch: Batch) -> tuple[float, float]:
        """``(loss_sum, metric_sum)`` over the batch, of a handle or of float32[P]."""

    def infer(self, model: NDArray[np.float32] | Handle, inputs: Batch) -> dict[str, NDArray[Any]]:
        """The model's outputs by name."""


def check_vector(program: Program, vector: NDArray[np.float32]) -> None:
    """Raise TrainingError unless ``vector`` is float32[P] of ``program``."""
    if vector.dtype != np.float32 or vector.shape != (program.spec.size,):
        raise TrainingError(
            f"parameters are {vector.dtype}{list(vector.shape)}, "
            f"program {program.name!r} needs float32[{program.spec.size}]"
        )


def merged_scalars(program: Program, scalars: Mapping[str, float]) -> dict[str, float]:
    """The program's scalars with the values of ``scalars`` put in.

    Raises:
        TrainingError: The program has no such scalar: what was asked for would silently not happen.
    """
    unknown = sorted(set(scalars) - set(program.scalars))
    if unknown:
        remedy = "compile with proximal=True" if unknown == ["mu"] else "compile it with an optimizer that uses it"
        raise TrainingError(
            f"program {program.name!r} has no scalar input {unknown[0]!r} (it has {sorted(program.scalars)}): "
            f"remove it from the plan, or {remedy}"
        )
    return {**program.scalars, **scalars}


def steps_one_by_one(
    engine: Engine, handle: Handle, batches: Batch, scalars: Mapping[str, float]
) -> NDArray[np.float32]:
    """What :meth:`Engine.steps` promises, by :meth:`Engine.step`."""
    count = len(batches["target"])
    parts = ({name: array[number] for name, array in batches.items()} for number in range(count))
    return np.array([engine.step(handle, part, scalars) for part in parts], dtype=np.float32)
