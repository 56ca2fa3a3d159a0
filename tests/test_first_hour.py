"""What docs/first-hour.md promises: six pumps in raw units, three of them with faulty data, by commands alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.pumps import COLUMNS, LABELS, PUMPS
from device_sim.broker import PrivateBroker

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-hour.md"
URL = "mqtt://localhost:1883"
SECONDS_MAX = 180.0
MODULES = {"edge-coordinator": "coordinator", "edge-device": "edge_sdk", "python": ""}


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", *(MODULES[words[0]], *words[1:])]


def printed(folder: Path, *words: str) -> str:
    done = subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "160"}


def write_configurations(folder: Path, url: str) -> None:
    assert URL in block("toml") and URL in block("ini")
    (folder / "federation.toml").write_text(block("toml").replace(URL, url))
    for pump in PUMPS:
        text = block("ini").replace(URL, url)
        assert text.count("pump-1") == 3
        (folder / f"{pump}.toml").write_text(text.replace("pump-1", pump))


@pytest.fixture(scope="module")
def pumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-hour")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pumps", str(folder / "pumps")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_six_pumps_of_which_three_have_faulty_data_learn_to_tell_faults(
    mosquitto_broker: PrivateBroker, pumps: Path
) -> None:
    write_configurations(pumps / "pumps", mosquitto_broker.url)
    assert "no column" not in printed(pumps, "edge-coordinator", "check", "pumps/federation.toml")
    devices = []
    for pump in PUMPS:
        log = (pumps / f"{pump}.log").open("w")
        words = command("edge-device", "run", "--config", f"pumps/{pump}.toml")
        devices.append(subprocess.Popen(words, cwd=pumps, env=environment(), stdout=log, stderr=log))
        log.close()
    try:
        printed(pumps, "edge-coordinator", "serve", "pumps/federation.toml", "--linger", "0")
    finally:
        for device in devices:
            device.terminate()
        codes = [device.wait(30.0) for device in devices]
    assert codes == [0] * len(PUMPS)
    rounds = json.loads(printed(pumps, "edge-coordinator", "rounds", "pumps/federation.toml", "--json"))
    accuracy = [record["accuracy"] for record in rounds if record.get("accuracy") is not None]
    assert accuracy[-1] >= 0.9, accuracy
    printed(pumps, "edge-coordinator", "export", "pumps/federation.toml", "--onnx", "pump.onnx")
    assert_takes_raw_units(pumps)


def assert_takes_raw_units(pumps: Path) -> None:
    """The exported file, in stock onnxruntime, on the readings as they are in the file."""
    rows = list(csv.DictReader(io.StringIO((pumps / "pumps" / "held-out.csv").read_text())))
    x = np.array([[float(row[name]) for name in COLUMNS] for row in rows], dtype=np.float32)
    fault = np.array([LABELS.index(row["state"]) for row in rows])
    model = onnxruntime.InferenceSession(str(pumps / "pump.onnx"))
    (logits,) = model.run(None, {model.get_inputs()[0].name: x})
    assert ((logits.reshape(-1) > 0) == fault).mean() >= 0.9
    x[:, COLUMNS.index("temperature")] = np.nan
    (logits,) = model.run(None, {model.get_inputs()[0].name: x})
    assert np.isfinite(logits).all() and ((logits.reshape(-1) > 0) == fault).mean() >= 0.8
