"""Serving blobs to devices: ranges on request, and the retained cache that serves many at once (rule 7). PURE.

What is to be sent waits in queues of small tuples and goes out a few messages at a time, each when the broker has
acknowledged an earlier one: a thousand devices that ask for four megabytes each cost this process a thousand tuples,
not four gigabytes, and a large blob never floods the connection.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from coordinator.events import BULK, Effect, Publish
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.messages import BODY_BYTES_MAX, BlobGone, Message, RangeData, RangeRequest, short
from edge_sdk.wire.packing import pack
from edge_sdk.wire.topics import Topics, blob_name

__all__ = ["RETAINED_PIECE_BYTES", "Downloads"]

IN_FLIGHT_MAX: Final = 32
QUEUED_MAX: Final = 100_000
QUEUED_PER_DEVICE_MAX: Final = 512
"""A device asks for eight ranges at a time; at the smallest chunk size they make this many pieces."""
RETAINED_PIECE_BYTES: Final = 16_384

Wrap: TypeAlias = Callable[[Message], bytes]
_Wanted: TypeAlias = tuple[Wrap, str, bytes, int, int]
"""In whose name, for which device, which blob, from and to which byte."""


class Downloads:
    """The blobs that devices may ask for, by digest; all tasks of a coordinator share its connection and this window.

    Attributes:
        bytes_sent: Payload bytes that were sent so far.
        packet_bytes_max: Largest packet that the broker takes, in bytes, as far as that is known.

    Args:
        topics: The federation's topics.
        read: Gives the bytes of a blob, None where there is none. Each blob is read once while it is served.
        chunk_bytes_max: Largest range in one message, in bytes.
        retained_add: Journals retained topics, before they are published.
        retained_remove: Forgets them, after the broker has taken what clears them.
    """

    def __init__(
        self,
        topics: Topics,
        read: Callable[[bytes], bytes | None],
        *,
        chunk_bytes_max: int,
        retained_add: Callable[..., None],
        retained_remove: Callable[..., None],
    ) -> None:
        self._topics = topics
        self._read = read
        self._chunk_bytes_max = chunk_bytes_max
        self._retained_add = retained_add
        self._retained_remove = retained_remove
        self._served: dict[str, frozenset[bytes]] = {}  # by task
        self._packed: dict[bytes, tuple[bytes, bytes] | None] = {}  # by the plain one's digest: digest and bytes
        self._by_name: dict[bytes, bytes] = {}  # all of them by short digests, as devices name them
        self._blobs: dict[bytes, bytes] = {}  # those of them that were asked for
        self._up = False
        self._token = 0
        self._in_flight: dict[int, str] = {}  # token -> the topic that it clears, "" for anything else
        self._wanted: deque[_Wanted] = deque()
        self._wanted_by: Counter[str] = Counter()
        self._pieces: deque[tuple[str, bytes, int]] = deque()  # topic, digest (empty: to be cleared), offset
        self._retained: dict[bytes, None] = {}
        self._stale: dict[str, None] = {}
        self.packet_bytes_max = BODY_BYTES_MAX

    def serve(self, task: str, digests: Iterable[bytes]) -> None:
        """From now on these blobs are served for a task, and no others."""
        self._served[task] = frozenset(digests)
        self._packed = {digest: packed for digest, packed in self._packed.items() if digest in self._all_served}
        self._name_all()
        self._blobs = {digest: blob for digest, blob in self._blobs.items() if self._is_served(digest)}

    def size(self, digest: bytes) -> int:
        """The bytes of a blob that is served, 0 for none."""
        return len(self._blob(digest) or b"")

    def packed(self, digest: bytes, stride: int = 1) -> tuple[bytes, int] | None:
        """SHA-256 and bytes of a served blob as it is packed, which is served too; None where it is not worth it.

        Args:
            digest: That of the blob.
            stride: As of :func:`edge_sdk.wire.packing.pack`.
        """
        if digest not in self._packed:
            blob = self._blob(digest)
            data = None if blob is None else pack(blob, stride)
            self._packed[digest] = None if data is None else (digest_of(data), data)
            self._name_all()
        found = self._packed[digest]
        return None if found is None else (found[0], len(found[1]))

    @property
    def _all_served(self) -> set[bytes]:
        return set().union(*self._served.values())

    def _retainable(self) -> list[bytes]:
        """Digests of all that is served, in either form."""
        return [*self._all_served, *(found[0] for found in self._packed.values() if found is not None)]

    def _name_all(self) -> None:
        self._by_name = {short(digest): digest for digest in self._retainable()}

    def _is_served(self, digest: bytes) -> bool:
        return self._by_name.get(short(digest)) == digest

    def _blob(self, digest: bytes) -> bytes | None:
        blob = self._blobs.get(digest)
        if blob is None:
            blob = next((found[1] for found in self._packed.values() if found and found[0] == digest), None)
        if blob is None and self._is_served(digest):
            blob = self._read(digest)
            if blob is not None:
                self._blobs[digest] = blob
        return blob

    def blob(self, digest: bytes) -> bytes | None:
        """The bytes of a blob that is served, None where it is not."""
        return self._blob(digest)

    def limit_chunk(self, packet_bytes_max: int, envelope_bytes: int) -> None:
        """The broker takes packets of at most ``packet_bytes_max`` bytes."""
        self.packet_bytes_max = min(self.packet_bytes_max, packet_bytes_max)
        self._chunk_bytes_max = max(1024, min(self._chunk_bytes_max, packet_bytes_max - envelope_bytes))

    # --- the connection ---

    def on_broker_up(self) -> list[Effect]:
        """The broker is (back) here, perhaps empty: all retained pieces once more, and what is still to be cleared."""
        self._up = True
        self._pieces.clear()
        self._pieces += [(topic, b"", 0) for topic in self._stale]
        for digest in self._retained:
            self._pieces += self._pieces_of(digest)
        return self._more()

    def on_broker_down(self) -> None:
        """What was asked for in that connection will be asked for again."""
        self._up = False
        self._wanted.clear()
        self._wanted_by.clear()
        self._in_flight.clear()

    def on_published(self, token: int) -> list[Effect]:
        """The broker has a message: the next may go. A topic that is cleared for certain leaves the journal."""
        cleared = self._in_flight.pop(token, "")
        if cleared in self._stale:
            del self._stale[cleared]
            self._retained_remove(cleared)
        return self._more()

    # --- ranges on request ---

    def on_want(self, device: str, want: RangeRequest, wrap: Wrap) -> list[Effect]:
        """Queues what a device asks for; a blob that is not served any more is ``gone``.

        Args:
            device: Who asks.
            want: For what.
            wrap: Makes a payload out of a message, in the name of the task that was asked.
        """
        digest = self._by_name.get(want.digest, b"")
        blob = self._blob(digest)
        if blob is None:
            return [Publish(BULK, self._topics.to_device(device, BlobGone.kind), wrap(BlobGone(digest=want.digest)))]
        for start, stop in want.ranges:
            stop = min(stop, len(blob))
            for at in range(start, stop, self._chunk_bytes_max):
                # Beyond the limits the device asks again, after its stall timer.
                if len(self._wanted) >= QUEUED_MAX or self._wanted_by[device] >= QUEUED_PER_DEVICE_MAX:
                    return self._more()
                self._wanted.append((wrap, device, digest, at, min(at + self._chunk_bytes_max, stop)))
                self._wanted_by[device] += 1
        return self._more()

    # --- the retained cache ---

    def retain(self, digest: bytes) -> list[Effect]:
        """Publishes a blob in retained pieces; their topics are journalled first, so that they can be cleared."""
        if digest in self._retained:
            return []
        self._retained[digest] = None
        pieces = self._pieces_of(digest)
        for topic, _, _ in pieces:
            self._stale.pop(topic, None)
        self._retained_add(*(topic for topic, _, _ in pieces))
        self._pieces += pieces
        return self._more()

    def clear_retained(self, topics: Iterable[str]) -> list[Effect]:
        """Removes every journalled retained piece that belongs to no blob served now."""
        keep = {blob_name(digest) for digest in self._retainable()}
        self._retained = {digest: None for digest in self._retained if self._is_served(digest)}
        for topic in topics:
            parts = self._topics.parse(topic)
            if topic not in self._stale and not (parts is not None and parts[0] == "blobs" and parts[1] in keep):
                self._stale[topic] = None
                self._pieces.append((topic, b"", 0))
        return self._more()

    def _pieces_of(self, digest: bytes) -> list[tuple[str, bytes, int]]:
        return [(self._topics.blob(digest, at), digest, at) for at in range(0, self.size(digest), RETAINED_PIECE_BYTES)]

    # --- sending ---

    def _more(self) -> list[Effect]:
        """As much as the window takes; requests and retained pieces take turns."""
        effects: list[Effect] = []
        while self._up and (self._wanted or self._pieces) and len(self._in_flight) < IN_FLIGHT_MAX:
            if self._pieces:
                effects += self._send_piece(*self._pieces.popleft())
            if self._wanted:
                effects += self._send_range(*self._wanted.popleft())
        return effects

    def _send_range(self, wrap: Wrap, device: str, digest: bytes, start: int, stop: int) -> list[Effect]:
        self._wanted_by[device] -= 1
        if not self._wanted_by[device]:
            del self._wanted_by[device]
        blob = self._blob(digest)
        if blob is None:
            return []
        message = RangeData(digest=short(digest), offset=start, data=blob[start:stop])
        return [self._publish(self._topics.to_device(device, RangeData.kind), wrap(message))]

    def _send_piece(self, topic: str, digest: bytes, offset: int) -> list[Effect]:
        if not digest:
            return [self._publish(topic, b"", retain=True, clears=topic)] if topic in self._stale else []
        blob = self._blob(digest)
        if blob is None or digest not in self._retained:
            return []
        return [self._publish(topic, blob[offset : offset + RETAINED_PIECE_BYTES], retain=True)]

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False, clears: str = "") -> Publish:
        self._token += 1
        self._in_flight[self._token] = clears
        return Publish(BULK, topic, payload, retain=retain, token=self._token)
