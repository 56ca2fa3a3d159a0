"""Which columns feed which input: by the program's names, by those in ``[data]``, or all in the order of the file."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.data.columns import Categories, Classes, Field, Flags, Numbers, Series, Times
from edge_sdk.training.data.row_filter import RowFilter, parse_filter
from edge_sdk.training.data.settings import ExamplesFile, Window
from edge_sdk.training.data.source import Column, Rows, file_error
from edge_sdk.training.program import Input, Program

__all__ = [
    "GROUP",
    "IS_TEST",
    "TARGET",
    "TIME",
    "Block",
    "Layout",
    "UsedColumns",
    "layout_of",
    "target_block",
    "used_columns",
]

TARGET: Final = "target"
TIME: Final = "[time]"
GROUP: Final = "[group]"
IS_TEST: Final = "[is_test]"
"""Names of blocks that are no input."""

NAMES_SHOWN: Final = 20
FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
WHOLE_MAX: Final = float((1 << 53) - 1)
"""Above it two whole numbers may be the same float64."""
PAIRS: Final = {"binary_cross_entropy": (0.0, 1.0), "hinge": (-1.0, 1.0)}
FEATURE_REMEDY: Final = "; list its values in model.categories of the federation, or leave the column out"


@dataclass(frozen=True, slots=True)
class Block:
    """The columns that go into one array.

    Attributes:
        name: Of the input, or ``TARGET``, ``TIME``, ``GROUP``, ``IS_TEST``.
        fields: The columns, in order.
        dtype: What the array holds.
        whole: Whether the model takes whole numbers alone.
        may_be_missing: Whether an empty cell is a missing value.
    """

    name: str
    fields: tuple[Field, ...]
    dtype: str = "float64"
    whole: bool = False
    may_be_missing: bool = False

    @property
    def width(self) -> int:
        """Numbers a row."""
        return sum(field.width for field in self.fields)

    def values(self, rows: Rows) -> NDArray[np.float64]:
        """float64[n, width] of some rows.

        Raises:
            ExamplesError: A cell is not what it should be; says where.
        """
        values = self._numbers_at_once(rows)
        if values is None:
            values = np.empty((len(rows), self.width))
            at = 0
            for field in self.fields:
                found = field.values(rows)
                values[:, at : at + field.width] = found.reshape(len(rows), field.width)
                at += field.width
        self._check(values, rows)
        return values

    def _numbers_at_once(self, rows: Rows) -> NDArray[np.float64] | None:
        """All cells in one go, where all columns are texts of numbers and none is empty; None where they are not."""
        columns = [rows.columns[field.column] for field in self.fields]
        if not all(isinstance(field, Numbers) for field in self.fields) or any(map(_is_array, columns)):
            return None
        try:
            cells = map(float, chain.from_iterable(columns))
            return np.fromiter(cells, np.float64, len(columns) * len(rows)).reshape(len(columns), len(rows)).T
        except (ValueError, TypeError):
            return None

    def _check(self, values: NDArray[np.float64], rows: Rows) -> None:
        empty = np.isnan(values)
        if not self.may_be_missing:
            self._refuse(empty, rows, "is empty or NaN, and the model takes no missing values (model.missing)")
        most = FLOAT32_MAX if self.dtype == "float32" else WHOLE_MAX if self.whole else np.inf
        self._refuse(~empty & ~(np.abs(values) <= most), rows, f"is infinite or beyond {most:g}")
        if self.whole:
            self._refuse(~empty & (values != np.rint(values)), rows, "must be a whole number")

    def _refuse(self, bad: NDArray[np.bool_], rows: Rows, what: str) -> None:
        if bad.any():
            row, at = (int(found[0]) for found in np.nonzero(bad))
            columns = [field.column for field in self.fields for _ in range(field.width)]
            rows.fail(row, columns[at], what, cell=True)


def _is_array(column: Column) -> bool:
    return isinstance(column, np.ndarray)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is read of each row.

    Attributes:
        blocks: The arrays.
        where: Which rows are taken, None for all.
    """

    blocks: tuple[Block, ...]
    where: RowFilter | None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        found = [field.column for block in self.blocks for field in block.fields]
        return tuple(dict.fromkeys([*found, *(sorted(self.where.columns) if self.where else ())]))


def layout_of(header: Sequence[str], program: Program, file: ExamplesFile) -> Layout:
    """Which columns feed what.

    Args:
        header: The names of the columns.
        program: What takes them.
        file: What the device's owner has said about them.

    Raises:
        ExamplesError: A column is missing or too much, or there are more or fewer than the model takes.
    """
    claimed = {*program.features, *(entry.name for entry in program.inputs)}
    used = used_columns(header, file, claimed, has_target=program.loss != "reconstruction" or bool(file.label))
    features = _features(header, program, file, used)
    single = {
        entry.name: entry
        for entry in program.inputs
        if entry.name in header and prod(_shape(entry)) == 1 and entry.name not in program.features
    }
    blocks = [_scalar(entry, program) for entry in single.values()]
    wide = [entry for entry in program.inputs if entry.name not in single]
    if len(wide) > 1:
        names = [entry.name for entry in program.inputs]
        raise _wrong(file, header, f"needs one column for each of the inputs {names}")
    for entry in wide:
        columns = tuple(name for name in features if name not in single)
        blocks.append(_of_features(entry, columns, program, file, used))
    if used.label:
        blocks.append(target_block(used.label, program, file))
    marks: dict[str, Field] = {TIME: Times(used.time), GROUP: Series(used.group), IS_TEST: Flags(used.is_test)}
    blocks += [Block(name, (mark,)) for name, mark in marks.items() if mark.column]
    return Layout(tuple(blocks), used.where)


@dataclass(frozen=True, slots=True)
class UsedColumns:
    """The columns that have another use than that of a feature; "" for one that is not there.

    Attributes:
        label: The columns of the target.
        time: The column that rows are sorted by.
        group: The column that tells one series from another.
        is_test: The column that says which rows are set aside, see :mod:`edge_sdk.training.marks`.
        where: The filter, whose columns may be features too.
    """

    label: tuple[str, ...]
    time: str
    group: str
    is_test: str
    where: RowFilter | None

    @property
    def apart(self) -> frozenset[str]:
        """All columns that are no features unless they are named as such."""
        return frozenset((*self.label, self.time, self.group, self.is_test))


def used_columns(
    header: Sequence[str], file: ExamplesFile, claimed: Collection[str] = (), *, has_target: bool = True
) -> UsedColumns:
    """The columns that are used beside the features; all that ``file`` names are there.

    Columns called ``time``, ``group`` and ``is_test`` are what they are called, unless they are ``claimed`` as inputs
    or named in ``file`` as something else.

    Raises:
        ExamplesError: One is missing, or the filter is none.
    """
    where = _filter(file)
    for what, names in (
        ("the target", file.label),
        ("data.features", file.features),
        ("data.time", tuple(filter(None, [file.time]))),
        ("data.group", tuple(filter(None, [file.group]))),
        ("data.where", sorted(where.columns) if where else ()),
    ):
        for name in names:
            if name not in header:
                raise _wrong(file, header, f"no column {name!r} for {what}{_nearest(name, header)}")
    taken = {*claimed, *file.features, *file.label, file.time, file.group}
    free = [name for name in header if name not in taken]
    time, group = (own or (name if name in free else "") for name, own in (("time", file.time), ("group", file.group)))
    is_test = "is_test" if "is_test" in free else ""
    left = [name for name in header if name not in (time, group, is_test)]
    label = file.label or (tuple(left[-1:]) if has_target else ())
    return UsedColumns(label, time, group, is_test, where)


def _filter(file: ExamplesFile) -> RowFilter | None:
    try:
        return parse_filter(file.where) if file.where else None
    except ConfigurationError as error:
        raise file_error(file.path, "data.where cannot be read", shown=f": {error}") from error


def _features(header: Sequence[str], program: Program, file: ExamplesFile, used: UsedColumns) -> tuple[str, ...]:
    if not program.features:
        return file.features or tuple(name for name in header if name not in used.apart)
    among = file.features or header
    missing = [name for name in program.features if name not in among]
    if missing:
        where = "data.features" if file.features else "the columns"
        near = _nearest(missing[0], among)
        raise _wrong(file, header, f"the model's features {_shown(missing)} are not among {where}{near}")
    # A window may be continued by its own label, which then comes later than all that the model sees.
    ahead = file.window is not None and file.window.horizon > 0
    doubled = [name for name in program.features if name in used.label and not ahead]
    if doubled:
        raise _wrong(file, header, f"the column {doubled[0]!r} is a feature of the model; name another one: data.label")
    inputs = {entry.name for entry in program.inputs}
    known = {*program.features, *inputs, *(() if file.features else used.apart | _filtered(used))}
    extra = [name for name in among if name not in known]
    if extra:
        what = "data.features names" if file.features else "there are columns"
        remedy = "leave them out" if file.features else "say with data.features which columns are features"
        raise _wrong(file, header, f"{what} {_shown(extra)}, which are no features of the model; {remedy}")
    return program.features


def _filtered(used: UsedColumns) -> frozenset[str]:
    return used.where.columns if used.where else frozenset()


def _shape(entry: Input) -> tuple[int, ...]:
    return tuple(d or 1 for d in entry.shape[1:])


def _scalar(entry: Input, program: Program) -> Block:
    names = program.categories.get(entry.name)
    field: Field = Categories(entry.name, names, apart=False) if names else Numbers(entry.name, FEATURE_REMEDY)
    return _block(entry, (field,), program)


def _of_features(
    entry: Input, columns: tuple[str, ...], program: Program, file: ExamplesFile, used: UsedColumns
) -> Block:
    fields: list[Field] = []
    for name in columns:
        names = program.categories.get(name)
        fields.append(Categories(name, names) if names else Numbers(name, FEATURE_REMEDY))
    block = _block(entry, tuple(fields), program)
    _check_width(entry, block.width, columns, file, used)
    return block


def _block(entry: Input, fields: tuple[Field, ...], program: Program) -> Block:
    missing = program.missing == "mean" and program.normalise is not None and program.normalise.input == entry.name
    dtype = "float32" if entry.dtype == "float32" else "float64"
    return Block(entry.name, fields, dtype, whole=entry.dtype != "float32", may_be_missing=missing)


def _check_width(entry: Input, width: int, columns: tuple[str, ...], file: ExamplesFile, used: UsedColumns) -> None:
    wanted = _shape(entry)
    window = file.window
    if width * (window.length if window else 1) == prod(wanted):
        return
    rows = f" in windows of {window.length} rows" if window else ""
    numbers = f" of {width} numbers" if width != len(columns) else ""
    what = f"{len(columns)} feature columns{numbers}{rows}, input {entry.name!r} of shape {['N', *wanted]} needs "
    what += str(prod(wanted))
    marks = [name for name in (used.time, used.group, used.is_test) if name and name not in (file.time, file.group)]
    if marks:
        what += f"; {_shown(marks)} are what their names say, and features where data.features names them"
    raise file_error(file.path, what, shown=f"; the columns are {_shown(columns)}")


def target_block(columns: tuple[str, ...], program: Program, file: ExamplesFile) -> Block:
    """The columns of the target.

    Raises:
        ExamplesError: They are not as many as the program learns.
    """
    target = program.target
    wanted = prod(_shape(target))
    if not _fits(wanted, len(columns), file.window):
        what = f"a target of shape {['N', *_shape(target)]} is not {len(columns)} of the columns; name them: "
        raise file_error(file.path, what + "data.label = [...], or use an .npz file")
    whole = target.dtype != "float32"
    pair = PAIRS.get(program.loss)
    names = program.labels if len(columns) == 1 else ()
    fields: tuple[Field, ...] = tuple(
        Classes(name, names, program.classes, program.ignore_index, pair) if whole or pair else Numbers(name)
        for name in columns
    )
    return Block(TARGET, fields, "float64" if whole else "float32", whole=whole)


def _fits(wanted: int, columns: int, window: Window | None) -> bool:
    """Whether so many columns, or such a window of them, make a target."""
    return wanted == columns or (window is not None and wanted == columns * window.length)


def _wrong(file: ExamplesFile, header: Sequence[str], what: str) -> ExamplesError:
    return file_error(file.path, what, shown=f"; the columns are {_shown(header)}")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{list(names[:NAMES_SHOWN])}{more}"


def _nearest(name: str, names: Sequence[str]) -> str:
    by_letters = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), by_letters, n=1)
    return f"; did you mean {by_letters[near[0]]!r}?" if near else ""
