"""The codecs that are compared, which of them on which task, and what is asked of them.

A name is a codec and its one knob: ``eden-0.05`` has 0.05 bits a coordinate, ``sparse-3`` sends 3 %; ``auto`` has none;
``eden-conv`` and ``eden-layers`` give some layers more. After a ``+`` stands what travels down, ``auto`` or ``sparse``
with a share of the coordinates; without one, whole parameters do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.codec_run import Method
from benchmarks.codec_tasks import Task
from coordinator.config.sections import DownlinkSection
from coordinator.config.settings import downlink
from coordinator.downlink import Downlink
from coordinator.server_optimizers import make_server_optimizer
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.eden import bits_for
from edge_sdk.codecs.sparse_rows import ROW_BITS

__all__ = ["BOTH", "BOUNDS", "DENSE", "METHODS", "SEEDS", "Bound", "make_method", "title"]

DENSE: Final = "dense"
BOTH: Final = "auto+auto"
"""The default, in both directions."""
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "2nn": (DENSE, "sparse-4", "sparse-3", "auto", BOTH, "eden-0.05"),
    "2nn-2pct": (DENSE, "sparse-3", "auto", BOTH, "eden-0.05"),
    "2nn-momentum": (DENSE, "sparse-3", "auto", BOTH),
    "mlp-1m": (DENSE, BOTH),
    "mlp-1m-momentum": (DENSE, BOTH),
    "2nn-cohort-5": (DENSE, "sparse-3", "auto", BOTH),
    "2nn-cohort-2": (DENSE, "auto", BOTH),
    "cnn": (DENSE, "sparse-3", "auto", BOTH, "eden-0.09", "eden-conv", "eden-layers", "eden-0.25", "eden-0.05"),
    "cnn-2pct": (DENSE, "sparse-3", "auto", BOTH, "eden-0.09", "eden-conv", "eden-layers", "eden-0.05"),
    "har": (DENSE, "int4", "sparse-3", "sparse-1", "auto", BOTH, "eden-0.09", "eden-conv", "eden-0.05"),
    "har-cohort-2": (DENSE, "sparse-3", "auto", BOTH, "eden-0.25"),
    "gru": (DENSE, "sparse-10", "sparse-3", "auto", BOTH, "eden-0.3", "eden-0.09"),
    "table-1k": (DENSE, "auto", BOTH, "eden-0.255"),
    "table-2k": (DENSE, "auto", BOTH, "eden-0.01"),
    "table-3k": (DENSE, "sparse-1", "auto", BOTH, "eden-0.01"),
    "table-10k": (DENSE, "auto", BOTH, "eden-0.088"),
    "table-100k": (DENSE, "auto", BOTH, "eden-0.022"),
    "table-deep": (DENSE, "auto", BOTH, "eden-0.088"),
    "table-words": (DENSE, "auto", BOTH, "eden-0.088"),
}
"""By task, the methods that run on it."""

SEEDS: Final[Mapping[str, int]] = {task: 5 if task.startswith(("har", "gru")) else 3 for task in METHODS}
"""Runs of each method. Nine people's windows are a noisier judge than ten thousand digits, and cheaper."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is asked of a method on a task.

    Attributes:
        up: How many times smaller than float32 a client's frame must be.
        down: The same of what a client downloads.
        points: Percentage points that the mean over seeds may be below dense float32; per cent where that is an RMSE.
        stretch: Whether it is hoped for and not promised.
    """

    up: float
    down: float = 1.0
    points: float = 0.5
    stretch: bool = False


_APART: Final[Mapping[str, tuple[float, tuple[tuple[str, float], ...]]]] = {
    "eden-conv": (0.075, (("conv*", 0.3),)),
    "eden-layers": (0.07, (("conv*", 0.25), ("logits*", 0.5))),
}
"""Bits of eden, and those of tensors by pattern."""

_TABLES: Final[Mapping[str, float]] = {
    "table-1k": 150.0,
    "table-2k": 150.0,
    "table-3k": 449.0,
    "table-10k": 500.0,
    "table-100k": 2000.0,
    "table-deep": 200.0,
    "table-words": 500.0,
}
"""Sparse by nature; how many times smaller than float32 ``auto`` must be. ``eden-*`` of the same task is what ``auto``
would choose if it did not look for rows that are zero."""

_SGD: Final = ("2nn", "2nn-2pct", "cnn", "cnn-2pct", "har")
"""Cohorts of 10 and at least 45,000 parameters."""

# A cohort of two is only asked not to collapse.
BOUNDS: Final[Mapping[tuple[str, str], Bound]] = {
    **{(task, "auto"): Bound(300.0) for task in _SGD},
    ("cnn", "eden-layers"): Bound(300.0),
    ("har", "eden-conv"): Bound(300.0),
    **{(task, "eden-0.05"): Bound(500.0, stretch=True) for task in _SGD},
    **{(task, "sparse-4" if task == "2nn" else "sparse-3"): Bound(100.0) for task in _SGD},
    **{(task, BOTH): Bound(300.0, 120.0) for task in _SGD},
    ("mlp-1m", BOTH): Bound(300.0, 120.0),
    ("mlp-1m-momentum", BOTH): Bound(120.0, 27.0),
    ("2nn-momentum", BOTH): Bound(120.0, 27.0),
    ("2nn-cohort-5", BOTH): Bound(120.0, 120.0),
    ("2nn-cohort-2", BOTH): Bound(1.0, 120.0, points=5.0),
    ("gru", BOTH): Bound(100.0, 120.0),
    ("2nn-cohort-5", "auto"): Bound(120.0),
    ("2nn-cohort-2", "auto"): Bound(1.0, points=5.0),
    ("2nn-momentum", "auto"): Bound(120.0),
    ("gru", "auto"): Bound(100.0),
    ("gru", "eden-0.3"): Bound(100.0),
    **{(task, method): Bound(up) for task, up in _TABLES.items() for method in ("auto", BOTH)},
}


def make_method(name: str, task: Task) -> Method:
    """The method of that name on a task; what a coordinator decides by the task is decided as it does.

    Raises:
        ConfigurationError: It names a codec that there is not, or a value out of range.
    """
    up, _, down = name.partition("+")
    return Method(_settings(up, task), _downlink(down, task) if down else None)


def _downlink(name: str, task: Task) -> Downlink:
    codec, _, knob = name.partition("-")
    optimizer = make_server_optimizer(task.server[0], **task.server[1])
    section = {"codec": codec} | ({"density": float(knob) / 100} if knob else {})
    return downlink(DownlinkSection(**section), optimizer)


def _settings(name: str, task: Task) -> CodecSettings:
    codec, _, knob = name.partition("-")
    if codec == "auto":
        adaptive = task.server[0] != "fedavg" or task.optimizer == "adam"
        bits = bits_for(task.cohort, adaptive)
        return CodecSettings(codec, bits=bits, participation=round(task.cohort / task.clients, 3))
    if codec == "sparse":
        return CodecSettings(codec, density=float(knob) / 100)
    if name in _APART:
        bits, rules = _APART[name]
        tensors = tuple((pattern, CodecSettings(codec, bits=share)) for pattern, share in rules)
        return CodecSettings(codec, bits=bits, tensors=tensors)
    if codec == "eden":
        return CodecSettings(codec, bits=float(knob))
    return CodecSettings(codec)


def title(method: str, task: Task | None = None) -> str:
    """The method as people read it; on a task with what ``auto`` comes to there."""
    if method == "auto" and task is not None and task.tables is not None:
        return f"auto (sparse_rows, {ROW_BITS} bit)"
    if method == "auto" and task is not None:
        bits = f"eden {_settings(method, task).to_wire()['bits']:g} bit"
        return f"auto ({bits}{', more for kernels' if 'CNN' in task.model and task.cohort > 2 else ''})"
    return " up, ".join(_title(part) for part in method.split("+")) + (" down" if "+" in method else "")


def _title(name: str) -> str:
    codec, _, knob = name.partition("-")
    if codec == "sparse":
        return f"sparse {knob} %"
    if name in _APART:
        bits, rules = _APART[name]
        return f"eden {bits:g} bit, " + ", ".join(f"{pattern} {share:g}" for pattern, share in rules)
    return f"eden {knob} bit" if codec == "eden" else name
