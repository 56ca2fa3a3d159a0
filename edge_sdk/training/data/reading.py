"""From a file of rows to the arrays of examples, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.data.columns import survey
from edge_sdk.training.data.columns_in_memory import Table
from edge_sdk.training.data.layout import GROUP, IS_TEST, TARGET, TIME, Block, Layout, layout_of, used_columns
from edge_sdk.training.data.opening import open_source
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.data.source import Source, file_error
from edge_sdk.training.data.steady import read_steadily
from edge_sdk.training.data.windows import Windows, cut, in_order
from edge_sdk.training.program import Input, Program

__all__ = ["describe_rows", "read_rows", "read_table"]

ROWS_FIRST: Final = 1024
GROWTH: Final = 1.5

T = TypeVar("T")


def read_rows(file: ExamplesFile, program: Program, source: Source | None = None) -> dict[str, NDArray[Any]]:
    """The examples of a file of rows: an array for each input by its name, ``target``, and the marks beside them.

    Args:
        file: Where it is, and what of it is taken.
        program: What the examples are for.
        source: Where the rows are, if not in the file.

    Raises:
        ExamplesError: The file cannot be read, or what is in it does not fit the program.
    """
    rows = source or open_source(file)
    return _whole(rows, lambda: _read(rows, file, program))


def read_table(file: ExamplesFile) -> Table:
    """All rows of a file that its filter takes, before there is a program that says what they mean.

    Raises:
        ExamplesError: It cannot be read, or a column that is named is not there.
    """
    rows = open_source(file)
    return Table(file, _whole(rows, lambda: _all_columns(rows, file)))


def describe_rows(file: ExamplesFile) -> str:
    """What is in a file of rows, for people who have no program yet.

    Raises:
        ExamplesError: It cannot be read, or a column that is named is not there.
    """
    rows = open_source(file)
    return _whole(rows, lambda: _describe(rows, file))


def _whole(source: Source, read: Callable[[], T]) -> T:
    return read() if source.is_snapshot else read_steadily(source.path, read)


def _all_columns(source: Source, file: ExamplesFile) -> dict[str, NDArray[Any]]:
    header = source.header()
    where = used_columns(header, file).where
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in header}
    for rows in source.rows(header):
        if where is not None:
            rows = rows.taken(where.matches(rows))
        for name, column in rows.columns.items():
            parts[name].append(column if isinstance(column, np.ndarray) else _objects(column))
    return {name: np.concatenate(found) if found else np.empty(0, object) for name, found in parts.items()}


def _objects(cells: Sequence[Any]) -> NDArray[Any]:
    """The cells as they are: NumPy would make an array of two dimensions out of cells that are lists."""
    return np.fromiter(cells, object, len(cells))


def _read(source: Source, file: ExamplesFile, program: Program) -> dict[str, NDArray[Any]]:
    found = _blocks(source, layout_of(source.header(), program, file), file.rows_max)
    time, group = (found[name][:, 0] if name in found else None for name in (TIME, GROUP))
    count = len(next(iter(found.values())))
    if file.window is not None:
        return _in_windows(found, cut(file.window, count, time, group), file, program)
    if time is not None:
        order = in_order(count, time, None)
        found = {name: values[order] for name, values in found.items()}
    shapes = {entry.name: _shape(entry) for entry in (*program.inputs, program.target)}
    arrays = {name: found[name].reshape(count, *shape) for name, shape in shapes.items() if name in found}
    return arrays | ({"is_test": found[IS_TEST][:, 0]} if IS_TEST in found else {})


def _in_windows(
    found: dict[str, NDArray[Any]], windows: Windows, file: ExamplesFile, program: Program
) -> dict[str, NDArray[Any]]:
    count = len(windows.order)
    if count and not len(windows):
        what = f"no window of {windows.length} rows, with a label {windows.horizon} rows later, fits into the {count} "
        raise file_error(file.path, what + "rows that are there; see data.window, data.group and data.where")
    arrays = {entry.name: _windowed(found[entry.name], windows, _shape(entry)) for entry in program.inputs}
    if TARGET in found:
        shape, values = _shape(program.target), found[TARGET]
        for_each = prod(shape) == values.shape[1] * windows.length
        labels = windows.labels_of_rows if for_each else windows.labels
        arrays[TARGET] = values[labels].reshape(len(windows), *shape)
    if IS_TEST in found:
        arrays = _apart(arrays, found[IS_TEST][:, 0] != 0.0, windows)
    return arrays | {"overlap": np.array(windows.overlap)}


def _apart(arrays: dict[str, NDArray[Any]], is_test: NDArray[np.bool_], windows: Windows) -> dict[str, NDArray[Any]]:
    """The windows whose rows and labels are all set aside, or all not: one with both would carry them across."""
    rows = np.concatenate([is_test[windows.rows], is_test[windows.labels_of_rows]], axis=1)
    set_aside = np.all(rows, axis=1)
    taken = set_aside | ~np.any(rows, axis=1)
    return {**{name: array[taken] for name, array in arrays.items()}, "is_test": set_aside[taken]}


def _windowed(values: NDArray[Any], windows: Windows, shape: tuple[int, ...]) -> NDArray[Any]:
    """Windows in the shape of an input: time before features, the reverse, or both in one dimension.

    An input that takes one row gets the last one of each window.
    """
    if prod(shape) == values.shape[1]:
        return values[windows.last].reshape(len(windows), *shape)
    cut_out = values[windows.rows]
    _, length, width = cut_out.shape
    if length != width and [d for d in shape if d != 1] == [d for d in (width, length) if d != 1]:
        cut_out = cut_out.transpose(0, 2, 1)
    return cut_out.reshape(len(windows), *shape)


def _blocks(source: Source, layout: Layout, rows_max: int) -> dict[str, NDArray[Any]]:
    kept = {block.name: _Kept(block, rows_max) for block in layout.blocks}
    for rows in source.rows(layout.columns):
        if layout.where is not None:
            rows = rows.taken(layout.where.matches(rows))
        for block in layout.blocks:
            kept[block.name].add(block.values(rows))
    return {name: rows.array() for name, rows in kept.items()}


class _Kept:
    """Rows of one block, one behind the other; of more than ``rows_max`` the newest."""

    def __init__(self, block: Block, rows_max: int) -> None:
        self._rows_max = rows_max
        self._array = np.empty((ROWS_FIRST, block.width), block.dtype)
        self._count = 0

    def add(self, values: NDArray[np.float64]) -> None:
        if self._rows_max:
            values = values[-self._rows_max :]
            if self._count + len(values) > max(2 * self._rows_max, ROWS_FIRST):
                self._leave_the_newest()
        needed = self._count + len(values)
        if needed > len(self._array):
            # In place where there is room behind it; nothing else holds a view of it yet.
            self._array.resize((max(needed, int(len(self._array) * GROWTH)), self._array.shape[1]), refcheck=False)
        self._array[self._count : needed] = values
        self._count = needed

    def array(self) -> NDArray[Any]:
        return self._array[self._first : self._count]

    @property
    def _first(self) -> int:
        return max(0, self._count - self._rows_max) if self._rows_max else 0

    def _leave_the_newest(self) -> None:
        newest = self.array().copy()
        self._count = len(newest)
        self._array[: self._count] = newest


def _shape(entry: Input) -> tuple[int, ...]:
    return tuple(d or 1 for d in entry.shape[1:])


def _describe(source: Source, file: ExamplesFile) -> str:
    header = source.header()
    used = used_columns(header, file)
    features = file.features or tuple(name for name in header if name not in used.apart)
    wanted = dict.fromkeys((*features, *used.label, *(sorted(used.where.columns) if used.where else ())))
    count, empty, worded = 0, Counter[str](), set[str]()
    for rows in source.rows(tuple(wanted)):
        if used.where is not None:
            rows = rows.taken(used.where.matches(rows))
        count += len(rows)
        for name in features:
            cells, has_text = survey(rows, name)
            empty[name] += cells
            worded |= {name} if has_text else set()
    parts = [f"{count} rows, {len(features)} columns of inputs and the target {', '.join(map(repr, used.label))}"]
    if worded:
        parts.append(f"text in {', '.join(sorted(worded))}")
    if empty.total():
        parts.append("empty cells: " + ", ".join(f"{n} in {name}" for name, n in empty.most_common() if n))
    return "; ".join(parts)
