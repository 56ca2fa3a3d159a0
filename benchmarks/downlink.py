"""The compressed downlink: bytes of a model delta, what it costs a device, and what it costs in rounds and in accuracy.

The accuracy is that of plain federated averaging in one process, without a network: the handwritten digits on 30
devices (Dirichlet 0.5), 15 a round, an MLP 64-200-10, updates sparse at 10 %, and the demo's server optimiser, whose
momentum makes it the hard case (with ``fedavg`` no difference was ever seen). The model, which
devices hold, is judged on held-out digits. Every pair shares its seed: devices, cohorts, batches.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Final

import numpy as np

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.vectors import gaussian
from coordinator.compile import build_zoo_model, compile_model
from coordinator.config.sections import DownlinkSection
from coordinator.config.settings import downlink
from coordinator.downlink import Downlink, next_model
from coordinator.evaluation import Evaluator
from coordinator.server_optimizers import make_server_optimizer
from device_sim.datasets import load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from edge_sdk.codecs import CodecSettings, decode_update, encode_update
from edge_sdk.training.bundle import decode_parameters, digest_of, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import train_locally
from edge_sdk.training.model_delta import apply_model_deltas, encode_model_delta
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["measure"]

PARAMETERS: Final = 1_000_000
REPEATS: Final = 7
SEEDS: Final = 3
ROUNDS: Final = 60
LAST: Final = 10
DEVICES: Final = 30
COHORT: Final = 15
TARGET: Final = 0.94
SMALLER_MIN: Final = 25.0
APPLY_MAX: Final = 6.0
LOST_MAX: Final = 0.5
UPLINK: Final = CodecSettings("sparse", density=0.1)
PLAN: Final = TrainingPlan(epochs=1, batch_size=16, seconds_max=100.0, scalars={"lr": 0.3})


def measure() -> list[Figure]:
    """Sizes and CPU of a model delta with the default settings, and paired runs with and without deltas."""
    return [*of_a_link(), *of_training()]


def of_a_link() -> list[Figure]:
    """A step of Gaussian coordinates: nothing is structured, the hardest case."""
    settings = downlink(DownlinkSection()).codec
    assert settings is not None
    base = encode_parameters(gaussian(PARAMETERS, seed=1))
    model = gaussian(PARAMETERS, seed=1) + gaussian(PARAMETERS, seed=2)
    model_delta, blob = encode_model_delta(base, model, (), settings)
    target = digest_of(blob)
    costs = []
    for _ in range(REPEATS):
        began = time.process_time()
        apply_model_deltas(base, [model_delta], target)
        applied = time.process_time()
        digest_of(blob)
        costs.append((applied - began) / (time.process_time() - applied))
    name = f"downlink, {PARAMETERS:,} parameters, Gaussian step, default settings"
    return [
        at_least(f"{name}: whole parameters / model delta", len(base) / len(model_delta), "x", SMALLER_MIN),
        at_most(f"{name}: applying it / checking whole parameters", float(np.median(costs)), "x", APPLY_MAX),
    ]


def of_training() -> list[Figure]:
    """Means over the seeds; the accuracy is that of the last rounds."""
    sides = {"whole": Downlink(), "deltas": downlink(DownlinkSection())}
    scores = {name: [trained(side, seed) for seed in range(SEEDS)] for name, side in sides.items()}
    last = {name: float(np.mean([run[-LAST:] for run in runs])) for name, runs in scores.items()}
    reached = {name: float(np.mean([_first(run) for run in runs])) for name, runs in scores.items()}
    name = f"downlink, digits, {ROUNDS} rounds, server momentum, {SEEDS} paired seeds"
    return [
        at_most(f"{name}: accuracy lost to deltas", 100.0 * (last["whole"] - last["deltas"]), "points", LOST_MAX),
        Figure(f"{name}: accuracy with whole models", 100.0 * last["whole"], "%"),
        Figure(f"{name}: rounds to {TARGET:.0%} with deltas", reached["deltas"], "rounds"),
        Figure(f"{name}: rounds to {TARGET:.0%} with whole models", reached["whole"], "rounds"),
    ]


@lru_cache(maxsize=1)
def _parts() -> dict[str, Any]:
    model = build_zoo_model("mlp", inputs=(64,), outputs=10, hidden=(200,), seed=0)
    bundle = compile_model(model, loss="softmax_cross_entropy", optimizer="sgd", name="digits", verify=False)
    train, held_out = split_held_out(load_dataset("digits"), 0.2, 0)
    program = bundle.program
    return {
        "bundle": bundle,
        "engine": make_engine(program, "numpy"),
        "evaluator": Evaluator(program, as_examples(held_out.examples, program), "numpy"),
        "train": train,
    }


def trained(side: Downlink, seed: int) -> list[float]:
    """The model's accuracy on held-out digits after each round."""
    parts = _parts()
    bundle, train = parts["bundle"], parts["train"]
    program = bundle.program
    shares = partition(train, "dirichlet:0.5", DEVICES, seed)
    examples = [as_examples(train.part(share).examples, program) for share in shares]
    kept: list[Any] = [None] * DEVICES
    cohorts = np.random.Generator(np.random.PCG64(seed))
    optimizer = make_server_optimizer("fedavgm", eta=0.4, momentum=0.9)
    wanted, state = bundle.parameters.copy(), optimizer.init(program.spec.size)
    model = encode_parameters(wanted)
    scores = []
    for number in range(ROUNDS):
        start = decode_parameters(model, program.spec)
        total, weight = np.zeros(start.size), 0
        for device in cohorts.permutation(DEVICES)[:COHORT]:
            draw = np.random.Generator(np.random.PCG64([seed, number, int(device)]))
            done = train_locally(parts["engine"], start, examples[device], PLAN, rng=draw, clock=lambda: 0.0)
            sent = encode_update(done.delta, kept[device], UPLINK, seed=0)
            kept[device] = sent.kept
            total += len(examples[device]) * decode_update(sent.frame, start.size, UPLINK).dense().astype(np.float64)
            weight += len(examples[device])
        wanted, state = optimizer.apply(wanted, (total / weight).astype(np.float32), state, None)
        model = next_model(side, model, wanted, ()).parameters
        scores.append(float(parts["evaluator"].evaluate(model)["accuracy"]))
    return scores


def _first(scores: list[float]) -> int:
    """The first round that reaches the target; one more than there are where none does."""
    return next((number + 1 for number, score in enumerate(scores) if score >= TARGET), len(scores) + 1)


if __name__ == "__main__":
    for figure in measure():
        print(figure.name, figure.value, figure.unit, figure.bound or "", figure.holds)
