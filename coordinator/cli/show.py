"""Tables for people on a terminal, and CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.task_settings import TRAINING
from edge_sdk.wire.outcomes import VERDICTS

if TYPE_CHECKING:
    from coordinator.cli.check import Outcome

__all__ = ["bytes_text", "make_console", "make_table", "print_checks", "print_rounds", "print_status", "rounds_csv"]

PIPED_COLUMNS: Final = 200
COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def print_checks(outcomes: Sequence[Outcome]) -> None:
    """One line for each check."""
    table = make_table("check", "", "")
    for outcome in outcomes:
        table.add_row(outcome.name, Text(outcome.state, style=COLOURS[outcome.state]), Text(outcome.detail))
    make_console().print(table)


def print_status(report: Mapping[str, Any]) -> None:
    """What :func:`coordinator.reports.status_report` gives."""
    console, round_ = make_console(), report["round"]
    facts = make_table("", "")
    model = report["model"]
    facts.add_row("federation", f"{report['federation']}, task {report['task']}")
    facts.add_row(
        "database", f"{report['database']} ({'being served' if report['served'] else 'nobody serves it now'})"
    )
    if model:
        facts.add_row("model", f"{model['name']}, {model['parameters']} parameters")
    facts.add_row("rounds", _progress(report))
    if report["trouble"]:
        facts.add_row("trouble", Text(report["trouble"], style="yellow"))
    if round_:
        facts.add_row("round now", _round_text(round_))
        facts.add_row("tickets", _pairs(round_["tickets"]) or "none yet")
    facts.add_row("metrics", _pairs(report["metrics"]) or "none yet")
    if report["features"]:
        facts.add_row("features", Text("; ".join(report["features"])))
    sums = report["bytes"]
    facts.add_row("bytes up", f"{bytes_text(sums['bytes_up'])}, dense {bytes_text(sums['bytes_up_dense'])}")
    facts.add_row("bytes down", f"{bytes_text(sums['bytes_down'])}, whole {bytes_text(sums['bytes_down_dense'])}")
    facts.add_row("messages refused", _pairs(report["messages"]) or "none")
    facts.add_row("devices", f"{report['devices']['known']} known")
    console.print(facts)
    if report["devices"]["latest"]:
        console.print(_devices_table(report["devices"]["latest"]))


def print_rounds(rows: Sequence[Mapping[str, Any]]) -> None:
    """What :func:`coordinator.reports.rounds_report` gives."""
    if not rows:
        make_console().print("no round has ended yet")
        return
    left_out = {"purpose"} if all(row["purpose"] == TRAINING for row in rows) else set()
    names = [name for name in rows[0] if name not in left_out]
    table = Table(*(name.replace("_", " ") for name in names), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_cell(name, row[name])) for name in names))
    make_console().print(table)


def rounds_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with a header; empty without rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def bytes_text(count: int) -> str:
    """``1.2 MB``."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000.0
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000.0:.1f} TB"


def _progress(report: Mapping[str, Any]) -> str:
    done = f"{report['completed']} done"
    if report["rounds_max"]:
        done += f" of {report['rounds_max']}"
    if report["abandoned"]:
        done += f", {report['abandoned']} attempts abandoned"
    return done + (f"; finished: {report['finished']}" if report["finished"] else "")


def _round_text(entry: Mapping[str, Any]) -> str:
    attempt = f" (attempt {entry['attempt'] + 1})" if entry["attempt"] else ""
    purpose = "" if entry["purpose"] == TRAINING else f": {entry['purpose']} from {entry['goal_count']} devices"
    return (
        f"{entry['number']}{attempt}{purpose}, in {entry['phase']}: {entry['checked_in']} devices have checked in, "
        f"goal {entry['goal_count']}, at least {entry['minimum_count']}; "
        f"{entry['seconds_remaining']:g} s left when it was last saved"
    )


def _devices_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table("device", "last seen", *VERDICTS, "sdk", "engine", "")
    for device in devices:
        changes = device["instance_changes"]
        table.add_row(
            device["device"],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(device["last_seen"])),
            *(str(device[name]) for name in VERDICTS),
            device["sdk"],
            device["engine"],
            f"installed anew or cloned {changes} times" if changes else "",
        )
    return table


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.startswith("bytes"):
        return bytes_text(value)
    return _number(value)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def make_table(*columns: str) -> Table:
    """A table without lines whose first column is never folded."""
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    return table


def make_console() -> Console:
    """The terminal, or a pipe."""
    # A pipe has no width: lines that a script reads are not to be folded at 80 columns.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_COLUMNS)
