"""Activities from a phone's raw signals, learnt over a broker: ``python -m benchmarks.har [uci_har_raw.npz]``.

21 people are 21 devices, and 9 people whom nobody trained on judge the result. The model is a 1D CNN that PyTorch
exported (``har_cnn1d.onnx``, made by ``python -m benchmarks.torch_zoo``). Its nine channels are the six signals,
standardised by each device with the mean and deviation of its own windows (the unseen people's devices too: nothing is
pooled), and the acceleration as it was measured, in g: how a person wears the phone is in the former, which way is down
in the latter, and sitting differs from standing in little else.

Model, channels, label smoothing and rounds were chosen with seven of the 21 training people left out, twice; the nine
judged the one recipe that came of it.

The file has ``signals``, ``scale``, ``window_start``, ``window_len``, ``y``, ``subject``, ``is_test``: UCI HAR's raw
recordings (Reyes-Ortiz et al., Neurocomputing 171, 2016).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_least, skipped
from benchmarks.vectors import data_file
from device_sim.broker import PrivateBroker
from device_sim.fleet import Fleet, FleetSettings, Member
from device_sim.profiles import DeviceProfile
from edge_sdk.mqtt import BrokerSettings, Connected, Delivery, PahoTransport, TransportEvent
from edge_sdk.wire.topics import Topics

__all__ = ["measure"]

NAME: Final = "har"
TITLE: Final = "UCI HAR, {devices} devices, {rounds} rounds over a broker: accuracy on people whom nobody trained on"
MODEL: Final = Path(__file__).parent / "har_cnn1d.onnx"
ACCURACY_MIN: Final = 0.91
SECONDS_MAX: Final = 900.0
ROUNDS: Final = 20
ACCELERATION: Final = 3
"""The first so many channels of the file are acceleration, in g; the others rotation."""
CONFIG: Final = """
[federation]
name = "{name}"
state_dir = "state"

[broker]
url = "{url}"

[model]
onnx = "{model}"
loss = "softmax_cross_entropy"
optimizer = "momentum"
label_smoothing = true

[training]
epochs = 2
batch_size = 32
learning_rate = 0.03
scalars = {{ label_smoothing = 0.1 }}
seconds_max = 60.0

[selection]
goal_count = {devices}
minimum_count = {devices}
over_selection = 1.0
window_seconds = 0.1
selection_seconds_max = 60.0
configuration_seconds_max = 60.0
reporting_seconds_max = 120.0
pause_seconds = 0.0

[codec]
name = "int8"

[stopping]
rounds_max = {rounds}
"""


def windows_of(path: Path) -> dict[int, tuple[NDArray[np.float32], NDArray[np.int64], bool]]:
    """By person: float32[n, 9, 128] with the person's own statistics, labels int64[n], and whether unseen."""
    with np.load(path) as file:
        arrays = dict(file)
    signals = arrays["signals"].astype(np.float32) * arrays["scale"]
    rows = arrays["window_start"][:, None] + np.arange(int(arrays["window_len"]))
    people = {}
    for person in np.unique(arrays["subject"]):
        own = arrays["subject"] == person
        x = signals[rows[own]]
        standardised = (x - x.mean(axis=(0, 1))) / x.std(axis=(0, 1))
        x = np.concatenate([standardised, x[:, :, :ACCELERATION]], axis=2)
        unseen = bool(arrays["is_test"][own][0])
        people[int(person)] = (np.ascontiguousarray(x.transpose(0, 2, 1)), arrays["y"][own].astype(np.int64), unseen)
    return people


def measure(path: Path | None = None, rounds: int = ROUNDS) -> list[Figure]:
    """Trains over a private broker; the accuracy of the exported model on the unseen people, by stock onnxruntime.

    Skipped where there is neither a ``path`` nor the file among the published data.
    """
    path = data_file("uci_har_raw.npz") if path is None else path
    if not path.is_file():
        return [skipped(TITLE.format(devices=21, rounds=rounds), "", f">= {ACCURACY_MIN:g}")]
    people = windows_of(path)
    members = [
        Member(f"person-{person:02d}", DeviceProfile(), (x, y))
        for person, (x, y, unseen) in people.items()
        if not unseen
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        with PrivateBroker("mosquitto", folder / "broker") as broker:
            config = folder / "federation.toml"
            config.write_text(
                CONFIG.format(name=NAME, url=broker.url, model=MODEL, rounds=rounds, devices=len(members))
            )
            train(folder, config, broker.settings(), members)
        seconds = time.monotonic() - began
        exported = folder / "model.onnx"
        command = [sys.executable, "-m", "coordinator", "export", str(config), "--onnx", str(exported)]
        subprocess.run(command, check=True, capture_output=True)
        session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
        right = {
            person: np.argmax(session.run(None, {"x": x})[0], axis=1) == y
            for person, (x, y, unseen) in people.items()
            if unseen
        }
    accuracy = float(np.mean(np.concatenate(list(right.values()))))
    worst = min(float(np.mean(each)) for each in right.values())
    return [
        at_least(TITLE.format(devices=len(members), rounds=rounds), accuracy, "", ACCURACY_MIN),
        Figure("UCI HAR: accuracy on the one of them that it fits least", worst, ""),
        Figure("UCI HAR: the whole run, wall time", seconds, "s"),
    ]


def train(folder: Path, config: Path, broker: BrokerSettings, members: list[Member]) -> None:
    """A coordinator's process and a fleet, until the rounds are done."""
    log = folder / "coordinator.log"
    command = [sys.executable, "-m", "coordinator", "serve", str(config), "--linger", "1"]
    with log.open("wb") as sink:
        coordinator = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    fleet = Fleet(broker, FleetSettings(NAME), members)
    topic = Topics(NAME).task_round("default")
    phases: list[str] = []

    def on_event(event: TransportEvent) -> None:
        match event:
            case Connected():
                transport.subscribe((topic,))
            case Delivery(where, payload) if where == topic:
                told: dict[str, Any] = json.loads(payload)
                phases.append(str(told.get("phase", "")))

    transport = PahoTransport(replace(broker, client_id="har-watcher"), on_event)
    fleet.loop.register(transport)
    transport.connect()
    try:
        fleet.run(lambda: "done" in phases or coordinator.poll() is not None, timeout_seconds=SECONDS_MAX)
        fleet.run(lambda: coordinator.poll() is not None, timeout_seconds=30.0)
    finally:
        fleet.close()
        if coordinator.poll() is None:
            coordinator.terminate()
        coordinator.wait(30.0)
    if "done" not in phases:
        raise RuntimeError(f"the federation did not finish; the coordinator said last:\n{log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="uci_har_raw.npz; out of EDGEFED_TEST_DATA by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    for figure in measure(arguments.data, arguments.rounds):
        verdict = {True: "holds", False: "MISSED", None: ""}[figure.holds]
        value = "skipped" if figure.value is None else f"{figure.value:.4g}"
        print(f"{figure.name}: {value} {figure.unit} {figure.bound or ''} {verdict}".rstrip())


if __name__ == "__main__":
    main()
