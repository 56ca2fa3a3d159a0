"""Learning curves and bytes of one or several runs, as a picture; matplotlib comes with the extra ``plot``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from edge_sdk.errors import ConfigurationError

__all__ = ["FORMATS", "Run", "write_curves"]

FORMATS: Final = (".png", ".svg", ".pdf")
INCHES: Final = (9.0, 6.5)
DOTS_PER_INCH: Final = 110
GREY: Final = "#a0aec0"


@dataclass(frozen=True, slots=True)
class Run:
    """One run, as ``edge-coordinator rounds`` tells it.

    Attributes:
        name: Stands in the legend.
        rows: The rounds that have ended, the oldest first, abandoned attempts included: they cost bytes, too.
    """

    name: str
    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def bytes_each(self) -> list[float]:
        """Bytes of each row, up and down."""
        return [self.number(row, "bytes_up") + self.number(row, "bytes_down") for row in self.rows]

    @property
    def bytes_dense(self) -> list[float]:
        """What each row would have cost as dense float32 and whole models."""
        return [self.number(row, "bytes_up_dense") + self.number(row, "bytes_down_dense") for row in self.rows]

    def curve(self, metric: str) -> list[tuple[float, float, float]]:
        """``(round, all bytes up to it, value)`` of each round that was scored."""
        spent = list(accumulate(self.bytes_each))
        return [
            (self.number(row, "round"), total, float(row[metric]))
            for row, total in zip(self.rows, spent, strict=True)
            if row.get(metric) is not None
        ]

    @staticmethod
    def number(row: Mapping[str, Any], name: str) -> float:
        """A number of a row; 0 where it says nothing."""
        return float(row.get(name) or 0.0)


def write_curves(runs: Sequence[Run], path: Path, metric: str, title: str = "") -> None:
    """Draws the metric against rounds and against all bytes, and the bytes of each round.

    Args:
        runs: At least one.
        path: Where to write; its ending is one of ``FORMATS``.
        metric: The name of the column to draw.
        title: Stands above.

    Raises:
        ConfigurationError: matplotlib is not installed, the ending is none of them, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise ConfigurationError(f"{path}: is none of {', '.join(FORMATS)}; choose one of these endings")
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigurationError("a picture needs matplotlib: pip install 'edgefed[plot]'") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure = plt.figure(figsize=INCHES)
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2])
    by_round, by_bytes = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    each = figure.add_subplot(grid[1, :])
    for run in runs:
        curve = run.curve(metric)
        by_round.plot([number for number, _, _ in curve], [value for *_, value in curve], label=run.name)
        by_bytes.plot([spent / 1e6 for _, spent, _ in curve], [value for *_, value in curve], label=run.name)
        order = range(1, len(run.rows) + 1)
        (line,) = each.plot(order, [count / 1e3 for count in run.bytes_each], label="up and down")
        if len(runs) == 1:
            for direction in ("up", "down"):
                part = [run.number(row, f"bytes_{direction}") / 1e3 for row in run.rows]
                each.plot(order, part, linewidth=0.8, label=direction)
        if any(run.bytes_dense):
            dense = [count / 1e3 for count in run.bytes_dense]
            colour = GREY if len(runs) == 1 else line.get_color()
            each.plot(order, dense, color=colour, linestyle=":", label="as dense float32")
    by_round.set(xlabel="round", ylabel=metric.replace("_", " "))
    by_bytes.set(xlabel="all bytes, up and down [MB]", xscale="log")
    each.set(xlabel="rounds and attempts", ylabel="kB up and down, each", yscale="log")
    each.set_title("" if len(runs) == 1 else "dotted: as dense float32 and whole models", fontsize=9, loc="right")
    for axis in (by_bytes.xaxis, each.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if axis is by_bytes.xaxis else (1.0,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    for axes in (by_round, by_bytes, each):
        axes.grid(alpha=0.25)
    if len(runs) > 1:
        by_round.legend(fontsize=9)
    else:
        each.legend(fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror}); give another file") from error
    finally:
        plt.close(figure)
