"""docs/your-data.md is true: its file, its tables and what it says of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from coordinator.config import load_config
from coordinator.setup import build_bundle
from edge_sdk.cli.device_config import load_device_config
from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Program
from edge_sdk.training.examples import load_examples

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-data.md").read_text()
DEVICE = '[device]\nid = "pump-3"\nfederation = "plant"\n[broker]\nurl = "mqtt://localhost"\n'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def program(path: Path, model: str) -> Program:
    (path / "federation.toml").write_text(f'[federation]\nname = "plant"\n{model}')
    return build_bundle(load_config(path / "federation.toml"), verify=False).program


def test_the_file_the_names_and_the_filter_of_the_page_fit_each_other(tmp_path: Path) -> None:
    (tmp_path / "examples.csv").write_text(blocks("csv")[0])
    model, chosen, _ = blocks("toml")
    (tmp_path / "device.toml").write_text(DEVICE + chosen)
    data = load_device_config(tmp_path / "device.toml", {}).data
    examples = load_examples(data, program(tmp_path, model))
    assert examples.inputs["x"][:, 0].tolist() == [1480, 1495, 1510]
    assert examples.inputs["x"].shape == (3, 4) and examples.target.tolist() == [0, 0, 1]


def test_the_time_series_of_the_page_is_cut_as_it_says(tmp_path: Path) -> None:
    rows = ["time,machine,rpm,temperature,state"]
    rows += [f"{10 * i},{m},{i},{m},{int(i == 64)}" for i in range(100) for m in (3, 4)]
    (tmp_path / "examples.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "device.toml").write_text(DEVICE + blocks("toml")[2])
    data = load_device_config(tmp_path / "device.toml", {}).data
    model = '[model]\nzoo = "mlp"\ninputs = [60, 2]\noutputs = 2\nfeatures = ["rpm", "temperature"]\n'
    examples = load_examples(data, program(tmp_path, model))
    assert examples.inputs["x"].shape == (8, 60, 2)
    assert examples.inputs["x"][:, 0, 0].tolist() == [0, 0, 10, 10, 20, 20, 30, 30]
    assert examples.target.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_the_message_of_the_page_is_what_others_are_told(tmp_path: Path) -> None:
    text = blocks("csv")[0].replace("0,21.0,petrol", "0,21.0,coal")
    (tmp_path / "examples.csv").write_text(text)
    model, chosen, _ = blocks("toml")
    chosen = "\n".join(line for line in chosen.splitlines() if not line.startswith("where"))
    (tmp_path / "device.toml").write_text(DEVICE + chosen)
    data = load_device_config(tmp_path / "device.toml", {}).data
    with pytest.raises(ExamplesError) as caught:
        load_examples(data, program(tmp_path, model))
    assert f"declined, no_examples: {caught.value.public}\n" in PAGE
    assert "'coal'" in str(caught.value) and "coal" not in PAGE


def test_every_key_of_the_table_is_explained() -> None:
    from edge_sdk.cli.device_config import KEYS

    for name in KEYS["data"]:
        assert re.search(rf"`(data\.)?{name}\b", PAGE), name
    assert all(tomllib.loads(text) for text in blocks("toml"))
