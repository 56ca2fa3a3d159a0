"""Step times and peak memory of both engines: ``python benchmarks/engine_steps.py [--model mlp|cnn] [--batch 32]``.

Each engine runs in a process of its own, as on a device. Times are of the process's CPU, the best of
five rounds; the peak is the whole process's resident set (VmHWM), without the client and its connection.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = {
    "mlp": {"inputs": (784,), "outputs": 10},
    "cnn": {"inputs": (1, 28, 28), "outputs": 10, "channels": (32, 64), "hidden": (512,)},
}
ROUNDS = 5


def compiled(model: str, path: Path) -> None:
    """Write the bundle of a model of the zoo to ``path``."""
    from coordinator.compile import build_zoo_model, compile_model

    source = build_zoo_model(model, seed=1, **MODELS[model])  # type: ignore[arg-type]
    compile_model(source, loss="softmax_cross_entropy", name=model, verify=False).save(path)


def measured(path: str, engine_name: str, batch_size: int) -> str:
    """One line of figures, from inside the process that is measured."""
    import numpy as np

    from edge_sdk.training.bundle import Bundle
    from edge_sdk.training.engine import make_engine

    bundle = Bundle.load(path)
    engine = make_engine(bundle.program, engine_name)
    rng = np.random.default_rng(0)
    shape = (batch_size, *(d or 1 for d in bundle.program.inputs[0].shape[1:]))
    batch: dict[str, Any] = {
        "x": rng.normal(0, 0.3, shape).astype(np.float32),
        "target": rng.integers(0, 10, batch_size),
    }
    handle = engine.load(bundle.parameters)
    steps = 200 if bundle.program.name == "mlp" else 5
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(steps):
            engine.step(handle, batch, {"lr": 1e-3})
        best = min(best, (time.process_time() - started) / steps)
    peak_kilobytes = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return f"{engine_name:12} {best * 1e3:8.3f} ms a step   {peak_kilobytes / 1024:6.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--measure", nargs=2, metavar=("BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measured(arguments.measure[0], arguments.measure[1], arguments.batch))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.bundle"
        compiled(arguments.model, path)
        print(f"{arguments.model}, batch {arguments.batch}")
        for engine in ("numpy", "onnxruntime"):
            command = [sys.executable, __file__, "--batch", str(arguments.batch), "--measure", str(path), engine]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
