"""What the coordinator's core must know of one task; made from ``federation.toml`` by ``setup.py``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from coordinator.schedules.selection import SelectionRule, Uniform
from coordinator.schedules.synchronous import RoundSettings
from coordinator.stopping import StoppingRule
from edge_sdk.wire.plan import Plan

__all__ = ["OPENING_ROUND", "STATISTICS", "TRAINING", "TaskSettings"]

OPENING_ROUND: Final = 0
"""Training begins with round 1."""
TRAINING: Final = "training"
STATISTICS: Final = "statistics of the features"


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What the core must know of one task.

    Attributes:
        federation: Topic segment.
        task: Topic segment.
        round: Numbers of a round.
        plan: What devices are asked to do.
        stopping: When to end.
        program_digest: SHA-256 of the program, 32 bytes.
        requires: What a device must understand.
        fraction: Fraction of devices asked to check in, None for automatic.
        come_back_seconds: When those who were turned away ask again, if nothing is announced before; in seconds.
        jitter: Share by which that varies either way.
        pause_seconds: Between the end of a round and the next one, in seconds.
        retry_seconds: After an abandoned round, in seconds.
        retry_seconds_max: The longest such pause, in seconds; they grow while rounds fail for what is no chance.
        mended_by_attempts: Reasons for refusals that each attempt meets with a wider bound: no pause grows for them.
        chunk_bytes_max: Largest range or chunk in one message, in bytes.
        update_bytes_max: Largest update accepted, in bytes.
        retained_blobs: ``auto``, ``always`` or ``never``.
        inline_bytes_max: What leads a device to its parameters comes with the invite up to so many bytes. To ask for it
            takes some 150 bytes more, which pays where no more than one device in twenty declines.
        evaluate_every: Evaluate after every so many rounds, 0 for never.
        dense_bytes: Bytes of one update as dense float32, for comparison.
        seed: Draws the cohorts.
        rule: Chooses them.
        purpose: What a round is for, in words for people.
        opening: How round 0 differs, in which devices are asked for something before anything is trained; None where
            training begins at once.
    """

    federation: str
    task: str
    round: RoundSettings
    plan: Plan
    stopping: StoppingRule
    program_digest: bytes
    requires: tuple[str, ...] = ()
    fraction: float | None = None
    come_back_seconds: float = 900.0
    jitter: float = 0.2
    pause_seconds: float = 0.0
    retry_seconds: float = 30.0
    retry_seconds_max: float = 3600.0
    mended_by_attempts: tuple[str, ...] = ()
    chunk_bytes_max: int = 58 * 1024
    update_bytes_max: int = 64 << 20
    retained_blobs: str = "auto"
    inline_bytes_max: int = 4096
    evaluate_every: int = 1
    dense_bytes: int = 0
    seed: int = 0
    rule: SelectionRule = field(default_factory=Uniform)
    purpose: str = TRAINING
    opening: TaskSettings | None = None

    def in_round(self, number: int) -> TaskSettings:
        """The task as the round of this number has it."""
        return self.opening if number == OPENING_ROUND and self.opening is not None else self

    def plan_for(self, participation: float) -> Plan:
        """The plan of a round; a codec that chooses is told how often a device can expect to take part.

        Args:
            participation: Share of the rounds, 0 if unknown.
        """
        return replace(self.plan, codec=self.plan.codec.taking_part(participation))
