"""Which life of the federation this database belongs to: its lineage, its incarnations, and whether it was restored.

A small file beside the database, the *witness*, remembers how far the database had come. A restored backup is behind
it, and so begins a new lineage (rule 2). The witness counts incarnations and the *generation*: how many rounds were
opened or ended. It is replaced after the commit that it tells of; a crash in between leaves it behind the database,
which is harmless. Two cases it cannot see: the whole directory was put back, witness and all (whoever does that calls
``Store.new_lineage``), or a file copy that was made during the very round that is still open (then only updates of that
round are lost, and count as missing). A copy by ``Store.backup`` carries a mark and is always recognised.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from coordinator.store.backup import BACKUP_MARK
from coordinator.store.database import Database

__all__ = ["Lineage", "Witness", "read_witness", "write_witness"]

_log = logging.getLogger(__name__)

_BYTES_MAX: Final = 4096
EPOCH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Witness:
    """The lineage (hexadecimal), the highest incarnation and the highest generation that were committed."""

    lineage: str
    incarnation: int
    generation: int


def read_witness(path: Path) -> Witness | None:
    """The witness in ``path``, or None if there is none or it cannot be understood."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_BYTES_MAX))
        return Witness(str(value["lineage"]), int(value["incarnation"]), int(value["generation"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def write_witness(path: Path, witness: Witness) -> None:
    """Replace the file at once and for good (it survives a power cut).

    Raises:
        OSError: The directory cannot be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(json.dumps(asdict(witness)).encode())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Lineage:
    """The three numbers in the database, and their witness.

    Args:
        database: The open database.
        new_id: ``new_id(n)`` gives n random bytes.
    """

    def __init__(self, database: Database, new_id: Callable[[int], bytes]) -> None:
        self._database = database
        self._new_id = new_id
        self._path = None if database.memory else Path(f"{database.path}.witness")

    def begin(self) -> bool:
        """Give a new database its first lineage; returns whether an old one was restored and needs another."""
        if self._database.meta("lineage") is not None:
            return self._is_restored()
        with self._database.transaction():
            self.renew()
        return False

    def renew(self) -> bytes:
        """Set a new lineage, inside the caller's transaction."""
        lineage = self._new_id(EPOCH_BYTES)
        self._database.set_meta("lineage", lineage.hex())
        self._database.write("DELETE FROM meta WHERE key = ?", (BACKUP_MARK,))
        witness = self._witness()
        if witness is not None:
            # The numbers never go back, so that devices see a later incarnation.
            self._database.set_meta("incarnation", max(self._number("incarnation"), witness.incarnation))
            self._database.set_meta("generation", max(self._number("generation"), witness.generation))
        self.advance()
        return lineage

    def next_incarnation(self) -> int:
        """Count one more start, inside the caller's transaction."""
        incarnation = self._number("incarnation") + 1
        self._database.set_meta("incarnation", incarnation)
        self.advance()
        return incarnation

    def advance(self) -> None:
        """Count one more generation, inside the caller's transaction; the witness learns of it after the commit."""
        self._database.set_meta("generation", self._number("generation") + 1)
        if self._path is not None and self._testify not in self._database.after_commit:
            self._database.after_commit.append(self._testify)

    def _is_restored(self) -> bool:
        if self._path is None:
            return False
        witness = self._witness()
        if self._database.meta(BACKUP_MARK) is not None:
            return True
        if witness is None:
            return self._number("incarnation") > 0  # moved here without its witness: nobody knows how old it is
        return (
            witness.lineage != self._database.meta("lineage")
            or witness.incarnation > self._number("incarnation")
            or witness.generation > self._number("generation")
        )

    def _witness(self) -> Witness | None:
        return None if self._path is None else read_witness(self._path)

    def _number(self, key: str) -> int:
        return int(self._database.meta(key) or 0)

    def _testify(self) -> None:
        assert self._path is not None
        lineage = str(self._database.meta("lineage"))
        try:
            write_witness(self._path, Witness(lineage, self._number("incarnation"), self._number("generation")))
        except OSError as error:
            # The commit stands; a witness that lags only makes a restored backup harder to notice.
            _log.warning("%s: cannot be written (%s)", self._path, error)
