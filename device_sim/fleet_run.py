"""``edge-fleet run``: a fleet against a broker and a coordinator that somebody else runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordinator.config.fields import HELD_OUT_MAX
from device_sim.datasets import load_dataset
from device_sim.fleet import Fleet, FleetSettings, Member, ThreadLocalTraining
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from device_sim.profiles import FleetProfile, draw_profiles
from device_sim.replay import ReplayWork
from edge_sdk.device.progress import Progress, ProgressKind
from edge_sdk.errors import ConfigurationError, ConnectionUnavailable
from edge_sdk.extension import make
from edge_sdk.mqtt import (
    BrokerSettings,
    Connected,
    Delivery,
    Disconnected,
    PahoTransport,
    Subscribed,
    TransportEvent,
)
from edge_sdk.training.local import Trainer
from edge_sdk.wire.topics import Topics, check_segment, client_id

__all__ = ["FleetRun", "run_fleet", "shape_of", "share_of"]

REPORT_SECONDS: Final = 2.0
REASONS_MAX: Final = 20
"""Different reasons that are said; examples may hold different mistakes on each device."""


@dataclass(frozen=True, slots=True)
class FleetRun:
    """The options of ``edge-fleet run``, as they are described there."""

    broker: str
    federation: str
    task: str = "default"
    devices: int | None = None
    data: str = "digits"
    split: str = "iid"
    train: str = "real"
    trainer: str = ""
    profile: str = ""
    engine: str = "auto"
    shape: str = ""
    held_out: Path | None = None
    held_out_share: str = "0.2"
    threads: int = 1
    prefix: str = "device"
    seed: int = 0
    seconds: float = 0.0


def run_fleet(run: FleetRun, say: Callable[[str], None]) -> str:
    """Runs until the coordinator says that training is done, or the time is up.

    Returns:
        Why it ended.

    Raises:
        EdgeFedError: An option is wrong, the process may not open enough sockets, or the time was up before the broker
            had let anybody in.
    """
    check_segment(run.federation, "--federation")
    broker = BrokerSettings.parse(run.broker)
    members = _members(run, say)
    replay = ReplayWork(run.seed) if run.train == "replay" else None
    if run.trainer and replay is not None:
        raise ConfigurationError(f"--trainer: {run.trainer!r} with --train replay, which trains nothing; leave one out")
    training = ThreadLocalTraining(run.engine)
    fleet = Fleet(
        broker,
        FleetSettings(
            run.federation, run.task, engine=run.engine, seed=run.seed, training_threads=1 if replay else run.threads
        ),
        members,
        work=lambda member: replay or training.bind(member.examples, _trainer(run.trainer)),
        on_progress=_Troubles(say),
    )
    listener = _Listener(fleet, broker, run, say)
    try:
        done = fleet.run(lambda: bool(listener.reason), run.seconds or None)
        if done:
            return f"finished: {listener.reason}"
        if not listener.reached:
            raise ConnectionUnavailable(f"stopped after {run.seconds:g} s without the broker; {listener.trouble}")
        return f"stopped after {run.seconds:g} s; {listener.news}"
    except KeyboardInterrupt:
        return "stopped"
    finally:
        fleet.close()


def _trainer(name: str) -> Trainer | None:
    """A device's own trainer, so that one may keep what it likes between rounds."""
    return make("--trainer", name, methods=("fit",)) if name else None


def _members(run: FleetRun, say: Callable[[str], None]) -> list[Member]:
    if run.train not in ("real", "replay"):
        raise ConfigurationError(f"--train: {run.train!r} is not one of real, replay")
    check_segment(run.prefix, "--prefix")
    if run.train == "replay":
        if run.devices is None:
            raise ConfigurationError("--devices: missing; a replayed fleet has no data that could tell their number")
        profiles = draw_profiles(run.devices, run.seed, FleetProfile.parse(run.profile))
        return [Member(f"{run.prefix}-{i:05d}", profile) for i, profile in enumerate(profiles)]
    dataset = load_dataset(run.data)
    if run.shape:
        dataset = dataset.reshaped(shape_of(run.shape))
    share, last = share_of(run.held_out_share)
    train, test = split_held_out(dataset, share, run.seed, last=last)
    parts = partition(train, run.split, run.devices, run.seed)
    if run.held_out is not None:
        test.save(run.held_out)
        say(f"held out: {len(test)} examples in {run.held_out}")
    profiles = draw_profiles(len(parts), run.seed, FleetProfile.parse(run.profile))
    say(f"{dataset.name}: {len(train)} examples over {len(parts)} devices ({run.split}), {len(test)} held out")
    return [
        Member(f"{run.prefix}-{i:05d}", profile, train.part(part).examples)
        for i, (profile, part) in enumerate(zip(profiles, parts, strict=True))
    ]


def shape_of(text: str) -> tuple[int, ...]:
    """The shape in the text of ``--shape``.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--shape: {text!r}; write dimensions such as 784 or 1,28,28") from None


def share_of(text: str) -> tuple[float, bool]:
    """``(share, last)`` in the text of ``--held-out-share``: ``0.2``, or ``last:0.2`` for the newest examples.

    Raises:
        ConfigurationError: It is none.
    """
    kind, _, number = text.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if kind not in ("", "last") or not 0.0 <= share <= HELD_OUT_MAX:
        raise ConfigurationError(
            f"--held-out-share: {text!r}; write a number at least 0, at most {HELD_OUT_MAX}, or last:0.2 for the "
            "newest examples"
        )
    return share, kind == "last"


class _Troubles:
    """Says once why devices cannot do their work: that examples do not fit the model shows when they have it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, device: str, progress: Progress) -> None:
        if progress.what == ProgressKind.TRAINING_FAILED and len(self._said) < REASONS_MAX:
            if progress.detail not in self._said:
                self._say(f"{device}: {progress.detail}")
            self._said.add(progress.detail)


class _Listener:
    """Follows the coordinator's retained JSON and says a line now and then.

    Attributes:
        reason: Why the federation is finished, empty before.
        reached: Whether the broker has ever let anybody in.
    """

    def __init__(self, fleet: Fleet, broker: BrokerSettings, run: FleetRun, say: Callable[[str], None]) -> None:
        self.reason = ""
        self.reached = False
        self._fleet = fleet
        self._say = say
        self._topic = Topics(run.federation).task_round(run.task)
        self._round = ""
        self._failure = ""
        settings = replace(broker, client_id=client_id(run.federation, run.task, f"{run.prefix}-fleet-listener"))
        self._transport = PahoTransport(settings, self._on_event)
        fleet.loop.register(self._transport)
        self._transport.connect()
        self._report_later()

    @property
    def trouble(self) -> str:
        """Why the broker cannot be used by some of us, empty where nothing is known."""
        return self._failure or self._fleet.trouble

    @property
    def news(self) -> str:
        """How things stand, in a line."""
        connected, devices = self._fleet.connected, len(self._fleet.agents)
        parts = [f"connected {connected} of {devices}"]
        if self.trouble and (connected < devices or self._failure):
            parts.append(self.trouble)
        elif self._transport.connected:
            parts.append(self._round or "no coordinator yet")
        return "; ".join(parts)

    def _on_event(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                self.reached, self._failure = True, ""
                self._transport.subscribe((self._topic,))
            case Subscribed(_, refused) if refused:
                self._failure = f"the broker refused to subscribe to {self._topic}: check its ACL"
            case Disconnected(_, error) if error is not None:
                self._failure = str(error)
            case Delivery(topic, payload) if topic == self._topic:
                self._take(payload)

    def _take(self, payload: bytes) -> None:
        try:
            state = json.loads(payload)
        except ValueError:
            return
        if state.get("phase") == "done":
            self.reason = str(state.get("reason", "done"))
        trouble = f"; {state['reason']}" if state.get("reason") else ""
        self._round = f"round {state.get('round')} {state.get('phase')}, metrics {state.get('metrics')}{trouble}"

    def _report_later(self) -> None:
        self._fleet.loop.call_at(self._fleet.loop.clock() + REPORT_SECONDS, self._report)

    def _report(self) -> None:
        self.reached = self.reached or self._fleet.connected > 0
        self._say(self.news)
        if not self._transport.connected:
            self._transport.connect()
        self._report_later()
