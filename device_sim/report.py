"""What a run leaves behind for people: ``rounds.csv`` and a picture of accuracy and bytes per round."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from coordinator.store import RoundRecord
from coordinator.task_settings import OPENING_ROUND

__all__ = ["COLUMNS", "round_rows", "write_csv", "write_picture"]

COLUMNS: Final = (
    "round",
    "attempt",
    "phase",
    "invited",
    "counted",
    "late",
    "declined",
    "missing",
    "refused",
    "train_loss",
    "loss",
    "metric",
    "bytes_up",
    "bytes_up_dense",
    "bytes_down",
    "bytes_down_dense",
    "seconds",
)


def round_rows(records: Sequence[RoundRecord], metric: str) -> list[dict[str, Any]]:
    """One row for each ended round, oldest first; ``metric`` is the name of the program's metric."""
    rows = []
    for record in sorted(records, key=lambda r: (r.number, r.attempt)):
        if record.phase not in ("closed", "abandoned"):
            continue
        summary, metrics = record.summary, record.summary.get("metrics", {})
        seconds = None
        if record.ended_at is not None and record.started_at is not None:
            seconds = round(record.ended_at - record.started_at, 3)
        rows.append(
            {
                "round": record.number,
                "attempt": record.attempt,
                "phase": record.phase,
                **{name: summary.get(name) for name in COLUMNS[3:9]},
                "train_loss": metrics.get("train_loss"),
                "loss": metrics.get("loss"),
                "metric": metrics.get(metric),
                "bytes_up": summary.get("bytes_up"),
                "bytes_up_dense": summary.get("bytes_up_dense"),
                "bytes_down": summary.get("bytes_down"),
                "bytes_down_dense": summary.get("bytes_down_dense"),
                "seconds": seconds,
            }
        )
    return rows


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes ``rows`` with a header line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_picture(rows: Sequence[dict[str, Any]], path: Path, *, metric: str, title: str) -> None:
    """Draws the metric over the rounds of training, and bytes a round beside what dense float32 would have cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    closed = [row for row in rows if row["phase"] == "closed" and row["round"] > OPENING_ROUND]
    numbers = [row["round"] for row in closed]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[3, 2])
    scored = [(row["round"], row["metric"]) for row in closed if row["metric"] is not None]
    if scored:
        above.plot(*zip(*scored, strict=True), color="#2b6cb0", linewidth=1.8)
        best = max(scored, key=lambda pair: pair[1])
        above.annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(0, -14), ha="right", fontsize=9)
    above.margins(y=0.08)
    above.set_ylabel(f"held-out {metric}")
    above.grid(alpha=0.25)
    above.set_title(title, loc="left", fontsize=11)
    below.plot(numbers, [row["bytes_up_dense"] / 1000 for row in closed], color="#a0aec0", label="as dense float32")
    below.plot(numbers, [row["bytes_up"] / 1000 for row in closed], color="#c05621", label="as sent")
    below.set_yscale("log")
    below.yaxis.set_major_formatter("{x:g}")
    below.yaxis.set_minor_formatter("")
    below.set_ylabel("kB up, a round")
    below.set_xlabel("round")
    below.grid(alpha=0.25)
    below.legend(fontsize=9, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
