"""Columns that are in memory already, as a source of rows: a program of one's own has read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.data.source import Column, Rows

__all__ = ["Columns", "Table"]


class Columns:
    """See :class:`edge_sdk.training.data.source.Source`.

    Args:
        cells: One-dimensional arrays or lists by name, all of one length.

    Raises:
        ExamplesError: They are not.
    """

    path: Final = Path("examples")
    is_snapshot: Final = True

    def __init__(self, cells: Mapping[str, Any]) -> None:
        self.cells: dict[str, Column] = {name: np.asarray(column) for name, column in cells.items()}
        shapes = {name: list(np.shape(column)) for name, column in self.cells.items()}
        if len({tuple(shape) for shape in shapes.values()}) != 1 or any(len(shape) != 1 for shape in shapes.values()):
            what = f"examples: columns by the names of features must have one dimension and one length; got {shapes}"
            raise ExamplesError(what, public=what)

    def header(self) -> tuple[str, ...]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        return tuple(self.cells)

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        count = len(next(iter(self.cells.values())))
        yield Rows(self.path, "row", range(1, count + 1), {name: self.cells[name] for name in columns})


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of a file that are in memory, all or some of them; what they are examples of is known with a program.

    Attributes:
        file: Where they came from, and what is to be taken of them.
        columns: [rows] by name: numbers, or objects as the file has them.
    """

    file: ExamplesFile
    columns: Mapping[str, NDArray[Any]]
