"""What the runs say, for people: ``docs/codec-results.md`` and ``docs/images/codec.png``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.codec_methods import BOUNDS, DENSE, Bound, title
from benchmarks.codec_results import TARGET_POINTS, Row, Run, rows
from benchmarks.codec_tasks import TASKS
from benchmarks.processes import ROOT

__all__ = ["ADVICE", "PAGE", "PICTURE", "draw", "page"]

PAGE: Final = ROOT / "docs" / "codec-results.md"
PICTURE: Final = ROOT / "docs" / "images" / "codec.png"
ADVICE: Final = ROOT / "benchmarks" / "codec_advice.md"

HEADER: Final = """\
# What the codecs cost in accuracy, and save in bytes

`make reproduce-codec` makes this page, its picture and the raw results ([codec-results.json](codec-results.json)). A
run is the shipped code with only the network left out: compiled models, the device's engine and training, real frames,
the coordinator's exact sums and server optimisers.

* **points**: percentage points of test accuracy against dense float32 under the same server optimiser; the mean of
  paired differences (a seed fixes weights, cohorts and batches for all methods) and its standard error over the seeds.
  A run's accuracy is the mean of its last rounds, on the whole test set. Where ratings are predicted, it is the RMSE,
  and points are per cent of that of dense float32 (below 0: the RMSE is larger).
* **smaller**: float32 against the bytes of a frame, up (a client's update) and down (a round's model delta, where the
  downlink is compressed); **in all** counts what a client sends and fetches in a round: one that was not asked for some
  rounds fetches these too, merged. Topics, headers and acknowledgements are not in it (`make bench` counts them).
* **kB a client**: uploaded by the mean client (1,000 bytes), over the whole run, and until the curve is within
  {target:g} point of what dense float32 ends with.
* **asked**: a bound on both, never lowered; where it is missed the row says so.

![Test accuracy against kilobytes a client](images/codec.png)
"""


def page(runs: Iterable[Run], advice: str) -> str:
    """The page, a table a task; ``advice`` stands before the tables."""
    made = rows(runs)
    parts = [HEADER.format(target=TARGET_POINTS), _summary(made), advice]
    for name in TASKS:
        mine = [row for row in made if row.task == name]
        if mine:
            parts.append(_section(name, mine))
    return "\n".join(parts)


def _summary(made: list[Row]) -> str:
    lines = [
        "## What is asked, and whether it holds",
        "",
        "| task | method | asked | smaller | points | seeds | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    found = {(row.task, row.method): row for row in made}
    for (task, method), bound in BOUNDS.items():
        row = found.get((task, method))
        cells = [f"`{task}`", title(method, TASKS[task]), _asked(bound)]
        if row is None:
            cells += ["", "", "0", "not run"]
        else:
            smaller = f"{row.up:.0f}x" + (f" up, {row.down:.0f}x down" if bound.down > 1 else "")
            cells += [smaller, _points(row), str(row.seeds), _verdict(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _points(row: Row) -> str:
    return f"{row.points:+.2f}" + ("" if row.error is None else f" ± {row.error:.2f}")


def _verdict(row: Row) -> str:
    return {True: "holds", False: "**missed**", None: ""}[row.holds]


def _section(name: str, mine: list[Row]) -> str:
    task = TASKS[name]
    result = "RMSE | per cent" if task.by_rmse else "accuracy | points"
    plan = f"learning rate {task.plan.scalars['lr']:g}, batch {task.plan.batch_size}, one epoch"
    lines = [
        f"## {task.describe()}",
        "",
        f"`{name}`: {mine[0].parameters:,} parameters, {task.rounds} rounds, {plan}.",
        "",
        f"| method | smaller up | smaller down | in all | kB a client | until target | {result} | seeds | asked | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
        *(_line(row) for row in mine),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    target = "never" if row.target_kilobytes is None else _kilobytes(row.target_kilobytes)
    points = "" if row.method == DENSE else _points(row)
    down = "1x" if row.down < 1.01 else f"{row.down:.0f}x"
    smaller = (f"{row.up:.0f}x", down, f"{row.both:.0f}x")
    cells = (title(row.method, TASKS[row.task]), *smaller, _kilobytes(row.kilobytes), target)
    result = f"{-row.accuracy:.4f}" if TASKS[row.task].by_rmse else f"{100 * row.accuracy:.2f}"
    results = (result, points, str(row.seeds), _asked(row.bound), _verdict(row))
    return f"| {' | '.join((*cells, *results))} |"


def _asked(bound: Bound | None) -> str:
    if bound is None:
        return ""
    down = f", {bound.down:g}x down" if bound.down > 1 else ""
    return f"{bound.up:g}x{down}, within {bound.points:g}{' (stretch)' if bound.stretch else ''}"


def _kilobytes(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def draw(runs: Iterable[Run], path: Path) -> None:
    """A panel a task: mean accuracy over seeds and three points of the curve, against what the mean client uploaded."""
    from matplotlib import pyplot as plt

    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run["task"], run["method"]), []).append(run)
    names = [name for name in TASKS if any(task == name for task, _ in found)]
    columns = 2
    figure, axes = plt.subplots(-(-len(names) // columns), columns, figsize=(11, 3.1 * -(-len(names) // columns)))
    colours = _colours([method for _, method in found])
    for axis, name in zip(np.ravel(axes), names, strict=False):
        mine = {method: some for (task, method), some in found.items() if task == name}
        _panel(axis, name, mine, colours)
    for axis in np.ravel(axes)[len(names) :]:
        axis.set_axis_off()
    lines = {line.get_label(): line for axis in np.ravel(axes) for line in axis.get_lines()}
    labels = [title(method) for method in colours if title(method) in lines]
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend([lines[label] for label in labels], labels, loc="lower center", ncol=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colours(methods: Iterable[str]) -> Mapping[str, str]:
    """By method, in the order of a legend."""
    palette = {
        "dense": "black", "int8": "#8c8c8c", "int4": "#b5651d", "int2": "#d8a26a",
        "sparse-10": "#c9a0dc", "sparse-4": "#af7ac5", "sparse-3": "#8e44ad", "sparse-1": "#4a235a",
        "eden-1": "#9ecae1", "eden-0.25": "#4292c6", "eden-0.09": "#08519c", "eden-0.05": "#1b9e77",
        "eden-conv": "#e6ab02", "eden-layers": "#8c564b", "auto": "#d62728",
        "eden-0.255": "#2171b5", "eden-0.088": "#08519c", "eden-0.022": "#238b45", "eden-0.01": "#006d2c",
    }  # fmt: skip
    among = set(methods)
    others = sorted(among - palette.keys())
    spare = dict(zip(others, ("#ff7f0e", "#e377c2", "#bcbd22", "#17becf"), strict=False))
    return {method: colour for method, colour in {**palette, **spare}.items() if method in among}


def _panel(axis: object, name: str, mine: dict[str, list[Run]], colours: Mapping[str, str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    task, highest = TASKS[name], 0.0
    for method, colour in colours.items():
        curves = [run["curve"] for run in mine.get(method, ()) if len(run["curve"]) == task.rounds // task.every]
        if not curves:
            continue
        rounds, accuracy = np.mean(curves, axis=0).T
        share = task.cohort / task.clients
        kilobytes = rounds * share * np.mean([run["up_bytes"] for run in mine[method]]) / 1e3
        accuracy = np.convolve(np.pad(accuracy, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
        shown = -accuracy if task.by_rmse else 100 * accuracy
        axis.plot(kilobytes, shown, color=colour, label=title(method), linewidth=1.4)
        highest = max(highest, float(shown.max()))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    if not task.by_rmse:
        axis.set_ylim(highest - 16, highest + 1)
    axis.grid(True, which="major", alpha=0.3)
    axis.set_title(task.describe(), fontsize=9)
    axis.set_xlabel("kB a client uploaded", fontsize=8)
    axis.set_ylabel("test RMSE" if task.by_rmse else "test accuracy, %", fontsize=8)
    axis.tick_params(labelsize=8)
