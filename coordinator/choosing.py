"""Who takes part, by the task's rule and what the database knows of those who ask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from coordinator.schedules.selection import Candidate, Choose, SelectionRule, Uniform, choose, select
from coordinator.store import DeviceRecord
from edge_sdk.errors import ConfigurationError

__all__ = ["chooser"]

logger = logging.getLogger(__name__)


def chooser(rule: SelectionRule, devices: Callable[[], Sequence[DeviceRecord]]) -> Choose:
    """How a round chooses.

    A rule of somebody's own that fails, or names others than those who ask, does not end the round: the failure is
    logged, and this round is chosen uniformly.

    Args:
        rule: The task's rule.
        devices: What is known of all devices; asked once a round, and not for the uniform rule.
    """
    if isinstance(rule, Uniform):
        return choose

    def chosen(names: Sequence[str], count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        wanted = set(names)
        known = {record.device: record for record in devices() if record.device in wanted}
        try:
            return select(rule, [_candidate(name, known.get(name)) for name in names], count, rng)
        except ConfigurationError as error:
            logger.error("%s; this round is chosen uniformly", error)
            return choose(names, count, rng)

    return chosen


def _candidate(name: str, known: DeviceRecord | None) -> Candidate:
    if known is None:
        return Candidate(name)
    return Candidate(name, known.capabilities, known.counted, known.refused, known.declined, known.late, known.missing)
