"""One device's process: its peak memory through real rounds, and the CPU of everything in a round but training.

The CPU is the process's own, from the settled outcome of one round to the receipt of the next: the announcement, the
check-in, 4 MB of parameters in ranges, their digest and their copy in the cache, the residual, the encoder, the
outbox and both residual files on disk, the upload and the verdict. The trainer's own CPU is taken off.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any, Final

from benchmarks.federation import NAME, Federation
from benchmarks.figures import Figure, at_most
from benchmarks.processes import Child
from benchmarks.vectors import GAUSSIAN_MODEL

__all__ = ["measure"]

MODEL: Final = {"zoo": "mlp", "inputs": [784], "outputs": 10, "hidden": [252]}
"""200,350 parameters."""
EXAMPLES: Final = 600
ENGINES: Final = {"numpy": 75.0, "onnxruntime": 110.0}
ROUNDS: Final = 6
CPU_MILLISECONDS: Final = 80.0
SECONDS_MAX: Final = 120.0


def measure() -> list[Figure]:
    """Peak memory with either engine, and CPU of a round with a million parameters."""
    return [*(memory(engine, bound) for engine, bound in ENGINES.items()), *cpu()]


def memory(engine: str, bound: float) -> Figure:
    """Peak resident memory of the whole process after three rounds of real training."""
    with Federation(MODEL, goal_count=1, rounds=3, training="batch_size = 32") as federation:
        federation.serve()
        device = start(federation, engine=engine, inputs=784, examples=EXAMPLES)
        peak = device.wait_for("counted", SECONDS_MAX, count=3)["peak_bytes"] / 1e6
    return at_most(f"device process through rounds, {engine}, MLP of 200,350 parameters: peak RSS", peak, "MB", bound)


def cpu() -> list[Figure]:
    """Milliseconds a round, the median of five; the first one (connecting, the program) is left out."""
    with Federation(GAUSSIAN_MODEL, goal_count=1, rounds=ROUNDS, pause_seconds=0.5) as federation:
        federation.serve()
        inputs = GAUSSIAN_MODEL["inputs"][0]  # type: ignore[index]
        device = start(federation, engine="numpy", inputs=inputs, examples=1, replayed_parameters=1_000_000)
        device.wait_for("counted", SECONDS_MAX, count=ROUNDS)
        counted = device.all_of("counted")
        peak = counted[-1]["peak_bytes"] / 1e6
    spent = [
        1e3 * (after["cpu"] - before["cpu"] - (after["training"] - before["training"]))
        for before, after in itertools.pairwise(counted)
    ]
    name = "device, a round with 1,000,000 parameters at 1 %, without training"
    return [
        at_most(f"{name}: CPU", statistics.median(spent), "ms", CPU_MILLISECONDS),
        Figure(f"{name}: CPU, fastest of {len(spent)}", min(spent), "ms"),
        Figure(f"{name}: peak RSS", peak, "MB"),
    ]


def start(federation: Federation, *, engine: str, inputs: int, examples: int, replayed_parameters: int = 0) -> Child:
    """The device's process, with its state in the federation's folder."""
    settings: dict[str, Any] = {
        "broker": federation.broker.url,
        "federation": NAME,
        "engine": engine,
        "inputs": inputs,
        "outputs": 10,
        "examples": examples,
        "state": str(Path(federation.folder) / "device"),
        "replay": replayed_parameters > 0,
        "parameters": replayed_parameters,
    }
    return federation.start("device_process", settings)
