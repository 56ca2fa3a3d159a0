"""Exported models through a whole federation over a broker, from one ``federation.toml`` table to the file that one
goes on with: trained weights in the source model, and quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from one_federation import Federation, wait

from coordinator.cli.export import export_model
from device_sim.broker import PrivateBroker

MODELS = Path(__file__).resolve().parents[1] / "data" / "onnx"


def examples(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Six features; the class is the largest of the last three, which no committed model knows."""
    x = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    return x, x[:, 3:].argmax(axis=1)


CASES = {
    "sklearn_mlp": {"optimizer": "adam"},
    "sklearn_logistic": {},
    "keras_mlp": {"optimizer": "adamw"},
}


@pytest.mark.parametrize("name", CASES)
def test_an_export_trains_in_a_federation_and_comes_back_in_the_source_model(
    name: str, mosquitto_broker: PrivateBroker, tmp_path: Path
) -> None:
    held_out = tmp_path / "heldout.npz"
    x, y = examples(400, 9)
    np.savez(held_out, x=x, y=y)
    source = MODELS / f"{name}.onnx"
    rate = 0.5 if name == "sklearn_logistic" else 0.05
    tables: dict[str, dict[str, Any]] = {
        "model": {
            "zoo": None,
            "inputs": None,
            "outputs": None,
            "onnx": str(source),
            "loss": "softmax_cross_entropy",
            **CASES[name],
        },
        "training": {"epochs": 5, "batch_size": 16, "learning_rate": rate},
        "codec": {"name": "dense", "density": None},
        "evaluation": {"data": str(held_out)},
    }
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, name, **tables) as plant:
        client = plant.client(tmp_path / "pi", load_examples=lambda: examples(300, 1))
        with client:
            wait(lambda: client.status.counted >= 6, seconds=60.0)
        config = plant.config

    first, last = (plant.rounds[i].summary["metrics"]["accuracy"] for i in (0, -1))
    assert last > 0.85, (first, last)

    report = export_model(config, onnx=tmp_path / "trained.onnx", int8=tmp_path / "int8.onnx")
    assert report["weights"] == "in the source model" and "agree on 400 examples" in report["proved"]
    before, after = onnx.load(source), onnx.load(tmp_path / "trained.onnx")
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    assert [t.name for t in after.graph.initializer] == [t.name for t in before.graph.initializer]
    assert report["float32_accuracy"] == pytest.approx(report["accuracy"], abs=0.03)
    assert report["int8_accuracy"] >= report["float32_accuracy"] - 0.03
