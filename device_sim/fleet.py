"""Many devices in one process: each with its own session, state and real MQTT connection, all on one event loop.

There is no thread per device. Training runs on a few worker threads and is then stretched to each device's speed, so
that a slow device looks slow to the coordinator without costing CPU. A dropout is a power cut: the connection dies with
its will, the process' memory is gone, and after a while the device starts again from its state directory.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from device_sim.profiles import DeviceProfile
from device_sim.stable_random import StableRandom
from edge_sdk.device.agent import Agent
from edge_sdk.device.blobs import BlobMemory
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.progress import Progress, ProgressKind
from edge_sdk.device.session import Event, TrainingFinished
from edge_sdk.device.settings import AgentSettings
from edge_sdk.device.shell import DeviceShell, Job
from edge_sdk.device.state import DeviceState
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob, Work
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.mqtt import BrokerSettings, Connected, Disconnected, Listener, PahoTransport, TransportEvent, Will
from edge_sdk.mqtt.loop import EventLoop, raise_file_limit
from edge_sdk.training.local import Trainer
from edge_sdk.wire.safe_msgpack import BytesLike
from edge_sdk.wire.topics import client_id

__all__ = ["Fleet", "FleetSettings", "Member", "ThreadLocalTraining"]

logger = logging.getLogger(__name__)

SHARED_BLOBS_MAX: Final = 8
IN_FLIGHT_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a fleet: its name, how it behaves, and its own examples, in any form that ``as_examples`` takes."""

    device: str
    profile: DeviceProfile
    examples: Any = None


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How a fleet runs.

    Attributes:
        federation: Topic segment.
        task: Topic segment.
        engine: Engine preference.
        seed: Draws dropouts, instances and jitter.
        training_threads: Worker threads that train.
        connects_per_second: Pace of the first connections.
        away_seconds: How long a device that dropped out stays away, in seconds.
        publish_status: Whether each device publishes its retained status.
        shared_downloads: Whether what is in ``Fleet.blobs`` counts as downloaded by every device, so that a load of
            many updates of a large model need not wait for as many downloads of it.
    """

    federation: str
    task: str = "default"
    engine: str = "auto"
    seed: int = 0
    training_threads: int = 1
    connects_per_second: float = 500.0
    away_seconds: float = 5.0
    publish_status: bool = False
    shared_downloads: bool = False


class ThreadLocalTraining:
    """Real training for many devices: one engine per worker thread, shared by all devices.

    Args:
        engine: Engine preference.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._local = threading.local()

    def bind(self, examples: Any, trainer: Trainer | None = None) -> Work:
        """The work of one device, with its own trainer where there is one."""
        return _BoundTraining(self, examples, trainer)

    def engines(self) -> EngineCache:
        """This thread's engines."""
        cache: EngineCache | None = getattr(self._local, "engines", None)
        if cache is None:
            cache = self._local.engines = EngineCache(self._engine)
        return cache


class _BoundTraining:
    def __init__(self, shared: ThreadLocalTraining, examples: Any, trainer: Trainer | None) -> None:
        self._shared = shared
        self._examples = examples
        self._trainer = trainer

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        self._work().check(ticket, digest, program)

    def run(self, job: TrainingJob) -> TrainedUpdate:
        return self._work().run(job)

    def _work(self) -> TrainingWork:
        return TrainingWork(lambda: self._examples, engines=self._shared.engines(), trainer=self._trainer)


class _Device:
    """One device: everything but its files goes when it drops out."""

    shell: DeviceShell
    transport: PahoTransport

    def __init__(self, fleet: Fleet, number: int, member: Member, work: Work) -> None:
        self.member = member
        self.fleet = fleet
        self.work = work
        self.files = MemoryFiles()
        self.draws = StableRandom(fleet.settings.seed, f"device/{number}")
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([fleet.settings.seed, number])))
        self.up = False
        self.start(fleet.loop.clock() + number / fleet.settings.connects_per_second)

    def start(self, connect_at: float) -> None:
        fleet, settings = self.fleet, self.fleet.settings
        self.shell = DeviceShell(
            AgentSettings(
                federation=settings.federation,
                device=self.member.device,
                task=settings.task,
                engine=settings.engine,
                publish_status=settings.publish_status,
            ),
            timers=fleet.loop,
            connect=self.connect,
            run_job=self.run_job,
            state=DeviceState(
                self.files, new_instance=lambda: self.rng.bytes(16), wall_day=lambda: 0, cache_bytes_max=0
            ),
            work=self.work,
            rng=self.rng,
            on_progress=self.on_progress if fleet.on_progress or self.member.profile.dropout else None,
            memory=fleet.blobs,
            connect_at=connect_at,
        )

    def connect(self, listener: Listener, will: tuple[str, bytes] | None) -> PahoTransport:
        name = client_id(self.fleet.settings.federation, self.fleet.settings.task, self.member.device)
        broker = replace(self.fleet.broker, client_id=name, will=Will(*will) if will else None)

        def hear(event: TransportEvent) -> None:
            # The shell hears nothing after its end; nor do we count the last words of a connection that is gone.
            if isinstance(event, Connected | Disconnected) and transport is self.transport:
                self.note_connection(isinstance(event, Connected))
                self.fleet.trouble = "" if isinstance(event, Connected) else str(event.error or "")
            listener(event)

        self.transport = transport = PahoTransport(broker, hear, manual_ack=False)
        self.fleet.loop.register(transport)
        return transport

    def note_connection(self, up: bool) -> None:
        self.fleet.connected += up - self.up
        self.up = up

    def run_job(self, job: Job, done: Callable[[Event], None]) -> None:
        self.fleet.run_job(job, lambda event, seconds: self.deliver(event, seconds, done))

    def deliver(self, event: Event, seconds: float, done: Callable[[Event], None]) -> None:
        """Stretches a training of ``seconds`` to this device's speed and link, then hands in its event."""
        profile = self.member.profile
        delay = profile.training_seconds(seconds) - seconds
        if isinstance(event, TrainingFinished) and event.update.payload is not None:
            delay += len(event.update.payload) / profile.uplink_bytes_per_second
        if delay <= 0.0 or not math.isfinite(delay):
            done(event)
        else:
            self.fleet.loop.call_at(self.fleet.loop.clock() + delay, lambda: done(event))

    def on_progress(self, progress: Progress) -> None:
        if self.fleet.on_progress is not None:
            self.fleet.on_progress(self.member.device, progress)
        if progress.what == ProgressKind.TRAINING and self.draws.uniform() < self.member.profile.dropout:
            shell = self.shell
            self.fleet.loop.call_at(self.fleet.loop.clock(), lambda: self.drop_out(shell))

    def drop_out(self, shell: DeviceShell) -> None:
        """A power cut in the middle of a round."""
        if shell.ended:
            return
        self.fleet.dropouts += 1
        self.stop_now()
        wait = self.fleet.settings.away_seconds * (0.5 + self.draws.uniform())
        self.fleet.loop.call_at(self.fleet.loop.clock() + wait, lambda: self.start(self.fleet.loop.clock()))

    def stop_now(self) -> None:
        self.shell.end()
        self.note_connection(False)
        transport = self.transport
        transport.disconnect(will=True)
        self.fleet.loop.unregister(transport)


class Fleet:
    """Runs the devices.

    Args:
        broker: How to reach the broker; client id and will are each device's own.
        settings: See :class:`FleetSettings`.
        members: The devices.
        work: Gives a member's work; None trains for real on the member's examples.
        on_progress: Told device and progress, on the loop's thread (steps: on a training thread).

    Attributes:
        connected: How many devices the broker has accepted.
        trouble: Why the newest connection did not come about or was lost; empty once one has come about since.

    Raises:
        ConfigurationError: The process may not open enough sockets; the message says how to allow it.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        settings: FleetSettings,
        members: Sequence[Member],
        *,
        work: Callable[[Member], Work] | None = None,
        on_progress: Callable[[str, Progress], None] | None = None,
    ) -> None:
        raise_file_limit(len(members))
        self.broker = replace(broker, in_flight_max=IN_FLIGHT_MAX)
        self.settings = settings
        self.loop = EventLoop()
        self.blobs = BlobMemory(SHARED_BLOBS_MAX, trusted=settings.shared_downloads)
        self.on_progress = on_progress
        self.dropouts = 0
        self.connected = 0
        self.trouble = ""
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Event], Callable[[Event, float], None]] | None]
        self._jobs = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._train, name=f"fleet-training-{i}", daemon=True)
            for i in range(settings.training_threads)
        ]
        training = ThreadLocalTraining(settings.engine)
        make = work or (lambda member: training.bind(member.examples))
        self._devices = [_Device(self, number, member, make(member)) for number, member in enumerate(members)]

    @property
    def agents(self) -> list[Agent]:
        """The devices' agents, for a look at their status."""
        return [device.shell.agent for device in self._devices]

    def run(self, until: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Runs until ``until()``; False means that the timeout came first."""
        for thread in self._threads:
            if not thread.is_alive():
                thread.start()
        return self.loop.run_until(until, timeout_seconds)

    def close(self) -> None:
        """Cuts all connections and ends the threads."""
        for device in self._devices:
            device.stop_now()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10.0)
        self.loop.close()

    def run_job(self, job: Callable[[], Event], done: Callable[[Event, float], None]) -> None:
        """Runs a device's job on a training thread and calls ``done(event, seconds)`` on the loop's."""
        self._jobs.put((job, done))

    def _train(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            began = time.perf_counter()
            event = job()
            seconds = time.perf_counter() - began
            self.loop.call_soon_threadsafe(lambda done=done, event=event, seconds=seconds: done(event, seconds))  # type: ignore[misc]
