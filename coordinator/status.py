"""What people see of a task, from one place: for the record of a round and for the retained JSON."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.schedules.schedule import Schedule
from coordinator.task_settings import TaskSettings
from coordinator.wire_meter import WireMeter
from edge_sdk.wire.outcomes import ACCEPTED, ADMITTED, COUNTED, INVITED, JOURNALLED, VERDICTS
from edge_sdk.wire.topics import Topics

__all__ = ["RoundFigures", "TaskStatus", "rounded"]

RECENT_ROUNDS: Final = 8


@dataclass(slots=True)
class RoundFigures:
    """Bytes and seconds of the round that is open.

    Attributes:
        began: When its phase began, on the clock of ``now``.
        update_bytes: Bytes of updates that have arrived.
        model_bytes: Bytes of model deltas and parameters that those get who have accepted.
        model_bytes_dense: What whole parameters would be for the same devices.
        waiting: By ticket, for those who have not accepted yet: the latter two, and what they read of retained pieces.
        phase_seconds: Seconds by phase.
    """

    began: float = 0.0
    update_bytes: int = 0
    model_bytes: int = 0
    model_bytes_dense: int = 0
    waiting: dict[bytes, tuple[int, int, tuple[int, ...]]] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)

    def leave_phase(self, phase: str, now: float) -> None:
        """A phase is over."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + now - self.began
        self.began = now

    def invited(self, ticket: bytes, fetched: int, whole: int, reads: tuple[int, ...]) -> None:
        """A device has been invited; of parameters of ``whole`` bytes it gets ``fetched``.

        ``reads`` are the bytes of each blob that it reads from retained pieces.
        """
        self.waiting[ticket] = fetched, whole, reads

    def accepted(self, ticket: bytes) -> tuple[int, ...]:
        """A device has taken its ticket: what it gets counts from now on; returns what it reads."""
        fetched, whole, reads = self.waiting.pop(ticket, (0, 0, ()))
        self.model_bytes += fetched
        self.model_bytes_dense += whole
        return reads


class TaskStatus:
    """A task at a glance.

    Args:
        settings: The task.
        incarnation: This start's number.

    Attributes:
        meter: All bytes between the broker and the task's devices.
    """

    def __init__(self, settings: TaskSettings, incarnation: int) -> None:
        self.meter = WireMeter(Topics(settings.federation))
        self._told = (0, 0)  # what the meter showed when the last round ended
        self._settings = settings
        self._round = settings
        self._incarnation = incarnation
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROUNDS)
        self.figures = RoundFigures()

    def begin(self, settings: TaskSettings, now: float) -> None:
        """A round begins, or goes on after a restart; ``settings`` are those of this round."""
        self._round = settings
        self.figures = RoundFigures(began=now)

    def ended(self, number: int, summary: dict[str, Any], metrics: dict[str, float]) -> None:
        """A round was committed."""
        self._recent.append({"round": number, **summary, "metrics": rounded(metrics)})

    def evaluated(self, number: int, metrics: dict[str, float]) -> None:
        """The metrics of the newest round are complete."""
        if self._recent and self._recent[-1]["round"] == number:
            self._recent[-1]["metrics"] = rounded(metrics)

    def end_round(self, schedule: Schedule) -> dict[str, Any]:
        """What is kept of a round that ends now; the bytes of what follows are those of the next one."""
        summary = self.of_round(schedule)
        self._told = self.meter.up, self.meter.down
        return summary

    def of_round(self, schedule: Schedule) -> dict[str, Any]:
        """What is kept of a round: counts that partition, bytes, seconds by phase.

        ``bytes_up`` and ``bytes_down`` are all bytes on the wire since the round before has ended; beside them stands
        what dense float32 updates and whole parameters alone would have been.
        """
        counts, figures = schedule.counts(), self.figures
        reported = counts[JOURNALLED] + counts[COUNTED]
        return {
            "purpose": self._round.purpose,
            "checked_in": counts["candidates"],
            INVITED: counts["tickets"],
            "at_work": counts[ACCEPTED] + counts[ADMITTED],
            "committed": reported,
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "bytes_up": self.meter.up - self._told[0],
            "bytes_up_dense": reported * self._round.dense_bytes,
            "bytes_down": self.meter.down - self._told[1],
            "bytes_down_dense": figures.model_bytes_dense,
            "update_bytes": figures.update_bytes,
            "model_bytes": figures.model_bytes,
            "phase_seconds": {phase: round(seconds, 3) for phase, seconds in figures.phase_seconds.items()},
        }

    def now(
        self,
        *,
        number: int,
        attempt: int,
        schedule: Schedule | None,
        finished: str | None,
        waits_for: str,
        metrics: dict[str, float],
        best: float | None,
        refused_messages: dict[str, int],
        model: dict[str, Any],
        now: float,
    ) -> dict[str, Any]:
        """What the retained JSON of the round says: plain numbers and words."""
        s = self._settings
        return {
            "incarnation": self._incarnation,
            "federation": s.federation,
            "task": s.task,
            "round": number,
            "attempt": attempt,
            "rounds_max": s.stopping.rounds_max,
            "phase": "done" if finished else (schedule.phase if schedule else "waiting"),
            "reason": finished or waits_for,
            "remaining_seconds": round(schedule.seconds_remaining(now), 1) if schedule else 0.0,
            "goal_count": self._round.round.goal_count,
            **(self.of_round(schedule) if schedule else {}),
            "metrics": rounded(metrics),
            "recent": list(self._recent),
            "best": best,
            "model": model,
            "refused_messages": refused_messages,
        }


def rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as people read them; None for what is no number, which JSON does not know."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in metrics.items()}
