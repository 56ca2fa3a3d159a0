"""A device's local examples: checked against the program, and loaded from files for people who write no code.

Inputs keep the type they came in (images as uint8 are a quarter of the memory) and are cast batch by batch; that the
cast loses nothing is checked once, here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError
from edge_sdk.training.layouts import plain_arrays
from edge_sdk.training.marks import Marks, take_marks
from edge_sdk.training.program import Input, Program

__all__ = ["Examples", "ExamplesFile", "as_examples", "counted_labels", "describe_file", "load_examples", "read_npz"]

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_COLUMNS_SHOWN: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Labelled examples; the first dimension of every array is the example.

    Attributes:
        inputs: Arrays by the model's input names.
        target: The labels or values to learn.
        checked_for: Digest of the program that :func:`as_examples` has checked them against; empty for none.
        is_test: bool[N], True for those that nobody trains on and models are judged on; None for no such mark.
        overlap: With how many examples before and behind it an example has something in common, as windows of a series
            have; whoever holds examples out leaves as many untrained beside them.
    """

    inputs: Mapping[str, NDArray[Any]]
    target: NDArray[Any]
    checked_for: bytes = b""
    is_test: NDArray[np.bool_] | None = None
    overlap: int = 0

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, program: Program, index: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """The examples at ``index`` as an engine takes them: by name, in the program's dtypes.

        ``index`` is int[n], or int[steps, n] for several batches at once; the arrays begin with its dimensions.
        """
        return {
            entry.name: np.take(array, index, axis=0).astype(entry.dtype, copy=False)
            for entry, array in self._arrays(program)
        }

    def run(self, program: Program, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """The examples from ``start`` up to ``stop``, as :meth:`batch` gives them; views where no cast is needed."""
        return {entry.name: array[start:stop].astype(entry.dtype, copy=False) for entry, array in self._arrays(program)}

    def part(self, index: NDArray[np.intp]) -> Examples:
        """The examples at ``index``, int[n], as examples of their own."""
        inputs = {name: np.take(array, index, axis=0) for name, array in self.inputs.items()}
        is_test = None if self.is_test is None else self.is_test[index]
        return Examples(inputs, np.take(self.target, index, axis=0), self.checked_for, is_test, self.overlap)

    def _arrays(self, program: Program) -> list[tuple[Input, NDArray[Any]]]:
        arrays = [(entry, self.inputs[entry.name]) for entry in program.inputs]
        return [*arrays, (program.target, self.target)]


@dataclass(frozen=True, slots=True)
class ExamplesFile:
    """Examples in a file; what is in it is known to fit only once there is a program to check it against.

    Attributes:
        path: A ``.npz`` or ``.csv``, see :func:`load_examples`.
        target: Of a ``.csv``, the name of the target's column; None for the last one.
    """

    path: Path
    target: str | None = None


def as_examples(value: Any, program: Program) -> Examples:
    """Local examples in any of the usual forms, checked against ``program``.

    Args:
        value: :class:`Examples`, :class:`ExamplesFile`, ``(x, y)``, ``{"x": ..., "y": ...}``, or arrays by input name
            with ``"target"``; ``x`` may itself hold arrays by input name. For a model that learns to reconstruct its
            input the target may be left out everywhere, and ``x`` alone will do. A target of shape ``[N, 1]`` is taken
            where ``[N]`` is expected, and the reverse: dimensions of 1 at the end say nothing. Beside its arrays a
            dictionary may hold the marks of :mod:`edge_sdk.training.marks`: ``is_test``, ``group``, ``time`` and
            ``overlap``.
        program: Names, dtypes and shapes that are expected.

    Raises:
        ExamplesError: Something is missing, or has another shape, type, length or range; says expected and got.
    """
    if isinstance(value, Examples) and value.checked_for == program.digest:
        return value
    if isinstance(value, ExamplesFile):
        return load_examples(value.path, program, value.target)
    marks = Marks()
    if isinstance(value, Mapping):
        value, marks = take_marks(value, [entry.name for entry in program.inputs])
    arrays, target = _taken_apart(value, program)
    inputs = {}
    for entry in program.inputs:
        if entry.name not in arrays:
            raise ExamplesError(f"examples: input {entry.name!r} is missing; got {sorted(arrays)}")
        inputs[entry.name] = _checked(program, entry, arrays[entry.name], "input")
    labels = _checked(program, program.target, target, "target").astype(program.target.dtype, copy=False)
    lengths = {**{name: len(array) for name, array in inputs.items()}, "target": len(labels)}
    if len(set(lengths.values())) > 1:
        raise ExamplesError(f"examples: different numbers of examples: {lengths}")
    if not len(labels):
        raise ExamplesError("examples: there are none; give at least one example")
    marks.check_count(len(labels))
    is_test, overlap = marks.is_test, marks.overlap
    if isinstance(value, Examples):
        is_test, overlap = value.is_test, value.overlap
    examples = Examples(inputs, labels, program.digest, is_test, overlap)
    _check_labels(examples, program)
    order = marks.order()
    return examples if order is None else examples.part(order)


def counted_labels(inputs: Mapping[str, NDArray[Any]], target: NDArray[Any], program: Program) -> NDArray[np.bool_]:
    """Which elements of ``target`` count: bool in its shape, False where a label is ignored or the mask is 0."""
    counted = np.ones(target.shape, np.bool_)
    if program.ignore_index is not None:
        counted &= target != program.ignore_index
    if program.mask:
        mask = np.asarray(inputs[program.mask]) > 0
        while mask.ndim > 2 and mask.shape[-1] == 1:
            mask = mask[..., 0]
        counted &= mask.reshape(*mask.shape, *(1 for _ in target.shape[mask.ndim :]))
    return counted


def load_examples(path: str | os.PathLike[str], program: Program, target: str | None = None) -> Examples:
    """Examples from a file.

    Args:
        path: A ``.npz`` with arrays ``x`` and ``y`` (or one per input name, and ``target``), or a ``.csv`` with a
            header row: the columns named like the program's inputs, or else all but the target's as one input.
        program: What they are checked against.
        target: Of a ``.csv``, the name of the target's column; without it, the last one.

    Raises:
        ExamplesError: The file cannot be read, or what is in it does not fit.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        return load_npz(path, program)
    if suffix == ".csv":
        return load_csv(path, program, target)
    raise ExamplesError(f"{path}: a file of examples ends in .npz or .csv, not {suffix!r}")


def describe_file(file: ExamplesFile) -> str:
    """What is in a file of examples, for people; without a program nobody can say whether it fits.

    Raises:
        ExamplesError: It cannot be read.
    """
    if file.path.suffix.lower() == ".npz":
        arrays = read_npz(file.path)
        return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"
    header, table = _read_csv(file.path)
    target = header[-1] if file.target is None else file.target
    _check_column(file.path, header, target)
    return f"{len(table)} rows, {len(header) - 1} columns of inputs and the target {target!r}"


def load_npz(path: str | os.PathLike[str], program: Program) -> Examples:
    """See :func:`load_examples`."""
    arrays = read_npz(path)
    try:
        return as_examples(arrays, program)
    except ExamplesError as error:
        raise ExamplesError(f"{path}: {error}") from error


def load_csv(path: str | os.PathLike[str], program: Program, target: str | None = None) -> Examples:
    """See :func:`load_examples`."""
    header, table = _read_csv(path)
    if program.loss == "reconstruction" and target is None:
        return _mirrored_csv(path, program, table)
    label = header[-1] if target is None else target
    _check_column(path, header, label)
    columns = {name: table[:, i] for i, name in enumerate(header) if name != label}
    if len(program.target.shape) != 1:
        raise ExamplesError(f"{path}: a target of shape {list(program.target.shape)} needs an .npz file")
    inputs: dict[str, NDArray[Any]] = {}
    if all(entry.name in columns and len(entry.shape) == 1 for entry in program.inputs):
        inputs = {entry.name: columns[entry.name] for entry in program.inputs}
    elif len(program.inputs) == 1:
        inputs = {program.inputs[0].name: _shaped(path, program.inputs[0], columns, table, header.index(label))}
    else:
        names = [entry.name for entry in program.inputs]
        raise ExamplesError(f"{path}: needs one column for each of the inputs {names}; the columns are {header[:20]}")
    try:
        return as_examples({**inputs, "target": table[:, header.index(label)]}, program)
    except ExamplesError as error:
        raise ExamplesError(f"{path}: {error}") from error


def _mirrored_csv(path: str | os.PathLike[str], program: Program, table: NDArray[np.float64]) -> Examples:
    """All columns are the one input, which is its own target."""
    wanted = [d or 1 for d in program.inputs[0].shape[1:]]
    if len(program.inputs) > 1 or int(np.prod(wanted)) != table.shape[1]:
        raise ExamplesError(f"{path}: {table.shape[1]} columns, the input {program.inputs[0].name!r} needs {wanted}")
    return as_examples({"x": table.reshape(len(table), *wanted)}, program)


# ---- files


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz`` by name, in the plain layout (``layouts.py``).

    Raises:
        ExamplesError: The file cannot be read, or its arrays do not fit each other.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ExamplesError("it holds one bare array; save it with numpy.savez(path, x=..., y=...)")
        with archive:
            return plain_arrays({name: archive[name] for name in archive.files})
    except ExamplesError as error:
        raise ExamplesError(f"{path}: {error}") from error
    except Exception as error:  # zip, header and pickle errors are of many types
        raise ExamplesError(f"{path}: cannot be read as .npz: {error}") from error


def _read_csv(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Column names and the table, float64 [rows, columns]."""
    import csv
    from array import array

    values = array("d")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            _check_header(path, header)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ExamplesError(
                        f"{path}, line {rows.line_num}: {len(row)} values, the header names {len(header)} columns"
                    )
                values.extend(_numbers(path, rows.line_num, header, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExamplesError(f"{path}: cannot be read as .csv: {error}") from error
    return header, np.frombuffer(values, dtype=np.float64).reshape(-1, len(header))


def _check_column(path: str | os.PathLike[str], header: list[str], label: str) -> None:
    if label not in header:
        raise ExamplesError(f"{path}: no column {label!r} for the target; the columns are {header[:20]}")


def _check_header(path: str | os.PathLike[str], header: list[str]) -> None:
    if len(header) < 2 or len(set(header)) != len(header):
        raise ExamplesError(f"{path}: the first line must name at least two columns, each once; got {header[:20]}")
    if all(_is_number(name) for name in header):
        raise ExamplesError(f"{path}: the first line holds numbers; add a header row with the columns' names")


def _numbers(path: str | os.PathLike[str], line: int, header: list[str], row: list[str]) -> list[float]:
    try:
        return [float(text) for text in row]
    except ValueError:
        column, text = next((c, t) for c, t in zip(header, row, strict=True) if not _is_number(t))
        raise ExamplesError(
            f"{path}, line {line}, column {column!r}: {text[:40]!r} is not a number "
            f"(give classes as 0, 1, 2, ... and leave no cell empty)"
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shaped(
    path: str | os.PathLike[str],
    entry: Input,
    columns: Mapping[str, NDArray[Any]],
    table: NDArray[np.float64],
    label: int,
) -> NDArray[Any]:
    """All columns but ``label`` as the one input, folded into its shape."""
    wanted = [d for d in entry.shape[1:] if d is not None]
    if int(np.prod(wanted)) != len(columns):
        raise ExamplesError(
            f"{path}: {len(columns)} feature columns {list(columns)[:20]}, "
            f"input {entry.name!r} of shape {['N', *wanted]} needs {int(np.prod(wanted))}"
        )
    return np.delete(table, label, axis=1).reshape(len(table), *wanted)


# ---- checks


def _taken_apart(value: Any, program: Program) -> tuple[dict[str, Any], Any]:
    """``(arrays by input name, target)`` from any accepted form."""
    if isinstance(value, Examples):
        return dict(value.inputs), value.target
    if program.loss == "reconstruction" and (isinstance(value, np.ndarray) or _lacks_target(value)):
        x = value["x"] if isinstance(value, Mapping) and set(value) == {"x"} else value
        arrays = {program.inputs[0].name: x} if not isinstance(x, Mapping) else dict(x)
        mirrored = [e.name for e in program.inputs if (e.dtype, e.shape) == ("float32", program.target.shape)]
        if not mirrored or mirrored[0] not in arrays:
            raise ExamplesError(f"examples: the target is missing, and so is the input that it equals ({mirrored})")
        return arrays, arrays[mirrored[0]]
    if isinstance(value, tuple | list) and len(value) == 2:
        x, target = value
    elif isinstance(value, Mapping):
        rest = dict(value)
        keys = [key for key in ("target", "y") if key in rest]
        if not keys:
            raise ExamplesError(f"examples: the target is missing: no 'y' or 'target' among {sorted(map(str, rest))}")
        target = rest.pop(keys[0])
        named = any(entry.name in rest for entry in program.inputs) and not isinstance(rest.get("x"), Mapping)
        x = rest["x"] if "x" in rest and not named else rest
    else:
        raise ExamplesError(
            f"examples: expected (x, y), a dictionary with 'x' and 'y', or Examples; got {type(value).__name__}"
        )
    if isinstance(x, Mapping):
        return dict(x), target
    if len(program.inputs) != 1:
        names = [entry.name for entry in program.inputs]
        raise ExamplesError(f"examples: the model has inputs {names}: give a dictionary with an array for each")
    return {program.inputs[0].name: x}, target


def _lacks_target(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"y", "target"} & set(value)


def _checked(program: Program, entry: Input, value: Any, role: str) -> NDArray[Any]:
    """``value`` as an array that can be cast to the entry's dtype without loss."""
    what = f"examples: {role} {entry.name!r}" if role == "input" else "examples: the target"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ExamplesError(f"{what}: rows of different lengths make no array ({error})") from error
    if role == "target":
        array = _as_target(array, entry)
    if array.dtype.kind not in "fiub":
        raise ExamplesError(f"{what}: expected {entry.dtype}, got values of type {array.dtype}")
    _check_shape(what, entry, array)
    if array.size:
        told = program.normalise
        is_raw = told is not None and (entry.name == told.input or (role, program.loss) == ("target", "reconstruction"))
        if array.dtype.kind == "f":
            _check_finite(what, array, told.axis if told is not None and is_raw else array.ndim - 1, program, is_raw)
        _check_values(what, entry.dtype, array)
    return array


def _as_target(array: NDArray[Any], entry: Input) -> NDArray[Any]:
    """``array`` with as many dimensions of 1 at its end as the target has, where it differs in nothing else."""
    wanted = entry.shape[1:]
    if array.ndim and array.shape[1:] != wanted and _without_ones(array.shape[1:]) == _without_ones(wanted):
        return array.reshape(len(array), *(d or 1 for d in wanted))
    return array


def _without_ones(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """``shape`` without the dimensions of 1 at its end."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_shape(what: str, entry: Input, array: NDArray[Any]) -> None:
    wanted = entry.shape[1:]
    if array.ndim and array.shape[1:] == wanted:
        return
    expected = f"[{', '.join(['N', *map(str, wanted)])}]"
    hint = ""
    if array.ndim and array.size == len(array) * int(np.prod([d or 1 for d in wanted])):
        hint = f"; .reshape({', '.join([str(len(array)), *map(str, wanted)])}) would fit"
    raise ExamplesError(f"{what}: expected shape {expected}, got {list(array.shape)}{hint}")


def _check_finite(what: str, array: NDArray[Any], axis: int, program: Program, is_raw: bool) -> None:
    """Raise where a value is infinite, or NaN that the program does not take; ``axis`` counts the columns."""
    low, high = float(array.min()), float(array.max())  # NaN and infinity show in them; no temporary array
    if np.isfinite(low) and np.isfinite(high):
        return
    bad = np.isinf(array) if is_raw and program.missing == "mean" else ~np.isfinite(array)
    if not bad.any():
        return
    remedy = "fill or drop them"
    if is_raw and program.missing == "refuse" and not np.isinf(array).any():
        remedy += ', or let the coordinator set missing = "mean" in [model]'
    columns = ""
    if axis > 0:
        found = np.flatnonzero(bad.any(axis=tuple(i for i in range(array.ndim) if i != axis))).tolist()
        names = ", ".join(str(column) for column in found[:_COLUMNS_SHOWN])
        columns = f", in column {names}{' and others' if len(found) > _COLUMNS_SHOWN else ''} (counted from 0)"
    raise ExamplesError(
        f"{what}: {np.count_nonzero(bad)} of {array.size} values are NaN or infinite{columns}; {remedy}"
    )


def _check_values(what: str, dtype: str, array: NDArray[Any]) -> None:
    """Raise unless every element that is a number survives the cast to ``dtype``."""
    low, high = float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))
    if dtype == "float32":
        least, most = -_FLOAT32_MAX, _FLOAT32_MAX
    elif dtype == "bool":
        least, most = 0.0, 1.0
    else:
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if low < least or high > most:
        raise ExamplesError(f"{what}: values from {low:g} to {high:g} do not fit into {dtype}")
    if dtype != "float32" and array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise ExamplesError(f"{what}: expected whole numbers ({dtype}), got fractions ({array.dtype})")


def _check_labels(examples: Examples, program: Program) -> None:
    labels = examples.target
    if program.ignore_index is not None or program.mask:
        labels = labels[counted_labels(examples.inputs, labels, program)]
        if not labels.size and program.mask:
            raise ExamplesError(
                f"examples: no position counts; {program.mask!r} must be 1 where one does, 0 for padding"
            )
        if not labels.size:
            raise ExamplesError(f"examples: every label is {program.ignore_index}, which this model ignores")
    low, high = float(labels.min()), float(labels.max())
    if program.target.dtype == "int64":
        if low < 0 or (program.classes and high >= program.classes):
            allowed = f"0..{program.classes - 1}" if program.classes else "0 or more"
            raise ExamplesError(f"examples: the target's classes go from {low:g} to {high:g}, the model has {allowed}")
        return
    pair = {"binary_cross_entropy": (0.0, 1.0), "hinge": (-1.0, 1.0)}.get(program.loss)
    if pair is not None and not np.isin(labels, pair).all():
        raise ExamplesError(
            f"examples: the loss {program.loss!r} needs targets {pair[0]:g} and {pair[1]:g}, "
            f"got values from {low:g} to {high:g}"
        )
