"""Chunks of updates that are not whole yet, under byte quotas.

A auditor in memory (which ranges of which upload are held, bytes a device) answers everything but the bytes
themselves; it is read from an index at the start and after a rollback, and no chunk costs a scan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.store.database import Database
from coordinator.store.records import ChunkRefused, QuotaExceeded
from edge_sdk.errors import ProtocolError
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["ChunkRow", "Partials"]

ChunkRow = tuple[bytes, bytes, int, int, bytes]
"""Ticket, digest of the whole update, its total bytes, this chunk's offset, this chunk's bytes."""

Range = tuple[int, int]
_Key = tuple[bytes, bytes]

# A row costs more than its bytes: tiny chunks are charged as if they were this large.
CHUNK_CHARGE_BYTES_MIN: Final = 1024
# A device with a handful of chunks in flight makes a few gaps; a thousand is malice, and a `have` must stay small.
RANGES_MAX: Final = 1024


@dataclass(slots=True)
class _Upload:
    id: int
    ticket_id: int
    device: str
    total: int
    ranges: list[Range] = field(default_factory=list)
    charged_bytes: int = 0


@dataclass(slots=True)
class _Draft:
    """What one call would add to one upload."""

    upload: _Upload
    ranges: list[Range]
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    charged_bytes: int = 0


class _Refusal(Exception):
    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Partials:
    """The chunks of unfinished uploads.

    Args:
        database: Where they are kept.
        bytes_max: Bytes held for all devices together.
        bytes_per_device_max: Bytes held for one device; no larger update can arrive.
    """

    def __init__(self, database: Database, *, bytes_max: int, bytes_per_device_max: int) -> None:
        self._database = database
        self._bytes_max = bytes_max
        self._bytes_per_device_max = bytes_per_device_max
        self._uploads: dict[_Key, _Upload] = {}
        self._keys: dict[bytes, set[_Key]] = {}
        self._device_bytes: defaultdict[str, int] = defaultdict(int)
        self._upload_next = 1
        self.held_bytes = 0
        database.after_rollback.append(self.load)
        self.load()

    def load(self) -> None:
        self._uploads, self._keys = {}, {}
        self._device_bytes = defaultdict(int)
        self.held_bytes = 0
        by_id: dict[int, _Upload] = {}
        for ticket, digest, upload_id, ticket_id, device, total in self._database.rows(
            "SELECT t.ticket, u.digest, u.id, t.id, t.device, u.total FROM uploads u JOIN tickets t ON t.id = u.ticket"
        ):
            by_id[upload_id] = _Upload(upload_id, ticket_id, device, total)
            self._remember((ticket, digest), by_id[upload_id])
        self._upload_next = max(by_id, default=0) + 1
        for upload_id, start, stop in self._database.rows("SELECT upload, start, stop FROM chunks ORDER BY 1, 2"):
            upload = by_id[upload_id]
            _merge(upload.ranges, (start, stop))
            self._charge(upload, _charge(stop - start))

    def put(self, rows: Sequence[ChunkRow]) -> None:
        with self._database.lock:
            drafts = self._admit(rows)
            with self._database.transaction():
                for key, draft in drafts.items():
                    self._store(key, draft)

    def ranges(self, ticket: bytes, digest: bytes) -> list[Range]:
        with self._database.lock:
            upload = self._uploads.get((ticket, digest))
            return [] if upload is None else list(upload.ranges)

    def assemble(self, ticket: bytes, digest: bytes) -> bytes:
        with self._database.lock:
            upload = self._uploads.get((ticket, digest))
            if upload is None or upload.ranges != [(0, upload.total)]:
                raise ProtocolError(
                    f"update {digest.hex()[:16]}: not all of its bytes have arrived", reason="incomplete"
                )
            parts = self._database.rows("SELECT data FROM chunks WHERE upload = ? ORDER BY start", (upload.id,))
            return b"".join(data for (data,) in parts)

    def drop(self, tickets: Iterable[bytes]) -> None:
        """Delete what is held for these tickets; costs nothing for a ticket without partials."""
        with self._database.lock:
            keys = [key for ticket in tickets for key in self._keys.get(ticket, ())]
            if not keys:
                return
            with self._database.transaction():
                for key in keys:
                    upload = self._uploads.pop(key)
                    self._keys[key[0]].discard(key)
                    if not self._keys[key[0]]:
                        del self._keys[key[0]]
                    self._charge(upload, -upload.charged_bytes)
                    self._database.write("DELETE FROM uploads WHERE id = ?", (upload.id,))

    def _admit(self, rows: Sequence[ChunkRow]) -> dict[_Key, _Draft]:
        drafts: dict[_Key, _Draft] = {}
        pending: defaultdict[str, int] = defaultdict(int)
        pending_bytes = 0
        refused: dict[bytes, _Refusal] = {}
        for ticket, digest, total, offset, data in rows:
            if ticket in refused:
                continue
            try:
                draft = drafts.get((ticket, digest)) or self._draft(ticket, digest, total)
                pieces = _new_pieces(draft, total, offset, data)
                charge = sum(_charge(len(piece)) for _, piece in pieces)
                device = draft.upload.device
                self._check_quota(device, pending[device] + charge, pending_bytes + charge)
                drafts[ticket, digest] = draft
                draft.pieces += pieces
                draft.charged_bytes += charge
                pending[device] += charge
                pending_bytes += charge
                _merge(draft.ranges, (offset, offset + len(data)))
                if len(draft.ranges) > RANGES_MAX:
                    raise _Refusal(f"more than {RANGES_MAX} separate ranges", "malformed")
            except _Refusal as refusal:
                refused[ticket] = refusal
        if refused:
            raise _refusal(refused)
        return drafts

    def _draft(self, ticket: bytes, digest: bytes, total: int) -> _Draft:
        upload = self._uploads.get((ticket, digest))
        if upload is None:
            if total > self._bytes_per_device_max:
                raise _Refusal(
                    f"an update of {total} bytes; at most {self._bytes_per_device_max} are held", "too_large"
                )
            found = self._database.row("SELECT id, device, state FROM tickets WHERE ticket = ?", (ticket,))
            if found is None:
                raise _Refusal("a ticket that was never given out", "unknown_ticket")
            if found[2] in VERDICTS:
                raise _Refusal(f"the ticket is spent ({found[2]})", "spent")
            upload = _Upload(0, found[0], found[1], total)
        return _Draft(upload, list(upload.ranges))

    def _check_quota(self, device: str, device_bytes: int, all_bytes: int) -> None:
        if self._device_bytes.get(device, 0) + device_bytes > self._bytes_per_device_max:
            raise _Refusal(f"device {device} holds its {self._bytes_per_device_max} bytes of partials", "busy")
        if self.held_bytes + all_bytes > self._bytes_max:
            raise _Refusal(f"all devices together hold {self._bytes_max} bytes of partials", "busy")

    def _store(self, key: _Key, draft: _Draft) -> None:
        upload = draft.upload
        if not upload.id:
            upload.id = self._upload_next
            self._upload_next += 1
            self._database.write(
                "INSERT INTO uploads (id, ticket, digest, total) VALUES (?, ?, ?, ?)",
                (upload.id, upload.ticket_id, key[1], upload.total),
            )
            self._remember(key, upload)
        self._database.write_many(
            "INSERT INTO chunks (upload, start, stop, data) VALUES (?, ?, ?, ?)",
            [(upload.id, start, start + len(data), data) for start, data in draft.pieces],
        )
        upload.ranges = draft.ranges
        self._charge(upload, draft.charged_bytes)

    def _remember(self, key: _Key, upload: _Upload) -> None:
        self._uploads[key] = upload
        self._keys.setdefault(key[0], set()).add(key)

    def _charge(self, upload: _Upload, charged_bytes: int) -> None:
        upload.charged_bytes += charged_bytes
        self.held_bytes += charged_bytes
        self._device_bytes[upload.device] += charged_bytes
        if not self._device_bytes[upload.device]:
            del self._device_bytes[upload.device]


def _charge(length: int) -> int:
    return max(length, CHUNK_CHARGE_BYTES_MIN)


def _merge(ranges: list[Range], added: Range) -> None:
    """Put ``added`` into the sorted, disjoint, non-adjacent ``ranges``."""
    start, stop = added
    low = bisect_left(ranges, start, key=lambda item: item[1])
    high = low
    while high < len(ranges) and ranges[high][0] <= stop:
        start, stop = min(start, ranges[high][0]), max(stop, ranges[high][1])
        high += 1
    ranges[low:high] = [(start, stop)]


def _new_pieces(draft: _Draft, total: int, offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """The parts of a chunk that are not held yet (what came first stays: the digest judges the whole)."""
    stop = offset + len(data)
    if total != draft.upload.total:
        raise _Refusal(f"total of {total} bytes where {draft.upload.total} were announced", "malformed")
    if not data or offset < 0 or stop > total:
        raise _Refusal(f"bytes {offset}..{stop} of an update of {total} bytes", "malformed")
    pieces = []
    at = offset
    for low, high in draft.ranges[bisect_left(draft.ranges, offset, key=lambda item: item[1]) :]:
        if low >= stop:
            break
        if low > at:
            pieces.append((at, data[at - offset : low - offset]))
        at = max(at, high)
    if at < stop:
        pieces.append((at, data[at - offset :]))
    return pieces


def _refusal(refused: dict[bytes, _Refusal]) -> ChunkRefused:
    """One exception for all tickets that are refused for the same reason as the first one."""
    ticket, first = next(iter(refused.items()))
    alike = frozenset(ticket for ticket, refusal in refused.items() if refusal.reason == first.reason)
    message = f"ticket {ticket.hex()[:16]}: {first}" + (f" (and {len(alike) - 1} more)" if len(alike) > 1 else "")
    if first.reason == "busy":
        return QuotaExceeded(message, tickets=alike)
    return ChunkRefused(message, tickets=alike, reason=first.reason)
