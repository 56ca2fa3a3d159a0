"""The federations on which the codec is judged, and their data dealt to clients.

MNIST is dealt as in McMahan et al. (AISTATS 2017), section 3: sorted by label, two shards a client. UCI HAR is dealt by
person, with the channels of ``har.py``: 21 people train, 9 whom nobody trained on judge. Data whose updates are sparse
by nature are made up (``codec_tables.py``). Everything of a run that is
not the codec (weights, deal, cohorts, order of batches) is a function of the task and the seed alone, so that runs of
one seed are pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.codec_models import conv1d_model, conv2d_model, gru_model
from benchmarks.codec_tables import Tables
from benchmarks.har import windows_of
from benchmarks.vectors import data_file
from coordinator.compile import build_zoo_model, compile_model
from device_sim.datasets import load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import shards
from device_sim.stable_random import StableRandom
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.local import Examples, as_examples
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["TASKS", "Federation", "Model", "Task", "federation", "made_up"]

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
        data: ``mnist``, ``har`` or ``tables``.
        model: A key of ``MODELS``, or the kind of the tables.
        clients: Number of clients; for ``har`` the 21 people.
        cohort: Clients a round.
        rounds: Rounds of a run.
        plan: How a client trains.
        server: The server optimiser's name and settings.
        every: Rounds between two points of the curve.
        last: Rounds at the end whose accuracies on the whole test set are averaged to the run's result.
        tables: What is made up, where ``data`` is that.
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
        return "sgd" if self.tables else MODELS[self.model].optimizer

    @property
    def by_rmse(self) -> bool:
        """Whether a run's result is minus the RMSE, in place of the accuracy."""
        return self.tables is not None and self.tables.loss == "mean_squared_error"

    def describe(self) -> str:
        """The task as a row's heading."""
        optimizer = "" if self.optimizer == "sgd" else f", {self.optimizer.title()} on the device"
        server = {"fedavg": "", "fedavgm": ", server momentum", "fedadam": ", FedAdam"}[self.server[0]]
        data = {"mnist": "MNIST, 2 shards a client", "har": "UCI HAR by person"}.get(self.data)
        what = self.tables.describe() if self.tables else f"{data}, {self.model}{optimizer}"
        return f"{what}: {self.cohort} of {self.clients} a round{server}"

    def facts(self) -> dict[str, Any]:
        """Everything that a run's result depends on besides seed and method."""
        facts = {**asdict(self), "plan": self.plan.to_wire()}
        if self.tables is None:
            del facts["tables"]
            facts["shape"] = MODELS[self.model].shape
        return facts


def _plan(lr: float, batch_size: int = 10) -> TrainingPlan:
    return TrainingPlan(epochs=1, batch_size=batch_size, seconds_max=1e6, scalars={"lr": lr})


FEDAVG: Final = ("fedavg", dict[str, float]())
FEDAVGM: Final = ("fedavgm", {"eta": 1.0, "momentum": 0.9})


def _fedadam(eta: float) -> tuple[str, dict[str, float]]:
    return "fedadam", {"eta": eta}


def _tables(
    tables: Tables, clients: int, cohort: int, rounds: int, lr: float, server: tuple[str, dict[str, float]]
) -> Task:
    every = max(1, rounds // 20)
    last = 3 * rounds // 10
    return Task("tables", tables.kind, clients, cohort, rounds, _plan(lr), server, every, last, tables)


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
    "table-1k": _tables(Tables("ratings", 1_000, 16, 0.05, 100), 40, 5, 200, 0.2, FEDAVG),
    "table-2k": _tables(Tables("ratings", 2_000, 16, 0.05, 150), 200, 200, 15, 0.1, _fedadam(0.1)),
    "table-3k": _tables(Tables("ratings", 3_000, 20, 0.01, 60), 200, 100, 40, 0.1, _fedadam(0.1)),
    "table-10k": _tables(Tables("ratings", 10_000, 16, 0.01, 200), 80, 20, 60, 0.1, FEDAVGM),
    "table-100k": _tables(Tables("ratings", 100_000, 8, 0.001, 150), 200, 50, 20, 0.2, _fedadam(0.2)),
    "table-deep": _tables(Tables("deep", 4_000, 16, 0.02, 200, 32), 80, 20, 40, 0.05, _fedadam(0.02)),
    "table-words": _tables(Tables("words", 20_000, 12, 0.01, 60), 100, 20, 40, 0.5, _fedadam(0.05)),
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

    def accuracy(self, parameters: NDArray[np.float32], *, whole: bool) -> float:
        """Share of the test examples that ``parameters`` (float32[P]) classify rightly; minus the RMSE where the task
        is judged by it."""
        index = np.arange(len(self.test)) if whole else self.subset
        right = 0.0  # or squared errors
        for start in range(0, len(index), 500):
            part = self.test.batch(self.engine.program, index[start : start + 500])
            right += self.engine.evaluate(parameters, part)[1]
        return -math.sqrt(right / len(index)) if self.task.by_rmse else right / len(index)


@dataclass(frozen=True, slots=True, eq=False)
class _Deal:
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    person: NDArray[np.int64] | None = field(default=None)


_Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""x and y."""


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
    return _read(task, seed) if task.tables is None else made_up(task, task.tables, seed)


def _read(task: Task, seed: int) -> Federation:
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
    train = [(x[part], deal.y[part]) for part in parts]
    return _federation(task, seed, bundle, train, (model.take(deal.test_x), deal.test_y))


def made_up(task: Task, tables: Tables, seed: int) -> Federation:
    """The federation of a task whose data are made up."""
    bundle = compile_model(tables.model(seed), loss=tables.loss, optimizer="sgd", name=tables.kind, verify=False)
    train, test = tables.deal(seed, task.clients)
    clients = [train.part(train.client == client) for client in range(task.clients)]
    return _federation(task, seed, bundle, [(part.x, part.y) for part in clients], (test.x, test.y))


def _federation(task: Task, seed: int, bundle: Bundle, train: list[_Pair], test: _Pair) -> Federation:
    judges = as_examples(test, bundle.program)
    return Federation(
        task=task,
        seed=seed,
        engine=make_engine(bundle.program),
        initial=bundle.parameters,
        clients=[as_examples(pair, bundle.program) for pair in train],
        test=judges,
        subset=np.arange(0, len(judges), max(1, len(judges) // TEST_SUBSET)),
    )
