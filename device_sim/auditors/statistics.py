"""Mean and scale of features once more, as the textbook has them: what the auditor compares a round of statistics with.

Fractions of whole numbers here, one feature after the other, from the bytes that devices have sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_and_scale"]


def mean_and_scale(
    reports: Sequence[tuple[Mapping[str, bytes], int]], of: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """``(mean, scale)`` float32[features] of all values, where each device counts as its weight.

    Args:
        reports: The arrays of each device by name, as ``feature_sums.FeatureSums`` encodes them, and its weight in
            examples.
        of: ``target`` for those of the target, where what does not vary has the scale 1; else they are of the features.
    """
    if of == "target":
        own = [({name[7:]: data for name, data in a.items() if name[:7] == "target_"}, weight) for a, weight in reports]
        means, scales = mean_and_scale(own)
        return means, np.where(scales == 0, np.float32(1), scales)
    rows = [({name: np.frombuffer(data, "<f8") for name, data in arrays.items()}, weight) for arrays, weight in reports]
    features = len(rows[0][0]["sums"])
    found = [_of_feature([_shares(arrays, weight, feature) for arrays, weight in rows]) for feature in range(features)]
    mean, scale = zip(*found, strict=True)
    return np.array(mean, np.float32), np.array(scale, np.float32)


def _shares(arrays: Mapping[str, NDArray[np.float64]], weight: int, feature: int) -> tuple[Fraction, ...]:
    """Count, sum and sum of squares of one feature on one device, as if it had ``weight`` values.

    The protocol rounds this product to a float64; everything behind it is exact.
    """
    values = float(arrays["values"][0])
    missing = float(arrays["missing"][feature]) if "missing" in arrays else 0.0
    told = (values - missing, float(arrays["sums"][feature]), float(arrays["squares"][feature]))
    return tuple(Fraction(weight / values * number) for number in told)


def _of_feature(shares: Sequence[tuple[Fraction, ...]]) -> tuple[float, float]:
    count, total, squares = (sum(column, Fraction(0)) for column in zip(*shares, strict=True))
    if not count:
        return 0.0, 0.0
    mean, mean_square = total / count, squares / count
    deviation = math.sqrt(max(float(mean_square - mean * mean), 0.0))
    varies = deviation > max(2.0**-20 * math.sqrt(float(mean_square)), 2.0**-126)
    return float(mean), 1.0 / deviation if varies else 0.0
