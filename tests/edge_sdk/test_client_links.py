"""The compressed downlink over a real broker: fewer bytes, and the same bits whatever a device has missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeBroker
from hand_made import blobs
from one_federation import Diary, Federation, wait

from device_sim.broker import PrivateBroker
from edge_sdk.client import EdgeClient
from edge_sdk.device.blobs import BlobMemory

FEATURES, CLASSES = 4000, 5
WHOLE_BYTES = 4 * (FEATURES + 1) * CLASSES
ROUNDS = 4


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


def federation(broker: PrivateBroker, directory: Path, name: str, **tables: dict[str, Any]) -> Federation:
    model = {"zoo": "softmax_regression", "inputs": [FEATURES], "outputs": CLASSES}
    return Federation(
        directory / name, broker.url, name, model=model, codec={"name": "sparse", "density": 0.03}, **tables
    )


def device(plant: Federation, state_dir: Path, **options: Any) -> EdgeClient:
    examples = blobs(20, FEATURES, CLASSES)
    return plant.client(state_dir, load_examples=lambda: examples, **options)


def bytes_down(plant: Federation, state_dir: Path, diary: Diary) -> int:
    """What a device receives during some rounds after its first one."""
    with device(plant, state_dir, on_progress=diary) as client:
        wait(lambda: client.status.counted >= 1, lambda: diary.entries[-5:])
        before = client.status.bytes_down
        wait(lambda: client.status.counted >= 1 + ROUNDS, lambda: diary.entries[-5:])
        return client.status.bytes_down - before


@pytest.mark.parametrize("retained", ["always", "never"])
def test_links_cost_a_device_a_fraction_of_whole_parameters(
    broker: PrivateBroker, tmp_path: Path, retained: str
) -> None:
    down = {}
    for codec in ("none", "sparse"):
        diary = Diary()
        name = f"deltas-{retained}-{codec}"
        transfer = {"retained_blobs": retained}
        with federation(broker, tmp_path, name, downlink={"codec": codec}, transfer=transfer) as plant:
            down[codec] = bytes_down(plant, tmp_path / name / "pi", diary)
            wait(lambda plant=plant: len(plant.rounds) > ROUNDS)
            summaries = [record.summary for record in plant.rounds[1:ROUNDS]]
        assert not diary.of("deltas_failed")
        saved = [summary["bytes_down_dense"] > 5 * summary["model_bytes"] > 0 for summary in summaries]
        assert saved == [codec == "sparse"] * len(saved)
    assert down["none"] > ROUNDS * WHOLE_BYTES * 0.4, "whole, but packed"
    assert down["none"] > 5 * down["sparse"]


def test_a_device_that_was_away_comes_back_over_links_from_its_disk(broker: PrivateBroker, tmp_path: Path) -> None:
    diary = Diary()
    state = tmp_path / "pi"
    with federation(broker, tmp_path, "deltas-away") as plant:
        with device(plant, state) as client:
            wait(lambda: client.status.counted >= 2)
        with device(plant, tmp_path / "other", device_id="other") as other:
            wait(lambda: other.status.counted >= 2)
        with device(plant, state, on_progress=diary) as client:
            wait(lambda: client.status.counted >= 1, lambda: diary.entries[-5:])
            assert client.status.bytes_down < WHOLE_BYTES / 2
        wait(lambda: not plant.rounds[-1].summary.get("at_work"))
    assert not diary.of("deltas_failed")
    kept = sorted(path.name.split("-")[0] for path in state.glob("p*-*"))
    assert kept == ["parameters", "parameters", "program"]


def test_a_device_that_was_away_for_too_long_fetches_whole_parameters(broker: PrivateBroker, tmp_path: Path) -> None:
    state = tmp_path / "pi"
    with federation(broker, tmp_path, "deltas-short", downlink={"deltas_max": 1}) as plant:
        with device(plant, state) as client:
            wait(lambda: client.status.counted >= 1)
        with device(plant, tmp_path / "other", device_id="other") as other:
            wait(lambda: other.status.counted >= 3)
        with device(plant, state) as client:
            wait(lambda: client.status.counted >= 1)
            assert client.status.bytes_down > 0.25 * WHOLE_BYTES, "whole, but packed"


def test_parameters_that_were_damaged_on_the_disk_are_fetched_whole(broker: PrivateBroker, tmp_path: Path) -> None:
    """The device says that it holds them, finds that it does not, and nothing else is lost by it."""
    diary = Diary()
    state = tmp_path / "pi"
    with federation(broker, tmp_path, "deltas-damaged") as plant:
        with device(plant, state) as client:
            wait(lambda: client.status.counted >= 2)
        for path in state.glob("parameters-*"):
            path.write_bytes(b"x" * path.stat().st_size)
        with device(plant, state, on_progress=diary) as client:
            wait(lambda: client.status.counted >= 1, lambda: diary.entries[-5:])
    assert diary.of("deltas_failed") and not diary.of("training_failed")


def test_of_two_blobs_in_memory_the_program_outlives_the_base() -> None:
    """As the agent has it: the program was looked up, deltas are applied to the base, their target is kept."""
    memory = BlobMemory()
    memory.keep(b"program", b"p")
    memory.keep(b"base", b"b")
    assert memory.get(b"program") == b"p" and memory.peek(b"base") == b"b"
    memory.keep(b"target", b"t")
    assert memory.digests == {b"program", b"target"}
