"""One SQLite connection behind one lock, with transactions that nest."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from coordinator.store.opening import (
    BUSY_MILLISECONDS,
    MEMORY,
    claim,
    open_for_reading,
    open_for_writing,
    state_error,
)
from edge_sdk.errors import StateError

__all__ = ["Database"]

TRUNCATE_BUSY_MILLISECONDS: Final = 100


class Database:
    """The connection, its lock, and the hooks that keep what is cached in memory true to the disk.

    Args:
        path: The database file, or ``":memory:"``.
        wall: Wall time in seconds since 1970, used to name a damaged file that is set aside.
        readonly: Open an existing file for reading while another process writes it.

    Attributes:
        before_commit: Called inside the outermost transaction, before its commit, if something was written.
        after_commit: Called once after the next outermost commit (the list is emptied by it).
        after_rollback: Called after every rollback: what was cached is read again.

    Raises:
        StateError: The file is damaged (it was renamed), too new, foreign, in use, or cannot be opened.
    """

    def __init__(self, path: Path | str, *, wall: Callable[[], float], readonly: bool = False) -> None:
        self.memory = str(path) == MEMORY
        self.path = Path(path)
        self.readonly = readonly
        self.lock = threading.RLock()
        self.before_commit: list[Callable[[], None]] = []
        self.after_commit: list[Callable[[], None]] = []
        self.after_rollback: list[Callable[[], None]] = []
        self._depth = 0
        self._doomed = False
        self._changes_before = 0
        self._truncate_due = False
        self._transaction = _Transaction(self)
        self._reading = _Reading(self)
        self._claim = None if readonly or self.memory else claim(self.path)
        try:
            self.connection = (
                open_for_reading(self.path) if readonly else open_for_writing(self.path, memory=self.memory, wall=wall)
            )
        except BaseException:
            self._give_up()
            raise

    def transaction(self) -> AbstractContextManager[None]:
        """Take the lock and a write transaction; commit at the end, roll back on an exception; nested ones join."""
        return self._transaction

    def reading(self) -> AbstractContextManager[None]:
        """Take the lock for a few reads, and put SQLite's errors in our own words."""
        return self._reading

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query."""
        with self._reading:
            return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of one query, or None."""
        with self._reading:
            found: tuple[Any, ...] | None = self.connection.execute(sql, parameters).fetchone()
            return found

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one writing statement inside the caller's transaction; returns how many rows it touched."""
        return self.connection.execute(sql, parameters).rowcount

    def write_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one writing statement for many rows inside the caller's transaction."""
        self.connection.executemany(sql, rows)

    def meta(self, key: str) -> str | int | None:
        """One of the single values (lineage, incarnation, ...), or None."""
        found = self.row("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else found[0]

    def set_meta(self, key: str, value: str | int) -> None:
        """Set one of the single values, inside the caller's transaction."""
        self.write(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def truncate_wal_after_commit(self) -> None:
        """Copy the WAL back and cut it to nothing after the next outermost commit, so that no deleted byte stays."""
        self._truncate_due = True

    def close(self) -> None:
        """Close the connection and give up the file."""
        with self.lock:
            if not self.readonly:
                with contextlib.suppress(sqlite3.Error):
                    self._truncate_wal()
            self.connection.close()
            self._give_up()

    def enter(self) -> None:
        self.lock.acquire()
        if self._depth == 0:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                self.lock.release()
                raise state_error(self.path, error) from error
            self._changes_before = self.connection.total_changes
        self._depth += 1

    def leave(self, error: BaseException | None) -> None:
        try:
            self._depth -= 1
            if error is not None:
                # Something may be half written: whatever the outer blocks do with the exception, nothing is kept.
                self._doomed = True
            if self._depth == 0:
                self._finish(error)
            elif isinstance(error, sqlite3.Error):
                raise state_error(self.path, error) from error
        finally:
            self.lock.release()

    def _finish(self, error: BaseException | None) -> None:
        if self._doomed:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise state_error(self.path, error) from error
            if error is None:
                raise StateError(f"{self.path}: nothing was stored, because an inner step of the transaction failed")
            return
        try:
            if self.connection.total_changes != self._changes_before:
                for call in self.before_commit:
                    call()
            self.connection.execute("COMMIT")
        except BaseException as failure:
            self._roll_back()
            if isinstance(failure, sqlite3.Error):
                raise state_error(self.path, failure) from failure
            raise
        calls, self.after_commit = self.after_commit, []
        for call in calls:
            call()
        if self._truncate_due:
            with contextlib.suppress(sqlite3.Error):  # a reader is in the way: the next commit tries again
                self._truncate_wal()

    def _roll_back(self) -> None:
        self._doomed = False
        self._truncate_due = False
        self.after_commit = []
        if self.connection.in_transaction:  # a full disk makes SQLite roll back by itself
            self.connection.execute("ROLLBACK")
        for call in self.after_rollback:
            call()

    def _truncate_wal(self) -> None:
        if self.memory:
            return
        self.connection.execute(f"PRAGMA busy_timeout = {TRUNCATE_BUSY_MILLISECONDS}")
        try:
            busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._truncate_due = bool(busy)
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")

    def _give_up(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None


class _Transaction:
    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.leave(error)


class _Reading:
    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.lock.release()
        if isinstance(error, sqlite3.Error):
            raise state_error(self._database.path, error) from error
