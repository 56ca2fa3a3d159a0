"""``python -m benchmarks [names] [--json bench.json]``: every figure that we promise, with its bound.

Each figure is taken in fresh processes over a mosquitto on loopback, with one BLAS thread; see ``README.md`` here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks import coordinator_load, device, fleet, imports, install, round_time, virtual, wire
from benchmarks.figures import Figure

GROUPS: Final[dict[str, Callable[[], list[Figure]]]] = {
    "imports": imports.measure,
    "wire": wire.measure,
    "device": device.measure,
    "round": round_time.measure,
    "coordinator": coordinator_load.measure,
    "fleet": fleet.measure,
    "virtual": virtual.measure,
    "install": install.measure,
}


def main() -> int:
    """Measures the groups named on the command line, or all; returns how many bounds do not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"out of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--json", type=Path, default=None, help="where to write the figures (all: bench.json)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.groups if name not in GROUPS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(GROUPS)}")
    console = Console()
    figures: list[Figure] = []
    for name in arguments.groups or GROUPS:
        began = time.monotonic()
        figures += GROUPS[name]()
        console.print(f"[dim]{name}: {time.monotonic() - began:.0f} s", highlight=False)
    console.print(table(figures))
    target = arguments.json or (None if arguments.groups else Path("bench.json"))
    if target is not None:
        target.write_text(json.dumps([figure.to_json() for figure in figures], indent=1) + "\n")
    return sum(figure.holds is False for figure in figures)


def table(figures: list[Figure]) -> Table:
    """The figures as people read them."""
    view = Table("figure", "value", "unit", "bound", "holds")
    for figure in figures:
        value = "skipped" if figure.value is None else f"{figure.value:,.4g}"
        holds = {True: "[green]yes", False: "[red]no", None: "-"}[figure.holds]
        view.add_row(figure.name, value, figure.unit, figure.bound or "-", holds)
    return view


if __name__ == "__main__":
    main()
    sys.exit(0)
