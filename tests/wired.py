"""The real machines, joined in memory: no network, no thread, no clock but the one that a test turns by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coordinator.compile import build_zoo_model, compile_model
from coordinator.downlink import Downlink
from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    CloseJob,
    Effect,
    Evaluated,
    Event,
    Ingested,
    IngestItem,
    Publish,
    Published,
    StartJob,
    Subscribe,
    Tick,
)
from coordinator.pipeline import (
    Aggregator,
    PipelineSettings,
    TaskWorker,
    pack_memory,
)
from coordinator.router import Coordinator
from coordinator.schedules.schedule import Schedule
from coordinator.schedules.synchronous import RoundSettings
from coordinator.shell import Shell
from coordinator.statistics_round import first_round, opening_pipeline, statistics_round
from coordinator.stopping import StoppingRule
from coordinator.store import Store
from coordinator.task import Task
from coordinator.task_settings import TaskSettings
from coordinator.validate import Validation
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.frames import encode_frames
from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.session import (
    CheckExamples,
    ExamplesFit,
    MarkReceived,
    MessageArrived,
    Offline,
    Online,
    Send,
    Session,
    SessionSettings,
    Settle,
    StartTraining,
    TrainingFinished,
    Unsubscribe,
)
from edge_sdk.device.session import Published as SentPublished
from edge_sdk.device.session import Subscribe as Listen
from edge_sdk.device.session import Tick as SessionTick
from edge_sdk.mqtt import Delivery, Meter
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Bundle, Program, digest_of, encode_parameters
from edge_sdk.training.feature_sums import feature_sums
from edge_sdk.training.model_delta import apply_model_deltas
from edge_sdk.training.normalise import Normalise
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.messages import DELTA, CheckIn, Invite, Message, Update, Verdict, introduction_id
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.ranges import DIRECT_BYTES_MAX
from edge_sdk.wire.topics import Topics

M = TypeVar("M")
E = TypeVar("E")

FEDERATION, TASK = "garden", "default"
TOPICS = Topics(FEDERATION)
CODEC = CodecSettings("dense")
SUPPORTS = ["codec:dense", "local:feature_statistics"]
ROUND = RoundSettings(
    goal_count=2,
    minimum_count=1,
    over_selection=1.5,
    window_seconds=5.0,
    selection_seconds_max=60.0,
    configuration_seconds_max=20.0,
    reporting_seconds_max=60.0,
)


@lru_cache(maxsize=1)
def bundle() -> Bundle:
    """Softmax regression from 4 inputs to 3 classes: 15 parameters."""
    model = build_zoo_model("softmax_regression", inputs=(4,), outputs=3, seed=0)
    return compile_model(model, loss="softmax_cross_entropy", optimizer="sgd", name="tiny", verify=False)


@lru_cache(maxsize=1)
def larger_bundle() -> Bundle:
    """Softmax regression from 64 inputs to 10 classes: 650 parameters, large enough for deltas."""
    model = build_zoo_model("softmax_regression", inputs=(64,), outputs=10, seed=0)
    return compile_model(model, loss="softmax_cross_entropy", optimizer="sgd", name="larger", verify=False)


@lru_cache(maxsize=2)
def raw_bundle(larger: bool = False) -> Bundle:
    """The small model with an input in raw units, which all devices together normalise; it trains by a trainer."""
    plain = larger_bundle() if larger else bundle()
    features = plain.program.inputs[0].shape[1]
    assert features is not None
    constants = [("normalise/mean", (features,), "constant"), ("normalise/scale", (features,), "constant")]
    spec = ParameterSpec([*((t.name, t.shape, t.kind) for t in plain.program.spec), *constants])
    program = Program(
        name="raw",
        kind="trainer",
        spec=spec,
        inputs=plain.program.inputs,
        target=plain.program.target,
        loss=plain.program.loss,
        optimizer=plain.program.optimizer,
        metric=plain.program.metric,
        classes=plain.program.classes,
        normalise=Normalise(
            plain.program.inputs[0].name, 1, features, "federated", "normalise/mean", "normalise/scale"
        ),
        missing="mean",
    )
    begin = [plain.parameters, np.zeros(features, np.float32), np.ones(features, np.float32)]
    return Bundle(program, np.concatenate(begin))


def task(**changes: Any) -> TaskSettings:
    settings = TaskSettings(
        federation=FEDERATION,
        task=TASK,
        round=ROUND,
        plan=Plan(training=TrainingPlan(), codec=CODEC),
        stopping=StoppingRule(rounds_max=3),
        program_digest=bundle().program.digest,
        requires=("codec:dense",),
        come_back_seconds=100.0,
        jitter=0.0,
        retry_seconds=10.0,
        chunk_bytes_max=1024,
        update_bytes_max=4096,
        retained_blobs="never",
        inline_bytes_max=0,
    )
    return replace(settings, **changes)


def make_report(values: Any, made: Bundle | None = None, **changes: Any) -> bytes:
    """A device's statistics of its features, as honest bytes."""
    normalise = (made or raw_bundle()).program.normalise
    assert normalise is not None
    x = np.asarray(values, dtype=np.float32)
    report = Update(
        examples=len(x),
        steps=0,
        loss=0.0,
        complete=True,
        seconds=0.0,
        engine="none",
        vectors={},
        arrays=feature_sums(x, normalise).encode(),
    )
    return replace(report, **changes).encode()


def make_update(
    delta: NDArray[np.float32] | float = 0.01, examples: int = 10, pad: int = 0, made: Bundle | None = None
) -> bytes:
    """A device's update as honest bytes; ``pad`` makes its engine's name longer, so that digests differ."""
    spec = (made or bundle()).program.spec
    values = np.full(spec.size, delta, dtype=np.float32) if isinstance(delta, float) else delta
    frames = encode_frames(values, None, CODEC, spec, seed=1)
    return Update(
        examples=examples,
        steps=1,
        loss=1.0,
        complete=True,
        seconds=1.0,
        engine="n" * (1 + pad),
        vectors={DELTA: frames.frames},
    ).encode()


class Jobs:
    """The workers' queue; a test runs it when it likes."""

    def __init__(self, ingest: TaskWorker) -> None:
        self.ingest_side = ingest
        self.queue: deque[StartJob | IngestItem | CloseJob] = deque()
        self.evaluations: deque[tuple[int, bytes]] = deque()
        self.full = False
        self.score: Callable[[], dict[str, float]] = lambda: {"accuracy": 0.5}

    def start(self, job: StartJob) -> None:
        self.queue.append(job)

    def ingest(self, item: IngestItem) -> None:
        self.queue.append(item)

    def close(self, job: CloseJob) -> None:
        self.queue.append(job)

    def evaluate(self, task: str, number: int, parameters: bytes) -> None:
        assert self.ingest_side.parameters(parameters)
        self.evaluations.append((number, parameters))

    def busy(self) -> bool:
        return self.full

    def run(self) -> list[Event]:
        """Runs everything that waits."""
        events: list[Event] = []
        while self.queue:
            job = self.queue.popleft()
            if isinstance(job, StartJob):
                self.ingest_side.start(job)
            elif isinstance(job, CloseJob):
                events.append(self.ingest_side.close(job))
            else:
                events.append(Ingested(job.task, self.ingest_side.process([job])))
        while self.evaluations:
            number, _ = self.evaluations.popleft()
            events.append(Evaluated(TASK, number, self.score()))
        return events


def code(verdict: Verdict) -> str:
    """The short code that stands before the words of a verdict's reason."""
    return verdict.reason.partition(":")[0]


class DeskTransport:
    """Where the shell's words go: to the desk, at once; nothing is lost, and the broker takes everything."""

    meter = Meter()
    connected = True
    waiting = 0
    waiting_bytes = 0

    def __init__(self, desk: Desk, channel: str) -> None:
        self._desk = desk
        self._channel = channel

    def connect(self) -> None:
        """The desk says when a connection comes and goes."""

    def disconnect(self, will: bool = False) -> None:
        """Likewise."""

    def subscribe(self, filters: Sequence[str], *, token: int = 0) -> None:
        """What is subscribed to is read from the effects."""

    def unsubscribe(self, filters: Sequence[str], *, token: int = 0) -> None:
        """Likewise."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledgements are read from the effects."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_seconds: int | None = None,
        token: int = 0,
    ) -> None:
        self._desk.published(Publish(self._channel, topic, payload, retain, expiry_seconds, token))


class Desk:
    """One coordinator: the core, its store and its workers. ``crash()`` starts it again from the database."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        seed: int = 0,
        made: Bundle | None = None,
        downlink: Downlink | None = None,
        pipeline: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        self.made = made or bundle()
        settings = task(**{"program_digest": self.made.program.digest, **changes})
        self.settings = replace(settings, opening=statistics_round(settings, self.made.program))
        self.pipeline = PipelineSettings(
            **{
                "validation": Validation(size=self.made.program.spec.size),
                "downlink": downlink or Downlink(),
                **(pipeline or {}),
            }
        )
        self.now = 0.0
        self.seed = seed
        self.number = 0
        self.ids = np.random.Generator(np.random.PCG64(seed))
        self.store = store or Store(":memory:", wall=lambda: self.now, new_id=self.ids.bytes)
        aggregator = self.aggregator()
        memory = aggregator.initial_memory()
        self.store.put_initial(
            TASK,
            self.made.program.encode(),
            encode_parameters(self.made.parameters),
            pack_memory(memory),
            aggregator.broadcast(self.made.parameters, memory),
            before_round=first_round(self.made.program, self.made.parameters),
        )
        self.effects: list[Effect] = []
        self.retained: dict[str, bytes] = {}
        self.auto_publish = True
        self.on_publish: Callable[[Publish], None] = lambda publish: None
        self.boot()

    def aggregator(self) -> Aggregator:
        return Aggregator(self.made.program, self.settings.plan, self.pipeline)

    def worker(self) -> TaskWorker:
        training = self.aggregator()
        return TaskWorker(self.store, TASK, training, opening_pipeline(self.settings, training))

    def boot(self) -> None:
        self.jobs = Jobs(self.worker())
        self.shell = Shell(
            Coordinator(
                [self.settings],
                self.store,
                self.jobs,
                new_id=self.ids.bytes,
                rng=np.random.Generator(np.random.PCG64(self.seed)),
                wall=lambda: self.now,
                incarnation=self.store.next_incarnation(),
            ),
            self.store,
            lambda channel, on_event, will: DeskTransport(self, channel),
            clock=lambda: self.now,
            rng=np.random.Generator(np.random.PCG64(self.seed)),
            on_effect=self.effects.append,
        )
        self.shell.start()
        for channel in (CONTROL, BULK):
            self.play(BrokerUp(channel, 1 << 20))

    def crash(self, down_seconds: float = 1000.0) -> None:
        """What is not committed is gone."""
        self.now += down_seconds
        self.boot()

    @property
    def core(self) -> Coordinator:
        return self.shell.core

    @property
    def task(self) -> Task:
        return self.core.tasks[TASK]

    @property
    def round(self) -> Schedule | None:
        return self.task.schedule

    @property
    def shard(self) -> str:
        return self.store.lineage.hex()[:8]

    # --- turns: those of the shipped shell ---

    def play(self, *events: Event) -> list[Effect]:
        """Several events in one turn, and the turns that follow from what was published in it."""
        before = len(self.effects)
        for event in events:
            self.shell.post(event)
        self.shell.turn()
        while self.shell.waiting:
            self.shell.turn()
        return self.effects[before:]

    def work(self) -> list[Effect]:
        """The workers do what waits, and the core hears of it, until nothing waits."""
        done: list[Effect] = []
        while events := self.jobs.run():
            for event in events:
                done += self.play(event)
        return done

    def wait(self, seconds: float = 0.0) -> list[Effect]:
        """Time passes: until the next deadline, or by ``seconds`` with every deadline on the way."""
        until = self.now + seconds if seconds else (self.core.next_deadline() or self.now)
        done: list[Effect] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            done += self.play(Tick())
        self.now = max(self.now, until)
        return done

    def published(self, publish: Publish) -> None:
        """The broker has a message: it keeps what is retained, and brings back what is for coordinators."""
        if self.store.in_transaction:
            raise AssertionError(f"{publish.topic}: spoken before the commit")
        if publish.retain:
            self.retained[publish.topic] = publish.payload
        parts = TOPICS.parse(publish.topic)
        if parts is not None and parts[0] == "coordinator":
            delivery = Delivery(publish.topic, publish.payload, False, 0)
            self.shell.post(Arrived(CONTROL, publish.topic, publish.payload, delivery))
        self.on_publish(publish)
        if publish.token and self.auto_publish:
            self.shell.post(Published(publish.channel, publish.token))

    def lose_broker(self) -> None:
        self.play(BrokerDown(CONTROL), BrokerDown(BULK))

    def find_broker(self) -> list[Effect]:
        return [*self.play(BrokerUp(CONTROL, 1 << 20)), *self.play(BrokerUp(BULK, 1 << 20))]

    # --- devices' messages, by hand ---

    def arrived(self, device: str, message: Message, *, lineage: bytes | None = None) -> Arrived:
        """A message of a device on its way in."""
        self.number += 1
        bulk = message.kind == "chunk"
        topic = TOPICS.up(self.shard, device) if bulk else TOPICS.from_device(device, message.kind)
        envelope = Envelope(TASK, self.store.lineage if lineage is None else lineage)
        payload = encode_message(envelope, message)
        return Arrived(BULK if bulk else CONTROL, topic, payload, Delivery(topic, payload, False, self.number))

    def hear(self, device: str, *messages: Message, lineage: bytes | None = None) -> list[Effect]:
        return self.play(*(self.arrived(device, message, lineage=lineage) for message in messages))

    def check_in(self, device: str, nonce: bytes = b"nonce   ", **changes: Any) -> list[Effect]:
        instance = changes.pop("instance", device.encode().ljust(16))
        capabilities = changes.pop("capabilities", {"supports": SUPPORTS})
        name = introduction_id(instance, capabilities)
        message = CheckIn(nonce=nonce, introduction=name, instance=instance, capabilities=capabilities)
        return self.hear(device, replace(message, **changes))

    def begin(self, *devices: str) -> dict[str, Invite]:
        """The round begins, these devices check in, and selection is over: their invites."""
        if self.round is None:
            self.wait()
        for device in devices:
            self.check_in(device)
        self.wait(ROUND.window_seconds)
        return {device: self.told(device, Invite)[-1] for device in devices if self.told(device, Invite)}

    # --- what was said ---

    def said(self, kind: type[M], effects: Iterable[Effect] | None = None) -> list[tuple[str, M]]:
        """Every message of one kind to devices, with its device."""
        found = []
        for effect in self.effects if effects is None else effects:
            if isinstance(effect, Publish):
                parts = TOPICS.parse(effect.topic)
                if parts is not None and parts[0] == "to" and parts[2] == getattr(kind, "kind", ""):
                    _, message = decode_message(effect.payload, parts[2], peer="coordinator")
                    assert isinstance(message, kind)
                    found.append((parts[1], message))
        return found

    def told(self, device: str, kind: type[M], effects: Iterable[Effect] | None = None) -> list[M]:
        return [message for name, message in self.said(kind, effects) if name == device]

    @staticmethod
    def acknowledged(effects: Iterable[Effect]) -> list[int]:
        return [effect.acknowledgement.acknowledgement for effect in effects if isinstance(effect, Acknowledge)]

    def filters(self) -> list[str]:
        return [pattern for effect in self.effects if isinstance(effect, Subscribe) for pattern in effect.filters]


def pending_of(start: StartTraining, payload: bytes) -> PendingUpdate:
    """The update that a piece of work came to."""
    return PendingUpdate(
        ticket=start.ticket,
        digest=digest_of(payload),
        lineage=start.lineage,
        task=start.task,
        round=start.round,
        shard=start.shard,
        base=start.parameters,
        spec=bytes(32),
        payload=payload,
    )


class PairBlobs:
    """What one device of a pair holds."""

    def __init__(self, pair: Pair, device: str) -> None:
        self._pair = pair
        self._device = device

    def has(self, digest: bytes) -> bool:
        return digest in self._pair.blobs[self._device]

    def parameters(self) -> tuple[bytes, ...]:
        return tuple(self._pair.parameters[self._device])

    def keep(self, kind: str, digest: bytes, data: memoryview) -> None:
        self._pair.store(self._device, kind, digest, bytes(data))

    def follow(self, base: bytes, deltas: tuple[memoryview, ...], target: bytes) -> str:
        self._pair.followed[self._device].append(len(deltas))
        made = apply_model_deltas(self._pair.blobs[self._device][base], deltas, target)
        self._pair.store(self._device, "parameters", target, bytes(made))
        return ""


class Pair:
    """A coordinator and some sessions; every message is delivered, unless ``lose`` says otherwise.

    With ``small`` what is small needs no question, as on devices; without it all is asked for and offered.
    """

    def __init__(self, *devices: str, small: bool = False, **changes: Any) -> None:
        self.direct_bytes_max = DIRECT_BYTES_MAX if small else 0
        self.desk = Desk(**({"inline_bytes_max": 4096} if small else {}), **changes)
        self.desk.on_publish = self._from_coordinator
        self.lose: Callable[[str, str], bool] = lambda topic, payload: False
        self.filters: dict[str, set[str]] = {device: set() for device in devices}
        self.blobs: dict[str, dict[bytes, bytes]] = {device: {} for device in devices}
        self.parameters: dict[str, list[bytes]] = {device: [] for device in devices}  # digests, the newest first
        self.followed: dict[str, list[int]] = {device: [] for device in devices}  # how many deltas, each time
        self.settled: dict[str, list[bool]] = {device: [] for device in devices}
        self.receipts: dict[str, int] = dict.fromkeys(devices, 0)
        self.trainings: dict[str, list[StartTraining]] = {device: [] for device in devices}
        self.todo: deque[Callable[[], None]] = deque()
        self.sessions: dict[str, Session] = {}
        for number, device in enumerate(devices):
            self.sessions[device] = self.session(device, number)
            self.connect(device)

    def session(self, device: str, seed: int, **given: Any) -> Session:
        return Session(
            SessionSettings(
                federation=FEDERATION,
                task=TASK,
                device=device,
                instance=device.encode().ljust(16),
                capabilities={"supports": SUPPORTS},
                supports=frozenset(SUPPORTS),
                direct_bytes_max=self.direct_bytes_max,
            ),
            rng=np.random.Generator(np.random.PCG64(seed)),
            blobs=PairBlobs(self, device),
            **given,
        )

    @property
    def now(self) -> float:
        return self.desk.now

    def connect(self, device: str) -> None:
        self.play(device, Online(1 << 20))

    def cut(self, device: str) -> None:
        self.filters[device].clear()
        self.play(device, Offline())

    def play(self, device: str, event: Any) -> None:
        for action in self.sessions[device].handle(event, self.now):
            self._perform(device, action)

    def run(self, seconds: float = 0.0) -> None:
        """Everything that waits, then time, deadline by deadline."""
        until = self.now + seconds
        while True:
            while self.todo:
                self.todo.popleft()()
            self.desk.work()
            if self.todo:
                continue
            due = [session.next_deadline() for session in self.sessions.values()]
            earliest = min((d for d in [self.desk.core.next_deadline(), *due] if d is not None), default=until + 1)
            if earliest > until:
                self.desk.now = until
                return
            self.desk.now = max(self.now, earliest)
            self.desk.wait(1e-9)
            for device, session in self.sessions.items():
                deadline = session.next_deadline()
                if deadline is not None and deadline <= self.now:
                    self.play(device, SessionTick())

    def _perform(self, device: str, action: Any) -> None:
        match action:
            case Send(topic, payload, token):
                self.todo.append(lambda: self._to_coordinator(device, topic, payload, token))
            case Listen(filters):
                self.filters[device].update(filters)
                for topic, payload in list(self.desk.retained.items()):
                    if payload and any(_matches(pattern, topic) for pattern in filters):
                        self._deliver(device, topic, payload, retained=True)
            case Unsubscribe(filters):
                self.filters[device].difference_update(filters)
            case CheckExamples(ticket, program):
                assert program in self.blobs[device]
                self.todo.append(lambda: self.play(device, ExamplesFit(ticket)))
            case StartTraining():
                if not action.plan.without_parameters:
                    assert digest_of(self.blobs[device][action.parameters]) == action.parameters
                self.trainings[device].append(action)
                payload = self.make_update(device)
                event = TrainingFinished(pending_of(action, payload))
                self.todo.append(lambda: self.play(device, event))
            case MarkReceived():
                self.receipts[device] += 1
            case Settle(_, counted, _):
                self.settled[device].append(counted)

    def store(self, device: str, kind: str, digest: bytes, data: bytes) -> None:
        """Keeps programs, and the two newest parameters."""
        self.blobs[device][digest] = data
        if kind == "parameters":
            self.parameters[device].insert(0, digest)
            for old in self.parameters[device][2:]:
                del self.blobs[device][old]
            del self.parameters[device][2:]

    def make_update(self, device: str) -> bytes:
        """What the device's training comes to."""
        return make_update(0.01, pad=len(self.trainings[device]), made=self.desk.made)

    def _to_coordinator(self, device: str, topic: str, payload: bytes, token: int) -> None:
        if token:
            self.todo.append(lambda: self.play(device, SentPublished(token)))
        if not self.lose(topic, "up"):
            channel = BULK if topic.startswith(f"{TOPICS.root}/up/") else CONTROL
            self.desk.number += 1
            self.desk.play(Arrived(channel, topic, payload, Delivery(topic, payload, False, self.desk.number)))

    def _from_coordinator(self, publish: Publish) -> None:
        for device, filters in self.filters.items():
            if any(_matches(pattern, publish.topic) for pattern in filters) and not self.lose(publish.topic, device):
                self._deliver(device, publish.topic, publish.payload)

    def _deliver(self, device: str, topic: str, payload: bytes, *, retained: bool = False) -> None:
        self.todo.append(lambda: self.play(device, MessageArrived(topic, payload, retained)))


def _matches(pattern: str, topic: str) -> bool:
    ours, theirs = pattern.split("/"), topic.split("/")
    return len(ours) == len(theirs) and all(p in ("+", t) for p, t in zip(ours, theirs, strict=True))
