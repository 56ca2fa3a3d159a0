"""What one device holds of programs and parameters: in memory, on disk, or just fetched. One place knows it all.

A blob goes this way: the session's fetch leg hands it in (``keep``), a job takes it (``take``), and the job's thread
writes it to the cache on disk (``cache``), because an SD card may take seconds that the network thread does not have.
Deltas of the model are followed here too, where the parameters are that they start from.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from edge_sdk.device.blob_cache import KINDS
from edge_sdk.device.state import DeviceState
from edge_sdk.errors import DecodeError, EdgeFedError
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["BlobMemory", "DeviceBlobs", "JobBlobs"]

PARAMETERS_NAMED_MAX: Final = 8
WRITTEN: Final = "written"
"""In place of the kind of a blob that needs no writing any more."""
FRESH_MAX: Final = 12
"""Blobs of one ticket at most: its program, its parameters, and further vectors."""


class BlobMemory:
    """Downloaded blobs in memory, the most recently used ones; devices of one process may share it.

    Args:
        blobs_max: How many are kept; a device works with two, its program and the round's parameters.
        trusted: Whether a device takes what another one has fetched for its own, and does not ask for it.
    """

    def __init__(self, blobs_max: int = 2, trusted: bool = False) -> None:
        self.trusted = trusted
        self._blobs_max = blobs_max
        self._blobs: OrderedDict[bytes, BytesLike] = OrderedDict()

    @property
    def digests(self) -> Set[bytes]:
        """What is here."""
        return self._blobs.keys()

    def get(self, digest: bytes) -> BytesLike | None:
        """The blob, if it is still here."""
        if digest in self._blobs:
            self._blobs.move_to_end(digest)
        return self._blobs.get(digest)

    def peek(self, digest: bytes) -> BytesLike | None:
        """The blob, if it is still here; it does not count as used."""
        return self._blobs.get(digest)

    def keep(self, digest: bytes, data: BytesLike) -> BytesLike:
        """Keeps a blob and returns the one that is kept: of equal blobs the first."""
        kept = self._blobs.setdefault(digest, data)
        self._blobs.move_to_end(digest)
        while len(self._blobs) > self._blobs_max:
            self._blobs.popitem(last=False)
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class JobBlobs:
    """What a job works with.

    Attributes:
        program: The program's bytes.
        parameters: The parameters' bytes, empty for work that does without them.
        fresh: What has not been written to disk yet, as ``(digest, bytes, kind)``.
        vectors: Bytes of the further vectors that the invite names, by name.
    """

    program: BytesLike
    parameters: BytesLike
    fresh: tuple[tuple[bytes, BytesLike, str], ...]
    vectors: dict[str, BytesLike]


class DeviceBlobs:
    """The blobs of one device, by SHA-256.

    Args:
        state: Its cache on disk.
        memory: Its memory, perhaps shared with other devices of the process.
    """

    def __init__(self, state: DeviceState, memory: BlobMemory | None = None) -> None:
        self._state = state
        self._memory = memory or BlobMemory()
        self._fetched: set[bytes] = set()  # by this device: shared memory may hold what it has never asked for
        self._named: deque[bytes] = deque(maxlen=PARAMETERS_NAMED_MAX)  # parameters of this device, the newest last
        self._fresh: OrderedDict[bytes, tuple[BytesLike, str]] = OrderedDict()  # for the next job, and not on disk yet

    def has(self, digest: bytes) -> bool:
        """Whether a blob is here."""
        return self._get(digest) is not None

    def parameters(self) -> tuple[bytes, ...]:
        """Digests of the parameters that are here, the newest first."""
        here = self._fetched & self._memory.digests
        fetched = [digest for digest in reversed(self._named) if digest in here or digest in self._fresh]
        return tuple(dict.fromkeys((*fetched, *self._state.cached_parameters)))

    def keep(self, kind: str, digest: bytes, data: BytesLike) -> None:
        """Takes a blob that was fetched whole and whose digest holds."""
        self._fresh[digest] = (self._remember(digest, data), kind)
        while len(self._fresh) > FRESH_MAX:
            self._fresh.popitem(last=False)
        if kind == "parameters":
            self._named.append(digest)

    def follow(self, base: bytes, deltas: tuple[BytesLike, ...], target: bytes) -> str:
        """Makes the parameters ``target`` out of those of ``base`` and keeps them; returns why not, "" for success.

        It takes about as long as checking a download of the whole.
        """
        from edge_sdk.training.model_delta import apply_model_deltas

        try:
            # A look that does not count: of two blobs in memory it is the program that must stay.
            data = self._memory.peek(base) if base in self._fetched else None
            data = data or self._state.cache_get(base)
            if data is None:
                raise DecodeError("the parameters that they start from are not here any more")
            self.keep("parameters", target, apply_model_deltas(data, deltas, target))
        except (EdgeFedError, MemoryError) as error:
            return str(error) or type(error).__name__
        return ""

    def take(self, program: bytes, parameters: bytes | None, vectors: dict[str, bytes]) -> JobBlobs | None:
        """What a job needs, by digest; None where something of it is not here any more.

        ``parameters`` is None for work that does without them.
        """
        digests = (program, *(() if parameters is None else (parameters,)), *vectors.values())
        found = {digest: self._get(digest) for digest in digests}
        fresh = tuple((digest, data, kind) for digest, (data, kind) in self._fresh.items() if digest in found)
        self._fresh.clear()
        bytes_of = {digest: data for digest, data in found.items() if data is not None}
        if len(bytes_of) < len(found):
            return None
        named = {name: bytes_of[digest] for name, digest in vectors.items()}
        return JobBlobs(bytes_of[program], b"" if parameters is None else bytes_of[parameters], fresh, named)

    def take_program(self, digest: bytes) -> JobBlobs | None:
        """What a look at the examples needs; the program stays here for the job that follows."""
        data = self._get(digest)
        if data is None:
            return None
        _, kind = self._fresh.get(digest, (data, WRITTEN))
        if digest in self._fresh:
            self._fresh[digest] = data, WRITTEN
        return JobBlobs(data, b"", ((digest, data, kind),), {})

    def cache(self, blobs: JobBlobs) -> None:
        """Writes what is fresh to disk; for the job's thread."""
        for digest, data, kind in blobs.fresh:
            if kind in KINDS:
                self._state.cache_put(digest, data, kind)

    def _get(self, digest: bytes) -> BytesLike | None:
        if digest in self._fresh:
            return self._fresh[digest][0]
        if self._memory.trusted or digest in self._fetched:
            found = self._memory.get(digest)
            if found is not None:
                return found
        data = self._state.cache_get(digest)
        return None if data is None else self._remember(digest, data)

    def _remember(self, digest: bytes, data: BytesLike) -> BytesLike:
        kept = self._memory.keep(digest, data)
        self._fetched.add(digest)
        self._fetched &= self._memory.digests
        return kept
