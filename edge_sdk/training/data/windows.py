"""Rows in order of time, and the windows of them that are examples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.data.settings import Window

__all__ = ["Windows", "cut", "in_order"]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Which rows make the m examples.

    Attributes:
        order: int[n]: the rows, sorted by series and in each by time.
        starts: int[m]: where each window begins in ``order``; sorted by the time of its last row where there are times.
        length: Rows of a window.
        horizon: Rows from the last one to that of the label.
        overlap: At most so many examples before or behind one have a row in common with it, those of labels included.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    length: int
    horizon: int
    overlap: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def rows(self) -> NDArray[np.intp]:
        """int[m, length]: the rows of each window, the earliest first."""
        return np.take(self.order, self._at)

    @property
    def last(self) -> NDArray[np.intp]:
        """int[m]: the last row of each window."""
        return self.order[self.starts + self.length - 1]

    @property
    def labels(self) -> NDArray[np.intp]:
        """int[m]: the row of each window's label."""
        return self.order[self.starts + self.length - 1 + self.horizon]

    @property
    def labels_of_rows(self) -> NDArray[np.intp]:
        """int[m, length]: for each row of a window the one of its label."""
        return np.take(self.order, self._at + self.horizon)

    @property
    def _at(self) -> NDArray[np.intp]:
        return self.starts[:, np.newaxis] + np.arange(self.length)


def in_order(count: int, time: NDArray[np.float64] | None, group: NDArray[np.float64] | None) -> NDArray[np.intp]:
    """The rows, int[count], sorted by group and in it by time; those that agree in both stay as they came."""
    keys = [key for key in (time, group) if key is not None]
    return np.lexsort(keys).astype(np.intp) if keys else np.arange(count)


def cut(window: Window, count: int, time: NDArray[np.float64] | None, group: NDArray[np.float64] | None) -> Windows:
    """Windows of rows that follow each other; none reaches into another series or over a gap.

    Args:
        window: How to cut.
        count: Number of rows.
        time: float64[count], in the order of the file; None without.
        group: float64[count], the series of each row; None where there is one.
    """
    order = in_order(count, time, group)
    ends = np.zeros(max(count - 1, 0), np.bool_)
    if group is not None:
        ends |= np.diff(group[order]) != 0
    if time is not None and window.gap is not None:
        ends |= np.diff(time[order]) > window.gap
    edges = [0, *(np.flatnonzero(ends) + 1).tolist(), count]
    needed = window.length + window.horizon
    of_series = [np.arange(first, last - needed + 1, window.stride, dtype=np.intp) for first, last in pairwise(edges)]
    starts = np.concatenate(of_series)
    places = np.arange(len(starts))
    if time is not None:
        sorting = np.argsort(time[order[starts + window.length - 1]], kind="stable")
        places[sorting] = np.arange(len(starts))
        starts = starts[sorting]
    reach = (needed - 1) // window.stride
    return Windows(order, starts, window.length, window.horizon, _overlap(of_series, places, reach))


def _overlap(of_series: list[NDArray[np.intp]], places: NDArray[np.intp], reach: int) -> int:
    """How far apart two windows of one series may stand that are at most ``reach`` steps from each other."""
    widest = first = 0
    for starts in of_series:
        of_this = places[first : first + len(starts)]
        first += len(starts)
        near = min(reach, len(of_this) - 1)
        if near > 0:
            widest = max(widest, int(np.max(of_this[near:] - of_this[:-near])))
    return widest
