"""Count, sum and sum of squares of each feature: what a device says about its raw examples, and how it is added up.

The mean and the scale of a normalisation follow from them, however the examples are divided over devices. Values are
clipped to the range that the program states, so that one device cannot move the sums further than by its count, and
NaN is left out and counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError, ExamplesError
from edge_sdk.training.examples import Examples
from edge_sdk.training.masked import counted_values, mask_of
from edge_sdk.training.names import listed
from edge_sdk.training.normalise import Normalise
from edge_sdk.training.program import Program

__all__ = [
    "COUNT_MAX",
    "FEATURE_BYTES",
    "ExactFeatureSums",
    "FeatureSums",
    "feature_sums",
    "out_of_range_text",
    "sums_of_examples",
]

COUNT_MAX: Final = 1 << 48
"""Values of one feature that one device may count."""

_NAMES: Final = ("squares", "sums", "values")
_MISSING: Final = "missing"
_CLIPPED: Final = "clipped"
FEATURE_BYTES: Final = 32
"""Of one feature in an update, at most: ``sums``, ``squares``, ``missing`` and ``clipped``."""
CLIPPED_SHARE_MAX: Final = 0.5
_BLOCK_ELEMENTS: Final = 1 << 18  # 2 MB of float64 at a time, however many examples there are
_ROUNDING: Final = 1e-6
"""What sums of very many float64 may be off by, relative to their size."""
_SHIFT: Final = 1074  # each finite float64 is a whole number of 2^-1074
_SPREAD_MIN: Final = 2.0**-20
"""A standard deviation below this share of the root mean square counts as none: float32 holds no more than some steps
of such a feature."""
_FLOAT32_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSums:
    """What one device knows of each feature; ``features`` is the length of all arrays.

    Attributes:
        counts: float64[features], whole: values that are there.
        sums: float64[features]: their sum, in the feature's raw unit.
        squares: float64[features]: the sum of their squares.
        missing: float64[features], whole: values that are NaN.
        clipped: float64[features], whole: values among ``counts`` that were clipped.
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    missing: NDArray[np.float64]
    clipped: NDArray[np.float64]

    @property
    def out_of_range(self) -> NDArray[np.intp]:
        """Positions of the features of which more than half of the values were clipped: mean and scale say little."""
        return np.flatnonzero(self.clipped > CLIPPED_SHARE_MAX * self.counts)

    def encode(self) -> dict[str, bytes]:
        """Arrays by name as little-endian float64, as they stand in an update.

        ``sums`` and ``squares`` have one number for each feature; ``values`` has the one number of values that every
        feature has, those that are missing among them; ``missing`` and ``clipped`` are there where any value is, one
        number for each feature.
        """
        told = {"squares": self.squares, "sums": self.sums, "values": self.counts[:1] + self.missing[:1]}
        if self.missing.any():
            told[_MISSING] = self.missing
        if self.clipped.any():
            told[_CLIPPED] = self.clipped
        return {name: array.astype("<f8").tobytes() for name, array in told.items()}

    @classmethod
    def decode(cls, value: Mapping[str, bytes], normalise: Normalise) -> FeatureSums:
        """The inverse of :meth:`encode`, for bytes that nobody vouches for.

        Args:
            value: The arrays by name.
            normalise: Number of features, and the range within which values must have been.

        Raises:
            DecodeError: An array is missing or has another length, or the numbers cannot be sums of such values
                (reason ``feature_sums``).
        """
        if set(value) - {_MISSING, _CLIPPED} != set(_NAMES):
            raise _refused(f"expected the arrays {', '.join(_NAMES)}, and {_MISSING} or {_CLIPPED} where values are")
        features = normalise.features
        squares, sums = (_array(name, value[name], features) for name in ("squares", "sums"))
        values = _whole_numbers("values", value["values"], 1)
        missing, clipped = (
            _whole_numbers(name, value[name], features) if name in value else np.zeros(features)
            for name in (_MISSING, _CLIPPED)
        )
        if not values[0] > 0 or (missing > values[0]).any():
            raise _refused("of no value at all, or more are missing than there are")
        if (clipped > values[0] - missing).any():
            raise _refused("more values were clipped than there are")
        found = cls(values[0] - missing, sums, squares, missing, clipped)
        _check(found, normalise.clip)
        return found


def sums_of_examples(examples: Examples, program: Program, normalise: Normalise) -> FeatureSums:
    """The sums of each feature of the normalised input, over all positions that the program's mask lets count.

    Raises:
        ExamplesError: As of :func:`feature_sums`.
    """
    values = examples.inputs[normalise.input]
    return feature_sums(
        values, normalise, counted_values(mask_of(examples.inputs, program), values.shape, normalise.axis)
    )


def feature_sums(values: NDArray[Any], normalise: Normalise, counted: NDArray[np.bool_] | None = None) -> FeatureSums:
    """The sums of each feature over all examples and all other dimensions.

    Args:
        values: The raw values of the input ``normalise.input``, ``[examples, ...]``; each counts as the model gets it,
            in float32.
        normalise: Which dimension counts features, and the range to which values are clipped.
        counted: Which values are in the sums, the same ones of each feature: bool in a shape that broadcasts to that of
            ``values``, ``counted.shape[normalise.axis]`` = 1 (:func:`edge_sdk.training.masked.counted_values`). None
            for all.

    Raises:
        ExamplesError: No value counts, or one that does is infinite, or the feature's dimension has another length.
    """
    if values.ndim <= normalise.axis or values.shape[normalise.axis] != normalise.features:
        raise ExamplesError(
            f"examples: input {normalise.input!r} has shape {list(values.shape)}, expected {normalise.features} "
            f"features in dimension {normalise.axis}"
        )
    counts, sums, squares, clipped = (np.zeros(normalise.features, np.float64) for _ in range(4))
    total = 0
    rows = max(1, _BLOCK_ELEMENTS // max(values[:1].size, 1))
    for start in range(0, len(values), rows):
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
            block = values[start : start + rows].astype(np.float32)
        by_feature = np.moveaxis(block, normalise.axis, 0).reshape(normalise.features, -1).astype(np.float64)
        if counted is not None:
            by_feature = by_feature[:, _positions(counted[start : start + rows], block.shape, normalise.axis)]
        total += by_feature.shape[1]
        there = ~np.isnan(by_feature)
        by_feature[~there] = 0.0
        if not np.isfinite(by_feature).all():
            raise ExamplesError(f"examples: input {normalise.input!r} holds values that are infinite; drop them")
        clipped += np.count_nonzero(np.abs(by_feature) > normalise.clip, axis=1)
        np.clip(by_feature, -normalise.clip, normalise.clip, out=by_feature)
        counts += np.count_nonzero(there, axis=1)
        sums += by_feature.sum(axis=1)
        np.square(by_feature, out=by_feature)
        squares += by_feature.sum(axis=1)
    if not total:
        raise ExamplesError(f"examples: no position of input {normalise.input!r} counts; all are masked")
    return FeatureSums(counts, sums, squares, total - counts, clipped)


def out_of_range_text(sums: FeatureSums, names: Sequence[str], clip: float) -> str:
    """Which features are out of the range of the sums, and the key that widens it; empty where none is.

    Args:
        sums: One device's.
        names: Of the features.
        clip: The range of the sums.
    """
    found = [f"{names[i]} ({sums.clipped[i] / sums.counts[i]:.0%})" for i in sums.out_of_range.tolist()]
    return f"values of {listed(found)} are beyond +-{clip:g} (model.normalise_clip)" if found else ""


def _positions(counted: NDArray[np.bool_], shape: tuple[int, ...], axis: int) -> NDArray[np.bool_]:
    """``counted`` for each position of a block, flat, in the order of one feature's values."""
    one = tuple(1 if i == axis else d for i, d in enumerate(shape))
    return np.broadcast_to(counted, one).ravel()


class ExactFeatureSums:
    """Feature sums of many devices, added up exactly: any order, split, merge or replay gives the same bits.

    Every float64 is a whole number of 2^-1074, so Python's integers hold sums of them without rounding.

    Args:
        features: Number of features.
    """

    __slots__ = ("_clipped", "_counts", "_missing", "_squares", "_sums", "devices", "features")

    def __init__(self, features: int) -> None:
        self.features = features
        self.devices = 0
        self._counts = [0] * features
        self._missing = [0] * features
        self._sums = [0] * features
        self._squares = [0] * features
        self._clipped = [0] * features

    def add(self, sums: FeatureSums, weight: float | None = None) -> None:
        """Adds one device's sums.

        Args:
            sums: Count and sums of at least one value.
            weight: As how many values of each feature they count; None for as many as they are.

        Raises:
            ValueError: They are of another number of features.
        """
        if len(sums.counts) != self.features:
            raise ValueError(f"sums of {len(sums.counts)} features, expected {self.features}")
        share = 1.0 if weight is None else weight / (sums.counts[0] + sums.missing[0])
        self._extend(
            *(
                [_whole(number) for number in (share * array).tolist()]
                for array in (sums.counts, sums.missing, sums.sums, sums.squares, sums.clipped)
            )
        )
        self.devices += 1

    def merge(self, other: ExactFeatureSums) -> None:
        """Adds what another one has added up; ``other`` stays as it is.

        Raises:
            ValueError: It is of another number of features.
        """
        if other.features != self.features:
            raise ValueError(f"sums of {other.features} features, expected {self.features}")
        self._extend(other._counts, other._missing, other._sums, other._squares, other._clipped)
        self.devices += other.devices

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        """Mean and scale of each feature, and the share of its values that is missing.

        Returns:
            ``mean`` float32[features]; ``scale`` float32[features], one divided by the standard deviation, or 0 where
            the feature does not vary or no device has a value; ``missing`` float64[features] in 0..1.
        """
        mean = np.zeros(self.features, np.float32)
        scale = np.zeros(self.features, np.float32)
        missing = np.zeros(self.features, np.float64)
        for i, (count, absent) in enumerate(zip(self._counts, self._missing, strict=True)):
            if count + absent:
                missing[i] = absent / (count + absent)
            if count:
                mean[i], scale[i] = _mean_and_scale(count, self._sums[i], self._squares[i])
        return mean, scale, missing

    def clipped(self) -> NDArray[np.float64]:
        """float64[features] in 0..1: which share of the values that are there was clipped."""
        pairs = zip(self._clipped, self._counts, strict=True)
        return np.array([clipped / count if count else 0.0 for clipped, count in pairs], np.float64)

    def _extend(
        self, counts: list[int], missing: list[int], sums: list[int], squares: list[int], clipped: list[int]
    ) -> None:
        for mine, theirs in (
            (self._counts, counts),
            (self._missing, missing),
            (self._sums, sums),
            (self._squares, squares),
            (self._clipped, clipped),
        ):
            for i, number in enumerate(theirs):
                mine[i] += number


def _whole(number: float) -> int:
    """``number`` times 2^1074, exactly."""
    numerator, denominator = number.as_integer_ratio()
    return numerator << (_SHIFT - denominator.bit_length() + 1)


def _mean_and_scale(count: int, total: int, squares: int) -> tuple[float, float]:
    """Of integers in the same unit. Python rounds a quotient of integers once, correctly, on every machine."""
    mean_square = squares / count
    variance = (count * squares - total * total) / (count * count)
    spread = math.sqrt(max(variance, 0.0))
    varies = spread > _SPREAD_MIN * math.sqrt(mean_square) and spread > _FLOAT32_TINY
    return total / count, 1.0 / spread if varies else 0.0


def _array(name: str, data: object, count: int) -> NDArray[np.float64]:
    if not isinstance(data, bytes) or len(data) != 8 * count:
        raise _refused(f"{name} is not {8 * count} bytes, {count} numbers of float64")
    array = np.frombuffer(data, "<f8").astype(np.float64)
    if not np.isfinite(array).all():
        raise _refused(f"{name} holds a value that is not finite")
    return array


def _whole_numbers(name: str, data: object, count: int) -> NDArray[np.float64]:
    array = _array(name, data, count)
    if (array < 0).any() or (array > COUNT_MAX).any() or (array != np.rint(array)).any():
        raise _refused(f"{name} holds a number that is not whole and in 0..{COUNT_MAX}")
    return array


def _check(found: FeatureSums, clip: float) -> None:
    """Raise DecodeError unless values within ``clip`` can have these sums."""
    most = clip * found.counts
    if (np.abs(found.sums) > most * (1 + _ROUNDING)).any():
        raise _refused(f"a sum is larger than its count of values within +-{clip:g}")
    if (found.squares > clip * most * (1 + _ROUNDING)).any():
        raise _refused(f"a sum of squares is larger than its count of values within +-{clip:g}")
    least = found.sums * found.sums / np.maximum(found.counts, 1.0)
    if (found.squares < least * (1 - _ROUNDING)).any() or (found.squares < 0).any():
        raise _refused("a sum of squares is smaller than the squared sum divided by the count")


def _refused(what: str) -> DecodeError:
    return DecodeError(f"feature sums: {what}", reason="feature_sums")
