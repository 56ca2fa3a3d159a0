"""How round 0 of a task differs, in which devices report sums of their features before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from coordinator.task_settings import TaskSettings
from edge_sdk.codecs import CodecSettings
from edge_sdk.training.algorithms.table import FEATURE_STATISTICS
from edge_sdk.training.feature_sums import FEATURE_BYTES
from edge_sdk.training.program import Program

__all__ = ["statistics_round"]

HEAD_BYTES_MAX: Final = 1024
"""Beside its arrays a report holds a few numbers and names."""


def statistics_round(settings: TaskSettings, program: Program, minimum_count: int | None = None) -> TaskSettings | None:
    """The task as its round of statistics has it; None where the model is not normalised by all devices together.

    Devices fetch the program alone, and what they report is small: there is no pause behind it.

    Args:
        settings: The task as rounds of training have it.
        program: Its program.
        minimum_count: Devices whose sums are needed; None for as many as a round of training needs.
    """
    normalise = program.normalise
    if normalise is None or normalise.mode != "federated":
        return None
    plan = replace(
        settings.plan,
        codec=CodecSettings("dense"),
        local=FEATURE_STATISTICS,
        local_settings={},
        without_parameters=True,
    )
    minimum = settings.round.minimum_count if minimum_count is None else minimum_count
    return replace(
        settings,
        round=replace(settings.round, minimum_count=minimum, goal_count=max(minimum, settings.round.goal_count)),
        plan=plan,
        requires=(*plan.requires, *program.requires),
        pause_seconds=0.0,
        update_bytes_max=FEATURE_BYTES * normalise.features + HEAD_BYTES_MAX,
        dense_bytes=0,
        purpose="statistics of the features",
    )
