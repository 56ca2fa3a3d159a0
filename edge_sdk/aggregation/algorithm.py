"""What an algorithm is: how the updates of one round become one delta of the model. Pure NumPy.

An algorithm is a small frozen object without state of its own. What it remembers between rounds is a dictionary of
float32[P] vectors that the coordinator keeps in its checkpoint and hands in. There are two kinds:

* One that **sums** says in :meth:`Algorithm.accumulate` what of an update goes into exact sums, and in
  :meth:`Algorithm.report` what follows from them. Memory does not grow with the number of devices, and sums of
  several gateways or shards can be merged.
* One that **needs all** updates at once (``needs_all = True``) gets them in :meth:`Algorithm.finish`, as blocks of
  columns of a matrix with one row for each update.

Neither kind may depend on the order in which updates arrive. Names and classes stand in ``ALGORITHMS``; the user's own
class is named ``"package.module:Class"``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.aggregation.rows import Rows
from edge_sdk.codecs.frames import DecodedParts
from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import load, make
from edge_sdk.wire.messages import DELTA, NUMBERS_MAX, VECTOR_NAME_CHARACTERS_MAX, VECTORS_MAX
from edge_sdk.wire.plan import PLAIN

__all__ = ["ALGORITHMS", "DELTA", "Algorithm", "Contribution", "State", "Vector", "make_algorithm", "make_configured"]

Vector: TypeAlias = NDArray[np.float32]
State: TypeAlias = dict[str, Vector]
"""What an algorithm remembers between rounds: float32[P] by name."""

ALGORITHMS: Final[Mapping[str, str]] = {
    "mean": "edge_sdk.aggregation.mean:Mean",
    "median": "edge_sdk.aggregation.median:Median",
    "trimmed_mean": "edge_sdk.aggregation.trimmed_mean:TrimmedMean",
    "fednova": "edge_sdk.aggregation.fednova:FedNova",
}


class Contribution(NamedTuple):
    """One update as an algorithm sees it.

    Attributes:
        vectors: The decoded vectors by name, each as parts in the order of the groups.
        weight: At least 1: its examples, at most the plan's ``examples_max``; 1 with uniform weighting.
        steps: Optimiser steps that the device says it did.
        numbers: What its local algorithm reported beside.
    """

    vectors: Mapping[str, DecodedParts]
    weight: int
    steps: int
    numbers: Mapping[str, float]


class Algorithm:
    """The base of all algorithms; each class says what differs.

    Attributes:
        local: The device's half, by name: ``plain`` is the ordinary local training.
        vectors: Further vectors that each update brings beside the delta.
        numbers: Numbers that each update brings.
        broadcasts: Names of the vectors that devices get beside the model.
        totals: Names of the numbers that :meth:`accumulate` sums with ``sums.count``.
        needs_all: Whether it needs all updates of a round at once.
        uses_weights: Whether the weight of an update changes anything.
        every_coordinate: Whether it compares updates coordinate by coordinate, so that what a device has left out would
            be taken for a zero.
    """

    local: ClassVar[str] = PLAIN
    vectors: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[tuple[str, ...]] = ()
    broadcasts: ClassVar[tuple[str, ...]] = ()
    totals: ClassVar[tuple[str, ...]] = ()
    needs_all: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    every_coordinate: ClassVar[bool] = False

    def init(self, size: int) -> State:
        """What it remembers before the first round, for ``size`` parameters."""
        return {}

    def broadcast(self, parameters: Vector, state: Mapping[str, Vector]) -> State:
        """What devices get beside the model: float32[P] for each name of ``broadcasts``."""
        return {}

    def local_settings(self) -> dict[str, float]:
        """Numbers that the plan hands to the device's half."""
        return {}

    def suits(self, scalars: Mapping[str, float]) -> None:
        """Refuses devices' training that this algorithm cannot work with, before anything begins.

        Args:
            scalars: The training graph's scalar inputs as the plan sets them: ``lr``, ``momentum``, ...

        Raises:
            ConfigurationError: Names the keys, and what to do.
        """

    def check(self, update: Contribution) -> None:
        """Refuses an update that this algorithm cannot use, before it is journalled.

        Raises:
            ProtocolError: With the reason under which the refusal is counted.
        """

    def accumulate(self, sums: PartialSums, update: Contribution) -> None:
        """Adds one update to the round's sums. Not called where ``needs_all`` is set."""
        raise NotImplementedError

    def report(self, sums: PartialSums) -> State:
        """What follows from the sums: ``"delta"``, and what :meth:`apply` needs beside; float32[P] by name."""
        raise NotImplementedError

    def finish(self, updates: Rows) -> State:
        """The same from all updates at once. Called only where ``needs_all`` is set."""
        raise NotImplementedError

    def apply(self, parameters: Vector, report: State, state: Mapping[str, Vector]) -> tuple[Vector, State]:
        """The delta that the server optimiser moves the model by, and what is remembered after the round.

        Args:
            parameters: float32[P], the model before the round; not to be changed.
            report: What :meth:`report` or :meth:`finish` gave, after the pipeline's steps.
            state: As :meth:`init` or the last call gave it; not to be changed.
        """
        return report[DELTA], dict(state)


def make_algorithm(name: str, options: Mapping[str, Any] | None = None) -> Algorithm:
    """The algorithm of that name, or the user's own class by its dotted name.

    Args:
        name: A key of ``ALGORITHMS`` or ``"package.module:Class"``.
        options: Fields of its class; those left out keep their defaults.

    Raises:
        ConfigurationError: Name or option is unknown, or a value is out of range.
    """
    made = make_configured("aggregation.algorithm", name, ALGORITHMS, options or {}, where="aggregation.options")
    if not isinstance(made, Algorithm):
        raise ConfigurationError(
            f"aggregation.algorithm = {name!r}: {type(made).__name__} is no algorithm; derive it from "
            "edge_sdk.aggregation.algorithm.Algorithm"
        )
    for kind, names, most in (
        ("vectors", (DELTA, *made.vectors), VECTORS_MAX),
        ("broadcasts", made.broadcasts, VECTORS_MAX),
        ("numbers", made.numbers, NUMBERS_MAX),
    ):
        wrong = [each for each in names if not 0 < len(each) <= VECTOR_NAME_CHARACTERS_MAX]
        if wrong or len(set(names)) != len(names) or len(names) > most:
            raise ConfigurationError(
                f"aggregation.algorithm = {name!r}: its {kind} are {', '.join(map(repr, names))}; expected at most "
                f"{most} different names of 1..{VECTOR_NAME_CHARACTERS_MAX} characters"
            )
    return made


def make_configured(
    setting: str,
    name: str,
    table: Mapping[str, str],
    options: Mapping[str, Any],
    *,
    where: str,
    methods: tuple[str, ...] = (),
) -> object:
    """An object of a class that owns its settings as fields of a dataclass.

    Args:
        setting: The key of the configuration that names the class, for errors.
        name: A key of ``table`` or ``"package.module:Class"``.
        table: Dotted names by short name.
        options: The fields that are set.
        where: The table of the configuration that holds the options, for errors.
        methods: What the object must be able to do.

    Raises:
        ConfigurationError: Name or option is unknown, or a value is refused by the class.
    """
    if name not in table and ":" not in name:
        raise ConfigurationError(
            f'{setting} = {name!r}: choose one of {", ".join(table)}, or name your own class "package.module:Class"'
        )
    found = load(setting, table.get(name, name))
    if not isinstance(found, type):
        raise ConfigurationError(f"{setting} = {name!r}: names a {type(found).__name__}, expected a class")
    fields = {field.name: field for field in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else {}
    for option, value in options.items():
        if option not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise ConfigurationError(f"{where}.{option}: {name} has no such setting; {known}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{where}.{option} is {value}, expected a finite number")
    return cast(object, make(setting, table.get(name, name), options, methods=methods))
