"""A device in virtual time: the very agent that ships, on a simulated network, clock, disk and power supply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from device_sim.profiles import DeviceProfile
from device_sim.world.clock import Handle
from device_sim.world.crashes import Crashed
from device_sim.world.world import World
from edge_sdk.device.agent import Agent, AgentSettings, Progress
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.session import Action, ApplyModelDeltas, Event, MarkReceived, Settle, StartTraining
from edge_sdk.device.state import DeviceState
from edge_sdk.device.work import EngineCache, TrainedUpdate, TrainingJob, TrainingWork
from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt import TransportEvent
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


class _CrashingAgent(Agent):
    """The shipped agent with a crash point before and after each action."""

    device: SimDevice

    def _act(self, action: Action, now: float) -> None:
        device = self.device
        device.reach(f"before {type(action).__name__}")
        super()._act(action, now)
        device.note(action)
        device.reach(f"after {type(action).__name__}")


class SimDevice:
    """One device of a scenario.

    Args:
        world: Clock, broker, auditor, crash points.
        number: Its place in the fleet.
        profile: Its speed, reliability and link.
        examples: Its local examples ``(x, y)``.
        engines: Engines shared by all devices of the process.
    """

    def __init__(
        self, world: World, number: int, profile: DeviceProfile, examples: tuple[Any, Any], engines: EngineCache
    ) -> None:
        self.world = world
        self.name = f"device-{number:05d}"
        self.profile = profile
        self.alive = False
        self.life = 0
        self._examples = examples
        self._engines = engines
        self._disk = _Disk()
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([world.seed, 1, number])))
        self._timer: Handle | None = None
        self.agent: Agent | None = None
        self.state: DeviceState | None = None

    # --- power ---

    def boot(self) -> None:
        """Starts from what is on disk."""
        self.life += 1
        self.alive = True
        self._disk.reach = self.reach
        life, world = self.life, self.world
        try:
            self.state = DeviceState(
                self._disk,
                new_instance=lambda: self._rng.bytes(16),
                wall_day=lambda: world.daily_usage.day,
                bytes_per_device_per_day_max=world.scenario.bytes_per_device_per_day_max,
            )
            settings = AgentSettings(world.scenario.federation, self.name, publish_status=False)
            agent = _CrashingAgent(
                settings,
                state=self.state,
                work=self,
                run_job=self._run_job,
                rng=self._rng,
                on_progress=self._on_progress,
                blobs=world.blobs,
                connect_at=world.clock.now + float(self._rng.random()) * world.scenario.boot_seconds,
            )
        except Crashed:
            self.crash()
            return
        agent.device = self
        self.agent = agent
        self._transport = world.broker.transport(
            self.name, lambda event: self._on_transport(event, life), link=self.profile.link
        )
        agent.attach(self._transport)
        self._reschedule()

    def crash(self) -> None:
        """The power fails: memory is gone, the disk stays, the broker hears nothing."""
        self.life += 1
        self.alive = False
        self.agent = None
        if self._timer is not None:
            self.world.clock.cancel(self._timer)
            self._timer = None
        if hasattr(self, "_transport"):
            self._transport.vanish()
        self.world.crashes += 1
        self.world.clock.call_later(REBOOT_SECONDS * (0.5 + float(self._rng.random())), self.boot)

    @property
    def settled(self) -> bool:
        """Whether it runs and knows the outcome of everything it has done."""
        return self.alive and self.agent is not None and self.state is not None and self.state.outbox is None

    def reach(self, point: str) -> None:
        self.world.points.reach("device", self.name, point)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Crashed:
            self.crash()
            return
        finally:
            self.world.daily_usage.note(self.name, self._transport.meter)
        self._reschedule()

    # --- driving the agent ---

    def _on_transport(self, event: TransportEvent, life: int) -> None:
        agent = self.agent
        if life == self.life and agent is not None:
            self._guarded(lambda: agent.on_transport(event, self.world.clock.now))

    def _tick(self) -> None:
        self._timer = None
        agent = self.agent
        if agent is not None:
            self._guarded(lambda: agent.tick(self.world.clock.now))

    def _reschedule(self) -> None:
        due = self.agent.next_deadline() if self.agent is not None else None
        timer = self._timer
        if due is None or (timer is not None and timer.pending and timer.time <= due):
            return
        if timer is not None:
            self.world.clock.cancel(timer)
        self._timer = self.world.clock.call_at(max(due, self.world.clock.now), self._tick)

    def note(self, action: Action) -> None:
        """Tells the auditor what this device believes."""
        match action:
            case MarkReceived(ticket):
                outbox = self.state.outbox if self.state is not None else None
                if outbox is not None and outbox.ticket == ticket:
                    self.world.auditor.on_receipt(self.name, ticket, outbox.digest)
            case Settle(ticket, counted, _):
                self.world.auditor.on_settled(self.name, ticket, counted)
            case ApplyModelDeltas():
                self.world.auditor.followed += 1

    def _on_progress(self, progress: Progress) -> None:
        if progress.what == "deltas_failed":
            self.world.auditor.not_followed += 1

    # --- work ---

    def _run_job(self, job: Callable[[], Event]) -> None:
        """The job runs when it would end, so that a crash before loses it as a real one would."""
        agent, life, world = self.agent, self.life, self.world
        assert agent is not None
        drop = float(self._rng.random()) < self.profile.dropout
        start = agent.job
        if start is not None and self.state is not None:
            world.auditor.on_started(self.name, self.state.unsettled)
        seconds = self._training_seconds(start) if start is not None else 0.0
        if drop:
            world.clock.call_later(seconds * 0.5, self._drop_out, life)
        else:
            world.clock.call_later(seconds, self._end_job, job, life)

    def _drop_out(self, life: int) -> None:
        if life == self.life:
            self.crash()

    def _end_job(self, job: Callable[[], Event], life: int) -> None:
        agent = self.agent
        if life == self.life and agent is not None:
            self._guarded(lambda: agent.handle(job(), self.world.clock.now))

    def _training_seconds(self, start: StartTraining) -> float:
        plan = start.plan.training
        batches = -(-len(self._examples[0]) // plan.batch_size)
        steps = plan.epochs * batches
        if plan.steps_max:
            steps = min(steps, plan.steps_max)
        return min(steps * self._step_seconds, start.seconds_max)

    @property
    def _step_seconds(self) -> float:
        return self.world.scenario.step_seconds / self.profile.speed

    def run(self, order: TrainingJob) -> TrainedUpdate:
        """Trains for real, on a clock of steps; the auditor hears of it (:class:`edge_sdk.device.work.Work`)."""
        self.world.auditor.on_training(self.name, order.start.ticket, digest_of(order.parameters))
        clock = _StepClock(self._step_seconds)
        work = TrainingWork(lambda: self._examples, engines=self._engines, clock=clock)
        product = work.run(order)
        entry = product.entry
        if entry.payload is None:
            raise EdgeFedError("a fresh product has its payload")
        self.world.auditor.on_trained(self.name, entry.ticket, entry.digest, entry.payload, product.result.delta)
        self.reach("after training")
        return product
