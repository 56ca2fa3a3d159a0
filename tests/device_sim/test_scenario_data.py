"""Scenarios on one's own data and model, and the command that plays one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from device_sim import load_dataset
from device_sim.__main__ import app
from device_sim.scenario import Scenario, replay_command, run
from edge_sdk.errors import ConfigurationError


def played(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["scenario", "--json", *words], catch_exceptions=False)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    """Little images of three kinds from five places."""
    rng = np.random.default_rng(0)
    y = np.arange(100) % 3
    x = rng.random((100, 2, 3)) + y[:, None, None]
    np.savez(tmp_path / "own.npz", x=x, y=y, group=np.arange(100) % 5)
    return tmp_path / "own.npz"


def test_the_digits_are_what_is_played_without_any_data() -> None:
    scenario = Scenario(devices=6, rounds=2, goal_count=3)
    assert run(scenario, 4, data=load_dataset("digits")).trace == run(scenario, 4).trace


def test_a_file_of_ones_own_is_dealt_and_learnt(windows: Path) -> None:
    told = played(
        "--data", str(windows), "--shape", "6", "--split", "natural", "--devices", "5", "--rounds", "12", "--goal", "3"
    )
    assert len(told["rounds"]) == 1 + 12 and told["metrics"]["accuracy"] > 0.6


def test_with_a_model_of_ones_own(windows: Path) -> None:
    words = ["--data", str(windows), "--model", "mlp", "--devices", "5", "--goal", "3", "--learning-rate", "0.1"]
    assert len(played(*words)["rounds"]) == 1 + 4


def test_data_that_do_not_fit_are_refused(windows: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be reshaped"):
        played("--data", str(windows), "--shape", "7")
    with pytest.raises(ConfigurationError, match=r"neither .digits. nor a file that ends in"):
        played("--data", "own.jpg")


def test_the_command_that_plays_it_again_names_the_data() -> None:
    assert replay_command(Scenario(replay="edge-fleet scenario --data own.npz"), 3).endswith("--data own.npz")
