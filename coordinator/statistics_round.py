"""How round 0 of a task differs, in which devices report sums of their features before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.pipeline import Aggregator, FeatureStatistics
from coordinator.task_settings import OPENING_ROUND, STATISTICS, TaskSettings
from edge_sdk.codecs import CodecSettings
from edge_sdk.training.algorithms.table import FEATURE_STATISTICS
from edge_sdk.training.feature_sums import FEATURE_BYTES
from edge_sdk.training.program import Program
from edge_sdk.wire.plan import Plan

__all__ = ["first_round", "opening_pipeline", "statistics_plan", "statistics_round"]

HEAD_BYTES_MAX: Final = 1024
"""Beside its arrays a report holds a few numbers and names."""


def first_round(program: Program, vector: NDArray[np.float32]) -> int:
    """Number of a task's first round: 1, or 0 where devices are asked for statistics before training.

    They are asked where the model is normalised by all devices together, and brings no mean and scale yet: one that was
    trained before keeps those that it was trained with.

    Args:
        program: The program.
        vector: float32[P], the parameters that the task begins with.
    """
    normalise = program.normalise
    if normalise is None or normalise.mode != "federated":
        return OPENING_ROUND + 1
    tensors = program.spec.unflatten(vector)
    unknown = (tensors[normalise.mean] == 0.0).all() and (tensors[normalise.scale] == 1.0).all()
    return OPENING_ROUND if unknown else OPENING_ROUND + 1


def statistics_plan(plan: Plan) -> Plan:
    """What devices are asked to do in it, where ``plan`` is what they do in rounds of training."""
    return replace(
        plan, codec=CodecSettings("dense"), local=FEATURE_STATISTICS, local_settings={}, without_parameters=True
    )


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
    plan = statistics_plan(settings.plan)
    minimum = settings.round.minimum_count if minimum_count is None else minimum_count
    return replace(
        settings,
        round=replace(settings.round, minimum_count=minimum, goal_count=max(minimum, settings.round.goal_count)),
        plan=plan,
        requires=(*plan.requires, *program.requires),
        pause_seconds=0.0,
        update_bytes_max=FEATURE_BYTES * sum(told.features for told in program.normalised) + HEAD_BYTES_MAX,
        dense_bytes=0,
        purpose=STATISTICS,
    )


def opening_pipeline(settings: TaskSettings, training: Aggregator) -> FeatureStatistics | None:
    """The pipeline of round 0; None where there is no such round.

    Args:
        settings: The task.
        training: The pipeline of the rounds that follow.
    """
    return None if settings.opening is None else FeatureStatistics(settings.opening.plan, training)
