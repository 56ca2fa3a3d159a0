"""Fresh processes: start one, exchange JSON lines with it, read its CPU time and peak memory."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

__all__ = ["ENVIRONMENT", "ROOT", "Child", "peak_bytes", "run_code", "tell"]

ROOT: Final = Path(__file__).resolve().parents[1]
ENVIRONMENT: Final = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
STOP_SECONDS: Final = 30.0


def peak_bytes() -> int:
    """This process's peak resident memory.

    Not ``ru_maxrss``: that one is handed on by the parent, and a large parent would be measured instead.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status says nothing of VmHWM")


def run_code(code: str, *arguments: str) -> Any:
    """The JSON that ``code`` prints last in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a measured process failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def tell(event: str, **fields: Any) -> None:
    """From a child to its parent: one JSON line; ``at`` is wall time, which both read from the same clock."""
    fields = {"event": event, "at": time.time(), **fields}
    os.write(1, (json.dumps(fields) + "\n").encode())


class Child:
    """A module of this package in a process of its own; SIGTERM at the end.

    Args:
        module: Name of the module, run with ``-m``.
        settings: Handed over as its only argument, as JSON.
        log: Where its standard error goes.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], log: Path) -> None:
        self.log = log
        self.events: list[dict[str, Any]] = []
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(dict(settings))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=ENVIRONMENT,
                cwd=ROOT,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, event: str, seconds_max: float, count: int = 1) -> dict[str, Any]:
        """The ``count``-th event of this name, counted from the start.

        Raises:
            RuntimeError: It did not come in time, or the process ended.
        """
        until = time.monotonic() + seconds_max
        while sum(e["event"] == event for e in self.events) < count:
            try:
                told = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise RuntimeError(f"no {event!r} within {seconds_max:g} s; log: {self._last_words()}") from None
            if told is None:
                raise RuntimeError(f"the process ended without {event!r}; log: {self._last_words()}")
            self.events.append(told)
        return [e for e in self.events if e["event"] == event][count - 1]

    def all_of(self, event: str) -> list[dict[str, Any]]:
        """Every event of this name that has been read so far."""
        while not self._queue.empty():
            told = self._queue.get()
            if told is not None:
                self.events.append(told)
        return [e for e in self.events if e["event"] == event]

    def stop(self) -> None:
        """Asks the process to end, and waits."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]
