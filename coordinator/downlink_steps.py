"""Which coordinates of a step towards a model are sent, and how finely. PURE.

The largest coordinates are sent, rounded to few magnitudes. Their threshold follows from how much of the energy is to
be sent; cells of ``CELL`` times the median excess above it have their centroids as magnitudes, which is within a few
per cent of the best quantiser with a dead zone at these rates, on normal, Laplacian and heavier tails alike. No
magnitude is clipped: what rounding leaves is owed, as everything else that is not sent.

Magnitudes are whole numbers of a power of two near a quarter to an eighth of the threshold, so that rounds of one
phase of training share them: steps that are added up for a device that has missed rounds then have few magnitudes,
too. The grid itself (``edge_sdk/codecs/grid.py``) is far finer and follows from the largest parameter, so that it
stays the same from round to round.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.grid import EXACT_MAX, EXPONENTS, NUMBER_MAX, GridSteps
from edge_sdk.errors import TrainingError

__all__ = ["largest_steps", "steps_for_energy"]

CELL: Final = 4.0
_FINE_CELLS: Final = 32
"""Cells of one width; beyond them eight an octave, so that a few huge coordinates need no table of thousands."""
_TRIALS: Final = 4
_GRID_BITS: Final = 22
_QUANTUM_BITS: Final = 3


def steps_for_energy(
    wanted: NDArray[np.float32], base: NDArray[np.float32], share: float, count_min: int, density_max: float
) -> GridSteps:
    """The fewest steps that bring a share of the energy of what is missing.

    Args:
        wanted: float32[n], where the coordinates are to come.
        base: float32[n], where they are.
        share: Of the energy of their difference, 0..1.
        count_min: Coordinates that are moved at least, where so many are to be moved at all.
        density_max: Share of the coordinates beyond these that are moved at most.

    Raises:
        TrainingError: A step has too large a number.
    """
    missing = wanted.astype(np.float64) - base
    order = _descending(missing, max(count_min, round(density_max * missing.size)))
    energies = np.cumsum(np.square(missing[order]))
    goal = share * float(np.square(missing).sum())
    aim = goal
    steps = _nothing(missing.size)
    for _ in range(_TRIALS if order.size else 0):
        count = min(max(int(np.searchsorted(energies, aim)) + 1, count_min), order.size)
        steps = _rounded(missing, base, order[:count])
        left = steps.moved(base[steps.indices]).astype(np.float64) - wanted[steps.indices]
        brought = float(energies[count - 1] - np.square(left).sum())
        if brought >= goal or count == order.size:
            break
        aim += 1.05 * (goal - brought)
    return steps


def largest_steps(wanted: NDArray[np.float32], base: NDArray[np.float32], density: float) -> GridSteps:
    """Steps of the largest coordinates of what is missing, a share ``density`` of all; see :func:`steps_for_energy`."""
    missing = wanted.astype(np.float64) - base
    return _rounded(missing, base, _descending(missing, max(1, round(density * missing.size))))


def _descending(missing: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the largest magnitudes are, none of them zero, the largest first."""
    magnitudes = np.abs(missing)
    surplus = magnitudes.size - count
    found = np.argpartition(magnitudes, surplus)[surplus:] if surplus > 0 else np.arange(magnitudes.size)
    found = found[magnitudes[found] > 0.0]
    return found[np.lexsort((found, -magnitudes[found]))]


def _nothing(size: int) -> GridSteps:
    empty = np.empty(0, dtype=np.int64)
    return GridSteps(size, 0, empty, empty)


def _rounded(missing: NDArray[np.float64], base: NDArray[np.float32], chosen: NDArray[np.int64]) -> GridSteps:
    """Steps at the chosen coordinates, the largest first."""
    if not chosen.size:
        return _nothing(missing.size)
    magnitudes = np.abs(missing[chosen])
    threshold = float(magnitudes[-1])
    cells = _cells(magnitudes - threshold)
    centroids = np.bincount(cells, magnitudes) / np.maximum(np.bincount(cells), 1)
    quantum = int(np.floor(np.log2(threshold))) - _QUANTUM_BITS + 1
    # Rounded to the quantum, then told in steps of the grid, which is finer.
    exponent = min(_grid_of(base), quantum)
    exponent = min(max(exponent, EXPONENTS.start), EXPONENTS.stop - 1)
    quantum = max(quantum, exponent)
    whole = np.maximum(np.rint(np.ldexp(centroids, -quantum)), 1.0)
    numbers = np.ldexp(whole, quantum - exponent)
    if numbers.max() >= NUMBER_MAX:
        raise TrainingError(
            f"a step of {magnitudes[0]:g} on a grid of 2^{exponent} is too large: training has diverged"
        )
    numbers = numbers.astype(np.int64)[cells]
    indices = np.sort(chosen)
    numbers = np.where(missing[indices] < 0.0, -1, 1) * numbers[np.argsort(chosen)]
    steps = GridSteps(missing.size, exponent, indices, numbers)
    highest = max(np.abs(base[indices]).max(), np.abs(steps.moved(base[indices])).max())
    exact = bool(np.ldexp(float(highest), -exponent) < EXACT_MAX)
    return GridSteps(missing.size, exponent, indices, numbers, exact)


def _cells(excess: NDArray[np.float64]) -> NDArray[np.int64]:
    """Numbers of the cells that magnitudes fall into, by their excess above the threshold."""
    width = CELL * float(np.median(excess)) or float(excess.max())
    if width == 0.0:
        return np.zeros(excess.size, dtype=np.int64)
    cells = np.floor(excess / width)
    far = cells > _FINE_CELLS
    cells[far] = _FINE_CELLS + np.floor(8.0 * np.log2(cells[far] / _FINE_CELLS))
    return cells.astype(np.int64)


def _grid_of(base: NDArray[np.float32]) -> int:
    """The exponent of a grid on which all coordinates are far below ``EXACT_MAX`` steps.

    The same for all models whose coordinates are below 1: most grow from next to nothing, and steps on different grids
    do not add up.
    """
    largest = max(float(base.max()), -float(base.min()), 1.0)
    return int(np.ceil(np.log2(largest))) - _GRID_BITS
