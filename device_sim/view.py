"""The live view of a federation: from the coordinator's retained JSON, so that anybody with the broker can have it.

In a terminal it is one panel that stays in place; without one (a pipe, CI) each round is one plain line.
"""

from __future__ import annotations

import io
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.task_settings import TRAINING
from edge_sdk.wire.outcomes import VERDICTS

__all__ = ["View", "human_bytes"]

ROWS: Final = 12
PICTURE_COLUMNS: Final = 116
STATES: Final = VERDICTS[1:]


def human_bytes(count: float) -> str:
    """``12.3 kB``: decimal units, as networks are billed."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


class View:
    """Shows the round as it changes.

    Args:
        title: First line of the panel.
        metric: Name of the metric to show.
        terminal: Whether to draw in place; by default, whether standard output is a terminal.
    """

    def __init__(self, title: str, metric: str = "accuracy", terminal: bool | None = None) -> None:
        self._title = title
        self._metric = metric
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._console = Console(highlight=False)
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS)
        self._seen = -1
        self._now: dict[str, Any] = {}
        self._connected = (0, 0)
        self._live: Live | None = None
        self.bytes = self.bytes_dense = self.update_bytes = 0
        self.best: float | None = None

    def __enter__(self) -> View:
        if self._terminal:
            self._live = Live(self._draw(), console=self._console, refresh_per_second=8, transient=False)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.update(self._draw())
            self._live.__exit__(*error)
            self._live = None

    def say(self, line: str) -> None:
        """One line above the panel."""
        self._console.print(line, markup=False)

    def on_connected(self, connected: int, devices: int) -> None:
        """How many devices are connected."""
        self._connected = (connected, devices)

    def on_payload(self, payload: bytes) -> None:
        """Takes one message about the round as it goes; anything else is ignored."""
        try:
            self._now = dict(json.loads(payload))
        except (ValueError, TypeError):
            return
        for row in self._now.get("recent", []):
            if row["round"] > self._seen:
                self._seen = row["round"]
                self._take(row)
            elif self._rows and row["round"] == self._rows[-1]["round"]:
                self._rows[-1] = row  # its evaluation has come
                self._score(row)
        if self._live is not None:
            self._live.update(self._draw())

    def save_svg(self, path: Path) -> None:
        """The panel as it stands, as a picture of a terminal."""
        console = Console(record=True, width=PICTURE_COLUMNS, file=io.StringIO(), highlight=False)
        console.print(self._draw())
        console.save_svg(str(path), title="edge-fleet demo")

    def _take(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.bytes += _all_bytes(row)
        self.bytes_dense += _all_bytes(row, "_dense")
        self.update_bytes += row.get("update_bytes", 0)
        self._score(row)
        if not self._terminal:
            self._console.print(self._line(row), markup=False, soft_wrap=True)

    def _score(self, row: dict[str, Any]) -> None:
        value = row.get("metrics", {}).get(self._metric)
        if value is not None:
            self.best = value if self.best is None else max(self.best, value)

    def _line(self, row: dict[str, Any]) -> str:
        metrics = row.get("metrics", {})
        states = " ".join(f"{state} {row.get(state, 0)}" for state in STATES)
        purpose = row.get("purpose", TRAINING)
        if purpose != TRAINING:
            return (
                f"round {row['round']:>3}  {purpose} from {row.get('counted', 0)} devices  {states}"
                f"  all bytes {human_bytes(_all_bytes(row))}"
            )
        return (
            f"round {row['round']:>3}  invited {row.get('invited', 0):>2}"
            f"  committed {row.get('counted', 0):>2}  {states}"
            f"  train loss {_number(metrics.get('train_loss'))}  {self._metric} {_number(metrics.get(self._metric))}"
            f"  all bytes {human_bytes(_all_bytes(row))} (dense {human_bytes(_all_bytes(row, '_dense'))})"
            f"  of these updates {human_bytes(row.get('update_bytes', 0))}"
        )

    def _draw(self) -> Panel:
        return Panel(Group(self._header(), self._table(), self._footer()), title=self._title, title_align="left")

    def _header(self) -> Group:
        now = self._now
        if not now:
            connected, devices = self._connected
            return Group(Text(f"connecting devices: {connected} of {devices}"))
        if now.get("phase") == "done":
            return Group(Text(str(now.get("reason", "done")), style="bold cyan"))
        goal = max(now.get("goal_count", 1), 1)
        committed = now.get("committed", 0)
        line = Text.assemble(
            ("round ", "dim"),
            (f"{now.get('round', 0)}", "bold"),
            (f"/{now['rounds_max']}" if now.get("rounds_max") else "", "dim"),
            "  ",
            (f"{now.get('phase', ''):<13}", "bold cyan"),
            "" if now.get("purpose", TRAINING) == TRAINING else f"{now['purpose']} ",
            (" invited ", "dim"),
            f"{now.get('invited', 0):>2}",
            ("  committed ", "dim"),
            (f"{committed:>2}", "bold green"),
            *(part for state in STATES for part in ((f"  {state} ", "dim"), f"{now.get(state, 0)}")),
            ("  deadline in ", "dim"),
            f"{now.get('remaining_seconds', 0.0):.0f} s",
        )
        bar = Table.grid()  # a bar by itself ends without a line break
        bar.add_row(ProgressBar(total=goal, completed=min(committed, goal), width=60))
        trouble = [Text(str(now["reason"]), style="yellow")] if now.get("reason") else []
        return Group(line, bar, *trouble)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for name in (
            "round",
            "invited",
            "committed",
            *STATES,
            "train loss",
            self._metric,
            "all bytes",
            "dense",
            "updates",
        ):
            table.add_column(name, justify="right")
        for row in self._rows:
            metrics = row.get("metrics", {})
            table.add_row(
                str(row["round"]),
                str(row.get("invited", 0)),
                f"[green]{row.get('counted', 0)}",
                *(str(row.get(state, 0)) for state in STATES),
                _number(metrics.get("train_loss")),
                f"[bold]{_number(metrics.get(self._metric))}",
                human_bytes(_all_bytes(row)),
                f"[dim]{human_bytes(_all_bytes(row, '_dense'))}",
                human_bytes(row.get("update_bytes", 0)),
            )
        return table

    def _footer(self) -> Text:
        less = f" ({self.bytes_dense / self.bytes:.0f}x less)" if self.bytes else ""
        return Text.assemble(
            ("best ", "dim"),
            (_number(self.best), "bold green"),
            ("   all bytes, up and down: ", "dim"),
            human_bytes(self.bytes),
            (f", dense float32 {human_bytes(self.bytes_dense)}{less}", "dim"),
        )


def _all_bytes(row: dict[str, Any], suffix: str = "") -> int:
    """Up and down; with ``_dense`` what dense float32 would have been."""
    return int(row.get(f"bytes_up{suffix}", 0)) + int(row.get(f"bytes_down{suffix}", 0))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
