"""A flat set of small named files that are replaced whole: on disk for a device, in memory for the simulator.

An SD card tears writes and loses what was not flushed, so every change is atomic and durable when the call returns:
temporary file, flush of the file, rename, flush of the directory. There is no append and no partial write.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from edge_sdk.errors import StateError
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["DirectoryFiles", "Files", "MemoryFiles", "owner_of"]

logger = logging.getLogger(__name__)


LOCK_NAME: Final = "lock"
TEMPORARY_SUFFIX: Final = ".tmp"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
ERRNOS_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
ERRNOS_LOCKED: Final = (errno.EACCES, errno.EAGAIN)


class Files(Protocol):
    """Named files, each written whole; all methods raise ``StateError`` when the storage fails."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        """Replaces a file by the joined ``parts``, atomically and durably."""

    def rename(self, old: str, new: str) -> None:
        """Moves a file over another one, atomically and durably; ``old`` must exist."""

    def delete(self, name: str) -> None:
        """Removes a file durably; a missing one is no mistake."""

    def names(self) -> list[str]:
        """All names, the longest unwritten first."""

    def size_bytes(self, name: str) -> int | None:
        """Length of a file in bytes, or None where there is none."""


class MemoryFiles:
    """Files in memory: they live as long as this object, hence longer than a simulated crash of what uses them."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self._files.get(name)

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self._files.pop(name, None)  # a rewritten file goes to the end of the order
        # Content that many simulated devices share is kept once, not once a device.
        self._files[name] = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def rename(self, old: str, new: str) -> None:
        if old not in self._files:
            raise StateError(f"rename: there is no file {old!r}")
        self._files[new] = self._files.pop(old)

    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    def names(self) -> list[str]:
        return list(self._files)

    def size_bytes(self, name: str) -> int | None:
        content = self._files.get(name)
        return None if content is None else len(content)


class DirectoryFiles:
    """Files in one directory, which belongs to this process alone as long as the object is open.

    Args:
        path: The directory; made with mode 0700 where it is missing. Half-written files of a power cut are removed.

    Raises:
        StateError: Another process (or object) has the directory open, or it cannot be made, read or locked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock_fd = self._directory_fd = -1
        with self._storage("open"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            with self._storage("open"):
                self._directory_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                for leftover in self.path.glob(f"*{TEMPORARY_SUFFIX}"):
                    logger.info("state: removed half-written %s", leftover)
                    leftover.unlink()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the directory free for another process; a second call does nothing."""
        for descriptor in (self._directory_fd, self._lock_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._directory_fd = self._lock_fd = -1

    def __enter__(self) -> DirectoryFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, name: str) -> bytes | None:
        try:
            with self._storage("read", may_be_missing=True):
                return self._at(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        target = self._at(name)
        temporary = target.with_name(name + TEMPORARY_SUFFIX)
        with self._storage("write", sum(memoryview(part).nbytes for part in parts)):
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    for part in parts:
                        _write_all(descriptor, part)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                temporary.replace(target)
            except OSError:
                temporary.unlink(missing_ok=True)  # on a full disk the half-written file is what is in the way
                raise
            os.fsync(self._directory_fd)

    def rename(self, old: str, new: str) -> None:
        with self._storage(f"rename {old}"):
            self._at(old).replace(self._at(new))
            os.fsync(self._directory_fd)

    def delete(self, name: str) -> None:
        try:
            with self._storage("delete", may_be_missing=True):
                self._at(name).unlink()
                os.fsync(self._directory_fd)
        except FileNotFoundError:
            return

    def names(self) -> list[str]:
        with self._storage("list"):
            found = [
                (entry.stat().st_mtime_ns, entry.name)
                for entry in os.scandir(self.path)
                if entry.name != LOCK_NAME and NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        return [name for _, name in sorted(found)]

    def size_bytes(self, name: str) -> int | None:
        try:
            with self._storage("read", may_be_missing=True):
                return self._at(name).stat().st_size
        except FileNotFoundError:
            return None

    def _at(self, name: str) -> Path:
        if not NAME.fullmatch(name) or name == LOCK_NAME or name.endswith(TEMPORARY_SUFFIX):
            raise ValueError(f"{name!r} is not a name of a state file")
        return self.path / name

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in ERRNOS_LOCKED:
                raise StateError(
                    f"state directory {self.path} is in use by another process (pid {_owner(self._lock_fd)}): "
                    "stop that one, or give this device a directory of its own"
                ) from None
            raise StateError(
                f"state directory {self.path} cannot be locked ({error.strerror}): use a local file system"
            ) from error
        with self._storage("open"):
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)

    @contextmanager
    def _storage(self, action: str, needed_bytes: int = 0, *, may_be_missing: bool = False) -> Iterator[None]:
        """Turns what the operating system says into words that help."""
        try:
            yield
        except OSError as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            if error.errno in ERRNOS_FULL:
                raise StateError(
                    f"state directory {self.path}: no space for {needed_bytes} bytes: free some on that file system, "
                    "or lower cache_bytes_max"
                ) from error
            raise StateError(
                f"state directory {self.path}: cannot {action} ({error.strerror}): check that it is writable by this "
                "user and that the card is healthy"
            ) from error


def owner_of(path: str | os.PathLike[str]) -> str | None:
    """The process (its pid, or "unknown") that has the directory open as :class:`DirectoryFiles`; None for nobody."""
    try:
        descriptor = os.open(Path(path) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _owner(descriptor) if error.errno in ERRNOS_LOCKED else None
    finally:
        os.close(descriptor)
    return None


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"


def _write_all(descriptor: int, part: BytesLike) -> None:
    rest = memoryview(part).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
