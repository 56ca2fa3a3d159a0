"""The compressed downlink: bytes of a model delta, what it costs a device, and what it costs in rounds and in accuracy.

The accuracy is that of plain federated averaging in one process, without a network: the handwritten digits on 30
devices (Dirichlet 0.5), 15 a round, an MLP 64-200-10, updates in ``auto``, and the demo's server optimiser, whose
momentum makes it the hard case. The model, which devices hold, is judged on held-out digits. Every pair shares its
seed: devices, cohorts, batches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.vectors import gaussian
from coordinator.compile import build_zoo_model, compile_model
from coordinator.config.sections import DownlinkSection
from coordinator.config.settings import downlink
from coordinator.downlink import Downlink, moved_by, next_model
from coordinator.evaluation import Evaluator
from coordinator.server_optimizers import FedAvg, FedAvgM
from device_sim.datasets import load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from device_sim.simulation.deltas import Deltas
from edge_sdk.codecs import CodecSettings, decode_update, encode_update
from edge_sdk.codecs.eden import bits_for
from edge_sdk.training.bundle import decode_parameters, digest_of, encode_parameters, parameters_vector
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import train_locally
from edge_sdk.training.model_delta import apply_model_deltas
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["measure"]

PARAMETERS: Final = 1_000_000
REPEATS: Final = 7
SEEDS: Final = 8
ROUNDS: Final = 60
LAST: Final = 10
DEVICES: Final = 30
COHORT: Final = 15
TARGET: Final = 0.94
MISSED_PARAMETERS: Final = 200_000
MISSED: Final = {1: 1.0, 4: 0.9, 10: 0.8, 32: 0.6}
"""Rounds that a device has missed, and the most of the bytes of so many model deltas that it may have to fetch."""
BYTES_MAX: Final = {"fedavg": 40_000.0, "momentum": 146_000.0}
APPLY_MAX: Final = 6.0
FETCHED_MIN: Final = 15.0
LOST_MAX: Final = 0.5
MOMENTUM: Final = FedAvgM(eta=0.4, momentum=0.9)
OPTIMIZERS: Final = {"fedavg": FedAvg(), "momentum": MOMENTUM}
UPLINK: Final = CodecSettings("auto", bits=bits_for(COHORT, adaptive=True))
PLAN: Final = TrainingPlan(epochs=1, batch_size=16, seconds_max=100.0, scalars={"lr": 0.3})


def measure() -> list[Figure]:
    """Sizes and CPU of model deltas with the default settings, and paired runs with and without them."""
    return [*of_a_delta(), *of_missed_rounds(), *of_training()]


def of_a_delta() -> list[Figure]:
    """A step of Gaussian coordinates: nothing is structured, the hardest case."""
    figures = []
    base = encode_parameters(gaussian(PARAMETERS, seed=1))
    wanted = gaussian(PARAMETERS, seed=1) + np.float32(1e-3) * gaussian(PARAMETERS, seed=2)
    for name, optimizer in OPTIMIZERS.items():
        settings = downlink(DownlinkSection(), optimizer)
        made = next_model(settings, base, wanted, ())
        assert made.model_delta is not None
        data, costs = made.model_delta.model_delta, []
        for _ in range(REPEATS):
            began = time.process_time()
            apply_model_deltas(base, [data], digest_of(made.parameters))
            applied = time.process_time()
            digest_of(base)
            costs.append((applied - began) / (time.process_time() - applied))
        what = f"downlink, {PARAMETERS:,} parameters, Gaussian step, default settings with {name}"
        figures += [
            at_most(f"{what}: a model delta", float(len(data)), "bytes", BYTES_MAX[name]),
            at_most(f"{what}: applying it / checking whole parameters", float(np.median(costs)), "x", APPLY_MAX),
        ]
    return figures


def of_missed_rounds() -> list[Figure]:
    """Rounds of random steps, as those of a federation that has converged: nothing moves twice in one direction."""
    settings = downlink(DownlinkSection(), FedAvg())
    vector = gaussian(MISSED_PARAMETERS, seed=1)
    parameters, owed = encode_parameters(vector), np.zeros_like(vector)
    deltas, held, alone = Deltas(), [digest_of(parameters)], []
    for number in range(1, max(MISSED) + 1):
        wanted = vector + owed + np.float32(1e-3) * gaussian(MISSED_PARAMETERS, seed=number + 1)
        made = next_model(settings, parameters, wanted, ())
        assert made.model_delta is not None
        parameters, vector = made.parameters, parameters_vector(made.parameters)
        owed = wanted - vector
        held.append(digest_of(parameters))
        deltas.follow(number, held[-2], held[-1], made.model_delta)
        alone.append(len(made.model_delta.model_delta))
    name = f"downlink, {MISSED_PARAMETERS:,} parameters, random steps"
    figures = []
    for missed in MISSED:
        fetched, separate = deltas.bytes_from([held[-1 - missed]]), sum(alone[-missed:])
        what = f"{name}, {missed} rounds missed: bytes fetched"
        figures.append(at_most(f"{what} / bytes of each round's", fetched / separate, "x", MISSED[missed]))
        figures.append(at_least(f"whole parameters / {what}", len(parameters) / fetched, "x", 1.0))
    return figures


def of_training() -> list[Figure]:
    """Means over the seeds; the accuracy is that of the last rounds."""
    sides = {"whole": Downlink(), "deltas": downlink(DownlinkSection(), MOMENTUM)}
    runs = {name: [trained(side, seed) for seed in range(SEEDS)] for name, side in sides.items()}
    last = {name: float(np.mean([run.scores[-LAST:] for run in some])) for name, some in runs.items()}
    reached = {name: float(np.mean([_first(run.scores) for run in some])) for name, some in runs.items()}
    fetched = {name: float(np.mean([run.fetched for run in some])) for name, some in runs.items()}
    name = f"downlink, digits, {ROUNDS} rounds, server momentum, {SEEDS} paired seeds"
    return [
        at_most(f"{name}: accuracy lost to deltas", 100.0 * (last["whole"] - last["deltas"]), "points", LOST_MAX),
        Figure(f"{name}: accuracy with whole models", 100.0 * last["whole"], "%"),
        Figure(f"{name}: rounds to {TARGET:.0%} with deltas", reached["deltas"], "rounds"),
        Figure(f"{name}: rounds to {TARGET:.0%} with whole models", reached["whole"], "rounds"),
        at_least(f"{name}: whole models / deltas, fetched", fetched["whole"] / fetched["deltas"], "x", FETCHED_MIN),
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


@dataclass(frozen=True, slots=True)
class Run:
    """Accuracy on held-out digits after each round; mean bytes that a device fetched in a round but its first."""

    scores: list[float]
    fetched: float


def trained(side: Downlink, seed: int) -> Run:
    """One run of all rounds."""
    parts = _parts()
    bundle, train = parts["bundle"], parts["train"]
    program = bundle.program
    shares = partition(train, "dirichlet:0.5", DEVICES, seed)
    examples = [as_examples(train.part(share).examples, program) for share in shares]
    kept: list[Any] = [None] * DEVICES
    cohorts = np.random.Generator(np.random.PCG64(seed))
    state, owed = MOMENTUM.init(program.spec.size), np.zeros_like(bundle.parameters)
    model, deltas, held = encode_parameters(bundle.parameters), Deltas(), {}
    scores, fetched = [], []
    for number in range(ROUNDS):
        start, base = decode_parameters(model, program.spec), digest_of(model)
        total, weight, moved = np.zeros(start.size), 0, 0
        for device in map(int, cohorts.permutation(DEVICES)[:COHORT]):
            if device in held and held[device] != base:
                fetched.append(deltas.bytes_from([held[device]]) or len(model))
            held[device] = base
            draw = np.random.Generator(np.random.PCG64([seed, number, device]))
            done = train_locally(parts["engine"], start, examples[device], PLAN, rng=draw, clock=lambda: 0.0)
            sent = encode_update(done.delta, kept[device], UPLINK, seed=0)
            kept[device] = sent.kept
            decoded = decode_update(sent.frame, start.size, UPLINK)
            moved += moved_by((decoded,))
            total += len(examples[device]) * decoded.dense().astype(np.float64)
            weight += len(examples[device])
        suited = side.suited(moved / (COHORT * start.size))
        owed = np.float32(suited.keeps) * owed
        wanted, state = MOMENTUM.apply(start + owed, (total / weight).astype(np.float32), state, None)
        made = next_model(suited, model, wanted, ())
        model = made.parameters
        deltas.follow(number + 1, base, digest_of(model), made.model_delta)
        owed = wanted - decode_parameters(model, program.spec)
        scores.append(float(parts["evaluator"].evaluate(model)["accuracy"]))
    return Run(scores, float(np.mean(fetched)))


def _first(scores: list[float]) -> int:
    """The first round that reaches the target; one more than there are where none does."""
    return next((number + 1 for number, score in enumerate(scores) if score >= TARGET), len(scores) + 1)


if __name__ == "__main__":
    for figure in measure():
        print(figure.name, figure.value, figure.unit, figure.bound or "", figure.holds)
