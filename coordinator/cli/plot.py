"""``edge-coordinator plot``: runs from where they were left, to be drawn side by side."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from coordinator.config import load_tasks
from coordinator.config.settings import database_path
from coordinator.model_identity import stored_program
from coordinator.pictures import Run, write_curves
from coordinator.reports import round_rows
from coordinator.store import Store
from edge_sdk.errors import ConfigurationError

__all__ = ["plot_runs", "read_runs"]

NO_METRICS: Final = frozenset({"round", "attempt", "seconds"})
PREFERRED: Final = ("accuracy", "mean_squared_error", "mean_absolute_error", "loss", "train_loss")


def plot_runs(
    sources: Sequence[Path],
    out: Path,
    *,
    metric: str | None = None,
    task: str | None = None,
    names: Sequence[str] = (),
    title: str = "",
) -> list[str]:
    """Draw the curves of some runs.

    Args:
        sources: For each run a ``federation.toml``, a database, or a CSV that ``rounds --csv`` has printed.
        out: Where to write the picture.
        metric: Which column to draw; by default the first one of ``PREFERRED`` that all runs have.
        task: Of this task, where a database has several; all of them by default.
        names: What to call the runs, in order; by default they are called after their folders or files.
        title: Stands above.

    Returns:
        A line for each run: its rounds, last value and bytes.

    Raises:
        ConfigurationError: A source cannot be read or has nothing to draw, or there is no such metric.
        StateError: A database cannot be read.
    """
    runs = [run for source in sources for run in read_runs(source, task)]
    if names:
        if len(names) != len(runs):
            raise ConfigurationError(f"--name: given {len(names)} times for {len(runs)} runs; name each, or none")
        runs = [Run(name, run.rows) for name, run in zip(names, runs, strict=True)]
    chosen = _metric_of(runs, metric)
    write_curves(runs, out, chosen, title)
    return [_line(run, chosen) for run in runs]


def read_runs(source: Path, task: str | None = None) -> list[Run]:
    """The runs of one source, one for each task.

    Raises:
        ConfigurationError: It cannot be read, or is nothing of the kind.
        StateError: A database cannot be read.
    """
    if not source.is_file():
        raise ConfigurationError(f"{source}: there is no such file; give a federation.toml, a .db or a .csv")
    match source.suffix:
        case ".toml":
            configs = [config for config in load_tasks(source) if task in (None, config.federation.task)]
            tasks = [(database_path(config), config.federation.task) for config in configs]
            name = source.resolve().parent.name
        case ".db":
            with Store.open_readonly(source) as store:
                tasks = [(source, found) for found in store.tasks() if task in (None, found)]
            name = source.stem
        case ".csv":
            return [Run(source.stem if source.stem != "rounds" else source.resolve().parent.name, _read_csv(source))]
        case _:
            raise ConfigurationError(f"{source}: is none of federation.toml, .db, .csv")
    if not tasks:
        raise ConfigurationError(
            f"{source}: has no task {task!r}" if task else f"{source}: no task has begun there yet"
        )
    several = len(tasks) > 1
    return [Run(f"{name}, {each}" if several else name, _rows(path, each)) for path, each in tasks]


def _rows(database: Path, task: str) -> list[dict[str, Any]]:
    with Store.open_readonly(database) as store:
        program = stored_program(store, task)
        metric = program.metric if program is not None else PREFERRED[0]
        return round_rows(store.rounds(task, sys.maxsize), metric)


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _number(text) for name, text in row.items() if name} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error})") from error
    lacking = [name for name in ("round", "bytes_up", "bytes_down") if rows and name not in rows[0]]
    if lacking:
        raise ConfigurationError(
            f"{path}: has no column {lacking[0]!r}; give what `edge-coordinator rounds FEDERATION.TOML --csv` prints"
        )
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _metric_of(runs: Sequence[Run], asked: str | None) -> str:
    """The metric to draw, which every run must have a value of."""
    known = [{name for row in run.rows for name, value in row.items() if isinstance(value, float)} for run in runs]
    for run, names in zip(runs, known, strict=True):
        if not run.rows:
            raise ConfigurationError(f"{run.name}: no round has ended yet; there is nothing to draw")
        if asked is not None and asked not in names:
            has = ", ".join(sorted(names - NO_METRICS)) or "none"
            raise ConfigurationError(f"--metric {asked}: {run.name} has no value of it; its columns are {has}")
    if asked is not None:
        return asked
    found = next((name for name in PREFERRED if all(name in names for names in known)), None)
    if found is None:
        raise ConfigurationError(f"the runs have none of {', '.join(PREFERRED)} in common; name a column by --metric")
    return found


def _line(run: Run, metric: str) -> str:
    number, spent, value = run.curve(metric)[-1]
    return f"{run.name}: {metric} {value:.4g} in round {number:.0f}, after {spent / 1e6:.4g} MB up and down"
