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
from edge_sdk.training.data.columns_in_memory import Columns, Table
from edge_sdk.training.data.layout import target_block
from edge_sdk.training.data.npz_file import arrays_of
from edge_sdk.training.data.opening import ARRAYS
from edge_sdk.training.data.reading import describe_rows, read_rows
from edge_sdk.training.data.settings import ExamplesFile
from edge_sdk.training.data.steady import read_steadily
from edge_sdk.training.marks import Marks, take_marks
from edge_sdk.training.masked import counted_elements, counted_values, mask_of, without_unusable
from edge_sdk.training.names import column_names, features_width
from edge_sdk.training.program import Input, Program

__all__ = ["Examples", "ExamplesFile", "as_examples", "counted_labels", "describe_file", "load_examples", "read_npz"]

OVERLAP: Final = "overlap"
"""The one mark that is no column."""

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


def as_examples(value: Any, program: Program) -> Examples:
    """Local examples in any of the usual forms, checked against ``program``.

    Args:
        value: :class:`Examples`, :class:`ExamplesFile`, a :class:`Table` of its rows, ``(x, y)``,
            ``{"x": ..., "y": ...}``, or arrays by input name with ``"target"``; ``x`` may itself hold arrays by input
            name. For a model that learns to reconstruct its input the target may be left out everywhere, and ``x``
            alone will do. A target of shape ``[N, 1]`` is taken where ``[N]`` is expected, and the reverse: dimensions
            of 1 at the end say nothing. Beside its arrays a dictionary may hold the marks of
            :mod:`edge_sdk.training.marks`: ``is_test``, ``group``, ``time`` and ``overlap``.
        program: Names, dtypes and shapes that are expected.

    Raises:
        ExamplesError: Something is missing, or has another shape, type, length or range; says expected and got.
    """
    if isinstance(value, Examples) and value.checked_for == program.digest:
        return value
    if isinstance(value, ExamplesFile):
        return load_examples(value, program)
    if isinstance(value, Table):
        return _of_file(value.file, read_rows(value.file, program, Columns(value.columns)), program)
    marks = Marks()
    if isinstance(value, Mapping):
        value = _by_columns(value, program)
        value, marks = take_marks(value, [entry.name for entry in program.inputs])
    arrays, target = _taken_apart(value, program)
    for entry in program.inputs:
        if entry.name not in arrays:
            raise _misfit(f"input {entry.name!r} is missing", f"; got {sorted(arrays)}")
    inputs: dict[str, NDArray[Any]] = {}
    mask = None
    for entry in sorted(program.inputs, key=lambda entry: entry.name != program.mask):  # the mask first
        inputs[entry.name] = _checked(program, entry, arrays[entry.name], "input", mask)
        mask = mask_of(inputs, program)
    labels = _checked(program, program.target, _by_number(target, program), "target", mask)
    labels = labels.astype(program.target.dtype, copy=False)
    lengths = {**{name: len(array) for name, array in inputs.items()}, "target": len(labels)}
    if len(set(lengths.values())) > 1:
        raise _misfit(f"different numbers of examples: {lengths}")
    if not len(labels):
        raise _misfit("there are none; give at least one example")
    marks.check_count(len(labels))
    is_test, overlap = marks.is_test, marks.overlap_in_order()
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
    mask = mask_of(inputs, program)
    if mask is not None:
        counted &= counted_elements(mask, target.shape)
    return counted


def load_examples(file: ExamplesFile | str | os.PathLike[str], program: Program) -> Examples:
    """Examples from a file.

    Args:
        file: Its path, or where it is and what of it is taken. An ``.npz`` holds arrays ``x`` and ``y`` (or one by each
            input's name, and ``target``); ``.csv``, ``.parquet`` and SQLite hold rows. The columns of a file of rows
            are found by the names of the program's features and inputs; where it names none, all but the target's are
            the one input, in the order of the file.
        program: What they are checked against.

    Raises:
        ExamplesError: The file cannot be read, or what is in it does not fit.
    """
    file = file if isinstance(file, ExamplesFile) else ExamplesFile(Path(file))
    arrays = read_npz(file.path) if file.path.suffix.lower() in ARRAYS else read_rows(file, program)
    return _of_file(file, arrays, program)


def _of_file(file: ExamplesFile, arrays: Mapping[str, Any], program: Program) -> Examples:
    try:
        return as_examples(arrays, program)
    except ExamplesError as error:
        raise error.within(file.path) from error


def describe_file(file: ExamplesFile) -> str:
    """What is in a file of examples, for people; without a program nobody can say whether it fits.

    Raises:
        ExamplesError: It cannot be read.
    """
    if file.path.suffix.lower() not in ARRAYS:
        return describe_rows(file)
    arrays = read_npz(file.path)
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz`` by name, in the plain layout (``layouts.py``).

    Raises:
        ExamplesError: The file cannot be read, or its arrays do not fit each other.
    """
    return read_steadily(Path(path), lambda: arrays_of(Path(path)))


def _by_columns(arrays: Mapping[str, Any], program: Program) -> Mapping[str, Any]:
    """Arrays by input name, put together from columns by the names of features where there are such."""
    if not program.features or not set(arrays) >= set(program.features):
        return arrays
    cells = {"target" if name == "y" else name: column for name, column in arrays.items() if name != OVERLAP}
    file = ExamplesFile(Columns.path, label=("target",) if "target" in cells else ())
    return {**read_rows(file, program, Columns(cells)), **{name: arrays[name] for name in (OVERLAP,) if name in arrays}}


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
            raise _misfit(f"the target is missing, and so is the input that it equals ({mirrored})")
        return arrays, arrays[mirrored[0]]
    if isinstance(value, tuple | list) and len(value) == 2:
        x, target = value
    elif isinstance(value, Mapping):
        rest = dict(value)
        keys = [key for key in ("target", "y") if key in rest]
        if not keys:
            raise _misfit("the target is missing: no 'y' or 'target'", f" among {sorted(map(str, rest))}")
        target = rest.pop(keys[0])
        named = any(entry.name in rest for entry in program.inputs) and not isinstance(rest.get("x"), Mapping)
        x = rest["x"] if "x" in rest and not named else rest
    else:
        raise _misfit(f"expected (x, y), a dictionary with 'x' and 'y', or Examples; got {type(value).__name__}")
    if isinstance(x, Mapping):
        return dict(x), target
    if len(program.inputs) != 1:
        names = [entry.name for entry in program.inputs]
        raise _misfit(f"the model has inputs {names}: give a dictionary with an array for each")
    return {program.inputs[0].name: x}, target


def _misfit(what: str, shown: str = "") -> ExamplesError:
    """What is wrong with examples; ``shown`` may hold values of them and stays on this device."""
    return ExamplesError(f"examples: {what}{shown}", public=f"examples: {what}")


def _by_number(target: Any, program: Program) -> Any:
    """A target of classes by their names as the numbers that the loss asks for."""
    if not program.labels or np.asarray(target).dtype.kind not in "OU":
        return target
    column = Columns({"target": np.asarray(target).ravel()})
    block = target_block(("target",), program, ExamplesFile(column.path))
    return np.concatenate([block.values(rows) for rows in column.rows(("target",))]).reshape(np.shape(target))


def _lacks_target(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"y", "target"} & set(value)


def _checked(
    program: Program, entry: Input, value: Any, role: str, mask: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """``value`` as an array that can be cast to the entry's dtype without loss; a masked value may be anything."""
    what = f"input {entry.name!r}" if role == "input" else "the target"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise _misfit(f"{what}: rows of different lengths make no array", f" ({error})") from error
    if role == "target":
        array = _as_target(array, entry)
    if array.dtype.kind not in "fiub":
        raise _misfit(f"{what}: expected {entry.dtype}, got values of type {array.dtype}")
    _check_shape(what, entry, array)
    if array.size:
        told = program.normalise
        is_raw = told is not None and (entry.name == told.input or (role, program.loss) == ("target", "reconstruction"))
        if array.dtype.kind == "f":
            axis = told.axis if told is not None and is_raw else array.ndim - 1
            counted = _counted(array, axis, role, mask)
            array = without_unusable(array, counted, np.nan if is_raw and program.missing == "mean" else 0.0)
            _check_finite(what, array, axis, program, is_raw)
        _check_values(what, entry.dtype, array)
    return array


def _counted(array: NDArray[Any], axis: int, role: str, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if role == "input" or mask is None:
        return counted_values(mask, array.shape, axis)
    return counted_elements(mask, array.shape) if array.shape[: mask.ndim] == mask.shape else None


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
    raise _misfit(f"{what}: expected shape {expected}, got {list(array.shape)}{hint}")


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
        known = column_names(program.features, program.categories, array.shape[axis])
        is_named = is_raw and features_width(program.features, program.categories) == array.shape[axis]
        names = ", ".join(repr(known[column]) if is_named else str(column) for column in found[:_COLUMNS_SHOWN])
        others = " and others" if len(found) > _COLUMNS_SHOWN else ""
        columns = f", in column {names}{others}{'' if is_named else ' (counted from 0)'}"
    raise _misfit(f"{what}: {np.count_nonzero(bad)} of {array.size} values are NaN or infinite{columns}; {remedy}")


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
        raise _misfit(f"{what}: some values do not fit into {dtype}", f"; they go from {low:g} to {high:g}")
    if dtype != "float32" and array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise _misfit(f"{what}: expected whole numbers ({dtype}), got fractions ({array.dtype})")


def _check_labels(examples: Examples, program: Program) -> None:
    labels = examples.target
    if program.ignore_index is not None or program.mask:
        labels = labels[counted_labels(examples.inputs, labels, program)]
        if not labels.size and program.mask:
            raise _misfit(f"no position counts; {program.mask!r} must be 1 where one does, 0 for padding")
        if not labels.size:
            raise _misfit(f"every label is {program.ignore_index}, which this model ignores")
    low, high = float(labels.min()), float(labels.max())
    if program.target.dtype == "int64":
        if low < 0 or (program.classes and high >= program.classes):
            allowed = f"0..{program.classes - 1}" if program.classes else "0 or more"
            raise _misfit(f"the target's classes are not the model's, {allowed}", f"; they go from {low:g} to {high:g}")
        return
    pair = {"binary_cross_entropy": (0.0, 1.0), "hinge": (-1.0, 1.0)}.get(program.loss)
    if pair is not None and not np.isin(labels, pair).all():
        what = f"the loss {program.loss!r} needs targets {pair[0]:g} and {pair[1]:g}"
        raise _misfit(what, f", got values from {low:g} to {high:g}")
