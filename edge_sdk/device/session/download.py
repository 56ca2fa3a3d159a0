"""Fetching one blob by its digest: from the retained cache where there is one, else by asking for ranges (rule 7).

PURE, a part of the session. The device chooses the sizes: they are halved after a stall without progress. A stall in
the cache, or an empty retained payload ("gone"), falls back to asking; nothing that has arrived is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edge_sdk.device.session.events import Action, Subscribe, Unsubscribe
from edge_sdk.errors import DecodeError
from edge_sdk.wire.messages import RangeRequest, short
from edge_sdk.wire.ranges import ChunkSize, Reassembly, plan_chunks
from edge_sdk.wire.topics import Topics

__all__ = ["PIECE_BYTES", "Download"]

WINDOW_CHUNKS: Final = 8
STALL_SECONDS: Final = 8.0
STALL_SECONDS_MAX: Final = 60.0
PIECE_BYTES: Final = 600
"""Beside the data of a piece, at most: topic, envelope, digest, acknowledgement."""


class Download:
    """One blob on its way to this device.

    Args:
        kind: ``program``, ``parameters`` or ``model_delta``.
        digest: SHA-256 of the blob, 32 bytes.
        total: Its size in bytes.
        blob_bytes: Size of the retained pieces in bytes, 0 where there are none.
        bytes_max: The largest blob that this device takes, in bytes.
        chunk: Gives the link's range size: halved after a stall without progress.
        range_bytes_max: The largest range that the coordinator sends in one message, in bytes.
        topics: The federation's topics.
        send: Wraps a message for the coordinator into an action.
        rng: For jitter.

    Raises:
        DecodeError: The digest or the size is not acceptable.
    """

    def __init__(
        self,
        kind: str,
        digest: bytes,
        total: int,
        *,
        blob_bytes: int,
        bytes_max: int,
        chunk: Callable[[], ChunkSize],
        range_bytes_max: int,
        topics: Topics,
        send: Callable[[RangeRequest], Action],
        rng: np.random.Generator,
    ) -> None:
        self.kind = kind
        self.digest = digest
        self._reassembly = Reassembly(digest, total, bytes_max=bytes_max)
        self._blob_bytes = blob_bytes
        self._chunk = chunk
        self._range_bytes_max = range_bytes_max
        self._topics = topics
        self._send = send
        self._rng = rng
        self._asked: list[tuple[int, int]] = []  # ranges under way, asked for by Want
        self._subscribed: set[int] = set()  # offsets under way from the cache
        self._stalls = 0
        self._progress = False
        self.deadline = float("inf")

    @property
    def complete(self) -> bool:
        return self._reassembly.complete

    def take(self) -> memoryview:
        """The blob; on a wrong digest all is forgotten, and the next try asks the coordinator itself.

        Raises:
            DecodeError: What arrived is not what was promised.
        """
        self._blob_bytes = 0
        return self._reassembly.take()

    def start(self, now: float) -> list[Action]:
        """(Re)starts after a connection is made or a stall: everything missing is under way again."""
        self._asked.clear()
        self._subscribed.clear()
        self._arm(now)
        return self._more()

    def stop(self) -> list[Action]:
        """Leaves no subscription behind."""
        left, self._subscribed = self._subscribed, set()
        self.deadline = float("inf")
        return [Unsubscribe(tuple(self._topics.blob(self.digest, offset) for offset in sorted(left)))] if left else []

    def on_range(self, offset: int, data: bytes, now: float) -> list[Action]:
        """A range that was asked for. Nonsense is ignored: the stall timer asks again, and the digest decides."""
        self._add(offset, data, now)
        missing = self._missing()
        self._asked = [(a, b) for a, b in self._asked if any(start < b and a < stop for start, stop in missing)]
        return [] if self.complete or len(self._asked) > WINDOW_CHUNKS // 2 else self._more()

    def on_retained(self, offset: int, data: bytes, now: float) -> list[Action]:
        """A piece from the cache; an empty one means that the cache is gone."""
        if offset not in self._subscribed:
            return []
        if not data:
            return self._leave_cache(now)
        self._add(offset, data, now)
        if self.complete:
            return self.stop()
        waiting = {o for o in self._subscribed if any(a <= o < b for a, b in self._missing())}
        if len(waiting) > WINDOW_CHUNKS // 2:
            return []
        done, self._subscribed = self._subscribed - waiting, waiting
        gone = Unsubscribe(tuple(self._topics.blob(self.digest, o) for o in sorted(done)))
        return [*([gone] if done else []), *self._more()]

    def on_stall(self, now: float) -> list[Action]:
        """Nothing has come for too long: smaller pieces, and away from the cache."""
        self._stalls += 1
        self._chunk().cut(self._progress)
        self._progress = False
        return self._leave_cache(now)

    def _leave_cache(self, now: float) -> list[Action]:
        actions = self.stop()
        self._blob_bytes = 0
        return actions + self.start(now)

    def _missing(self) -> list[tuple[int, int]]:
        return self._reassembly.received.missing(self._reassembly.total)

    def _add(self, offset: int, data: bytes, now: float) -> None:
        try:
            new = self._reassembly.add(offset, data)
        except DecodeError:
            return
        if new:
            self._progress = True
            self._stalls = 0
            self._chunk().progress()
            self._arm(now)

    def _arm(self, now: float) -> None:
        seconds = min(STALL_SECONDS * 2**self._stalls, STALL_SECONDS_MAX)
        self.deadline = now + seconds * (1.0 + 0.25 * float(self._rng.random()))

    def _more(self) -> list[Action]:
        return self._more_retained() if self._blob_bytes else self._more_ranges()

    def _more_ranges(self) -> list[Action]:
        missing = self._reassembly.received
        for start, stop in self._asked:
            missing = missing.add(start, stop)
        size = min(self._chunk().current, self._range_bytes_max)
        wanted = plan_chunks(missing.missing(self._reassembly.total), size)
        wanted = wanted[: WINDOW_CHUNKS - len(self._asked)]
        self._asked += wanted
        return [self._send(RangeRequest(digest=short(self.digest), ranges=tuple(wanted)))] if wanted else []

    def _more_retained(self) -> list[Action]:
        size = self._blob_bytes
        offsets: list[int] = []
        room = WINDOW_CHUNKS - len(self._subscribed)
        for start, stop in self._missing():
            for offset in range(start - start % size, stop, size):
                if offset not in self._subscribed and len(offsets) < room:
                    offsets.append(offset)
            if len(offsets) >= room:
                break
        self._subscribed.update(offsets)
        if not offsets:
            return []
        asked_bytes = len(offsets) * (size + PIECE_BYTES)
        return [Subscribe(tuple(self._topics.blob(self.digest, o) for o in offsets), asked_bytes)]
