"""``simulate`` on MNIST: many small clients, and one round of McMahan's 2NN. CPU seconds of a process of its own."""

from __future__ import annotations

from typing import Final

from benchmarks.figures import Figure, at_most, skipped
from benchmarks.processes import run_code
from benchmarks.vectors import data_file

__all__ = ["measure"]

CODECS: Final = ("dense", "auto")
LINEAR: Final = "simulate: MNIST logistic regression, 1,000 clients of 60 examples, 10 a round, batch 10, 100 rounds"
TWO_NN: Final = "simulate: 2NN 784-200-200-10, 10 clients of 600 examples, batch 10, one round"
LINEAR_SECONDS: Final = 4.0
TWO_NN_SECONDS: Final = 0.2
CODE: Final = """
import json, sys, time
import numpy as np
from device_sim import Dataset, load_dataset, partition, simulate, split_held_out
path, task, codec = sys.argv[1:]
train, test = (
    Dataset(part.x.reshape(-1, 784) / np.float32(255.0), part.y) for part in split_held_out(load_dataset(path), 0.0, 0)
)
if task == "linear":
    deal, model, settings = partition(train, "iid", 1000, 0), "softmax_regression", {"rounds": 100}
else:
    deal, model, settings = partition(train, "iid", 100, 0)[:10], "mlp", {"rounds": 1, "hidden": [200, 200]}
settings["normalise"] = "none"
clients = [(train.x[part], train.y[part]) for part in deal]
simulate(model, clients[:10], rounds=1, seed=9, normalise="none")  # imports; each seed compiles the model again
seconds = []
for seed in range(5):
    began = time.process_time()
    history = simulate(
        model, clients, goal_count=10, batch_size=10, learning_rate=0.03, codec=codec, seed=seed, **settings
    )
    seconds.append(time.process_time() - began)
cpu = min(seconds)
judged = simulate(history.bundle, clients[:1], rounds=1, evaluation=(test.x, test.y))
print(json.dumps({"cpu": cpu, "accuracy": judged.initial["accuracy"]}))
"""


def measure() -> list[Figure]:
    """The least of five runs. Compiling the model and checking the examples are in it; loading and dealing them, and
    evaluation, are not."""
    figures = []
    for name, task, bound in ((LINEAR, "linear", LINEAR_SECONDS), (TWO_NN, "2nn", TWO_NN_SECONDS)):
        for codec in CODECS:
            figures += _figures(f"{name}, {codec}", task, codec, bound)
    return figures


def _figures(name: str, task: str, codec: str, bound: float) -> list[Figure]:
    path = data_file("mnist.npz")
    if path is None:
        return [skipped(f"{name}: CPU", "s", f"<= {bound:g}")]
    told = run_code(CODE, str(path), task, codec)
    return [
        at_most(f"{name}: CPU", told["cpu"], "s", bound),
        Figure(f"{name}: accuracy", told["accuracy"], "share"),
    ]
