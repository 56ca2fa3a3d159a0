"""Data sets: examples of many devices before a model is known; how they are dealt to devices is in ``partitions``.

A data set is what one device's examples are, of all devices together: arrays by name, or the rows of a table, and the
marks ``is_test``, ``group``, ``time`` and ``overlap`` (see ``edge_sdk.training.marks``). Nothing is scaled: a model
takes the values that are in the file.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.cli.device_config import load_data_table
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.data.columns import Flags, Times, texts
from edge_sdk.training.data.columns_in_memory import Columns, Table
from edge_sdk.training.data.layout import used_columns
from edge_sdk.training.data.opening import ARRAYS, SUFFIXES
from edge_sdk.training.data.reading import read_table
from edge_sdk.training.examples import Examples, ExamplesFile, read_npz
from edge_sdk.training.marks import Marks, take_marks

__all__ = ["Dataset", "as_dataset", "column_values", "load_dataset"]

TARGETS: Final = ("target", "y")
"""Names of the array to learn, the first that is there."""

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class Dataset:
    """Examples of many devices.

    Args:
        x: An array [n, ...], arrays by name for a model with several inputs, or :class:`Examples`. Arrays by name may
            hold everything else too, as an ``.npz`` file does: the target and the marks.
        y: The target, [n, ...]: class labels of any rank, or values. None where ``x`` holds it, or where a model is to
            reconstruct its input.
        is_test: bool[n], True for the examples that the publisher set aside for testing.
        group: [n] key (whole number or text) of the person or machine that an example came from.
        time: [n] what the examples are in the order of.
        name: What to call the data in reports.

    Attributes:
        arrays: Arrays by name, the target among them. Those of another length than ``n`` belong to no example.
        marks: The marks.
        name: See above.
        file: For rows of a table, where they came from and what is to be taken of them; None for arrays. The rows are
            then what is counted and dealt, also where windows of them are the examples.

    Raises:
        ExamplesError: There are no examples, or inputs, target and marks do not fit each other.
    """

    __slots__ = ("_count", "arrays", "file", "marks", "name")

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        is_test: Any = None,
        group: Any = None,
        time: Any = None,
        name: str = "data",
    ) -> None:
        given = {"is_test": is_test, "group": group, "time": time}
        named = _named(x, y) | {key: value for key, value in given.items() if value is not None}
        rest, marks = take_marks(named)
        self._fill({key: np.asarray(value) for key, value in rest.items()}, marks, name, None)
        self._check_some()
        if not self.inputs or ("x" in self.arrays and "x" not in self.inputs):
            raise ExamplesError(
                f"{name}: inputs and target have different numbers of examples: {_described(self.arrays)}"
            )

    @classmethod
    def of_table(cls, table: Table) -> Self:
        """The rows of a file."""
        made = object.__new__(cls)
        made._fill(table.columns, _marks_of(table), table.file.path.stem, table.file)
        made._check_some()
        return made

    def _fill(self, arrays: Arrays, marks: Marks, name: str, file: ExamplesFile | None) -> None:
        self.arrays, self.marks, self.name, self.file = arrays, marks, name, file
        leading = arrays.get(self.target_name or "x", next(iter(arrays.values()), np.empty(0)))
        self._count = len(leading) if leading.ndim else 0
        marks.check_count(self._count)

    def _check_some(self) -> None:
        if not self._count:
            raise ExamplesError(f"{self.name}: there are no examples; got {_described(self.arrays)}")

    def __len__(self) -> int:
        return self._count

    @property
    def target_name(self) -> str | None:
        """Name of the array to learn; None where there is none, or several columns are."""
        if self.file is not None:
            label = used_columns(tuple(self.arrays), self.file).label
            return label[0] if len(label) == 1 else None
        return next((name for name in TARGETS if name in self.arrays), None)

    @property
    def is_windowed(self) -> bool:
        """Whether windows of the rows are the examples, so that rows of one series must stay together."""
        return self.file is not None and self.file.window is not None

    @property
    def inputs(self) -> Arrays:
        """The arrays that models may take, each [n, ...], by name."""
        return {k: v for k, v in self.arrays.items() if k != self.target_name and v.ndim and len(v) == self._count}

    @property
    def x(self) -> NDArray[Any]:
        """The only input.

        Raises:
            ExamplesError: There are several, or none.
        """
        inputs = self.inputs
        if "x" in inputs:
            return inputs["x"]
        if len(inputs) != 1:
            raise ExamplesError(f"{self.name}: has the inputs {sorted(inputs)}, and no single one")
        return next(iter(inputs.values()))

    @property
    def y(self) -> NDArray[Any]:
        """The target.

        Raises:
            ExamplesError: There is none.
        """
        if self.target_name is None:
            raise ExamplesError(f"{self.name}: has no target, 'y' or 'target'; got {_described(self.arrays)}")
        return self.arrays[self.target_name]

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64[n]: one class for each example, from 0; None where the target is none, or several a position."""
        if self.target_name is None:
            return None
        labels = self.y.reshape(self._count, -1)
        if labels.shape[1] != 1:
            return None
        labels = labels[:, 0] if self.file is None else _typed(labels[:, 0])
        if labels.dtype.kind not in "buiU":
            return None
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)

    @property
    def examples(self) -> Any:
        """The examples as :func:`edge_sdk.training.examples.as_examples` takes them."""
        if self.file is not None:
            return Table(self.file, self._columns())
        marks = {name: getattr(self.marks, name) for name in ("is_test", "group", "time")}
        marks = {name: value for name, value in marks.items() if value is not None}
        return {**self.arrays, **marks, **({"overlap": self.marks.overlap} if self.marks.overlap else {})}

    def _columns(self) -> Arrays:
        """The columns of a table, with the mark that it has by now."""
        if self.marks.is_test is None:
            return self.arrays
        return {**self.arrays, "is_test": self.marks.is_test}

    def part(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at ``indices`` (int64[m]) in that order; views when they are one unbroken ascending run."""
        run = slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0)
        unbroken = run.stop - run.start == len(indices) and bool(np.all(np.diff(indices) == 1))
        pick: Any = run if unbroken else indices
        arrays = {k: v[pick] if v.ndim and len(v) == self._count else v for k, v in self.arrays.items()}
        marks = {name: getattr(self.marks, name) for name in ("is_test", "group", "time")}
        marks = {name: None if value is None else value[pick] for name, value in marks.items()}
        return self._made(arrays, Marks(**marks, overlap=self.marks.overlap))

    def marked(self, is_test: NDArray[np.bool_] | None) -> Dataset:
        """The same examples with another mark ``is_test``, or with none."""
        own = "" if self.file is None else used_columns(tuple(self.arrays), self.file).is_test
        arrays = {name: array for name, array in self.arrays.items() if name != own}
        return self._made(arrays, replace(self.marks, is_test=is_test))

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """The same examples, the only input in another shape, e.g. ``(784,)`` or ``(1, 28, 28)``; nothing is copied.

        Raises:
            ExamplesError: There are several inputs, or the shape has another number of elements.
        """
        x = self.x
        name = next(key for key, array in self.arrays.items() if array is x)
        if int(np.prod(shape)) != int(np.prod(x.shape[1:])):
            raise ExamplesError(
                f"{self.name}: an example has shape {list(x.shape[1:])} and cannot be reshaped to {list(shape)}"
            )
        return self._made({**self.arrays, name: x.reshape(len(x), *shape)}, self.marks)

    def save(self, path: Path) -> None:
        """Writes the examples where devices and coordinators read them: arrays as ``.npz``, rows as ``.csv``.

        Raises:
            ConfigurationError: The path has another ending.
        """
        suffix = ".npz" if self.file is None else ".csv"
        if path.suffix != suffix:
            what = "arrays" if self.file is None else "rows of a table"
            raise ConfigurationError(f"{path}: {self.name} has {what}; write them into a file that ends in {suffix}")
        if self.file is None:
            np.savez(path, **self.examples)
            return
        columns = self._columns()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def _made(self, arrays: Arrays, marks: Marks) -> Self:
        made = object.__new__(type(self))
        made._fill(arrays, marks, self.name, self.file)
        return made


def as_dataset(value: Any, name: str = "data") -> Dataset:
    """Examples in any form that a device takes: ``(x, y)``, arrays, :class:`Examples`, or a file.

    Raises:
        ConfigurationError: They are in none of these forms, or do not fit each other.
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Table):
        return Dataset.of_table(value)
    if isinstance(value, str | Path | ExamplesFile):
        return load_dataset(value)
    if isinstance(value, tuple | list) and len(value) == 2:
        return Dataset(*value, name=name)
    return Dataset(value, name=name)


def load_dataset(source: str | Path | ExamplesFile) -> Dataset:
    """Load a data set.

    Args:
        source: ``"digits"`` (1,797 images of 8 x 8 bundled with scikit-learn, as 64 features in 0..1); a file that a
            device takes, as path or with what is to be taken of it; or a ``.toml`` whose table ``[data]`` says so, as
            a ``device.toml`` does.

    Raises:
        ConfigurationError: The source is unknown, cannot be read, or what is in it does not fit.
    """
    if source == "digits":
        return _digits()
    file = source if isinstance(source, ExamplesFile) else _file_of(Path(source))
    suffix = file.path.suffix.lower()
    if suffix in ARRAYS:
        arrays = read_npz(file.path)
        try:
            return Dataset(arrays, name=file.path.stem)
        except ExamplesError as error:
            raise error.within(file.path) from error
    if suffix not in SUFFIXES:
        raise ConfigurationError(
            f"data: {str(source)!r} is neither 'digits' nor a file that ends in {', '.join(SUFFIXES)} or .toml"
        )
    return Dataset.of_table(read_table(file))


def _file_of(path: Path) -> ExamplesFile:
    if path.suffix != ".toml":
        return ExamplesFile(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("data", {})
        return load_data_table(table, path.absolute().parent)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _marks_of(table: Table) -> Marks:
    """What the columns of a table say of each row."""
    header = tuple(table.columns)
    used = used_columns(header, table.file)
    (rows,) = Columns(table.columns).rows(header)
    window = table.file.window
    return Marks(
        is_test=Flags(used.is_test).values(rows).astype(bool) if used.is_test else None,
        group=np.array(texts(rows, used.group)) if used.group else None,
        time=Times(used.time).values(rows) if used.time else None,
        overlap=window.length + window.horizon - 1 if window else 0,
    )


def column_values(dataset: Dataset, name: str) -> list[Any]:
    """What different values an array of one value for each example has: numbers, or texts."""
    found: list[Any] = np.unique(_typed(dataset.arrays[name])).tolist()
    return [value for value in found if value == value and value != ""]


def _typed(cells: NDArray[Any]) -> NDArray[Any]:
    """The cells of a column as whole numbers, fractions or texts, whatever they all are; an empty number is NaN."""
    if cells.dtype == object:
        (rows,) = Columns({"cell": cells}).rows(("cell",))
        written = np.array(texts(rows, "cell"))
        try:
            cells = np.where(written == "", "nan", written).astype(np.float64)
        except ValueError:
            return written
    is_whole = cells.dtype.kind == "f" and np.array_equal(cells, np.rint(cells))
    return cells.astype(np.int64) if is_whole else cells


def _named(x: Any, y: Any) -> dict[str, Any]:
    """The arrays by name, in whatever form they come."""
    if isinstance(x, Examples):
        marks = {} if x.is_test is None else {"is_test": x.is_test}
        named = {**x.inputs, "target": x.target, **marks, **({"overlap": x.overlap} if x.overlap else {})}
    elif isinstance(x, Mapping):
        inner = x["x"] if isinstance(x.get("x"), Mapping) else {}
        named = {**{k: v for k, v in x.items() if not isinstance(v, Mapping)}, **inner}
    else:
        named = {"x": x}
    if y is None:
        return named
    if set(TARGETS) & named.keys():
        raise ExamplesError("examples: there are two targets, y and one among the arrays; give one")
    return {**named, "target" if isinstance(x, Mapping) else "y": y}


def _described(arrays: Arrays) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"


def _digits() -> Dataset:
    """A sample that is made here: its sixteen shades of grey become numbers in 0..1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError("data: 'digits' needs scikit-learn; install edgefed[sim]") from error
    x, y = load_digits(return_X_y=True)
    return Dataset((x / 16.0).astype(np.float32), y.astype(np.int64), name="digits")
