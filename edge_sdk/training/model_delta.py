"""A model delta of the downlink: the compressed step from parameters that a device holds to the next ones.

After each round the coordinator encodes it, once for all devices, and what it leads to is the model from then on:
what it leaves out of the optimiser's step goes with later ones (error feedback, ``coordinator/downlink.py``). A device
that holds the model delta's base gets the same bytes as the coordinator has: a model delta is decoded with operations
that are exact or rounded in one way everywhere, and the SHA-256 of the result decides. It depends on no program:

    b"EFLK"  version u16  zero u16  msgpack map {base, target, size, replaced, kept, frame, values}

``frame`` is a frame of steps on a grid (``edge_sdk/codecs/grid.py``) of the elements that may move, in order.
``values`` is a dense update frame of those that are replaced: the buffers, and constants that have changed;
``replaced`` says where they are, as [start, stop] ranges. ``kept`` says so of constants that have not changed, which
cost no further byte. A frame is empty where there are no such elements, and ``kept`` is left out.
``docs/wire-format.md`` has it byte by byte.

Steps on a grid add up: :func:`merge_model_deltas` makes one model delta of several that follow each other, for devices
that have missed the rounds between.

Source: Tang et al., "DoubleSqueeze", 2019, for error feedback on the server's side too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings, decode_update, encode_update
from edge_sdk.codecs.grid import GridSteps, decode_grid, encode_grid, merged
from edge_sdk.errors import DecodeError, TrainingError, VersionError
from edge_sdk.parameters import ELEMENTS_MAX, TENSORS_MAX, ParameterSpec
from edge_sdk.training.bundle import digest_of, encode_parameters, parameters_vector
from edge_sdk.wire import fields
from edge_sdk.wire.safe_msgpack import BytesLike, unpack_checked

__all__ = [
    "Choose",
    "ModelDelta",
    "Span",
    "apply_model_deltas",
    "encode_model_delta",
    "merge_model_deltas",
    "spans_of",
]

Span = tuple[int, int]
"""Elements ``start..stop`` of a vector."""

Choose: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.float32]], GridSteps]
"""Which elements move, and how far: from where they are to come and where they are, float32[n] each."""

VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sHH")
_MAGIC: Final = b"EFLK"
_DIGEST_BYTES: Final = 32
_OBJECTS_MAX: Final = 3 * TENSORS_MAX + 64
_DENSE: Final = CodecSettings("dense")
_SIZE: Final = fields.integer(1, ELEMENTS_MAX)
_DIGEST: Final = fields.octets(_DIGEST_BYTES)
_FRAME: Final = fields.octets_upto(8 * ELEMENTS_MAX)
_SPANS: Final = fields.list_of(
    fields.row_of(start=fields.integer(0, ELEMENTS_MAX), stop=fields.integer(1, ELEMENTS_MAX)), TENSORS_MAX
)


@dataclass(frozen=True, slots=True, eq=False)
class ModelDelta:
    """What a model delta says, its fields checked; the frames are checked when they are decoded.

    Attributes:
        base: SHA-256 of the parameters that it starts from.
        target: SHA-256 of the parameters that it leads to.
        size: Elements of either.
        replaced: Where elements get new values: sorted spans.
        kept: Where elements stay as they are: sorted spans, none of which overlaps one of ``replaced``.
        frame: The frame of steps of all other elements, empty where there are none.
        values: The dense frame of the new values, empty where there are none.
    """

    base: bytes
    target: bytes
    size: int
    replaced: tuple[Span, ...]
    kept: tuple[Span, ...]
    frame: bytes
    values: bytes

    def encode(self) -> bytes:
        """The model delta as bytes; their SHA-256 names it."""
        told: dict[str, Any] = {
            "base": self.base,
            "target": self.target,
            "size": self.size,
            "replaced": self.replaced,
            "frame": self.frame,
            "values": self.values,
        }
        if self.kept:
            told["kept"] = self.kept
        packed: bytes = msgpack.packb(told)
        return _HEADER.pack(_MAGIC, VERSION, 0) + packed

    @classmethod
    def decode(cls, data: BytesLike) -> ModelDelta:
        """The inverse of :meth:`encode`, for bytes that nobody vouches for.

        Raises:
            DecodeError: Malformed, truncated or out of range.
            VersionError: A version that this side does not read.
        """
        view = memoryview(data)
        if len(view) < _HEADER.size or bytes(view[:4]) != _MAGIC:
            raise DecodeError("model delta: these bytes do not start like a model delta", reason="magic")
        _, version, zero = _HEADER.unpack_from(view)
        if version != VERSION:
            raise VersionError(f"model delta: version {version}, this side reads {VERSION}: upgrade the older side")
        if zero:
            raise DecodeError(f"model delta: header field is {zero}, expected 0")
        unpacked = unpack_checked(view[_HEADER.size :], objects_max=_OBJECTS_MAX, depth_max=3, where="model delta")
        source = fields.mapping(unpacked, "model delta")
        size = _SIZE(source.get("size"), "model delta.size")
        replaced = _spans(source.get("replaced"), size, "replaced")
        kept = _spans(source.get("kept", []), size, "kept")
        _spans(sorted([*replaced, *kept]), size, "kept")  # neither may lie in the other
        return cls(
            base=_DIGEST(source.get("base"), "model delta.base"),
            target=_DIGEST(source.get("target"), "model delta.target"),
            size=size,
            replaced=replaced,
            kept=kept,
            frame=_FRAME(source.get("frame"), "model delta.frame"),
            values=_FRAME(source.get("values"), "model delta.values"),
        )


def encode_model_delta(
    base: BytesLike,
    wanted: NDArray[np.float32],
    buffers: Sequence[Span],
    choose: Choose,
    *,
    constants: Sequence[Span] = (),
    base_digest: bytes | None = None,
) -> tuple[bytes, bytes]:
    """The model delta from one model towards where it is to come, and the parameters that it leads to.

    Args:
        base: The parameters blob that devices hold.
        wanted: float32[P], where its elements are to come.
        buffers: Where its buffers are, as :func:`spans_of` gives it.
        choose: Which of all other elements move, and how far.
        constants: Where its constants are; the model delta holds the values of those spans in which one has changed.
        base_digest: SHA-256 of ``base``, where it is known.

    Returns:
        The model delta and the next parameters blob. The latter is what is wanted in buffers and constants; elsewhere
        it lacks what was left out.

    Raises:
        TrainingError: The step cannot be encoded: it is too large, or the result is not finite.
        ValueError: The sizes differ.
    """
    start = parameters_vector(base)
    if wanted.shape != start.shape:
        raise ValueError(f"the model has {wanted.size} elements, its base {start.size}")
    if not np.isfinite(wanted).all():
        raise TrainingError("the next parameters are not all finite: training has diverged")
    kept = [span for span in constants if _is_same(wanted, start, span)]
    replaced = sorted([*buffers, *(span for span in constants if span not in kept)])
    moving = _between(sorted([*replaced, *kept]), wanted.size)
    frame = values = b""
    if moving:
        frame = encode_grid(choose(_gathered(wanted, moving), _gathered(start, moving)))
    if replaced:
        values = encode_update(_gathered(wanted, replaced), None, _DENSE, seed=0).frame
    made = ModelDelta(
        base=base_digest or digest_of(base),
        target=bytes(_DIGEST_BYTES),
        size=wanted.size,
        replaced=tuple(replaced),
        kept=tuple(kept),
        frame=frame,
        values=values,
    )
    moved = start.astype(np.float32)
    _move(moved, made)
    try:
        target = encode_parameters(moved)
    except ValueError as error:
        raise TrainingError(f"the next parameters cannot be sent: {error}") from error
    return replace(made, target=digest_of(target)).encode(), target


def merge_model_deltas(deltas: Sequence[BytesLike]) -> bytes | None:
    """One model delta that leads to where several lead that follow each other, to the bit.

    Args:
        deltas: Model deltas of our own making, the oldest first; at least one.

    Returns:
        None where there is none: their steps do not add up exactly, or constants have changed on the way.
    """
    told = [ModelDelta.decode(data) for data in deltas]
    first, last = told[0], told[-1]
    if any((each.replaced, each.kept) != (first.replaced, first.kept) for each in told):
        return None
    frame = b""
    if first.frame:
        moving = _size(_between(sorted([*first.replaced, *first.kept]), first.size))
        steps = merged([decode_grid(each.frame, moving) for each in told])
        if steps is None:
            return None
        frame = encode_grid(steps)
    return replace(last, base=first.base, frame=frame).encode()


def apply_model_deltas(base: BytesLike, deltas: Sequence[BytesLike], target: bytes) -> memoryview:
    """The parameters blob that deltas lead to from ``base``, bit-identical to the coordinator's.

    Takes the memory of one more blob, beside what is given.

    Args:
        base: The parameters blob that the first model delta starts from.
        deltas: ModelDeltas that nobody vouches for, the oldest first; at least one.
        target: SHA-256 of the parameters that they must lead to, 32 bytes.

    Returns:
        A read-only view of the new blob.

    Raises:
        DecodeError: A model delta is damaged, they make no chain, or the result is another one (reason ``digest``).
        VersionError: A model delta is written in a version that this side does not read.
    """
    blob = bytearray(base)
    vector = parameters_vector(blob)
    reached = b""
    for data in deltas:
        model_delta = ModelDelta.decode(data)
        if reached and model_delta.base != reached:
            raise DecodeError("model delta: it does not start where the one before ends", reason="chain")
        if model_delta.size != vector.size:
            raise DecodeError(
                f"model delta: for {model_delta.size} elements, its base has {vector.size}", reason="spec"
            )
        _move(vector, model_delta)
        reached = model_delta.target
    if reached != target:
        raise DecodeError("model delta: the deltas lead to other parameters than those wanted", reason="chain")
    if digest_of(blob) != target:
        raise DecodeError("model delta: the result has another SHA-256 than the target", reason="digest")
    return memoryview(blob).toreadonly()


def spans_of(spec: ParameterSpec, kind: str) -> tuple[Span, ...]:
    """Where the tensors of a kind are: sorted spans, one for all that follow each other."""
    spans: list[Span] = []
    for tensor in spec:
        if tensor.kind != kind:
            continue
        if spans and spans[-1][1] == tensor.offset:
            spans[-1] = (spans[-1][0], tensor.offset + tensor.size)
        else:
            spans.append((tensor.offset, tensor.offset + tensor.size))
    return tuple(spans)


def _move(vector: NDArray[np.float32], model_delta: ModelDelta) -> None:
    """Steps at the elements that move, and new values where there are some; in place."""
    moving = _between(sorted([*model_delta.replaced, *model_delta.kept]), vector.size)
    if bool(model_delta.frame) != bool(moving) or bool(model_delta.values) != bool(model_delta.replaced):
        raise DecodeError("model delta: a frame is missing, or there without elements", reason="buffers")
    if moving:
        steps = decode_grid(model_delta.frame, _size(moving))
        places = _places(steps.indices, moving)
        vector[places] = steps.moved(vector[places])  # whether all of it is finite, the digest of the result decides
    if model_delta.replaced:
        values, at = decode_update(model_delta.values, _size(model_delta.replaced), _DENSE).dense(), 0
        for start, stop in model_delta.replaced:
            vector[start:stop] = values[at : at + stop - start]
            at += stop - start


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32], span: Span) -> bool:
    """Whether two vectors have the same bits in a span."""
    return one[slice(*span)].tobytes() == other[slice(*span)].tobytes()


def _between(spans: Sequence[Span], size: int) -> list[Span]:
    """What sorted spans leave of ``0..size``."""
    edges = [0, *(edge for span in spans for edge in span), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _size(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _gathered(vector: NDArray[np.float32], spans: Sequence[Span]) -> NDArray[np.float32]:
    """The elements of all spans, one behind the other; a view where there is one span."""
    parts = [vector[start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _places(indices: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.int64]:
    """Where coordinates of the gathered spans are in the whole vector."""
    if len(spans) == 1:
        return indices + spans[0][0] if spans[0][0] else indices
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = np.cumsum([stop - start for start, stop in spans], dtype=np.int64)
    shifts = starts - (ends - np.diff(ends, prepend=0))
    places: NDArray[np.int64] = indices + shifts[np.searchsorted(ends, indices, side="right")]
    return places


def _spans(value: object, size: int, name: str) -> tuple[Span, ...]:
    spans: tuple[Span, ...] = _SPANS(value, f"model delta.{name}")
    behind = 0
    for start, stop in spans:
        if not behind <= start < stop <= size:
            raise DecodeError(f"model delta.{name}: {start}..{stop} is out of order or not within 0..{size}")
        behind = stop
    return spans
