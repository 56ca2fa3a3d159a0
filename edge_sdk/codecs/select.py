"""The exact top k of a vector by magnitude, at a fraction of the cost of partitioning it.

The magnitudes of a small fixed sample of positions give a threshold that almost surely leaves somewhat more than k
coordinates. Only these are partitioned. If chance left fewer than k, the filter is dropped: the result is always
exact and never depends on the sample.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.feedback import check_magnitude

__all__ = ["add_and_select"]

_SAMPLE_SIZE: Final = 2048
_SAMPLED_SIZE_MIN: Final = 1 << 15  # below, the whole vector is as cheap as a sample
_SAFETY_DEVIATIONS: Final = 3.0
_CHUNK_SIZE: Final = 1 << 17  # a multiple of 8; what is read again soon stays in the cache, and there are few calls
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiples spread evenly and hit no layer's period
_SMALLEST: Final = np.float32(2.0**-149)


def add_and_select(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """``delta + residual`` and where its largest magnitudes are.

    Args:
        delta: float32[P].
        residual: float32[P] or None for zeros.
        count: How many coordinates to select; fewer are, if fewer are not zero.

    Returns:
        The sum as a new float32[P], and int64[k] increasing indices into it. Among equal magnitudes at the edge the
        lower indices are selected.

    Raises:
        TrainingError: A coordinate of the sum cannot be sent.
    """
    # What overflows is refused below; a warning on the device's console would say less.
    with np.errstate(over="ignore", invalid="ignore"):
        threshold = _sampled_threshold(delta, residual, count)
        total, bits = _add_and_compare(delta, residual, threshold)
        candidates = _positions(bits, delta.size)
        if candidates.size < count and threshold > _SMALLEST:
            candidates = np.flatnonzero(~(np.abs(total) < _SMALLEST))
        magnitudes = np.abs(total[candidates])
        largest = float(magnitudes.max(initial=0.0))
    # A NaN is not below any threshold, hence among the candidates, as infinity and the largest magnitude are.
    check_magnitude(largest)
    positive = magnitudes > 0.0  # a processor that flushes denormals to zero finds zeros not below the smallest one
    if not positive.all():
        candidates, magnitudes = candidates[positive], magnitudes[positive]
    return total, candidates[_top(magnitudes, count)]


def _top(magnitudes: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    surplus = magnitudes.size - count
    if surplus <= 0:
        return np.arange(magnitudes.size)
    edge = np.partition(magnitudes, surplus)[surplus]
    kept = np.flatnonzero(magnitudes >= edge)
    if kept.size > count:
        at_edge = np.flatnonzero(magnitudes[kept] == edge)
        kept = np.delete(kept, at_edge[count - kept.size :])
    return kept


def _sampled_threshold(delta: NDArray[np.float32], residual: NDArray[np.float32] | None, count: int) -> np.float32:
    """A magnitude that about ``count`` coordinates and a safety margin reach; the smallest one if none can be told."""
    size = delta.size
    expected = count / size * _SAMPLE_SIZE
    rank = math.ceil(expected + _SAFETY_DEVIATIONS * math.sqrt(expected) + 2.0)
    if size < _SAMPLED_SIZE_MIN or rank >= _SAMPLE_SIZE:
        return _SMALLEST
    positions = _sample_positions(size)
    sample = delta[positions] if residual is None else delta[positions] + residual[positions]
    np.abs(sample, out=sample)
    threshold = np.partition(sample, _SAMPLE_SIZE - rank)[_SAMPLE_SIZE - rank]
    return np.float32(max(threshold, _SMALLEST))


def _sample_positions(size: int) -> NDArray[np.int64]:
    spread = (np.arange(_SAMPLE_SIZE, dtype=np.uint64) * _GOLDEN) >> np.uint64(32)
    return ((spread * np.uint64(size)) >> np.uint64(32)).astype(np.int64)


def _add_and_compare(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None, threshold: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The sum, and a bit per coordinate, clear where its magnitude is below ``threshold`` (which a NaN never is)."""
    total = np.empty_like(delta)
    bits = np.empty((delta.size + 7) >> 3, dtype=np.uint8)
    magnitudes = np.empty(min(_CHUNK_SIZE, delta.size), dtype=np.float32)
    small = np.empty(magnitudes.size, dtype=np.bool_)
    for start in range(0, delta.size, _CHUNK_SIZE):
        part = slice(start, start + _CHUNK_SIZE)
        chunk = total[part]
        if residual is None:
            chunk[:] = delta[part]
        else:
            np.add(delta[part], residual[part], out=chunk)
        magnitude = np.abs(chunk, out=magnitudes[: chunk.size])
        below = np.less(magnitude, threshold, out=small[: chunk.size])
        np.invert(np.packbits(below), out=bits[start >> 3 : (start + chunk.size + 7) >> 3])
    return total, bits


def _positions(bits: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Where the first ``size`` bits are set, int64, increasing: few octets have any, and only these are unpacked."""
    octets = (bits != 0).nonzero()[0]
    found = np.unpackbits(bits[octets]).view(np.bool_).nonzero()[0]
    positions: NDArray[np.int64] = octets[found >> 3]
    positions <<= 3
    found &= 7
    positions += found
    return positions[: np.searchsorted(positions, size)]
