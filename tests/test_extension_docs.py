"""The examples of ``docs/extend.md`` and ``docs/simulate.md``, run as they are printed, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.config import load_config
from coordinator.config.settings import algorithm, codec_settings, pipeline_steps, server_optimizer
from coordinator.schedules.selection import make_rule
from edge_sdk.cli.device_config import load_device_config
from edge_sdk.cli.run import make_client
from edge_sdk.codecs import CODECS, table

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
HEAD = """[federation]
name = "f"
[model]
zoo = "softmax_regression"
"""
DEVICE = """[device]
id = "pi"
federation = "f"
state_dir = "state-{number}"
[broker]
url = "mqtt://127.0.0.1:1"
[data]
path = "examples.npz"
"""


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall((ROOT / "docs" / page).read_text()) if found == language]


def written(page: str, directory: Path) -> str:
    """Writes the blocks that begin with the name of a file; the others, joined, are the program."""
    program = []
    for text in blocks(page, "python"):
        name = FILE.match(text)
        if name is None:
            program.append(text)
        else:
            (directory / name[1]).write_text(text)
    return "\n".join(program)


@pytest.mark.parametrize("page", ["extend.md", "simulate.md"])
def test_the_examples_run_as_they_are_printed(page: str, tmp_path: Path) -> None:
    program = written(page, tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    histories = [line for line in done.stdout.splitlines() if line.startswith("History(")]
    assert len(histories) >= 3, done.stdout
    for line in histories:
        accuracy = re.search(r"accuracy ([\d.]+)", line)
        assert accuracy is not None and float(accuracy[1]) > 0.4, line


def test_the_classes_can_be_configured_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("extend.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(CODECS)
    (tmp_path / "examples.npz").write_bytes(b"")
    made = []
    try:
        for number, text in enumerate(blocks("extend.md", "toml")):
            path = tmp_path / f"{number}.toml"
            if "[extend]" in text:
                path.write_text(DEVICE.format(number=number) + text)
                make_client(load_device_config(path, {})).stop()
                made.append("device")
                continue
            path.write_text(HEAD + text)
            config = load_config(path)
            objects = (
                algorithm(config),
                server_optimizer(config.aggregation),
                *(step for _, step in pipeline_steps(config.aggregation)),
                make_rule(config.selection.rule, config.selection.rule_options),
                codec_settings(config).codec,
            )
            made += [type(each).__name__ for each in objects if type(each).__module__ in sys.modules]
    finally:
        for name in CODECS.keys() - before.keys():
            table._known.pop(name)
    for name in ("Krum", "Variates", "Enough", "Clip", "FedLion", "LeastCounted", "Signs"):
        assert name in made
    assert made.count("device") == 3
