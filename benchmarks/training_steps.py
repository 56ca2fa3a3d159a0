"""Training steps against PyTorch eager: ``TORCH_PYTHON=.../python python -m benchmarks.training_steps [model ...]``.

The same exported models, one thread, batches of 10, 32 and 64, each side in its own process and in turn; times are of
the process's CPU, the best of several rounds. PyTorch is wanted only here, and lives in an environment of its own that
``--torch-python`` or TORCH_PYTHON names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, skipped
from coordinator.compile import compile_model, load_onnx
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine

__all__ = ["MODELS", "measure"]

RATIOS_MAX: Final = {
    "mlp": 0.42,
    "fedavg_cnn": 1.0,
    "cnn1d": 0.68,
    "mobilenet": 0.80,
    "transformer": 0.45,
    "gru": 0.5,
    "lstm": 1.0,
}
"""CPU time of a step on onnxruntime, in steps of PyTorch; median over the batches."""
MODELS: Final = (*RATIOS_MAX, "resnet", "tcn", "autoencoder", "matrix_factorisation", "unet")
AGAINST_TORCH: Final = "step on onnxruntime in steps of PyTorch"
AGAINST_ONNXRUNTIME: Final = "step on NumPy in steps on onnxruntime"
COMPILE: Final = "compile and verify, CPU"
REMEDY: Final = "--torch-python or TORCH_PYTHON names an interpreter that has torch to compare with"
SIDES: Final = ("torch", "onnxruntime", "numpy")
NUMPY_MODELS: Final = ("mlp", "cnn1d")
NUMPY_RATIO_MAX: Final = 2.0
"""CPU time of a step on NumPy, in steps on onnxruntime."""
COMPILE_SECONDS_MAX: Final = 5.0
BATCHES: Final = (10, 32, 64)
ROUNDS: Final = 5
SEGMENT_SECONDS: Final = 0.15
MEMORY_BATCH: Final = 32
PROJECT: Final = Path(__file__).parents[1]


@dataclass
class Measured:
    """CPU seconds of a step by batch, of each side; peak memory of a process that trains this model alone, in MB."""

    compile_seconds: float = 0.0
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def ratio(self, side: str, other: str) -> float:
        """Median over the batches."""
        return statistics.median(self.seconds[side, batch] / self.seconds[other, batch] for batch in BATCHES)


class TorchProcess:
    """The interpreter that has torch, asked line by line."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(PROJECT / "benchmarks" / "torch_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One answer; exporters may print in between."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line.removeprefix("ANSWER ")))
        raise RuntimeError(f"the torch process ended at {request}, status {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def measure(torch_python: str | None = None, models: tuple[str, ...] = MODELS) -> list[Figure]:
    """All figures, with the interpreter given or that of TORCH_PYTHON; what has a bound, skipped, without one."""
    torch_python = torch_python or os.environ.get("TORCH_PYTHON")
    if not torch_python:
        print(f"steps: skipped; {REMEDY}", file=sys.stderr)
        return [
            *(skipped(f"{name}: {AGAINST_TORCH}", "", f"<= {bound:g}") for name, bound in RATIOS_MAX.items()),
            *(skipped(f"{name}: {AGAINST_ONNXRUNTIME}", "", f"<= {NUMPY_RATIO_MAX:g}") for name in NUMPY_MODELS),
            *(skipped(f"{name}: {COMPILE}", "s", f"<= {COMPILE_SECONDS_MAX:g}") for name in models),
        ]
    figures = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            figures += figures_of(name, measured(name, torch_python, Path(folder)))
    return figures


class Sides:
    """One model on PyTorch and on both engines, ready to step."""

    def __init__(self, name: str, torch: TorchProcess, bundle: Bundle, examples: dict[str, NDArray[Any]]) -> None:
        self._name, self._torch, self._examples = name, torch, examples
        self._engines = {side: make_engine(bundle.program, side) for side in SIDES[1:]}
        self._handles = {side: engine.load(bundle.parameters) for side, engine in self._engines.items()}

    def step(self, side: str, batch: int, count: int) -> float:
        """CPU seconds of one step, the mean of ``count``."""
        if side == "torch":
            return float(self._torch.ask(model=self._name, batch=batch, count=count)["seconds"])
        fed = {key: array[:batch] for key, array in self._examples.items()}
        begun = time.process_time()
        for _ in range(count):
            self._engines[side].step(self._handles[side], fed, {"lr": 1e-3})
        return (time.process_time() - begun) / count

    def best(self, batch: int) -> dict[str, float]:
        """The best of several rounds, in which the sides take turns."""
        counts = {}
        for side in SIDES:  # the first step is slow, the second tells how many fill a segment
            self.step(side, batch, 1)
            counts[side] = max(1, int(SEGMENT_SECONDS / max(self.step(side, batch, 1), 1e-6)))
        rounds = [{side: self.step(side, batch, count) for side, count in counts.items()} for _ in range(ROUNDS)]
        return {side: min(times[side] for times in rounds) for side in SIDES}


def measured(name: str, torch_python: str, folder: Path) -> Measured:
    """Export, compile, and time one model on all sides."""
    found = Measured()
    with TorchProcess(torch_python) as torch:
        loss = torch.ask(model=name, path=str(folder / "model.onnx"))["loss"]
        source = load_onnx(folder / "model.onnx")
        started = time.process_time()
        bundle = compile_model(source, loss=loss, name=name)
        found.compile_seconds = time.process_time() - started
        bundle.save(folder / "model.bundle")
        with np.load(folder / "model.npz") as file:
            sides = Sides(name, torch, bundle, dict(file))
        for batch in BATCHES:
            found.seconds.update({(side, batch): seconds for side, seconds in sides.best(batch).items()})
    with TorchProcess(torch_python) as torch:
        found.peaks["torch"] = torch.ask(model=name, batch=MEMORY_BATCH, count=5)["peak"]
    for side in SIDES[1:]:
        command = [sys.executable, "-m", "benchmarks.training_steps", "--peak", str(folder), side]
        found.peaks[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def figures_of(name: str, found: Measured) -> list[Figure]:
    """One model's figures with their bounds."""
    figures = [
        Figure(f"{name}, batch {batch}: step on {side}", 1e3 * found.seconds[side, batch], "ms")
        for batch in BATCHES
        for side in SIDES
    ]
    what, ratio = f"{name}: {AGAINST_TORCH}", found.ratio("onnxruntime", "torch")
    figures.append(at_most(what, ratio, "", RATIOS_MAX[name]) if name in RATIOS_MAX else Figure(what, ratio, ""))
    what, ratio = f"{name}: {AGAINST_ONNXRUNTIME}", found.ratio("numpy", "onnxruntime")
    figures.append(at_most(what, ratio, "", NUMPY_RATIO_MAX) if name in NUMPY_MODELS else Figure(what, ratio, ""))
    figures.append(at_most(f"{name}: {COMPILE}", found.compile_seconds, "s", COMPILE_SECONDS_MAX))
    for side, peak in found.peaks.items():
        figures.append(Figure(f"{name}, batch {MEMORY_BATCH}: peak RSS, {side}", peak, "MB"))
    peaks = found.peaks
    figures.append(Figure(f"{name}: peak RSS, onnxruntime / torch", peaks["onnxruntime"] / peaks["torch"], ""))
    return figures


def peak_of(folder: Path, side: str) -> float:
    """Peak resident set in MB of this process after a few steps of the bundle in ``folder``."""
    bundle = Bundle.load(folder / "model.bundle")
    engine = make_engine(bundle.program, side)
    with np.load(folder / "model.npz") as file:
        fed = {key: array[:MEMORY_BATCH] for key, array in file.items()}
    handle = engine.load(bundle.parameters)
    for _ in range(5):
        engine.step(handle, fed, {"lr": 1e-3})
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def report(name: str, figures: list[Figure]) -> str:
    """A few lines: milliseconds of PyTorch, ratios to it by batch, medians with their bounds, peaks."""
    values = {figure.name: figure.value or 0.0 for figure in figures}
    steps = {side: [values[f"{name}, batch {batch}: step on {side}"] for batch in BATCHES] for side in SIDES}
    lines = [name, f"  PyTorch {' / '.join(f'{ms:.3g}' for ms in steps['torch'])} ms at batch {BATCHES}"]
    for side in SIDES[1:]:
        ratios = [ms / reference for ms, reference in zip(steps[side], steps["torch"], strict=True)]
        lines.append(f"  {side} / PyTorch {' / '.join(f'{ratio:.2f}' for ratio in ratios)}")
    for figure in figures:
        if f"{name}: " in figure.name or "peak RSS" in figure.name:
            verdict = {True: "holds", False: "MISSED", None: ""}[figure.holds]
            what = figure.name.partition(": ")[2]
            lines.append(f"  {what} {figure.value:.3g} {figure.unit} {figure.bound or ''} {verdict}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON"), help="interpreter that has torch")
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_of(Path(arguments.peak[0]), arguments.peak[1]))
        return
    if not arguments.torch_python:
        raise SystemExit(f"no PyTorch here: {REMEDY}")
    for name in arguments.models:
        print(report(name, measure(arguments.torch_python, (name,))), flush=True)


if __name__ == "__main__":
    main()
