"""What a device's process weighs, measured from outside: imports and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import mlp_program, start

from edge_sdk.training.bundle import Bundle

IMPORTS = """
import json, sys
import numpy
before = set(sys.modules)  # NumPy 1.x loads hashlib itself
import edge_sdk.training.bundle, edge_sdk.training.engine, edge_sdk.training.local, edge_sdk.training.examples
heavy = ("onnx", "onnxruntime", "pydantic", "sqlite3", "paho", "ssl", "hashlib", "csv")
print(json.dumps([name for name in heavy if name in set(sys.modules) - before]))
"""

TRAIN = """
import json, sys, time
import numpy as np
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import make_engine
from edge_sdk.wire.plan import TrainingPlan
from edge_sdk.training.local import as_examples, train_locally

bundle = Bundle.load(sys.argv[1])
engine = make_engine(bundle.program, sys.argv[2])
rng = np.random.Generator(np.random.PCG64(0))
x = rng.integers(0, 256, (500, 784), dtype=np.uint8)
examples = as_examples((x, rng.integers(0, 10, 500)), bundle.program)
plan = TrainingPlan(epochs=2, held_out=0.1, scalars={"lr": 1e-5})
result = train_locally(engine, bundle.parameters, examples, plan, rng=rng, clock=time.monotonic)
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"peak": peak, "steps": result.steps, "modules": [m for m in ("onnx",) if m in sys.modules]}))
"""


def run(code: str, *arguments: str, blas_threads: str = "1") -> Any:
    """The JSON that ``code`` prints in a fresh interpreter."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": blas_threads}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_what_trains_loads_nothing_heavy() -> None:
    assert run(IMPORTS) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("engine", "megabytes_max"), [("numpy", 50), ("onnxruntime", 90)])
def test_training_200_000_parameters_stays_in_a_small_boards_memory(
    tmp_path: Path, engine: str, megabytes_max: int
) -> None:
    program = mlp_program((784, 200, 200, 10))
    path = tmp_path / "model.bundle"
    Bundle(program, start(program) * np.float32(0.2)).save(path)
    found = run(TRAIN, str(path), engine)
    assert found["steps"] > 20 and found["modules"] == []
    assert found["peak"] < megabytes_max, found


BLAS = """
import json, sys, threading
import numpy as np
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import blas, make_engine

found = []
bundle = Bundle.load(sys.argv[1])
engine = make_engine(bundle.program, "numpy", threads=1)
read = [get for _, get in blas._controls()]
outside = [get() for get in read]
run = engine._train.run
engine._train.run = lambda feeds: (found.append([get() for get in read]), run(feeds))[1]
batch = {"x": np.ones((4, 784), np.float32), "target": np.zeros(4, np.int64)}
engine.step(engine.load(bundle.parameters), batch, {"lr": 0.1})
print(json.dumps([outside, found[0], [get() for get in read]]))
"""


def test_blas_has_the_engines_threads_in_a_step_and_its_own_again_after_it(tmp_path: Path) -> None:
    program = mlp_program((784, 8, 10))
    Bundle(program, start(program)).save(tmp_path / "model.bundle")
    before, within, after = run(BLAS, str(tmp_path / "model.bundle"), blas_threads="2")
    if not before:
        pytest.skip("this NumPy has no OpenBLAS whose threads could be set")
    assert before == after == [2] * len(before)
    assert within == [1] * len(before)
