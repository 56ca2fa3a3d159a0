"""Rows out of a ``.parquet`` file, by pyarrow, which ``edgefed[parquet]`` installs and nothing else imports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.source import Column, Rows, file_error, rows_at_once

__all__ = ["ParquetFile"]


class ParquetFile:
    """See :class:`edge_sdk.training.data.source.Source`."""

    is_snapshot: Final = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def header(self) -> tuple[str, ...]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        with self._opened() as file:
            names = tuple(file.schema_arrow.names)
        if not names or len(set(names)) != len(names):
            raise file_error(self.path, "its columns must have names, each once")
        return names

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        number = 1
        with self._opened() as file:
            batches = file.iter_batches(batch_size=rows_at_once(len(columns)), columns=list(columns), use_threads=False)
            while (batch := self._next(batches)) is not None:
                cells = {name: _cells(batch.column(name)) for name in columns}
                yield Rows(self.path, "row", range(number, number + batch.num_rows), cells)
                number += batch.num_rows

    def _opened(self) -> Any:
        try:
            import pyarrow as pa
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise file_error(self.path, "needs pyarrow: pip install 'edgefed[parquet]'") from error
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _next(self, batches: Iterator[Any]) -> Any:
        import pyarrow as pa

        try:
            return next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ExamplesError:
        return file_error(self.path, "cannot be read as .parquet", shown=f": {error}")


def _cells(column: Any) -> Column:
    """Numbers and times as an array, in which what is missing is NaN; everything else as objects."""
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_timestamp(kind):
        cells: Column = column.to_numpy(zero_copy_only=False)
        return cells
    return list(column.to_pylist())
