"""The sums of all that a program normalises: of its input, and of its target where that is normalised too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.training.examples import Examples
from edge_sdk.training.feature_sums import (
    ExactFeatureSums,
    FeatureSums,
    feature_sums,
    out_of_range_text,
    sums_of_examples,
)
from edge_sdk.training.masked import counted_elements, mask_of
from edge_sdk.training.names import column_names
from edge_sdk.training.normalise import TARGET, Normalise
from edge_sdk.training.program import Program

__all__ = ["OF_TARGET", "ExactProgramSums", "decode_sums", "encode_sums", "out_of_range", "program_sums"]

OF_TARGET: Final = "target_"
"""How the names of a report's arrays begin that are sums of the target."""


def program_sums(program: Program, examples: Examples) -> list[FeatureSums]:
    """The sums of each of ``program.normalised``, in that order.

    Raises:
        ExamplesError: A value is infinite, or all positions are masked.
    """
    return [
        feature_sums(target_rows(program, examples, told.features), told)
        if told.input == TARGET
        else sums_of_examples(examples, program, told)
        for told in program.normalised
    ]


def target_rows(program: Program, examples: Examples, features: int) -> NDArray[Any]:
    """The target as ``[rows, features]``, without rows in which nothing counts; NaN for a single one that does not."""
    rows = examples.target.reshape(-1, features)
    mask = mask_of(examples.inputs, program)
    if mask is None:
        return rows
    counted = counted_elements(mask, examples.target.shape).reshape(-1, features)
    return np.where(counted, rows, np.float32(np.nan))[counted.any(axis=1)]


def encode_sums(program: Program, sums: Sequence[FeatureSums]) -> dict[str, bytes]:
    """A report's arrays by name, for what :func:`program_sums` gave."""
    arrays: dict[str, bytes] = {}
    for told, found in zip(program.normalised, sums, strict=True):
        prefix = OF_TARGET if told.input == TARGET else ""
        arrays |= {f"{prefix}{name}": data for name, data in found.encode().items()}
    return arrays


def decode_sums(program: Program, arrays: Mapping[str, bytes]) -> list[FeatureSums]:
    """The inverse of :func:`encode_sums`, for bytes that nobody vouches for.

    Raises:
        DecodeError: They are not such sums (reason ``feature_sums``).
    """
    of_target = {name.removeprefix(OF_TARGET): data for name, data in arrays.items() if name.startswith(OF_TARGET)}
    of_input = {name: data for name, data in arrays.items() if not name.startswith(OF_TARGET)}
    if of_target and program.normalise_target is None:
        raise DecodeError("feature sums: of the target, which is not normalised", reason="feature_sums")
    return [FeatureSums.decode(of_target if told.input == TARGET else of_input, told) for told in program.normalised]


def out_of_range(program: Program, sums: Sequence[FeatureSums]) -> str:
    """What is out of the range of one device's sums, and the key that widens it; empty where nothing is."""
    pairs = zip(program.normalised, sums, strict=True)
    texts = (out_of_range_text(found, _names(program, told), told.clip) for told, found in pairs)
    return next(filter(None, texts), "")


def _names(program: Program, told: Normalise) -> list[str]:
    if told.input != TARGET:
        return column_names(program.features, program.categories, told.features)
    return ["the target"] if told.features == 1 else [f"the target's column {i}" for i in range(told.features)]


class ExactProgramSums:
    """Sums of many devices, added up exactly: any order or replay gives the same bits.

    Args:
        program: Says what is normalised.
    """

    __slots__ = ("_sums", "_told")

    def __init__(self, program: Program) -> None:
        self._told = program.normalised
        self._sums = [ExactFeatureSums(told.features) for told in self._told]

    @property
    def devices(self) -> int:
        """How many sums were added."""
        return self._sums[0].devices

    def add(self, sums: Sequence[FeatureSums], weight: float | None = None) -> None:
        """Adds one device's sums, as :meth:`ExactFeatureSums.add`."""
        for mine, theirs in zip(self._sums, sums, strict=True):
            mine.add(theirs, weight)

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """Mean and scale by name, float32[features] each, in the order of ``program.normalised``.

        A value of the target that does not vary has the scale 1, so that a model gives it in its unit.
        """
        constants: dict[str, NDArray[np.float32]] = {}
        for told, sums in zip(self._told, self._sums, strict=True):
            mean, scale, _ = sums.result()
            if told.input == TARGET:
                scale[scale == 0] = 1.0
            constants |= {told.mean: mean, told.scale: scale}
        return constants

    def clipped(self) -> NDArray[np.float64]:
        """float64[features] in 0..1: which share of each feature of the input was clipped."""
        return self._sums[0].clipped()

    def missing(self) -> NDArray[np.float64]:
        """float64[features] in 0..1: which share of each feature of the input is missing."""
        return self._sums[0].result()[2]
