"""Opening the database file: who may, what is refused, what is done with a damaged one, and errors in our own words.

Why these settings: WAL and ``synchronous=FULL`` make a commit one append and one fsync; ``secure_delete`` overwrites
what is deleted (rule 14: nothing outlives its use); pages of 8 KiB were the cheapest for updates of 9-14 kB; the WAL
grows to 32 MB before it is copied back, so that most payloads of a small round are deleted before they were ever
written a second time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from coordinator.store.migrations import Migration, load_migrations, migrate
from edge_sdk.errors import StateError

__all__ = [
    "BUSY_MILLISECONDS",
    "MEMORY",
    "backup_path",
    "claim",
    "open_for_reading",
    "open_for_writing",
    "state_error",
]

MEMORY: Final = ":memory:"
BUSY_MILLISECONDS: Final = 5000
APPLICATION_ID: Final = 0x45464C31  # "EFL1", so that another program's database is never taken for ours
PAGE_BYTES: Final = 8192
WAL_BYTES_MAX: Final = 32 << 20
CACHE_KILOBYTES: Final = 8192

_SETTINGS: Final = (
    f"page_size = {PAGE_BYTES}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "secure_delete = ON",
    "temp_store = MEMORY",
    f"cache_size = -{CACHE_KILOBYTES}",
    f"wal_autocheckpoint = {WAL_BYTES_MAX // PAGE_BYTES}",
    f"journal_size_limit = {WAL_BYTES_MAX}",
)

_MODE: Final = "check the owner and mode of the file and of its directory"
_EXPLANATIONS: Final = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space, nothing of this step was stored",
    sqlite3.SQLITE_IOERR: "the disk could not be read or written; check it and its free space",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; restart the coordinator, which sets it aside and says what next",
    sqlite3.SQLITE_NOTADB: "this file is not a database",
    sqlite3.SQLITE_BUSY: f"locked by another program for {BUSY_MILLISECONDS / 1000:g} s; close what writes to it",
    sqlite3.SQLITE_LOCKED: "locked by another program; close what writes to it",
    sqlite3.SQLITE_READONLY: f"not writable; {_MODE}",
    sqlite3.SQLITE_CANTOPEN: f"cannot be opened; {_MODE}",
    sqlite3.SQLITE_PERM: f"cannot be opened; {_MODE}",
    sqlite3.SQLITE_CONSTRAINT: "the step contradicts what is stored; nothing of it was kept",
}


def backup_path(path: Path) -> Path:
    """Where the coordinator keeps the backup of the database ``path``."""
    return path.with_name(f"{path.name}.backup")


def state_error(path: Path, error: sqlite3.Error) -> StateError:
    """``error`` as a StateError that names the file and the remedy."""
    explanation = "the database cannot be used (is it closed?)"
    if _code(error) is not None:
        explanation = _EXPLANATIONS.get(_code(error) or 0, "the database refused the step")
    return StateError(f"{path}: {explanation} (SQLite: {error})")


def claim(path: Path) -> IO[bytes]:
    """The lock that makes this process the only writer; closing the file gives it up, as does the process's end.

    Raises:
        StateError: Another coordinator holds it, or the directory is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(Path(f"{path}.lock").open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Made here for its mode: the journal and the WAL, which inherit it, hold what devices sent.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            undo.pop_all()
        return file
    except BlockingIOError:
        raise StateError(
            f"{path}: another coordinator uses this database; stop it, or give this one its own state_dir"
        ) from None
    except OSError as error:
        raise StateError(
            f"{path}: cannot be opened for writing ({error.strerror}); check the owner and mode of state_dir and the "
            "space on its file system"
        ) from error


def open_for_writing(path: Path, *, memory: bool, wall: Callable[[], float]) -> sqlite3.Connection:
    """A connection in autocommit mode to a sound database with the newest schema.

    Raises:
        StateError: The file is damaged (it was renamed), foreign, too new, or cannot be used.
    """
    try:
        connection = _connect(MEMORY if memory else str(path))
        try:
            _prepare(connection, load_migrations(), path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        if memory or _code(error) not in (None, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise state_error(path, error) from error
        raise _set_aside(path, int(wall()), error) from error
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, to a database that another process may be writing.

    Raises:
        StateError: There is none, or its schema is not this version's.
    """
    if not path.is_file():
        raise StateError(f"{path}: no such database; is state_dir right, and did the coordinator ever start?")
    try:
        connection = _connect(f"{path.absolute().as_uri()}?mode=ro")
        connection.execute("PRAGMA query_only = ON")
        version, application = _identity(connection)
    except sqlite3.Error as error:
        raise state_error(path, error) from error
    known = len(load_migrations())
    if (version, application) != (known, APPLICATION_ID):
        connection.close()
        raise StateError(
            f"{path}: has schema {version}, this edgefed reads {known}; use the version that the coordinator runs"
        )
    return connection


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name,
        uri=name.startswith("file:"),
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_MILLISECONDS / 1000,
    )


def _prepare(connection: sqlite3.Connection, steps: Sequence[Migration], path: Path) -> None:
    version, application = _identity(connection)
    foreign = application or version or connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and foreign:
        raise StateError(f"{path}: a database of another program; set state_dir to a directory of its own")
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}").fetchall()
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    if application != APPLICATION_ID:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    migrate(connection, steps, str(path))


def _identity(connection: sqlite3.Connection) -> tuple[int, int]:
    names = ("user_version", "application_id")
    version, application = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int(version), int(application)


def _set_aside(path: Path, seconds: int, error: sqlite3.Error) -> StateError:
    aside = path.with_name(f"{path.name}.corrupt-{seconds}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    backup = backup_path(path)
    named = f"the last backup ({backup.name})" if backup.is_file() else "the last backup"
    return StateError(
        f"{path}: the database is damaged ({error}); it was renamed to {aside.name}. Check the disk or SD card, then "
        f"copy {named} to {path.name} and start again; or start again without one, and the model begins anew "
        "from its initial parameters"
    )


def _code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF
