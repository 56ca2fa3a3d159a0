"""Serving blobs to devices: ranges on request, and the retained cache that serves many at once (rule 7). PURE.

Requests wait in a queue of their own and go out a few at a time, each when the broker has acknowledged an earlier one:
a thousand devices that ask for four megabytes each cost this process a thousand small tuples, not four gigabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from coordinator.events import BULK, Effect, Publish
from edge_sdk.messages import Bytes, Gone, Message, Want
from edge_sdk.topics import Topics

__all__ = ["Downloads"]

IN_FLIGHT_MAX: Final = 32
QUEUED_MAX: Final = 100_000
RETAINED_PIECE_BYTES: Final = 16_384


class Downloads:
    """The blobs of the round, by digest.

    Args:
        topics: The federation's topics.
        wrap: Makes a payload out of a message.
        chunk_bytes_max: Largest range in one message, in bytes.
        retained_add: Journals a retained topic, before it is published.
        retained_remove: Forgets it, after it was cleared.
    """

    def __init__(
        self,
        topics: Topics,
        wrap: Callable[[Message], bytes],
        *,
        chunk_bytes_max: int,
        retained_add: Callable[[str], None],
        retained_remove: Callable[[str], None],
    ) -> None:
        self._topics = topics
        self._wrap = wrap
        self._chunk_bytes_max = chunk_bytes_max
        self._retained_add = retained_add
        self._retained_remove = retained_remove
        self._blobs: dict[bytes, bytes] = {}
        self._queue: deque[tuple[str, bytes, int, int]] = deque()
        self._in_flight: set[int] = set()
        self._token = 0
        self._retained: set[bytes] = set()
        self.bytes_sent = 0

    def serve(self, blobs: dict[bytes, bytes]) -> None:
        """From now on these blobs are served, and no others."""
        self._blobs = dict(blobs)

    def limit_chunk(self, packet_bytes_max: int, envelope_bytes: int) -> None:
        """The broker takes packets of at most ``packet_bytes_max`` bytes."""
        self._chunk_bytes_max = max(1024, min(self._chunk_bytes_max, packet_bytes_max - envelope_bytes))

    def on_want(self, device: str, want: Want) -> list[Effect]:
        """Queues what a device asks for; a blob that is not served any more is ``gone``."""
        blob = self._blobs.get(want.digest)
        if blob is None:
            payload = self._wrap(Gone(digest=want.digest))
            return [Publish(BULK, self._topics.to_device(device, Gone.kind), payload)]
        for start, stop in want.ranges:
            stop = min(stop, len(blob))
            for at in range(start, stop, self._chunk_bytes_max):
                if len(self._queue) < QUEUED_MAX:  # beyond it the device asks again, after its stall timer
                    self._queue.append((device, want.digest, at, min(at + self._chunk_bytes_max, stop)))
        return self._more()

    def on_published(self, token: int) -> list[Effect]:
        self._in_flight.discard(token)
        return self._more()

    def on_broker_down(self) -> None:
        """What was asked for in that connection will be asked for again."""
        self._queue.clear()
        self._in_flight.clear()

    def _more(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue and len(self._in_flight) < IN_FLIGHT_MAX:
            device, digest, start, stop = self._queue.popleft()
            blob = self._blobs.get(digest)
            if blob is None:
                continue
            self._token += 1
            self._in_flight.add(self._token)
            message = Bytes(digest=digest, total=len(blob), offset=start, data=blob[start:stop])
            payload = self._wrap(message)
            self.bytes_sent += len(payload)
            effects.append(Publish(BULK, self._topics.to_device(device, Bytes.kind), payload, token=self._token))
        return effects

    # --- the retained cache ---

    def retain(self, digest: bytes) -> list[Effect]:
        """Publishes a blob in retained pieces; each topic is journalled first, so that it can be cleared."""
        if digest in self._retained:
            return []
        self._retained.add(digest)
        effects: list[Effect] = []
        for topic, piece in self._pieces(digest):
            self._retained_add(topic)
            self.bytes_sent += len(piece)
            effects.append(Publish(BULK, topic, piece, retain=True))
        return effects

    def again(self) -> list[Effect]:
        """After the broker came back, perhaps empty: all retained pieces once more."""
        return [Publish(BULK, t, p, retain=True) for digest in self._retained for t, p in self._pieces(digest)]

    def clear_retained(self, topics: Iterable[str]) -> list[Effect]:
        """Removes every journalled retained piece that belongs to no blob served now."""
        keep = {digest.hex() for digest in self._blobs}
        self._retained = {digest for digest in self._retained if digest in self._blobs}
        effects: list[Effect] = []
        for topic in topics:
            parts = self._topics.parse(topic)
            if parts is not None and parts[1] in keep:
                continue
            effects.append(Publish(BULK, topic, b"", retain=True))
            self._retained_remove(topic)
        return effects

    def _pieces(self, digest: bytes) -> Iterable[tuple[str, bytes]]:
        blob = self._blobs.get(digest, b"")
        for offset in range(0, len(blob), RETAINED_PIECE_BYTES):
            yield self._topics.blob(digest, offset), blob[offset : offset + RETAINED_PIECE_BYTES]
