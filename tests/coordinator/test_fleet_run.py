"""``edge-fleet run`` against a coordinator process: a trainer of one's own trains and evaluates."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import FEDERATION, Served

from coordinator.cli.show import rounds_csv
from coordinator.reports import rounds_report
from device_sim.broker import PrivateBroker
from device_sim.fleet_run import FleetRun, run_fleet, share_of
from edge_sdk.codecs import CODECS
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import parameters_vector

OWN = """
import numpy as np

class Trainer:
    def fit(self, parameters, examples, plan):
        return {name: array + np.float32(0.5) for name, array in parameters.items()}

class Lacking:
    pass
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_fleet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_each_device_trains_with_a_trainer_of_its_own(tmp_path: Path, mosquitto_broker: PrivateBroker) -> None:
    served = Served(
        tmp_path,
        mosquitto_broker.settings(),
        mosquitto_broker.url,
        0,
        codec={"name": "dense", "density": None},
    )
    try:
        run = FleetRun(mosquitto_broker.url, FEDERATION, devices=6, trainer="own_fleet:Trainer", seconds=10.0)
        run_fleet(run, say=lambda line: None)
        with served.store() as store:
            blobs = {found.round: store.get_blob(found.parameters_digest) for found in store.checkpoints("default")}
        before, after = (parameters_vector(blobs[number] or b"") for number in (0, 3))
        assert abs(after - before - 1.5).max() < 1e-4
    finally:
        served.close()


def test_rounds_say_in_which_codec_the_updates_came_where_devices_choose(
    tmp_path: Path, mosquitto_broker: PrivateBroker
) -> None:
    served = Served(
        tmp_path, mosquitto_broker.settings(), mosquitto_broker.url, 0, codec={"name": "auto", "density": None}
    )
    try:
        run = FleetRun(mosquitto_broker.url, FEDERATION, devices=6, profile="dropout=0", seconds=60.0)
        assert run_fleet(run, say=lambda line: None).startswith("finished")
        rows = rounds_report(served.config, 10)
        assert len(rows) == 3
        for row in rows:
            chosen = {name: count for name, count in row.items() if name.startswith("codec_")}
            assert chosen and sum(chosen.values()) == row["counted"]
        header = rounds_csv(rows).splitlines()[0].split(",")
        assert {f"codec_{name}" for name in CODECS} & set(header)
    finally:
        served.close()


@pytest.mark.parametrize(
    ("trainer", "train", "says"),
    [
        ("own_fleet:Lacking", "real", r"--trainer: 'own_fleet:Lacking' has no fit\(\)"),
        ("own_fleet:Nobody", "real", "own_fleet has no 'Nobody'"),
        ("own_fleet:Trainer", "replay", "with --train replay, which trains nothing"),
    ],
)
def test_a_trainer_that_cannot_be_is_refused_before_anything_connects(trainer: str, train: str, says: str) -> None:
    run = FleetRun("mqtt://127.0.0.1:1", "f", devices=2, train=train, trainer=trainer)
    with pytest.raises(ConfigurationError, match=says):
        run_fleet(run, say=lambda line: None)


def test_what_a_fleet_holds_out_is_a_share_or_the_newest_examples() -> None:
    assert (share_of("0.25"), share_of("last:0.1"), share_of("0")) == ((0.25, False), (0.1, True), (0.0, False))
    for wrong in ("first:0.2", "last:", "1.5", "nan", "0.2:last", ""):
        with pytest.raises(ConfigurationError, match=r"write a number at least 0, at most 0\.9, or last:0\.2"):
            share_of(wrong)
