"""Which examples of a data set nobody trains on."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from device_sim.datasets import Dataset
from device_sim.stable_random import StableRandom
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.marks import apart_from

__all__ = ["split_held_out"]

CLASSES_MAX: Final = 20
"""More different labels than this, and than a tenth of the examples, are values, of which each has few examples."""
RUN: Final = 10
"""Of examples that overlap, runs of so many times as many are held out, so that little is lost at their ends."""


def split_held_out(dataset: Dataset, share: float, seed: int, *, last: bool = False) -> tuple[Dataset, Dataset]:
    """Split into the examples that devices train on and those that nobody trains on.

    The publisher's own split is kept where there is one, whatever ``share`` says, so that results can be compared.
    Otherwise ``share`` of each class is drawn (of all examples, where there are no classes), or with ``last`` those
    that come last in time (in the data set, where it names no time). Examples that overlap with one that is held out
    are in neither part: where examples overlap, runs of them are drawn. Where windows of rows are the examples, both
    parts have all rows, and the mark ``is_test`` tells which windows belong to which, or to neither.

    Args:
        share: Part to hold out, from 0 up to but not including 1.
        seed: Names the draw.
        last: Whether the newest examples are held out, in place of drawn ones.

    Returns:
        ``(training, held out)``, both in the order of the data set.

    Raises:
        ConfigurationError: ``share`` is out of range, or nothing would be left to train on.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigurationError(f"held_out: {share!r} must lie in 0 <= share < 1")
    held = dataset.marks.is_test
    given = held is not None and bool(held.any())
    if held is None or not given:
        held = _last(dataset, share) if last else _drawn(dataset, share, seed)
    if dataset.is_windowed:
        return _rows_of_windows(dataset, held)
    series = _series(dataset)
    train = np.empty(len(dataset), dtype=bool)
    train[series] = apart_from(held[series], 0 if given else dataset.marks.overlap)
    if not train.any():
        raise ConfigurationError(
            f"{dataset.name}: {int(held.sum())} of {len(dataset)} examples are held out, and none is left to train on"
        )
    whole = dataset.marked(None)
    return whole.part(np.flatnonzero(train)), whole.part(np.flatnonzero(held))


def _rows_of_windows(dataset: Dataset, held: NDArray[np.bool_]) -> tuple[Dataset, Dataset]:
    """The rows of a series stay together, and each window follows from the marks of its rows."""
    if not held.any():
        whole = dataset.marked(None)
        return whole, whole.part(np.arange(0))
    whole = dataset.marked(held)
    group = dataset.marks.group
    trained = ~held if group is None else np.isin(group, np.unique(group[~held]))
    if not trained.any():
        raise ConfigurationError(f"{dataset.name}: all {len(dataset)} rows are held out, and none is left to train on")
    return (whole if group is None else whole.part(np.flatnonzero(trained))), whole


def _last(dataset: Dataset, share: float) -> NDArray[np.bool_]:
    order = dataset.marks.order()
    held = np.zeros(len(dataset), dtype=bool)
    first = len(dataset) - int(share * len(dataset) + 0.5)
    held[np.arange(first, len(dataset)) if order is None else order[first:]] = True
    return held


def _drawn(dataset: Dataset, share: float, seed: int) -> NDArray[np.bool_]:
    """Of each class, one by one; of examples that overlap, runs of ten times as many."""
    draws = StableRandom(seed, "held out")
    held = np.zeros(len(dataset), dtype=bool)
    if dataset.marks.overlap:
        length = max(1, min(RUN * dataset.marks.overlap, int(share * len(dataset) + 0.5)))
        runs = np.arange(len(dataset)) // length
        chosen = draws.permutation(int(runs[-1]) + 1)[: int(share * (int(runs[-1]) + 1) + 0.5)]
        held[_series(dataset)] = np.isin(runs, chosen)
        return held
    labels = dataset.labels
    if labels is None or labels.max(initial=0) >= max(CLASSES_MAX, len(dataset) // 10):
        labels = np.zeros(len(dataset), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held[members[draws.permutation(len(members))[: int(share * len(members) + 0.5)]]] = True
    return held


def _series(dataset: Dataset) -> NDArray[np.intp]:
    """int[n]: the positions of the examples group by group, each group in the order of time."""
    order = dataset.marks.order()
    order = np.arange(len(dataset)) if order is None else order
    group = dataset.marks.group
    return order if group is None else order[np.argsort(group[order], kind="stable")]
