"""One run: a federation, a codec and a seed, through the code that devices and coordinators run.

Only the network is left out. A client trains with ``train_locally`` and sends real frames; the coordinator decodes
these bytes, validates and sums them exactly; a client's residual is replaced once its update has counted. Down, where
a method compresses it, goes a model delta a round; a client that was not asked for some rounds fetches those between,
merged as the coordinator does it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec_tasks import Federation
from coordinator.downlink import Downlink, moved_by, next_model
from coordinator.server_optimizers import make_server_optimizer
from coordinator.validate import Validation
from device_sim.simulation.deltas import Deltas
from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings, Vectors
from edge_sdk.codecs.frames import decode_frames, encode_frames, groups_of, shared_seed
from edge_sdk.errors import TrainingError
from edge_sdk.training.bundle import digest_of, encode_parameters, parameters_vector
from edge_sdk.training.local import train_locally
from edge_sdk.training.model_delta import apply_model_deltas

__all__ = ["Method", "Record", "run"]

FIXED_POINT: Final = FixedPoint()
DIVERGED_RMSE: Final = -1e6


@dataclass(frozen=True, slots=True)
class Method:
    """How updates travel.

    Attributes:
        up: From a client.
        down: To the clients, None for whole parameters.
    """

    up: CodecSettings
    down: Downlink | None = None

    def facts(self) -> list[dict[str, Any] | None]:
        """Everything of the method that a run's result depends on."""
        return [self.up.to_wire(), None if self.down is None else asdict(self.down)]


@dataclass(frozen=True, slots=True)
class Record:
    """What a run gave.

    Attributes:
        parameters: Number of the model's parameters.
        up_bytes: Mean bytes of a client's frame.
        down_bytes: Mean bytes of a round's model delta, or of the whole parameters.
        fetched_bytes: Mean bytes that a client fetches in a round that is not its first one.
        curve: ``(round, accuracy)`` on the test subset.
        accuracy: Mean over the last rounds, on the whole test set; minus the RMSE of a task that is judged by it.
        seconds: Process CPU time.
    """

    parameters: int
    up_bytes: float
    down_bytes: float
    fetched_bytes: float
    curve: list[tuple[int, float]]
    accuracy: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The record as a compact line."""
        curve = [[number, round(accuracy, 4)] for number, accuracy in self.curve]
        rounded = {name: round(getattr(self, name), 1) for name in ("up_bytes", "down_bytes", "fetched_bytes")}
        rounded |= {"accuracy": round(self.accuracy, 5), "seconds": round(self.seconds, 1)}
        return {**asdict(self), **rounded, "curve": curve}


def run(world: Federation, method: Method) -> Record:
    """All rounds of one run. A model that diverges ends it there, with the worst result."""
    began = time.process_time()
    task = world.task
    state = _State(world, method)
    curve: list[tuple[int, float]] = []
    last: list[float] = []
    for number in range(1, task.rounds + 1):
        try:
            state.round(number)
        except TrainingError:
            last = [DIVERGED_RMSE if task.by_rmse else 0.0]
            break
        if number % task.every == 0:
            curve.append((number, world.accuracy(state.model, whole=False)))
        if number > task.rounds - task.last:
            last.append(world.accuracy(state.model, whole=True))
    return Record(
        parameters=world.initial.size,
        up_bytes=float(np.mean(state.up)),
        down_bytes=float(np.mean(state.down)),
        fetched_bytes=float(np.mean(state.fetched or state.down)),
        curve=curve,
        accuracy=float(np.mean(last)),
        seconds=time.process_time() - began,
    )


class _State:
    """The model, which the clients hold, what is owed beside it, and each client's residual."""

    def __init__(self, world: Federation, method: Method) -> None:
        self._world, self._method = world, method
        spec = world.engine.program.spec
        self._groups = groups_of(spec, method.up)
        self._validation = Validation(spec.size)
        self._server = make_server_optimizer(world.task.server[0], **world.task.server[1])
        self._memory = self._server.init(spec.size)
        self._kept: dict[int, Vectors] = {}
        self._held: dict[int, bytes] = {}
        self._deltas = Deltas()
        self._owed = np.zeros_like(world.initial)
        self._parameters = encode_parameters(world.initial)
        self.model = world.initial
        self.up: list[int] = []
        self.down: list[int] = []
        self.fetched: list[int] = []

    def round(self, number: int) -> None:
        """One round, from the cohort to the next model."""
        base = digest_of(self._parameters)
        shared = shared_seed(base)
        total = GroupedMean(self._groups, FIXED_POINT, shared)
        cohort, moved = self._world.cohort(number), 0
        for client in cohort:
            self._fetch(client, base)
            moved += self._update(number, client, total, shared)
        downlink = (self._method.down or Downlink()).suited(moved / (len(cohort) * self.model.size))
        start = self.model + np.float32(downlink.keeps) * self._owed
        wanted, self._memory = self._server.apply(start, total.report(), self._memory)
        self._move(number, base, wanted, downlink)

    def _fetch(self, client: int, base: bytes) -> None:
        held = self._held.get(client)
        if held is not None and held != base:
            self.fetched.append(self._deltas.bytes_from([held]) or len(self._parameters))
        self._held[client] = base

    def _update(self, number: int, client: int, total: GroupedMean, shared: int) -> int:
        """One client's update; how many coordinates it moves."""
        world, codec = self._world, self._method.up
        spec = world.engine.program.spec
        seeds = np.random.SeedSequence([world.seed, number, client])
        trained = train_locally(
            world.engine,
            self.model,
            world.clients[client],
            world.task.plan,
            rng=np.random.Generator(np.random.PCG64(seeds)),
            clock=time.monotonic,
        )
        seed = int(seeds.generate_state(1, np.uint64)[0])
        sent = encode_frames(trained.delta, self._kept.get(client), codec, spec, seed=seed, shared_seed=shared)
        decoded = decode_frames(sent.frames, codec, spec)
        self._validation.check(decoded, self._groups, examples=trained.examples, steps=trained.steps, loss=trained.loss)
        total.accumulate(decoded, trained.examples)
        self._kept[client] = sent.kept
        self.up.append(sum(map(len, sent.frames)))
        return moved_by(decoded)

    def _move(self, number: int, base: bytes, wanted: NDArray[np.float32], downlink: Downlink) -> None:
        """What devices hold next, by the coordinator's model delta and the device's way of applying it."""
        made = next_model(downlink, self._parameters, wanted, ())
        new = made.model_delta
        if new is not None:
            reached = apply_model_deltas(self._parameters, [new.model_delta], digest_of(made.parameters))
            assert reached == made.parameters
        self._deltas.follow(number, base, digest_of(made.parameters), new)
        self.down.append(len(made.parameters) if new is None else len(new.model_delta))
        self._parameters = made.parameters
        self.model = parameters_vector(made.parameters)
        self._owed = np.zeros_like(wanted) if new is None else wanted - self.model
