"""What a set of examples may say of each of them, beside the arrays that a model takes.

Such *marks* stand among the arrays, by these names, in files and in memory alike:

    is_test   bool[N]   examples that are set aside: nobody trains on them, and models are judged on them
    group     [N]       whole numbers or text: the person or machine that an example came from
    time      [N]       numbers, text that sorts by time (ISO 8601) or datetime64: the examples are put into its order
    overlap   one number: how many examples before and behind it, of its group, an example has something in common
              with, as windows of one series have

A name that the model has as an input is that input, and no mark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError

__all__ = ["MARKS", "Marks", "apart_from", "take_marks"]

MARKS: Final = ("is_test", "group", "time", "overlap")


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """The marks of N examples; None for those that are not there.

    Attributes:
        is_test: bool[N].
        group: int[N] or text[N].
        time: [N].
        overlap: See the names above.
    """

    is_test: NDArray[np.bool_] | None = None
    group: NDArray[Any] | None = None
    time: NDArray[Any] | None = None
    overlap: int = 0

    def check_count(self, count: int) -> None:
        """Raise ExamplesError unless each mark has ``count`` entries."""
        for name in ("is_test", "group", "time"):
            marks = getattr(self, name)
            if marks is not None and len(marks) != count:
                raise _refused(f"examples: {name!r} has {len(marks)} entries, there are {count} examples")

    def order(self) -> NDArray[np.intp] | None:
        """int[N]: the positions of the examples in the order of time; None where they are in order, or have no time."""
        if self.time is None or not bool(np.any(self.time[1:] < self.time[:-1])):
            return None
        return np.argsort(self.time, kind="stable")

    def overlap_in_order(self) -> int:
        """``overlap`` once the examples are in the order of time, where those of other groups stand between."""
        if not self.overlap or self.group is None:
            return self.overlap
        order = self.order()
        group = self.group if order is None else self.group[order]
        widest = 0
        for key in np.unique(group):
            places = np.flatnonzero(group == key)
            near = min(self.overlap, len(places) - 1)
            if near > 0:
                widest = max(widest, int(np.max(places[near:] - places[:-near])))
        return widest


def take_marks(arrays: Mapping[str, Any], inputs: Collection[str] = ()) -> tuple[dict[str, Any], Marks]:
    """``(the other arrays, the marks)``; ``inputs`` are names that the model has for itself.

    Raises:
        ExamplesError: A mark has another type or shape than it should.
    """
    names = [name for name in MARKS if name in arrays and name not in inputs]
    if not names:
        return dict(arrays), Marks()
    found: dict[str, Any] = {name: _CHECKS[name](name, np.asarray(arrays[name])) for name in names}
    return {name: array for name, array in arrays.items() if name not in names}, Marks(**found)


def apart_from(held: NDArray[np.bool_], overlap: int) -> NDArray[np.bool_]:
    """bool[N]: which examples have nothing in common with those that are held out (bool[N]), by ``overlap``."""
    count = len(held)
    before = np.concatenate([[0], np.cumsum(held)])
    place = np.arange(count)
    apart: NDArray[np.bool_] = before[np.minimum(place + overlap + 1, count)] == before[np.maximum(place - overlap, 0)]
    return apart


def _is_test(name: str, array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.ndim != 1 or array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise _misfit(name, array, "one true or false for each example")
    return array.astype(bool)


def _group(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 1 and array.dtype.kind == "f" and np.array_equal(array, np.rint(array)):
        return array.astype(np.int64)  # a column of a table that has fractions elsewhere
    if array.ndim != 1 or array.dtype.kind not in "buiU":
        raise _misfit(name, array, "one whole number or text for each example")
    return array


def _time(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 1 or array.dtype.kind not in "uifUM":
        raise _misfit(name, array, "one number, text or datetime64 for each example")
    if array.dtype.kind in "fM" and not np.array_equal(array, array):  # NaN and NaT differ from themselves
        raise _refused(f"examples: {name!r} is missing (NaN) for some examples; they have no place in the order")
    return array


def _overlap(name: str, array: NDArray[Any]) -> int:
    if array.size != 1 or array.dtype.kind not in "ui" or int(array.ravel()[0]) < 0:
        raise _misfit(name, array, "one whole number, at least 0")
    return int(array.ravel()[0])


def _misfit(name: str, array: NDArray[Any], expected: str) -> ExamplesError:
    return _refused(f"examples: {name!r} is {array.dtype}{list(array.shape)}, expected {expected}")


def _refused(what: str) -> ExamplesError:
    """Names, types and counts alone: others may be told."""
    return ExamplesError(what, public=what)


_CHECKS: Final[Mapping[str, Callable[[str, NDArray[Any]], Any]]] = {
    "is_test": _is_test,
    "group": _group,
    "time": _time,
    "overlap": _overlap,
}
