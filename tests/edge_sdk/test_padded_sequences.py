"""A federation learns from padded sequences: `mask` in federation.toml, one more array in the examples, and the export
is the source model, which never heard of the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from one_federation import Federation, wait
from onnx import TensorProto, helper, numpy_helper

from coordinator.cli.export import export_model
from device_sim.broker import PrivateBroker

POSITIONS = 8


def examples(count: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """The class of a position is its largest feature; in the padding labels are of no class and wrong besides."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, POSITIONS, 3)).astype(np.float32)
    mask = np.arange(POSITIONS) < rng.integers(2, POSITIONS, count)[:, None]
    return {"x": x, "mask": mask, "target": np.where(mask, x.argmax(axis=2), -1)}


def tagger() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        "tagger",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", POSITIONS, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", POSITIONS, 3])],
        [numpy_helper.from_array(np.full(s, 0.1, np.float32), n) for n, s in (("w", (3, 3)), ("b", (3,)))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_padding_counts_neither_in_training_nor_in_the_score(mosquitto_broker: PrivateBroker, tmp_path: Path) -> None:
    source, held_out = tmp_path / "tagger.onnx", tmp_path / "heldout.npz"
    onnx.save(tagger(), source)
    np.savez(held_out, **examples(200, 9))
    tables: dict[str, dict[str, Any]] = {
        "model": {
            "zoo": None,
            "inputs": None,
            "outputs": None,
            "onnx": str(source),
            "loss": "softmax_cross_entropy",
            "mask": "mask",
        },
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 1.0},
        "codec": {"name": "dense", "density": None},
        "evaluation": {"data": str(held_out)},
    }
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, "tagger", **tables) as plant:
        client = plant.client(tmp_path / "pi", load_examples=lambda: examples(200, 1))
        with client:
            wait(lambda: client.status.counted >= 3, seconds=60.0)
        config = plant.config

    assert plant.rounds[-1].summary["metrics"]["accuracy"] > 0.9  # half of all positions are padding
    report = export_model(config, onnx=tmp_path / "trained.onnx", int8=tmp_path / "int8.onnx")
    assert [v.name for v in onnx.load(tmp_path / "trained.onnx").graph.input] == ["x"]
    assert report["float32_accuracy"] == pytest.approx(report["accuracy"], abs=0.05)
    assert report["int8_accuracy"] >= report["float32_accuracy"] - 0.05
