"""The numbered steps of the database's schema: ``NNNN_name.sql``, applied in order, each in one transaction.

A step that was ever released is never edited: a new one is added. ``PRAGMA user_version`` holds the last one applied.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import NamedTuple

from edge_sdk.errors import StateError

__all__ = ["Migration", "load_migrations", "migrate"]


class Migration(NamedTuple):
    """One step: its number (1, 2, ...) and its SQL."""

    number: int
    sql: str


def load_migrations() -> list[Migration]:
    """The shipped steps in order of their numbers, which run from 1 without a gap."""
    files = sorted(
        (entry for entry in resources.files(__name__).iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    found = [Migration(int(entry.name[:4]), entry.read_text(encoding="utf-8")) for entry in files]
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise StateError(
            f"the installation is damaged: schema steps {[step.number for step in found]}; reinstall edgefed"
        )
    return found


def migrate(connection: sqlite3.Connection, steps: Sequence[Migration], where: str) -> None:
    """Bring the database up to the last of ``steps``.

    Args:
        connection: An open connection in autocommit mode.
        steps: All steps from number 1.
        where: The database's name for messages.

    Raises:
        StateError: The database was written by newer code.
        sqlite3.Error: A step failed; the database stands at the step before it.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(steps):
        raise StateError(
            f"{where}: written by a newer edgefed (schema {version}, this one knows {len(steps)}); "
            "upgrade this coordinator, or restore a backup made with this version"
        )
    for step in steps[version:]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in _statements(step.sql):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {step.number:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _statements(sql: str) -> Iterator[str]:
    # executescript() would commit the open transaction first, so the script is cut into statements here.
    pending = ""
    for line in sql.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        raise sqlite3.OperationalError(f"a schema step ends in an unfinished statement: {pending.strip()[:60]!r}")
