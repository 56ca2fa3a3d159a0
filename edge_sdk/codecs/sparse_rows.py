"""The rows of tables that are not zero, and the rest apart: for updates that are sparse by nature.

A device that trains embeddings touches the rows of its own users, items or words and no other. Such a row does not get
the averaging of a whole round, and a rotation of everything would spread noise over the rows that nobody touched, which
a server optimiser that adapts its steps takes for movement. So rows that are zero are not sent and stay exactly zero,
and the others get bits enough to stand alone. What is left of the model (dense layers, and tables most of whose rows
have moved) is encoded apart, with the bits that suit the round.

    LEB128      t, the number of tables, at most 64
    tables      for each:
                LEB128  coordinates between the end of the last table and its first one
                LEB128  rows
                LEB128  columns
                LEB128  2 k where k rows are sent, 2 k + 1 where k columns are; at most an eighth of them
                indices of these, ``index_coding.py``; only where k > 0
    LEB128      bytes of the values of the rows and columns that are sent
    values      these, in the order of their coordinates
    rest        the coordinates that are in no table, in their order

The rest has the bits of the plan, or more where it then takes no more bytes than the values. Values and rest
are each a byte that names the codec (``eden``, ``int8`` or ``dense``) and its body, and nothing where
there are no coordinates.

No residual is kept: what is not sent was zero, and what is sent is right in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, Codec, Context, Decoded, Kept, Vectors, setting
from edge_sdk.codecs.dense import Dense
from edge_sdk.codecs.eden import WIDTH_MAX, Eden, bits_for, bits_setting
from edge_sdk.codecs.index_coding import Matrix, decode_indices, encode_indices, indices_bytes_max
from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.codecs.quantised import Int8
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import integer

__all__ = ["ROW_BITS", "SMALL_SIZE", "SparseRows", "Table", "small_codec", "tables_of", "taken_apart"]

SMALL_SIZE: Final = 1024
ROW_BITS: Final = 3
TABLES_MAX: Final = 64
_LINES_A_SENT_ONE: Final = 8
"""Where more than one line in so many has moved, a rotation of all of them is worth more."""
_NUMBER_BYTES_MAX: Final = 5
_HEAD_BYTES_MAX: Final = 1 + _NUMBER_BYTES_MAX + 2  # tables, bytes of the values, two codecs
_WHOLE: Final = (Int8(), Dense())
_VALUE_MAX: Final = 256 * MAGNITUDE_MAX


class Table(NamedTuple):
    """A tensor of which few rows, or few columns, are not zero.

    Attributes:
        start: Its first coordinate.
        rows: Number of its rows.
        columns: Number of its columns; the elements are in C order.
        by_columns: Whether ``lines`` are columns.
        lines: int64[k], rising: those that are not zero.
    """

    start: int
    rows: int
    columns: int
    by_columns: bool
    lines: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Its coordinates."""
        return self.rows * self.columns

    @property
    def line_count(self) -> int:
        """How many lines it has in all."""
        return self.columns if self.by_columns else self.rows

    @property
    def sent(self) -> int:
        """Coordinates of the lines that are not zero."""
        return self.lines.size * (self.rows if self.by_columns else self.columns)

    def positions(self) -> NDArray[np.int64]:
        """int64[sent], rising: where these coordinates are in the vector."""
        if self.by_columns:
            places = np.arange(self.rows)[:, None] * self.columns + self.lines
        else:
            places = self.lines[:, None] * self.columns + np.arange(self.columns)
        return self.start + places.ravel()


@dataclass(frozen=True, slots=True)
class SparseRows(Codec):
    """The rows of tables that are not zero, and the rest apart."""

    name: ClassVar[str] = "sparse_rows"
    wire_id: ClassVar[int] = 8
    bits: float = bits_setting()
    row_bits: int = setting(
        integer(1, WIDTH_MAX),
        ROW_BITS,
        "Bits of a coordinate in a row that is sent of a table; `bits` are those of all other coordinates.",
        allowed=f"a whole number at least 1, at most {WIDTH_MAX}",
        unit="bits",
    )

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        tables = tables_of(delta, context.matrices)
        sections, behind = [pack_number(len(tables))], 0
        for table in tables:
            code = 2 * table.lines.size + int(table.by_columns)
            sections += map(pack_number, (table.start - behind, table.rows, table.columns, code))
            if table.lines.size:
                sections.append(encode_indices(table.lines, table.line_count)[0])
            behind = table.start + table.size
        codecs = self._codecs(*_counts(tables, delta.size))
        parts = (delta[_positions(tables)], delta[_outside(tables, delta.size)])
        values, rest = (_encoded(codec, part, context) for codec, part in zip(codecs, parts, strict=True))
        return b"".join((*sections, pack_number(len(values)), values, rest)), {}

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        tables, values_section, rest_section = taken_apart(body, size)
        count, others = _counts(tables, size)
        values = _decoded(values_section, count, Eden(bits=self.row_bits))
        rest = _decoded(rest_section, others, Eden(bits=max(self.bits, self.row_bits)))
        vector = np.empty(size, dtype=np.float32)
        sent, positions = _outside(tables, size), _positions(tables)
        vector[sent], vector[positions] = rest, values
        sent[positions] = True
        return Decoded(size, np.flatnonzero(sent), vector[sent])

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        # Indices of one line in eight take less than a bit for each line that there is.
        tables = TABLES_MAX * (4 * _NUMBER_BYTES_MAX + indices_bytes_max(1, 1)) + (size >> 3)
        sent = max(1, size // _LINES_A_SENT_ONE)
        values = self._values_codec(sent).body_bytes_max(sent)
        rest = max(self._rest_codec(size, values).body_bytes_max(size), _SMALL_BYTES_MAX)
        return _HEAD_BYTES_MAX + tables + values + rest

    def bytes_max_of(self, tables: Sequence[Table], size: int) -> int:
        """Bytes that the body of a vector of ``size`` coordinates with these tables does not exceed."""
        counts = _counts(tables, size)
        indices = sum(indices_bytes_max(table.lines.size, table.line_count) for table in tables if table.lines.size)
        bodies = (codec.body_bytes_max(n) for codec, n in zip(self._codecs(*counts), counts, strict=True) if n)
        return _HEAD_BYTES_MAX + 4 * _NUMBER_BYTES_MAX * len(tables) + indices + sum(bodies)

    @classmethod
    def for_cohort(cls, cohort: int, adaptive: bool) -> dict[str, Any]:
        """See :meth:`Codec.for_cohort`."""
        return {"bits": bits_for(cohort, adaptive)}

    def _codecs(self, sent: int, others: int) -> tuple[Codec, Codec]:
        """For the values of so many coordinates, and for the rest."""
        values = self._values_codec(max(1, sent))
        return values, self._rest_codec(max(1, others), values.body_bytes_max(sent) if sent else 0)

    def _values_codec(self, count: int) -> Codec:
        return min((Eden(bits=self.row_bits), *_WHOLE), key=lambda codec: codec.body_bytes_max(count))

    def _rest_codec(self, count: int, values_bytes: int) -> Codec:
        if count < SMALL_SIZE:
            return small_codec(count)
        # Dense layers beside large tables are few: for as many bytes as the tables take anyway, they get finer.
        finer = Eden(bits=self.row_bits).fitted(count, values_bytes)
        return Eden(bits=self.bits if finer is None else max(self.bits, finer.bits))


def small_codec(size: int) -> Codec:
    """What sends fewer bytes of a vector of less than ``SMALL_SIZE`` coordinates."""
    return min(_WHOLE, key=lambda codec: codec.body_bytes_max(size))


_SMALL_BYTES_MAX: Final = small_codec(SMALL_SIZE - 1).body_bytes_max(SMALL_SIZE - 1)


def tables_of(vector: NDArray[np.float32], matrices: Sequence[Matrix]) -> tuple[Table, ...]:
    """Which of ``matrices`` are nearly zero in ``vector`` (float32[P]), and where they are not; the 64 largest."""
    found = []
    for start, rows, columns in matrices:
        moved = vector[start : start + rows * columns].reshape(rows, columns) != 0.0
        by_rows = Table(start, rows, columns, False, np.flatnonzero(moved.any(axis=1)))
        by_columns = Table(start, rows, columns, True, np.flatnonzero(moved.any(axis=0)))
        table = min(by_rows, by_columns, key=lambda table: table.sent)
        if _LINES_A_SENT_ONE * table.lines.size <= table.line_count:
            found.append(table)
    found.sort(key=lambda table: table.size, reverse=True)
    return tuple(sorted(found[:TABLES_MAX], key=lambda table: table.start))


def taken_apart(body: memoryview, size: int) -> tuple[tuple[Table, ...], memoryview, memoryview]:
    """The tables, the section of the values and the section of the rest of a body that nobody vouches for.

    Raises:
        DecodeError: The tables are not within ``size`` coordinates, or a length is wrong.
    """
    tables, section = _unpack_tables(body, size)
    values_bytes, section = unpack_number(section, max(len(section), 1), "the number of bytes of the values")
    if values_bytes > len(section):
        raise DecodeError(f"update frame: {values_bytes} bytes of values announced, fewer follow", reason="length")
    return tables, section[:values_bytes], section[values_bytes:]


def _counts(tables: Sequence[Table], size: int) -> tuple[int, int]:
    """Coordinates of the lines that are sent, and coordinates in no table."""
    return sum(table.sent for table in tables), size - sum(table.size for table in tables)


def _positions(tables: Sequence[Table]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *(table.positions() for table in tables)])


def _outside(tables: Sequence[Table], size: int) -> NDArray[np.bool_]:
    """bool[size], true where a coordinate is in no table."""
    outside = np.ones(size, dtype=np.bool_)
    for table in tables:
        outside[table.start : table.start + table.size] = False
    return outside


def _encoded(codec: Codec, values: NDArray[np.float32], context: Context) -> bytes:
    if not values.size:
        return b""
    return bytes((codec.wire_id,)) + codec.encode(values, {}, context)[0]


def _decoded(section: memoryview, count: int, eden: Eden) -> NDArray[np.float32]:
    if not count:
        if len(section):
            raise DecodeError("update frame: values of no coordinates", reason="length")
        return np.empty(0, dtype=np.float32)
    if not len(section):
        raise DecodeError(f"update frame: no values of {count} coordinates", reason="length")
    codec = next((codec for codec in (eden, *_WHOLE) if codec.wire_id == section[0]), None)
    if codec is None:
        raise DecodeError(f"update frame: codec {section[0]} within sparse_rows", reason="codec")
    values = codec.decode(section[1:], count).dense()
    # Written so that a NaN, which is neither above nor below, is refused.
    if not max(float(values.max()), -float(values.min())) <= _VALUE_MAX:
        raise DecodeError(f"update frame: a value is not finite or above {_VALUE_MAX:g}", reason="values")
    return values


def _unpack_tables(body: memoryview, size: int) -> tuple[tuple[Table, ...], memoryview]:
    number, section = unpack_number(body, TABLES_MAX, "the number of tables")
    tables: list[Table] = []
    behind = 0
    for _ in range(number):
        skipped, section = unpack_number(section, size, "a table's place")
        rows, section = unpack_number(section, size, "a table's rows")
        columns, section = unpack_number(section, size, "a table's columns")
        start = behind + skipped
        behind = start + rows * columns
        if not rows or not columns or behind > size:
            raise DecodeError(f"update frame: a table of {rows} x {columns} ends beyond {size}", reason="indices")
        code, section = unpack_number(section, 2 * size + 1, "the number of rows that are sent")
        count, by_columns = code >> 1, bool(code & 1)
        line_count = columns if by_columns else rows
        if _LINES_A_SENT_ONE * count > line_count:
            raise DecodeError(f"update frame: {count} of {line_count} rows, at most an eighth is sent", reason="count")
        lines = np.empty(0, dtype=np.int64)
        if count:
            lines, order, section = decode_indices(section, count, line_count)
            if order is not None:
                raise DecodeError("update frame: rows numbered by columns", reason="indices")
        tables.append(Table(start, rows, columns, by_columns, lines))
    return tuple(tables), section
