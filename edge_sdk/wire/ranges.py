"""Byte ranges: content travels in chunks by offset, resumes after a cut, and is put together within a known limit.

The same pieces serve both directions: a device that fetches a program or parameters, and a coordinator that receives
an update. Nothing here does I/O. What a peer can influence is bounded: the bytes by ``bytes_max``, the number of
holes by ``RANGES_MAX`` (else one byte in two would make a list as long as the content).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from edge_sdk.errors import DecodeError

__all__ = [
    "CHUNK_BYTES_FLOOR",
    "CHUNK_BYTES_MAX",
    "DIRECT_BYTES_MAX",
    "RANGES_MAX",
    "ChunkSize",
    "Ranges",
    "Reassembly",
    "plan_chunks",
]

RANGES_MAX: Final = 1024
CHUNK_BYTES_FLOOR: Final = 4096
CHUNK_BYTES_MAX: Final = 58 * 1024
"""Largest chunk that, with its envelope, stays within the 60,000 bytes of one message."""

DIRECT_BYTES_MAX: Final = 4096
"""An update that is no larger is sent without asking first whether it is wanted: question and answer take some 200
bytes, more than is lost where one in twenty comes too late."""

DIGEST_BYTES: Final = 32
GROW_AFTER_CHUNKS: Final = 16


class Ranges:
    """An immutable set of bytes, held as sorted, disjoint, non-touching half-open ranges.

    Args:
        ranges: ``(start, stop)`` pairs in bytes, in any order, overlapping or not.

    Raises:
        ValueError: A pair is not ``0 <= start < stop``.
    """

    __slots__ = ("_starts", "_stops", "bytes")

    bytes: int
    """How many bytes are covered."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: tuple[int, ...] = ()
        self._stops: tuple[int, ...] = ()
        self.bytes = 0
        for start, stop in ranges:
            grown = self.add(start, stop)
            self._starts, self._stops, self.bytes = grown._starts, grown._stops, grown.bytes

    def add(self, start: int, stop: int) -> Ranges:
        """These ranges together with ``start..stop`` in bytes; ``self`` stays as it is.

        Raises:
            ValueError: Not ``0 <= start < stop``.
        """
        if not 0 <= start < stop:
            raise ValueError(f"range {start}..{stop} is not 0 <= start < stop")
        first = bisect_left(self._stops, start)  # the first old range that touches or overlaps the new one
        last = bisect_right(self._starts, stop)  # one after the last such range
        merged = Ranges()
        swallowed = sum(self._stops[i] - self._starts[i] for i in range(first, last))
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        merged._starts = (*self._starts[:first], start, *self._starts[last:])
        merged._stops = (*self._stops[:first], stop, *self._stops[last:])
        merged.bytes = self.bytes - swallowed + (stop - start)
        return merged

    def covers(self, total: int) -> bool:
        """Whether every byte of ``0..total`` is here."""
        return total == 0 or (len(self._starts) > 0 and self._starts[0] == 0 and self._stops[0] >= total)

    def missing(self, total: int) -> list[tuple[int, int]]:
        """The holes in ``0..total`` as sorted ``(start, stop)`` pairs."""
        holes: list[tuple[int, int]] = []
        at = 0
        for start, stop in self:
            if start >= total:
                break
            if start > at:
                holes.append((at, start))
            at = stop
        if at < total:
            holes.append((at, total))
        return holes

    def to_wire(self) -> list[list[int]]:
        """``[[start, stop], ...]``, the form in which ranges stand in a message."""
        return [[start, stop] for start, stop in self]

    @classmethod
    def from_wire(cls, value: object, total: int, ranges_max: int = RANGES_MAX) -> Ranges:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Args:
            value: What msgpack gave.
            total: Bytes of the whole content; no range may end beyond it.
            ranges_max: How many ranges are accepted.

        Raises:
            DecodeError: Not a list of sorted, disjoint ranges within ``0..total`` (reason ``ranges``).
        """
        if not isinstance(value, list | tuple) or len(value) > ranges_max:
            raise DecodeError(f"ranges: expected a list of at most {ranges_max} [start, stop]", reason="ranges")
        ranges = cls()
        starts: list[int] = []
        stops: list[int] = []
        for pair in value:
            start, stop = _checked_pair(pair, total)
            if stops and start < stops[-1]:
                raise DecodeError(f"ranges: {start}..{stop} is out of order or overlaps", reason="ranges")
            if stops and start == stops[-1]:
                stops[-1] = stop
            else:
                starts.append(start)
                stops.append(stop)
        ranges._starts, ranges._stops = tuple(starts), tuple(stops)
        ranges.bytes = sum(stops) - sum(starts)
        return ranges

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and (self._starts, self._stops) == (other._starts, other._stops)

    def __hash__(self) -> int:
        return hash((self._starts, self._stops))

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"


def _checked_pair(pair: object, total: int) -> tuple[int, int]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DecodeError("ranges: a range is not a pair [start, stop]", reason="ranges")
    start, stop = pair
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= total:
        raise DecodeError(f"ranges: {str(pair)[:60]} is not 0 <= start < stop <= {total}", reason="ranges")
    return start, stop


class Reassembly:
    """Puts one piece of content together from chunks in any order.

    Args:
        digest: SHA-256 of the whole content, 32 bytes.
        total: Bytes of the whole content, as the peer states them.
        bytes_max: The most that this side accepts; checked here, and memory is taken only when data arrives.

    Raises:
        DecodeError: ``digest`` is not 32 bytes (reason ``digest``), or ``total`` is not in ``1..bytes_max`` (reason
            ``size``).
    """

    __slots__ = ("_buffer", "digest", "received", "total")

    def __init__(self, digest: bytes, total: int, *, bytes_max: int) -> None:
        if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
            raise DecodeError(f"transfer: the digest is not {DIGEST_BYTES} bytes", reason="digest")
        if type(total) is not int or not 0 < total <= bytes_max:
            raise DecodeError(f"transfer: {str(total)[:40]} bytes in total is not in 1..{bytes_max}", reason="size")
        self.digest = digest
        self.total = total
        self.received = Ranges()
        self._buffer: bytearray | None = None

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived; whether they are the right ones is seen by :meth:`take`."""
        return self.received.covers(self.total)

    def add(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Stores one chunk; a duplicate or an overlap is welcome and overwrites.

        Args:
            offset: Where the chunk stands, in bytes.
            data: The chunk, not empty.

        Returns:
            How many bytes were not there before.

        Raises:
            DecodeError: The chunk is empty or does not lie within the total (reason ``range``), or the chunks so far
                have more than ``RANGES_MAX`` holes between them (reason ``ranges``). Nothing was stored.
        """
        if type(offset) is not int or not 0 <= offset < offset + len(data) <= self.total:
            raise DecodeError(
                f"transfer: chunk at {str(offset)[:40]} of {len(data)} bytes is not within {self.total} bytes",
                reason="range",
            )
        received = self.received.add(offset, offset + len(data))
        if len(received) > RANGES_MAX:
            raise DecodeError(f"transfer: more than {RANGES_MAX} separate pieces; send in order", reason="ranges")
        if self._buffer is None:
            self._buffer = bytearray(self.total)
        self._buffer[offset : offset + len(data)] = data
        new_bytes = received.bytes - self.received.bytes
        self.received = received
        return new_bytes

    def take(self) -> memoryview:
        """The whole content as a read-only view of bytes; the reassembly is empty afterwards, whatever comes.

        Raises:
            ValueError: It is not complete (a mistake of the caller).
            DecodeError: The bytes are not those of the digest (reason ``digest``): fetch them again.
        """
        if self._buffer is None or not self.complete:
            raise ValueError(f"take: {self.received.bytes} of {self.total} bytes have arrived")
        import hashlib  # loads OpenSSL: only when something has in fact been transferred

        content, self._buffer, self.received = self._buffer, None, Ranges()
        if hashlib.sha256(content).digest() != self.digest:
            raise DecodeError(f"transfer: {self.total} bytes arrived whose SHA-256 is another one", reason="digest")
        return memoryview(content).toreadonly()


def plan_chunks(missing: Iterable[tuple[int, int]], chunk_bytes_max: int) -> list[tuple[int, int]]:
    """Cuts holes into chunks of at most ``chunk_bytes_max`` bytes.

    Args:
        missing: ``(start, stop)`` pairs in bytes, as :meth:`Ranges.missing` gives them.
        chunk_bytes_max: Bytes of the largest chunk, at least 1.

    Returns:
        ``(start, stop)`` pairs in the order of ``missing``.

    Raises:
        ValueError: ``chunk_bytes_max`` is below 1.
    """
    if chunk_bytes_max < 1:
        raise ValueError(f"chunk_bytes_max is {chunk_bytes_max}, at least 1 is needed")
    return [
        (at, min(at + chunk_bytes_max, stop)) for start, stop in missing for at in range(start, stop, chunk_bytes_max)
    ]


class ChunkSize:
    """How many bytes a device asks for at a time: halved by cuts that brought nothing, slowly grown again.

    A link that drops before one chunk is through would otherwise be asked for the same chunk for ever.

    Args:
        start: Bytes of the first chunks.
        floor: Bytes below which it does not go.
        ceiling: Bytes above which it does not go.

    Raises:
        ValueError: Not ``1 <= floor <= start <= ceiling``.
    """

    __slots__ = ("_ceiling", "_chunks_since_cut", "_floor", "current")

    def __init__(
        self, start: int = CHUNK_BYTES_MAX, floor: int = CHUNK_BYTES_FLOOR, ceiling: int = CHUNK_BYTES_MAX
    ) -> None:
        if not 1 <= floor <= start <= ceiling:
            raise ValueError(f"chunk sizes: floor {floor}, start {start}, ceiling {ceiling} are not in this order")
        self.current = start
        self._floor = floor
        self._ceiling = ceiling
        self._chunks_since_cut = 0

    def cut(self, progress: bool) -> None:
        """The connection was cut; ``progress`` says whether any new byte had arrived since the cut before."""
        self._chunks_since_cut = 0
        if not progress:
            self.current = max(self._floor, self.current // 2)

    def progress(self) -> None:
        """A whole chunk arrived; a run of them without a cut doubles the size, up to the ceiling."""
        self._chunks_since_cut += 1
        if self._chunks_since_cut >= GROW_AFTER_CHUNKS:
            self._chunks_since_cut = 0
            self.current = min(self._ceiling, self.current * 2)
