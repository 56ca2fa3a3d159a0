"""What the cells of a column mean: a number, one of some categories, a class, a time, one of several series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.data.source import Rows

__all__ = ["Categories", "Classes", "Field", "Flags", "Numbers", "Series", "Times", "numbers", "survey", "texts"]

NANOSECONDS: Final = 1e9
VALUES_SHOWN: Final = 10
FLAGS: Final = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
LABEL_REMEDY: Final = "; give classes as 0, 1, 2, ..., or their names in model.labels of the federation"


class Field(Protocol):
    """How the cells of one column become numbers."""

    @property
    def column(self) -> str:
        """Name of the column."""
        ...

    @property
    def width(self) -> int:
        """How many numbers a cell becomes."""
        ...

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """float64[n] or float64[n, width]; NaN for an empty cell.

        Raises:
            ExamplesError: A cell cannot be one of this column.
        """
        ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of numbers.

    Attributes:
        column: Its name.
        remedy: What to do about a text in it.
    """

    column: str
    remedy: str = ""
    width: int = field(default=1, init=False)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        return numbers(rows, self.column, self.remedy)


@dataclass(frozen=True, slots=True)
class Categories:
    """A column of names out of a list.

    Attributes:
        column: Its name.
        names: The list.
        apart: Whether each name becomes a number of its own, 1 where it stands and 0 where not; otherwise a cell
            becomes its position in the list.
    """

    column: str
    names: tuple[str, ...]
    apart: bool = True

    @property
    def width(self) -> int:
        """See :class:`Field`."""
        return len(self.names) if self.apart else 1

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        at = _positions(rows, self.column, self.names)
        if not self.apart:
            return at
        values = np.zeros((len(at), len(self.names)))
        there = ~np.isnan(at)
        values[there, at[there].astype(np.intp)] = 1.0
        values[~there] = np.nan
        return values


@dataclass(frozen=True, slots=True)
class Classes:
    """A column of labels, as numbers or by the names of the classes.

    Attributes:
        column: Its name.
        names: The classes' names; empty where they have none.
        count: How many classes there are, 0 where any number will do.
        ignored: A label outside of the classes that counts nowhere, None for none.
        pair: The two numbers that a loss over two classes asks for; None for another loss.
    """

    column: str
    names: tuple[str, ...] = ()
    count: int = 0
    ignored: int | None = None
    pair: tuple[float, float] | None = None
    width: int = field(default=1, init=False)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        if self.names and (any(map(_is_number, self.names)) or not _holds_numbers(rows, self.column)):
            found = _positions(rows, self.column, self.names)
            if self.pair is not None:
                found = np.where(found == 1.0, self.pair[1], np.where(found == 0.0, self.pair[0], found))
        else:
            found = numbers(rows, self.column, LABEL_REMEDY)
        _require_all(rows, self.column, ~np.isnan(found), "is empty; leave rows without a label out: data.where")
        if self.pair is not None:
            what = f"must be {self.pair[0]:g} or {self.pair[1]:g}"
            _require_all(rows, self.column, np.isin(found, self.pair), what + self._or_names(), cell=True)
        elif self.count:
            fits = (found >= 0) & (found < self.count) & (found == np.rint(found))
            if self.ignored is not None:
                fits |= found == self.ignored
            what = f"must be a class, a whole number from 0 to {self.count - 1}"
            _require_all(rows, self.column, fits, what + self._or_names(), cell=True)
        return found

    def _or_names(self) -> str:
        return f", or {_listed(self.names)}" if self.names else ""


@dataclass(frozen=True, slots=True)
class Times:
    """A column of times: numbers, or dates as ISO 8601 has them; seconds since 1970 for a date."""

    column: str
    width: int = field(default=1, init=False)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        cells = rows.columns[self.column]
        if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
            found = cells.astype("datetime64[ns]").astype(np.float64) / NANOSECONDS
            found[np.isnat(cells)] = np.nan
        elif _holds_numbers(rows, self.column):
            found = numbers(rows, self.column)
        else:
            found = np.array([self._seconds(rows, i, cell) for i, cell in enumerate(cells)], np.float64)
        _require_all(rows, self.column, np.isfinite(found), "is no time; a row needs one to have its place")
        return found

    def _seconds(self, rows: Rows, index: int, cell: Any) -> float:
        try:
            moment = cell if isinstance(cell, datetime) else datetime.fromisoformat(_text(cell))
            # Without a zone a time is taken as UTC, so that the order does not depend on where the device stands.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            rows.fail(index, self.column, "is neither a number nor a date such as 2026-01-31T12:00:00", cell=True)


@dataclass(frozen=True, slots=True)
class Flags:
    """A column of yes and no, as 1 and 0 or as true and false."""

    column: str
    width: int = field(default=1, init=False)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        found = [FLAGS.get(text.lower()) for text in texts(rows, self.column)]
        if None in found:
            rows.fail(found.index(None), self.column, "must be 0 or 1, true or false", cell=True)
        return np.array(found, np.float64)


@dataclass(frozen=True, slots=True)
class Series:
    """A column that tells one series from another: the same content, the same number."""

    column: str
    known: dict[str, int] = field(default_factory=dict)
    width: int = field(default=1, init=False)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """See :class:`Field`."""
        known = self.known
        found = (known.setdefault(text, len(known)) for text in texts(rows, self.column))
        return np.fromiter(found, np.float64, len(rows))


def numbers(rows: Rows, column: str, remedy: str = "") -> NDArray[np.float64]:
    """The cells of a column as float64[n]; NaN for an empty one. ``remedy`` says what to do about a text.

    Raises:
        ExamplesError: A cell is no number.
    """
    cells = rows.columns[column]
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return cells.astype(np.float64, copy=False)
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except (ValueError, TypeError):
        return np.array([_number(rows, i, column, cell, remedy) for i, cell in enumerate(cells)], np.float64)


def texts(rows: Rows, column: str) -> list[str]:
    """The cells of a column as text without blanks around it; "" for an empty one. Whole numbers have no fraction."""
    cells = rows.columns[column]
    if isinstance(cells, np.ndarray):
        return [_text(cell) for cell in cells.tolist()]
    return [cell.strip() if isinstance(cell, str) else _text(cell) for cell in cells]


def survey(rows: Rows, column: str) -> tuple[int, bool]:
    """How many cells of a column are empty or NaN, and whether one of the others is no number."""
    cells = rows.columns[column]
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return int(np.count_nonzero(np.isnan(cells.astype(np.float64)))), False
    filled = [text for text in texts(rows, column) if text and text.lower() != "nan"]
    return len(cells) - len(filled), not all(map(_is_number, filled))


def _number(rows: Rows, index: int, column: str, cell: Any, remedy: str) -> float:
    if _is_empty(cell):
        return float("nan")
    try:
        return float(cell)
    except (ValueError, TypeError):
        rows.fail(index, column, f"is not a number{remedy}", cell=True)


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _holds_numbers(rows: Rows, column: str) -> bool:
    """Whether the first cell that is not empty is a number: a column is of one kind."""
    cells = rows.columns[column]
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return True
    first = next((cell for cell in cells if not _is_empty(cell)), None)
    return isinstance(first, int | float) or (isinstance(first, str) and _is_number(first))


def _positions(rows: Rows, column: str, names: Sequence[str]) -> NDArray[np.float64]:
    """Where each cell stands in the list; NaN for an empty one."""
    places: Mapping[str, float] = {"": float("nan"), **{name: float(at) for at, name in enumerate(names)}}
    found = [places.get(text) for text in texts(rows, column)]
    if None in found:
        rows.fail(found.index(None), column, f"is none of {_listed(names)}", cell=True)
    return np.array(found, np.float64)


def _require_all(rows: Rows, column: str, fits: NDArray[np.bool_], what: str, *, cell: bool = False) -> None:
    if not fits.all():
        rows.fail(int(np.argmin(fits)), column, what, cell=cell)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - VALUES_SHOWN} more" if len(names) > VALUES_SHOWN else ""
    return ", ".join(map(repr, names[:VALUES_SHOWN])) + more
