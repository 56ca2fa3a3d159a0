"""What all kernels share: the type of a value and the guard on the shapes that a graph may ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.parameters import ELEMENTS_MAX

__all__ = ["Array", "bounded", "integers", "positive_axis"]

Array: TypeAlias = Any
"""An ndarray. ``Any``, because kernels work in the dtype of their inputs and NumPy's stubs cannot follow that."""


def bounded(shape: Iterable[int]) -> tuple[int, ...]:
    """``shape`` as a tuple, refused before anything of that size is allocated.

    Raises:
        TrainingError: The shape has more elements than any tensor may have, or a negative dimension.
    """
    checked = tuple(shape)
    if any(d < 0 for d in checked) or math.prod(checked) > ELEMENTS_MAX:
        raise TrainingError(f"the graph asks for a tensor of shape {checked}, more than {ELEMENTS_MAX} elements")
    return checked


def integers(value: Array | Iterable[int]) -> list[int]:
    """A shape-like input (an int64 array) or attribute (a list) as plain integers."""
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()
    return [int(v) for v in value]


def positive_axis(axis: int, rank: int) -> int:
    """``axis`` counted from the front.

    Raises:
        TrainingError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise TrainingError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank
