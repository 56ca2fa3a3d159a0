"""Raw results of the codec's tasks: kept as lines while they are made, committed as one compact file, and summed up."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.codec_methods import BOUNDS, DENSE, METHODS, Bound, make_method
from benchmarks.codec_tasks import TASKS
from benchmarks.figures import Figure, at_least
from benchmarks.processes import ROOT

__all__ = ["COMMITTED", "Job", "Row", "Run", "commit", "committed", "figures", "load", "rows"]

COMMITTED: Final = ROOT / "docs" / "codec-results.json"
TARGET_POINTS: Final = 1.0
"""A method has reached its target where it is this near to what dense float32 ends with."""

Job: TypeAlias = tuple[str, int, str]
"""Task, seed, method."""
Run: TypeAlias = dict[str, Any]


def load(path: Path) -> dict[Job, Run]:
    """The lines of a file whose task and method are still what they were when they were made."""
    found: dict[Job, Run] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = json.loads(line)
        task = TASKS.get(entry["task"])
        if task is None or entry["facts"] != json.loads(json.dumps(task.facts())):
            continue
        if entry["codec"] == json.loads(json.dumps(make_method(entry["method"], task).facts())):
            found[entry["task"], entry["seed"], entry["method"]] = entry
    return found


def commit(runs: Iterable[Run], path: Path = COMMITTED) -> None:
    """Writes the runs that are on the list, in its order, one a line, and the facts of their tasks once."""
    by_job = {(run["task"], run["seed"], run["method"]): run for run in runs}
    lines = []
    for task, methods in METHODS.items():
        for method in methods:
            for seed in sorted(seed for name, seed, found in by_job if (name, found) == (task, method)):
                run = {key: value for key, value in by_job[task, seed, method].items() if key != "facts"}
                lines.append(json.dumps(run, separators=(",", ":")))
    facts = [f"{json.dumps(name)}:{json.dumps(task.facts(), separators=(',', ':'))}" for name, task in TASKS.items()]
    path.write_text('{"tasks":{\n' + ",\n".join(facts) + '\n},"runs":[\n' + ",\n".join(lines) + "\n]}\n")


def committed(path: Path = COMMITTED) -> list[Run]:
    """The committed runs.

    Raises:
        ValueError: They are of other tasks than those of today.
    """
    found = json.loads(path.read_text())
    for name in {run["task"] for run in found["runs"]}:
        if name not in TASKS or found["tasks"].get(name) != json.loads(json.dumps(TASKS[name].facts())):
            raise ValueError(f"{path}: the runs of {name} are of that task as it was: make reproduce-codec")
    return list(found["runs"])


@dataclass(frozen=True, slots=True)
class Row:
    """A method on a task, over its seeds.

    Attributes:
        parameters: Of the model.
        seeds: Number of seeds that both this method and dense float32 have.
        accuracy: Mean over seeds, 0..1; minus the RMSE where the task is judged by it.
        up: How many times smaller than float32 a client's frame is, mean over seeds.
        down: The same of what a round leads to: a model delta, or the whole parameters.
        both: The same of all that a client sends and fetches, with the rounds that it has missed.
        kilobytes: Uploaded by the mean client over the whole run, in 1,000 bytes.
        target_kilobytes: The same until the curve is within ``TARGET_POINTS`` of what dense ends with; None if never.
        points: Mean of the paired differences to dense, in percentage points; in per cent where they are of an RMSE.
        error: Their standard error; None for a single seed.
        bound: What is asked of it.
    """

    task: str
    method: str
    parameters: int
    seeds: int
    accuracy: float
    up: float
    down: float
    both: float
    kilobytes: float
    target_kilobytes: float | None
    points: float
    error: float | None
    bound: Bound | None

    @property
    def holds(self) -> bool | None:
        """Whether it is small enough and near enough to dense; None where nothing is asked."""
        if self.bound is None:
            return None
        near = self.points >= -self.bound.points
        down = self.bound.down <= 1.0 or self.down >= self.bound.down
        return self.up >= self.bound.up and down and near


def rows(runs: Iterable[Run]) -> list[Row]:
    """A row for each method of each task that ran with a seed that dense float32 ran with too."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run["task"], run["method"]), {})[run["seed"]] = run
    made = []
    for task, methods in METHODS.items():
        dense = found.get((task, DENSE), {})
        for method in methods:
            mine = found.get((task, method), {})
            seeds = sorted(mine.keys() & dense.keys())
            if seeds:
                made.append(_row(task, method, [(mine[seed], dense[seed]) for seed in seeds]))
    return made


def _row(task: str, method: str, pairs: list[tuple[Run, Run]]) -> Row:
    mine = [run for run, _ in pairs]
    by_rmse = TASKS[task].by_rmse
    scales = [abs(dense["accuracy"]) if by_rmse else 1.0 for _, dense in pairs]
    differences = [
        100 * (run["accuracy"] - dense["accuracy"]) / scale for (run, dense), scale in zip(pairs, scales, strict=True)
    ]
    target = statistics.mean(dense["accuracy"] for _, dense in pairs) - TARGET_POINTS / 100 * statistics.mean(scales)
    share = TASKS[task].cohort / TASKS[task].clients
    reached = [next((number for number, accuracy in run["curve"] if accuracy >= target), None) for run in mine]
    sent = [run["up_bytes"] * share / 1e3 for run in mine]
    kilobytes = [each * number for each, number in zip(sent, reached, strict=True) if number is not None]
    return Row(
        task=task,
        method=method,
        parameters=mine[0]["parameters"],
        seeds=len(pairs),
        accuracy=statistics.mean(run["accuracy"] for run in mine),
        up=statistics.mean(4 * run["parameters"] / run["up_bytes"] for run in mine),
        down=statistics.mean(4 * run["parameters"] / run["down_bytes"] for run in mine),
        both=statistics.mean(8 * run["parameters"] / (run["up_bytes"] + _fetched(run)) for run in mine),
        kilobytes=statistics.mean(sent) * TASKS[task].rounds,
        target_kilobytes=statistics.mean(kilobytes) if len(kilobytes) == len(mine) else None,
        points=statistics.mean(differences),
        error=statistics.stdev(differences) / math.sqrt(len(pairs)) if len(pairs) > 1 else None,
        bound=BOUNDS.get((task, method)),
    )


def _fetched(run: Run) -> float:
    """Mean bytes that a client fetches; of whole parameters it is always the same."""
    return float(run.get("fetched_bytes", run["down_bytes"]))


def figures() -> list[Figure]:
    """What is asked of the codec on tasks, from the committed runs."""
    made: list[Figure] = []
    for row in rows(committed()) if COMMITTED.is_file() else ():
        if row.bound is None:
            continue
        stretch = ", stretch" if row.bound.stretch else ""
        where = f"codec {row.method} on {row.task} (committed runs of make reproduce-codec, {row.seeds} seeds{stretch})"
        made.append(at_least(f"{where}: points against dense", row.points, "points", -row.bound.points))
        made.append(at_least(f"{where}: uplink smaller", row.up, "x", row.bound.up))
        if row.bound.down > 1:
            made.append(at_least(f"{where}: downlink smaller", row.down, "x", row.bound.down))
    return made
