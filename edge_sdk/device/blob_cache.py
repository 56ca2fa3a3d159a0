"""Programs and parameters that a device has already fetched, by SHA-256, so that it need not fetch them again.

A file is the content itself and its name is the digest: that is its checksum, and ``sha256sum`` can check it too.
Losing an entry only costs a download, so trouble here is logged and never raised.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import Final

from edge_sdk.device.files import Files
from edge_sdk.errors import StateError
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["KINDS", "PARAMETERS_KEPT", "BlobCache"]

logger = logging.getLogger(__name__)

KINDS: Final = ("program", "parameters")
PARAMETERS_KEPT: Final = 2
"""The newest parameters, and those before: a device that trains on the older ones can still finish."""

NAME: Final = re.compile(rf"({'|'.join(KINDS)})-([0-9a-f]{{64}})")


class BlobCache:
    """A bounded cache of content by digest, the least recently used going first; for any thread.

    Args:
        files: Where the entries are; files of other names are left alone.
        bytes_max: Bytes of all entries together; 0 for none.

    Raises:
        StateError: The files cannot be listed.
    """

    def __init__(self, files: Files, bytes_max: int) -> None:
        self._files = files
        self._bytes_max = bytes_max
        self._sizes: dict[str, int] = {}  # by file name, the least recently used first
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        for name in files.names():
            if NAME.fullmatch(name):
                self._sizes[name] = files.size_bytes(name) or 0
        self._make_room(0, parameters_kept=PARAMETERS_KEPT)

    def get(self, digest: bytes) -> bytes | None:
        """The content of ``digest``, or None; an entry that turns out corrupt is deleted."""
        with self._lock:
            for kind in KINDS:
                name = f"{kind}-{digest.hex()}"
                if name in self._sizes:
                    return self._read(name, digest)
            return None

    def holds(self, digest: bytes, kind: str) -> bool:
        """Whether the content is here and was checked since the start; it then counts as used."""
        name = f"{kind}-{digest.hex()}"
        with self._lock:
            if name not in self._verified:
                return False
            self._sizes[name] = self._sizes.pop(name)
            return True

    def digests(self, kind: str) -> tuple[bytes, ...]:
        """What of one kind is here, the most recently used first; not all of it was checked yet."""
        with self._lock:
            found = [NAME.fullmatch(name) for name in reversed(self._sizes)]
        return tuple(bytes.fromhex(match[2]) for match in found if match is not None and match[1] == kind)

    def put(self, digest: bytes, data: BytesLike, kind: str) -> bool:
        """Keeps ``data``, which was checked against ``digest``; False where it does not fit or cannot be written.

        Raises:
            ValueError: ``kind`` is not one of ``KINDS``, or ``digest`` is not 32 bytes.
        """
        if kind not in KINDS or len(digest) != 32:
            raise ValueError(f"cache: kind {kind!r} is not one of {KINDS}, or the digest is not 32 bytes")
        with self._lock:
            return self._put(f"{kind}-{digest.hex()}", data, kind)

    def _put(self, name: str, data: BytesLike, kind: str) -> bool:
        self._forget(name)
        if len(data) > self._bytes_max:
            return False
        self._make_room(len(data), parameters_kept=PARAMETERS_KEPT - (kind == "parameters"))
        try:
            self._files.write(name, [data])
        except StateError as error:
            logger.warning("cache: %s is not kept: %s", name, error)
            return False
        self._sizes[name] = len(data)
        self._verified.add(name)
        return True

    def _read(self, name: str, digest: bytes) -> bytes | None:
        import hashlib  # loads OpenSSL: only when there is something to check

        try:
            data = self._files.read(name)
        except StateError as error:
            logger.warning("cache: %s cannot be read: %s", name, error)
            data = None
        if data is None or (name not in self._verified and hashlib.sha256(data).digest() != digest):
            logger.warning("cache: %s is missing or corrupt, it will be fetched again", name)
            self._forget(name)
            return None
        self._verified.add(name)
        self._sizes[name] = self._sizes.pop(name)
        return data

    def _make_room(self, needed_bytes: int, parameters_kept: int) -> None:
        parameters = [name for name in self._sizes if name.startswith("parameters-")]
        for name in parameters[: max(0, len(parameters) - parameters_kept)]:
            self._forget(name)
        for name in list(self._sizes):
            if sum(self._sizes.values()) + needed_bytes <= self._bytes_max:
                return
            self._forget(name)

    def _forget(self, name: str) -> None:
        if self._sizes.pop(name, None) is None:
            return
        self._verified.discard(name)
        try:
            self._files.delete(name)
        except StateError as error:
            logger.warning("cache: %s cannot be deleted: %s", name, error)
