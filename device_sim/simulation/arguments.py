"""The forms in which arguments of ``simulate`` come: names, tables, classes, objects, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from edge_sdk.codecs import Codec, register_codec, settings_of
from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import make

__all__ = [
    "codec_table",
    "cohorts_of",
    "given",
    "goal_count_of",
    "made",
    "name_of",
    "own_object",
    "rule_table",
    "table_of",
]

GOAL_COUNT: Final = 20


def given(**values: Any) -> dict[str, Any]:
    """Those of the values that are set."""
    return {name: value for name, value in values.items() if value is not None}


def name_of(value: Any) -> str | None:
    """A name for the configuration; an object or a class of the caller's own goes past it."""
    return value if isinstance(value, str) else None


def rule_table(selection: Any) -> dict[str, Any]:
    """What ``selection`` sets in the table [selection]."""
    return table_of(selection if isinstance(selection, str | Mapping) else None, "rule")


def table_of(value: Any, name: str = "name") -> dict[str, Any]:
    """A table of the configuration out of one name, or as it is."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {name: value}


def codec_table(codec: Any) -> dict[str, Any]:
    """The table [codec] out of a name, a table, or a codec of the caller's own, which is made known to this process."""
    if isinstance(codec, type | Codec):
        kind = register_codec(codec if isinstance(codec, type) else type(codec))
        own = [] if isinstance(codec, type) else [field.name for field in settings_of(kind) if field.metadata["key"]]
        return {"name": kind.name, **{name: getattr(codec, name) for name in own}}
    return table_of(codec)


def own_object(argument: str, given: Any, methods: tuple[str, ...]) -> Any:
    """What a dotted name stands for, or as :func:`made`."""
    if isinstance(given, str):
        return make(f"simulate: {argument}", given, methods=methods)
    return made(argument, given, methods)


def made(argument: str, given: Any, methods: tuple[str, ...]) -> Any:
    """An object of the caller's own, or of his class; None where a name was given, or nothing."""
    if given is None or isinstance(given, str):
        return None
    found = given
    if isinstance(given, type):
        try:
            found = given()
        except TypeError as error:
            raise ConfigurationError(
                f"simulate: {argument}={given.__name__}: cannot be made without arguments ({error}); give an object"
            ) from error
    missing = [method for method in methods if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigurationError(
            f"simulate: {argument}={type(found).__name__}: has no {missing[0]}(); docs/extend.md shows how to write one"
        )
    return found


def goal_count_of(goal_count: int | None, clients: int, cohorts: Any) -> int:
    """How many clients take part in a round.

    Raises:
        ConfigurationError: There are not so many.
    """
    if cohorts is not None:
        largest = max((len(cohort) for cohort in cohorts), default=1)
        return max(1, largest) if goal_count is None else goal_count
    if goal_count is None:
        return min(GOAL_COUNT, clients)
    if not 1 <= goal_count <= clients:
        raise ConfigurationError(
            f"simulate: goal_count={goal_count!r}: there are {clients} clients; give 1 to {clients}, or more clients"
        )
    return goal_count


def cohorts_of(cohorts: Any, names: list[str], first: int, rounds: int) -> dict[int, tuple[str, ...]] | None:
    """Who takes part in each round, names by its number; None where a rule chooses.

    Args:
        cohorts: As given, by name or number, one for each round.
        names: All clients.
        first: Number of the first round: 0 where clients report statistics before they train, else 1.
        rounds: Number of the last round.

    Raises:
        ConfigurationError: They are too few, or name somebody who is no client.
    """
    if cohorts is None:
        return None
    if len(cohorts) < rounds + 1 - first:
        zero = "" if first else ", and one before them for round 0, in which clients report statistics"
        raise ConfigurationError(
            f"simulate: cohorts: {len(cohorts)} are given, and rounds={rounds}; give one for each round{zero}"
        )
    known = set(names)
    found = {}
    for number, cohort in enumerate(cohorts, start=first):
        members = tuple(names[m] if isinstance(m, int | np.integer) and 0 <= m < len(names) else str(m) for m in cohort)
        wrong = [member for member in members if member not in known]
        if wrong or not members or len(set(members)) < len(members):
            what = f"{wrong[0]!r} is no client" if wrong else "nobody, or one client twice"
            raise ConfigurationError(f"simulate: cohorts: round {number}: {what}; name clients by key or number")
        found[number] = members
    return found
