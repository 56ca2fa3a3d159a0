"""``python -m benchmarks [names] [--json bench.json]``: every figure that we promise, with its bound.

See ``README.md`` here for how each is taken. All groups make the file anew; some of them change their own figures in it
and leave the others as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import (
    all_bytes,
    codec_gauges,
    codec_results,
    coordinator_load,
    device,
    downlink,
    fleet,
    har,
    imports,
    install,
    node_cases,
    robust,
    round_time,
    simulate,
    tiny_steps,
    training_steps,
    virtual,
    wheel_models,
    wire,
)
from benchmarks.figures import Figure

GROUPS: Final[dict[str, Callable[[], list[Figure]]]] = {
    "imports": imports.measure,
    "all-bytes": all_bytes.measure,
    "wire": wire.measure,
    "downlink": downlink.measure,
    "device": device.measure,
    "round": round_time.measure,
    "coordinator": coordinator_load.measure,
    "robust": robust.measure,
    "fleet": fleet.measure,
    "virtual": virtual.measure,
    "simulate": simulate.measure,
    "install": install.measure,
    "nodes": node_cases.measure,
    "wheel": wheel_models.measure,
    "steps": training_steps.measure,
    "har": har.measure,
    "tiny": tiny_steps.measure,
    "codec": codec_gauges.measure,
    "codec-tasks": codec_results.figures,
}
JSON: Final = Path("bench.json")


def main() -> int:
    """Measures the groups named on the command line, or all; returns how many bounds do not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"out of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--json", type=Path, default=JSON, help="where the figures go (%(default)s)")
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
    kept = json.loads(arguments.json.read_text()) if arguments.groups and arguments.json.exists() else []
    arguments.json.write_text(json.dumps(merged(kept, figures), indent=1) + "\n")
    return sum(figure.holds is False for figure in figures)


def merged(kept: list[dict[str, Any]], figures: list[Figure]) -> list[dict[str, Any]]:
    """``kept`` in its order, with these figures in the place of those of the same name; new ones come last."""
    found = {entry["name"]: entry for entry in kept}
    found.update((figure.name, figure.to_json()) for figure in figures)
    return list(found.values())


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
