"""How fast is one training step on this device, and how much memory does it take?

The yardstick is the "2NN" of McMahan et al. (Communication-Efficient Learning of Deep Networks from Decentralized Data,
AISTATS 2017): 784-200-200-10, batches of 32. ``speed_check.program`` holds its compiled graphs, for both engines.
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.cli.findings import Finding
from edge_sdk.errors import EdgeFedError
from edge_sdk.training.bundle import Program
from edge_sdk.training.engine import make_engine

__all__ = ["check_engines", "load_yardstick", "step_milliseconds"]

PROGRAM: Final = Path(__file__).parent / "speed_check.program"
BATCH_SIZE: Final = 32
SECONDS_MAX: Final = 1.0
STEPS_MIN, STEPS_MAX = 3, 50


def load_yardstick() -> Program:
    """The built-in program.

    Raises:
        DecodeError: The installation is damaged.
    """
    return Program.decode(PROGRAM.read_bytes())


def step_milliseconds(engine: str, threads: int) -> tuple[float, float]:
    """``(milliseconds of a step, loss after the last one)`` of the yardstick on ``engine``.

    Raises:
        EdgeFedError: The engine is missing or does not work.
    """
    program = load_yardstick()
    runner = make_engine(program, engine, threads)
    rng = np.random.Generator(np.random.PCG64(0))
    bound = np.float32(0.05)
    handle = runner.load(rng.random(program.spec.size, dtype=np.float32) * 2 * bound - bound)
    batch: dict[str, NDArray[Any]] = {
        "x": rng.random((BATCH_SIZE, 784), dtype=np.float32),
        "target": rng.integers(0, 10, BATCH_SIZE, dtype=np.int64),
    }
    loss = runner.step(handle, batch, {"lr": 0.1})  # the first one allocates
    seconds: list[float] = []
    until = time.perf_counter() + SECONDS_MAX
    while len(seconds) < STEPS_MIN or (len(seconds) < STEPS_MAX and time.perf_counter() < until):
        began = time.perf_counter()
        loss = runner.step(handle, batch, {"lr": 0.1})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3, loss


def check_engines(preference: str, threads: int) -> Iterator[Finding]:
    """One training step on every engine that this device has."""
    has_onnxruntime = importlib.util.find_spec("onnxruntime") is not None
    if not has_onnxruntime:
        level = "FAIL" if preference == "onnxruntime" else "ok"
        remedy = "pip install 'edgefed[onnx]'; without it, set device.engine to auto or numpy"
        yield Finding(level, "engine", f"onnxruntime is not installed: {remedy}")  # type: ignore[arg-type]
    for engine in ("numpy", *(("onnxruntime",) if has_onnxruntime else ())):
        try:
            milliseconds, loss = step_milliseconds(engine, threads)
        except (EdgeFedError, OSError, ImportError) as error:
            yield Finding("FAIL" if engine == preference else "warn", "engine", f"{engine}: {error}")
            continue
        if not np.isfinite(loss):
            yield Finding("FAIL", "engine", f"{engine}: the loss became {loss} on data that every engine can learn")
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        yield Finding(
            "ok",
            "engine",
            f"{engine}: {milliseconds:.1f} ms a step (784-200-200-10, batch of {BATCH_SIZE}); this process "
            f"took {peak} MiB at most",
        )
