"""What a configuration, a model and a database must have in common; a contradiction is refused with the keys' names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from coordinator.config import FederationConfig
from coordinator.config.settings import piece_bytes_max
from coordinator.pipeline import TaskWorker
from coordinator.pipeline.memory import Memory, unpack_memory
from coordinator.schedules.selection import wanted_count
from coordinator.store import Store, backup_path
from edge_sdk.aggregation.sums import FixedPoint
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import decode_frames, fitted_frames, frames_bytes_max
from edge_sdk.errors import ConfigurationError, ProtocolError, StateError
from edge_sdk.training.bundle import Program
from edge_sdk.wire.messages import Update
from edge_sdk.wire.ranges import CHUNK_BYTES_MAX
from edge_sdk.wire.wire_costs import UPDATE_HEAD_BYTES_MAX, Costs

__all__ = [
    "check_memory",
    "check_not_lost",
    "check_open_round",
    "check_quotas",
    "check_target",
    "check_update_budget",
    "fixed_point",
]

FRACTION_BITS: Final = 30
FRACTION_BITS_MIN: Final = 20
WEIGHT_SUM_MIN: Final = 1 << 20
"""A goal that is lowered while a round is open must still have room for what its journal holds."""
REFILL_FACTOR: Final = 2
"""Reserves are invited for those who decline or keep silent; twice the cohort is more than can report."""


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


def fixed_point(config: FederationConfig) -> FixedPoint:
    """Scale and bounds of the sums, such that no cohort can overflow them.

    Raises:
        ConfigurationError: Too few bits would be left for the fraction; the message names the keys.
    """
    examples_max = config.aggregation.examples_max if config.aggregation.weighting == "examples" else 1
    invited = wanted_count(config.selection.goal_count, config.selection.over_selection)
    weight_sum_max = max(WEIGHT_SUM_MIN, REFILL_FACTOR * examples_max * invited)
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


def check_quotas(config: FederationConfig, update_bytes_max: int) -> None:
    """One update must fit into a device's quota, and a cohort's updates into the journal.

    Raises:
        ConfigurationError: Names the quota, the bytes that are needed and what to do.
    """
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


def check_update_budget(config: FederationConfig, codec: CodecSettings, program: Program) -> None:
    """Some update must fit into ``codec.bytes_per_update_max``, or every device would decline.

    Raises:
        ConfigurationError: None does; names the bytes that are needed.
    """
    limit = config.codec.bytes_per_update_max
    if not limit:
        return
    costs = Costs(
        config.federation.name,
        config.federation.task,
        "d",
        chunk_bytes_max=min(CHUNK_BYTES_MAX, piece_bytes_max(config.transfer)),
    )
    left = costs.update_bytes_within(limit) - UPDATE_HEAD_BYTES_MAX
    if left > 0 and fitted_frames(program.spec, codec, left) is not None:
        return
    smallest = codec.with_codec(codec.codec.smallest())
    needed = costs.upload(frames_bytes_max(program.spec, smallest) + UPDATE_HEAD_BYTES_MAX)
    raise ConfigurationError(
        f"codec.bytes_per_update_max = {limit}: bringing an update of this model with codec.name = {codec.name!r} "
        f"takes {needed} bytes at least; raise it to that, or compress more"
    )


def check_target(config: FederationConfig, program: Program) -> None:
    """For a bundle: of a model of the zoo the configuration knows the metric by itself.

    Raises:
        ConfigurationError: No such value will ever be reached.
    """
    target = config.stopping.target_metric
    if target is not None and program.metric == "accuracy" and not 0 < target <= 1:
        raise ConfigurationError(f"stopping.target_metric = {target:g}: an accuracy is above 0 and at most 1")


def check_memory(config: FederationConfig, wanted: Memory, stored: bytes) -> None:
    """What the task remembers must be something that algorithm and server optimiser can go on with.

    A step that is new begins with nothing.

    Args:
        config: The configuration.
        wanted: What the configured parts remember before the first round.
        stored: The memory of the newest checkpoint.

    Raises:
        ConfigurationError: It is that of another algorithm or server optimiser.
    """
    found = unpack_memory(stored)
    aggregation = config.aggregation
    for part, key, value in (
        ("optimizer", "server_optimizer", aggregation.server_optimizer),
        ("algorithm", "algorithm", aggregation.algorithm),
    ):
        needs, has = wanted[part], found.get(part, {})
        if {name: vector.size for name, vector in needs.items()} != {name: vector.size for name, vector in has.items()}:
            raise ConfigurationError(
                f"aggregation.{key} = {value!r}: keeps {', '.join(needs) or 'no state'}, and the task was trained with "
                f"one that keeps {', '.join(has) or 'no state'}; put the former one back, or give the task a new name "
                "(federation.task)"
            )


def check_open_round(config: FederationConfig, store: Store, worker: TaskWorker, held: tuple[bytes, Memory]) -> None:
    """An open round holds updates as its devices were told to make them; they must still be of use.

    All of a round were made alike, so the first one tells.

    Args:
        config: The configuration.
        store: The database.
        worker: The task's worker, with the configured pipelines.
        held: The newest checkpoint's parameters blob, and what the pipeline remembered then.

    Raises:
        ConfigurationError: They are not.
    """
    record = store.open_round(config.federation.task)
    if record is None:
        return
    first = next(store.journalled(record.task, record.number, record.attempt), None)
    if first is None:
        return
    pipeline = worker.pipeline_of(record.number)
    try:
        if not pipeline.plan.without_parameters:
            decode_frames(Update.decode(first[3]).frames(), pipeline.plan.codec, pipeline.program.spec)
    except ProtocolError as error:
        raise ConfigurationError(
            f"codec: round {record.number} is open and holds updates of other codec settings ({error}); put the former "
            "[codec] table back until the round has ended, then change it"
        ) from error
    try:
        pipeline.begin(*held)
        pipeline.again(first[3])
    except StateError as error:
        raise ConfigurationError(f"aggregation: round {record.number}: {error}") from error
    finally:
        pipeline.close()
