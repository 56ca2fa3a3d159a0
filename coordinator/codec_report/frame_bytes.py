"""What a frame's bytes are spent on: how many on each coordinate, and of a sparse one on indices and values. PURE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings, Decoded, decode_update, frame_bytes_max, frame_codec
from edge_sdk.codecs.frame import unpack_frame
from edge_sdk.codecs.index_coding import best_parameter, decode_indices
from edge_sdk.codecs.leb128 import unpack_number
from edge_sdk.codecs.sparse_rows import taken_apart

__all__ = ["SparseCost", "bytes_by_element", "sparse_cost"]

_LEVELS_BYTES: Final = 8  # base and step, two float32


@dataclass(frozen=True, slots=True, eq=False)
class SparseCost:
    """What a frame of ``sparse`` is made of.

    Attributes:
        indices: int64[k], rising: the coordinates that were sent.
        magnitudes: float32[k], of their values.
        size: Coordinates of the whole vector.
        body_bytes: Of the frame without its head.
        index_bytes: Bytes of the indices.
        value_bytes: Bytes of the values: base, step, signs, quotients.
        base, step: Of the values.
    """

    indices: NDArray[np.int64]
    magnitudes: NDArray[np.float32]
    size: int
    body_bytes: int
    index_bytes: int
    value_bytes: int
    base: float
    step: float

    @property
    def bits_per_nonzero(self) -> float | None:
        """Bits of the body for each coordinate that was sent; None where none was."""
        return 8.0 * self.body_bytes / self.indices.size if self.indices.size else None

    @property
    def index_ratio(self) -> float | None:
        """Bits of the indices / log2 C(size, k), which no code is below on average where positions are random."""
        bits = _log2_choices(self.size, self.indices.size)
        return 8.0 * self.index_bytes / bits if bits else None


def sparse_cost(frame: bytes, size: int, settings: CodecSettings) -> SparseCost | None:
    """What a frame of ``size`` coordinates is made of; None if it is not one of ``sparse``."""
    if frame_codec(frame) != "sparse":
        return None
    body = _body(frame, size, settings)
    decoded = decode_update(frame, size, settings)
    assert isinstance(decoded, Decoded) and decoded.indices is not None
    count, rest = unpack_number(body, size, "the number of coordinates sent")
    if not count:
        return SparseCost(decoded.indices, np.abs(decoded.values), size, len(body), 0, 0, 0.0, 0.0)
    _, _, values = decode_indices(rest, count, size)
    base, step = np.frombuffer(values[:_LEVELS_BYTES], dtype="<f4").tolist()
    return SparseCost(
        decoded.indices,
        np.abs(decoded.values),
        size,
        len(body),
        len(rest) - len(values),
        len(values),
        base,
        step,
    )


def bytes_by_element(frame: bytes, size: int, settings: CodecSettings) -> NDArray[np.float64]:
    """float64[size]: the bytes of the frame's body that each coordinate takes; together they are the body.

    Codecs that send all coordinates alike spend the same on each. Of a sparse frame a coordinate has the bits of its
    index (as a Golomb code has them; deflate, whose codes overlap, in the same proportion), of its sign and of its
    quotient; what all share is spread in the same proportion. Of a frame of rows the coordinates of these share their
    values' bytes and the indices, those in no table the rest, and all others take none.
    """
    if frame_codec(frame) == "sparse_rows":
        return _bytes_of_rows(_body(frame, size, settings), size)
    cost = sparse_cost(frame, size, settings)
    body_bytes = len(_body(frame, size, settings))
    if cost is None or not cost.indices.size:
        return np.full(size, body_bytes / size)
    parameter = best_parameter(cost.indices.size, size)
    gaps = np.diff(cost.indices, prepend=-1) - 1
    index_bits = gaps // parameter + 1 + (parameter - 1).bit_length()
    quotients = np.rint((cost.magnitudes - cost.base) / cost.step) if cost.step else np.zeros(cost.indices.size)
    value_bits = quotients + 2.0
    spent = np.zeros(size)
    spent[cost.indices] = cost.index_bytes * index_bits / index_bits.sum()
    spent[cost.indices] += (body_bytes - cost.index_bytes) * value_bits / value_bits.sum()
    return spent


def _bytes_of_rows(body: memoryview, size: int) -> NDArray[np.float64]:
    tables, _, rest = taken_apart(body, size)
    outside = np.ones(size, dtype=np.bool_)
    for table in tables:
        outside[table.start : table.start + table.size] = False
    spent = np.where(outside, len(rest) / max(1, int(outside.sum())), 0.0)
    sent = [table.positions() for table in tables if table.lines.size]
    # Where no row is sent, the head is that of the rest.
    head = np.concatenate(sent) if sent else np.flatnonzero(outside if outside.any() else ~outside)
    spent[head] += (len(body) - len(rest)) / head.size
    return spent


def _body(frame: bytes, size: int, settings: CodecSettings) -> memoryview:
    return unpack_frame(frame, size, frame_bytes_max(size, settings))[1]


def _log2_choices(size: int, count: int) -> float:
    natural = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return natural / math.log(2.0)
