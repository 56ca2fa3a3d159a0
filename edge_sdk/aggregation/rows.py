"""All updates of one round at once, for rules that need them: a matrix in a temporary file, read by blocks of columns.

Each update is one row of float32[P] for each vector. The matrix may be far larger than memory: rows are appended to a
file as they come, and reading hands out some columns of all rows at a time. (Reading by position instead of mapping
the file keeps its pages out of this process's memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Facts", "Rows"]

BLOCK_BYTES: Final = 8 << 20
"""Of one block of columns, about."""


class Facts(NamedTuple):
    """What is known of one update beside its vectors; see :class:`edge_sdk.aggregation.algorithm.Contribution`."""

    weight: int
    steps: int
    numbers: Mapping[str, float]


class Rows:
    """The updates of one round, in an order that does not depend on when they came.

    Args:
        size: Number of parameters, P.
        names: The vectors that each update has.
        file: Where the rows are kept, open for reading and writing; closed by :meth:`close`.
        block_bytes: Bytes of one block of columns, about.
    """

    def __init__(self, size: int, names: Sequence[str], file: IO[bytes], block_bytes: int = BLOCK_BYTES) -> None:
        self.size = size
        self._names = tuple(names)
        self._file = file
        self._block_bytes = block_bytes
        self._rows: list[tuple[bytes, int, Facts]] = []

    def __len__(self) -> int:
        """How many updates there are."""
        return len(self._rows)

    def append(self, key: bytes, vectors: Mapping[str, NDArray[np.float32]], facts: Facts) -> None:
        """Adds one update.

        Args:
            key: Its place in the order, such as its digest: rows are sorted by it.
            vectors: float32[P] by name.
            facts: What is known beside.
        """
        self._file.seek(0, 2)
        for name in self._names:
            self._file.write(np.ascontiguousarray(vectors[name], dtype=np.float32).data)
        self._rows.append((key, len(self._rows), facts))

    @property
    def facts(self) -> list[Facts]:
        """Weight, steps and numbers of each update, in the order of the rows."""
        return [facts for _, _, facts in self._ordered()]

    def columns(self, name: str = "delta") -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Some columns of all rows at a time: where they stand in the vector, and float32[updates, columns]."""
        at = self._names.index(name)
        order = [number * len(self._names) + at for _, number, _ in self._ordered()]
        width = max(1, min(self.size, self._block_bytes // (4 * max(len(order), 1))))
        for start in range(0, self.size, width):
            stop = min(start + width, self.size)
            block = np.empty((len(order), stop - start), dtype=np.float32)
            for row, number in zip(block, order, strict=True):
                self._file.seek(4 * (number * self.size + start))
                if self._file.readinto(row.data) != row.nbytes:  # type: ignore[attr-defined]
                    raise OSError("a temporary file of updates is shorter than what was written into it")
            yield slice(start, stop), block

    def by_columns(
        self, rule: Callable[[NDArray[np.float32]], NDArray[Any]], name: str = "delta"
    ) -> NDArray[np.float32]:
        """float32[P]: ``rule`` of each block, float32[updates, columns] -> [columns]."""
        vector = np.empty(self.size, dtype=np.float32)
        for where, block in self.columns(name):
            vector[where] = rule(block)
        return vector

    def close(self) -> None:
        """Gives the file up."""
        self._file.close()

    def _ordered(self) -> list[tuple[bytes, int, Facts]]:
        return sorted(self._rows, key=lambda row: row[:2])
