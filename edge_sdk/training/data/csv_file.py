"""Rows out of a ``.csv`` file: a header row, then one row a line, in UTF-8, separated by commas.

The last line counts once it has its end: a logger that writes whole blocks leaves half a line there, and half a number
looks like a number.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.source import COLUMNS_MAX, Rows, file_error, rows_at_once

__all__ = ["CsvFile"]

LINE_BYTES_MAX: Final = 1 << 24
NAMES_SHOWN: Final = 20


class CsvFile:
    """See :class:`edge_sdk.training.data.source.Source`."""

    is_snapshot: Final = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def header(self) -> tuple[str, ...]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        with _Reading(self.path) as reading:
            return reading.header

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        with _Reading(self.path) as reading:
            positions = [reading.header.index(name) for name in columns]
            size = rows_at_once(len(reading.header))
            numbers: list[int] = []
            records: list[list[str]] = []
            for number, record in reading.records():
                numbers.append(number)
                records.append(record)
                if len(records) == size:
                    yield self._chunk(columns, positions, numbers, records)
                    numbers, records = [], []
            if records:
                yield self._chunk(columns, positions, numbers, records)

    def _chunk(
        self, columns: Sequence[str], positions: list[int], numbers: list[int], records: list[list[str]]
    ) -> Rows:
        cells = list(zip(*records, strict=True))
        return Rows(self.path, "line", numbers, {n: cells[p] for n, p in zip(columns, positions, strict=True)})


class _Reading:
    """One pass over a file, as far as it reached when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: tuple[str, ...] = ()

    def __enter__(self) -> _Reading:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._lines = _Lines(self._file)
            self._rows = csv.reader(self._lines, strict=True)
            self.header = self._checked_header()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the header, each with the number of the line that it ends on."""
        width = len(self.header)
        while (record := self._next()) is not None:
            if not record:
                continue
            if len(record) != width:
                what = f"{len(record)} values, the header names {width} columns"
                raise file_error(self._path, what, place=f"line {self._rows.line_num}")
            yield self._rows.line_num, record

    def _next(self) -> list[str] | None:
        """The next row; None at the end, which may lie in the middle of a row that is still being written."""
        try:
            return next(self._rows, None)
        except csv.Error as error:
            if self._lines.ended and "unexpected end of data" in str(error):
                return None
            raise self._unreadable(error) from error
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error

    def _checked_header(self) -> tuple[str, ...]:
        names = [name.strip() for name in self._next() or []]
        if not 2 <= len(names) <= COLUMNS_MAX or len(set(names)) != len(names):
            what = "the first line must name at least two columns, each once, and end"
            raise file_error(self._path, what, shown=f"; got {names[:NAMES_SHOWN]}")
        if all(_is_number(name) for name in names):
            raise file_error(self._path, "the first line holds numbers; add a header row with the columns' names")
        return tuple(names)

    def _unreadable(self, error: Exception) -> ExamplesError:
        place = f"line {self._rows.line_num}" if self.header else ""
        return file_error(self._path, "cannot be read as .csv", place=place, shown=f": {error}")


class _Lines:
    """The lines that have their end, up to where the file ended when it was opened.

    Attributes:
        ended: Whether all of them have been given.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        self._encoding = "utf-8-sig"  # of the first line: a mark of the byte order may stand before it
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(min(self._left, LINE_BYTES_MAX))
        if not line.endswith(b"\n"):
            if len(line) == LINE_BYTES_MAX:
                raise csv.Error(f"a line has more than {LINE_BYTES_MAX} bytes")
            self.ended = True
            raise StopIteration
        self._left -= len(line)
        text = line.decode(self._encoding)
        self._encoding = "utf-8"
        return text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
