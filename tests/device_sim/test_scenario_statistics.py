"""A model with running statistics through the whole protocol: the auditor sums its updates a second time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from coordinator.compile import compile_model
from device_sim.scenario import FAULTY, Scenario, run
from edge_sdk.codecs import CodecSettings
from edge_sdk.training.bundle import Bundle


def normalised_digits() -> Bundle:
    rng = np.random.default_rng(0)
    weights = {
        "fc1": rng.uniform(-0.2, 0.2, (64, 16)),
        "scale": np.ones(16),
        "bias": np.zeros(16),
        "mean": np.zeros(16),
        "variance": np.ones(16),
        "fc2": rng.uniform(-0.3, 0.3, (16, 10)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "fc1"], ["h"], name="h"),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "variance"], ["n"], name="n"),
        helper.make_node("Relu", ["n"], ["r"], name="r"),
        helper.make_node("MatMul", ["r", "fc2"], ["logits"], name="logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return compile_model(model, loss="softmax_cross_entropy", name="digits")


@pytest.mark.parametrize(
    ("codec", "server_optimizer"),
    [(CodecSettings("dense"), "fedavg"), (CodecSettings("sparse", density=0.1), "fedadam")],
    ids=["dense", "sparse"],
)
def test_updates_with_statistics_are_counted_as_they_were_sent(codec: CodecSettings, server_optimizer: str) -> None:
    scenario = Scenario(rounds=3, codec=codec, server_optimizer=server_optimizer, faults=FAULTY)
    outcome = run(scenario, 5, normalised_digits())
    assert len(outcome.rounds) == 3 and all(tally["counted"] for tally in outcome.rounds)
