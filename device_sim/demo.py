"""``edge-fleet demo``: a private broker, a coordinator process and thirty devices learn a model in under a minute."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from coordinator.cli.show import rounds_csv
from coordinator.pictures import Run, write_curves
from coordinator.reports import round_rows
from coordinator.store import Store
from device_sim.broker import PrivateBroker
from device_sim.datasets import Dataset, load_dataset
from device_sim.fleet import Fleet, FleetSettings, Member
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from device_sim.profiles import FleetProfile, draw_profiles
from device_sim.view import View, human_bytes
from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt import Connected, Delivery, PahoTransport, TransportEvent
from edge_sdk.wire.topics import Topics

__all__ = ["DemoSettings", "run_demo"]

FEDERATION: Final = "demo"
EXAMPLES_MIN: Final = 8
STOP_SECONDS: Final = 20.0
WATCH_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        folder: The run folder, made by the demo.
        devices: Size of the fleet.
        seed: Draws the split, the weights, the profiles and the cohorts.
        broker: ``auto``, ``mosquitto`` or ``iotcore``.
        seconds_max: The demo gives up after this time.
        target: Held-out accuracy at which training stops.
        rounds_max: Round budget.
        split: How the examples are dealt.
        profile: From what the devices are drawn.
    """

    folder: Path
    devices: int = 30
    seed: int = 0
    broker: Literal["auto", "mosquitto", "iotcore"] = "auto"
    seconds_max: float = 120.0
    target: float = 0.955
    rounds_max: int = 90
    split: str = "dirichlet:0.3"
    profile: FleetProfile = FleetProfile(dropout=0.1, slow_share=0.1, slow_factor=12.0)


def run_demo(settings: DemoSettings, terminal: bool | None = None) -> float:
    """Runs the demo and leaves its run folder behind.

    Returns:
        Held-out accuracy of the exported ``model.onnx``, measured with stock onnxruntime.

    Raises:
        EdgeFedError: Something could not be started, or did not end in time.
    """
    began = time.monotonic()
    settings.folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split_held_out(load_dataset("digits"), 0.2, settings.seed)
    held_out.save(settings.folder / "heldout.npz")
    with PrivateBroker(settings.broker, settings.folder / "broker") as broker:
        view = View("edgefed demo", terminal=terminal)
        view.say(f"broker: {broker.kind} on {broker.host}:{broker.port} (private, loopback)")
        view.say(
            f"data: digits, {len(train)} examples over {settings.devices} devices ({settings.split}), "
            f"{len(held_out)} held out"
        )
        _write_configuration(settings, broker.url)
        coordinator = _start_coordinator(settings.folder)
        view.say(f"coordinator: process {coordinator.pid}; run folder: {settings.folder}")
        try:
            _run_fleet(settings, broker, train, coordinator, view)
        finally:
            _stop(coordinator)
    seconds = time.monotonic() - began
    return _report(settings, held_out, view, seconds)


def _write_configuration(settings: DemoSettings, url: str) -> None:
    goal = max(2, settings.devices // 2)
    (settings.folder / "federation.toml").write_text(
        f"""# Written by `edge-fleet demo`; serve it again with `edge-coordinator serve federation.toml`.
[federation]
name = "{FEDERATION}"
seed = {settings.seed}
state_dir = "state"

[broker]
url = "{url}"

[model]
zoo = "mlp"
inputs = [64]
outputs = 10
hidden = [200]

[training]
epochs = 1
batch_size = 16
learning_rate = 0.3
seconds_max = 3.0

[selection]
goal_count = {goal}
minimum_count = {max(2, goal // 3)}
over_selection = 1.3
window_seconds = 0.1
selection_seconds_max = 20.0
configuration_seconds_max = 4.0
reporting_seconds_max = 6.0
come_back_seconds = 5.0
pause_seconds = 0.0
retry_seconds = 1.0

[aggregation]
server_optimizer = "fedavgm"
learning_rate = 0.4
momentum = 0.9

[codec]
name = "auto"

[evaluation]
data = "heldout.npz"

[stopping]
rounds_max = {settings.rounds_max}
target_metric = {settings.target}
"""
    )


def _start_coordinator(folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / "coordinator.log").open("wb")
    command = [sys.executable, "-m", "coordinator", "serve", str(folder / "federation.toml"), "--linger", "1"]
    with log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _stop(coordinator: subprocess.Popen[bytes]) -> None:
    if coordinator.poll() is None:
        coordinator.send_signal(signal.SIGTERM)
        try:
            coordinator.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            coordinator.kill()
            coordinator.wait()


class _Watcher:
    """Listens to the coordinator's retained JSON, like any dashboard."""

    def __init__(self, broker: PrivateBroker, fleet: Fleet, view: View) -> None:
        self._fleet = fleet
        self._view = view
        self._topic = Topics(FEDERATION).task_round("default")
        self.phase = ""
        settings = broker.settings(client_id="edgefed-demo-view")
        self.transport = PahoTransport(settings, self._on_event)
        fleet.loop.register(self.transport)
        self.transport.connect()
        self._watch()

    def _on_event(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                self.transport.subscribe((self._topic,))
            case Delivery(topic, payload) if topic == self._topic:
                self._view.on_payload(payload)
                self.phase = str(json.loads(payload).get("phase", ""))

    def _watch(self) -> None:
        self._view.on_connected(self._fleet.connected, len(self._fleet.agents))
        self._fleet.loop.call_at(self._fleet.loop.clock() + WATCH_SECONDS, self._watch)


def _run_fleet(
    settings: DemoSettings, broker: PrivateBroker, train: Dataset, coordinator: subprocess.Popen[bytes], view: View
) -> None:
    parts = partition(train, settings.split, settings.devices, settings.seed, EXAMPLES_MIN)
    profiles = draw_profiles(settings.devices, settings.seed, settings.profile)
    members = [
        Member(f"pi-{number:02d}", profile, train.part(part).examples)
        for number, (profile, part) in enumerate(zip(profiles, parts, strict=True))
    ]
    fleet = Fleet(broker.settings(), FleetSettings(FEDERATION, seed=settings.seed, away_seconds=2.0), members)
    try:
        with view:
            watcher = _Watcher(broker, fleet, view)

            def over() -> bool:
                broker.check()
                return watcher.phase == "done" or coordinator.poll() is not None

            done = fleet.run(over, timeout_seconds=settings.seconds_max)
            fleet.run(lambda: coordinator.poll() is not None, timeout_seconds=STOP_SECONDS)
    finally:
        fleet.close()
    if not done or watcher.phase != "done":
        last = (settings.folder / "coordinator.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise EdgeFedError("the demo did not finish; the coordinator's last words:\n" + "\n".join(last))
    view.say(f"devices: {len(members)}, power cuts in mid-round: {fleet.dropouts}")


def _report(settings: DemoSettings, held_out: Dataset, view: View, seconds: float) -> float:
    folder = settings.folder
    with Store.open_readonly(folder / "state" / f"{FEDERATION}-default.db") as store:
        records = store.rounds("default", limit=100_000)
    rows = round_rows(records, "accuracy")
    (folder / "rounds.csv").write_text(rounds_csv(rows))
    view.save_svg(folder / "view.svg")
    title = f"{settings.devices} devices, digits, {settings.split}"
    write_curves([Run("demo", rows)], folder / "rounds.png", "accuracy", title)
    _export(folder)
    accuracy = _prove(folder / "model.onnx", held_out)
    up, dense = (sum(row[name] or 0 for row in rows) for name in ("bytes_up", "bytes_up_dense"))
    view.say("")
    view.say(f"finished in {seconds:.1f} s after {rows[-1]['round']} rounds")
    smaller = f"{dense / max(up, 1):.1f}x smaller"
    view.say(f"updates: {human_bytes(up)} instead of {human_bytes(dense)} as dense float32 ({smaller})")
    view.say(f"model.onnx in stock onnxruntime: {accuracy:.1%} of {len(held_out)} held-out digits")
    left = "model.onnx rounds.csv rounds.png view.svg state/ federation.toml coordinator.log"
    view.say(f"left in {folder}: {left}")
    return accuracy


def _export(folder: Path) -> None:
    command = [sys.executable, "-m", "coordinator", "export", str(folder / "federation.toml"), "--onnx"]
    done = subprocess.run([*command, str(folder / "model.onnx")], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise EdgeFedError(f"export failed: {done.stderr.strip() or done.stdout.strip()}")


def _prove(model: Path, held_out: Dataset) -> float:
    """Runs the exported file as any program would: onnxruntime and nothing of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: held_out.x})
    return float(np.mean(np.argmax(logits, axis=1) == held_out.y))
