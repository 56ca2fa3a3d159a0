"""A round of statistics over a real broker, with a coordinator that is killed in the middle of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FEDERATION, Served

from coordinator.setup import build_bundle
from device_sim.auditors.statistics import mean_and_scale
from device_sim.broker import PrivateBroker
from device_sim.fleet_run import FleetRun, run_fleet
from edge_sdk.training.bundle import decode_parameters
from edge_sdk.wire.messages import Update

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, mosquitto_broker: PrivateBroker) -> Iterator[Serve]:
    """Starts a coordinator whose model is normalised, and devices."""
    made: list[Served] = []

    def start(devices: int = 6, **tables: Any) -> Served:
        tables = {"model": {"normalise": "federated"}, "stopping": {"rounds_max": 2}, **tables}
        made.append(Served(tmp_path, mosquitto_broker.settings(), mosquitto_broker.url, devices, **tables))
        return made[-1]

    yield start
    for served in made:
        served.close()


def constants_after(served: Served, number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and scale in the model of a round."""
    program = build_bundle(served.config, verify=False).program
    with served.store() as store:
        digest = {each.round: each.parameters_digest for each in store.checkpoints("default")}[number]
        blob = store.get_blob(digest)
    assert blob is not None and program.normalise is not None
    tensors = program.spec.unflatten(decode_parameters(blob, program.spec))
    return tensors[program.normalise.mean], tensors[program.normalise.scale]


def test_statistics_are_those_of_the_reports_that_counted_although_the_coordinator_was_killed(serve: Serve) -> None:
    served = serve()
    served.devices.gate.hold(*served.devices.names[:3])  # four of six are invited: one of them can report
    served.run_until_tickets(journalled=1)
    served.coordinator.kill()
    served.coordinator.start()
    served.run_until_said("goes on with round 0, statistics of the features, in ")
    served.devices.gate.release()
    served.run_until_finished()
    output = served.coordinator.output()
    assert "new, begins with round 0, statistics of the features" in output
    with served.store() as store:
        records = [record for record in store.rounds("default") if record.closed]
        tickets = store.tickets("default", 0, records[-1].attempt)
    assert [record.number for record in records] == [2, 1, 0]
    counted = [served.devices.books.payloads[t.digest] for t in tickets if t.state == "counted" and t.digest]
    reports = [(Update.decode(payload).arrays, Update.decode(payload).examples) for payload in counted]
    assert len(reports) >= 4
    assert f"round 0: statistics of the features from {len(reports)} devices; closed: counted {len(reports)}" in output
    mean, scale = mean_and_scale(reports)
    for number in (0, 2):
        found = constants_after(served, number)
        assert (found[0].tobytes(), found[1].tobytes()) == (mean.tobytes(), scale.tobytes()), f"round {number}"


def test_a_fleet_that_replays_updates_reports_features_that_are_standard_normal(
    serve: Serve, mosquitto_broker: PrivateBroker
) -> None:
    served = serve(devices=0)
    lines: list[str] = []
    run_fleet(FleetRun(mosquitto_broker.url, FEDERATION, devices=6, train="replay", seconds=60.0), say=lines.append)
    assert served.coordinator.process is not None and served.coordinator.process.wait(20.0) == 0, lines
    mean, scale = constants_after(served, 0)
    assert (mean == 0.0).all() and (scale == 1.0).all()
