"""A device in virtual time: the very agent that ships, on a simulated network, clock, disk and power supply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from device_sim.datasets import Dataset
from device_sim.profiles import DeviceProfile
from device_sim.world.clock import Handle, VirtualClock
from device_sim.world.crashes import Crashed
from device_sim.world.memory_transport import InMemoryTransport
from device_sim.world.world import World
from edge_sdk.device.agent import Agent
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.progress import Progress, ProgressKind
from edge_sdk.device.session import Action, Event, MarkReceived, Settle, StartTraining
from edge_sdk.device.settings import AgentSettings
from edge_sdk.device.shell import DeviceShell, Job
from edge_sdk.device.state import DeviceState
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt import Listener
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["SimDevice"]

REBOOT_SECONDS: Final = 20.0


class _StepClock:
    """A clock that each look moves on by one step, so that time budgets mean the same on every machine."""

    def __init__(self, step_seconds: float) -> None:
        self.now = 0.0
        self._step_seconds = step_seconds

    def __call__(self) -> float:
        self.now += self._step_seconds
        return self.now


class _Disk(MemoryFiles):
    """A disk whose every operation is a crash point, before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.reach: Callable[[str], None] = lambda point: None

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        self.reach(f"before write {name}")
        super().write(name, parts)
        self.reach(f"after write {name}")

    def rename(self, old: str, new: str) -> None:
        self.reach(f"before rename {old}")
        super().rename(old, new)
        self.reach(f"after rename {old}")

    def delete(self, name: str) -> None:
        super().delete(name)
        self.reach(f"after delete {name}")


class _Timers:
    """Virtual time, as a shell wants it."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def clock(self) -> float:
        return self._clock.now

    def call_at(self, when: float, call: Callable[[], None]) -> _Timer:
        return _Timer(self._clock, self._clock.call_at(max(when, self._clock.now), call))


class _Timer:
    def __init__(self, clock: VirtualClock, handle: Handle) -> None:
        self._clock = clock
        self._handle = handle

    def cancel(self) -> None:
        self._clock.cancel(self._handle)


class SimDevice:
    """One device of a scenario.

    Args:
        world: Clock, broker, auditor, crash points.
        number: Its place in the fleet.
        profile: Its speed, reliability and link.
        data: Its local examples.
        engines: Engines shared by all devices of the process.
    """

    def __init__(self, world: World, number: int, profile: DeviceProfile, data: Dataset, engines: EngineCache) -> None:
        self.world = world
        self.name = f"device-{number:05d}"
        self.profile = profile
        self.alive = False
        self._data = data
        self._engines = engines
        self._disk = _Disk()
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([world.seed, 1, number])))
        self._shell: DeviceShell | None = None
        self.state: DeviceState | None = None

    # --- power ---

    def boot(self) -> None:
        """Starts from what is on disk."""
        self.alive = True
        self._disk.reach = self.reach
        world = self.world
        try:
            self.state = DeviceState(
                self._disk,
                new_instance=lambda: self._rng.bytes(16),
                wall_day=lambda: world.daily_usage.day,
                bytes_per_device_per_day_max=world.scenario.bytes_per_device_per_day_max,
            )
            self._shell = DeviceShell(
                AgentSettings(
                    world.scenario.federation,
                    self.name,
                    publish_status=False,
                    algorithms=tuple(world.scenario.local_algorithms),
                    direct_bytes_max=world.scenario.small_bytes_max,
                ),
                timers=_Timers(world.clock),
                connect=self._connect,
                run_job=self._run_job,
                guard=self._guarded,
                state=self.state,
                work=self,
                rng=self._rng,
                on_progress=self._on_progress,
                memory=world.blobs,
                connect_at=world.clock.now + float(self._rng.random()) * world.scenario.boot_seconds,
                on_action=self._on_action,
            )
        except Crashed:
            self.crash()

    def _connect(self, listener: Listener, will: tuple[str, bytes] | None) -> InMemoryTransport:
        self._transport = self.world.broker.transport(self.name, listener, link=self.profile.link)
        return self._transport

    def crash(self) -> None:
        """The power fails: memory is gone, the disk stays, the broker hears nothing."""
        self.alive = False
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.end()
            self._transport.vanish()
        self.world.crashes += 1
        self.world.clock.call_later(REBOOT_SECONDS * (0.5 + float(self._rng.random())), self.boot)

    @property
    def agent(self) -> Agent | None:
        """The device's agent, None while it has no power."""
        return None if self._shell is None else self._shell.agent

    @property
    def settled(self) -> bool:
        """Whether it runs and knows the outcome of everything it has done."""
        return self.alive and self.agent is not None and self.state is not None and self.state.outbox is None

    def reach(self, point: str) -> None:
        self.world.points.reach("device", self.name, point)

    def _guarded(self, call: Callable[[], None]) -> None:
        """One call into the device; the power may fail in it."""
        try:
            call()
        except Crashed:
            self.crash()
        finally:
            self.world.daily_usage.note(self.name, self._transport.meter)

    # --- what is seen of it ---

    def _on_action(self, action: Action, done: bool) -> None:
        """A crash point before and after each action."""
        if done:
            self.note(action)
        self.reach(f"{'after' if done else 'before'} {type(action).__name__}")

    def note(self, action: Action) -> None:
        """Tells the auditor what this device believes."""
        match action:
            case MarkReceived(ticket):
                outbox = self.state.outbox if self.state is not None else None
                if outbox is not None and outbox.ticket == ticket:
                    self.world.auditor.on_receipt(self.name, ticket, outbox.digest)
            case Settle(ticket, counted, _):
                self.world.auditor.on_settled(self.name, ticket, counted)

    def _on_progress(self, progress: Progress) -> None:
        self.world.auditor.followed += progress.what == ProgressKind.DELTAS_APPLIED
        self.world.auditor.not_followed += progress.what == ProgressKind.DELTAS_FAILED

    # --- work ---

    def _run_job(self, job: Job, done: Callable[[Event], None]) -> None:
        """The job runs when it would end, so that a crash before loses it as a real one would."""
        shell, world = self._shell, self.world
        assert shell is not None
        start = shell.agent.jobs.current
        if not isinstance(start, StartTraining):  # a look at the examples takes no time
            world.clock.call_later(0.0, self._end_job, shell, job, done)
            return
        drop = float(self._rng.random()) < self.profile.dropout
        if self.state is not None:
            world.auditor.on_started(self.name, self.state.unsettled)
        seconds = self._training_seconds(start)
        if drop:
            world.clock.call_later(seconds * 0.5, self._drop_out, shell)
        else:
            world.clock.call_later(seconds, self._end_job, shell, job, done)

    def _drop_out(self, shell: DeviceShell) -> None:
        if not shell.ended:
            self.crash()

    def _end_job(self, shell: DeviceShell, job: Job, done: Callable[[Event], None]) -> None:
        if not shell.ended:
            self._guarded(lambda: done(job()))

    def _training_seconds(self, start: StartTraining) -> float:
        if start.plan.without_parameters:
            return self._step_seconds  # one look at the examples
        plan = start.plan.training
        batches = -(-len(self._data) // plan.batch_size)
        steps = plan.epochs * batches
        if plan.steps_max:
            steps = min(steps, plan.steps_max)
        return min(steps * self._step_seconds, start.seconds_max)

    @property
    def _step_seconds(self) -> float:
        return self.world.scenario.step_seconds / self.profile.speed

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        """Looks at the examples (:class:`edge_sdk.device.training_job.Work`)."""
        TrainingWork(lambda: self._data.examples, engines=self._engines).check(ticket, digest, program)
        self.reach("after the look at the examples")

    def run(self, job: TrainingJob) -> TrainedUpdate:
        """Trains for real, on a clock of steps; the auditor hears of it (:class:`edge_sdk.device.work.Work`)."""
        used = digest_of(job.parameters) if job.parameters else None
        self.world.auditor.on_training(self.name, job.start.ticket, used)
        clock = _StepClock(self._step_seconds)
        own = self.world.scenario.local_algorithms
        trained = TrainingWork(lambda: self._data.examples, engines=self._engines, clock=clock, algorithms=own).run(job)
        update = trained.update
        if update.payload is None:
            raise EdgeFedError("a fresh update has its payload")
        delta = None if trained.result is None else trained.result.delta
        self.world.auditor.on_trained(self.name, update.ticket, update.digest, update.payload, delta)
        self.reach("after training")
        return trained
