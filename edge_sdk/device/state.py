"""What a device keeps over a power cut: its instance, one unsettled update, the residual, and a cache of downloads.

The files (beside the counts of ``wear`` and ``traffic``), and what the order of writing them guarantees:

    instance        16 random bytes, made with the directory: a re-flashed or cloned device is another one
    residual.next   the residual as it will be if the update counts; its header names the update's ticket
    outbox          the update, until the receipt with its payload, then without, until the outcome
    residual        the residual in force; its header names the ticket that made it

1. ``save_outbox`` writes ``residual.next`` first, then ``outbox``. A ``residual.next`` without an outbox is dropped.
2. Counted: ``residual.next`` is renamed to ``residual``, then ``outbox`` is deleted. An outbox whose ticket the
   residual names was counted: opening finishes the deletion.
3. Not counted: ``outbox`` is deleted, then ``residual.next``: the same rule as 1 finishes that.
4. Counted, by a codec that keeps no residual: the update has sent that of before too, so it is deleted, then
   ``outbox``. A cut between the two leaves an update whose verdict is asked for again, and none to send twice.

Thus the residual is always that of before or that of after, never both, and never a mixture. Where the residual of
after could not be kept (write budget, full disk, a corrupt file) and the update counts, or may have counted, the
residual of before is dropped as well: sending a part of it twice does harm, losing it costs accuracy for some rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device.blob_cache import BlobCache
from edge_sdk.device.daily_traffic import DailyTraffic
from edge_sdk.device.files import DirectoryFiles, Files, MemoryFiles
from edge_sdk.device.state_file import HEAD_BYTES_MAX, CorruptError, seal, unseal
from edge_sdk.device.write_budget import WriteBudget
from edge_sdk.errors import StateError
from edge_sdk.parameters import ELEMENTS_MAX
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["DeviceState", "DirectoryFiles", "Files", "MemoryFiles", "OutboxEntry"]

logger = logging.getLogger(__name__)

INSTANCE, OUTBOX, RESIDUAL = 1, 2, 3

MIB: Final = 1 << 20
TEXT_BYTES_MAX: Final = 256
FILE_BYTES_MAX: Final = ELEMENTS_MAX * 4 + 2 * HEAD_BYTES_MAX

NOT_ANY, ON_DISK, IN_MEMORY, IN_FORCE = 0, 1, 2, 3  # where the residual of after is


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One finished update, kept until the coordinator has said whether it counted.

    Attributes:
        ticket: Identity of the piece of work, 16 bytes.
        lineage: The federation's lineage that the ticket belongs to, at most 32 bytes.
        task: Name of the task.
        round: Number of the round.
        shard: Uplink inbox named by the invite.
        digest: SHA-256 of the payload, 32 bytes.
        base: SHA-256 of the parameters that training began from, 32 bytes.
        spec: SHA-256 of the parameter spec, 32 bytes; a residual fits only its own.
        payload: The update frame; None once it is receipted.
        received: Whether the coordinator holds the bytes.
    """

    ticket: bytes
    lineage: bytes
    task: str
    round: int
    shard: str
    digest: bytes
    base: bytes
    spec: bytes
    payload: bytes | None
    received: bool = False

    def check(self) -> None:
        """Raises ValueError where a field has another type or length than documented."""
        for name, length in (("ticket", 16), ("digest", 32), ("base", 32), ("spec", 32)):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != length:
                raise ValueError(f"outbox.{name} is not {length} bytes")
        if not isinstance(self.lineage, bytes) or len(self.lineage) > 32:
            raise ValueError("outbox.lineage is not at most 32 bytes")
        for name in ("task", "shard"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.encode()) > TEXT_BYTES_MAX:
                raise ValueError(f"outbox.{name} is not text of at most {TEXT_BYTES_MAX} bytes")
        if type(self.round) is not int or not 0 <= self.round < 1 << 63:
            raise ValueError(f"outbox.round is {self.round!r}, expected an integer from 0")
        if self.received != (self.payload is None):
            raise ValueError("outbox.payload is there exactly until the update is received")


class DeviceState:
    """The device's durable state; every change is on disk when the method returns.

    Any thread may use the cache; outbox and residual belong to one thread at a time.

    Args:
        files: Where the files are; :class:`DirectoryFiles` on a device.
        new_instance: Gives 16 random bytes; called once for a new directory.
        wall_day: Today as a number of days since 1970.
        state_write_bytes_per_day_max: Bounds SD-card wear. Beyond it nothing goes into the cache, and the residual is
            kept in memory alone: after a power cut it is then absent. The outbox is written always.
        cache_bytes_max: Bytes of the cache of programs and parameters; 0 for none.
        outbox_bytes_max: Bytes of the largest update that is kept.
        bytes_per_device_per_day_max: Limit of bytes sent and received in a day, 0 for none; ``traffic`` counts them.

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
        self._budget = WriteBudget(files, wall_day, state_write_bytes_per_day_max)
        self.outbox_bytes_max = outbox_bytes_max
        self._residual_now: tuple[bytes, NDArray[np.float32]] | None = None  # spec, values; where disk has none
        self._residual_next: NDArray[np.float32] | None = None
        self._next_is = NOT_ANY
        self._verdict: bool | None = None  # that the storage did not take yet
        self.instance = self._load_instance(new_instance)
        self._outbox: OutboxEntry | None = None
        self._recover()
        self._cache = BlobCache(files, cache_bytes_max)

    # The outbox

    @property
    def outbox(self) -> OutboxEntry | None:
        """The update that is not settled, if there is one."""
        return self._outbox

    @property
    def unsettled(self) -> list[bytes]:
        """Tickets whose outcome is not known here, to be named in the next check-in."""
        return [] if self._outbox is None else [self._outbox.ticket]

    def save_outbox(self, entry: OutboxEntry, residual_after: NDArray[np.float32] | None) -> None:
        """Persists a finished update before anything of it is sent.

        Args:
            entry: The update, with its payload.
            residual_after: float32[P], the residual to be in force if the update counts; None where the codec
                keeps none and has sent that of before. It is not copied: leave it as it is afterwards.

        Raises:
            StateError: Another update is not settled, this one is above ``outbox_bytes_max``, or the storage fails.
            ValueError: A field of ``entry`` has a wrong type or length, or the residual is not a finite float32 vector.
        """
        entry.check()
        if entry.payload is None:
            raise ValueError("outbox.payload is None: there is nothing to send")
        if self._outbox is not None and self._verdict is not None:
            self.settle(self._outbox.ticket, self._verdict)
        if self._outbox is not None:
            raise StateError(f"update of ticket {self._outbox.ticket.hex()} is not settled yet: settle it first")
        if len(entry.payload) > self.outbox_bytes_max:
            raise StateError(
                f"update of {len(entry.payload)} bytes is above outbox_bytes_max {self.outbox_bytes_max}: "
                "raise it, or choose a codec with smaller updates"
            )
        next_is = NOT_ANY if residual_after is None else self._write_next(entry, residual_after)
        self._write_outbox(entry, next_is)
        self._outbox, self._next_is = entry, next_is
        self._residual_next = None
        if residual_after is not None and next_is == IN_MEMORY:
            self._residual_next = residual_after.view()
            self._residual_next.flags.writeable = False

    def mark_received(self, ticket: bytes) -> None:
        """The coordinator holds the bytes: the payload goes, the entry stays until the outcome.

        An unknown ticket is ignored.
        """
        entry = self._outbox
        if entry is None or entry.ticket != ticket or entry.received:
            return
        entry = replace(entry, payload=None, received=True)
        self._write_outbox(entry, self._next_is)
        self._outbox = entry

    def settle(self, ticket: bytes, counted: bool) -> None:
        """The outcome: counted, the residual of after comes into force; not counted, that of before stays.

        An unknown ticket is ignored. Where the storage fails half way, the next ``save_outbox`` tries again.
        """
        entry = self._outbox
        if entry is None or entry.ticket != ticket:
            return
        self._verdict = counted
        if counted and self._next_is == ON_DISK:
            self._files.rename("residual.next", "residual")
            self._residual_now = None
            self._next_is = IN_FORCE  # a second attempt, after a failing delete, must leave it there
        elif counted and self._next_is != IN_FORCE:
            self._files.delete("residual")
            self._residual_now = None if self._residual_next is None else (entry.spec, self._residual_next)
        self._files.delete("outbox")
        if not counted:
            self._files.delete("residual.next")
        self._outbox, self._next_is, self._residual_next, self._verdict = None, NOT_ANY, None, None

    def residual(self, spec: bytes) -> NDArray[np.float32] | None:
        """The residual in force, float32[P], read-only, or None where there is none.

        Args:
            spec: SHA-256 of the parameter spec; a residual of another spec is dropped.
        """
        if self._residual_now is not None:
            if self._residual_now[0] == spec:
                return self._residual_now[1]
            self._residual_now = None
        opened = self._open_residual("residual")
        if opened is None:
            return None
        if opened[1] != spec:
            logger.info("state: the residual belongs to another model and is dropped")
            self._files.delete("residual")
            return None
        return opened[2]

    def keeps_residual(self, length: int) -> bool:
        """Whether a residual of ``length`` bytes would go to disk: not beyond today's write budget."""
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
        entry = self._outbox
        if entry is None:
            self._files.delete("residual.next")
            return
        now = self._open_residual("residual")
        if now is not None and now[0] == entry.ticket:
            self._files.delete("outbox")
            self._files.delete("residual.next")
            self._outbox, self._next_is = None, NOT_ANY
            return
        if self._next_is == ON_DISK:
            after = self._open_residual("residual.next")
            if after is None or after[0] != entry.ticket:
                self._next_is = IN_MEMORY  # where it is no more either: see the end of this module's docstring

    def _load_outbox(self) -> None:
        opened = self._open("outbox", OUTBOX)
        try:
            if opened is not None:
                self._outbox, self._next_is = _entry_of(*opened)
        except CorruptError as error:
            self._set_aside("outbox", error)
        if self._outbox is None:
            self._files.delete("residual")  # nobody knows any more whether the update counted

    def _write_next(self, entry: OutboxEntry, values: NDArray[np.float32]) -> int:
        if values.dtype != np.float32 or values.ndim != 1 or not 0 < values.size <= ELEMENTS_MAX:
            raise ValueError(f"residual is {values.dtype}{list(values.shape)}, expected float32[P]")
        if not np.isfinite(values).all():
            raise ValueError("residual has elements that are not finite: it would spoil every later update")
        body = np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data
        if not self._budget.allows(len(body)):
            logger.warning("state: today's write budget is used up, the residual is kept in memory only")
            return IN_MEMORY
        try:
            self._write("residual.next", seal(RESIDUAL, {"ticket": entry.ticket, "spec": entry.spec}, body))
        except StateError as error:
            logger.warning("state: the residual is kept in memory only: %s", error)
            return IN_MEMORY
        return ON_DISK

    def _write_outbox(self, entry: OutboxEntry, next_is: int) -> None:
        head = {name: getattr(entry, name) for name in ENTRY_FIELDS}
        self._write("outbox", seal(OUTBOX, head | {"next_is": next_is}, entry.payload or b""))

    def _open_residual(self, name: str) -> tuple[bytes, bytes, NDArray[np.float32]] | None:
        opened = self._open(name, RESIDUAL)
        if opened is None:
            return None
        head, body = opened
        ticket, spec = head.get("ticket"), head.get("spec")
        if not isinstance(ticket, bytes) or not isinstance(spec, bytes) or len(body) % 4 or not body:
            self._set_aside(name, CorruptError("its head makes no sense"))
            return None
        return ticket, spec, np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)

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


ENTRY_FIELDS: Final = ("ticket", "lineage", "task", "round", "shard", "digest", "base", "spec", "received")


def _entry_of(head: dict[str, Any], body: memoryview) -> tuple[OutboxEntry, int]:
    places = (NOT_ANY, ON_DISK, IN_MEMORY, IN_FORCE)
    if head.get("next_is") not in places or any(name not in head for name in ENTRY_FIELDS):
        raise CorruptError("its head makes no sense")
    fields = {name: head[name] for name in ENTRY_FIELDS}
    entry = OutboxEntry(**fields, payload=None if fields["received"] else bytes(body))
    try:
        entry.check()
    except ValueError as error:
        raise CorruptError(str(error)) from None
    return entry, head["next_is"]
