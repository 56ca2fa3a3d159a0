"""The README's device program and its coordinator configuration, taken from the page and run against a real broker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from device_sim.broker import PrivateBroker
from device_sim.datasets import load_dataset

README = Path(__file__).resolve().parent.parent / "README.md"
WAIT_SECONDS = 60.0


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, f"the README no longer says {old!r}"
        text = text.replace(old, new)
    return text


def test_the_program_takes_part_in_the_federation(mosquitto_broker: PrivateBroker, tmp_path: Path) -> None:
    digits = load_dataset("digits")
    np.savez(tmp_path / "examples.npz", x=digits.x[:200], y=digits.y[:200])
    url = ("mqtt://localhost:1883", mosquitto_broker.url)
    (tmp_path / "device.py").write_text(replaced(block("python"), url))
    (tmp_path / "federation.toml").write_text(
        replaced(
            block("toml"),
            url,
            ("goal_count = 20", "goal_count = 1\nwindow_seconds = 0.1\npause_seconds = 0.0"),
            ("minimum_count = 10", "minimum_count = 1"),
            ("rounds_max = 100", "rounds_max = 2"),
            ("target_metric = 0.95\n", ""),
        )
    )
    device = subprocess.Popen([sys.executable, "device.py"], cwd=tmp_path)
    try:
        served = subprocess.run(
            [sys.executable, "-m", "coordinator", "serve", "federation.toml", "--linger", "0"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert served.returncode == 0, served.stderr
        assert "round budget: 2 rounds done" in served.stdout
    finally:
        device.terminate()
        assert device.wait(WAIT_SECONDS) == 0
