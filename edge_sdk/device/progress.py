"""What a device tells the application that embeds it: what happened, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["WARNINGS", "Progress", "ProgressKind", "Status"]


class ProgressKind(StrEnum):
    """What happened. Each member is also its own text, so that it reads well in logs and compares with strings."""

    # The connection and the coordinator behind it
    ONLINE = "online"
    OFFLINE = "offline"
    CONNECTION_FAILED = "connection_failed"
    TAKEN_OVER = "taken_over"
    SUBSCRIPTION_REFUSED = "subscription_refused"
    PUBLISH_REFUSED = "publish_refused"
    NO_COORDINATOR = "no_coordinator"
    NO_TASK = "no_task"
    COORDINATOR_OFFLINE = "coordinator_offline"
    BAD_MESSAGE = "bad_message"
    ROUNDS_FAIL = "rounds_fail"

    # A check-in and its answer
    NO_ANSWER = "no_answer"
    COME_BACK = "come_back"
    INVITED = "invited"

    # An invite that this device does not take
    NOT_ELIGIBLE = "not_eligible"
    UNSETTLED = "unsettled"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    BYTES_PER_UPDATE = "bytes_per_update"
    BYTES_PER_DAY = "bytes_per_day"

    # The work
    BAD_DIGEST = "bad_digest"
    DELTAS_APPLIED = "deltas_applied"
    DELTAS_FAILED = "deltas_failed"
    TRAINING = "training"
    STEP = "step"
    TRAINED = "trained"
    TRAINING_FAILED = "training_failed"
    DROPPED = "dropped"

    # The update
    BUSY = "busy"
    RECEIVED = "received"  # left out where the outcome follows within seconds: it says that too
    COUNTED = "counted"
    NOT_COUNTED = "not_counted"
    REFUSED = "refused"

    # This device's own trouble
    ACTION_FAILED = "action_failed"
    STATE_FAILED = "state_failed"


WARNINGS: Final = frozenset(
    {
        ProgressKind.ACTION_FAILED,
        ProgressKind.BAD_DIGEST,
        ProgressKind.BAD_MESSAGE,
        ProgressKind.BYTES_PER_DAY,
        ProgressKind.BYTES_PER_UPDATE,
        ProgressKind.CONNECTION_FAILED,
        ProgressKind.DELTAS_FAILED,
        ProgressKind.NO_COORDINATOR,
        ProgressKind.NO_TASK,
        ProgressKind.PUBLISH_REFUSED,
        ProgressKind.REFUSED,
        ProgressKind.STATE_FAILED,
        ProgressKind.SUBSCRIPTION_REFUSED,
        ProgressKind.TAKEN_OVER,
        ProgressKind.TOO_LARGE,
        ProgressKind.TRAINING_FAILED,
        ProgressKind.UNSUPPORTED,
    }
)
"""What somebody should look at: it is logged as a warning and shown as ``Status.error``."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Something happened.

    Attributes:
        what: What it was.
        detail: A sentence for people, or "".
        round: The round's number, 0 where there is none.
        steps: Optimiser steps done, with ``ProgressKind.STEP``.
        loss: The loss of the last step, with ``ProgressKind.STEP``.
    """

    what: ProgressKind
    detail: str = ""
    round: int = 0
    steps: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The device at a glance, for the embedding app. Counters are since the start of the process.

    Bytes are those on the wire, with all that MQTT adds; ``bytes_today`` are both ways together, with the estimate for
    TLS, and survive a restart. ``bytes_per_day_max`` is 0 where there is no limit.
    """

    connected: bool = False
    phase: str = "idle"
    round: int = 0
    counted: int = 0
    not_counted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_today: int = 0
    bytes_per_day_max: int = 0
    last_loss: float | None = None
    last_outcome: str = ""
    error: str = ""
