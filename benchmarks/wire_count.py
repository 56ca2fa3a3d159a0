"""Bytes of one device in a real round, counted between it and the broker, beside what codec and protocol say.

The broker is mosquitto, the coordinator a process of its own, the device an ``EdgeClient`` with a replayed delta. A
proxy in front of the broker counts what goes through, TCP's payload in both directions. An update's share is what comes
between "trained" and "counted" of the last round: offer, answer, chunks, receipt and outcome with their
acknowledgements, and what the coordinator announces meanwhile, which is not foreseen and must be within the bound too.
A round is that from the first invite to the second: it brings the program and all parameters.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.device_process import Replay
from benchmarks.federation import NAME, Federation
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.vectors import GAUSSIAN_MODEL, gaussian
from device_sim.counting_proxy import CountingProxy
from edge_sdk import EdgeClient, Progress
from edge_sdk.codecs import CodecSettings, frame_bytes_max
from edge_sdk.device.data_quota import SLACK_BYTES
from edge_sdk.wire.messages import Update
from edge_sdk.wire.ranges import CHUNK_BYTES_MAX
from edge_sdk.wire.wire_costs import UPDATE_HEAD_BYTES_MAX, Costs

__all__ = ["measure_count"]

SIZE: Final = 1_000_000
PARAMETERS_BYTES: Final = 16 + 4 * SIZE
DENSITY: Final = 0.1
ROUNDS: Final = 3
SECONDS_MAX: Final = 120.0
QUIET_SECONDS: Final = 0.5
TOLERANCE: Final = 0.02
DEVICE: Final = "device-00001"


@dataclass(slots=True)
class _Watch:
    """What the proxy had counted when the device said something."""

    proxy: CountingProxy
    program_bytes: int = 0
    frame_bytes: int = 0
    update_bytes: int = 0
    at: dict[str, int] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    client: EdgeClient | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.what == "invited":
            self.at[f"invited {progress.round}"] = self.proxy.total
        if progress.what == "trained":
            self.at["trained"] = self.proxy.total
        if progress.what == "trained" and self.client is not None:
            outbox = self.client._agent.state.outbox
            assert outbox is not None and outbox.payload is not None
            self.update_bytes = len(outbox.payload)
            self.frame_bytes = sum(map(len, Update.decode(outbox.payload).frames()))
        if progress.what == "counted" and progress.round == ROUNDS:
            self.ended.set()


def measure_count() -> list[Figure]:
    """Ratios of bytes counted to bytes stated: of an update, of a round, and of the device's own count."""
    watch, own = _run()
    costs = Costs(NAME, "default", DEVICE)
    overhead = costs.upload(watch.update_bytes) - watch.frame_bytes
    settings = CodecSettings("sparse", density=DENSITY)
    downloads = (watch.program_bytes, PARAMETERS_BYTES)
    foreseen = costs.accept() + sum(costs.download(size, CHUNK_BYTES_MAX) for size in downloads) + SLACK_BYTES
    foreseen += costs.upload(frame_bytes_max(SIZE, settings) + UPDATE_HEAD_BYTES_MAX)
    ratio = (watch.at["quiet"] - watch.at["trained"]) / (watch.frame_bytes + overhead)
    name = f"one update of 1,000,000 parameters at {DENSITY:.0%}, counted before the broker"
    return [
        Figure(f"{name}: frame", float(watch.frame_bytes), "bytes"),
        Figure(f"{name}: stated overhead, both ways", float(overhead), "bytes"),
        at_most(f"{name} / (frame + stated overhead), above", ratio, "x", 1.0 + TOLERANCE),
        at_least(f"{name} / (frame + stated overhead), below", ratio, "x", 1.0 - TOLERANCE),
        at_most(
            "a first round of one device, counted / what its budget foresees",
            (watch.at["invited 2"] - watch.at["invited 1"]) / foreseen,
            "x",
            1.0,
        ),
        at_most("bytes of a device, its own count and a proxy's: difference", abs(own - watch.at["quiet"]), "bytes", 0),
    ]


def _run() -> tuple[_Watch, int]:
    rounds = {"rounds": ROUNDS, "pause_seconds": 1.0}
    with (
        tempfile.TemporaryDirectory(prefix="edgefed-bench-") as folder,
        Federation(GAUSSIAN_MODEL, goal_count=1, density=DENSITY, **rounds) as federation,
        CountingProxy(federation.broker.port) as proxy,
    ):
        federation.serve()
        watch = _Watch(proxy)
        inputs = np.zeros((8, 99_999), dtype=np.float32)
        watch.client = client = EdgeClient(
            broker=proxy.url,
            federation=NAME,
            device_id=DEVICE,
            load_examples=lambda: (inputs, np.arange(8) % 10),
            trainer=Replay(gaussian()),
            state_dir=Path(folder),
            on_progress=watch,
            publish_status=False,
        )
        with client:
            if not watch.ended.wait(SECONDS_MAX):
                raise RuntimeError(f"no {ROUNDS} rounds within {SECONDS_MAX:g} s: {client.status}")
            watch.at["quiet"] = _quiet(proxy)
            own = client.status.bytes_up + client.status.bytes_down
            watch.program_bytes = next(Path(folder).glob("program-*")).stat().st_size
    return watch, own


def _quiet(proxy: CountingProxy) -> int:
    """What is counted once nothing is under way any more."""
    before = -1
    while before != (now := proxy.total):
        before = now
        time.sleep(QUIET_SECONDS)
    return now
