"""One run: a federation, a codec and a seed, through the code that devices and coordinators run.

Only the network is left out. A client trains with ``train_locally`` and sends real frames; the coordinator decodes
these bytes, validates and sums them exactly; a client's residual is replaced once its update has counted.
Down, where a method compresses it, goes a link a round, from the parameters that every client has towards the model.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.codec_tasks import Federation
from coordinator.server_optimizers import make_server_optimizer
from coordinator.validate import Validation
from edge_sdk.aggregation.grouped_mean import GroupedMean
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings, Vectors
from edge_sdk.codecs.frames import decode_frames, encode_frames, groups_of, shared_seed
from edge_sdk.device.files import BytesLike
from edge_sdk.errors import TrainingError
from edge_sdk.training.bundle import digest_of, encode_parameters, parameters_vector
from edge_sdk.training.local import train_locally
from edge_sdk.training.model_delta import apply_model_deltas, encode_model_delta

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
    down: CodecSettings | None = None

    def facts(self) -> list[dict[str, Any] | None]:
        """Everything of the method that a run's result depends on."""
        return [self.up.to_wire(), None if self.down is None else self.down.to_wire()]


@dataclass(frozen=True, slots=True)
class Record:
    """What a run gave.

    Attributes:
        parameters: Number of the model's parameters.
        up_bytes: Mean bytes of a client's frame.
        down_bytes: Mean bytes of a round's frame to a client; 4 times the parameters where the downlink is dense.
        curve: ``(round, accuracy)`` on the test subset.
        accuracy: Mean over the last rounds, on the whole test set; minus the RMSE of a task that is judged by it.
        seconds: Process CPU time.
    """

    parameters: int
    up_bytes: float
    down_bytes: float
    curve: list[tuple[int, float]]
    accuracy: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The record as a compact line."""
        curve = [[number, round(accuracy, 4)] for number, accuracy in self.curve]
        rounded = {"up_bytes": round(self.up_bytes, 1), "down_bytes": round(self.down_bytes, 1)}
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
            curve.append((number, world.accuracy(state.parameters, whole=False)))
        if number > task.rounds - task.last:
            last.append(world.accuracy(state.parameters, whole=True))
    return Record(
        parameters=world.initial.size,
        up_bytes=float(np.mean(state.up)),
        down_bytes=float(np.mean(state.down)),
        curve=curve,
        accuracy=float(np.mean(last)),
        seconds=time.process_time() - began,
    )


class _State:
    """The server's parameters, what the clients have of them, and each client's residual."""

    def __init__(self, world: Federation, method: Method) -> None:
        self._world, self._method = world, method
        spec = world.engine.program.spec
        self._groups = groups_of(spec, method.up)
        self._validation = Validation(spec.size)
        self._server = make_server_optimizer(world.task.server[0], **world.task.server[1])
        self._memory = self._server.init(spec.size)
        self._kept: dict[int, Vectors] = {}
        self.parameters = self._clients_have = world.initial
        self._published: BytesLike = encode_parameters(world.initial)
        self.up: list[int] = []
        self.down: list[int] = []

    def round(self, number: int) -> None:
        """One round, from the cohort to the clients' next parameters."""
        shared = shared_seed(digest_of(self._published))
        total = GroupedMean(self._groups, FIXED_POINT, shared)
        for client in self._world.cohort(number):
            self._update(number, client, total, shared)
        self.parameters, self._memory = self._server.apply(self.parameters, total.report(), self._memory)
        self._send()

    def _update(self, number: int, client: int, total: GroupedMean, shared: int) -> None:
        world, codec = self._world, self._method.up
        spec = world.engine.program.spec
        seeds = np.random.SeedSequence([world.seed, number, client])
        trained = train_locally(
            world.engine,
            self._clients_have,
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

    def _send(self) -> None:
        """What devices hold next, by the coordinator's link and the device's way of applying it."""
        settings = self._method.down
        if settings is None:
            self._published = encode_parameters(self.parameters)
            self.down.append(len(self._published))
        else:
            link, target = encode_model_delta(self._published, self.parameters, (), settings)
            self._published = apply_model_deltas(self._published, [link], digest_of(target))
            self.down.append(len(link))
        self._clients_have = parameters_vector(self._published)
