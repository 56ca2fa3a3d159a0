"""What an array looks like that somebody computed instead of training it: positions, frequencies, masks.

Such tables stand in a graph as initializers, beside the parameters. Their structure tells them, because weights, random
or trained, have none of it; arrays of one single value (biases that start as zeros) are no tables.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_sinusoidal", "look_of"]

POINTS_MIN: Final = 4
"""Elements in a row below which structure may be chance."""
STEPS_MAX: Final = 4096
"""Multiples of its smallest element that a table of steps may have; weights in half precision have larger ones."""
TOLERANCE: Final = 1e-4


def look_of(array: NDArray[Any]) -> str:
    """In words, which kind of table ``array`` (float, finite) looks like; empty where it looks like weights."""
    values = np.squeeze(array.astype(np.float64))
    if values.size < POINTS_MIN or np.ptp(values) == 0:
        return ""
    if is_sinusoidal(values):
        return "sines and cosines of positions"
    if _is_evenly_spaced(values):
        return "evenly spaced numbers"
    if _is_geometric(values):
        return "a geometric series"
    if _is_steps(values):
        return "whole multiples of one number, as a mask or positions"
    return ""


def is_sinusoidal(array: NDArray[Any]) -> bool:
    """Whether the elements are sines and cosines: of places along an axis, or side by side in pairs."""
    values = np.squeeze(array.astype(np.float64))
    if values.size < POINTS_MIN or np.ptp(values) == 0:
        return False
    return any(_oscillates(np.moveaxis(values, axis, 0)) for axis in range(values.ndim)) or _is_paired(values)


def _oscillates(values: NDArray[np.float64]) -> bool:
    """Whether each series along the first axis obeys ``x[t+1] + x[t-1] = 2 cos(w) x[t]``, as sines of all places do."""
    if values.shape[0] < POINTS_MIN + 1:
        return False
    series = values.reshape(values.shape[0], -1)
    around, middle = series[2:] + series[:-2], series[1:-1]
    power = np.square(middle).sum(axis=0)
    slope = np.divide((around * middle).sum(axis=0), power, out=np.full_like(power, 2.0), where=power > 0)
    left = np.abs(around - slope * middle).max()
    varied = np.ptp(series, axis=0) > TOLERANCE * np.abs(series).max()
    bends = np.abs(series[2:] - 2 * middle + series[:-2]).max() > TOLERANCE * np.abs(series).max()
    near_two = np.abs(slope) <= 2 + TOLERANCE
    return bool(
        left <= TOLERANCE * np.abs(series).max() and near_two.all() and bends and 2 * varied.sum() >= varied.size
    )


def _is_paired(values: NDArray[np.float64]) -> bool:
    """Whether elements of the last axis come in pairs with squares that add up to 1, beside each other or in halves."""
    width = values.shape[-1]
    if width < POINTS_MIN or width % 2 or np.all(np.isin(np.abs(values), (0.0, 1.0))):
        return False
    rows = values.reshape(-1, width)
    rows = rows[np.any(rows != 0, axis=1)]  # a token beside the positions may have none
    quarters = [width // 2] + ([width // 4] if width % 4 == 0 else [])
    pairs = [rows.reshape(len(rows), -1, 2, apart) for apart in (1, *quarters)]
    return len(rows) > 1 and any(bool(np.all(np.abs(np.square(p).sum(axis=2) - 1) <= TOLERANCE)) for p in pairs)


def _is_evenly_spaced(values: NDArray[np.float64]) -> bool:
    """Whether the elements rise or fall in equal steps along every axis."""
    size, longest = np.abs(values).max(), max(values.shape)
    bends = [np.abs(np.diff(values, 2, axis=axis)).max(initial=0.0) for axis in range(values.ndim)]
    return bool(longest >= POINTS_MIN and max(bends) <= TOLERANCE * size)


def _is_geometric(values: NDArray[np.float64]) -> bool:
    if values.ndim != 1 or np.any(values <= 0):
        return False
    steps = np.diff(np.log(values))
    return bool(np.ptp(steps) <= TOLERANCE * np.abs(steps).max())


def _is_steps(values: NDArray[np.float64]) -> bool:
    """Whether all elements are whole multiples of the smallest one that is not 0, and not too many of it."""
    step = np.abs(values[values != 0]).min()
    multiples = values / step
    return bool(np.abs(multiples).max() <= STEPS_MAX and np.all(np.abs(multiples - np.round(multiples)) <= TOLERANCE))
