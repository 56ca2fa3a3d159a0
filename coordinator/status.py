"""What people see of a task, from one place: for the record of a round and for the retained JSON."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.schedules.schedule import Schedule
from coordinator.task_settings import TaskSettings
from edge_sdk.wire.outcomes import ACCEPTED, ADMITTED, COUNTED, INVITED, JOURNALLED, VERDICTS

__all__ = ["RoundFigures", "TaskStatus", "rounded"]

RECENT_ROUNDS: Final = 8


@dataclass(slots=True)
class RoundFigures:
    """Bytes (as payloads) and seconds of the round that is open.

    Attributes:
        began: When it began, on the clock of ``now``.
        sent_before: What had been sent when it began, in bytes.
        up: Bytes of chunks that have arrived.
        fanned_out: Bytes that the invited devices fetch from retained pieces, which are sent once.
        inline: Bytes that invites have brought themselves.
        saved: Bytes that model deltas have saved, for those who have accepted.
        saves: The same by ticket, for those who have not accepted yet.
        phase_seconds: Seconds by phase.
    """

    began: float = 0.0
    sent_before: int = 0
    up: int = 0
    fanned_out: int = 0
    inline: int = 0
    saved: int = 0
    saves: dict[bytes, int] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)

    def leave_phase(self, phase: str, now: float) -> None:
        """A phase is over."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + now - self.began
        self.began = now

    def accepted(self, ticket: bytes) -> None:
        """A device has taken its ticket: what its model deltas save counts from now on."""
        self.saved += self.saves.pop(ticket, 0)

    def invited(self, ticket: bytes, *, whole: int, fetched: int, retained: bool, inline: bool) -> None:
        """A device has been invited; of parameters of ``whole`` bytes it gets ``fetched``."""
        self.saves[ticket] = whole - fetched
        if inline:
            self.inline += fetched
        elif retained:
            self.fanned_out += fetched


class TaskStatus:
    """A task at a glance.

    Args:
        settings: The task.
        incarnation: This start's number.
    """

    def __init__(self, settings: TaskSettings, incarnation: int) -> None:
        self._settings = settings
        self._round = settings
        self._incarnation = incarnation
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_ROUNDS)
        self.figures = RoundFigures()

    def begin(self, settings: TaskSettings, now: float, bytes_sent: int) -> None:
        """A round begins, or goes on after a restart; ``settings`` are those of this round."""
        self._round = settings
        self.figures = RoundFigures(began=now, sent_before=bytes_sent)

    def ended(self, number: int, summary: dict[str, Any], metrics: dict[str, float]) -> None:
        """A round was committed."""
        self._recent.append({"round": number, **summary, "metrics": rounded(metrics)})

    def evaluated(self, number: int, metrics: dict[str, float]) -> None:
        """The metrics of the newest round are complete."""
        if self._recent and self._recent[-1]["round"] == number:
            self._recent[-1]["metrics"] = rounded(metrics)

    def of_round(self, schedule: Schedule, bytes_sent: int) -> dict[str, Any]:
        """What is kept of a round: counts that partition, bytes, seconds by phase.

        Args:
            schedule: The round.
            bytes_sent: Payload bytes of downloads since the start of the process.
        """
        counts, figures = schedule.counts(), self.figures
        reported = counts[JOURNALLED] + counts[COUNTED]
        # Retained pieces are sent once, and the broker delivers them to each who asks.
        down = max(bytes_sent - figures.sent_before, figures.fanned_out) + figures.inline
        return {
            "purpose": self._round.purpose,
            "checked_in": counts["candidates"],
            INVITED: counts["tickets"],
            "at_work": counts[ACCEPTED] + counts[ADMITTED],
            "committed": reported,
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "bytes_up": figures.up,
            "bytes_down": down,
            "bytes_down_dense": down + figures.saved,
            "bytes_up_dense": reported * self._round.dense_bytes,
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
        bytes_sent: int,
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
            **(self.of_round(schedule, bytes_sent) if schedule else {}),
            "metrics": rounded(metrics),
            "recent": list(self._recent),
            "best": best,
            "model": model,
            "refused_messages": refused_messages,
        }


def rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as people read them; None for what is no number, which JSON does not know."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in metrics.items()}
