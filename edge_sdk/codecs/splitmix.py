"""Random bits that are the same on every machine and NumPy release.

``numpy.random`` promises its raw streams only, and importing it loads OpenSSL through ``secrets``: 10 MB that a device
does not need. SplitMix64 is a counter put through an integer hash, so a whole array of it is a few array operations.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants of
Stafford's variant 13.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["random_words", "uniforms"]

_WORD: Final = (1 << 64) - 1
_INCREMENT: Final = 0x9E3779B97F4A7C15
_MULTIPLIER_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2: Final = np.uint64(0x94D049BB133111EB)


def random_words(seed: int, count: int, first: int = 0) -> NDArray[np.uint64]:
    """uint64[count]: outputs from number ``first`` on of SplitMix64 seeded with the low 64 bits of ``seed``."""
    words = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    words *= np.uint64(_INCREMENT)
    words += np.uint64(seed & _WORD)
    for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
        words ^= words >> np.uint64(shift)
        words *= multiplier
    words ^= words >> np.uint64(31)
    return words


def uniforms(seed: int, count: int) -> NDArray[np.float32]:
    """float32[count] uniform in (0, 1) with 16 bits each: the middles of 65,536 equal intervals, exact in float32.

    A comparison with a probability p is true with p rounded to 16 bits, so a stochastic rounding is off by 2^-17 of a
    step at most.
    """
    halves = random_words(seed, (count + 3) >> 2).astype("<u8", copy=False).view("<u2")[:count]
    values = halves.astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(2.0**-16)
    return values
