"""A federation over a real broker learns from raw units with gaps, and the export takes them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from one_federation import Federation, wait

from coordinator.cli.export import export_model
from device_sim.broker import PrivateBroker
from edge_sdk.training.bundle import decode_parameters

Examples = tuple[NDArray[np.float32], NDArray[np.int64]]


def pump(count: int, seed: int) -> Examples:
    """Revolutions a minute, degrees and bar, some missing; too hot for the speed is a fault."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((count, 3))
    x = (np.array([1480.0, 62.0, 4.2]) + z * [120.0, 5.0, 0.03]).astype(np.float32)
    x[rng.random((count, 3)) < 0.05] = np.nan
    return x, (z[:, 1] > z[:, 0]).astype(np.int64)


def tables(directory: Path, mode: str) -> dict[str, dict[str, Any]]:
    x, y = pump(300, 9)
    np.savez(directory / "heldout.npz", x=x, y=y)
    return {
        "model": {
            "zoo": "mlp",
            "inputs": [3],
            "outputs": 2,
            "hidden": [16],
            "normalise": mode,
            "missing": "mean",
            "missing_indicator": True,
        },
        "training": {"epochs": 5, "batch_size": 16, "learning_rate": 0.2},
        "codec": {"name": "dense", "density": None},
        "evaluation": {"data": str(directory / "heldout.npz")},
    }


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_raw_units_are_learnt_and_exported(mosquitto_broker: PrivateBroker, tmp_path: Path, mode: str) -> None:
    with Federation(tmp_path / "coordinator", mosquitto_broker.url, f"pumps-{mode}", **tables(tmp_path, mode)) as plant:
        with plant.client(tmp_path / "pi", load_examples=lambda: pump(300, 1)) as client:
            wait(lambda: client.status.counted >= 3, lambda: client.status, seconds=60.0)
        kept = sorted(path.name for path in (tmp_path / "pi").glob("constants-*"))
        held = [(tmp_path / "pi" / name).read_bytes() for name in kept]
        # Restarted, with other examples than at first: what it has made of those of before goes on.
        before = len(plant.rounds)
        with plant.client(tmp_path / "pi", load_examples=lambda: pump(50, 2)) as client:
            wait(lambda: len(plant.rounds) >= before + 2, lambda: client.status, seconds=60.0)
        config, program = plant.config, plant.program
        vector = decode_parameters(plant.newest(), program.spec)

    assert plant.rounds[-1].summary["metrics"]["accuracy"] > 0.85
    mean = program.spec.unflatten(vector)["normalise/mean"]
    if mode == "local":
        assert kept == [f"constants-{program.digest.hex()}"]
        assert [(tmp_path / "pi" / name).read_bytes() for name in kept] == held
        assert mean.tolist() == [0, 0, 0], "nothing of it has reached the coordinator"
        return
    assert not kept
    np.testing.assert_allclose(mean, np.nanmean(pump(300, 1)[0], axis=0), rtol=1e-3)
    report = export_model(config, onnx=tmp_path / "trained.onnx")
    x, y = pump(300, 9)
    [logits] = onnxruntime.InferenceSession(str(tmp_path / "trained.onnx")).run(None, {"x": x})
    assert np.mean(logits.argmax(axis=1) == y) == pytest.approx(report["accuracy"])
