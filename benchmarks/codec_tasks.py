"""The federations on which the codec is judged, and their data dealt to clients.

MNIST is dealt as in McMahan et al. (AISTATS 2017), section 3: sorted by label, two shards a client. UCI HAR is dealt by
person, with the channels of ``har.py``: 21 people train, 9 whom nobody trained on judge. Ratings by tables of users and
items (``codec_tables.py``) are dealt by household and judged by their root mean squared error. Everything of a run that is
not the codec (weights, deal, cohorts, order of batches) is a function of the task and the seed alone, so that runs of
one seed are pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.codec_models import conv1d_model, conv2d_model, gru_model
from benchmarks.codec_tables import Ratings, Tables, ratings, tables_model
from benchmarks.har import windows_of
from benchmarks.vectors import data_file
from coordinator.compile import build_zoo_model, compile_model
from device_sim.datasets import load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import shards
from device_sim.stable_random import StableRandom
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.local import Examples, as_examples
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["TASKS", "Federation", "Model", "Task", "federation"]

TEST_SUBSET: Final = 2000
"""Examples that the curve is drawn from; the last rounds are judged on all."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model and the shape in which it takes an example.

    Attributes:
        build: ``seed -> inference model``.
        shape: Of one example; steps before features for sequences.
        optimizer: The device's.
        sequence: Whether an example [channels, samples] is cut into ``shape[0]`` pieces, one a step.
    """

    build: Callable[[int], onnx.ModelProto]
    shape: tuple[int, ...]
    optimizer: str = "sgd"
    sequence: bool = False

    def take(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The examples float32[n, ...] in the model's shape."""
        if self.sequence:
            x = x.transpose(0, 2, 1)
        return np.ascontiguousarray(x.reshape(len(x), *self.shape))


MODELS: Final[Mapping[str, Model]] = {
    "2NN": Model(lambda seed: build_zoo_model("mlp", inputs=(784,), outputs=10, seed=seed), (784,)),
    "MLP 1M": Model(
        lambda seed: build_zoo_model("mlp", inputs=(784,), outputs=10, hidden=(1016, 200), seed=seed), (784,)
    ),
    "CNN": Model(partial(conv2d_model, side=28, channels=(8, 16), hidden=56, classes=10), (1, 28, 28)),
    "1D CNN": Model(partial(conv1d_model, inputs=(9, 128), channels=(16, 32), hidden=88, classes=6), (9, 128)),
    "GRU": Model(partial(gru_model, inputs=(16, 72), hidden=104, classes=6), (16, 72), "adam", sequence=True),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One federation.

    Attributes:
        data: ``mnist``, ``har`` or ``ratings``.
        model: A key of ``MODELS``, or a word for the tables.
        clients: Number of clients; for ``har`` the 21 people.
        cohort: Clients a round.
        rounds: Rounds of a run.
        plan: How a client trains.
        server: The server optimiser's name and settings.
        every: Rounds between two points of the curve.
        last: Rounds at the end whose scores on the whole test set are averaged to the run's result.
        tables: The tables, for ``ratings``.
    """

    data: str
    model: str
    clients: int
    cohort: int
    rounds: int
    plan: TrainingPlan
    server: tuple[str, dict[str, float]] = ("fedavg", {})
    every: int = 10
    last: int = 20
    tables: Tables | None = None

    @property
    def optimizer(self) -> str:
        """The device's."""
        return "sgd" if self.tables is not None else MODELS[self.model].optimizer

    @property
    def metric(self) -> str:
        """What a run is judged by: ``accuracy``, a share, or ``rmse``, of which less is better."""
        return "accuracy" if self.tables is None else "rmse"

    def describe(self) -> str:
        """The task as a row's heading."""
        optimizer = "" if self.optimizer == "sgd" else f", {self.optimizer.title()} on the device"
        server = {"fedavg": "", "fedavgm": ", server momentum", "fedadam": ", FedAdam"}[self.server[0]]
        data = {"mnist": "MNIST, 2 shards a client", "har": "UCI HAR by person", "ratings": "Ratings by household"}
        if self.tables is not None:
            model = f"tables of {self.tables.rows:,} rows, {100 * self.tables.touched:g} % touched"
            model += ", and dense layers" if self.tables.hidden else ""
            return f"{data[self.data]}, {model}: {self.cohort} of {self.clients} a round{server}"
        return f"{data[self.data]}, {self.model}{optimizer}: {self.cohort} of {self.clients} a round{server}"

    def facts(self) -> dict[str, Any]:
        """Everything that a run's result depends on besides seed and method."""
        told = {**asdict(self), "plan": self.plan.to_wire()}
        if self.tables is None:
            del told["tables"]
            told["shape"] = MODELS[self.model].shape
        return told


def _plan(lr: float, batch_size: int = 10) -> TrainingPlan:
    return TrainingPlan(epochs=1, batch_size=batch_size, seconds_max=1e6, scalars={"lr": lr})


_ADAM: Final = ("fedadam", {"eta": 0.02, "tau": 0.001})

TASKS: Final[Mapping[str, Task]] = {
    "2nn": Task("mnist", "2NN", 100, 10, 200, _plan(0.1)),
    "2nn-2pct": Task("mnist", "2NN", 500, 10, 400, _plan(0.1), every=20),
    "2nn-momentum": Task("mnist", "2NN", 100, 10, 160, _plan(0.1), ("fedavgm", {"eta": 0.2, "momentum": 0.9})),
    "mlp-1m": Task("mnist", "MLP 1M", 100, 10, 100, _plan(0.1), last=15),
    "mlp-1m-momentum": Task(
        "mnist", "MLP 1M", 100, 10, 100, _plan(0.1), ("fedavgm", {"eta": 0.2, "momentum": 0.9}), last=15
    ),
    "2nn-cohort-5": Task("mnist", "2NN", 100, 5, 240, _plan(0.1)),
    "2nn-cohort-2": Task("mnist", "2NN", 100, 2, 400, _plan(0.1), every=20),
    "cnn": Task("mnist", "CNN", 100, 10, 80, _plan(0.1), every=5, last=15),
    "cnn-2pct": Task("mnist", "CNN", 500, 10, 200, _plan(0.1)),
    "har": Task("har", "1D CNN", 21, 10, 80, _plan(0.03), every=4, last=15),
    "har-cohort-2": Task("har", "1D CNN", 21, 2, 160, _plan(0.03)),
    "gru": Task("har", "GRU", 21, 10, 60, _plan(0.0015, batch_size=32), every=4, last=15),
    "rows-1k": Task(
        "ratings", "tables", 100, 5, 80, _plan(0.1), ("fedavg", {"eta": 4.0}), last=15, tables=Tables(1_000, 16, 0.05)
    ),
    "rows-10k": Task(
        "ratings", "tables", 400, 100, 40, _plan(0.1), _ADAM, every=5, last=10, tables=Tables(10_000, 6, 0.01)
    ),
    "rows-100k": Task(
        "ratings", "tables", 1000, 200, 30, _plan(0.1), _ADAM, every=5, last=5, tables=Tables(100_000, 4, 0.001)
    ),
    "rows-20k": Task(
        "ratings",
        "tables",
        100,
        50,
        40,
        _plan(0.1, batch_size=50),
        ("fedavg", {"eta": 4.0}),
        every=5,
        last=10,
        tables=Tables(20_000, 4, 0.05),
    ),
    "rows-4k-mixed": Task(
        "ratings",
        "tables",
        400,
        20,
        120,
        _plan(0.05),
        ("fedavgm", {"eta": 1.0}),
        last=15,
        tables=Tables(4_000, 8, 0.01, hidden=32),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """A task's clients and judges for one seed.

    Attributes:
        engine: Trains and evaluates; parameters are an argument, so runs may share it.
        initial: float32[P].
        clients: Each client's examples.
        test: Examples that nobody trains on.
        subset: int[m], those of ``test`` that the curve is drawn from.
    """

    task: Task
    seed: int
    engine: Engine
    initial: NDArray[np.float32]
    clients: list[Examples]
    test: Examples
    subset: NDArray[np.intp]

    def cohort(self, round_number: int) -> list[int]:
        """Who takes part in that round."""
        draws = StableRandom(self.seed, f"cohort {round_number}")
        return [int(client) for client in draws.permutation(len(self.clients))[: self.task.cohort]]

    def score(self, parameters: NDArray[np.float32], *, whole: bool) -> float:
        """How ``parameters`` (float32[P]) do on the test examples, by the task's metric."""
        index = np.arange(len(self.test)) if whole else self.subset
        total = 0.0
        for start in range(0, len(index), 500):
            part = self.test.batch(self.engine.program, index[start : start + 500])
            total += self.engine.evaluate(parameters, part)[1]
        mean = total / len(index)
        return math.sqrt(mean) if self.task.metric == "rmse" else mean


@dataclass(frozen=True, slots=True, eq=False)
class _Deal:
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    person: NDArray[np.int64] | None = field(default=None)


@lru_cache(maxsize=1)
def _mnist() -> _Deal:
    train, test = split_held_out(load_dataset(data_file("mnist.npz")), 0.0, 0)
    x, test_x = (part.x / np.float32(255.0) for part in (train, test))
    return _Deal(x, train.y.astype(np.int64), test_x, test.y.astype(np.int64))


@lru_cache(maxsize=1)
def _har() -> _Deal:
    people = windows_of(data_file("uci_har_raw.npz"))
    train = {person: (x, y) for person, (x, y, unseen) in people.items() if not unseen}
    test = [(x, y) for x, y, unseen in people.values() if unseen]
    return _Deal(
        np.concatenate([x for x, _ in train.values()]),
        np.concatenate([y for _, y in train.values()]),
        np.concatenate([x for x, _ in test]),
        np.concatenate([y for _, y in test]),
        np.concatenate([np.full(len(y), person) for person, (_, y) in train.items()]),
    )


@lru_cache(maxsize=1)
def federation(name: str, seed: int) -> Federation:
    """The task of that name, ready to run.

    Raises:
        ConfigurationError: Its data are not there.
    """
    task = TASKS[name]
    if task.tables is not None:
        return _households(task, task.tables, seed)
    model = MODELS[task.model]
    deal = _mnist() if task.data == "mnist" else _har()
    bundle = compile_model(
        model.build(seed), loss="softmax_cross_entropy", optimizer=model.optimizer, name=task.model, verify=False
    )
    if deal.person is None:
        parts = shards(deal.y, task.clients, 2, seed)
    else:
        parts = [np.flatnonzero(deal.person == person) for person in np.unique(deal.person)]
    x = model.take(deal.x)
    test = as_examples((model.take(deal.test_x), deal.test_y), bundle.program)
    return Federation(
        task=task,
        seed=seed,
        engine=make_engine(bundle.program),
        initial=bundle.parameters,
        clients=[as_examples((x[part], deal.y[part]), bundle.program) for part in parts],
        test=test,
        subset=np.arange(0, len(test), max(1, len(test) // TEST_SUBSET)),
    )


def _households(task: Task, tables: Tables, seed: int) -> Federation:
    bundle = compile_model(tables_model(tables, seed), loss="mean_squared_error", name=task.model, verify=False)
    dealt, kept = ratings(tables, task.clients, seed)

    def examples(made: Ratings) -> Examples:
        return as_examples((made.inputs, made.values), bundle.program)

    return Federation(
        task=task,
        seed=seed,
        engine=make_engine(bundle.program),
        initial=bundle.parameters,
        clients=[examples(part) for part in dealt],
        test=examples(kept),
        subset=np.arange(0, len(kept.users), max(1, len(kept.users) // TEST_SUBSET)),
    )
