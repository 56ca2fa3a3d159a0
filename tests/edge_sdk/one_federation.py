"""A federation for one device: a coordinator on a thread of the test, and what device and coordinator said."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from hand_made import blobs

from coordinator.config import FederationConfig
from coordinator.service import Service
from coordinator.setup import make_service, prepare
from coordinator.store import RoundRecord, Store, TicketRecord
from edge_sdk.client import EdgeClient
from edge_sdk.device.progress import Progress
from edge_sdk.training.bundle import Program

PATIENCE_SECONDS = 20.0
FEATURES, CLASSES = 6, 3

TABLES: dict[str, dict[str, Any]] = {
    "model": {"zoo": "softmax_regression", "inputs": [FEATURES], "outputs": CLASSES},
    "training": {"learning_rate": 0.1, "seconds_max": 30.0},
    "selection": {
        "goal_count": 1,
        "minimum_count": 1,
        "over_selection": 1.0,
        "window_seconds": 0.05,
        "gather_seconds": 0.05,
        "selection_seconds_max": 60.0,
        "configuration_seconds_max": 20.0,
        "reporting_seconds_max": 60.0,
        "come_back_seconds": 1.0,
        "pause_seconds": 0.05,
        "retry_seconds": 0.3,
    },
    "codec": {"name": "sparse", "density": 0.5},
    "stopping": {"rounds_max": 0},
}


def wait(until: Callable[[], object], what: object = "", seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until it is true; fail with ``what`` (asked then, if it can be called) when it does not become so."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what() if callable(what) else what}"
        time.sleep(0.01)


class Diary:
    """What a device told its app."""

    def __init__(self) -> None:
        self.entries: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.entries.append(progress)

    def of(self, what: str) -> list[Progress]:
        return [entry for entry in self.entries if entry.what == what]

    def detail(self, what: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The first detail of ``what``, waited for."""
        wait(lambda: self.of(what), lambda: f"{what}; told: {self.entries[-20:]}", seconds)
        return self.of(what)[0].detail


class Federation:
    """A coordinator that runs from ``with`` to its end.

    directory:  for its database
    url:  the broker
    name:  of the federation; tests share a broker, so each has its own
    tables:  of ``federation.toml``, merged into those above; a key of None is left out; ``tasks`` names its tasks
    """

    def __init__(self, directory: Path, url: str, name: str, **tables: dict[str, Any]) -> None:
        merged = {
            table: {k: v for k, v in (TABLES.get(table, {}) | tables.get(table, {})).items() if v is not None}
            for table in {*TABLES, *tables}
        }
        if merged["model"].get("zoo"):
            merged["model"].setdefault("normalise", "none")  # rounds are counted from 1, and none is of statistics
        names = tables.pop("tasks", None) or {"default": None}
        merged["federation"] = {"name": name, "state_dir": str(directory)}
        merged["broker"] = {"url": url} | tables.get("broker", {})
        self.name = name
        self.url = url
        self.rounds: list[RoundRecord] = []
        merged.pop("tasks", None)
        configs = [
            FederationConfig.model_validate({**merged, "federation": {**merged["federation"], "task": task}})
            for task in names
        ]
        self._prepared = prepare(configs, wall=time.time, new_id=os.urandom)
        self.service: Service = make_service(
            self._prepared,
            new_id=os.urandom,
            rng=np.random.default_rng(0),
            wall=time.time,
            linger_seconds=None,
            on_round=self.rounds.append,
        )
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.request_stop()
        self._thread.join(PATIENCE_SECONDS)
        self._prepared.store.close()
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    @property
    def config(self) -> FederationConfig:
        return self._prepared.tasks[0].config

    @property
    def store(self) -> Store:
        return self._prepared.store

    @property
    def program(self) -> Program:
        return self._prepared.tasks[0].program

    def newest(self) -> bytes:
        """The parameters blob of the newest model."""
        with Store.open_readonly(self._database) as reader:
            checkpoint = reader.latest_checkpoint("default")
            assert checkpoint is not None
            blob = reader.get_blob(checkpoint.parameters_digest)
        assert blob is not None
        return blob

    def tickets(self) -> list[TicketRecord]:
        """All tickets of all rounds so far, in the order of the rounds."""
        with Store.open_readonly(self._database) as reader:
            rounds = sorted(reader.rounds("default", 10_000), key=lambda r: (r.number, r.attempt))
            return [t for record in rounds for t in reader.tickets("default", record.number, record.attempt)]

    def reasons(self, state: str) -> set[str]:
        """Why tickets ended in ``state``."""
        return {ticket.reason for ticket in self.tickets() if ticket.state == state}

    @property
    def _database(self) -> Path:
        from coordinator.config.settings import database_path

        return database_path(self._prepared.tasks[0].config)

    def client(self, state_dir: Path, **options: Any) -> EdgeClient:
        """A device of this federation with examples of its own."""
        defaults: dict[str, Any] = {
            "broker": self.url,
            "federation": self.name,
            "device_id": "pi",
            "load_examples": lambda: blobs(60),
            "state_dir": state_dir,
            "engine": "numpy",
        }
        return EdgeClient(**(defaults | options))
