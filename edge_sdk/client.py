"""``EdgeClient``: what an application embeds. One thread for the network, one for training, none of the app's."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.device.limits import Limits
from edge_sdk.errors import ConfigurationError, EdgeFedError

if TYPE_CHECKING:  # what a device is made of comes when one is made
    import queue
    from types import FrameType, TracebackType

    from edge_sdk.codecs import Codec
    from edge_sdk.device.progress import Progress, Status
    from edge_sdk.device.session import Event
    from edge_sdk.device.settings import AgentSettings
    from edge_sdk.device.shell import DeviceShell, Job
    from edge_sdk.device.state import DeviceState
    from edge_sdk.device.training_job import TrainedUpdate, TrainingJob, Work
    from edge_sdk.mqtt.events import Listener
    from edge_sdk.mqtt.settings import BrokerSettings
    from edge_sdk.mqtt.transport import PahoTransport
    from edge_sdk.training.algorithms import LocalAlgorithm
    from edge_sdk.training.local import Trainer
    from edge_sdk.wire.safe_msgpack import BytesLike

__all__ = ["LEAVE_SECONDS_MAX", "EdgeClient"]

logger = logging.getLogger(__name__)

SECONDS_PER_DAY: Final = 86_400
LEAVE_SECONDS_MAX: Final = 5.0
JOB_SECONDS_MAX: Final = 30.0
ENGINES: Final = ("auto", "onnxruntime", "numpy")


class EdgeClient:
    """A device of a federation.

    Use it in one of three ways: ``run()`` blocks until ``stop()``, SIGTERM or SIGINT; ``start()`` and ``stop()`` run it
    in the background; or as a context manager. The app is never blocked: the network has its own thread, training
    another, and every wait has a limit.

    Args:
        broker: ``mqtt://user:password@host:port`` (``mqtts`` for TLS), or a :class:`BrokerSettings`.
        federation: Name of the federation, 1..64 characters out of ``A-Z a-z 0-9 _ -``.
        device_id: Name of this device, likewise; the MQTT user name where the broker has ACLs.
        load_examples: Gives the local examples: ``(x, y)``, a dictionary by input name, or :class:`Examples`; called on
            the training thread, once a round.
        trainer: An object with ``fit(parameters, examples, plan)`` that replaces the engine.
        eligible: Whether the device may work now (idle, charging, unmetered ...); asked every few seconds on the
            network thread, must answer at once.
        limits: See :class:`Limits`.
        state_dir: Directory for what must survive a power cut; used by one process at a time.
        engine: ``auto``, ``onnxruntime`` or ``numpy``.
        task: Name of the task within the federation.
        on_progress: Told what happens, on the network or the training thread; must answer at once.
        publish_status: Whether retained JSON about this device is published for people.
        algorithms: Local algorithms of one's own, by the name that the coordinator's algorithm asks for.
        codecs: Codecs of one's own: classes derived from :class:`edge_sdk.codecs.Codec`. From here on they are known
            to the whole process.

    Raises:
        ConfigurationError: An argument is wrong; the message says which and what is allowed.
        StateError: ``state_dir`` cannot be used, or another process uses it.
    """

    def __init__(
        self,
        *,
        broker: str | BrokerSettings,
        federation: str,
        device_id: str,
        load_examples: Callable[[], Any] | None = None,
        trainer: Trainer | None = None,
        eligible: Callable[[], bool] | None = None,
        limits: Limits | None = None,
        state_dir: str | os.PathLike[str] = "edgefed-state",
        engine: str = "auto",
        task: str = "default",
        on_progress: Callable[[Progress], None] | None = None,
        publish_status: bool = True,
        algorithms: Mapping[str, LocalAlgorithm] | None = None,
        codecs: Iterable[type[Codec]] = (),
    ) -> None:
        import queue

        from edge_sdk.device.files import DirectoryFiles
        from edge_sdk.device.settings import AgentSettings
        from edge_sdk.mqtt.loop import EventLoop
        from edge_sdk.wire.topics import check_segment, client_id

        if not callable(load_examples):
            raise ConfigurationError("load_examples: give a function that returns this device's (x, y)")
        _check_callables(trainer, eligible, on_progress, algorithms or {})
        if engine not in ENGINES:
            raise ConfigurationError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
        _register(codecs)
        self.limits = limits or Limits()
        settings = AgentSettings(
            federation=check_segment(federation, "federation"),
            device=check_segment(device_id, "device_id"),
            task=check_segment(task, "task"),
            engine=engine,
            program_bytes_max=self.limits.program_bytes_max,
            parameters_bytes_max=self.limits.parameters_bytes_max,
            publish_status=publish_status,
            bytes_per_update_max=self.limits.bytes_per_update_max,
            algorithms=tuple(algorithms or ()),
        )
        self._broker = _checked_broker(broker)
        self._client_id = self._broker.client_id or client_id(federation, task, device_id)
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[Event], None]] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._begun = False
        self._turned_at = time.monotonic()
        work = _WorkOnDemand(load_examples, engine, self.limits, trainer, dict(algorithms or {}))
        # From here on there is something to give back.
        self._files = DirectoryFiles(Path(state_dir))
        try:
            self._loop = EventLoop()
            self._timer = _NextCall(self._loop.clock)
            self._shell = self._make_shell(settings, work, eligible, on_progress)
        except BaseException:
            self._files.close()
            raise
        self._agent = self._shell.agent

    def _make_shell(
        self,
        settings: AgentSettings,
        work: Work,
        eligible: Callable[[], bool] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> DeviceShell:
        import numpy as np

        from edge_sdk.device.shell import DeviceShell

        return DeviceShell(
            settings,
            timers=self._timer,
            connect=self._connect,
            run_job=lambda job, done: self._jobs.put((job, done)),
            state=self._open_state(),
            work=work,
            rng=np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(16), "little"))),
            eligible=eligible,
            on_progress=on_progress,
        )

    def _open_state(self) -> DeviceState:
        from edge_sdk.device.state import DeviceState

        return DeviceState(
            self._files,
            new_instance=lambda: os.urandom(16),
            wall_day=lambda: int(time.time() // SECONDS_PER_DAY),
            state_write_bytes_per_day_max=self.limits.state_write_bytes_per_day_max,
            cache_bytes_max=self.limits.cache_bytes_max,
            outbox_bytes_max=self.limits.outbox_bytes_max,
            bytes_per_device_per_day_max=self.limits.bytes_per_device_per_day_max,
        )

    @property
    def status(self) -> Status:
        """The device at a glance; safe to read from any thread."""
        return self._agent.status

    @property
    def running(self) -> bool:
        """Whether the background thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def silent_seconds(self) -> float:
        """How long ago the network thread last went round; a second or two while it is well, for a watchdog to see.

        A connection attempt may hold it up for as long as name look-up, TCP and TLS take (``connect_seconds_max``).
        """
        return time.monotonic() - self._turned_at

    def run(self) -> None:
        """Works until ``stop()``, SIGTERM or SIGINT; leaves a round politely. Blocks.

        Raises:
            EdgeFedError: The client cannot go on (a broker that is away is no reason: it is waited for).
        """
        import signal

        self._begin("run()")
        before = _on_signals(self.request_stop)
        try:
            self._work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self) -> EdgeClient:
        """Works in the background; returns at once."""
        self._begin("start()")
        self._thread = threading.Thread(target=self._work_in_background, name="edgefed-network", daemon=True)
        self._thread.start()
        return self

    def request_stop(self) -> None:
        """Asks the client to leave; returns at once, safe in a signal handler and on any thread."""
        self._stopping.set()
        self._loop.call_soon_threadsafe(lambda: None)

    def stop(self, timeout_seconds: float = LEAVE_SECONDS_MAX + 5.0) -> None:
        """Leaves politely and waits, at most ``timeout_seconds``.

        Raises:
            EdgeFedError: The background thread had ended with this error.
        """
        self.request_stop()
        if not self._begun:
            self._begun = True
            self._close()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        failure, self._failure = self._failure, None
        if isinstance(failure, EdgeFedError):
            raise failure
        if failure is not None:
            raise EdgeFedError(f"the client ended: {type(failure).__name__}: {failure}") from failure

    def __enter__(self) -> EdgeClient:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _begin(self, how: str) -> None:
        if self._begun:
            raise ConfigurationError(f"{how}: this client was started or stopped before; make a new one")
        self._begun = True

    def _close(self) -> None:
        self._files.close()
        self._loop.close()

    # --- the network thread ---

    def _work_in_background(self) -> None:
        try:
            self._work()
        except BaseException as error:  # told by status and by stop(); an app's log shows it at once
            self._failure = error
            self._agent.note_failure(error)
            logger.exception("the client ended")

    def _work(self) -> None:
        worker = threading.Thread(target=self._run_jobs, name="edgefed-training", daemon=True)
        worker.start()
        self._loop.register(self._transport)
        try:
            while not self._stopping.is_set():
                self._turn()
            self._shell.stop()
            self._drain()
        finally:
            self._jobs.put(None)
            worker.join(JOB_SECONDS_MAX)
            self._loop.unregister(self._transport)
            self._close()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._timer.make_due()
        self._loop.run_once(max(0.0, self._timer.when - self._loop.clock()))

    def _drain(self) -> None:
        """Gives the last words time to leave, but not for ever."""
        until = self._loop.clock() + LEAVE_SECONDS_MAX
        while (self._agent.status.connected or self._agent.busy) and self._loop.clock() < until:
            self._loop.run_once(0.1)

    def _connect(self, listener: Listener, will: tuple[str, bytes] | None) -> PahoTransport:
        from edge_sdk.mqtt import PahoTransport, Will

        settings = replace(
            self._broker,
            client_id=self._client_id,
            will=self._broker.will or (Will(*will) if will else None),
        )
        self._transport = PahoTransport(settings, listener, manual_ack=True)
        return self._transport

    # --- the training thread ---

    def _run_jobs(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            event = job()
            self._loop.call_soon_threadsafe(lambda done=done, event=event: done(event))  # type: ignore[misc]


class _NextCall:
    """The one timer of a client. Its thread looks at it between turns: a mistake in the call ends the client."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.when = float("inf")
        self._call: Callable[[], None] | None = None

    def call_at(self, when: float, call: Callable[[], None]) -> _NextCall:
        self.when, self._call = when, call
        return self

    def cancel(self) -> None:
        self.when, self._call = float("inf"), None

    def make_due(self) -> None:
        """Makes the call if it is due."""
        if self.when <= self.clock():
            call = self._call
            self.cancel()
            if call is not None:
                call()


class _WorkOnDemand:
    """Training, whose engine and codecs are loaded by the first job, on the training thread."""

    def __init__(
        self,
        load_examples: Callable[[], Any],
        engine: str,
        limits: Limits,
        trainer: Trainer | None,
        algorithms: Mapping[str, LocalAlgorithm],
    ) -> None:
        self._load_examples = load_examples
        self._engine = engine
        self._limits = limits
        self._trainer = trainer
        self._algorithms = algorithms
        self._work: Work | None = None

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        """See :class:`edge_sdk.device.training_job.Work`."""
        self._made().check(ticket, digest, program)

    def run(self, job: TrainingJob) -> TrainedUpdate:
        """See :class:`edge_sdk.device.training_job.Work`."""
        return self._made().run(job)

    def _made(self) -> Work:
        if self._work is None:
            from edge_sdk.device.work import EngineCache, TrainingWork

            self._work = TrainingWork(
                self._load_examples,
                engines=EngineCache(self._engine, self._limits.threads),
                trainer=self._trainer,
                examples_min=self._limits.examples_min,
                algorithms=self._algorithms,
            )
        return self._work


def _register(codecs: Iterable[type[Codec]]) -> None:
    for codec in codecs:
        from edge_sdk.codecs import register_codec

        register_codec(codec)


def _check_callables(
    trainer: object, eligible: object, on_progress: object, algorithms: Mapping[str, LocalAlgorithm]
) -> None:
    if trainer is not None and not callable(getattr(trainer, "fit", None)):
        raise ConfigurationError(f"trainer: {type(trainer).__name__} has no method fit(parameters, examples, plan)")
    for name, value in (("eligible", eligible), ("on_progress", on_progress)):
        if value is not None and not callable(value):
            raise ConfigurationError(f"{name}: {value!r} is not a function")
    for name, algorithm in algorithms.items():
        if not callable(getattr(algorithm, "run", None)):
            raise ConfigurationError(
                f"algorithms: {name!r} is {type(algorithm).__name__}, which has no method run(work)"
            )


def _checked_broker(broker: object) -> BrokerSettings:
    from edge_sdk.mqtt.settings import BrokerSettings

    if isinstance(broker, BrokerSettings):
        return broker
    if not isinstance(broker, str):
        raise ConfigurationError(
            f"broker: {broker!r} is neither an address such as mqtt://host:1883 nor BrokerSettings"
        )
    return BrokerSettings.parse(broker)


def _on_signals(stop: Callable[[], None]) -> dict[int, Any]:
    """SIGTERM and SIGINT ask for a polite leave; only the main thread may say so, others keep what is there."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        return {}

    def handler(number: int, frame: FrameType | None) -> None:
        stop()

    return {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
