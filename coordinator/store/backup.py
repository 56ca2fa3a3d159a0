"""A copy of the database without any device's updates, to be put back when the disk has failed."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from coordinator.store.database import Database
from edge_sdk.errors import StateError

__all__ = ["BACKUP_MARK", "write_backup"]

BACKUP_MARK = "backup"


def write_backup(database: Database, path: Path) -> None:
    """Write the copy beside ``path``, then put it there at once; it is marked, so that whoever opens it knows.

    Raises:
        StateError: The copy cannot be written, or a transaction is open in this thread.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        os.close(os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600))
        copy = sqlite3.connect(fresh, isolation_level=None)
        try:
            with database.lock:
                if database.connection.in_transaction:
                    raise StateError(f"{path}: no backup can be made within a transaction; make it after the commit")
                database.connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            for table in ("updates", "chunks", "uploads"):
                copy.execute(f"DELETE FROM {table}")
            copy.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, 1)", (BACKUP_MARK,))
            copy.execute("VACUUM")
        finally:
            copy.close()
        fresh.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{path}: the backup could not be written ({error}); check space and permissions") from error
