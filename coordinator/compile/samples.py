"""Random examples that a program's inputs and target allow: for checks and measurements, not for training."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.bundle import Input, Program

__all__ = ["random_inputs", "random_target"]

Arrays: TypeAlias = dict[str, NDArray[Any]]


def random_inputs(inputs: tuple[Input, ...], count: int, rng: np.random.Generator) -> Arrays:
    """``count`` examples by input; integers are 0 or 1, which are legal indices and flags everywhere."""
    examples: Arrays = {}
    for entry in inputs:
        shape = (count, *(int(d or 1) for d in entry.shape[1:]))
        values = rng.standard_normal(shape) if entry.dtype == "float32" else rng.integers(0, 2, shape)
        examples[entry.name] = values.astype(entry.dtype)
    return examples


def random_target(program: Program, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Targets of ``count`` examples."""
    shape = (count, *(int(d or 1) for d in program.target.shape[1:]))
    if program.classes:
        return rng.integers(0, program.classes, shape).astype(program.target.dtype)
    if program.loss not in ("binary_cross_entropy", "hinge"):
        return rng.standard_normal(shape).astype(np.float32)
    flags = rng.integers(0, 2, shape).astype(np.float32)
    return 2 * flags - 1 if program.loss == "hinge" else flags
