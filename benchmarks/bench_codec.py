"""Bytes and CPU time of the update codec: ``python benchmarks/bench_codec.py [--mnist mnist.npz]``.

CPU times are the thread's own, with BLAS on one thread; "argp" is ``np.argpartition`` of the same vector's magnitudes,
measured in turn with the codec in the same run, since what a shared machine can do changes by the minute. With a copy
of MNIST (an ``.npz`` with x_train and y_train) the frames of a real cohort are measured too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings, decode_update, encode_update

Vector = NDArray[np.float32]
LAYERS = (784, 1000, 200, 10)
CLIENTS, COHORT, EXAMPLES, ROUNDS = 100, 10, 600, 20
BATCH, LEARNING_RATE = 32, 0.1
SPARSE = CodecSettings("sparse", density=0.01)


def measure(mnist: Path | None = None, repeats: int = 40) -> list[dict[str, Any]]:
    """All figures as ``{"name", "value", "unit"}``."""
    vector = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    figures = []
    for label, codec in {
        "sparse 0.1 %": CodecSettings("sparse", density=0.001),
        "sparse 1 %": SPARSE,
        "sparse 10 %": CodecSettings("sparse", density=0.1),
        "eden 0.09": CodecSettings("eden", bits=0.09),
        "eden 1 bit": CodecSettings("eden", bits=1),
        "int8": CodecSettings("int8"),
        "int8 nearest": CodecSettings("int8", rounding="nearest"),
        "int4": CodecSettings("int4"),
        "dense": CodecSettings("dense"),
    }.items():
        figures += measure_codec(f"gaussian 1M, {label}", vector, codec, repeats)
    if mnist is not None:
        vectors = cohort_vectors(mnist)
        sizes = [len(encode_update(v, None, SPARSE, seed=0).frame) for v in vectors]
        for name, value in (("mean", float(np.mean(sizes))), ("smallest", min(sizes)), ("largest", max(sizes))):
            figures.append(figure(f"MNIST MLP cohort, sparse 1 %, {name} frame", value, "bytes"))
        figures += measure_codec("MNIST MLP, sparse 1 %", vectors[0], SPARSE, repeats)
    return figures


def measure_codec(name: str, vector: Vector, codec: CodecSettings, repeats: int) -> list[dict[str, Any]]:
    """Bytes, ratio, CPU times and, against argp, the median of the paired ratios."""
    kept = {"residual": np.zeros_like(vector)} if codec.keeps else None
    frame = encode_update(vector, kept, codec, seed=0).frame
    magnitudes = np.abs(vector)
    kth = vector.size - max(1, round(codec.to_wire().get("density", 1.0) * vector.size))
    seconds = np.array(
        [
            (
                cpu_seconds(lambda: np.argpartition(magnitudes, kth)),
                cpu_seconds(lambda: encode_update(vector, kept, codec, seed=0)),
                cpu_seconds(lambda: decode_update(frame, vector.size, codec)),
            )
            for _ in range(repeats)
        ]
    )
    argp, encode, decode = np.median(seconds, axis=0)
    return [
        figure(f"{name}: frame", len(frame), "bytes"),
        figure(f"{name}: smaller than float32", vector.nbytes / len(frame), "times"),
        figure(f"{name}: argp", argp * 1e3, "ms"),
        figure(f"{name}: encode", encode * 1e3, "ms"),
        figure(f"{name}: encode / argp", float(np.median(seconds[:, 1] / seconds[:, 0])), "argp"),
        figure(f"{name}: decode", decode * 1e3, "ms"),
        figure(f"{name}: decode, fastest", seconds[:, 2].min() * 1e3, "ms"),
    ]


def figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": float(value), "unit": unit}


def cpu_seconds(action: Callable[[], object]) -> float:
    start = time.thread_time_ns()
    action()
    return (time.thread_time_ns() - start) / 1e9


def cohort_vectors(mnist: Path, seed: int = 0) -> list[Vector]:
    """``delta + residual`` of each client of the 20th round's cohort.

    FedAvg as in McMahan et al. 2017, section 3: 100 clients with two shards of 300 digits each, 10 a round, one local
    lineage; every update goes through ``sparse`` at 1 % with error feedback. Kept in the temporary directory, since it
    takes a minute.
    """
    file = Path(tempfile.gettempdir()) / f"edgefed_bench_cohort_{seed}.npy"
    if file.exists():
        return list(np.load(file))
    with np.load(mnist) as data:
        pixels = data["x_train"].reshape(-1, LAYERS[0]).astype(np.float32) / 255
        labels = data["y_train"]
    rng = np.random.default_rng(seed)
    shards = np.argsort(labels, kind="stable").reshape(2 * CLIENTS, -1)[rng.permutation(2 * CLIENTS)]
    owned = shards.reshape(CLIENTS, EXAMPLES)
    parameters = glorot(rng)
    kept: dict[int, dict[str, Vector]] = {}
    vectors: list[Vector] = []
    for number in range(ROUNDS):
        mean = np.zeros_like(parameters)
        for client in rng.permutation(CLIENTS)[:COHORT].tolist():
            delta = train(parameters, pixels, labels, rng.permutation(owned[client])) - parameters
            residual = kept.get(client, {}).get("residual")
            if number == ROUNDS - 1:
                vectors.append(delta if residual is None else delta + residual)
            encoded = encode_update(delta, kept.get(client), SPARSE, seed=number)
            kept[client] = encoded.kept
            mean += decode_update(encoded.frame, delta.size, SPARSE).dense() / COHORT
        parameters = parameters + mean
    np.save(file, np.stack(vectors))
    return vectors


def glorot(rng: np.random.Generator) -> Vector:
    parts = []
    for rows, columns in itertools.pairwise(LAYERS):
        limit = math.sqrt(6 / (rows + columns))
        parts += [rng.uniform(-limit, limit, rows * columns), np.zeros(columns)]
    return np.concatenate(parts).astype(np.float32)


def train(start: Vector, pixels: Vector, labels: NDArray[np.uint8], examples: NDArray[np.int64]) -> Vector:
    """Parameters after one lineage of plain SGD on the softmax cross-entropy of a ReLU network."""
    parameters = start.copy()
    weights, biases = views(parameters)
    for first in range(0, examples.size, BATCH):
        batch = examples[first : first + BATCH]
        activations = [pixels[batch]]
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            output = activations[-1] @ weight + bias
            activations.append(output if layer == len(weights) - 1 else np.maximum(output, 0))
        logits = activations.pop()
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(batch.size), labels[batch]] -= 1
        error /= batch.size
        for weight, bias, inputs in zip(reversed(weights), reversed(biases), reversed(activations), strict=True):
            below = (error @ weight.T) * (inputs > 0)
            weight -= LEARNING_RATE * (inputs.T @ error)
            bias -= LEARNING_RATE * error.sum(axis=0)
            error = below
    return parameters


def views(parameters: Vector) -> tuple[list[Vector], list[Vector]]:
    weights, biases, at = [], [], 0
    for rows, columns in itertools.pairwise(LAYERS):
        weights.append(parameters[at : at + rows * columns].reshape(rows, columns))
        biases.append(parameters[at + rows * columns : at + (rows + 1) * columns])
        at += (rows + 1) * columns
    return weights, biases


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="an .npz file with x_train and y_train")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    for row in measure(arguments.mnist, arguments.repeats):
        print(f"{row['name']:<52} {row['value']:>14,.3f} {row['unit']}")


if __name__ == "__main__":
    main()
