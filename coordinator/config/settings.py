"""From the configuration to the settings that the machines take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from coordinator.config.sections import (
    Aggregation,
    Broker,
    DownlinkSection,
    FederationConfig,
    Selection,
    Transfer,
    Validation,
)
from coordinator.downlink import ADAPTIVE, PLAIN, Downlink
from coordinator.pipeline.step import Step, make_step
from coordinator.schedules.synchronous import RoundSettings
from coordinator.server_optimizers import ServerOptimizer, make_server_optimizer
from coordinator.stopping import StoppingRule
from coordinator.validate import Validation as Bounds
from edge_sdk.aggregation.algorithm import Algorithm, make_algorithm
from edge_sdk.codecs import CodecSettings, find_codec
from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt import BrokerSettings, TlsSettings
from edge_sdk.wire.envelope import ENVELOPE_BYTES_MAX
from edge_sdk.wire.plan import Plan, TrainingPlan

__all__ = [
    "algorithm",
    "broker_settings",
    "check_algorithm",
    "codec_settings",
    "database_path",
    "downlink",
    "piece_bytes_max",
    "pipeline_steps",
    "plan",
    "round_settings",
    "server_optimizer",
    "stopping_rule",
    "store_limits",
    "training_plan",
    "validation_bounds",
]

ADAPTIVE_OPTIMIZERS: Final = ("adam", "adamw", "rmsprop")


def training_plan(config: FederationConfig, defaults: dict[str, float]) -> TrainingPlan:
    """What a device does in one round.

    Args:
        config: The configuration.
        defaults: The program's scalars and their defaults; the configuration overrides them.

    Raises:
        ConfigurationError: The configuration sets a scalar that the program does not have.
    """
    training = config.training
    given = {"lr": training.learning_rate, "momentum": training.momentum, "mu": training.proximal_mu}
    scalars = {name: value for name, value in given.items() if value is not None} | training.scalars
    keys = {"lr": "learning_rate", "momentum": "momentum", "mu": "proximal_mu"}
    for name in scalars.keys() - defaults.keys():
        key = keys.get(name, f"scalars.{name}")
        has = ", ".join(sorted(defaults)) or "none"
        raise ConfigurationError(f"training.{key}: the model has no scalar {name!r}; its scalars are {has}")
    return TrainingPlan(
        epochs=training.epochs,
        batch_size=training.batch_size,
        steps_max=training.steps_max,
        seconds_max=training.seconds_max,
        scalars={**defaults, **scalars},
        held_out=config.evaluation.held_out.share,
        held_out_last=config.evaluation.held_out.last,
        clip_norm=training.clip_norm,
    )


def plan(config: FederationConfig, defaults: dict[str, float]) -> Plan:
    """What a round asks of a device; arguments as of :func:`training_plan`.

    Raises:
        ConfigurationError: As of :func:`training_plan` and :func:`algorithm`, or the two do not go together.
    """
    training, rule = training_plan(config, defaults), algorithm(config)
    rule.suits(training.scalars)
    return Plan(
        training=training,
        local=rule.local,
        local_settings=rule.local_settings(),
        codec=codec_settings(config),
        examples_max=config.aggregation.examples_max,
        weighting=config.aggregation.weighting,
        bytes_per_update_max=config.codec.bytes_per_update_max,
        bytes_per_device_per_day_max=config.transfer.bytes_per_device_per_day_max,
    )


def codec_settings(config: FederationConfig) -> CodecSettings:
    """How updates are encoded; what the configuration leaves open may follow from the size of a round."""
    codec = config.codec
    kind = find_codec(codec.name)
    adaptive = config.aggregation.server_optimizer != "fedavg" or config.model.optimizer in ADAPTIVE_OPTIMIZERS
    rules = [(pattern, CodecSettings(rule.name, **rule.own)) for pattern, rule in codec.tensors.items()]
    own = {**kind.for_cohort(config.selection.goal_count, adaptive), **codec.own}
    return CodecSettings(kind.name, tensors=tuple(rules), **own)


def downlink(section: DownlinkSection, optimizer: ServerOptimizer) -> Downlink:
    """How the model travels to devices.

    Args:
        section: The table of the configuration.
        optimizer: The server optimiser; one with a state pushes on by itself.
    """
    if section.codec == "none":
        return Downlink()
    auto = ADAPTIVE if optimizer.init(1) else PLAIN
    if section.codec == "sparse":
        auto = replace(auto, density=section.density)
    return replace(auto, deltas_max=section.deltas_max)


def round_settings(selection: Selection) -> RoundSettings:
    """The numbers of a round."""
    return RoundSettings(
        goal_count=selection.goal_count,
        minimum_count=selection.minimum_count,
        over_selection=selection.over_selection,
        window_seconds=selection.window_seconds,
        gather_seconds=selection.gather_seconds,
        selection_seconds_max=selection.selection_seconds_max,
        configuration_seconds_max=selection.configuration_seconds_max,
        reporting_seconds_max=selection.reporting_seconds_max,
    )


def algorithm(config: FederationConfig) -> Algorithm:
    """How updates become one delta.

    Raises:
        ConfigurationError: The name or an option is wrong, or it cannot work with the other tables.
    """
    name = config.aggregation.algorithm
    made = make_algorithm(name, config.aggregation.options)
    check_algorithm(made, name, config)
    return made


def check_algorithm(made: Algorithm, name: str, config: FederationConfig) -> None:
    """Whether an algorithm, whatever it was made of, can work with the other tables.

    Raises:
        ConfigurationError: It cannot; says with which key, and what to do.
    """
    aggregation = config.aggregation
    if not made.uses_weights and "weighting" in aggregation.model_fields_set and aggregation.weighting == "examples":
        raise ConfigurationError(
            f'aggregation.weighting = "examples": {name} counts every update alike; leave the key out'
        )
    partial = [(where, codec) for where, codec in _codecs(config) if not find_codec(codec).sends_all]
    if made.every_coordinate and partial:
        raise ConfigurationError(
            f'{partial[0][0]} = "{partial[0][1]}": with aggregation.algorithm = {name!r} most coordinates would be '
            "those of devices that did not send them, which are zero; choose a codec that sends every coordinate, "
            "such as int8"
        )


def _codecs(config: FederationConfig) -> list[tuple[str, str]]:
    """Every codec that the configuration names, and where."""
    rules = [(f'codec.tensors."{pattern}".name', rule.name) for pattern, rule in config.codec.tensors.items()]
    return [("codec.name", config.codec.name), *rules]


def pipeline_steps(aggregation: Aggregation) -> tuple[tuple[str, Step], ...]:
    """The steps that updates pass, each under the name that it remembers by.

    Raises:
        ConfigurationError: A name or a setting is wrong.
    """
    steps: dict[str, Step] = {}
    for table in aggregation.step:
        made = make_step(table.name, table.settings)
        same = sum(name.split("#")[0] == table.name for name in steps)
        steps[f"{table.name}#{same + 1}" if same else table.name] = made
    return tuple(steps.items())


def server_optimizer(aggregation: Aggregation) -> ServerOptimizer:
    """The server optimiser; what the configuration leaves open is its own default.

    Raises:
        ConfigurationError: It is the user's own, and cannot be made.
    """
    return make_server_optimizer(aggregation.server_optimizer, **aggregation.server_settings)


def stopping_rule(config: FederationConfig, metric: str) -> StoppingRule:
    """When to end, by the program's metric."""
    stopping = config.stopping
    return StoppingRule(
        rounds_max=stopping.rounds_max,
        metric=metric,
        target=stopping.target_metric,
        patience=stopping.patience,
        min_delta=stopping.min_delta,
        divergence_rounds=stopping.divergence_rounds,
        divergence_factor=stopping.divergence_factor,
        judged_late=config.evaluation.data is None,
    )


def validation_bounds(validation: Validation, *, size: int, examples_max: int) -> Bounds:
    """The gate for updates of ``size`` elements."""
    return Bounds(
        size=size,
        value_max=validation.value_max,
        loss_max=validation.loss_max,
        norm_max=validation.norm_max,
        norm_median_factor=validation.norm_median_factor,
        examples_max=examples_max,
    )


def broker_settings(broker: Broker, **settings: Any) -> BrokerSettings:
    """How to reach the broker; the password is read from its file now.

    Args:
        broker: The table of the configuration.
        settings: Further fields of :class:`BrokerSettings`: ``client_id``, ``will``, ``in_flight_max``, ...

    Raises:
        ConfigurationError: The password's file cannot be read or is empty, or the address makes no sense.
    """
    fields: dict[str, Any] = {
        "username": broker.username,
        "password": None if broker.password_file is None else _password(broker.password_file),
        "keepalive_seconds": broker.keepalive_seconds,
        "protocol": broker.protocol,
        **settings,
    }
    files = {"ca_file": broker.ca_file, "cert_file": broker.cert_file, "key_file": broker.key_file}
    given = {name: str(path) for name, path in files.items() if path is not None}
    if given:
        fields["tls"] = TlsSettings(**given)
    if broker.host is None:
        return BrokerSettings.parse(broker.url, **fields)
    return BrokerSettings(host=broker.host, port=broker.port or (8883 if given else 1883), **fields)


def database_path(config: FederationConfig) -> Path:
    """The database of the task: its own, or that of all tasks of one file."""
    federation = config.federation
    return federation.state_dir / f"{federation.database or f'{federation.name}-{federation.task}'}.db"


def piece_bytes_max(transfer: Transfer) -> int:
    """The largest range of bytes that fits into one message beside its envelope."""
    return transfer.chunk_bytes_max - ENVELOPE_BYTES_MAX


def store_limits(config: FederationConfig) -> dict[str, int]:
    """The keyword arguments of ``Store`` that the configuration sets."""
    return {
        "partial_bytes_max": config.transfer.partial_bytes_max,
        "partial_bytes_per_device_max": config.transfer.partial_bytes_per_device_max,
        "journal_bytes_max": config.transfer.journal_bytes_max,
        "checkpoints_kept": config.store.checkpoints_kept,
        "tombstone_days": config.store.tombstone_days,
    }


def _password(path: Path) -> str:
    try:
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"broker.password_file: {path} cannot be read ({error}); check its owner and mode"
        ) from None
    if not first:
        raise ConfigurationError(f"broker.password_file: the first line of {path} is empty; write the password there")
    return first
