"""Fleets of simulated devices, and federated training in one process (``simulate``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_sim.datasets import Dataset, load_dataset
    from device_sim.held_out import split_held_out
    from device_sim.partitions import partition
    from device_sim.simulation.history import ClientCounts, History, RoundResult
    from device_sim.simulation.run import simulate

__all__ = [
    "ClientCounts",
    "Dataset",
    "History",
    "RoundResult",
    "load_dataset",
    "partition",
    "simulate",
    "split_held_out",
]

_WHERE = {
    "ClientCounts": "device_sim.simulation.history",
    "Dataset": "device_sim.datasets",
    "History": "device_sim.simulation.history",
    "RoundResult": "device_sim.simulation.history",
    "load_dataset": "device_sim.datasets",
    "partition": "device_sim.partitions",
    "simulate": "device_sim.simulation.run",
    "split_held_out": "device_sim.held_out",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
