"""A private mosquitto and a coordinator process in a temporary folder: what most figures are measured with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import Child
from benchmarks.vectors import DENSITY
from coordinator.config import load_config
from coordinator.setup import build_bundle
from device_sim.broker import PrivateBroker
from edge_sdk.training.bundle import encode_parameters

__all__ = ["Federation"]

NAME: Final = "bench"
START_SECONDS_MAX: Final = 120.0
CONFIG: Final = """
[federation]
name = "{name}"
state_dir = "state"

[broker]
url = "{url}"

[model]
{model}

[training]
seconds_max = 100.0
{training}

[selection]
goal_count = {goal_count}
minimum_count = {goal_count}
over_selection = 1.0
window_seconds = {window_seconds}
gather_seconds = {window_seconds}
selection_seconds_max = 300.0
configuration_seconds_max = 300.0
reporting_seconds_max = 300.0
pause_seconds = {pause_seconds}

[aggregation]
{aggregation}

[codec]
{codec}

[stopping]
rounds_max = {rounds}
"""


class Federation:
    """One federation without TLS on loopback; the coordinator is started by ``serve``.

    Args:
        model: The ``[model]`` table.
        goal_count: Updates of a round; all that are invited.
        rounds: Rounds after which it is finished.
        window_seconds: The check-ins' window.
        pause_seconds: Between rounds.
        training: Further lines of the ``[training]`` table.
        density: Share of the coordinates that is sent.
        codec: The lines of the ``[codec]`` table where it is another one.
        aggregation: Lines of the ``[aggregation]`` table.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        goal_count: int,
        rounds: int,
        window_seconds: float = 0.0,
        pause_seconds: float = 0.0,
        training: str = "",
        density: float = DENSITY,
        codec: str = "",
        aggregation: str = "",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgefed-bench-")
        self.folder = Path(self._folder.name)
        self.broker = PrivateBroker("mosquitto", self.folder)
        self._children: list[Child] = []
        if "zoo" in model:
            model = {"normalise": "none", **model}  # rounds are counted from 1, and none is of statistics
        self._options: dict[str, Any] = {
            "name": NAME,
            "model": "\n".join(f"{key} = {_toml(value)}" for key, value in model.items()),
            "training": training,
            "goal_count": goal_count,
            "rounds": rounds,
            "window_seconds": window_seconds,
            "pause_seconds": pause_seconds,
            "aggregation": aggregation,
            "codec": codec or f'name = "sparse"\ndensity = {density}',
        }

    @property
    def config(self) -> Path:
        """The coordinator's configuration."""
        return self.folder / "federation.toml"

    def __enter__(self) -> Self:
        self.broker.start()
        self.config.write_text(CONFIG.format(url=self.broker.url, **self._options))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.stop()
        self.broker.stop()
        self._folder.cleanup()

    def serve(self) -> Child:
        """The coordinator's process, once it is about to connect."""
        child = self.start("coordinator_process", {"config": str(self.config)})
        child.wait_for("ready", START_SECONDS_MAX)
        return child

    def fleet(
        self,
        devices: int,
        *,
        deltas: Sequence[NDArray[np.float32]] | None = None,
        shared_downloads: bool = False,
        connects_per_second: float = 500.0,
    ) -> Child:
        """The process of a fleet that replays updates (Gaussian ones where no ``deltas`` are given)."""
        file = None
        if deltas is not None:
            file = self.folder / "deltas.npy"
            np.save(file, np.stack(deltas))
        return self.start(
            "fleet_process",
            {
                "broker": self.broker.url,
                "federation": NAME,
                "devices": devices,
                "deltas": None if file is None else str(file),
                "blobs": self._blobs() if shared_downloads else [],
                "connects_per_second": connects_per_second,
            },
        )

    def start(self, module: str, settings: Mapping[str, Any]) -> Child:
        """Another process of this package; it is stopped with the federation."""
        log = self.folder / f"{module}-{len(self._children)}.log"
        child = Child(f"benchmarks.{module}", settings, log)
        self._children.append(child)
        return child

    def _blobs(self) -> list[str]:
        """Files with the program and the initial parameters, as the coordinator makes them from the same table."""
        bundle = build_bundle(load_config(self.config), verify=False)
        paths = [self.folder / "program.blob", self.folder / "parameters.blob"]
        for path, blob in zip(paths, (bundle.program.encode(), encode_parameters(bundle.parameters)), strict=True):
            path.write_bytes(blob)
        return [str(path) for path in paths]


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
