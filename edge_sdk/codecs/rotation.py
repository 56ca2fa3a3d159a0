"""A seeded rotation of a vector, block by block, after which coordinates are nearly normal whatever they were before.

A block of P coordinates (a power of two, 64 to 4096) is multiplied by random signs and then by the Hadamard matrix of
order P, unnormalised: its rows are orthogonal and of norm sqrt(P), so the inverse is the same matrix, the same signs
and a division by P. The matrix is a Kronecker product, H(P) = H(A) x H(B), so a block is two small matrix products,
which cost a quarter of the usual butterflies.

A vector is cut into blocks of 4096, then into one of 2048, 1024, .. 64 for each such bit of what remains, and last one
of 64 for fewer than that, which alone is filled up with zeros.

Where the input is integers and all sums are below 2^24, float32 holds every intermediate value exactly: any BLAS, any
order of terms, any processor gives the same bits. That is how a decoder uses it.

Source: Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", 2009 (signs and Hadamard matrix).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.splitmix import random_words

__all__ = ["Span", "hadamard", "hadamard_exactly", "rotated_size", "signs", "spans_of"]

BLOCK_SIZE_MAX: Final = 4096
BLOCK_SIZE_MIN: Final = 64
_ROWS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks of one size that follow each other.

    Attributes:
        start: The first coordinate, a multiple of 64.
        block: Coordinates of a block.
        count: Number of blocks.
        real: Coordinates of the last block that are the vector's; the others are filling.
    """

    start: int
    block: int
    count: int
    real: int

    @property
    def stop(self) -> int:
        """The coordinate behind the last one, filling included."""
        return self.start + self.block * self.count


@lru_cache(maxsize=16)
def spans_of(size: int) -> tuple[Span, ...]:
    """How a vector of ``size`` coordinates is cut into blocks."""
    whole = size // BLOCK_SIZE_MAX
    spans = [Span(0, BLOCK_SIZE_MAX, whole, BLOCK_SIZE_MAX)] if whole else []
    start, block = whole * BLOCK_SIZE_MAX, BLOCK_SIZE_MAX >> 1
    while block >= BLOCK_SIZE_MIN:
        if size & block:
            spans.append(Span(start, block, 1, block))
            start += block
        block >>= 1
    if start < size:
        spans.append(Span(start, BLOCK_SIZE_MIN, 1, size - start))
    return tuple(spans)


def rotated_size(size: int) -> int:
    """Coordinates of the rotated vector: ``size`` up to the next multiple of 64."""
    return spans_of(size)[-1].stop


def hadamard(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row of float32[count, P] times the Hadamard matrix of order P, as a new float32[count, P]."""
    count, size = blocks.shape
    columns = min(_ROWS_MAX, size)
    rows = size // columns
    once = blocks.reshape(count * rows, columns) @ _matrix(columns)
    twice: NDArray[np.float32] = np.matmul(_matrix(rows), once.reshape(count, rows, columns))
    return twice.reshape(count, size)


def hadamard_exactly(blocks: NDArray[np.float64]) -> None:
    """Each row of float64[count, P] times the Hadamard matrix, in place, by elementwise operations alone.

    Slower than :func:`hadamard`, but sums of any numbers have the same bits on every machine.
    """
    count, size = blocks.shape
    half = 1
    while half < size:
        pairs = blocks.reshape(count, size // (2 * half), 2, half)
        upper, lower = pairs[:, :, 0], pairs[:, :, 1]
        upper += lower
        lower *= -2.0
        lower += upper
        half *= 2


def signs(seed: int, start: int, count: int) -> NDArray[np.float32]:
    """float32[count] of -1 and 1: those of the coordinates from ``start`` (a multiple of 64) on.

    Coordinate i has -1 where bit ``i % 64`` of the word ``i // 64`` of SplitMix64 is set.
    """
    words = random_words(seed, (count + 63) >> 6, first=start >> 6).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    drawn = bits.astype(np.float32)
    drawn *= -2.0
    drawn += 1.0
    return drawn


@lru_cache(maxsize=8)
def _matrix(order: int) -> NDArray[np.float32]:
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix
