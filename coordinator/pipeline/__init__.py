"""From the bytes of updates to the next model: steps that a configuration composes, and a worker with a journal.

    decode -> check -> clip -> weigh -> add     for each update
    finish -> optimise -> publish -> commit     for each round

``aggregator`` is the pure part, ``worker`` the one with the database, ``step`` what a step is.
"""

from __future__ import annotations

from coordinator.pipeline.aggregator import Aggregator, Finished, PipelineSettings
from coordinator.pipeline.memory import Memory, pack_memory, unpack_memory
from coordinator.pipeline.step import STEPS, Counted, DecodedUpdate, Step, make_step
from coordinator.pipeline.worker import TaskWorker

__all__ = [
    "STEPS",
    "Aggregator",
    "Counted",
    "DecodedUpdate",
    "Finished",
    "Memory",
    "PipelineSettings",
    "Step",
    "TaskWorker",
    "make_step",
    "pack_memory",
    "unpack_memory",
]
