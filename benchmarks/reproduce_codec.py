"""``make reproduce-codec``: accuracy against bytes on every task, with every codec, in pairs over seeds.

    python -m benchmarks.reproduce_codec runs/codec                # what is missing there, then table and picture
    python -m benchmarks.reproduce_codec runs/codec --tasks har gru --seeds 0 --budget-minutes 10
    python -m benchmarks.reproduce_codec runs/codec --report-only

A run is one line of JSON in ``results.jsonl`` of the folder, and is not repeated while its task and method are what
they were; ``--again 'sparse-*'`` drops lines first. Without ``--no-report`` the results are then written to
``docs/codec-results.json``, ``docs/codec-results.md`` and ``docs/images/codec.png``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.codec_methods import METHODS, SEEDS, make_method
from benchmarks.codec_report import ADVICE, PAGE, PICTURE, draw, page
from benchmarks.codec_results import Job, commit, committed, load
from benchmarks.codec_run import run
from benchmarks.codec_tasks import TASKS, federation

__all__ = ["main"]


def jobs(tasks: list[str], seeds: list[int] | None, patterns: list[str]) -> Iterator[Job]:
    """All runs asked for, seed by seed, so that an early end leaves whole seeds."""
    for seed, task in product(seeds or range(max(SEEDS.values())), tasks):
        for method in METHODS[task] if seeds or seed < SEEDS[task] else ():
            if any(fnmatch.fnmatch(method, pattern) for pattern in patterns):
                yield task, seed, method


def perform(job: Job) -> dict[str, Any]:
    """One run as its line."""
    task, seed, method = job
    how = make_method(method, TASKS[task])
    record = run(federation(task, seed), how)
    what = {"task": task, "seed": seed, "method": method, "facts": TASKS[task].facts(), "codec": how.facts()}
    return {**what, **record.to_json()}


def perform_all(wanted: list[Job], path: Path, processes: int, budget_seconds: float) -> None:
    """Appends a line for each run; begins none after the budget is spent."""
    over = time.monotonic() + budget_seconds
    with ProcessPoolExecutor(processes) as pool, path.open("a") as sink:
        waiting = list(reversed(wanted))
        running = {pool.submit(perform, waiting.pop()) for _ in range(min(processes, len(waiting)))}
        while running:
            done = next(as_completed(running))
            running.remove(done)
            entry = done.result()
            sink.write(json.dumps(entry) + "\n")
            sink.flush()
            result = f"{100 * entry['accuracy']:.2f} %"
            if TASKS[entry["task"]].by_rmse:
                result = f"RMSE {-entry['accuracy']:.4f}"
            print(
                f"{entry['task']:14} seed {entry['seed']} {entry['method']:20} {result}"
                f"  {4 * entry['parameters'] / entry['up_bytes']:.0f}x  {entry['seconds']:.0f} s",
                flush=True,
            )
            if waiting and time.monotonic() < over:
                running.add(pool.submit(perform, waiting.pop()))


def report(runs: Iterable[dict[str, Any]]) -> None:
    """Raw results, table and picture into ``docs``."""
    commit(runs)
    kept = committed()
    PAGE.write_text(page(kept, ADVICE.read_text()))
    draw(kept, PICTURE)


def _facts_today(found: dict[str, Any]) -> dict[str, Any]:
    task = TASKS[found["task"]]
    return {"facts": task.facts(), "codec": make_method(found["method"], task).facts()}


def main() -> None:
    """Runs what is missing and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce_codec", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="where the raw results are, or will be")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=["*"], help="patterns, such as 'eden-*'")
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 3, and 5 on UCI HAR")
    parser.add_argument("--again", nargs="+", default=[], help="patterns of methods whose results are dropped first")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="no run begins after this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--from-committed", action="store_true", help="take the committed runs as done")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--no-report", action="store_true", help="leave docs/ as it is")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "results.jsonl"
    if arguments.from_committed:
        # A committed run holds for what its task and method are called today: how they are written down may change.
        lines = [json.dumps({**found, **_facts_today(found)}) + "\n" for found in committed()]
        path.write_text("".join(lines) + (path.read_text() if path.is_file() else ""))
    known = load(path)
    dropped = {job for job in known if any(fnmatch.fnmatch(job[2], pattern) for pattern in arguments.again)}
    if dropped:
        kept = [entry for job, entry in known.items() if job not in dropped]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    wanted = [
        job for job in jobs(arguments.tasks, arguments.seeds, arguments.methods) if job not in known or job in dropped
    ]
    if not arguments.report_only:
        perform_all(wanted, path, arguments.processes, 60 * arguments.budget_minutes)
    if not arguments.no_report:
        report(load(path).values())


if __name__ == "__main__":
    main()
