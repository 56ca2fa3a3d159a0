"""Rows out of an SQLite database, which is opened for reading alone.

Whoever writes to it is never disturbed for longer than the rows take to be read, and what is read is the state of one
moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from edge_sdk.training.data.source import Rows, file_error, rows_at_once

if TYPE_CHECKING:
    from sqlite3 import Connection, Cursor

__all__ = ["SqliteFile"]

LOCKED_SECONDS_MAX: Final = 5.0


class SqliteFile:
    """See :class:`edge_sdk.training.data.source.Source`.

    Args:
        path: The database.
        table: Name of a table, whose rows come in the order of their rowid, or of a view.
        query: A SELECT, in place of ``table``; its rows come in its own order.
    """

    is_snapshot: Final = True

    def __init__(self, path: Path, *, table: str = "", query: str = "") -> None:
        self.path = path
        self._table = table
        self._query = query

    def header(self) -> tuple[str, ...]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        with self._connection() as connection:
            names = tuple(entry[0] for entry in self._selected(connection, ()).description or ())
        if not names or len(set(names)) != len(names):
            what = "its columns must have names, each once; give them with AS"
            raise file_error(self.path, what, shown=f"; got {list(names)[:20]}")
        return names

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """See :class:`edge_sdk.training.data.source.Source`."""
        with self._connection() as connection:
            cursor = self._selected(connection, columns)
            positions = {entry[0]: at for at, entry in enumerate(cursor.description)}
            number, size = 1, rows_at_once(len(positions))
            while found := cursor.fetchmany(size):
                cells = list(zip(*found, strict=True))
                chosen = {name: cells[positions[name]] for name in columns}
                yield Rows(self.path, "row", range(number, number + len(found)), chosen)
                number += len(found)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        import sqlite3  # here, not above: most devices have no database

        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self.path.absolute()))}?mode=ro", uri=True, timeout=LOCKED_SECONDS_MAX
            )
            with closing(connection):
                reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
                allowed = {*reading, sqlite3.SQLITE_RECURSIVE}
                connection.set_authorizer(
                    lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
                )
                yield connection
        except sqlite3.Error as error:
            raise file_error(self.path, "cannot be read as an SQLite database", shown=f": {error}") from error

    def _selected(self, connection: Connection, columns: Sequence[str]) -> Cursor:
        """A cursor over all rows, of these columns; of all that there are where none are named."""
        import sqlite3

        if self._query:
            return connection.execute(self._query)
        names = ", ".join(map(_quoted, columns)) or "*"
        select = f"SELECT {names} FROM {_quoted(self._table)}"
        try:
            # An index might give the rows in another order.
            return connection.execute(f"{select} ORDER BY rowid")
        except sqlite3.OperationalError as error:
            if "rowid" not in str(error):
                raise
            return connection.execute(select)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
