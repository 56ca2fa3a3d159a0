"""What a task's devices fetch: program, parameters, model deltas, further vectors; on request and as retained pieces.

Only digests and sizes stand here. The bytes are read from the database when somebody asks for them
(``coordinator/downloads.py``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from coordinator.downloads import RETAINED_PIECE_BYTES, Downloads
from coordinator.events import Effect
from coordinator.schedules.selection import wanted_count
from coordinator.store import ModelDeltaRecord, Store, way_from
from coordinator.task_settings import TaskSettings
from edge_sdk.wire.messages import short
from edge_sdk.wire.packing import FLOAT_STRIDE
from edge_sdk.wire.plan import Plan

__all__ = ["Serving", "Way"]

RETAIN_FROM_DEVICES: Final = 8


@dataclass(frozen=True, slots=True)
class Way:
    """How a device comes to the parameters of its ticket.

    Attributes:
        base: SHA-256 of the parameters that the deltas start from; empty without deltas.
        deltas: SHA-256 and bytes of the model deltas, the oldest first.
        inline: In their place the deltas themselves, or without a base the whole parameters, where they are small.
        packed: SHA-256 and bytes of the packed parameters, where they are fetched whole and packing is worth it.
        fetched: Bytes of what the device gets beside the program: the deltas, the whole parameters, or nothing.
    """

    base: bytes = b""
    deltas: tuple[tuple[bytes, int], ...] = ()
    inline: tuple[bytes, ...] = ()
    packed: tuple[bytes, int] | None = None
    fetched: int = 0


class Serving:
    """The blobs of one task's newest round, and of the one before (its stragglers may still be fetching; rule 7).

    Args:
        settings: The task.
        store: Holds the blobs.
        downloads: Hands them out.
        effects: Where the turn's effects are gathered.
    """

    def __init__(self, settings: TaskSettings, store: Store, downloads: Downloads, effects: list[Effect]) -> None:
        self._settings = settings
        self._store = store
        self._downloads = downloads
        self._effects = effects
        self._deltas: list[ModelDeltaRecord] = []
        self._broadcast: tuple[tuple[str, bytes, int], ...] = ()
        self._program_alone = False
        self.parameters = b""
        self.parameters_bytes = 0
        self.program_bytes = store.blob_bytes(settings.program_digest) or 0

    @property
    def retains(self) -> bool:
        """Whether what is invited to is also published in retained pieces."""
        s = self._settings
        if s.retained_blobs == "auto":
            return wanted_count(s.round.goal_count, s.round.over_selection) >= RETAIN_FROM_DEVICES
        return s.retained_blobs == "always"

    @property
    def program_packed(self) -> tuple[bytes, int] | None:
        """SHA-256 and bytes of the packed program, None where it is not worth it."""
        return self._downloads.packed(self._settings.program_digest)

    @property
    def piece_bytes(self) -> int:
        """Bytes of a retained piece, 0 where there are none."""
        return RETAINED_PIECE_BYTES if self.retains else 0

    @property
    def vectors(self) -> tuple[tuple[str, bytes, int], ...]:
        """``(name, digest, bytes)`` of what devices of the open round fetch beside the parameters."""
        return () if self._program_alone else self._broadcast

    def begin(self, plan: Plan) -> None:
        """A round begins: its plan says whether devices fetch more than the program."""
        self._program_alone = plan.without_parameters

    def publish(self, parameters: bytes) -> None:
        """From now on devices train from the parameters with this SHA-256, and get what goes with them."""
        before = {self.parameters, *(digest for _, digest, _ in self._broadcast)} - {b""}
        self.parameters = parameters
        self.parameters_bytes = self._store.blob_bytes(parameters) or 0
        self._broadcast = self._store.broadcast(self._settings.task)
        self._deltas = self._store.deltas(self._settings.task)
        beside = (*(delta.digest for delta in self._deltas), *(digest for _, digest, _ in self._broadcast))
        self._downloads.serve(self._settings.task, {self._settings.program_digest, parameters, *beside, *before})

    @property
    def told(self) -> dict[str, Any]:
        """Which program and parameters are served, for whoever wants to look at them; plain values."""
        return {
            "program": self._settings.program_digest.hex(),
            "program_bytes": self.program_bytes,
            "parameters": self.parameters.hex(),
            "parameters_bytes": self.parameters_bytes,
        }

    def stop(self) -> None:
        """Nothing more will be asked of anybody: the retained cache goes (rule 14)."""
        self._downloads.serve(self._settings.task, ())
        self.clear()

    def clear(self) -> None:
        """Clears retained pieces of blobs that are not served any more."""
        self._effects += self._downloads.clear_retained(self._store.retained())

    def retain(self, *digests: bytes) -> None:
        """Publishes the program and the vectors, and what those who are invited need beside, in retained pieces."""
        if self.retains:
            packed = self.program_packed
            program = self._settings.program_digest if packed is None else packed[0]
            for digest in (program, *(digest for _, digest, _ in self.vectors), *digests):
                self._effects += self._downloads.retain(digest)

    def retain_all(self) -> None:
        """The same for everything that a device of this round may need."""
        if self._program_alone:
            self.retain()
            return
        packed = self._downloads.packed(self.parameters, FLOAT_STRIDE)
        self.retain(packed[0] if packed else self.parameters, *(delta.digest for delta in self._deltas))

    def read_for(self, way: Way, *, is_new: bool) -> tuple[int, ...]:
        """Bytes of each blob that a device reads from retained pieces; a new one reads the program, too."""
        if not self.retains:
            return ()
        packed = self.program_packed
        program = (self.program_bytes if packed is None else packed[1],) if is_new else ()
        if way.inline or not way.fetched:
            return program
        return (*program, *(size for _, size in way.deltas)) if way.deltas else (*program, way.fetched)

    def way_for(self, holds: Collection[bytes]) -> Way:
        """How a device comes to the newest parameters that holds those with these short digests; what it will fetch is
        retained."""
        if self._program_alone or short(self.parameters) in holds:
            return Way()
        found = way_from(self._deltas, holds)
        base = found[0].base if found else b""
        deltas = tuple((delta.digest, delta.bytes) for delta in found)
        needed = deltas or ((self.parameters, self.parameters_bytes),)
        fetched = sum(size for _, size in needed)
        # The invite must fit into one packet of the broker, with its terms.
        if fetched <= min(self._settings.inline_bytes_max, self._downloads.packet_bytes_max // 2):
            inline = [self._downloads.blob(digest) for digest, _ in needed]
            return Way(base, inline=tuple(blob for blob in inline if blob is not None), fetched=fetched)
        packed = None if deltas else self._downloads.packed(self.parameters, FLOAT_STRIDE)
        if packed is not None:
            needed, fetched = (packed,), packed[1]
        self.retain(*(digest for digest, _ in needed))
        return Way(base, deltas, packed=packed, fetched=fetched)
