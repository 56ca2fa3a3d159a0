"""Rules that need all updates of a round at once: 200 updates of 1,000,000 parameters, in a bounded memory."""

from __future__ import annotations

from typing import Final

from benchmarks.figures import Figure, at_most
from benchmarks.processes import run_code

__all__ = ["measure"]

UPDATES: Final = 200
PARAMETERS: Final = 1_000_000
BEYOND_MODEL_MB_MAX: Final = 200.0
_CODE: Final = """
import json, sys, time
import numpy as np
from benchmarks.processes import peak_bytes
from coordinator.pipeline import Aggregator, PipelineSettings
from coordinator.validate import Validation
from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Input, Program, encode_parameters
from edge_sdk.wire.messages import Plan, Update
from edge_sdk.wire.plan import TrainingPlan

algorithm, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
spec = ParameterSpec([("w", (size,), "trainable")])
program = Program("p", "trainer", spec, (Input("x", "float32", (None, 1)),), Input("target", "int64", (None,)), "hinge")
codec = CodecSettings("int8")
plan = Plan(training=TrainingPlan(), codec=codec)
rng = np.random.Generator(np.random.PCG64(0))

def payload(number):
    delta = (0.01 * rng.standard_normal(size, dtype=np.float32)).astype(np.float32)
    frames = encode_frames(delta, None, codec, spec, seed=number).frames
    return Update(10, 5, 1.0, True, 1.0, "numpy", {"delta": frames}).encode()

pipeline = Aggregator(program, plan, PipelineSettings(Validation(size=size), make_algorithm(algorithm)))
pipeline.begin(encode_parameters(np.zeros(size, dtype=np.float32)), pipeline.initial_memory())
payload(0)
before, adding = peak_bytes(), 0.0
for number in range(count):
    data = payload(number)
    began = time.process_time()
    pipeline.add(pipeline.examine(data, number.to_bytes(32, "big")))
    adding += time.process_time() - began
added = time.process_time()
pipeline.finish()
print(json.dumps([(peak_bytes() - before) / 1e6, adding / count * 1e3, time.process_time() - added]))
"""


def measure() -> list[Figure]:
    """Peak memory beyond what one update takes, and CPU time, in a fresh process each."""
    figures: list[Figure] = []
    for algorithm in ("median", "trimmed_mean"):
        beyond, each, finish = run_code(_CODE, algorithm, str(UPDATES), str(PARAMETERS))
        what = f"{algorithm} of {UPDATES} updates, {PARAMETERS:,} parameters"
        figures += [
            at_most(f"{what}: peak RSS beyond the model", beyond, "MB", BEYOND_MODEL_MB_MAX),
            Figure(f"{what}: CPU of an update, decoded, checked, kept", each, "ms"),
            Figure(f"{what}: CPU of the end of the round", finish, "s"),
        ]
    return figures
