"""One piece of work, from blobs to a finished update: decode, train, encode. Runs wherever the shell wants it to."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames, fitted_frames, shared_seed
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.state import Vectors
from edge_sdk.device.training_job import Cancelled, OverQuota, TrainedUpdate, TrainingJob
from edge_sdk.errors import ExamplesError, TrainingError
from edge_sdk.training.algorithms import LocalAlgorithm, LocalResult, LocalWork, find_local_algorithm
from edge_sdk.training.bundle import Program, decode_parameters, digest_of
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import Trainer, TrainResult, split_by_plan
from edge_sdk.training.own_constants import own_constants, uses_own_constants, with_constants
from edge_sdk.wire.messages import DELTA, NUMBERS_MAX, VECTOR_NAME_CHARACTERS_MAX, Update
from edge_sdk.wire.plan import PLAIN
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = [
    "EngineCache",
    "TrainingWork",
    "job_codec",
    "make_update",
    "spec_digest",
]

ENGINES_KEPT: Final = 2
LOCAL: Final = "local."
NUMBERS_BYTES_MAX: Final = NUMBERS_MAX * (VECTOR_NAME_CHARACTERS_MAX + 11)
VECTOR_HEAD_BYTES_MAX: Final = VECTOR_NAME_CHARACTERS_MAX + 32
NOTHING: Final = np.zeros(0, dtype=np.float32)
GROUPS_APART: Final = 1 << 20
"""Between the seeds of two vectors of one update; the groups of a vector count on from its own."""


class EngineCache:
    """Decoded programs and their engines, by digest. Devices of one process may share it, from one thread."""

    def __init__(self, preference: str = "auto", threads: int = 1) -> None:
        self._preference = preference
        self._threads = threads
        self._engines: OrderedDict[bytes, tuple[Program, Engine | None]] = OrderedDict()

    def get(self, digest: bytes, data: BytesLike) -> tuple[Program, Engine | None]:
        """The program of these bytes and its engine; the engine is None for a program of kind ``trainer``."""
        program, engine = self._entry(digest, data)
        if engine is None and program.kind == "graph":
            engine = make_engine(program, self._preference, self._threads)
            self._engines[digest] = program, engine
        return program, engine

    def program(self, digest: bytes, data: BytesLike) -> Program:
        """The program of these bytes; no engine is made for it."""
        return self._entry(digest, data)[0]

    def _entry(self, digest: bytes, data: BytesLike) -> tuple[Program, Engine | None]:
        if digest not in self._engines:
            self._engines[digest] = Program.decode(data), None
            while len(self._engines) > ENGINES_KEPT:
                self._engines.popitem(last=False)
        self._engines.move_to_end(digest)
        return self._engines[digest]


class TrainingWork:
    """Trains for real: on the device's engine, or with the user's own trainer.

    Args:
        load_examples: Gives the local examples, in any form that ``as_examples`` takes; called once per job.
        engines: Where engines are kept.
        trainer: Replaces the engine where given.
        examples_min: Fewer local examples than this are no basis for an update.
        clock: Monotonic time in seconds.
        algorithms: Local algorithms of the application's own, by the name in a plan.
    """

    def __init__(
        self,
        load_examples: Callable[[], Any],
        *,
        engines: EngineCache | None = None,
        trainer: Trainer | None = None,
        examples_min: int = 1,
        clock: Callable[[], float] = time.monotonic,
        algorithms: Mapping[str, LocalAlgorithm] | None = None,
    ) -> None:
        self._load_examples = load_examples
        self._engines = engines or EngineCache()
        self._trainer = trainer
        self._examples_min = examples_min
        self._clock = clock
        self._algorithms = algorithms or {}
        self._checked: tuple[bytes, Examples] | None = None

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        """See :class:`Work`."""
        self._checked = None
        self._checked = ticket, self._examples(self._engines.program(digest, program))

    def run(self, job: TrainingJob) -> TrainedUpdate:
        """See :class:`Work`."""
        start, plan = job.start, job.start.plan.training
        trains = not start.plan.without_parameters
        program = self._engines.program(start.program, job.program)
        local = find_local_algorithm(start.plan.local, self._algorithms)
        if trains:
            job_codec(job, program, local.vectors)
        examples = self._examples_for(start.ticket, program)
        before = job.vectors(spec_digest(program))
        work = LocalWork(
            program=program,
            parameters=_parameters(job, program, examples) if trains else NOTHING,
            examples=examples,
            plan=replace(plan, seconds_max=min(plan.seconds_max, start.seconds_max)),
            engine=self._engines.get(start.program, job.program)[1] if trains else None,
            trainer=self._trainer,
            received={name: decode_parameters(data, program.spec) for name, data in job.received.items()},
            kept=_kept(before, start.plan.local),
            settings=start.plan.local_settings,
            rng=np.random.Generator(np.random.PCG64(job.seed)),
            clock=self._clock,
            stop=job.stop,
            progress=job.progress,
        )
        result = local.run(work)
        if job.stop():
            raise Cancelled("training was called off")
        return make_update(job, program, result, work.engine_name, before)

    def _examples_for(self, ticket: bytes, program: Program) -> Examples:
        """Those that were loaded for the look, where there was one; they are kept no longer."""
        checked, self._checked = self._checked, None
        return checked[1] if checked is not None and checked[0] == ticket else self._examples(program)

    def _examples(self, program: Program) -> Examples:
        examples = as_examples(self._load_examples(), program)
        if len(examples) < self._examples_min:
            what = f"{len(examples)} local examples, this device wants at least {self._examples_min}"
            raise ExamplesError(what, public=what)
        return examples


def _parameters(job: TrainingJob, program: Program, examples: Examples) -> NDArray[np.float32]:
    """The parameters received; where the program normalises locally, with the constants of this device."""
    received = decode_parameters(job.parameters, program.spec)
    if not uses_own_constants(program):
        return received

    def make() -> NDArray[np.float32]:
        train, _ = split_by_plan(examples, job.start.plan.training)
        return own_constants(program, examples if len(train) == len(examples) else examples.part(train))

    return with_constants(program, received, job.constants(program.digest, make))


def make_update(
    job: TrainingJob, program: Program, result: LocalResult, engine: str, before: Vectors | None = None
) -> TrainedUpdate:
    """Encodes what a local algorithm gave, into the update that waits in the outbox.

    Args:
        job: What was to be done.
        program: The program.
        result: What the local algorithm gave.
        engine: The name of what trained.
        before: The vectors that this device keeps; asked of the job where None.

    Raises:
        OverQuota: The frames or arrays may not be as large as they would be.
        TrainingError: A vector to send is not one of float32[P].
    """
    start, spec = job.start, spec_digest(program)
    before = job.vectors(spec) if before is None else before
    trained = result.trained or TrainResult(NOTHING, result.examples, steps=0, loss=0.0, seconds=0.0, complete=True)
    frames: dict[str, tuple[bytes, ...]] = {}
    # Who sends no vector owes as much as before.
    feedback: Vectors = {name: vector for name, vector in before.items() if not name.startswith(LOCAL)}
    if result.trained is not None:
        frames, feedback = _encoded(job, program, {DELTA: trained.delta, **result.vectors}, before)
    _check_arrays(result.arrays, job.frames_bytes_max)
    of_others = {name: vector for name, vector in before.items() if _is_of_another(name, start.plan.local)}
    own = {f"{LOCAL}{start.plan.local}.{name}": vector for name, vector in result.keep.items()}
    evaluation = trained.evaluation
    payload = Update(
        examples=trained.examples,
        steps=trained.steps,
        loss=float(trained.loss),
        complete=trained.complete,
        seconds=round(trained.seconds, 3),
        engine=engine,
        vectors=frames,
        numbers={name: float(value) for name, value in result.numbers.items()},
        arrays=dict(result.arrays),
        evaluation=None if evaluation is None else (evaluation.loss_sum, evaluation.metric_sum, evaluation.count),
    ).encode()
    update = PendingUpdate(
        ticket=start.ticket,
        digest=digest_of(payload),
        lineage=start.lineage,
        task=start.task,
        round=start.round,
        shard=start.shard,
        base=start.parameters,
        spec=spec,
        payload=payload,
    )
    return TrainedUpdate(update, {**of_others, **own, **feedback}, result.trained)


def _encoded(
    job: TrainingJob, program: Program, vectors: Vectors, before: Vectors
) -> tuple[dict[str, tuple[bytes, ...]], Vectors]:
    """The frames of each vector, the delta first, and what codecs keep for all of them."""
    codec = job_codec(job, program, tuple(vectors)[1:])
    keeps = job.keeps_vectors(sum(vector.nbytes for vector in vectors.values()))
    frames: dict[str, tuple[bytes, ...]] = {}
    kept: dict[str, NDArray[np.float32]] = {}
    for number, (name, vector) in enumerate(vectors.items()):
        if vector.shape != vectors[DELTA].shape or vector.dtype != np.float32:
            raise TrainingError(f"the local algorithm's vector {name!r} is {vector.dtype}{list(vector.shape)}")
        encoded = encode_frames(
            vector,
            _feedback(before, name),
            codec,
            program.spec,
            seed=job.seed + number * GROUPS_APART,
            shared_seed=shared_seed(job.start.parameters),
            keeps_residual=keeps,
        )
        frames[name] = encoded.frames
        kept |= _named_feedback(encoded.kept, name)
    return frames, kept


def _check_arrays(arrays: Mapping[str, bytes], bytes_max: int) -> None:
    total = sum(map(len, arrays.values()))
    if bytes_max and total > bytes_max:
        raise OverQuota(
            f"what the local algorithm reports has {total} bytes, and bytes_per_update_max leaves {bytes_max}: raise it"
        )


def _kept(vectors: Vectors, algorithm: str) -> dict[str, NDArray[np.float32]]:
    """What one local algorithm keeps, by its own names."""
    prefix = f"{LOCAL}{algorithm}."
    return {name.removeprefix(prefix): vector for name, vector in vectors.items() if name.startswith(prefix)}


def _is_of_another(name: str, algorithm: str) -> bool:
    """Whether a vector is kept by a local algorithm that has no part in this round."""
    return name.startswith(LOCAL) and not name.startswith(f"{LOCAL}{algorithm}.")


def _feedback(vectors: Vectors, sent: str) -> Vectors:
    """What codecs keep for a vector that is sent, by their own names."""
    if sent == DELTA:
        return {name: vector for name, vector in vectors.items() if "." not in name}
    return {
        name.removesuffix(f".{sent}"): vector
        for name, vector in vectors.items()
        if name.endswith(f".{sent}") and not name.startswith(LOCAL)
    }


def _named_feedback(kept: Vectors, sent: str) -> Vectors:
    """The inverse, after encoding."""
    return {name if sent == DELTA else f"{name}.{sent}": vector for name, vector in kept.items()}


def job_codec(job: TrainingJob, program: Program, beside: tuple[str, ...] = ()) -> CodecSettings:
    """The plan's codec, made to fit where an update may have only so many bytes.

    Args:
        job: What is to be done.
        program: The program.
        beside: Names of the vectors that are sent beside the delta; all have the same share of the bytes.

    Raises:
        OverQuota: It cannot be.
    """
    asked = job.start.plan.codec
    beside_bytes = 0 if job.start.plan.local == PLAIN else NUMBERS_BYTES_MAX + len(beside) * VECTOR_HEAD_BYTES_MAX
    bytes_max = max(1, job.frames_bytes_max - beside_bytes) // (1 + len(beside)) if job.frames_bytes_max else 0
    codec = fitted_frames(program.spec, asked, bytes_max)
    if codec is None:
        raise OverQuota(
            f"an update of {program.spec.size} elements with codec {asked.name} has more than the "
            f"{bytes_max} bytes that bytes_per_update_max leaves for it: raise it, or use codec auto"
        )
    return codec


def spec_digest(program: Program) -> bytes:
    """SHA-256 that names a parameter layout: a residual fits only its own (rule 4)."""
    import msgpack

    return digest_of(msgpack.packb(program.spec.to_wire()))
