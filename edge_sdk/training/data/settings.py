"""Where a device's examples are, and which of what is there: the table ``[data]`` of ``device.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExamplesFile", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """How a series of rows is cut into examples.

    Attributes:
        length: Rows of one example.
        step: Rows from the start of one example to that of the next; 0 for ``length``: no row is in two examples.
        horizon: Rows from the last row of an example to the row that its label is taken from.
        gap: More than this between two rows, in seconds or in the unit of the time column, ends the series; None where
            every row belongs to it.
    """

    length: int
    step: int = 0
    horizon: int = 0
    gap: float | None = None

    @property
    def stride(self) -> int:
        """Rows from one example to the next."""
        return self.step or self.length


@dataclass(frozen=True, slots=True)
class ExamplesFile:
    """Examples in a file; what is in it is known to fit only once there is a program to check it against.

    Attributes:
        path: A ``.npz``, ``.csv``, ``.parquet``, or ``.db``, ``.sqlite``, ``.sqlite3``.
        features: Names of the columns of the inputs; empty for all that have no other use. Where the program names its
            features, their order is the program's.
        label: Names of the columns to learn, one unless the model predicts several values; empty for the last column.
        where: Which rows are taken, see :mod:`edge_sdk.training.data.row_filter`; empty for all.
        window: How rows become examples; None for one of each.
        time: The column that rows are sorted by; empty for the order of the file.
        group: The column that tells one series from another; empty where there is one.
        rows_max: So many of the newest rows are kept, the last ones of the file; 0 for all.
        table: Of a database, the table to read.
        query: Of a database, a SELECT in place of ``table``.
    """

    path: Path
    features: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    where: str = ""
    window: Window | None = None
    time: str = ""
    group: str = ""
    rows_max: int = 0
    table: str = ""
    query: str = ""
