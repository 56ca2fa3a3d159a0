"""Positions of padded examples that do not count: which values of an input stand there, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.program import Program

__all__ = ["counted_elements", "counted_values", "mask_of", "without_unusable"]

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


def mask_of(arrays: Mapping[str, Any], program: Program) -> NDArray[np.bool_] | None:
    """The program's mask, ``[examples, positions, ...]``, True where a position counts; None where it has none.

    Args:
        arrays: The examples' inputs by name.
        program: The program that the examples are for.
    """
    if not program.mask or program.mask not in arrays:
        return None
    mask = np.asarray(arrays[program.mask]) > 0
    while mask.ndim > 2 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    return mask


def counted_elements(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which elements of a target of this shape count; the mask's shape is the beginning of it. A read-only view."""
    return np.broadcast_to(mask.reshape(*mask.shape, *(1 for _ in shape[mask.ndim :])), shape)


def counted_values(mask: NDArray[np.bool_] | None, shape: tuple[int, ...], axis: int) -> NDArray[np.bool_] | None:
    """Which values of an input count, in a shape that broadcasts to the input's; None where all do.

    The mask belongs to an input that has its positions: without the dimension of features, the input's shape begins
    with the mask's. An input with other positions (a whole image, a row of settings) counts as a whole.

    Args:
        mask: See :func:`mask_of`.
        shape: The input's shape.
        axis: The dimension that counts features.
    """
    positions = (*shape[:axis], *shape[axis + 1 :])
    if mask is None or positions[: mask.ndim] != mask.shape:
        return None
    return np.expand_dims(mask.reshape(*mask.shape, *(1 for _ in positions[mask.ndim :])), axis)


def without_unusable(values: NDArray[Any], counted: NDArray[np.bool_] | None, fill: float) -> NDArray[Any]:
    """``values`` with ``fill`` for each one that is no float32 and does not count; the same array where none is.

    Even where nothing is learned from a position, a NaN in it would spread through the model's arithmetic.
    """
    if counted is None or values.dtype.kind != "f" or not values.size:
        return values
    low, high = float(values.min()), float(values.max())  # NaN and infinity show in them; no temporary array
    if low >= -_FLOAT32_MAX and high <= _FLOAT32_MAX:
        return values
    return np.where(~counted & ~(np.abs(values) <= _FLOAT32_MAX), values.dtype.type(fill), values)
