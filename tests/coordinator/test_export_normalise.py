"""``edge-coordinator export`` of a model that normalises: what is written takes raw units, or says what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from serving import dense_frame, update_of, write_config

from coordinator.cli.export import export_model
from coordinator.compile import build_zoo_model
from coordinator.config import load_config
from coordinator.setup import prepare
from coordinator.store import JournalRow, RoundRecord, TicketRecord
from edge_sdk.training.bundle import Bundle, Program, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import train_locally
from edge_sdk.training.own_constants import own_constants, with_constants
from edge_sdk.wire.plan import TrainingPlan

ZOO = {"zoo": "mlp", "inputs": [3], "outputs": 2, "hidden": [32]}


def pumps(rows: int = 400, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Revolutions a minute, degrees and bar; a pump fails where it is hot and slow for its pressure."""
    z = np.random.default_rng(seed).standard_normal((rows, 3))
    x = np.array([1480.0, 62.0, 4.2]) + z * [120.0, 5.0, 0.03]
    return x.astype(np.float32), (z[:, 1] > z[:, 0] + z[:, 2]).astype(np.int64)


def learned(program: Program, start: NDArray[np.float32]) -> NDArray[np.float32]:
    """Parameters of a federation: with everybody's constants, or with none where each device has its own."""
    examples = as_examples(pumps(), program)
    vector = with_constants(program, start, own_constants(program, examples))
    rng, plan = np.random.Generator(np.random.PCG64(0)), TrainingPlan(epochs=30, batch_size=16)
    done = train_locally(make_engine(program, "numpy"), vector, examples, plan, rng=rng, clock=lambda: 0.0)
    assert program.normalise is not None
    return (start if program.normalise.mode == "local" else vector) + done.delta


def committed(
    tmp_path: Path, model: dict[str, Any], held_out: bool = True
) -> tuple[Path, Program, NDArray[np.float32]]:
    """A coordinator's configuration, its program, and the model of a round that was committed."""
    x, y = pumps(300, seed=1)
    if model.get("missing") == "mean":
        x[::7, 1] = np.nan
    np.savez(tmp_path / "heldout.npz", x=x, y=y)
    changes: dict[str, Any] = {"evaluation": {"data": "heldout.npz"}} if held_out else {}
    path = write_config(
        tmp_path, "mqtt://127.0.0.1:1", model={"zoo": None, "inputs": None, "outputs": None, **model}, **changes
    )
    made = prepare([load_config(path)], wall=lambda: 1_700_000_000.0, new_id=os.urandom, engine="numpy")
    store, program = made.store, made.tasks[0].program
    base = store.latest_checkpoint("default")
    assert base is not None
    vector = learned(program, decode_parameters(store.get_blob(base.parameters_digest) or b"", program.spec))
    ticket, payload = os.urandom(16), update_of(dense_frame(vector))
    told = ("default", 1, 0)
    store.save_round(RoundRecord(*told, "reporting", 9.0, base.parameters_digest, program.digest))
    store.insert_tickets([TicketRecord(ticket, *told, "pi-1", bytes(16))])
    [seq] = store.journal([JournalRow(ticket, digest_of(payload), payload)])
    store.commit_round(
        RoundRecord(*told, "closed", 0.0, base.parameters_digest, program.digest, seq, ended_at=1_700_000_012.5),
        parameters=encode_parameters(vector),
        server_state=b"\x80",
        verdicts={ticket: ("counted", "")},
        metrics={},
    )
    store.close()
    return path, program, vector


def outputs(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return found


def accuracy(path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    return float((outputs(path, x).argmax(axis=1) == y).mean())


SOURCES = ["zoo", "onnx"]


def model_from(source: str, tmp_path: Path, **keys: Any) -> dict[str, Any]:
    if source == "zoo":
        return {**ZOO, **keys}
    onnx.save(build_zoo_model("mlp", inputs=(3,), outputs=2, hidden=(32,), seed=2), tmp_path / "mine.onnx")
    return {"onnx": "mine.onnx", "loss": "softmax_cross_entropy", **keys}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("missing", ["refuse", "mean"])
def test_a_federated_export_takes_raw_units(tmp_path: Path, source: str, missing: str) -> None:
    model = model_from(source, tmp_path, normalise="federated", missing=missing)
    path, program, vector = committed(tmp_path, model)
    written, int8 = tmp_path / "m.onnx", tmp_path / "m8.onnx"
    report = export_model(load_config(path), onnx=written, int8=int8, bundle=tmp_path / "m.bundle")
    assert report["takes"].startswith("x: raw units; normalise/mean and normalise/scale hold what 3 features")
    assert report["proved"].startswith("onnxruntime and the numpy engine agree on 300 examples")
    assert report["weights"].startswith("in the source model" if source == "onnx" else "in the compiled graph")
    held_out = np.load(tmp_path / "heldout.npz")
    x, y = held_out["x"], held_out["y"]
    assert np.isnan(x).any() == (missing == "mean")
    assert accuracy(written, x, y) == pytest.approx(report["accuracy"]) and report["accuracy"] > 0.9
    assert accuracy(int8, x, y) > report["accuracy"] - 0.05
    bundle = Bundle.load(tmp_path / "m.bundle")
    assert bundle.program == program and np.array_equal(bundle.parameters, vector)
    if source == "onnx":
        names = {node.name for node in onnx.load(tmp_path / "mine.onnx").graph.node}
        assert names < {node.name for node in onnx.load(written).graph.node}


def test_without_held_out_data_it_is_proved_on_raw_units_that_are_made_up(tmp_path: Path) -> None:
    path, _, _ = committed(tmp_path, {**ZOO, "normalise": "federated", "missing": "mean"}, held_out=False)
    report = export_model(load_config(path), onnx=tmp_path / "m.onnx")
    assert "agree on 8 examples" in report["proved"] and report["takes"].endswith("NaN where a value is missing")


@pytest.mark.parametrize("source", SOURCES)
def test_a_local_export_says_that_it_takes_what_a_device_has_normalised(tmp_path: Path, source: str) -> None:
    path, program, _ = committed(tmp_path, model_from(source, tmp_path, normalise="local"))
    written, int8 = tmp_path / "m.onnx", tmp_path / "m8.onnx"
    report = export_model(load_config(path), onnx=written, int8=int8)
    assert "normalised already" in report["takes"] and "which hold 0 and 1" in report["takes"]
    held_out = np.load(tmp_path / "heldout.npz")
    x, y = held_out["x"], held_out["y"]
    seen = ((x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)).astype(np.float32)
    assert report["accuracy"] > 0.9, "held-out examples are normalised with constants of their own"
    assert accuracy(written, seen, y) == pytest.approx(report["accuracy"], abs=0.01)
    assert accuracy(int8, seen, y) > report["accuracy"] - 0.05
    assert accuracy(written, x, y) < 0.75, "raw units are not what it takes"
    # What the report advises: a device puts its own constants in.
    model = onnx.load(written)
    own = own_constants(program, as_examples((x, y), program))
    for tensor in model.graph.initializer:
        if tensor.name in ("normalise/mean", "normalise/scale"):
            part = own[:3] if tensor.name.endswith("mean") else own[3:]
            tensor.CopyFrom(onnx.numpy_helper.from_array(part, tensor.name))
    onnx.save(model, written)
    assert accuracy(written, x, y) == pytest.approx(report["accuracy"])
