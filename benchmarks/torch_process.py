"""PyTorch's side of ``training_steps``: exports the models, then makes eager steps on request, in its own process.

Runs under the interpreter that has torch. Requests and answers are lines of JSON on stdin and stdout.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.torch_zoo import CASES, export

RATE = 1e-3


class Trained:
    """One model, its optimiser and the examples that both sides train on."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(1)
        self.case = CASES[name]
        self.model = self.case.build(False)
        self.inputs = self.case.draw(False, 64)
        self.target = self.case.target(self.model.eval()(*self.inputs.values())).detach()
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE)

    def steps(self, batch: int, count: int) -> float:
        """CPU seconds of one eager SGD step."""
        self.model.train()
        inputs, target = [x[:batch] for x in self.inputs.values()], self.target[:batch]
        started = time.process_time()
        for _ in range(count):
            self.optimizer.zero_grad()
            self.case.compute_loss(self.model(*inputs), target).backward()
            self.optimizer.step()
        return (time.process_time() - started) / count

    def export(self, path: Path) -> None:
        """Write the model and, beside it, the examples."""
        export(self.model, self.inputs, path, dynamo=False)
        arrays = {key: x.numpy() for key, x in self.inputs.items()}
        np.savez(path.with_suffix(".npz"), target=self.target.numpy(), **arrays)


def peak_megabytes() -> float:
    """Peak resident set of this process."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trained: dict[str, Trained] = {}
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        name = request["model"]
        if name not in trained:
            trained[name] = Trained(name)
        if "path" in request:
            trained[name].export(Path(request["path"]))
            answer: dict[str, Any] = {"loss": CASES[name].loss}
        else:
            answer = {"seconds": trained[name].steps(request["batch"], request["count"]), "peak": peak_megabytes()}
        sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
