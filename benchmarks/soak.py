"""Many storms and every power cut, in virtual time: ``python -m benchmarks.soak --seeds 2000``.

Each seed is a small federation in its own bad weather; then one short run is repeated with a power cut at every place
where the power can fail. The invariants of ``device_sim.auditors.rounds`` hold, or the failure is printed with the one
command that plays it again (``--seed`` or ``--crash``, ``--verbose`` to see what each device does).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from device_sim.scenario import Outcome, Scenario, replay_command, run
from device_sim.trials import POWER_CUT_SEED, crash_points, power_cut, storm
from device_sim.world.crashes import CrashPlan

SECONDS_PER_RUN_MAX = 300
TWICE_EVERY = 25  # every so many storms one is played twice: the same bytes must come out


@dataclass(frozen=True)
class Task:
    """One run: a storm's seed, or a power cut."""

    seed: int
    crash: CrashPlan | None = None
    twice: bool = False

    @property
    def scenario(self) -> Scenario:
        return power_cut(self.crash) if self.crash is not None else storm(self.seed)


@dataclass
class Tally:
    """What came of all runs."""

    runs: int = 0
    storms: int = 0
    rounds: int = 0
    abandoned: int = 0
    counted: int = 0
    messages: int = 0
    power_cuts: int = 0
    virtual_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, task: Task, result: Outcome | str) -> None:
        self.runs += 1
        self.storms += task.crash is None
        if isinstance(result, str):
            self.failures.append(result)
            print(f"FAILED {result}", flush=True)
            return
        self.rounds += len(result.rounds)
        self.abandoned += result.abandoned
        self.counted += sum(verdicts["counted"] for verdicts in result.rounds)
        self.messages += result.messages
        self.power_cuts += result.crashes
        self.virtual_seconds += result.virtual_seconds

    def line(self, seconds: float, left_out: int) -> str:
        return (
            f"soak: {self.storms} storms and {self.runs - self.storms} planned power cuts, "
            f"{len(self.failures)} failures; "
            f"{self.rounds} rounds committed, {self.abandoned} abandoned, {self.counted} updates counted, "
            f"{self.messages} messages, {self.power_cuts} power cuts, {self.virtual_seconds / 3600:.1f} virtual hours "
            f"in {seconds:.0f} s" + (f"; {left_out} runs LEFT OUT: time was up" if left_out else "")
        )


def play(task: Task) -> Outcome | str:
    """The outcome, or the failure with the command that replays it."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"still running after {SECONDS_PER_RUN_MAX} s of real time")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_PER_RUN_MAX)
    scenario = task.scenario
    try:
        outcome = run(scenario, task.seed)
        if task.twice and run(scenario, task.seed) != outcome:
            raise AssertionError("the same seed gave another outcome")
        return outcome
    except Exception as error:
        return f"{type(error).__name__}: {error}\n    replay: {replay_command(scenario, task.seed)}"
    finally:
        signal.alarm(0)


def tasks(first: int, seeds: int, sample: int | None, tally: Tally) -> list[Task]:
    """All storms, then all power cuts (or a sample of so many a side)."""
    todo = [Task(seed, twice=seed % TWICE_EVERY == 0) for seed in range(first, first + seeds)]
    try:
        todo += [Task(POWER_CUT_SEED, crash=plan) for plan in crash_points(sample)]
    except Exception as error:
        tally.failures.append(str(error))
        print(f"FAILED before any power cut: {error}", flush=True)
    return todo


def soak(arguments: argparse.Namespace) -> Tally:
    """Plays everything, on all cores, within the time allowed."""
    began, tally = time.monotonic(), Tally()
    until = began + 60.0 * arguments.minutes_max
    todo = tasks(arguments.first, arguments.seeds, arguments.crash_sample, tally)
    queue = iter(todo)
    with ProcessPoolExecutor(arguments.jobs, initializer=quiet) as pool:
        running: dict[Future[Outcome | str], Task] = {}
        while True:
            while len(running) < 2 * arguments.jobs and time.monotonic() < until:
                task = next(queue, None)
                if task is None:
                    break
                running[pool.submit(play, task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                tally.add(running.pop(future), future.result())
                if tally.runs % 200 == 0:
                    print(tally.line(time.monotonic() - began, 0), flush=True)
    print(tally.line(time.monotonic() - began, len(todo) - tally.runs), flush=True)
    return tally


def quiet() -> None:
    logging.disable(logging.CRITICAL)


def crash_plan(text: str) -> CrashPlan:
    side, _, nth = text.partition(":")
    if side not in ("device", "coordinator") or not nth.isdecimal() or int(nth) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write device:<n> or coordinator:<n>, n from 1")
    return CrashPlan(side, int(nth))


def main() -> int:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=summary)
    parser.add_argument("--seeds", type=int, default=200, help="storms to play")
    parser.add_argument("--first", type=int, default=0, help="the first storm's seed")
    parser.add_argument("--crash-sample", type=int, default=None, help="power cuts a side; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--minutes-max", type=float, default=120.0, help="no new run begins after this time")
    parser.add_argument("--seed", type=int, help="replay one storm")
    parser.add_argument("--crash", type=crash_plan, help="replay one power cut, side:n")
    parser.add_argument("--verbose", action="store_true", help="with a replay: log what everybody does")
    arguments = parser.parse_args()
    if not arguments.verbose:
        quiet()
    if arguments.seed is None and arguments.crash is None:
        return 1 if soak(arguments).failures else 0
    task = Task(POWER_CUT_SEED, crash=arguments.crash) if arguments.crash else Task(arguments.seed)
    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    result = play(task)
    print(result)
    return 1 if isinstance(result, str) else 0


if __name__ == "__main__":
    sys.exit(main())
