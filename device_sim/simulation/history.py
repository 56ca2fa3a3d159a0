"""What came of a simulation: metrics and bytes by round, counts by client, the model; for notebooks and for files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigurationError
from edge_sdk.training.bundle import Bundle

__all__ = ["ClientCounts", "History", "RoundResult"]

LOSSES: Final = frozenset({"loss", "train_loss"})


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round.

    Attributes:
        number: From 1; 0 for the round of statistics.
        cohort: Names of the clients that were asked, in order.
        metrics: What the clients reported (``train_loss``, ``examples``) and what the evaluation gave (``loss``, and
            the model's metric, such as ``accuracy``).
        counted: Clients whose updates counted.
        refused: Why the others' did not, by client.
        bytes_up: Bytes of all updates; without topics, headers and acknowledgements.
        bytes_down: Bytes of the parameters, or of the deltas that lead to them, that the cohort had to fetch. The
            program, which a client fetches once, is not in it.
        digest: SHA-256 of the model after the round.
    """

    number: int
    cohort: tuple[str, ...]
    metrics: Mapping[str, float]
    counted: int
    refused: Mapping[str, str]
    bytes_up: int
    bytes_down: int
    digest: bytes


@dataclass(slots=True)
class ClientCounts:
    """One client over the whole simulation.

    Attributes:
        examples: Its local examples.
        rounds: Rounds in which its update counted.
        refused: Rounds in which it did not.
        bytes_up: Bytes of its updates.
        bytes_down: Bytes of parameters that it fetched.
    """

    examples: int
    rounds: int = 0
    refused: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What :func:`device_sim.simulate` returns.

    Attributes:
        rounds: The rounds in order.
        clients: Counts by client's name, of all clients.
        bundle: The program with the final parameters; those of the last good model where the run has diverged.
        metric: The name of the model's metric: ``accuracy``, ``mean_squared_error``, ...
        finished: Why it ended.
        initial: What the evaluation gave before the first round; empty without an evaluation.
        best_round: The round with the best evaluation; 0 without one.
        model_round: The round that made the model in ``bundle``; 0 for the initial one.
        statistics: Round 0, in which clients reported statistics of their features (``normalise="federated"``); None
            where there was none.
    """

    rounds: Sequence[RoundResult]
    clients: Mapping[str, ClientCounts]
    bundle: Bundle
    metric: str
    finished: str
    initial: Mapping[str, float] = field(default_factory=dict)
    best_round: int = 0
    model_round: int = 0
    statistics: RoundResult | None = None

    # --- numbers ---

    def __len__(self) -> int:
        return len(self.rounds)

    @property
    def parameters(self) -> NDArray[np.float32]:
        """The final model, float32[P]."""
        return self.bundle.parameters

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The final model's arrays by name."""
        return self.bundle.program.spec.unflatten(self.bundle.parameters)

    @property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Each metric by round, float64[rounds]; NaN where a round has none."""
        names = dict.fromkeys(name for r in self.rounds for name in r.metrics)
        return {name: np.array([r.metrics.get(name, np.nan) for r in self.rounds]) for name in names}

    @property
    def final(self) -> dict[str, float]:
        """The last value of each metric."""
        last: dict[str, float] = {}
        for result in self.rounds:
            last.update(result.metrics)
        return last

    @property
    def cohorts(self) -> list[tuple[str, ...]]:
        """Who was asked, by round, round 0 first where there was one: as ``simulate(cohorts=...)`` takes it."""
        return [result.cohort for result in self._everything]

    @property
    def _everything(self) -> tuple[RoundResult, ...]:
        return (*(() if self.statistics is None else (self.statistics,)), *self.rounds)

    @property
    def bytes_up(self) -> NDArray[np.int64]:
        """Bytes of updates by round, int64[rounds]."""
        return np.array([result.bytes_up for result in self.rounds], dtype=np.int64)

    @property
    def bytes_down(self) -> NDArray[np.int64]:
        """Bytes of parameters by round, int64[rounds]."""
        return np.array([result.bytes_down for result in self.rounds], dtype=np.int64)

    # --- views ---

    def table(self) -> dict[str, list[float]]:
        """Columns by name, one row a round: ``round``, ``counted``, ``refused``, the bytes, then the metrics."""
        columns: dict[str, list[float]] = {
            "round": [result.number for result in self.rounds],
            "counted": [result.counted for result in self.rounds],
            "refused": [len(result.refused) for result in self.rounds],
            "bytes_up": [result.bytes_up for result in self.rounds],
            "bytes_down": [result.bytes_down for result in self.rounds],
        }
        return columns | {name: values.tolist() for name, values in self.metrics.items()}

    def to_pandas(self) -> Any:
        """:meth:`table` as a ``pandas.DataFrame`` whose index is the round.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        return (
            _module("pandas", "history.to_pandas()", "history.table() gives the same as lists")
            .DataFrame(self.table())
            .set_index("round")
        )

    def plot(self, *metrics: str, against: str = "round", axes: Any = None) -> Any:
        """Curves of metrics on matplotlib axes.

        Args:
            metrics: Their names; by default the model's metric, or the losses where there is none.
            against: ``round``, ``bytes_up``, ``bytes_down`` or ``bytes`` (both): what the x axis counts; bytes are
                summed up to each round.
            axes: Where to draw; new ones without.

        Returns:
            The axes.

        Raises:
            ConfigurationError: matplotlib is not installed, or there is no such metric or axis.
        """
        known = self.metrics
        wanted = metrics or ((self.metric,) if self.metric in known else tuple(LOSSES & known.keys()))
        for name in wanted:
            if name not in known:
                raise ConfigurationError(
                    f"history.plot: metric {name!r} was not measured; there are {', '.join(known)}"
                )
        xs, label = self._axis(against)
        if axes is None:
            _module("matplotlib", "history.plot()", "history.table() gives the numbers")
            import matplotlib.pyplot as plt

            axes = plt.figure().add_subplot()
        for name in wanted:
            there = np.isfinite(known[name])
            axes.plot(xs[there], known[name][there], label=name)
        axes.set_xlabel(label)
        axes.legend()
        axes.grid(alpha=0.3)
        return axes

    def _axis(self, against: str) -> tuple[NDArray[Any], str]:
        sums = {
            "bytes_up": (self.bytes_up, "bytes of updates"),
            "bytes_down": (self.bytes_down, "bytes of parameters"),
            "bytes": (self.bytes_up + self.bytes_down, "bytes"),
        }
        if against == "round":
            return np.array([result.number for result in self.rounds]), "round"
        if against not in sums:
            raise ConfigurationError(f"history.plot: against={against!r} is not one of round, {', '.join(sums)}")
        return np.cumsum(sums[against][0]), sums[against][1]

    # --- files ---

    def save(self, path: str | Path) -> Path:
        """Writes what the name's ending says, and returns the path.

        ``.onnx`` is the trained model for any ONNX runtime; ``.bundle`` is to go on from, in another simulation or with
        a coordinator; ``.npz`` has the trained arrays by name; ``.csv`` is the table of rounds.

        Raises:
            ConfigurationError: The ending is another one.
            CompileError, BundleError: The model cannot be written.
        """
        path = Path(path)
        if path.suffix == ".onnx":
            path.write_bytes(self.model())
        elif path.suffix == ".bundle":
            self.bundle.save(path)
        elif path.suffix == ".npz":
            np.savez(path, **self.weights)  # type: ignore[arg-type]
        elif path.suffix == ".csv":
            self._write_csv(path)
        else:
            raise ConfigurationError(f"history.save: {path}: the name ends in .onnx, .bundle, .npz or .csv")
        return path

    def model(self) -> bytes:
        """The trained model as the bytes of an ``.onnx`` file.

        Raises:
            CompileError: The program has no graph.
        """
        from coordinator.compile import export_onnx

        made: bytes = export_onnx(self.bundle.program, self.parameters).SerializeToString(deterministic=True)
        return made

    def _write_csv(self, path: Path) -> None:
        table = self.table()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))

    # --- for people ---

    def _facts(self) -> dict[str, str]:
        shown = {name: f"{value:.4g}" for name, value in self.final.items() if name in LOSSES | {self.metric}}
        return {
            "rounds": f"{len(self.rounds)} ({self.finished})",
            "clients": f"{sum(c.rounds > 0 for c in self.clients.values())} of {len(self.clients)} took part",
            **shown,
            "bytes up": f"{sum(result.bytes_up for result in self._everything):,}",
            "bytes down": f"{sum(result.bytes_down for result in self._everything):,}",
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"History({self.bundle.program.name}: {facts})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self._facts().items())
        return f"<table><caption>{escape(self.bundle.program.name)}</caption>{rows}</table>"


def _module(name: str, what: str, instead: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"{what}: {name} is not installed; pip install {name}, or {instead}") from error
