"""What importing the SDK costs beside ``import numpy``: CPU and peak memory, in fresh interpreters, in turn.

``import edge_sdk`` alone loads next to nothing, so the bound is held against what an application really writes:
``from edge_sdk import EdgeClient``. What a device is made of comes when one is made; that is shown too.
"""

from __future__ import annotations

import statistics
from typing import Final

from benchmarks.figures import Figure, at_most
from benchmarks.processes import run_code

__all__ = ["measure"]

PAIRS: Final = 5
NUMPY: Final = "import numpy"
PACKAGE: Final = "import edge_sdk"
CLIENT: Final = "from edge_sdk import EdgeClient"
MADE: Final = """
import tempfile
from edge_sdk import EdgeClient
broker = "mqtt://localhost"
client = EdgeClient(
    broker=broker, federation="f", device_id="d", load_examples=lambda: None, state_dir=tempfile.mkdtemp()
)
client.stop()
"""
TIMED: Final = """
import sys, time
code = compile(sys.argv[1], "import", "exec")
before = time.process_time()
exec(code)
spent = time.process_time() - before
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
print([spent, peak])
"""


def measure() -> list[Figure]:
    """Ratio of CPU and difference of peak memory, medians of pairs that were measured in turn."""
    for code in (NUMPY, CLIENT):  # once for bytecode and the page cache
        run_code(TIMED, code)
    rounds = [{code: run_code(TIMED, code) for code in (NUMPY, CLIENT, PACKAGE, MADE)} for _ in range(PAIRS)]
    ratio = statistics.median(found[CLIENT][0] / found[NUMPY][0] for found in rounds)
    more = statistics.median(found[CLIENT][1] - found[NUMPY][1] for found in rounds) / 1e6
    package = statistics.median(found[PACKAGE][0] / found[NUMPY][0] for found in rounds)
    package_more = statistics.median(found[PACKAGE][1] - found[NUMPY][1] for found in rounds) / 1e6
    return [
        at_most(f"{PACKAGE} / {NUMPY}: CPU", package, "x", 1.3),
        at_most(f"{PACKAGE} - {NUMPY}: peak RSS", package_more, "MB", 6.0),
        at_most(f"{CLIENT} / {NUMPY}: CPU", ratio, "x", 1.3),
        at_most(f"{CLIENT} - {NUMPY}: peak RSS", more, "MB", 6.0),
        *(
            Figure(f"{code}: CPU", statistics.median(found[code][0] for found in rounds) * 1e3, "ms")
            for code in (NUMPY, CLIENT, PACKAGE)
        ),
        Figure("a client made, with numpy: CPU", statistics.median(found[MADE][0] for found in rounds) * 1e3, "ms"),
        Figure(
            f"a client made - {NUMPY}: peak RSS",
            statistics.median(found[MADE][1] - found[NUMPY][1] for found in rounds) / 1e6,
            "MB",
        ),
    ]
