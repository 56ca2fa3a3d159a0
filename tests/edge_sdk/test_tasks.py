"""Several tasks in one federation: in one coordinator, in two, and the same one in two."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeBroker
from one_federation import Federation, wait

from device_sim.broker import PrivateBroker

NAMES = (f"farm-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    """One mosquitto for all tests here."""
    with mosquitto() as started:
        yield started


def rounds_of(federation: Federation, task: str) -> int:
    return sum(record.closed and record.task == task for record in federation.rounds)


def test_two_tasks_in_one_coordinator_both_make_progress(broker: PrivateBroker, tmp_path: Path) -> None:
    with (
        Federation(tmp_path / "coordinator", broker.url, next(NAMES), tasks={"pumps": None, "fans": None}) as farm,
        farm.client(tmp_path / "pi-1", device_id="pi-1", task="pumps") as pumps,
        farm.client(tmp_path / "pi-2", device_id="pi-2", task="fans") as fans,
    ):
        wait(lambda: pumps.status.counted >= 2 and fans.status.counted >= 2, lambda: (pumps.status, fans.status))
        wait(lambda: min(rounds_of(farm, "pumps"), rounds_of(farm, "fans")) >= 2, lambda: farm.rounds[-4:])
        assert {farm.store.latest_checkpoint(task) is not None for task in ("pumps", "fans")} == {True}


def test_two_coordinators_of_different_tasks_do_not_disturb_each_other(broker: PrivateBroker, tmp_path: Path) -> None:
    name = next(NAMES)
    with (
        Federation(tmp_path / "one", broker.url, name, tasks={"pumps": None}) as one,
        Federation(tmp_path / "two", broker.url, name, tasks={"fans": None}) as two,
        one.client(tmp_path / "pi-1", device_id="pi-1", task="pumps") as pumps,
        one.client(tmp_path / "pi-2", device_id="pi-2", task="fans") as fans,
    ):
        wait(lambda: pumps.status.counted >= 2 and fans.status.counted >= 2, lambda: (pumps.status, fans.status))
        assert rounds_of(one, "pumps") >= 1 and rounds_of(two, "fans") >= 1
        assert "stranger" not in one.store.counters() and not one.store.counters().get("upload_unknown")


def test_the_second_coordinator_of_a_task_steps_back_and_takes_over_when_the_first_leaves(
    broker: PrivateBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = next(NAMES)
    first = Federation(tmp_path / "one", broker.url, name)
    with Federation(tmp_path / "two", broker.url, name) as second, caplog.at_level(logging.WARNING):
        wait(lambda: second.service.core.presence.serving, lambda: second.service.core.presence.state)
        with first, first.client(tmp_path / "pi") as client:
            wait(
                lambda: first.service.core.presence.state == "standing_back", lambda: first.service.core.presence.state
            )
            wait(lambda: client.status.counted >= 1, lambda: client.status)
            assert rounds_of(second, "default") >= 1 and not first.rounds
            assert "another coordinator serves task default" in caplog.text and "asks again in" in caplog.text
            assert "took over" not in caplog.text, "nobody cuts anybody off"
            before = client.status.counted
            second.service.request_stop()
            wait(lambda: client.status.counted > before, lambda: (client.status, first.service.core.presence.state))
            wait(lambda: rounds_of(first, "default") >= 1, lambda: first.rounds)


def test_a_coordinator_with_a_new_database_is_believed(broker: PrivateBroker, tmp_path: Path) -> None:
    name = next(NAMES)
    with Federation(tmp_path / "old", broker.url, name) as old:
        client = old.client(tmp_path / "pi")
        client.start()
        wait(lambda: client.status.counted >= 1, lambda: client.status)
    before = client.status.counted
    try:
        with Federation(tmp_path / "new", broker.url, name) as new:
            wait(lambda: client.status.counted > before, lambda: client.status)
            assert new.store.incarnation == 1
    finally:
        client.stop()
