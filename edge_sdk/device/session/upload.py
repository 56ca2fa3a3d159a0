"""Bringing one update to the coordinator: offer, send what is missing, wait for the verdict; never a blind resend.

PURE, a part of the session. A PUBACK covers one chunk and means only that the *broker* has it (rule 5); only the
coordinator's verdict ends an upload. After a cut, a new incarnation or silence the device offers again, and the
answer says which ranges are missing. A small update that has just been made is sent without that question; nothing
of it is sent a second time before the answer to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.session.events import Action
from edge_sdk.wire.messages import Chunk, Have, Offer, short
from edge_sdk.wire.ranges import DIRECT_BYTES_MAX, ChunkSize, Ranges, plan_chunks

__all__ = ["Upload"]

WINDOW_CHUNKS: Final = 4
ANSWER_SECONDS: Final = 8.0
ANSWER_SECONDS_MAX: Final = 300.0


class Upload:
    """One update on its way to the coordinator.

    Args:
        update: The update; ``payload`` must be there.
        chunk: Gives the link's chunk size: halved after a cut or a silence without progress.
        send_offer: Wraps an offer into an action.
        send_chunk: Wraps a chunk into an action and returns it with its token.
        rng: For jitter.
        direct_bytes_max: Largest update that is sent without an offer, in bytes.
    """

    def __init__(
        self,
        update: PendingUpdate,
        *,
        chunk: Callable[[], ChunkSize],
        send_offer: Callable[[Offer], Action],
        send_chunk: Callable[[Chunk], tuple[int, Action]],
        rng: np.random.Generator,
        direct_bytes_max: int = DIRECT_BYTES_MAX,
    ) -> None:
        if update.payload is None:
            raise ValueError("an update without its payload cannot be uploaded")
        self.update = update
        self._payload = memoryview(update.payload)
        self._chunk = chunk
        self._send_offer = send_offer
        self._send_chunk = send_chunk
        self._rng = rng
        self._direct_bytes_max = direct_bytes_max
        self._queue: list[tuple[int, int]] = []
        self._in_flight: set[int] = set()
        self._silences = 0
        self._offered = False
        self._progress = False
        self.deadline = float("inf")

    @property
    def total(self) -> int:
        return len(self._payload)

    def begin(self, now: float) -> list[Action]:
        """Sends a small update at once, and offers any other."""
        if self.total > min(self._direct_bytes_max, self._chunk().current):
            return self.offer(now)
        self._queue = [(0, self.total)]
        self._arm(now)
        return self._more()

    def offer(self, now: float) -> list[Action]:
        """Asks what the coordinator has; what was in flight before counts for nothing."""
        self._queue.clear()
        self._in_flight.clear()
        self._offered = True
        self._arm(now)
        return [self._send_offer(Offer(ticket=self.update.ticket, digest=self.update.digest, total=self.total))]

    def pause(self) -> None:
        """The connection or the coordinator is gone: wait for a new one."""
        self._note_cut()
        self._queue.clear()
        self._in_flight.clear()
        self._offered = False
        self._silences = 0
        self.deadline = float("inf")

    def postpone(self, seconds: float, now: float) -> None:
        """The coordinator is busy: offer again after ``seconds``, with jitter so that not all come at once."""
        self._queue.clear()
        self._offered = False
        self.deadline = now + max(seconds, 1.0) * (0.8 + 0.4 * float(self._rng.random()))

    def on_have(self, have: Have, now: float) -> list[Action]:
        """The answer to an offer. A second answer to the same offer changes nothing."""
        if not self._offered:
            return []
        self._offered = False
        self._silences = 0
        stored = Ranges(have.ranges)
        size = self._chunk().current
        if have.chunk_bytes_max:
            size = min(size, have.chunk_bytes_max)
        self._queue = plan_chunks(stored.missing(self.total), size)
        self._arm(now)
        return self._more()

    def on_published(self, token: int, now: float) -> list[Action]:
        """The broker has one chunk: the next may go."""
        if token not in self._in_flight:
            return []
        self._in_flight.discard(token)
        self._progress = True
        self._chunk().progress()
        self._arm(now)
        return self._more()

    def on_silence(self, now: float) -> list[Action]:
        """No answer, no PUBACK or no verdict for too long: offer again."""
        self._silences += 1
        self._note_cut()
        return self.offer(now)

    def _note_cut(self) -> None:
        """A link that drops before one chunk is through would else be given the same chunk for ever."""
        if self._in_flight:
            self._chunk().cut(self._progress)
        self._progress = False

    def _more(self) -> list[Action]:
        actions: list[Action] = []
        while self._queue and len(self._in_flight) < WINDOW_CHUNKS:
            start, stop = self._queue.pop(0)
            whole = stop - start == self.total
            token, action = self._send_chunk(
                Chunk(
                    ticket=self.update.ticket,
                    digest=short(self.update.digest) if whole else self.update.digest,
                    total=0 if whole else self.total,
                    offset=start,
                    data=bytes(self._payload[start:stop]),
                )
            )
            self._in_flight.add(token)
            actions.append(action)
        return actions

    def _arm(self, now: float) -> None:
        seconds = min(ANSWER_SECONDS * 2 ** min(self._silences, 10), ANSWER_SECONDS_MAX)
        self.deadline = now + seconds * (1.0 + 0.25 * float(self._rng.random()))
