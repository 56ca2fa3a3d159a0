"""A thousand devices in virtual time, ten rounds, all faults on: ``edge-fleet scenario --devices 1000 --faults``."""

from __future__ import annotations

from typing import Final

from benchmarks.figures import Figure, at_most
from benchmarks.processes import run_code

__all__ = ["measure"]

DEVICES: Final = 1_000
ROUNDS: Final = 10
CPU_SECONDS: Final = 20.0
CODE: Final = """
import json, sys, time
from device_sim.scenario import FAULTY, Scenario, run
devices, rounds = int(sys.argv[1]), int(sys.argv[2])
goal = devices // 3
began = time.process_time()
outcome = run(Scenario(devices=devices, rounds=rounds, goal_count=goal, minimum_count=goal // 3, faults=FAULTY), 0)
print(json.dumps({"cpu": time.process_time() - began, "rounds": len(outcome.rounds), "messages": outcome.messages}))
"""


def measure() -> list[Figure]:
    """CPU seconds; a third of the devices close a round, as the command's default has it."""
    told = run_code(CODE, str(DEVICES), str(ROUNDS))
    if told["rounds"] != ROUNDS:
        raise RuntimeError(f"the scenario committed {told['rounds']} rounds")
    name = f"virtual time: {DEVICES} devices, {ROUNDS} rounds, faults on"
    return [
        at_most(f"{name}: CPU", told["cpu"], "s", CPU_SECONDS),
        Figure(f"{name}: messages that the broker took or delivered", told["messages"], "messages"),
    ]
