"""The task's model for ``edge-device check``: its program, and the statistics of the features in its parameters.

A coordinator says in the retained JSON of its round which program and parameters it serves, and answers whoever asks
for ranges of them; no ticket is needed to look. Of the parameters only the few bytes are asked for that hold mean and
scale of the features. Where no coordinator answers, what the state directory holds is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device.blob_cache import NAME
from edge_sdk.errors import DecodeError, EdgeFedError, ProtocolError
from edge_sdk.training.bundle import PARAMETERS_HEADER_BYTES
from edge_sdk.training.program import Program, digest_of
from edge_sdk.wire.fields import integer
from edge_sdk.wire.messages import BLOB_BYTES_MAX, RangeData, RangeRequest, short
from edge_sdk.wire.ranges import Ranges, Reassembly, plan_chunks

__all__ = ["FETCH_BYTES_MAX", "Model", "Served", "Statistics", "cached_model", "fetch_model", "served_of"]

FETCH_BYTES_MAX: Final = 4 << 20
"""A larger program is not fetched only to look; once a device has it, it is compared from the state directory."""
CHUNK_BYTES: Final = 32_768
WINDOW_CHUNKS: Final = 8
RANGES_MAX: Final = 16
SILENCES_MAX: Final = 2
"""Times that an answer may be lost, as when the coordinator starts anew."""
ROUND_BYTES_MAX: Final = 1 << 20

_SIZE: Final = integer(1, BLOB_BYTES_MAX)


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What the federation knows of the features: float32[features] each.

    Attributes:
        mean: In raw units.
        scale: One over the standard deviation; 0 for a feature that does not vary.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What there is to compare with.

    Attributes:
        program: The program.
        statistics: None where there are none, or none yet.
        source: Where it came from, for people.
    """

    program: Program
    statistics: Statistics | None
    source: str


@dataclass(frozen=True, slots=True)
class Served:
    """What a coordinator serves: SHA-256 and bytes of program and parameters."""

    program: bytes
    program_bytes: int
    parameters: bytes
    parameters_bytes: int


Ask = Callable[[RangeRequest, Callable[[], bool]], Iterable[RangeData]]
"""Asks a coordinator; gives ranges of the blob as they come, until the second argument says that there are enough, or
nothing comes any more."""


def served_of(payload: bytes) -> Served | None:
    """What the retained JSON of a round says about the model; None where it says nothing that makes sense."""
    try:
        told: Any = json.loads(payload) if len(payload) <= ROUND_BYTES_MAX else None
        model = told["model"]
        sizes = [_SIZE(model[f"{name}_bytes"], f"model.{name}_bytes") for name in ("program", "parameters")]
        program, parameters = (bytes.fromhex(model[name]) for name in ("program", "parameters"))
    except (ValueError, TypeError, KeyError, RecursionError, DecodeError):
        return None
    if len(program) != 32 or len(parameters) != 32:
        return None
    return Served(program, sizes[0], parameters, sizes[1])


def fetch_model(served: Served, ask: Ask, state_dir: Path, program_bytes_max: int) -> Model:
    """The model that a coordinator serves.

    Args:
        served: What it says.
        ask: Asks it.
        state_dir: Where a device may have the program already.
        program_bytes_max: The largest program that this device takes.

    Raises:
        EdgeFedError: It is not to be had; says why.
    """
    if served.program_bytes > program_bytes_max:
        raise EdgeFedError(
            f"the model's program has {served.program_bytes} bytes, this device takes {program_bytes_max}: raise "
            "limits.program_bytes_max"
        )
    data = _cached(state_dir, "program", served.program)
    source = "the one in the state directory"
    if data is None:
        if served.program_bytes > FETCH_BYTES_MAX:
            raise EdgeFedError(
                f"the model's program has {served.program_bytes} bytes, which are not fetched only to look; it is "
                "compared once this device has taken part"
            )
        data = _fetch_whole(served, ask)
        source = f"fetched, {served.program_bytes} bytes"
    program = Program.decode(data, program_bytes_max=program_bytes_max)
    return Model(program, _fetched_statistics(program, served, ask), source)


def cached_model(state_dir: Path, program_bytes_max: int) -> Model | None:
    """The newest model that the state directory holds; None where it holds none that can be read."""
    for path in _newest(state_dir, "program"):
        data = _read(path)
        if data is None:
            continue
        try:
            program = Program.decode(data, program_bytes_max=program_bytes_max)
        except ProtocolError:
            continue
        return Model(program, _cached_statistics(program, state_dir), "the newest one in the state directory")
    return None


def _fetch_whole(served: Served, ask: Ask) -> bytes:
    whole = Reassembly(served.program, served.program_bytes, bytes_max=FETCH_BYTES_MAX)
    silences = 0
    while not whole.complete:
        wanted = plan_chunks(whole.received.missing(whole.total), CHUNK_BYTES)[:WINDOW_CHUNKS]
        before = whole.received.bytes
        needed = before + sum(stop - start for start, stop in wanted)
        request = RangeRequest(digest=short(served.program), ranges=tuple(wanted))
        for piece in ask(request, partial(_holds, whole, needed)):
            whole.add(piece.offset, piece.data)
        silences += whole.received.bytes == before
        if silences == SILENCES_MAX:
            raise EdgeFedError(
                f"the coordinator sent {before} of the {whole.total} bytes of the model's program, and then nothing"
            )
    return bytes(whole.take())


def _holds(whole: Reassembly, count: int) -> bool:
    return whole.received.bytes >= count


def _fetched_statistics(program: Program, served: Served, ask: Ask) -> Statistics | None:
    """Only the ranges of the two constants; nothing vouches for them, and nothing but a warning hangs on them."""
    spans = [_Span(start, bytearray(stop - start)) for start, stop in _spans(program)]
    wanted = plan_chunks([(span.start, span.stop) for span in spans], CHUNK_BYTES)
    fits = served.parameters_bytes == PARAMETERS_HEADER_BYTES + 4 * program.spec.size
    if not spans or not fits or len(wanted) > RANGES_MAX:
        return None

    def is_enough() -> bool:
        return all(span.received.covers(len(span.data)) for span in spans)

    for piece in ask(RangeRequest(digest=short(served.parameters), ranges=tuple(wanted)), is_enough):
        for span in spans:
            span.add(piece)
    return _statistics(*(bytes(span.data) for span in spans)) if is_enough() else None


@dataclass(slots=True)
class _Span:
    """Some of the bytes of a blob, from ``start`` on."""

    start: int
    data: bytearray
    received: Ranges = field(default_factory=Ranges)

    @property
    def stop(self) -> int:
        return self.start + len(self.data)

    def add(self, piece: RangeData) -> None:
        first, last = max(self.start, piece.offset), min(self.stop, piece.offset + len(piece.data))
        if first < last:
            self.data[first - self.start : last - self.start] = piece.data[first - piece.offset : last - piece.offset]
            self.received = self.received.add(first - self.start, last - self.start)


def _cached_statistics(program: Program, state_dir: Path) -> Statistics | None:
    for path in _newest(state_dir, "parameters"):
        data = _read(path)
        if data is not None and len(data) == PARAMETERS_HEADER_BYTES + 4 * program.spec.size:
            return _statistics(*(data[start:stop] for start, stop in _spans(program)))
    return None


def _spans(program: Program) -> list[tuple[int, int]]:
    """Where mean and scale stand among the bytes of the parameters; nothing where the federation shares none."""
    told = program.normalise
    if told is None or told.mode != "federated":
        return []
    tensors = [program.spec[told.mean], program.spec[told.scale]]
    starts = [PARAMETERS_HEADER_BYTES + 4 * tensor.offset for tensor in tensors]
    return [(start, start + 4 * tensor.size) for start, tensor in zip(starts, tensors, strict=True)]


def _statistics(*constants: bytes) -> Statistics | None:
    """Out of the bytes of mean and scale; None where there are none, or none but those that every model begins with."""
    if not constants:
        return None
    mean, scale = (np.frombuffer(data, "<f4") for data in constants)
    known = bool(np.any(mean != 0) or np.any(scale != 1))
    return Statistics(mean, scale) if known and np.isfinite(mean).all() and np.isfinite(scale).all() else None


def _newest(state_dir: Path, kind: str) -> list[Path]:
    try:
        found = [(p.stat().st_mtime, p) for p in state_dir.iterdir() if (m := NAME.fullmatch(p.name)) and m[1] == kind]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def _cached(state_dir: Path, kind: str, digest: bytes) -> bytes | None:
    return _read(state_dir / f"{kind}-{digest.hex()}")


def _read(path: Path) -> bytes | None:
    """The content of an entry of the cache, whose name is its SHA-256."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    match = NAME.fullmatch(path.name)
    return data if match is not None and digest_of(data).hex() == match[2] else None
