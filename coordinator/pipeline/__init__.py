"""From the bytes of updates to the next model: steps that a configuration composes, and a worker with a journal.

    decode -> check -> clip -> weigh -> add     for each update
    finish -> optimise -> publish -> commit     for each round

``aggregator`` is the pure part, ``worker`` the one with the database, ``step`` what a step is. A round in which devices
are asked for something else than an update of the model has another pure part beside ``aggregator``, with the same
methods (``round_pipeline``): ``feature_statistics``.
"""

from __future__ import annotations

from coordinator.pipeline.aggregator import Aggregator, PipelineSettings
from coordinator.pipeline.feature_statistics import FeatureStatistics
from coordinator.pipeline.memory import Memory, pack_memory, unpack_memory
from coordinator.pipeline.round_pipeline import Finished, RoundPipeline
from coordinator.pipeline.step import STEPS, Counted, DecodedUpdate, Step, make_step
from coordinator.pipeline.worker import TaskWorker

__all__ = [
    "STEPS",
    "Aggregator",
    "Counted",
    "DecodedUpdate",
    "FeatureStatistics",
    "Finished",
    "Memory",
    "PipelineSettings",
    "RoundPipeline",
    "Step",
    "TaskWorker",
    "make_step",
    "pack_memory",
    "unpack_memory",
]
