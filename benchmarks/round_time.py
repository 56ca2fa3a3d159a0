"""Wall time of a whole round: ten devices, a million parameters, replayed updates, no pacing.

Each device downloads the 4 MB of parameters for itself, as the retained pieces that the coordinator publishes, over a
connection of its own; all ten run in one process, the broker and the coordinator in others, on however many cores
there are. The first round (connecting, the program's download) is left out; medians of the next five.
"""

from __future__ import annotations

import statistics
from typing import Final

from benchmarks.federation import Federation
from benchmarks.figures import Figure, at_most
from benchmarks.vectors import GAUSSIAN_MODEL

__all__ = ["measure"]

DEVICES: Final = 10
ROUNDS: Final = 6
LAST_SECONDS: Final = 0.3
WHOLE_SECONDS: Final = 1.5
SECONDS_MAX: Final = 120.0


def measure() -> list[Figure]:
    """Seconds from the last trained update to the commit, and from the announcement to the commit."""
    with Federation(GAUSSIAN_MODEL, goal_count=DEVICES, rounds=ROUNDS, pause_seconds=1.0) as federation:
        coordinator = federation.serve()
        fleet = federation.fleet(DEVICES)
        coordinator.wait_for("round", SECONDS_MAX, count=ROUNDS)
        rounds = coordinator.all_of("round")
        fleet.wait_for("all_trained", 10.0, count=ROUNDS)
        trained = {told["round"]: told["at"] for told in fleet.all_of("all_trained")}
    if any(told["phase"] != "closed" for told in rounds):
        raise RuntimeError(f"a round was abandoned: {rounds}")
    rounds = rounds[1:]
    last = [told["marks"]["committed_at"] - trained[told["number"]] for told in rounds]
    whole = [told["marks"]["committed_at"] - told["started_at"] for told in rounds]
    name = f"round of {DEVICES} devices, 1,000,000 parameters"
    return [
        at_most(f"{name}: last update ready to commit_round", statistics.median(last), "s", LAST_SECONDS),
        at_most(f"{name}: announcement to commit_round", statistics.median(whole), "s", WHOLE_SECONDS),
        Figure(f"{name}: announcement to commit_round, slowest of {len(whole)}", max(whole), "s"),
    ]
