"""One piece of work, from blobs to a finished update: decode, train, encode. Runs wherever the shell wants it to."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames, fitted_frames, shared_seed
from edge_sdk.device.session import StartTraining
from edge_sdk.device.state import OutboxEntry
from edge_sdk.errors import EdgeFedError, ExamplesError, TrainingError
from edge_sdk.training.bundle import Program, decode_parameters, digest_of
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.examples import as_examples
from edge_sdk.training.local import Trainer, TrainResult, train_locally, train_with_trainer
from edge_sdk.wire.messages import DELTA, Update

__all__ = [
    "Cancelled",
    "EngineCache",
    "OverBudget",
    "TrainedUpdate",
    "TrainingJob",
    "TrainingWork",
    "Work",
    "make_update",
]

ENGINES_KEPT: Final = 2


class Cancelled(EdgeFedError):
    """The work was called off; nothing of it is kept."""


class OverBudget(EdgeFedError):
    """No update would be small enough; found out before anything is trained."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is to be done.

    Attributes:
        start: The session's action: ticket, plan, digests.
        program: The program's bytes.
        parameters: The parameters' bytes.
        residual: Gives float32[trainable elements] or None for the digest of a spec: what earlier updates did not send.
        keeps_residual: Tells whether a residual of so many bytes can be kept.
        seed: Seeds shuffling and stochastic rounding.
        stop: Whether the work was called off; asked at each step, or each run of a few short ones.
        progress: Told steps done and loss, as often.
        frames_bytes_max: Bytes that the update's frames may have together, 0 for no limit.
    """

    start: StartTraining
    program: bytes | memoryview
    parameters: bytes | memoryview
    residual: Callable[[bytes], NDArray[np.float32] | None]
    keeps_residual: Callable[[int], bool]
    seed: int
    stop: Callable[[], bool]
    progress: Callable[[int, float], None]
    frames_bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """A finished update: what goes into the outbox, the residual if it counts, and how training went."""

    entry: OutboxEntry
    residual_after: NDArray[np.float32] | None
    result: TrainResult


class Work(Protocol):
    """How a device turns an order into an update."""

    def run(self, order: TrainingJob) -> TrainedUpdate:
        """Raises EdgeFedError where there will be no update."""
        ...


class EngineCache:
    """Decoded programs and their engines, by digest. Devices of one process may share it, from one thread."""

    def __init__(self, preference: str = "auto", threads: int = 1) -> None:
        self._preference = preference
        self._threads = threads
        self._engines: OrderedDict[bytes, tuple[Program, Engine | None]] = OrderedDict()

    def get(self, digest: bytes, data: bytes | memoryview) -> tuple[Program, Engine | None]:
        """The program of these bytes and its engine; the engine is None for a program of kind ``trainer``."""
        found = self._engines.get(digest)
        if found is None:
            program = Program.decode(data)
            engine = make_engine(program, self._preference, self._threads) if program.kind == "graph" else None
            self._engines[digest] = found = (program, engine)
            while len(self._engines) > ENGINES_KEPT:
                self._engines.popitem(last=False)
        self._engines.move_to_end(digest)
        return found


class TrainingWork:
    """Trains for real: on the device's engine, or with the user's own trainer.

    Args:
        load_examples: Gives the local examples, in any form that ``as_examples`` takes; called once per order.
        engines: Where engines are kept.
        trainer: Replaces the engine where given.
        examples_min: Fewer local examples than this are no basis for an update.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        load_examples: Callable[[], Any],
        *,
        engines: EngineCache | None = None,
        trainer: Trainer | None = None,
        examples_min: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load_examples = load_examples
        self._engines = engines or EngineCache()
        self._trainer = trainer
        self._examples_min = examples_min
        self._clock = clock

    def run(self, order: TrainingJob) -> TrainedUpdate:
        """See :class:`Work`."""
        program, engine = self._engines.get(order.start.program, order.program)
        job_codec(order, program)
        vector = decode_parameters(order.parameters, program.spec)
        plan = replace(
            order.start.plan.training, seconds_max=min(order.start.plan.training.seconds_max, order.start.seconds_max)
        )
        examples = as_examples(self._load_examples(), program)
        if len(examples) < self._examples_min:
            raise ExamplesError(f"{len(examples)} local examples, this device wants at least {self._examples_min}")
        options: dict[str, Any] = {
            "rng": np.random.Generator(np.random.PCG64(order.seed)),
            "clock": self._clock,
            "stop": order.stop,
            "progress": order.progress,
        }
        if self._trainer is not None:
            result = train_with_trainer(self._trainer, program, vector, examples, plan, **options)
        elif engine is not None:
            result = train_locally(engine, vector, examples, plan, **options)
        else:
            raise TrainingError("this program brings no graph: give EdgeClient a trainer=...")
        if order.stop():
            raise Cancelled("training was called off")
        name = "trainer" if self._trainer is not None or engine is None else engine.name
        return make_update(order, program, result, name)


def make_update(order: TrainingJob, program: Program, result: TrainResult, engine: str) -> TrainedUpdate:
    """Encodes a training result with the residual, into an outbox entry.

    Raises:
        OverBudget: The frames may not be as large as they would be.
    """
    start = order.start
    spec = spec_digest(program)
    codec = job_codec(order, program)
    encoded = encode_frames(
        result.delta,
        order.residual(spec),
        codec,
        program.spec,
        seed=order.seed,
        shared_seed=shared_seed(start.parameters),
        keeps_residual=order.keeps_residual(result.delta.nbytes),
    )
    evaluation = result.evaluation
    payload = Update(
        examples=result.examples,
        steps=result.steps,
        loss=float(result.loss),
        complete=result.complete,
        seconds=round(result.seconds, 3),
        engine=engine,
        vectors={DELTA: encoded.frames},
        evaluation=None if evaluation is None else (evaluation.loss_sum, evaluation.metric_sum, evaluation.count),
    ).encode()
    entry = OutboxEntry(
        ticket=start.ticket,
        lineage=start.lineage,
        task=start.task,
        round=start.round,
        shard=start.shard,
        digest=digest_of(payload),
        base=start.parameters,
        spec=spec,
        payload=payload,
    )
    return TrainedUpdate(entry, encoded.residual, result)


def job_codec(order: TrainingJob, program: Program) -> CodecSettings:
    """The plan's codec, made to fit where an update may have only so many bytes.

    Raises:
        OverBudget: It cannot be.
    """
    asked = order.start.plan.codec
    codec = fitted_frames(program.spec, asked, order.frames_bytes_max)
    if codec is None:
        raise OverBudget(
            f"an update of {program.spec.size} elements with codec {asked.name} has more than the "
            f"{order.frames_bytes_max} bytes that bytes_per_update_max leaves for it: raise it, or use codec auto"
        )
    return codec


def spec_digest(program: Program) -> bytes:
    """SHA-256 that names a parameter layout: a residual fits only its own (rule 4)."""
    import msgpack

    return digest_of(msgpack.packb(program.spec.to_wire()))


def job_seed(parameters: bytes, device: str) -> int:
    """The seed of a piece of work, 64 bits: it shuffles, rounds and rotates.

    It follows from what everybody may know, the digest of the parameters and the device's name, so that a simulation of
    the same devices on the same parameters gives the same update. Noise that is to protect privacy must therefore never
    be drawn from it: who knows the seed can subtract the noise.

    Args:
        parameters: SHA-256 of the parameters that the device trains from.
        device: The device's name.
    """
    return int.from_bytes(digest_of(parameters + device.encode())[:8], "little")
