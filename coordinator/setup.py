"""From the configuration to a service that is ready to run: database, model, bounds, held-out data, joined and checked.

What cannot work is refused here, before a device is asked for anything, with the keys that are to be changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from coordinator.compile import build_zoo_model, compile_model, zoo_loss
from coordinator.config import FederationConfig, check_files
from coordinator.config.settings import (
    broker_settings,
    codec_settings,
    database_path,
    piece_bytes_max,
    plan,
    round_settings,
    server_optimizer,
    stopping_rule,
    store_limits,
    validation_bounds,
)
from coordinator.core import TaskSettings
from coordinator.evaluation import Evaluator
from coordinator.ingest import Ingest, pack_state, unpack_state
from coordinator.model_identity import check_same_model, stored_program
from coordinator.reducers import FixedPoint
from coordinator.selection import wanted_count
from coordinator.server_optimizers import ServerOptimizer
from coordinator.service import Service
from coordinator.store import RoundRecord, Store, backup_path
from edge_sdk.bundle import Bundle, Program, encode_parameters
from edge_sdk.errors import ConfigurationError, ExamplesError, ProtocolError, StateError
from edge_sdk.examples import load_examples
from edge_sdk.messages import Update
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.update import decode_update, frame_bytes_max

__all__ = [
    "Prepared",
    "build_bundle",
    "check_not_lost",
    "fixed_point",
    "load_evaluator",
    "make_service",
    "prepare",
    "task_settings",
]

UPDATE_HEADER_BYTES_MAX: Final = 4096
"""Beside its frame an update holds a few numbers and names."""
EXAMPLES_CLAIMED_MAX: Final = 1 << 27
"""A device may have more examples than its weight may be; what it claims is only kept in the range of the sums."""
FRACTION_BITS: Final = 30
FRACTION_BITS_MIN: Final = 20
REFILL_FACTOR: Final = 2
"""Reserves are invited for those who decline or keep silent; twice the cohort is more than can report."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a service is made of.

    Attributes:
        config: The configuration.
        task: What the core must know.
        store: The open database, with the task's checkpoint in it.
        program: The task's program.
        ingest: The worker's side.
        evaluator: Scores models; None without ``evaluation.data``.
        broker: How to reach the broker.
        is_new: Whether the database was made just now.
    """

    config: FederationConfig
    task: TaskSettings
    store: Store
    program: Program
    ingest: Ingest
    evaluator: Evaluator | None
    broker: BrokerSettings
    is_new: bool


def prepare(
    config: FederationConfig, *, wall: Callable[[], float], new_id: Callable[[int], bytes], engine: str = "auto"
) -> Prepared:
    """Opens or makes the database, and joins what the configuration asks for.

    Args:
        config: The configuration.
        wall: Wall time in seconds since 1970.
        new_id: Gives so many random bytes.
        engine: What evaluates: ``auto``, ``onnxruntime`` or ``numpy``.

    Raises:
        ConfigurationError: A file is missing, keys contradict each other, or the database was made for another model.
        CompileError, BundleError: The model cannot be used.
        StateError: The database cannot be used, or it is missing while a backup of it is there.
    """
    check_files(config)
    broker = broker_settings(config.broker)
    database = database_path(config)
    check_not_lost(database)
    bundle = build_bundle(config, verify=not database.exists())
    task_settings(config, bundle.program)  # what is wrong is said before a database is made
    store = Store(database, wall=wall, new_id=new_id, **store_limits(config))
    try:
        return _joined(config, store, bundle, broker, engine)
    except BaseException:
        store.close()
        raise


def make_service(
    prepared: Prepared,
    *,
    new_id: Callable[[int], bytes],
    rng: np.random.Generator,
    wall: Callable[[], float],
    linger_seconds: float | None = 10.0,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> Service:
    """The service over what was prepared; arguments as of :class:`coordinator.service.Service`."""
    return Service(
        prepared.task,
        prepared.store,
        prepared.ingest,
        prepared.evaluator,
        prepared.broker,
        new_id=new_id,
        rng=rng,
        wall=wall,
        linger_seconds=linger_seconds,
        on_round=on_round,
        backup=backup_path(database_path(prepared.config)),
    )


def build_bundle(config: FederationConfig, *, verify: bool = True) -> Bundle:
    """The model that the configuration names, with its initial parameters.

    Args:
        config: The configuration.
        verify: Check a compiled model numerically.

    Raises:
        CompileError, BundleError: It cannot be used.
    """
    model = config.model
    if model.bundle is not None:
        return Bundle.load(model.bundle)
    assert model.zoo is not None
    graph = build_zoo_model(
        model.zoo,
        inputs=model.inputs,
        outputs=model.outputs,
        hidden=model.hidden_widths,
        activation=model.activation,
        channels=model.channels,
        seed=config.federation.seed if model.seed is None else model.seed,
    )
    return compile_model(
        graph,
        loss=model.loss or zoo_loss(model.zoo, model.outputs),
        optimizer=model.optimizer,
        proximal=model.proximal,
        name=model.zoo,
        verify=verify,
    )


def task_settings(config: FederationConfig, program: Program) -> TaskSettings:
    """What the core must know of the task.

    Raises:
        ConfigurationError: The limits do not fit the model; the message names the keys.
    """
    codec = codec_settings(config.codec)
    update_bytes_max = frame_bytes_max(program.spec.size, codec) + UPDATE_HEADER_BYTES_MAX
    _check_quotas(config, update_bytes_max)
    _check_target(config, program)
    selection = config.selection
    return TaskSettings(
        federation=config.federation.name,
        task=config.federation.task,
        round=round_settings(selection),
        plan=plan(config, dict(program.scalars)),
        stopping=stopping_rule(config.stopping, program.metric),
        program_digest=program.digest,
        requires=(f"codec:{codec.name}", *program.requires),
        share=None if selection.share == "auto" else float(selection.share),
        come_back_seconds=selection.come_back_seconds,
        jitter=selection.jitter,
        pause_seconds=selection.pause_seconds,
        retry_seconds=selection.retry_seconds,
        chunk_bytes_max=piece_bytes_max(config.transfer),
        update_bytes_max=update_bytes_max,
        retained_blobs=config.transfer.retained_blobs,
        # A federated evaluation comes with the updates: there is nothing to do after the round.
        evaluate_every=config.evaluation.every_rounds if config.evaluation.data is not None else 0,
        dense_bytes=4 * program.spec.size,
        seed=config.federation.seed,
    )


def fixed_point(config: FederationConfig) -> FixedPoint:
    """Scale and bounds of the sums, such that no cohort can overflow them.

    Raises:
        ConfigurationError: Too few bits would be left for the fraction; the message names the keys.
    """
    examples_max = config.aggregation.examples_max if config.aggregation.weighting == "examples" else 1
    invited = wanted_count(config.selection.goal_count, config.selection.over_selection)
    weight_sum_max = REFILL_FACTOR * examples_max * invited
    value_max = config.validation.value_max
    bits = 62 - max(0, math.ceil(math.log2(value_max))) - weight_sum_max.bit_length()
    if bits < FRACTION_BITS_MIN:
        raise ConfigurationError(
            f"validation.value_max = {value_max:g}, aggregation.examples_max = {config.aggregation.examples_max}, "
            f"selection.goal_count = {config.selection.goal_count}: sums of so many large values leave {bits} bits for "
            f"their fraction, at least {FRACTION_BITS_MIN} are needed; lower one of the three, or set "
            'aggregation.weighting = "uniform"'
        )
    return FixedPoint(min(bits, FRACTION_BITS), value_max, weight_sum_max)


def load_evaluator(config: FederationConfig, program: Program, engine: str = "auto") -> Evaluator | None:
    """What scores models on ``evaluation.data``; None where there is none.

    Raises:
        ConfigurationError: The data do not fit the model, or the model has no graph to evaluate.
    """
    path = config.evaluation.data
    if path is None:
        return None
    if program.kind != "graph":
        raise ConfigurationError(
            f"evaluation.data: the model {program.name!r} brings no graph, so only its devices can evaluate it; use "
            "evaluation.held_out"
        )
    try:
        return Evaluator(program, load_examples(path, program), engine)
    except ExamplesError as error:
        raise ExamplesError(f"evaluation.data: {error}") from error


def check_not_lost(database: Path) -> None:
    """Refuse to begin anew silently where a database is missing and its backup is there.

    Raises:
        StateError: Says which file to copy where.
    """
    backup = backup_path(database)
    if not database.exists() and backup.exists():
        raise StateError(
            f"{database}: there is no database, but a backup of it: copy {backup.name} to {database.name} to go on "
            f"from its last round, or move {backup.name} away to begin anew from the initial parameters"
        )


def _joined(config: FederationConfig, store: Store, bundle: Bundle, broker: BrokerSettings, engine: str) -> Prepared:
    name = config.federation.task
    optimizer = server_optimizer(config.aggregation)
    stored = stored_program(store, name)
    if stored is not None:
        check_same_model(config.model, bundle.program, stored)
    program = stored or bundle.program
    task = task_settings(config, program)
    bounds = validation_bounds(config.validation, size=program.spec.size, examples_max=EXAMPLES_CLAIMED_MAX)
    ingest = Ingest(store, program, task.plan, bounds, optimizer, fixed_point(config))
    evaluator = load_evaluator(config, program, engine)
    checkpoint = store.put_initial(
        name,
        program.encode(),
        encode_parameters(bundle.parameters),
        pack_state(optimizer.init(program.spec.size)),
    )
    _check_server_state(config, optimizer, checkpoint.server_state, program)
    _check_codec(config, store, program)
    return Prepared(config, task, store, program, ingest, evaluator, broker, is_new=stored is None)


def _check_quotas(config: FederationConfig, update_bytes_max: int) -> None:
    transfer = config.transfer
    if update_bytes_max > transfer.partial_bytes_per_device_max:
        raise ConfigurationError(
            f"transfer.partial_bytes_per_device_max = {transfer.partial_bytes_per_device_max}: an update of this model "
            f"with codec.name = {config.codec.name!r} may have {update_bytes_max} bytes, so none could arrive; raise "
            "it (and transfer.partial_bytes_max), or compress more"
        )
    held = update_bytes_max * wanted_count(config.selection.goal_count, config.selection.over_selection)
    if held > transfer.journal_bytes_max:
        raise ConfigurationError(
            f"transfer.journal_bytes_max = {transfer.journal_bytes_max}: the updates of one round may have {held} "
            "bytes; raise it to that, lower selection.goal_count, or compress more"
        )


def _check_target(config: FederationConfig, program: Program) -> None:
    """For a bundle: of a model of the zoo the configuration knows the metric by itself."""
    target = config.stopping.target_metric
    if target is not None and program.metric == "accuracy" and not 0 < target <= 1:
        raise ConfigurationError(f"stopping.target_metric = {target:g}: an accuracy is above 0 and at most 1")


def _check_server_state(config: FederationConfig, optimizer: ServerOptimizer, stored: bytes, program: Program) -> None:
    wanted = {name: vector.size for name, vector in optimizer.init(program.spec.size).items()}
    found = {name: vector.size for name, vector in unpack_state(stored).items()}
    if wanted != found:
        raise ConfigurationError(
            f"aggregation.server_optimizer = {config.aggregation.server_optimizer!r}: keeps "
            f"{', '.join(wanted) or 'no state'}, and the task was trained with one that keeps "
            f"{', '.join(found) or 'no state'}; put the former one back, or give the task a new name (federation.task)"
        )


def _check_codec(config: FederationConfig, store: Store, program: Program) -> None:
    """An open round holds updates as its devices were told to encode them; they must still be readable."""
    record = store.open_round(config.federation.task)
    if record is None:
        return
    first = next(store.journalled(record.task, record.number, record.attempt), None)
    if first is None:
        return
    try:
        decode_update(Update.decode(first[3]).frame, program.spec.size, codec_settings(config.codec))
    except ProtocolError as error:
        raise ConfigurationError(
            f"codec: round {record.number} is open and holds updates of other codec settings ({error}); put the former "
            "[codec] table back until the round has ended, then change it"
        ) from error
