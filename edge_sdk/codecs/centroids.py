"""The levels that rotated coordinates are rounded to: the optimal quantisers of a normal distribution, as integers.

Integers, so that a decoder's sums are exact whatever the order of their terms. The values are the positive half of
Lloyd and Max's quantiser with 2^width levels, times 512, rounded; they cost at most 0.7 % more distortion (at 8 bits).
Of one bit the levels are 1 and -1 (a set bit is a negative number), since the scale says the rest.

Source: S. Lloyd, "Least squares quantization in PCM", 1982; J. Max, "Quantizing for minimum distortion", 1960.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNIT", "levels", "nearest_codes"]

UNIT: Final = 512
"""Levels are multiples of a standard deviation / 512; none is above 8 deviations, 4096."""

# fmt: off
_POSITIVE: Final[dict[int, tuple[int, ...]]] = {
    2: (232, 773),
    3: (125, 387, 688, 1102),
    4: (66, 199, 336, 482, 643, 828, 1059, 1399),
    5: (34, 101, 170, 239, 310, 383, 458, 537, 620, 710, 807, 915, 1039, 1187, 1378, 1669),
    6: (
        17, 51, 86, 120, 155, 190, 225, 260, 296, 333, 370, 407, 446, 485, 525, 567, 609, 653, 699, 747, 797, 849,
        905, 965, 1029, 1099, 1177, 1265, 1368, 1494, 1659, 1917,
    ),
    7: (
        9, 26, 43, 60, 78, 95, 112, 130, 147, 165, 182, 200, 218, 235, 253, 271, 289, 308, 326, 344, 363, 382, 401,
        420, 440, 459, 479, 499, 519, 540, 561, 582, 604, 625, 648, 670, 694, 717, 741, 766, 792, 818, 844, 872, 900,
        929, 960, 991, 1024, 1059, 1095, 1133, 1173, 1215, 1261, 1310, 1364, 1423, 1489, 1565, 1655, 1765, 1912, 2145,
    ),
    8: (
        4, 13, 22, 30, 39, 48, 56, 65, 74, 82, 91, 100, 108, 117, 126, 135, 143, 152, 161, 170, 178, 187, 196, 205,
        214, 223, 232, 241, 250, 259, 268, 277, 286, 295, 304, 313, 323, 332, 341, 351, 360, 369, 379, 388, 398, 407,
        417, 427, 436, 446, 456, 466, 476, 486, 496, 506, 516, 527, 537, 547, 558, 569, 579, 590, 601, 612, 623, 634,
        645, 656, 668, 679, 691, 703, 715, 727, 739, 751, 764, 776, 789, 802, 815, 828, 842, 856, 869, 884, 898, 912,
        927, 942, 958, 973, 989, 1006, 1022, 1039, 1057, 1074, 1093, 1111, 1130, 1150, 1171, 1192, 1213, 1236, 1259,
        1283, 1308, 1335, 1362, 1391, 1421, 1453, 1488, 1524, 1564, 1606, 1653, 1705, 1763, 1831, 1911, 2010, 2144,
        2357,
    ),
}
# fmt: on
_CELLS: Final = 1 << 14
_REACH: Final = 6.0
"""Deviations that the look-up table covers; beyond it everything has the outermost level."""


@lru_cache(maxsize=8)
def levels(width: int) -> NDArray[np.int16]:
    """int16[2^width]: the level of each code, rising but for one bit; read-only."""
    if width == 1:
        return np.array([1, -1], dtype=np.int16)
    positive = np.array(_POSITIVE[width], dtype=np.int16)
    both = np.concatenate([-positive[::-1], positive])
    both.flags.writeable = False
    return both


def nearest_codes(coordinates: NDArray[np.float32], width: int) -> NDArray[np.uint8]:
    """uint8, of the shape of ``coordinates``: the code of the level nearest to each coordinate.

    Args:
        coordinates: In standard deviations; overwritten.
        width: Bits, 2 to 8.
    """
    coordinates *= np.float32(_CELLS / (2.0 * _REACH))
    coordinates += np.float32(_CELLS / 2)
    np.clip(coordinates, 0.0, _CELLS - 1, out=coordinates)
    return _table(width)[coordinates.astype(np.int16)]


@lru_cache(maxsize=1)
def _table(width: int) -> NDArray[np.uint8]:
    """The code of each of many narrow cells: a search among the thresholds, done beforehand."""
    among = levels(width).astype(np.float64) / UNIT
    middles = (np.arange(_CELLS) + 0.5) * (2.0 * _REACH / _CELLS) - _REACH
    return np.searchsorted((among[1:] + among[:-1]) / 2.0, middles).astype(np.uint8)
