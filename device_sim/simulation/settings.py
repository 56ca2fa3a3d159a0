"""The keyword arguments of ``simulate`` as the configuration of a coordinator: same names, defaults, units, checks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from coordinator.config import FederationConfig
from coordinator.config.loading import problem_text, sections
from edge_sdk.errors import ConfigurationError

__all__ = ["TABLES", "Tables", "configured", "tables_from"]

TABLES: Final = ("training", "selection", "aggregation", "codec", "downlink", "validation", "evaluation", "stopping")
"""Tables of the configuration that a simulation reads, in the order in which a plain key is looked for."""

NOT_HERE: Final = {
    "seconds_max": "time stands still in a simulation; use steps_max",
    "bytes_per_update_max": "a simulation has no wire to weigh; try it with edge-fleet run",
    "data": "give evaluation=(x, y)",
    "rounds_max": "give rounds=",
}
IN_MEMORY: Final = "evaluation.npz"
"""Stands for examples that are in no file."""
OF_THE_CLOCK: Final = ("_seconds", "_seconds_max", "over_selection", "fraction", "jitter", "minimum_count")

Tables = dict[str, dict[str, Any]]
"""What is set, by table and key."""


def tables_from(settings: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> Tables:
    """Sorts settings into the tables of the configuration.

    Args:
        settings: Keys of the tables as they are (``steps_max=20``), and whole tables (``training={"steps_max": 20}``).
            A key that several tables have goes to the first of ``TABLES``.
        given: What the arguments of ``simulate`` that have names of their own set, by table.

    Raises:
        ConfigurationError: A key is in no table, is set twice, or means nothing in a simulation.
    """
    known = sections()
    tables: Tables = {name: dict(values) for name, values in given.items()}
    for name, value in settings.items():
        if name in (*TABLES, "model") and isinstance(value, Mapping):
            for key, inner in value.items():
                _put(tables, name, str(key), inner)
            continue
        table = next((t for t in (*TABLES, "model") if name in known[t].model_fields), None)
        if table is None:
            raise ConfigurationError(f"simulate: {name}={value!r}: there is no such argument{_near(name, known)}")
        _put(tables, table, name, value)
    return tables


def configured(
    tables: Tables, *, model: Mapping[str, Any], goal_count: int, rounds: int, seed: int, evaluated: bool
) -> FederationConfig:
    """The checked configuration.

    Args:
        tables: As :func:`tables_from` gives them.
        model: What the form of the model sets in the table [model].
        goal_count: Clients in a round.
        rounds: How many, at most.
        seed: Of everything drawn.
        evaluated: Whether there are examples that nobody trains on.

    Raises:
        ConfigurationError: A value is not allowed, or values contradict each other; all are listed.
    """
    whole: dict[str, Any] = {name: {k: _plain(v) for k, v in values.items()} for name, values in tables.items()}
    whole["federation"] = {"name": "simulation", "seed": seed}
    whole["model"] = {**whole.get("model", {}), **model}
    selection = whole.setdefault("selection", {})
    selection["goal_count"] = goal_count
    selection["minimum_count"] = 1
    whole.setdefault("stopping", {})["rounds_max"] = rounds
    evaluation = whole.setdefault("evaluation", {})
    if evaluated and not evaluation.get("held_out"):
        evaluation["data"] = IN_MEMORY
    try:
        return FederationConfig.model_validate(whole)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigurationError("\n".join(f"simulate: {problem_text(problem)}" for problem in problems)) from None


def _put(tables: Tables, table: str, key: str, value: Any) -> None:
    if value is None:
        return
    reason = NOT_HERE.get(key)
    if reason is None and table == "selection" and key.endswith(OF_THE_CLOCK):
        reason = "every device answers at once in a simulation; leave it out"
    if reason is not None:
        raise ConfigurationError(f"simulate: {table}.{key}={value!r}: {reason}")
    values = tables.setdefault(table, {})
    if key in values and not _same(values[key], value):
        raise ConfigurationError(f"simulate: {table}.{key} is set twice, {values[key]!r} and {value!r}; give it once")
    values[key] = value


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(np.all(one == other)))


def _plain(value: Any) -> Any:
    """Python's own numbers for NumPy's, which a strict check refuses."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _near(name: str, known: Mapping[str, Any]) -> str:
    everything = [key for table in (*TABLES, "model") for key in known[table].model_fields]
    own = ("algorithm", "clients", "cohorts", "codec", "engine", "evaluation", "eta", "progress", "rounds", "trainer")
    near = difflib.get_close_matches(name, [*everything, *own], n=1)
    return f"; did you mean {near[0]}?" if near else "; docs/simulate.md and docs/configuration.md list them"
