"""A fleet of 2,000 devices in one process: connect all of them, and close one round with all of them.

The CPU is that of both whole processes, from their start (imports, the compilation of the model, 2,000 state
directories in memory) to the last device's settled outcome. Every device downloads program and parameters for itself.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from benchmarks.federation import Federation
from benchmarks.figures import Figure, at_most
from benchmarks.processes import ENVIRONMENT, ROOT
from edge_sdk.mqtt.loop import raise_file_limit

__all__ = ["measure"]

DEVICES: Final = 2_000
MODEL: Final = {"zoo": "softmax_regression", "inputs": [999], "outputs": 10}
"""10,000 parameters."""
CPU_SECONDS: Final = 10.0
MEGABYTES: Final = 300.0
SECONDS_MAX: Final = 300.0
TOO_FEW_FILES: Final = """
import os, resource, sys
from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt.loop import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
if os.getuid() == 0:
    os.setuid(65534)  # root may raise its own hard limit
try:
    raise_file_limit(int(sys.argv[1]))
except ConfigurationError as error:
    print(error)
"""


def measure() -> list[Figure]:
    """CPU of fleet and coordinator together, the fleet's peak memory, and whether too few files are told."""
    raise_file_limit(2 * DEVICES)  # the broker inherits it
    with Federation(MODEL, goal_count=DEVICES, rounds=1, window_seconds=5.0) as federation:
        coordinator = federation.serve()
        fleet = federation.fleet(DEVICES)
        connected = fleet.wait_for("connected", SECONDS_MAX)
        closed = coordinator.wait_for("round", SECONDS_MAX)
        settled = fleet.wait_for("all_counted", SECONDS_MAX)
    if closed["phase"] != "closed" or closed["counted"] != DEVICES:
        raise RuntimeError(f"the round did not close with all devices: {closed}")
    name = f"fleet of {DEVICES} devices, 10,000 parameters"
    return [
        at_most(
            f"{name}: connect all, close a round with all: CPU of fleet and coordinator",
            settled["cpu"] + closed["cpu"],
            "s",
            CPU_SECONDS,
        ),
        at_most(f"{name}: peak RSS of the fleet", settled["peak_bytes"] / 1e6, "MB", MEGABYTES),
        Figure(f"{name}: CPU of the fleet", settled["cpu"], "s"),
        Figure(f"{name}: CPU of the fleet until all are connected", connected["cpu"], "s"),
        Figure(f"{name}: CPU of the coordinator", closed["cpu"], "s"),
        file_limit(),
    ]


def file_limit() -> Figure:
    """1 where a process that may not open enough files says so, and how to allow it, before it connects anything."""
    done = subprocess.run(
        [sys.executable, "-c", TOO_FEW_FILES, str(DEVICES)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )
    told = "ulimit -n" in done.stdout and "LimitNOFILE" in done.stdout
    return Figure("fleet: too low a limit of file handles is refused with its remedy", float(told), "yes", "= 1", told)
