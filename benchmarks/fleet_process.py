"""A fleet with replayed updates: one measured process."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.processes import peak_bytes, tell
from device_sim.fleet import Fleet, FleetSettings, Member
from device_sim.profiles import DeviceProfile
from device_sim.replay import ReplayWork
from edge_sdk.device.progress import Progress
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.training.bundle import digest_of

__all__ = ["main"]


@dataclass(slots=True)
class Rounds:
    """What the devices tell of each round."""

    devices: int
    trained: dict[int, int] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)

    def on_progress(self, device: str, progress: Progress) -> None:
        """Tells the parent when the last device of a round has come so far."""
        counts: dict[int, int] | None = getattr(self, progress.what, None) if progress.what in NOTED else None
        if counts is None:
            return
        counts[progress.round] = counts.get(progress.round, 0) + 1
        if counts[progress.round] == self.devices:
            tell(f"all_{progress.what}", round=progress.round, cpu=time.process_time(), peak_bytes=peak_bytes())


NOTED = ("trained", "counted")


def main() -> None:
    """Runs until SIGTERM."""
    settings = json.loads(sys.argv[1])
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    devices = settings["devices"]
    rounds = Rounds(devices)
    deltas = None if settings["deltas"] is None else list(np.load(settings["deltas"]))
    work = ReplayWork(seed=0, deltas=deltas)
    fleet = Fleet(
        BrokerSettings.parse(settings["broker"]),
        FleetSettings(
            settings["federation"],
            connects_per_second=settings["connects_per_second"],
            shared_downloads=bool(settings["blobs"]),
        ),
        [Member(f"device-{number:05d}", DeviceProfile()) for number in range(devices)],
        work=lambda member: work,
        on_progress=rounds.on_progress,
    )
    for path in settings["blobs"]:
        blob = Path(path).read_bytes()
        fleet.blobs.keep(digest_of(blob), blob)
    fleet.run(lambda: bool(stopped) or fleet.connected == devices, timeout_seconds=120.0)
    tell("connected", devices=fleet.connected, cpu=time.process_time(), peak_bytes=peak_bytes())
    fleet.run(lambda: bool(stopped))
    fleet.close()
    tell("ended", cpu=time.process_time(), peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
