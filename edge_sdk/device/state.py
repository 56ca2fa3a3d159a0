"""What a device keeps over a power cut: its instance, one unsettled update, named vectors, and a cache of downloads.

A vector is as large as the parameters, or nearly: what earlier updates left out (``residual``), the velocity of
momentum correction (``velocity``), and whatever a local algorithm keeps (``local.<name>``). They are kept together.

The files (beside the counts of bytes written and of traffic), and what the order of writing them guarantees:

    instance        16 random bytes, made with the directory: a re-flashed or cloned device is another one
    vectors.next    the vectors as they will be if the update counts; the head names the update's ticket
    outbox          the update, until the receipt with its payload, then without, until the outcome
    vectors         the vectors in force; the head names the ticket that made them
    constants-*     mean and scale of this device's own examples, one file for each program that wants them

1. ``save_outbox`` writes ``vectors.next`` first, then ``outbox``. A ``vectors.next`` without an outbox is dropped.
2. Counted: ``vectors.next`` is renamed to ``vectors``, then ``outbox`` is deleted. An outbox whose ticket the
   vectors name was counted: opening finishes the deletion.
3. Not counted: ``outbox`` is deleted, then ``vectors.next``: the same rule as 1 finishes that.
4. Counted, where nothing is to be kept: the update has sent what was kept before too, so that is deleted, then
   ``outbox``. A cut between the two leaves an update whose verdict is asked for again, and none to send twice.

Thus the vectors are always those of before or those of after, never both, and never a mixture. Where those of after
could not be kept (write budget, full disk, a corrupt file) and the update counts, or may have counted, those of before
are dropped as well: sending a part of a residual twice does harm, losing it costs accuracy for some rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device.blob_cache import BlobCache
from edge_sdk.device.daily_traffic import DailyTraffic
from edge_sdk.device.files import DirectoryFiles, Files, MemoryFiles
from edge_sdk.device.kept_constants import KeptConstants
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.state_file import HEAD_BYTES_MAX, CorruptError, seal, unseal
from edge_sdk.device.write_budget import WriteBudget
from edge_sdk.errors import StateError
from edge_sdk.parameters import ELEMENTS_MAX
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["DeviceState", "DirectoryFiles", "Files", "MemoryFiles", "Vectors"]

logger = logging.getLogger(__name__)

Vectors = Mapping[str, NDArray[np.float32]]
"""Vectors by name, float32 of any length each."""

INSTANCE, OUTBOX, VECTORS = 1, 2, 3

MIB: Final = 1 << 20
VECTORS_MAX: Final = 16
NAME_BYTES_MAX: Final = 64
FILE_BYTES_MAX: Final = ELEMENTS_MAX * 4 * VECTORS_MAX + 2 * HEAD_BYTES_MAX

NOT_ANY, ON_DISK, IN_MEMORY, IN_FORCE = 0, 1, 2, 3  # where the vectors of after are


class DeviceState:
    """The device's durable state; every change is on disk when the method returns.

    Any thread may use the cache; outbox and vectors belong to one thread at a time.

    Args:
        files: Where the files are; :class:`DirectoryFiles` on a device.
        new_instance: Gives 16 random bytes; called once for a new directory.
        wall_day: Today as a number of days since 1970.
        state_write_bytes_per_day_max: Bounds SD-card wear. Beyond it nothing goes into the cache, and vectors are
            kept in memory alone: after a power cut they are then absent. The outbox is written always.
        cache_bytes_max: Bytes of the cache of programs and parameters; 0 for none.
        outbox_bytes_max: Bytes of the largest update that is kept.
        bytes_per_device_per_day_max: Limit of bytes sent and received in a day, 0 for none; ``traffic`` counts them.

    Attributes:
        constants: What this device has found of its own examples, for programs that normalise with it.

    Raises:
        StateError: The storage fails. A corrupt file is no reason: it is renamed to ``<name>.corrupt``, logged, and
            taken as absent.
    """

    def __init__(
        self,
        files: Files,
        *,
        new_instance: Callable[[], bytes],
        wall_day: Callable[[], int],
        state_write_bytes_per_day_max: int = 2048 * MIB,
        cache_bytes_max: int = 64 * MIB,
        outbox_bytes_max: int = 64 * MIB,
        bytes_per_device_per_day_max: int = 0,
    ) -> None:
        self._files = files
        self.traffic = DailyTraffic(files, wall_day, bytes_per_device_per_day_max)
        self.constants = KeptConstants(files)
        self._budget = WriteBudget(files, wall_day, state_write_bytes_per_day_max)
        self.outbox_bytes_max = outbox_bytes_max
        self._vectors_now: tuple[bytes, dict[str, NDArray[np.float32]]] | None = None  # spec, values; disk has none
        self._vectors_next: dict[str, NDArray[np.float32]] | None = None
        self._next_is = NOT_ANY
        self._verdict: bool | None = None  # that the storage did not take yet
        self.instance = self._load_instance(new_instance)
        self._outbox: PendingUpdate | None = None
        self._recover()
        self._cache = BlobCache(files, cache_bytes_max)

    # The outbox

    @property
    def outbox(self) -> PendingUpdate | None:
        """The update that is not settled, if there is one."""
        return self._outbox

    @property
    def unsettled(self) -> list[bytes]:
        """Tickets whose outcome is not known here, to be named in the next check-in."""
        return [] if self._outbox is None else [self._outbox.ticket]

    def save_outbox(self, update: PendingUpdate, vectors_after: Vectors) -> None:
        """Persists a finished update before anything of it is sent.

        Args:
            update: The update, with its payload.
            vectors_after: All that is to be kept if the update counts, float32 each; empty where nothing is, because
                the update has sent what was kept before. Nothing is copied: leave it as it is afterwards.

        Raises:
            StateError: Another update is not settled, this one is above ``outbox_bytes_max``, or the storage fails.
            ValueError: A field of ``update`` has a wrong type or length, or a vector is not a finite float32 vector.
        """
        update.check()
        if update.payload is None:
            raise ValueError("outbox.payload is None: there is nothing to send")
        if self._outbox is not None and self._verdict is not None:
            self.settle(self._outbox.ticket, self._verdict)
        if self._outbox is not None:
            raise StateError(f"update of ticket {self._outbox.ticket.hex()} is not settled yet: settle it first")
        if len(update.payload) > self.outbox_bytes_max:
            raise StateError(
                f"update of {len(update.payload)} bytes is above outbox_bytes_max {self.outbox_bytes_max}: "
                "raise it, or choose a codec with smaller updates"
            )
        next_is = self._write_next(update, vectors_after) if vectors_after else NOT_ANY
        self._write_outbox(update, next_is)
        self._outbox, self._next_is = update, next_is
        self._vectors_next = _read_only(vectors_after) if next_is == IN_MEMORY else None

    def mark_received(self, ticket: bytes) -> None:
        """The coordinator holds the bytes: the payload goes, the update stays until the outcome.

        An unknown ticket is ignored.
        """
        update = self._outbox
        if update is None or update.ticket != ticket or update.received:
            return
        update = update.without_payload()
        self._write_outbox(update, self._next_is)
        self._outbox = update

    def settle(self, ticket: bytes, counted: bool) -> None:
        """The outcome: counted, the vectors of after come into force; not counted, those of before stay.

        An unknown ticket is ignored. Where the storage fails half way, the next ``save_outbox`` tries again.
        """
        update = self._outbox
        if update is None or update.ticket != ticket:
            return
        self._verdict = counted
        if counted and self._next_is == ON_DISK:
            self._files.rename("vectors.next", "vectors")
            self._vectors_now = None
            self._next_is = IN_FORCE  # a second attempt, after a failing delete, must leave it there
        elif counted and self._next_is != IN_FORCE:
            self._files.delete("vectors")
            self._vectors_now = None if self._vectors_next is None else (update.spec, self._vectors_next)
        self._files.delete("outbox")
        if not counted:
            self._files.delete("vectors.next")
        self._outbox, self._next_is, self._vectors_next, self._verdict = None, NOT_ANY, None, None

    def vectors(self, spec: bytes) -> dict[str, NDArray[np.float32]]:
        """The vectors in force by name, float32, read-only; empty where there are none.

        Args:
            spec: SHA-256 of the parameter spec; vectors of another spec are dropped.
        """
        if self._vectors_now is not None:
            if self._vectors_now[0] == spec:
                return dict(self._vectors_now[1])
            self._vectors_now = None
        opened = self._open_vectors("vectors")
        if opened is None:
            return {}
        if opened[1] != spec:
            logger.info("state: the vectors that are kept belong to another model and are dropped")
            self._files.delete("vectors")
            return {}
        return opened[2]

    def keeps_vectors(self, length: int) -> bool:
        """Whether vectors of ``length`` bytes together would go to disk: not beyond today's write budget."""
        return self._budget.allows(length)

    # The cache

    def cache_get(self, digest: bytes) -> bytes | None:
        """Content by its SHA-256, or None; checked at the first read after a start, a corrupt one is deleted."""
        return self._cache.get(digest)

    def cache_put(self, digest: bytes, data: BytesLike, kind: str) -> bool:
        """Keeps content that was checked against ``digest``.

        Args:
            digest: SHA-256 of ``data``, 32 bytes.
            data: The content.
            kind: ``program`` or ``parameters``; of the latter only the two newest are kept.

        Returns:
            Whether it is kept: not when today's write budget is used up, when it is above ``cache_bytes_max``, or when
            the storage fails (which is logged).

        Raises:
            ValueError: ``kind`` is neither.
        """
        if self._cache.holds(digest, kind):
            return True
        if not self._budget.allows(len(data)) or not self._cache.put(digest, data, kind):
            return False
        self._budget.count(len(data))
        return True

    @property
    def cached_parameters(self) -> tuple[bytes, ...]:
        """Digests of the parameters in the cache, the most recently used first."""
        return self._cache.digests("parameters")

    @property
    def bytes_written_today(self) -> int:
        """Bytes written since the day began, without what the file system adds."""
        return self._budget.bytes_today

    # Reading and writing the files

    def _load_instance(self, new_instance: Callable[[], bytes]) -> bytes:
        opened = self._open("instance", INSTANCE)
        if opened is not None and len(opened[1]) == 16:
            return bytes(opened[1])
        instance = new_instance()
        if len(instance) != 16:
            raise ValueError(f"new_instance gave {len(instance)} bytes, expected 16")
        self._write("instance", seal(INSTANCE, {}, instance))
        return instance

    def _recover(self) -> None:
        """Finishes what a power cut left half done (the three rules above)."""
        if self._files.size_bytes("outbox") is not None:
            self._load_outbox()
        update = self._outbox
        if update is None:
            self._files.delete("vectors.next")
            return
        now = self._open_vectors("vectors")
        if now is not None and now[0] == update.ticket:
            self._files.delete("outbox")
            self._files.delete("vectors.next")
            self._outbox, self._next_is = None, NOT_ANY
            return
        if self._next_is == ON_DISK:
            after = self._open_vectors("vectors.next")
            if after is None or after[0] != update.ticket:
                self._next_is = IN_MEMORY  # where it is no more either: see the end of this module's docstring

    def _load_outbox(self) -> None:
        opened = self._open("outbox", OUTBOX)
        try:
            if opened is not None:
                self._outbox, self._next_is = _update_of(*opened)
        except CorruptError as error:
            self._set_aside("outbox", error)
        if self._outbox is None:
            self._files.delete("vectors")  # nobody knows any more whether the update counted

    def _write_next(self, update: PendingUpdate, vectors: Vectors) -> int:
        _check_vectors(vectors)
        body = [np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data for values in vectors.values()]
        if not self._budget.allows(sum(len(piece) for piece in body)):
            logger.warning("state: today's write budget is used up, the residual is kept in memory only")
            return IN_MEMORY
        sizes = [[name, values.size] for name, values in vectors.items()]
        try:
            head = {"ticket": update.ticket, "spec": update.spec, "vectors": sizes}
            self._write("vectors.next", seal(VECTORS, head, *body))
        except StateError as error:
            logger.warning("state: the residual is kept in memory only: %s", error)
            return IN_MEMORY
        return ON_DISK

    def _write_outbox(self, update: PendingUpdate, next_is: int) -> None:
        head = {name: getattr(update, name) for name in UPDATE_FIELDS}
        head |= {"received": update.received, "next_is": next_is}
        self._write("outbox", seal(OUTBOX, head, update.payload or b""))

    def _open_vectors(self, name: str) -> tuple[bytes, bytes, dict[str, NDArray[np.float32]]] | None:
        opened = self._open(name, VECTORS)
        if opened is None:
            return None
        head, body = opened
        ticket, spec = head.get("ticket"), head.get("spec")
        vectors = _vectors_of(head.get("vectors"), body)
        if not isinstance(ticket, bytes) or not isinstance(spec, bytes) or vectors is None:
            self._set_aside(name, CorruptError("its head makes no sense"))
            return None
        return ticket, spec, vectors

    def _write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self._files.write(name, parts)
        self._budget.count(sum(len(part) for part in parts))

    def _open(self, name: str, kind: int) -> tuple[dict[str, Any], memoryview] | None:
        size_bytes = self._files.size_bytes(name)
        if size_bytes is None:
            return None
        try:
            if size_bytes > FILE_BYTES_MAX:
                raise CorruptError(f"{size_bytes} bytes, at most {FILE_BYTES_MAX} make sense")
            data = self._files.read(name)
            return None if data is None else unseal(data, kind)
        except (CorruptError, StateError) as error:  # a bad sector is a corrupt file too
            self._set_aside(name, error)
            return None

    def _set_aside(self, name: str, error: Exception) -> None:
        logger.error("state: %s is corrupt (%s): kept as %s.corrupt, going on without it", name, error, name)
        self._files.rename(name, f"{name}.corrupt")


UPDATE_FIELDS: Final = ("ticket", "digest", "lineage", "task", "round", "shard", "base", "spec")


def _update_of(head: dict[str, Any], body: memoryview) -> tuple[PendingUpdate, int]:
    places = (NOT_ANY, ON_DISK, IN_MEMORY, IN_FORCE)
    received = head.get("received")
    missing = any(name not in head for name in UPDATE_FIELDS)
    if head.get("next_is") not in places or missing or not isinstance(received, bool) or (received and len(body)):
        raise CorruptError("its head makes no sense")
    fields = {name: head[name] for name in UPDATE_FIELDS}
    update = PendingUpdate(**fields, payload=None if received else bytes(body))
    try:
        update.check()
    except ValueError as error:
        raise CorruptError(str(error)) from None
    return update, head["next_is"]


def _check_vectors(vectors: Vectors) -> None:
    if len(vectors) > VECTORS_MAX:
        raise ValueError(f"{len(vectors)} vectors to keep, at most {VECTORS_MAX} are allowed")
    for name, values in vectors.items():
        if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
            raise ValueError(f"a vector's name {name[:80]!r} is not 1 to {NAME_BYTES_MAX} bytes")
        if values.dtype != np.float32 or values.ndim != 1 or not 0 < values.size <= ELEMENTS_MAX:
            raise ValueError(f"{name} is {values.dtype}{list(values.shape)}, expected a vector of float32")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has elements that are not finite: it would spoil every later update")


def _vectors_of(sizes: object, body: memoryview) -> dict[str, NDArray[np.float32]] | None:
    """The vectors in a body, read-only views of it; None where its head makes no sense."""
    if not isinstance(sizes, list) or not 0 < len(sizes) <= VECTORS_MAX:
        return None
    vectors: dict[str, NDArray[np.float32]] = {}
    start = 0
    for entry in sizes:
        match entry:
            case [str(name), int(size)] if 0 < size <= ELEMENTS_MAX and start + 4 * size <= len(body):
                piece = np.frombuffer(body[start : start + 4 * size], dtype="<f4")
                vectors[name] = piece.astype(np.float32, copy=False)
                start += 4 * size
            case _:
                return None
    return vectors if start == len(body) and len(vectors) == len(sizes) else None


def _read_only(vectors: Vectors) -> dict[str, NDArray[np.float32]]:
    views = {name: values.view() for name, values in vectors.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
