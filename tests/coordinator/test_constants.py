"""Constants of a model on the coordinator: whatever aggregates and moves the parameters leaves them alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from wired import bundle, task

from coordinator.downlink import Downlink
from coordinator.pipeline import Aggregator, PipelineSettings
from coordinator.server_optimizers import SERVER_OPTIMIZERS, ServerOptimizer, make_server_optimizer
from coordinator.validate import Validation
from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames, shared_seed
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Program, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import ModelDelta, apply_model_deltas
from edge_sdk.wire.messages import Update

SPEC = ParameterSpec(
    [
        ("first", (20, 10), "trainable"),
        ("mean", (6,), "constant"),
        ("variance", (10,), "buffer"),
        ("scale", (6,), "constant"),
        ("last", (10, 3), "trainable"),
    ]
)
CONSTANT = SPEC.mask("constant")
PROGRAM = Program("small", "trainer", SPEC, bundle().program.inputs, bundle().program.target, "softmax_cross_entropy")
ROUNDS = 3


def started() -> NDArray[np.float32]:
    """A model whose constants hold every kind of value, -0.0 too."""
    vector = np.random.default_rng(0).standard_normal(SPEC.size).astype(np.float32)
    vector[CONSTANT] = np.resize(np.array([1480.0, -0.0, 1e-38, 3e37, 0.1, -7.25], np.float32), 12)
    return vector


def update(parameters: bytes, codec: CodecSettings, seed: int) -> bytes:
    delta = (0.1 * np.random.default_rng(seed).standard_normal(SPEC.size)).astype(np.float32)
    frames = encode_frames(delta, None, codec, SPEC, seed=seed, shared_seed=shared_seed(digest_of(parameters)))
    return Update(10 + seed, 5 + seed, 1.0, True, 1.0, "numpy", {"delta": frames.frames}).encode()


def rounds(codec: CodecSettings, **settings: Any) -> list[NDArray[np.float32]]:
    """The model before and after each of some rounds."""
    plan = replace(task().plan, codec=codec)
    pipeline = Aggregator(PROGRAM, plan, PipelineSettings(validation=Validation(size=SPEC.size), **settings))
    vectors, memory = [started()], pipeline.initial_memory()
    for number in range(ROUNDS):
        parameters = encode_parameters(vectors[-1])
        pipeline.begin(parameters, memory)
        for device in range(5):
            pipeline.add(pipeline.examine(update(parameters, codec, 10 * number + device)))
        finished = pipeline.finish()
        vectors, memory = [*vectors, finished.vector], finished.memory
    return vectors


def left_alone(vectors: list[NDArray[np.float32]]) -> bool:
    """The constants have the bits of before, and everything else has moved."""
    return all(
        after[CONSTANT].tobytes() == before[CONSTANT].tobytes() and (after != before)[~CONSTANT].mean() > 0.5
        for before, after in itertools.pairwise(vectors)
    )


@pytest.mark.parametrize("codec", ["dense", "eden", "int8"])
@pytest.mark.parametrize("algorithm", ["mean", "median", "trimmed_mean", "fednova"])
def test_every_algorithm_leaves_constants_alone(algorithm: str, codec: str) -> None:
    assert left_alone(rounds(CodecSettings(codec), algorithm=make_algorithm(algorithm)))


def test_constants_are_left_alone_where_tensors_are_encoded_in_groups() -> None:
    codec = CodecSettings("int8", tensors=(("last", CodecSettings("dense")), ("mean", CodecSettings("dense"))))
    assert left_alone(rounds(codec))


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_every_server_optimizer_leaves_constants_alone(name: str) -> None:
    assert left_alone(rounds(CodecSettings("dense"), optimizer=make_server_optimizer(name)))


@dataclass(frozen=True)
class Shrinking:
    """A server optimiser of the user's own, which decays whatever it is given."""

    def init(self, size: int) -> dict[str, NDArray[np.float32]]:
        return {}

    def apply(
        self,
        parameters: NDArray[np.float32],
        mean_delta: NDArray[np.float32],
        state: Mapping[str, NDArray[np.float32]],
        buffer: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        return np.float32(0.9) * parameters + mean_delta, {}


def test_a_server_optimizer_of_the_users_own_cannot_move_them() -> None:
    optimizer: ServerOptimizer = Shrinking()
    assert left_alone(rounds(CodecSettings("dense"), optimizer=optimizer))


def test_a_sparse_downlink_leaves_them_alone_and_spends_nothing_on_them() -> None:
    plan = replace(task().plan, codec=CodecSettings("dense"))
    downlink = Downlink(density=0.05, whole_bytes_min=0)
    pipeline = Aggregator(PROGRAM, plan, PipelineSettings(Validation(size=SPEC.size), downlink=downlink))
    model, memory = encode_parameters(started()), pipeline.initial_memory()
    for number in range(ROUNDS):
        pipeline.begin(model, memory)
        pipeline.add(pipeline.examine(update(model, CodecSettings("dense"), number)))
        finished = pipeline.finish()
        assert finished.model_delta is not None
        told = ModelDelta.decode(finished.model_delta.model_delta)
        assert told.kept == ((200, 206), (216, 222)) and told.replaced == ((206, 216),)
        assert apply_model_deltas(model, [finished.model_delta.model_delta], told.target) == finished.parameters
        model, memory = finished.parameters, finished.memory
        assert decode_parameters(model, SPEC)[CONSTANT].tobytes() == started()[CONSTANT].tobytes()
