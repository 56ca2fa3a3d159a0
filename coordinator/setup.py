"""From the configuration to a service that is ready to run: database, model, bounds, held-out data, joined and checked.

What cannot work is refused here, before a device is asked for anything, with the keys that are to be changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from coordinator.compile import (
    Lora,
    LossOptions,
    NormaliseOptions,
    build_zoo_model,
    compile_model,
    load_onnx,
    read_onnx,
    zoo_loss,
)
from coordinator.compile.import_ import import_model
from coordinator.compile.naming import ColumnNames, with_names
from coordinator.compile.notes import notes_of
from coordinator.config import FederationConfig, Model, check_files
from coordinator.config.settings import (
    algorithm,
    broker_settings,
    codec_settings,
    database_path,
    downlink,
    piece_bytes_max,
    pipeline_steps,
    plan,
    round_settings,
    server_optimizer,
    stopping_rule,
    store_limits,
    validation_bounds,
)
from coordinator.evaluation import Evaluator
from coordinator.model_identity import check_same_model, has_begun_for_nothing, stored_program
from coordinator.pipeline import (
    Aggregator,
    PipelineSettings,
    TaskWorker,
    pack_memory,
    unpack_memory,
)
from coordinator.schedules.selection import make_rule
from coordinator.service import Service
from coordinator.setup_checks import (
    check_memory,
    check_not_lost,
    check_open_round,
    check_quotas,
    check_target,
    check_update_budget,
    fixed_point,
)
from coordinator.statistics_round import first_round, opening_pipeline, statistics_round
from coordinator.store import RoundRecord, Store, backup_path
from coordinator.task_settings import TaskSettings
from edge_sdk.codecs.frames import frames_bytes_max
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.training.bundle import Bundle, Program, encode_parameters
from edge_sdk.training.examples import load_examples

__all__ = [
    "Prepared",
    "PreparedTask",
    "build_bundle",
    "load_evaluator",
    "make_service",
    "model_notes",
    "prepare",
    "task_settings",
]

logger = logging.getLogger(__name__)

UPDATE_HEADER_BYTES_MAX: Final = 4096
"""Beside its frame an update holds a few numbers and names."""
EXAMPLES_CLAIMED_MAX: Final = 1 << 27
"""A device may have more examples than its weight may be; what it claims is only kept in the range of the sums."""


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """Everything that one task is made of.

    Attributes:
        config: Its configuration.
        settings: What the core must know.
        program: Its program.
        worker: The worker's side.
        evaluator: Scores models; None without ``evaluation.data``.
        is_new: Whether it has begun just now.
    """

    config: FederationConfig
    settings: TaskSettings
    program: Program
    worker: TaskWorker
    evaluator: Evaluator | None
    is_new: bool

    @property
    def name(self) -> str:
        """The task's name."""
        return self.settings.task


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a service is made of.

    Attributes:
        tasks: The tasks, in the order of the configuration.
        store: The open database, with a checkpoint of each task in it.
        broker: How to reach the broker.
    """

    tasks: tuple[PreparedTask, ...]
    store: Store
    broker: BrokerSettings


def prepare(
    configs: Sequence[FederationConfig],
    *,
    wall: Callable[[], float],
    new_id: Callable[[int], bytes],
    engine: str = "auto",
) -> Prepared:
    """Opens or makes the database, and joins what the configuration asks for.

    Args:
        configs: The configuration of each task (:func:`coordinator.config.load_tasks`).
        wall: Wall time in seconds since 1970.
        new_id: Gives so many random bytes.
        engine: What evaluates: ``auto``, ``onnxruntime`` or ``numpy``.

    Raises:
        ConfigurationError: A file is missing, keys contradict each other, or the database was made for another model.
        CompileError, BundleError: A model cannot be used.
        StateError: The database cannot be used, or it is missing while a backup of it is there.
    """
    first = configs[0]
    for config in configs:
        check_files(config)
    broker = broker_settings(first.broker)
    database = database_path(first)
    check_not_lost(database)
    # Whatever is wrong with the configuration is said before a database is made.
    parts = [_parts(config, engine, verify=not database.exists()) for config in configs]
    store = Store(database, wall=wall, new_id=new_id, **store_limits(first))
    try:
        tasks = tuple(_joined(config, store, part, engine) for config, part in zip(configs, parts, strict=True))
        return Prepared(tasks, store, broker)
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
    on_turn: Callable[[], None] | None = None,
) -> Service:
    """The service over what was prepared; arguments as of :class:`coordinator.service.Service`."""
    tasks = prepared.tasks
    return Service(
        [task.settings for task in tasks],
        prepared.store,
        {task.name: task.worker for task in tasks},
        {task.name: task.evaluator for task in tasks if task.evaluator is not None},
        prepared.broker,
        new_id=new_id,
        rng=rng,
        wall=wall,
        linger_seconds=linger_seconds,
        on_round=on_round,
        on_turn=on_turn,
        backup=backup_path(database_path(tasks[0].config)),
    )


def build_bundle(config: FederationConfig, *, verify: bool = True, onnx: bytes | None = None) -> Bundle:
    """The model that the configuration names, with its initial parameters.

    Args:
        config: The configuration.
        verify: Check a compiled model numerically, and measure what ``model.loop`` leaves to a measurement.
        onnx: The content of ``model.onnx``, where it is not in a file.

    Raises:
        CompileError, BundleError: It cannot be used.
    """
    model = config.model
    if model.bundle is not None:
        return Bundle.load(model.bundle)
    if model.onnx is not None:
        bundle = compile_onnx(model, verify=verify, onnx=onnx)
    else:
        bundle = _of_the_zoo(config, verify=verify)
    return with_names(bundle, ColumnNames(model.features, model.categories, model.labels))


def _of_the_zoo(config: FederationConfig, *, verify: bool) -> Bundle:
    model = config.model
    assert model.zoo is not None
    # Images have their channels first, whatever reads them; anything else has its features last.
    axis = model.normalise_axis or (1 if len(model.inputs) > 2 else len(model.inputs))
    inputs = list(model.inputs)
    if model.missing_indicator:
        inputs[axis - 1] *= 2
    graph = build_zoo_model(
        model.zoo,
        inputs=inputs,
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
        weight_decay=model.weight_decay,
        clipped=model.clip_gradients,
        normalise=_normalise_options(model, axis),
        name=model.zoo,
        verify=verify,
        loop=model.loop,
    )


def compile_onnx(model: Model, *, verify: bool = True, onnx: bytes | None = None) -> Bundle:
    """The model of an ONNX file, compiled as the configuration asks.

    Raises:
        CompileError: It cannot be used; says what is wrong, where, and what to do.
    """
    assert model.onnx is not None and model.loss is not None
    return compile_model(
        load_onnx(model.onnx) if onnx is None else read_onnx(onnx, str(model.onnx)),
        loss=model.loss,
        optimizer=model.optimizer,
        proximal=model.proximal,
        weight_decay=model.weight_decay,
        clipped=model.clip_gradients,
        loss_options=LossOptions(
            class_weights=model.class_weights,
            label_smoothing=model.label_smoothing,
            ignore_index=model.ignore_index,
            class_axis=model.class_axis,
            mask=model.mask or "",
        ),
        output=model.output,
        train=model.train,
        freeze=model.freeze,
        lora=Lora(model.lora_rank, model.lora) if model.lora else None,
        normalise=_normalise_options(model, model.normalise_axis),
        name=model.onnx.stem,
        verify=verify,
        loop=model.loop,
    )


def _normalise_options(model: Model, axis: int | None) -> NormaliseOptions | None:
    if model.normalise_mode == "none":
        return None
    return NormaliseOptions(
        mode=model.normalise_mode,
        axis=axis,
        clip=model.normalise_clip,
        missing=model.missing,
        indicator=model.missing_indicator,
        target=None if model.normalise_target == "auto" else model.normalise_target,
    )


def model_notes(model: Model) -> list[str]:
    """What should be known of the ONNX file before it is trained, in sentences; none where there is no file.

    Raises:
        CompileError: It cannot be used.
    """
    if model.onnx is None:
        return []
    source = load_onnx(model.onnx)
    return notes_of(source, import_model(source, name=model.onnx.stem, asked=model.train).roles)


def pipeline_settings(config: FederationConfig, program: Program) -> PipelineSettings:
    """What the task's pipeline is made of.

    Raises:
        ConfigurationError: A name or a setting in [aggregation] is wrong, or a bound cannot be kept.
    """
    optimizer = server_optimizer(config.aggregation)
    return PipelineSettings(
        validation=validation_bounds(config.validation, size=program.spec.size, examples_max=EXAMPLES_CLAIMED_MAX),
        algorithm=algorithm(config),
        optimizer=optimizer,
        fixed_point=fixed_point(config),
        downlink=downlink(config.downlink, optimizer),
        steps=pipeline_steps(config.aggregation),
        directory=str(config.federation.state_dir),
    )


def task_settings(config: FederationConfig, program: Program) -> TaskSettings:
    """What the core must know of the task.

    Raises:
        ConfigurationError: The limits do not fit the model; the message names the keys.
    """
    codec = codec_settings(config)
    vectors = 1 + len(algorithm(config).vectors)
    update_bytes_max = vectors * frames_bytes_max(program.spec, codec) + UPDATE_HEADER_BYTES_MAX
    check_quotas(config, update_bytes_max)
    check_update_budget(config, codec, program)
    check_target(config, program)
    selection = config.selection
    asked = plan(config, dict(program.scalars))
    settings = TaskSettings(
        federation=config.federation.name,
        task=config.federation.task,
        round=round_settings(selection),
        plan=asked,
        stopping=stopping_rule(config, program.metric),
        program_digest=program.digest,
        requires=(*asked.requires, *program.requires),
        fraction=None if selection.fraction == "auto" else float(selection.fraction),
        come_back_seconds=selection.come_back_seconds,
        jitter=selection.jitter,
        pause_seconds=selection.pause_seconds,
        retry_seconds=selection.retry_seconds,
        retry_seconds_max=selection.retry_seconds_max,
        mended_by_attempts=() if config.validation.norm_median_factor is None else ("norm",),
        chunk_bytes_max=piece_bytes_max(config.transfer),
        update_bytes_max=update_bytes_max,
        retained_blobs=config.transfer.retained_blobs,
        # A federated evaluation comes with the updates: there is nothing to do after the round.
        evaluate_every=config.evaluation.every_rounds if config.evaluation.data is not None else 0,
        dense_bytes=4 * int(np.count_nonzero(~program.spec.mask("constant"))),
        seed=config.federation.seed,
        rule=make_rule(selection.rule, selection.rule_options),
    )
    opening = statistics_round(settings, program, config.model.normalise_minimum)
    if opening is not None:
        check_quotas(config, opening.update_bytes_max)
    return replace(settings, opening=opening)


def load_evaluator(config: FederationConfig, program: Program, engine: str = "auto") -> Evaluator | None:
    """What scores models on ``evaluation.data``; None where there is none.

    Raises:
        ConfigurationError: The data do not fit the model, or the model has no graph to evaluate.
    """
    data = config.evaluation.data
    if data is None:
        return None
    if program.kind != "graph":
        raise ConfigurationError(
            f"evaluation.data: the model {program.name!r} brings no graph, so only its devices can evaluate it; use "
            "evaluation.held_out"
        )
    try:
        return Evaluator(program, load_examples(data, program), engine)
    except ExamplesError as error:
        raise ExamplesError(f"evaluation.data: {error}") from error


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the configuration of a task alone gives."""

    bundle: Bundle
    pipeline: PipelineSettings
    evaluator: Evaluator | None


def _parts(config: FederationConfig, engine: str, *, verify: bool) -> _Parts:
    bundle = build_bundle(config, verify=verify)
    task_settings(config, bundle.program)
    evaluator = load_evaluator(config, bundle.program, engine)
    return _Parts(bundle, pipeline_settings(config, bundle.program), evaluator)


def _joined(config: FederationConfig, store: Store, parts: _Parts, engine: str) -> PreparedTask:
    """With the database, in which the task may have begun long ago."""
    name = config.federation.task
    if has_begun_for_nothing(store, name, parts.bundle.program):
        parts = _parts(config, engine, verify=True)  # as a first start does; it may refuse the model
        store.forget_task(name)
        logger.info("task %s: [model] has changed, and no round of training was done: the task begins anew", name)
    stored = stored_program(store, name)
    if stored is not None:
        check_same_model(config.model, parts.bundle.program, stored)
    program = stored or parts.bundle.program
    settings = task_settings(config, program)
    aggregator = Aggregator(program, settings.plan, parts.pipeline)
    memory = aggregator.initial_memory()
    initial = parts.bundle.parameters
    checkpoint = store.put_initial(
        name,
        program.encode(),
        encode_parameters(initial),
        pack_memory(memory),
        aggregator.broadcast(initial, memory),
        before_round=first_round(program, initial),
    )
    check_memory(config, memory, checkpoint.server_state)
    parameters = store.get_blob(checkpoint.parameters_digest) or b""
    worker = TaskWorker(store, name, aggregator, opening_pipeline(settings, aggregator))
    check_open_round(config, store, worker, (parameters, unpack_memory(checkpoint.server_state)))
    return PreparedTask(config, settings, program, worker, parts.evaluator, is_new=stored is None)
