"""Does this device's data fit the task's model, and is it of the kind that the other devices have?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.cli.device_config import DeviceConfig
from edge_sdk.cli.findings import Finding
from edge_sdk.cli.task_model import Model, Statistics
from edge_sdk.errors import ExamplesError
from edge_sdk.training.examples import Examples, load_examples
from edge_sdk.training.feature_sums import ExactFeatureSums, FeatureSums, out_of_range_text, sums_of_examples
from edge_sdk.training.large_target import large_target
from edge_sdk.training.names import column_names
from edge_sdk.training.program import Program

__all__ = ["check_fit", "far_features"]

FAR: Final = 2.0
"""Standard deviations of the federation between its mean and this device's, from which on it is said. It cannot be much
more: the mean of one of six devices of equal size is never further away than sqrt(5), whatever it holds, because the
federation's mean and deviation hold it too."""
SWAPPED_FAR: Final = 1.5
SWAPPED_NEAR: Final = 1.0
FEATURES_SHOWN: Final = 8
EXCHANGED_MAX: Final = 200
"""Features among which two that were exchanged are looked for."""


def check_fit(config: DeviceConfig, model: Model | None) -> Iterator[Finding]:
    """The device's examples against the model.

    Args:
        config: The device.
        model: The task's; None where it is not to be had.
    """
    if model is None:
        text = (
            "not compared with the model: no coordinator serves one, and none is in the state directory; check again "
            "while the coordinator runs"
        )
        yield Finding("warn", "examples", text)
        return
    program = model.program
    try:
        examples = load_examples(config.data, program)
    except ExamplesError as error:
        yield Finding("FAIL", "examples", f"{error} (model {program.name!r}, {model.source})")
        return
    if len(examples) < config.limits.examples_min:
        text = (
            f"{len(examples)} examples, limits.examples_min asks for {config.limits.examples_min}: the device declines"
        )
        yield Finding("FAIL", "examples", text)
        return
    yield Finding("ok", "examples", f"{len(examples)} examples fit the model {program.name!r} ({model.source})")
    yield from _labels(examples, program)
    large = large_target(program, examples)
    if large:
        yield Finding("warn", "labels", large)
    yield from _ranges(examples, program, model.statistics)


def _labels(examples: Examples, program: Program) -> Iterator[Finding]:
    if program.target.dtype != "int64" or not program.classes:
        return
    found = np.unique(examples.target)
    found = found[found != program.ignore_index] if program.ignore_index is not None else found
    if len(found) == 1 and len(examples) > 1:
        name = f" ({program.labels[int(found[0])]})" if program.labels else ""
        yield Finding("warn", "labels", f"all are of class {int(found[0])}{name}: is it the right column, data.label?")


def _ranges(examples: Examples, program: Program, statistics: Statistics | None) -> Iterator[Finding]:
    told = program.normalise
    if told is None:
        return
    sums = sums_of_examples(examples, program, told)
    names = column_names(program.features, program.categories, told.features)
    beyond = out_of_range_text(sums, names, told.clip)
    if beyond:
        yield Finding("warn", "ranges", f"{beyond}: another unit, or let the coordinator raise the key")
    if told.mode != "federated":
        return
    if statistics is None:
        yield Finding("ok", "ranges", "not compared: the federation has no statistics of the features yet")
        return
    means, deviations = _own(sums)
    lines = list(far_features(names, means, deviations, statistics))
    for line in lines[:FEATURES_SHOWN]:
        yield Finding("warn", "ranges", line)
    if len(lines) > FEATURES_SHOWN:
        yield Finding("warn", "ranges", f"and {len(lines) - FEATURES_SHOWN} other features")
    if not lines:
        yield Finding("ok", "ranges", f"the means of all {len(names)} features are near the federation's")


def _own(sums: FeatureSums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature on this device; NaN where all its values are missing."""
    exact = ExactFeatureSums(len(sums.counts))
    exact.add(sums)
    _, scale, _ = exact.result()
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.sums / sums.counts, np.where(scale > 0, 1.0 / scale.astype(np.float64), 0.0)


def far_features(
    names: list[str], means: NDArray[np.float64], deviations: NDArray[np.float64], statistics: Statistics
) -> Iterator[str]:
    """What is remarkable about a device's features, a sentence each.

    Args:
        names: Of the features.
        means, deviations: float64[features]: this device's, in raw units.
        statistics: The federation's.
    """
    mean, scale = statistics.mean.astype(np.float64), statistics.scale.astype(np.float64)
    away = (means - mean) * scale
    exchanged = set()
    for first, second in _exchanged(means, mean, scale, away):
        exchanged |= {first, second}
        yield (
            f"{names[first]} and {names[second]} look exchanged: their means are {means[first]:.4g} and "
            f"{means[second]:.4g} here, {mean[first]:.4g} and {mean[second]:.4g} in the federation"
        )
    for i, name in enumerate(names):
        if i in exchanged or np.isnan(means[i]):
            continue
        if scale[i] == 0 and not np.isclose(means[i], mean[i], rtol=1e-3, atol=1e-6):
            yield f"{name}: its mean is {means[i]:.4g} here, and it is always {mean[i]:.4g} in the federation"
        elif scale[i] == 0 and deviations[i] > 0:
            yield (
                f"{name}: it varies here (deviation {deviations[i]:.3g}), and is always {mean[i]:.4g} in the "
                "federation, so the model does not see it"
            )
        elif abs(away[i]) > FAR:
            yield (
                f"{name}: its mean is {means[i]:.4g} here (deviation {deviations[i]:.3g}), in the federation "
                f"{mean[i]:.4g} (deviation {1 / scale[i]:.3g}): another unit, or another column?"
            )


def _exchanged(
    means: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64], away: NDArray[np.float64]
) -> Iterator[tuple[int, int]]:
    """Pairs of features that are both far away, and near to each other's mean."""
    far = np.flatnonzero(np.abs(away) > SWAPPED_FAR)[:EXCHANGED_MAX]
    left = set(far.tolist())
    for i in far.tolist():
        for j in sorted(left):
            crossed = abs(means[j] - mean[i]) * scale[i], abs(means[i] - mean[j]) * scale[j]
            if i < j and i in left and max(crossed) < SWAPPED_NEAR:
                left -= {i, j}
                yield i, j
                break
