"""What a step of a tiny model costs in single calls, in runs of 64 and on NumPy: ``python -m benchmarks.tiny_steps``.

A 9-6 softmax regression on batches of 10, on the engine that a device has: CPU time of the process, the median of
rounds in which the three take turns. Batches are ready before; what training does beside its steps is not in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.figures import Figure, at_most

__all__ = ["measure"]

BATCH_SIZE: Final = 10
STEPS: Final = 64
REPEATS: Final = 30
ROUNDS: Final = 15
LOOP_MAX: Final = 0.85
"""The compiler keeps a loop only where it saves 15 % of a step."""


def measure() -> list[Figure]:
    """Microseconds a step, and the loop's share of single steps, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tiny_steps", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = f"9-6 softmax regression, batch {BATCH_SIZE}"
    figures = [Figure(f"{name}: a step, {side}", value, "us") for side, value in found["microseconds"].items()]
    return [*figures, at_most(f"{name}: runs of {STEPS}, in single steps", found["ratio"], "", LOOP_MAX)]


def measured() -> dict[str, Any]:
    """Microseconds by side, and the median ratio of loop to single steps."""
    import numpy as np

    from coordinator.compile import build_zoo_model, compile_model
    from edge_sdk.training.engine import make_engine

    model = build_zoo_model("softmax_regression", inputs=(9,), outputs=6, seed=1)
    bundle = compile_model(model, loss="softmax_cross_entropy", name="tiny", loop=True)
    rng = np.random.default_rng(0)
    stacked = {
        "x": rng.standard_normal((STEPS, BATCH_SIZE, 9)).astype(np.float32),
        "target": rng.integers(0, 6, (STEPS, BATCH_SIZE)),
    }
    batches = [{name: array[number] for name, array in stacked.items()} for number in range(STEPS)]
    fast, plain = make_engine(bundle.program, "onnxruntime"), make_engine(bundle.program, "numpy")
    handle, other = fast.load(bundle.parameters), plain.load(bundle.parameters)
    sides: dict[str, Callable[[], object]] = {
        "single calls": lambda: [fast.step(handle, batch, {"lr": 0.01}) for batch in batches],
        f"runs of {STEPS}": lambda: fast.steps(handle, stacked, {"lr": 0.01}),
        "NumPy": lambda: [plain.step(other, batch, {"lr": 0.01}) for batch in batches],
    }
    for act in sides.values():
        act()
    rounds = [{side: microseconds(act) for side, act in sides.items()} for _ in range(ROUNDS)]
    return {
        "microseconds": {side: statistics.median(times[side] for times in rounds) for side in sides},
        "ratio": statistics.median(times[f"runs of {STEPS}"] / times["single calls"] for times in rounds),
    }


def microseconds(act: Callable[[], object]) -> float:
    """CPU time of a step of ``act``."""
    started = time.process_time()
    for _ in range(REPEATS):
        act()
    return 1e6 * (time.process_time() - started) / REPEATS / STEPS


def main() -> None:
    if "--json" in sys.argv:
        print(json.dumps(measured()))
        return
    for figure in measure():
        print(f"{figure.name}: {figure.value:.3g} {figure.unit} {figure.bound or ''}".rstrip())


if __name__ == "__main__":
    main()
