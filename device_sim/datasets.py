"""Data sets: examples of many devices before a model is known; how they are dealt to devices is in ``partitions``.

A data set is what one device's examples are (arrays by name, and the marks ``is_test``, ``group``, ``time`` and
``overlap``: see ``edge_sdk.training.marks``), of all devices together. Nothing is scaled: a model takes the values that
are in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from device_sim.stable_random import StableRandom
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.examples import Examples, read_npz
from edge_sdk.training.marks import Marks, apart_from, take_marks

__all__ = ["Dataset", "as_dataset", "load_dataset", "split_held_out"]

TARGETS: Final = ("target", "y")
"""Names of the array to learn, the first that is there."""


class Dataset:
    """Examples of many devices.

    Args:
        x: An array [n, ...], arrays by name for a model with several inputs, or :class:`Examples`. Arrays by name may
            hold everything else too, as an ``.npz`` file does: the target and the marks.
        y: The target, [n, ...]: class labels of any rank, or values. None where ``x`` holds it, or where a model is to
            reconstruct its input.
        is_test: bool[n], True for the examples that the publisher set aside for testing.
        group: [n] key (whole number or text) of the person or machine that an example came from.
        time: [n] what the examples are in the order of.
        name: What to call the data in reports.

    Attributes:
        arrays: Arrays by name, the target among them. Those of another length than ``n`` belong to no example.
        marks: The marks.
        name: See above.

    Raises:
        ExamplesError: There are no examples, or a mark does not fit them.
    """

    __slots__ = ("_count", "arrays", "marks", "name")

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        is_test: Any = None,
        group: Any = None,
        time: Any = None,
        name: str = "data",
    ) -> None:
        given = {"is_test": is_test, "group": group, "time": time}
        named = _named(x, y) | {key: value for key, value in given.items() if value is not None}
        rest, marks = take_marks(named)
        self._fill({key: np.asarray(value) for key, value in rest.items()}, marks, name)
        if not len(self):
            raise ExamplesError(f"{name}: there are no examples; got {_described(self.arrays)}")

    def _fill(self, arrays: Mapping[str, NDArray[Any]], marks: Marks, name: str) -> None:
        self.arrays, self.marks, self.name = arrays, marks, name
        leading = arrays.get(self.target_name or "x", next(iter(arrays.values()), np.empty(0)))
        self._count = len(leading) if leading.ndim else 0
        marks.check_count(self._count)

    def __len__(self) -> int:
        return self._count

    @property
    def target_name(self) -> str | None:
        """Name of the array to learn; None where there is none."""
        return next((name for name in TARGETS if name in self.arrays), None)

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The arrays that models may take, each [n, ...], by name."""
        return {k: v for k, v in self.arrays.items() if k != self.target_name and v.ndim and len(v) == self._count}

    @property
    def x(self) -> NDArray[Any]:
        """The only input.

        Raises:
            ExamplesError: There are several, or none.
        """
        inputs = self.inputs
        if len(inputs) != 1 and "x" not in inputs:
            raise ExamplesError(f"{self.name}: has the inputs {sorted(inputs)}, and no single one")
        return inputs.get("x", next(iter(inputs.values())))

    @property
    def y(self) -> NDArray[Any]:
        """The target.

        Raises:
            ExamplesError: There is none.
        """
        if self.target_name is None:
            raise ExamplesError(f"{self.name}: has no target, 'y' or 'target'; got {_described(self.arrays)}")
        return self.arrays[self.target_name]

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64[n]: one class for each example, from 0; None where the target is none, or several a position."""
        if self.target_name is None:
            return None
        labels = self.y.reshape(self._count, -1)
        if labels.shape[1] != 1 or labels.dtype.kind not in "buiU":
            return None
        return np.unique(labels[:, 0], return_inverse=True)[1].astype(np.int64)

    @property
    def examples(self) -> dict[str, Any]:
        """The arrays and marks, as :func:`edge_sdk.training.examples.as_examples` takes them."""
        marks = {name: getattr(self.marks, name) for name in ("is_test", "group", "time")}
        marks = {name: value for name, value in marks.items() if value is not None}
        return {**self.arrays, **marks, **({"overlap": self.marks.overlap} if self.marks.overlap else {})}

    def part(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at ``indices`` (int64[m]) in that order; views when they are one unbroken ascending run."""
        run = slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0)
        unbroken = run.stop - run.start == len(indices) and bool(np.all(np.diff(indices) == 1))
        pick: Any = run if unbroken else indices
        arrays = {k: v[pick] if v.ndim and len(v) == self._count else v for k, v in self.arrays.items()}
        marks = {name: getattr(self.marks, name) for name in ("is_test", "group", "time")}
        marks = {name: None if value is None else value[pick] for name, value in marks.items()}
        return self._made(arrays, Marks(**marks, overlap=self.marks.overlap))

    def unmarked(self) -> Dataset:
        """The same examples without the mark ``is_test``."""
        return self._made(self.arrays, replace(self.marks, is_test=None))

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """The same examples, the only input in another shape, e.g. ``(784,)`` or ``(1, 28, 28)``; nothing is copied.

        Raises:
            ExamplesError: There are several inputs, or the shape has another number of elements.
        """
        x = self.x
        name = next(key for key, array in self.arrays.items() if array is x)
        if int(np.prod(shape)) != int(np.prod(x.shape[1:])):
            raise ExamplesError(
                f"{self.name}: an example has shape {list(x.shape[1:])} and cannot be reshaped to {list(shape)}"
            )
        return self._made({**self.arrays, name: x.reshape(len(x), *shape)}, self.marks)

    def _made(self, arrays: Mapping[str, NDArray[Any]], marks: Marks) -> Self:
        made = object.__new__(type(self))
        made._fill(arrays, marks, self.name)
        return made


def as_dataset(value: Any, name: str = "data") -> Dataset:
    """Examples in any form that a device takes: ``(x, y)``, arrays, :class:`Examples`, or the path of a file.

    Raises:
        ConfigurationError: They are in none of these forms, or do not fit each other.
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, str | Path):
        return load_dataset(value)
    if isinstance(value, tuple | list) and len(value) == 2:
        return Dataset(*value, name=name)
    return Dataset(value, name=name)


def load_dataset(source: str | Path) -> Dataset:
    """Load a data set.

    Args:
        source: ``"digits"`` (1,797 images of 8 x 8 bundled with scikit-learn, as 64 features in 0..1), or the path of
            an ``.npz`` file with arrays and marks by name.

    Raises:
        ConfigurationError: The source is unknown, cannot be read, or its arrays do not fit each other.
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.suffix != ".npz":
        raise ConfigurationError(f"data: {str(source)!r} is neither 'digits' nor the path of an .npz file")
    arrays = read_npz(path)
    try:
        return Dataset(arrays, name=path.stem)
    except ExamplesError as error:
        raise ExamplesError(f"{path}: {error}") from error


def split_held_out(dataset: Dataset, share: float, seed: int, *, last: bool = False) -> tuple[Dataset, Dataset]:
    """Split into the examples that devices train on and those that nobody trains on.

    The publisher's own split is kept where there is one, whatever ``share`` says, so that results can be compared.
    Otherwise ``share`` of each class is drawn (of all examples, where there are no classes), or with ``last`` those
    that come last in time (in the data set, where it names no time). Examples that overlap with one that is held out
    are in neither part: where examples overlap, runs of them are drawn.

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
    if held is None:
        held = _last(dataset, share) if last else _drawn(dataset, share, seed)
        series = _series(dataset)
        train = np.empty(len(dataset), dtype=bool)
        train[series] = apart_from(held[series], dataset.marks.overlap)
    else:
        train = ~held
    if not train.any():
        raise ConfigurationError(
            f"{dataset.name}: {int(held.sum())} of {len(dataset)} examples are held out, and none is left to train on"
        )
    whole = dataset.unmarked()
    return whole.part(np.flatnonzero(train)), whole.part(np.flatnonzero(held))


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
        length = 10 * dataset.marks.overlap
        runs = np.arange(len(dataset)) // length
        chosen = draws.permutation(int(runs[-1]) + 1)[: int(share * (int(runs[-1]) + 1) + 0.5)]
        held[_series(dataset)] = np.isin(runs, chosen)
        return held
    labels = dataset.labels
    labels = np.zeros(len(dataset), dtype=np.int64) if labels is None else labels
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


def _named(x: Any, y: Any) -> dict[str, Any]:
    """The arrays by name, in whatever form they come."""
    if isinstance(x, Examples):
        marks = {} if x.is_test is None else {"is_test": x.is_test}
        named = {**x.inputs, "target": x.target, **marks, **({"overlap": x.overlap} if x.overlap else {})}
    elif isinstance(x, Mapping):
        inner = x["x"] if isinstance(x.get("x"), Mapping) else {}
        named = {**{k: v for k, v in x.items() if not isinstance(v, Mapping)}, **inner}
    else:
        named = {"x": x}
    if y is None:
        return named
    if set(TARGETS) & named.keys():
        raise ExamplesError("examples: there are two targets, y and one among the arrays; give one")
    return {**named, "target" if isinstance(x, Mapping) else "y": y}


def _described(arrays: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"


def _digits() -> Dataset:
    """A sample that is made here: its sixteen shades of grey become numbers in 0..1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError("data: 'digits' needs scikit-learn; install edgefed[sim]") from error
    x, y = load_digits(return_X_y=True)
    return Dataset((x / 16.0).astype(np.float32), y.astype(np.int64), name="digits")
