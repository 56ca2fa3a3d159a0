"""Files that somebody else is writing while they are read.

A logger appends, a rotation cuts a file to nothing or puts another one in its place. What was appended behind the part
that is read does no harm; anything else is noticed afterwards, and the file is read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edge_sdk.errors import ExamplesError
from edge_sdk.training.data.source import file_error

__all__ = ["read_steadily"]

ATTEMPTS: Final = 4
PAUSE_SECONDS: Final = 0.1
"""After the first attempt; twice as long after each further one."""
BLOCK_BYTES: Final = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Mark:
    """A file as it was: which one, how long, its first bytes, and the last ones of that length."""

    identity: tuple[int, int]
    size: int
    head: bytes
    tail: bytes


def read_steadily(path: Path, read: Callable[[], T]) -> T:
    """What ``read`` gives, of a file that did not change below it except by growing.

    Args:
        path: The file.
        read: Reads it from the start; called again where it changed.

    Raises:
        ExamplesError: Of ``read``, where the file had not changed; or it changed in every attempt.
    """
    failure: ExamplesError | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        before = _mark(path)
        failure = None
        try:
            result = read()
        except ExamplesError as error:
            failure = error
        if _is_the_same(path, before):
            if failure is not None:
                raise failure
            return result
    what = f"was cut short or replaced while it was read, {ATTEMPTS} times in a row; write a new file beside it, "
    what += "and rename it when it is complete"
    raise file_error(path, what) from failure


def _mark(path: Path) -> _Mark | None:
    """None for a file that cannot be looked at: whoever reads it says why."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _Mark((status.st_dev, status.st_ino), status.st_size, *_ends(file.fileno(), status.st_size))
    except OSError:
        return None


def _is_the_same(path: Path, before: _Mark | None) -> bool:
    if before is None:
        return _mark(path) is None
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return (
                (status.st_dev, status.st_ino) == before.identity
                and status.st_size >= before.size
                and _ends(file.fileno(), before.size) == (before.head, before.tail)
            )
    except OSError:
        return False


def _ends(descriptor: int, size: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of the first ``size``."""
    block = min(size, BLOCK_BYTES)
    return os.pread(descriptor, block, 0), os.pread(descriptor, block, size - block)
