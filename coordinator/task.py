"""What the coordinator's core must know of one task; made from ``federation.toml`` by ``setup.py``."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.schedules.selection import SelectionRule, Uniform
from coordinator.schedules.synchronous import RoundSettings
from coordinator.stopping import StoppingRule
from edge_sdk.wire.plan import Plan

__all__ = ["TaskSettings"]


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
        chunk_bytes_max: Largest range or chunk in one message, in bytes.
        update_bytes_max: Largest update accepted, in bytes.
        retained_blobs: ``auto``, ``always`` or ``never``.
        evaluate_every: Evaluate after every so many rounds, 0 for never.
        dense_bytes: Bytes of one update as dense float32, for comparison.
        seed: StableRandom the cohorts.
        rule: Who takes part.
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
    chunk_bytes_max: int = 58 * 1024
    update_bytes_max: int = 64 << 20
    retained_blobs: str = "auto"
    evaluate_every: int = 1
    dense_bytes: int = 0
    seed: int = 0
    rule: SelectionRule = Uniform()
