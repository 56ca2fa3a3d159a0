"""How the examples of a data set are dealt to devices.

Every function returns one int64 array of example indices per device, ascending. Every example lands on exactly one
device, every device gets at least one example, and the same seed deals the same way on every NumPy release.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from device_sim.datasets import Dataset
from device_sim.stable_random import StableRandom
from edge_sdk.errors import ConfigurationError

__all__ = ["PARTITIONS", "Indices", "by_key", "dirichlet", "dirichlet_by_class", "iid", "partition", "shards"]

Indices = NDArray[np.int64]

PARTITIONS: Final = ("iid", "shards:2", "dirichlet:0.3", "dirichlet_by_class:0.3", "natural")
"""The forms that ``partition`` understands, each with an example of its parameter."""

ALPHA_MIN: Final = 1e-4  # below it a double's logarithm range, not the distribution, would decide the shares
ALPHA_MAX: Final = 1e6


def iid(examples_count: int, n_devices: int, seed: int) -> list[Indices]:
    """Deal the examples at random, as evenly as possible (sizes differ by at most one).

    Raises:
        ConfigurationError: There are fewer examples than devices.
    """
    _check_enough(examples_count, n_devices)
    return [np.sort(part) for part in np.array_split(StableRandom(seed, "iid").permutation(examples_count), n_devices)]


def shards(labels: Indices, n_devices: int, shards_per_device: int, seed: int) -> list[Indices]:
    """Sort by label, cut into equal shards, and deal the same number of shards to each device.

    The pathological non-IID split of McMahan et al. 2017, section 3: with two shards a device sees two classes or so.

    Args:
        labels: int64[n].
        shards_per_device: Shards on each device; ``n_devices * shards_per_device`` shards are cut.

    Raises:
        ConfigurationError: There are fewer examples than shards.
    """
    _check_enough(len(labels), n_devices, shards_per_device)
    shards_count = n_devices * shards_per_device
    pieces = np.array_split(np.argsort(labels, kind="stable").astype(np.int64), shards_count)
    dealt = StableRandom(seed, "shards").permutation(shards_count).reshape(n_devices, shards_per_device)
    return [np.sort(np.concatenate([pieces[shard] for shard in row])) for row in dealt]


def dirichlet(labels: Indices, n_devices: int, alpha: float, seed: int, minimum: int = 1) -> list[Indices]:
    """Give each device its own mixture of classes and equally many examples (sizes differ by at most one).

    Hsu et al. 2019 (arXiv 1909.06335), section 3: a device's mixture is one draw from Dirichlet(alpha * p), p being
    the shares of the classes in the whole set; its examples are drawn without replacement, and a class that has run
    out is left out of the mixtures of the devices that follow.

    Args:
        labels: int64[n].
        alpha: Concentration, in 1e-4..1e6: large is close to IID, small is close to one class a device.
        minimum: Examples that each device must get.

    Raises:
        ConfigurationError: ``alpha`` is out of range, or there are fewer than ``minimum`` examples a device.
    """
    _check_alpha(alpha)
    _check_enough(len(labels), n_devices, minimum)
    draws = StableRandom(seed, "dirichlet")
    pools = _shuffled_pools(labels, draws)
    remaining = np.array([len(pool) for pool in pools], dtype=np.int64)
    concentrations = alpha * remaining / len(labels)
    sizes = [len(part) for part in np.array_split(np.empty(len(labels)), n_devices)]
    parts = []
    for size in sizes:
        counts = _draw_counts(concentrations, remaining, size, draws)
        taken = [pool[left - n : left] for pool, left, n in zip(pools, remaining, counts, strict=True)]
        remaining -= counts
        parts.append(np.sort(np.concatenate(taken)))
    return parts


def dirichlet_by_class(labels: Indices, n_devices: int, alpha: float, seed: int, minimum: int = 1) -> list[Indices]:
    """Deal each class by its own Dirichlet draw over the devices, so that sizes differ as well as mixtures.

    Yurochkin et al. 2019 (arXiv 1905.12022), section 4, the split of most non-IID benchmarks. Where it leaves a device
    short of ``minimum``, examples move there one at a time from whichever device holds most.

    Args:
        labels: int64[n].
        alpha: Concentration, in 1e-4..1e6, the same for every device.
        minimum: Examples that each device must get.

    Raises:
        ConfigurationError: ``alpha`` is out of range, or there are fewer than ``minimum`` examples a device.
    """
    _check_alpha(alpha)
    _check_enough(len(labels), n_devices, minimum)
    draws = StableRandom(seed, "dirichlet by class")
    parts: list[list[int]] = [[] for _ in range(n_devices)]
    for pool in _shuffled_pools(labels, draws):
        ends = [round(bound * len(pool)) for bound in itertools.accumulate(draws.dirichlet([alpha] * n_devices))]
        ends[-1] = len(pool)
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            part.extend(pool[start:end].tolist())
    _top_up(parts, minimum, draws)
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def by_key(group: NDArray[Any]) -> list[Indices]:
    """One device for each person or machine, in ascending order of their keys."""
    order = np.argsort(group, kind="stable").astype(np.int64)
    _, starts = np.unique(group[order], return_index=True)
    return np.split(order, starts[1:]) if len(order) else []


def partition(dataset: Dataset, how: str, devices: int | None, seed: int, minimum: int = 1) -> list[Indices]:
    """Deal a data set to devices in the way that a short text names.

    Args:
        dataset: What to deal; hold out examples first (``split_held_out``).
        how: ``"iid"``, ``"shards:<per device>"``, ``"dirichlet:<alpha>"``, ``"dirichlet_by_class:<alpha>"``, or
            ``"natural"`` (one device for each group; with fewer devices than groups that many are drawn and the
            examples of the others stay unused).
        devices: Number of devices; None is allowed for ``"natural"`` only and means one for each group.
        seed: Names the draw.
        minimum: Examples that each device must get.

    Raises:
        ConfigurationError: ``how`` is not understood or the data set cannot be dealt that way.
    """
    kind, _, parameter = how.partition(":")
    if kind == "natural" and not parameter:
        return _natural(dataset, devices, seed, minimum)
    if devices is None or devices < 1:
        raise ConfigurationError(f"devices: {devices} must be at least 1 for partition {how!r}")
    if dataset.is_windowed and devices > 1:
        raise ConfigurationError(
            f"partition: {how!r} would tear the series of {dataset.name!r} apart, of which windows are cut; use "
            "'natural', one device for each group"
        )
    if kind == "iid" and not parameter:
        _check_enough(len(dataset), devices, minimum)
        return iid(len(dataset), devices, seed)
    if kind not in ("shards", "dirichlet", "dirichlet_by_class"):
        raise ConfigurationError(f"partition: {how!r} is not understood; use one of {', '.join(PARTITIONS)}")
    labels = dataset.labels
    if labels is None:
        raise ConfigurationError(
            f"partition: {how!r} needs one class label for each example, which {dataset.name!r} does not have; use "
            "'iid', or 'natural' with a group for each example"
        )
    if kind == "shards":
        count = _number(parameter or "2", how)
        if not count.is_integer():
            raise ConfigurationError(f"partition: {how!r}: the number of shards must be a whole number")
        return shards(labels, devices, int(count), seed)
    deal = dirichlet if kind == "dirichlet" else dirichlet_by_class
    return deal(labels, devices, _number(parameter, how), seed, minimum)


def _natural(dataset: Dataset, devices: int | None, seed: int, minimum: int) -> list[Indices]:
    if dataset.marks.group is None:
        raise ConfigurationError(
            f"partition: 'natural' needs a group for each example, {dataset.name!r} has none; "
            "add an array 'group' to the data or use 'iid'"
        )
    parts = by_key(dataset.marks.group)
    if devices is not None and not 1 <= devices <= len(parts):
        raise ConfigurationError(
            f"devices: {devices} with partition 'natural', but {dataset.name!r} has {len(parts)} groups; "
            f"use 1 to {len(parts)} devices or another partition"
        )
    if devices is not None and devices < len(parts):
        chosen = np.sort(StableRandom(seed, "natural").permutation(len(parts))[:devices])
        parts = [parts[i] for i in chosen]
    fewest = min(map(len, parts), default=0)
    if fewest < minimum:
        raise ConfigurationError(
            f"partition: 'natural' leaves a device with {fewest} examples, at least {minimum} wanted"
        )
    return parts


def _number(text: str, how: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"partition: {how!r}: {text!r} is not a number; write it like one of {', '.join(PARTITIONS)}"
        ) from None


def _check_alpha(alpha: float) -> None:
    if not ALPHA_MIN <= alpha <= ALPHA_MAX:  # also refuses NaN
        raise ConfigurationError(
            f"partition: the Dirichlet concentration {alpha} is not in {ALPHA_MIN:g}..{ALPHA_MAX:g}"
        )


def _check_enough(examples_count: int, n_devices: int, each: int = 1) -> None:
    if n_devices < 1:
        raise ConfigurationError(f"devices: {n_devices} must be at least 1")
    if each < 1:
        raise ConfigurationError(f"partition: {each} examples or shards a device is too few; use at least 1")
    if examples_count < n_devices * each:
        raise ConfigurationError(
            f"partition: {examples_count} examples are too few for {n_devices} devices with at least {each} each; "
            f"use at most {examples_count // each} devices"
        )


def _shuffled_pools(labels: Indices, draws: StableRandom) -> list[Indices]:
    """The indices of each class that occurs, each pool in random order."""
    pools = by_key(labels)
    return [pool[draws.permutation(len(pool))] for pool in pools]


def _draw_counts(concentrations: NDArray[np.float64], remaining: Indices, size: int, draws: StableRandom) -> Indices:
    """How many examples of each class a device gets: ``size`` draws from its mixture, as far as the pools reach."""
    mixture = np.array(draws.dirichlet(concentrations.tolist()))
    counts = np.zeros_like(remaining)
    while (missing := size - int(counts.sum())) > 0:
        open_classes = counts < remaining
        weights = np.where(open_classes, mixture, 0.0)
        if weights.sum() < 1e-9:  # its own classes have run out: draw a mixture of those that are left
            mixture = weights = np.array(draws.dirichlet(np.where(open_classes, concentrations, 0.0).tolist()))
        edges = np.cumsum(weights)
        drawn = np.searchsorted(edges, draws.uniforms(missing) * edges[-1], side="right")
        counts += np.bincount(np.minimum(drawn, len(weights) - 1), minlength=len(weights))
        counts = np.minimum(counts, remaining)
    return counts


def _top_up(parts: list[list[int]], minimum: int, draws: StableRandom) -> None:
    """Move random examples from the largest parts until none holds fewer than ``minimum``."""
    largest = [(-len(part), device) for device, part in enumerate(parts)]
    heapq.heapify(largest)
    for part in parts:
        while len(part) < minimum:
            size, donor = heapq.heappop(largest)
            part.append(parts[donor].pop(int(draws.uniform() * len(parts[donor]))))
            heapq.heappush(largest, (size + 1, donor))
