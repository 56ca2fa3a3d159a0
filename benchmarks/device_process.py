"""One device as an application embeds it, in a measured process: ``EdgeClient`` with a state directory on disk.

With ``replay`` the training is a trainer that hands out a precomputed delta, and its own CPU is subtracted; otherwise
the device trains for real.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import peak_bytes, tell
from edge_sdk import EdgeClient, Progress

__all__ = ["main"]


class Replay:
    """A trainer whose result was there before: what it costs is known and taken off."""

    def __init__(self, delta: NDArray[np.float32]) -> None:
        self._delta = delta
        self.cpu_seconds = 0.0

    def fit(
        self, parameters: Mapping[str, NDArray[np.float32]], examples: Any, plan: Any
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """The received parameters plus the delta."""
        began = time.thread_time()
        at, moved = 0, {}
        for name, array in parameters.items():
            part = self._delta[at : at + array.size].reshape(array.shape)
            moved[name] = array + part
            at += array.size
        self.cpu_seconds += time.thread_time() - began
        return moved, {"examples": len(examples), "steps": 1, "loss": 1.0}


def main() -> None:
    """Takes part in rounds until SIGTERM; tells the process's CPU at the end of each."""
    settings = json.loads(sys.argv[1])
    replay = None
    if settings["replay"]:
        rng = np.random.Generator(np.random.PCG64(0))
        replay = Replay(np.float32(0.01) * rng.standard_normal(settings["parameters"], dtype=np.float32))
    inputs, classes = settings["inputs"], settings["outputs"]
    pixels = np.random.Generator(np.random.PCG64(1)).random((settings["examples"], inputs), dtype=np.float32)
    labels = np.arange(settings["examples"]) % classes

    def on_progress(progress: Progress) -> None:
        if progress.what == "counted":
            training = 0.0 if replay is None else replay.cpu_seconds
            cpu = time.process_time()
            tell(progress.what, round=progress.round, cpu=cpu, training=training, peak_bytes=peak_bytes())

    client = EdgeClient(
        broker=settings["broker"],
        federation=settings["federation"],
        device_id="device-00001",
        load_examples=lambda: (pixels, labels),
        trainer=replay,
        state_dir=settings["state"],
        engine=settings["engine"],
        on_progress=on_progress,
    )
    signal.signal(signal.SIGTERM, lambda *_: client.request_stop())
    client.run()
    tell("ended", cpu=time.process_time(), peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
