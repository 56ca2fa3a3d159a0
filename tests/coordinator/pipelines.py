"""A small model with buffers and its pipeline, for tests of algorithms and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wired import bundle, task

from coordinator.pipeline import Aggregator, PipelineSettings
from coordinator.validate import Validation
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames, shared_seed
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Program, digest_of, encode_parameters
from edge_sdk.wire.messages import Update

SPEC = ParameterSpec([("weight", (40, 50), "trainable"), ("mean", (30,), "buffer"), ("bias", (50,), "trainable")])
BUFFERS = SPEC.mask("buffer")
PROGRAM = Program("small", "trainer", SPEC, bundle().program.inputs, bundle().program.target, "softmax_cross_entropy")
INITIAL = encode_parameters(np.zeros(SPEC.size, dtype=np.float32))
DENSE = CodecSettings("dense")
EDEN = CodecSettings("eden", bits=2)
SPARSE = CodecSettings("sparse", density=0.1)


def drawn(count: int, seed: int = 3) -> list[NDArray[np.float32]]:
    """So many deltas, float32[P]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return [(0.1 * rng.standard_normal(SPEC.size)).astype(np.float32) for _ in range(count)]


def update(
    delta: NDArray[np.float32], examples: int = 10, steps: int = 5, codec: CodecSettings = DENSE, seed: int = 1
) -> bytes:
    """A device's update as honest bytes."""
    frames = encode_frames(delta, None, codec, SPEC, seed=seed, shared_seed=shared_seed(digest_of(INITIAL)))
    return Update(
        examples=examples,
        steps=steps,
        loss=1.0,
        complete=True,
        seconds=1.0,
        engine="numpy",
        vectors={"delta": frames.frames},
    ).encode()


def aggregator(codec: CodecSettings = DENSE, weighting: str = "examples", **settings: Any) -> Aggregator:
    """A pipeline over the small model."""
    plan = replace(task().plan, codec=codec, weighting=weighting)
    return Aggregator(PROGRAM, plan, PipelineSettings(**{"validation": Validation(size=SPEC.size), **settings}))


def moved(pipeline: Aggregator, payloads: Sequence[bytes]) -> NDArray[np.float32]:
    """What one round of these updates makes of a model of zeros: with FedAvg that is the algorithm's delta."""
    pipeline.begin(INITIAL, pipeline.initial_memory())
    for payload in payloads:
        pipeline.add(pipeline.examine(payload))
    return pipeline.finish().vector
