"""The numbers of a synchronous round."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RoundSettings"]


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The numbers of a round.

    Attributes:
        goal_count: Updates after which the round closes.
        minimum_count: Updates below which it is abandoned.
        over_selection: Invited / goal, at least 1.
        window_seconds: Check-ins are spread over this many seconds; nobody is chosen before it ends, unless everybody
            who is expected has come.
        gather_seconds: As long, at least, check-ins are waited for, however short the window: else those who answer
            first would be chosen in every round.
        selection_seconds_max: Limit of the selection phase, in seconds.
        configuration_seconds_max: Limit of the configuration phase, in seconds.
        reporting_seconds_max: Limit of the reporting phase, in seconds.
    """

    goal_count: int
    minimum_count: int
    over_selection: float = 1.3
    window_seconds: float = 10.0
    gather_seconds: float = 2.0
    selection_seconds_max: float = 600.0
    configuration_seconds_max: float = 30.0
    reporting_seconds_max: float = 600.0
