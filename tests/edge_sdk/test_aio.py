"""The client for asyncio programs: starting, stopping, reading progress, and being cancelled at any moment."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeBroker
from hand_made import blobs
from one_federation import Federation

from device_sim.broker import PrivateBroker
from edge_sdk import AsyncEdgeClient, ConfigurationError, EdgeClient, Progress, ProgressKind, StateError

PATIENCE_SECONDS = 20.0
NAMES = (f"async-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


def arguments(directory: Path, **changes: Any) -> dict[str, Any]:
    return {
        "broker": "mqtt://127.0.0.1:1",  # nobody listens there
        "federation": "garden",
        "device_id": "pi",
        "load_examples": lambda: blobs(60),
        "state_dir": directory / "pi",
        "engine": "numpy",
    } | changes


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), PATIENCE_SECONDS)

    asyncio.run(bounded())


def is_free(directory: Path) -> bool:
    """Whether a new client can have the state directory."""
    try:
        EdgeClient(**arguments(directory)).stop()
    except StateError:
        return False
    return True


def test_progress_comes_in_order_while_the_program_does_other_things(broker: PrivateBroker, tmp_path: Path) -> None:
    name, told, ticks = next(NAMES), list[Progress](), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        other = asyncio.create_task(tick())
        async with AsyncEdgeClient(**arguments(tmp_path, broker=broker.url, federation=name)) as client:
            async for progress in client:
                told.append(progress)
                if progress.what == ProgressKind.COUNTED and progress.round == 2:
                    break
            assert client.running and client.status.counted >= 2 and client.dropped == 0
        assert not client.running
        other.cancel()

    with Federation(tmp_path / "coordinator", broker.url, name):
        run(main)
    kinds = [progress.what for progress in told if progress.round == 1 and progress.what != ProgressKind.STEP]
    assert kinds[:4] == [ProgressKind.INVITED, ProgressKind.TRAINING, ProgressKind.TRAINED, ProgressKind.COUNTED]
    assert ticks > 10 and is_free(tmp_path)


def test_a_loop_that_stands_still_holds_nothing_up_and_loses_the_oldest(tmp_path: Path) -> None:
    client = AsyncEdgeClient(progress_max=3, **arguments(tmp_path))

    async def main() -> None:
        async with client:
            feeder = threading.Thread(
                target=lambda: [client._take(Progress(ProgressKind.STEP, steps=n)) for n in range(1000)]
            )
            began = time.monotonic()
            feeder.start()
            feeder.join(5.0)  # the loop stands still here
            assert not feeder.is_alive() and time.monotonic() - began < 5.0
            steps = [(await anext(client)) for _ in range(3)]
            newest = [progress.steps for progress in steps if progress.what == ProgressKind.STEP]
            assert newest == sorted(newest) and newest[-1] == 999
            assert client.dropped >= 997

    run(main)


def test_the_loop_over_progress_ends_with_the_client(tmp_path: Path) -> None:
    async def main() -> None:
        client = await AsyncEdgeClient(**arguments(tmp_path)).start()

        async def read() -> list[Progress]:
            return [progress async for progress in client]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        await client.stop()
        assert ProgressKind.CONNECTION_FAILED in {progress.what for progress in await reader}
        with pytest.raises(StopAsyncIteration):
            await anext(client)

    run(main)


def test_the_loop_over_progress_ends_where_the_device_ends_by_itself(tmp_path: Path) -> None:
    broken = "mqtts://127.0.0.1:1"

    async def main() -> None:
        from edge_sdk import BrokerSettings, TlsSettings

        settings = BrokerSettings.parse(broken, tls=TlsSettings(ca_file=str(tmp_path / "missing.pem")))
        client = await AsyncEdgeClient(**arguments(tmp_path, broker=settings)).start()
        async for progress in client:
            assert isinstance(progress, Progress)
        with pytest.raises(ConfigurationError, match=r"missing\.pem"):
            await client.stop()

    run(main)


def test_what_is_wrong_is_raised_by_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="federation"):
            async with AsyncEdgeClient(**arguments(tmp_path, federation="a/b")):
                raise AssertionError("it never starts")
        holder = EdgeClient(**arguments(tmp_path))
        with pytest.raises(StateError, match="in use"):
            await AsyncEdgeClient(**arguments(tmp_path)).start()
        holder.stop()
        client = AsyncEdgeClient(**arguments(tmp_path))
        with pytest.raises(ConfigurationError, match="not started"):
            await anext(client)
        await client.start()
        with pytest.raises(ConfigurationError, match="started before"):
            await client.start()
        await client.stop()
        await client.stop()

    run(main)
    with pytest.raises(ConfigurationError, match="progress_max"):
        AsyncEdgeClient(progress_max=0)


@pytest.mark.parametrize("after_seconds", [0.0, 0.001, 0.02, 0.3])
def test_a_cancelled_program_leaves_no_device_behind(tmp_path: Path, after_seconds: float) -> None:
    async def use() -> None:
        async with AsyncEdgeClient(**arguments(tmp_path)) as client:
            async for _ in client:
                pass
            await asyncio.sleep(60.0)

    async def main() -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(after_seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert is_free(tmp_path)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("edgefed-")]


def test_a_stop_that_is_cancelled_stops_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        client = await AsyncEdgeClient(**arguments(tmp_path)).start()
        stopping = asyncio.create_task(client.stop())
        await asyncio.sleep(0.0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        while client.running:
            await asyncio.sleep(0.01)

    run(main)
    assert is_free(tmp_path)


def test_a_function_for_progress_is_called_as_well(tmp_path: Path) -> None:
    heard: list[Progress] = []

    async def main() -> None:
        async with AsyncEdgeClient(**arguments(tmp_path, on_progress=heard.append)) as client:
            first = await anext(client)
            assert heard[0] == first

    run(main)
