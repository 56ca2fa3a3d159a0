"""Rows out of a ``.csv`` file: a header row, then one row a line, in UTF-8, separated by commas.

The last line counts once it has its end: a logger that writes whole blocks leaves half a line there, and half a number
looks like a number.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Final

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.source import COLUMNS_MAX, Rows, file_error, rows_at_once

__all__ = ["CsvFile"]

LINE_BYTES_MAX: Final = 1 << 24
BLOCK_BYTES: Final = 1 << 16
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
            positions = {name: reading.header.index(name) for name in columns}
            for numbers, records in reading.records(rows_at_once(len(reading.header))):
                cells = list(zip(*records, strict=True))
                yield Rows(self.path, "line", numbers, {name: cells[at] for name, at in positions.items()})


class _Reading:
    """One pass over a file, as far as it reached when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: tuple[str, ...] = ()

    def __enter__(self) -> _Reading:
        try:
            self._lines = io.TextIOWrapper(
                io.BufferedReader(_WholeLines(self._path)), encoding="utf-8-sig", newline="\n"
            )
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._rows = csv.reader(self._lines, strict=True)
            first, _ = self._next(1)
            self.header = self._checked_header(first[0] if first else [])
        except BaseException:
            self._lines.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def records(self, count: int) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
        """The rows below the header, ``count`` at a time, each with the number of the line that it ends on."""
        width, ended = len(self.header), False
        while not ended:
            before = self._rows.line_num
            found, ended = self._next(count)
            numbers: Sequence[int] = range(before + 1, before + 1 + len(found))
            if self._rows.line_num != before + len(found) or any(len(record) != width for record in found):
                # Cells of several lines, lines without cells, or a mistake: each row is looked at.
                lines = accumulate((1 + sum(cell.count("\n") for cell in record) for record in found), initial=before)
                kept = [(number, record) for number, record in zip(islice(lines, 1, None), found) if record]  # noqa: B905
                for number, record in kept:
                    if len(record) != width:
                        what = f"{len(record)} values, the header names {width} columns"
                        raise file_error(self._path, what, place=f"line {number}")
                numbers, found = [number for number, _ in kept], [record for _, record in kept]
            if found:
                yield numbers, found

    def _next(self, count: int) -> tuple[list[list[str]], bool]:
        """The next rows, and whether these are the last; the file may end in a row that is still being written."""
        found: list[list[str]] = []
        try:
            found.extend(islice(self._rows, count))
        except csv.Error as error:
            # What has been read before the error stays in the list.
            if "unexpected end of data" not in str(error):
                raise self._unreadable(error) from error
            return found, True
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error
        return found, len(found) < count

    def _checked_header(self, first: list[str]) -> tuple[str, ...]:
        names = [name.strip() for name in first]
        if not 2 <= len(names) <= COLUMNS_MAX or len(set(names)) != len(names):
            what = "the first line must name at least two columns, each once, and end"
            raise file_error(self._path, what, shown=f"; got {names[:NAMES_SHOWN]}")
        if all(_is_number(name) for name in names):
            raise file_error(self._path, "the first line holds numbers; add a header row with the columns' names")
        return tuple(names)

    def _unreadable(self, error: Exception) -> ExamplesError:
        place = f"line {self._rows.line_num}" if self.header else ""
        return file_error(self._path, "cannot be read as .csv", place=place, shown=f": {error}")


class _WholeLines(io.RawIOBase):
    """The bytes of a file up to the end of the last line that has one, as the file was when it was opened.

    Raises:
        OSError: The file cannot be opened, or a line is longer than any that is taken.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._left = _end_of_lines(self._file)
        self._since_line = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        count = self._file.readinto(view) or 0
        self._left -= count
        last = bytes(view[:count]).rfind(b"\n")
        self._since_line = self._since_line + count if last < 0 else count - last
        if self._since_line > LINE_BYTES_MAX:
            raise OSError(f"a line has more than {LINE_BYTES_MAX} bytes")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _end_of_lines(file: io.FileIO) -> int:
    """Where the last whole line of a file ends, 0 where there is none."""
    end = os.fstat(file.fileno()).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        at = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
