"""What every source of rows gives: named columns, and a bounded number of rows at a time.

A source knows nothing of a model. Cells come as the format has them: text, numbers, None, or an array of numbers; what
they mean is decided in one place (``columns.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError

__all__ = ["CELLS_AT_ONCE", "COLUMNS_MAX", "Column", "Rows", "Source", "file_error", "rows_at_once"]

CELLS_AT_ONCE: Final = 1 << 13
"""Cells that are in memory as objects of Python at a time: half a megabyte, which a processor's cache holds."""
COLUMNS_MAX: Final = 1 << 20
CELL_CHARACTERS_SHOWN: Final = 40

Column: TypeAlias = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of a source.

    Attributes:
        source: Name of the file, for messages.
        unit: What ``numbers`` count: ``line`` or ``row``.
        numbers: Where each row stands in the source, from 1.
        columns: The cells of each column by its name; all as long as ``numbers``.
    """

    source: Path
    unit: str
    numbers: Sequence[int]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.numbers)

    def taken(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows where ``keep``, bool[n], is true."""
        if keep.all():
            return self
        columns = {
            name: column[keep] if isinstance(column, np.ndarray) else list(compress(column, keep))
            for name, column in self.columns.items()
        }
        return Rows(self.source, self.unit, list(compress(self.numbers, keep)), columns)

    def fail(self, index: int, column: str, what: str, *, cell: bool = False) -> NoReturn:
        """Refuses a cell.

        Args:
            index: Its row, counted here from 0.
            column: Its column.
            what: What is wrong, as the rest of a sentence about "the cell".
            cell: Whether its content helps a person; it is shown on this device and nowhere else.

        Raises:
            ExamplesError: Always.
        """
        place = f"{self.unit} {self.numbers[index]}, column {column!r}"
        shown = f"; it is {str(self.columns[column][index])[:CELL_CHARACTERS_SHOWN]!r}" if cell else ""
        raise file_error(self.source, f"the cell {what}", place=place, shown=shown)


class Source(Protocol):
    """A file of rows."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def is_snapshot(self) -> bool:
        """Whether what is read is the state of one moment, whoever writes meanwhile."""
        ...

    def header(self) -> tuple[str, ...]:
        """The names of the columns, each once.

        Raises:
            ExamplesError: The file cannot be read, or has no such names.
        """
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """All rows, a bounded number at a time, of these columns alone.

        Raises:
            ExamplesError: The file cannot be read.
        """
        ...


def rows_at_once(columns: int) -> int:
    """How many rows of so many columns are read at a time."""
    return max(1, CELLS_AT_ONCE // max(columns, 1))


def file_error(path: Path, what: str, *, place: str = "", shown: str = "") -> ExamplesError:
    """What is wrong with a file.

    Args:
        path: The file; others are told its name without the directory.
        what: A sentence without any value of the examples.
        place: Where in the file.
        shown: What only this device may show, behind the sentence.
    """
    where = f", {place}: {what}" if place else f": {what}"
    return ExamplesError(f"{path}{where}{shown}", public=f"{path.name}{where}")
