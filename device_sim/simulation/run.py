"""``simulate``: rounds of the shipped parts in one process; the same seed, the same bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from coordinator.advice import ADVICE
from coordinator.config import FederationConfig
from coordinator.config.settings import check_algorithm, stopping_rule
from coordinator.config.settings import plan as plan_of
from coordinator.evaluation import Evaluator
from coordinator.pipeline import Step
from coordinator.schedules.selection import (
    Candidate,
    SelectionRule,
    Uniform,
    choose,
    make_rule,
    select,
    wanted_count,
)
from coordinator.server_optimizers import ServerOptimizer
from coordinator.statistics_round import first_round
from coordinator.stopping import Stopping
from coordinator.task_settings import OPENING_ROUND
from device_sim.simulation.arguments import (
    codec_table,
    cohorts_of,
    given,
    goal_count_of,
    made,
    name_of,
    own_object,
    table_of,
)
from device_sim.simulation.clients import AUTO, Clients, clients_from
from device_sim.simulation.history import ClientCounts, History, RoundResult
from device_sim.simulation.model import source_of
from device_sim.simulation.progress import Progress, progress_for
from device_sim.simulation.server import Server
from device_sim.simulation.settings import configured, tables_from
from edge_sdk.aggregation.algorithm import Algorithm
from edge_sdk.device.session import StartTraining
from edge_sdk.device.state import Vectors
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob, job_seed
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.errors import ConfigurationError, DivergedError, ProtocolError, TrainingError
from edge_sdk.training.algorithms import LocalAlgorithm, find_local_algorithm
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.examples import Examples
from edge_sdk.wire.plan import Plan

__all__ = ["simulate"]

TASK: Final = "default"
REASONS_SHOWN: Final = 3


def simulate(
    model: Any,
    clients: Any,
    *,
    rounds: int = 100,
    seed: int = 0,
    algorithm: Any = None,
    codec: Any = None,
    downlink: Any = None,
    selection: Any = None,
    server_optimizer: Any = None,
    steps: Sequence[Any] = (),
    eta: float | None = None,
    goal_count: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    normalise: str | None = None,
    held_out: float | Mapping[str, float] | None = None,
    evaluation: Any = AUTO,
    every_rounds: int | None = None,
    split: str | None = None,
    devices: int | None = None,
    trainer: Any = None,
    local_algorithms: Mapping[str, Any] | None = None,
    engine: str = "auto",
    cohorts: Sequence[Sequence[str | int]] | None = None,
    progress: Any = None,
    **settings: Any,
) -> History:
    """Federated training in this process, with the code that devices and coordinators run.

    Arguments that a coordinator's configuration has too have its names, units and defaults (``docs/configuration.md``);
    those without a name here go into ``settings``.

    Args:
        model: A name of the zoo (``softmax_regression``, ``mlp``, ``cnn``, ...), whose inputs and outputs follow from
            the examples; an ONNX model as path, bytes or ``ModelProto``, with ``loss=`` beside it; or a bundle, as
            object, path or bytes.
        clients: ``{name: (x, y)}`` or ``[(x, y), ...]``, where each may be in any form that a device takes, a path
            among them; or one data set, which ``split`` deals to ``devices`` clients: a ``Dataset``, a dictionary of
            its arrays, a file as path or ``ExamplesFile``, a ``device.toml``, or ``"digits"``.
        rounds: How many, at most.
        seed: Draws cohorts, initial weights, split and shuffles.
        algorithm: How updates become one delta; a name, ``"package.module:Class"``, or an object.
        codec: How updates are encoded: a name or ``"package.module:Class"``, a table of its settings,
            ``{"name": "sparse", "density": 0.01}``, or a class or object of your own.
        downlink: How the model travels down, likewise; ``"none"`` for the model itself.
        selection: Who takes part; ``uniform``, ``"package.module:Rule"``, or an object.
        server_optimizer: A name, ``"package.module:Class"``, or an object.
        steps: What updates pass between decoding and sum, ``["clip"]``: names, tables of their settings, or objects.
        eta: The server's learning rate, ``aggregation.learning_rate``.
        goal_count: Clients in a round; 20, or all where there are fewer.
        epochs: Passes over a client's examples in a round.
        batch_size: Examples a step.
        learning_rate: On the clients.
        momentum: On the clients, with ``optimizer="momentum"``.
        normalise: How the model normalises its input: ``federated`` (mean and scale of all clients' features, which
            they report in a round 0), ``local`` (each client its own) or ``none``.
        held_out: Share of its examples that each client keeps for evaluation; ``{"last": 0.2}`` for its last ones.
        evaluation: Examples that nobody trains on, in any form that a device takes, or the path of a file; None for
            none. Of one data set by default those that it marks ``is_test``, or a fifth of it; a number is another
            share, ``{"last": 0.2}`` the newest ones.
        every_rounds: Evaluate after every so many rounds, and after the last one.
        split: For a ``Dataset``: ``iid`` (the default), ``shards:2``, ``dirichlet:0.3``, ``dirichlet_by_class:0.3``, or
            ``natural``.
        devices: For a ``Dataset``: how many clients; 100 by default, or one for each key of ``natural``.
        trainer: Trains in place of the model's graph: an object with ``fit``, its class, or a dotted name.
        local_algorithms: The clients' halves of algorithms of your own, by the name that the algorithm gives them:
            objects, classes or dotted names.
        engine: ``auto``, ``onnxruntime`` or ``numpy``.
        cohorts: Who takes part in each round, by name or number, in place of a choice: ``history.cohorts`` of another
            run. Where clients report statistics first, the first one is that of round 0.
        progress: None: a line where there is a terminal or a notebook; True or False; or a function, told
            ``(round, rounds, metrics)``.
        settings: Other keys of the configuration (``steps_max=20``, ``weighting="uniform"``, ``patience=5``,
            ``hidden=[200, 200]``), or whole tables (``validation={"norm_max": 1.0}``).

    Returns:
        The history: metrics, bytes, counts, and the final model.

    Raises:
        ConfigurationError: An argument is wrong; the message names it, its value, and what to do.
        CompileError, BundleError: The model cannot be used.
        TrainingError: Not one update of a round could be used. (A run that has diverged after its first round is no
            error: ``history.finished`` says so, and the history has its last good model.)
    """
    dealt = clients_from(clients, evaluation, split=split, devices=devices, seed=seed)
    own_steps = [step for step in steps if not isinstance(step, str | Mapping)]
    tables = tables_from(
        settings,
        {
            "training": given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, momentum=momentum),
            "aggregation": given(
                algorithm=name_of(algorithm),
                learning_rate=eta,
                server_optimizer=name_of(server_optimizer),
                step=[table_of(step) for step in steps if isinstance(step, str | Mapping)] or None,
            ),
            "selection": table_of(
                name_of(selection) or (selection if isinstance(selection, Mapping) else None), "rule"
            ),
            "codec": codec_table(codec),
            "downlink": table_of(downlink, "codec"),
            "evaluation": given(held_out=held_out, every_rounds=every_rounds),
            "model": given(normalise=normalise),
        },
    )
    source = source_of(model, dealt, tables.get("model", {}))
    config = configured(
        tables,
        model=source.table,
        goal_count=goal_count_of(goal_count, len(dealt), cohorts),
        rounds=rounds,
        seed=seed,
        evaluated=dealt.evaluation is not None,
    )
    bundle = source.built(config)
    parts = _Parts(
        config=config,
        bundle=bundle,
        clients=dealt,
        examples=dealt.checked(bundle.program),
        evaluator=_evaluator(dealt, bundle.program, engine),
        trainer=own_object("trainer", trainer, ("fit",)),
        local_algorithms={
            name: own_object(f"local_algorithms[{name!r}]", half, ("run",))
            for name, half in (local_algorithms or {}).items()
        },
        engine=engine,
        algorithm=made("algorithm", algorithm, ("report", "apply")),
        server_optimizer=made("server_optimizer", server_optimizer, ("init", "apply")),
        steps=tuple((f"step {n}", made("steps", s, ("admit", "finish"))) for n, s in enumerate(own_steps, start=1)),
        rule=made("selection", None if isinstance(selection, Mapping) else selection, ("choose",))
        or make_rule(config.selection.rule, config.selection.rule_options),
        cohorts=cohorts_of(cohorts, list(dealt), first_round(bundle.program, bundle.parameters), rounds),
    )
    return _Simulation(parts).run(progress_for(progress, bundle.program.metric))


@dataclass(frozen=True, slots=True)
class _Parts:
    """Everything that a simulation is made of, checked."""

    config: FederationConfig
    bundle: Bundle
    clients: Clients
    examples: Mapping[str, Examples]
    evaluator: Evaluator | None
    trainer: Any
    local_algorithms: Mapping[str, LocalAlgorithm]
    engine: str
    algorithm: Algorithm | None
    server_optimizer: ServerOptimizer | None
    steps: tuple[tuple[str, Step], ...]
    rule: SelectionRule
    cohorts: Mapping[int, tuple[str, ...]] | None


@dataclass(slots=True)
class _Client:
    """What a client keeps between rounds."""

    examples: Examples
    counts: ClientCounts
    vectors: Vectors = field(default_factory=dict)
    holds: tuple[bytes, ...] = field(default_factory=tuple)


class _Simulation:
    """The loop."""

    def __init__(self, parts: _Parts) -> None:
        config, program = parts.config, parts.bundle.program
        self._parts = parts
        self._program = program
        self._program_bytes = program.encode()
        self._plan = plan_of(config, dict(program.scalars))
        if parts.algorithm is not None:
            check_algorithm(parts.algorithm, type(parts.algorithm).__name__, config)
            parts.algorithm.suits(self._plan.training.scalars)
            self._plan = replace(
                self._plan, local=parts.algorithm.local, local_settings=parts.algorithm.local_settings()
            )
        find_local_algorithm(self._plan.local, parts.local_algorithms)  # said at once, and not by every client
        self._server = Server(parts.bundle, self._plan, config, parts.algorithm, parts.server_optimizer, parts.steps)
        self._clients = {name: _Client(data, ClientCounts(len(data))) for name, data in parts.examples.items()}
        self._engines = EngineCache(parts.engine)
        self._stopping = Stopping(stopping_rule(config, program.metric))
        self._rounds = config.stopping.rounds_max
        self._results: list[RoundResult] = []
        self._statistics: RoundResult | None = None

    def run(self, progress: Progress | None) -> History:
        evaluator, every = self._parts.evaluator, self._parts.config.evaluation.every_rounds
        finished = ""
        try:
            if self._server.asks_for_statistics:
                self._statistics = self._ask_for_statistics()
            initial = {} if evaluator is None else evaluator.evaluate(self._server.parameters)
            self._stopping.begin(initial)
            good = self._server.vector
            while not finished:
                number, before = len(self._results) + 1, self._server.vector
                try:
                    result, reported = self._round(number)
                except _NothingCame as nothing:
                    finished = self._ended(number, nothing)
                    break
                if evaluator is not None and (number % every == 0 or number == self._rounds):
                    reported |= evaluator.evaluate(self._server.parameters)
                self._results.append(replace(result, metrics=reported))
                finished = self._stopping.observe(number, reported) or ""
                if self._stopping.good_round >= number - 1:
                    good = self._server.vector if self._stopping.good_round == number else before
                if progress is not None:
                    progress(number, self._rounds, reported)
        finally:
            self._server.close()
            close: Callable[[], None] | None = getattr(progress, "close", None)
            if close is not None:
                close()
        vector = np.array(good if self._stopping.diverged else self._server.vector)
        return History(
            rounds=tuple(self._results),
            clients={name: client.counts for name, client in self._clients.items()},
            bundle=Bundle(self._program, vector, self._parts.bundle.source),
            metric=self._program.metric,
            finished=finished,
            initial=initial,
            best_round=self._stopping.best_round,
            model_round=self._stopping.good_round if self._stopping.diverged else len(self._results),
            statistics=self._statistics,
        )

    def _ask_for_statistics(self) -> RoundResult:
        """Round 0.

        Raises:
            TrainingError: Not one report can be used.
        """
        try:
            result, reported = self._round(OPENING_ROUND)
        except _NothingCame as nothing:
            raise TrainingError(f"round {OPENING_ROUND}: {nothing}") from nothing
        return replace(result, metrics=reported)

    def _ended(self, number: int, nothing: _NothingCame) -> str:
        """Why the run is over with a round of which nothing came: nothing would come of another attempt either.

        Raises:
            TrainingError: It has not diverged, or must not end for it.
        """
        said = None
        for _ in range(self._stopping.rule.divergence_rounds):
            said = self._stopping.failed(number, nothing.reason)
        if said is None:
            raise TrainingError(f"round {number}: {nothing}") from nothing
        return said

    def _round(self, number: int) -> tuple[RoundResult, dict[str, float]]:
        server, cohort = self._server, self._cohort(number)
        plan = self._plan_of(number)
        server.begin(number)
        start = self._start(number, plan)
        bytes_up = bytes_down = 0
        refused: dict[str, str] = {}
        reasons: Counter[str] = Counter()
        for name in cohort:
            client = self._clients[name]
            down = 0
            if not plan.without_parameters:
                down = server.bytes_down(client.holds)
                client.holds = (server.digest,)
            try:
                made = self._train(name, client, start)
                payload = made.update.payload or b""
                server.take(payload, made.update.digest)
            except (TrainingError, ProtocolError) as error:
                refused[name] = str(error)
                reasons[_reason_of(error)] += 1
                client.counts.refused += 1
            else:
                client.vectors = made.vectors_after
                client.counts.rounds += 1
                client.counts.bytes_up += len(payload)
                bytes_up += len(payload)
            client.counts.bytes_down += down
            bytes_down += down
        if len(refused) == len(cohort):
            shown = "; ".join(list(dict.fromkeys(refused.values()))[:REASONS_SHOWN])
            reason = reasons.most_common(1)[0][0]
            remedy = ADVICE[reason].remedy if reason in ADVICE else ""
            said = f"not one of {len(cohort)} updates can be used: {shown}"
            raise _NothingCame(f"{said}; {remedy}" if remedy else said, reason)
        try:
            reported = server.finish()
        except DivergedError as error:
            raise _NothingCame(str(error), "diverged") from error
        counted = len(cohort) - len(refused)
        digest = server.digest
        return RoundResult(number, cohort, {}, counted, refused, bytes_up, bytes_down, digest), reported

    def _train(self, name: str, client: _Client, start: StartTraining) -> TrainedUpdate:
        """A client's piece of work, as its device does it."""
        job = TrainingJob(
            start=start,
            program=self._program_bytes,
            parameters=b"" if start.plan.without_parameters else self._server.parameters,
            received={} if start.plan.without_parameters else self._server.broadcast,
            vectors=lambda spec: client.vectors,
            keeps_vectors=lambda length: True,
            seed=job_seed(start.parameters, name),
            stop=_never,
            progress=_unheard,
        )
        work = TrainingWork(
            lambda: client.examples,
            engines=self._engines,
            trainer=self._parts.trainer,
            clock=_stands_still,
            algorithms=self._parts.local_algorithms,
        )
        return work.run(job)

    def _start(self, number: int, plan: Plan) -> StartTraining:
        return StartTraining(
            ticket=bytes(16),
            lineage=bytes(8),
            task=TASK,
            round=number,
            attempt=0,
            shard="",
            program=self._program.digest,
            parameters=self._server.digest,
            plan=plan,
            seconds_max=plan.training.seconds_max,
        )

    def _plan_of(self, number: int) -> Plan:
        """As of a coordinator, which in the first round does not know yet how many devices there are."""
        plan = self._server.plan_of(number)
        if not self._results and self._statistics is None:
            return plan
        selection = self._parts.config.selection
        wanted = wanted_count(selection.goal_count, selection.over_selection)
        participation = round(min(1.0, wanted / len(self._clients)), 3)
        return replace(plan, codec=plan.codec.taking_part(participation))

    def _cohort(self, number: int) -> tuple[str, ...]:
        if self._parts.cohorts is not None:
            return self._parts.cohorts[number]
        config = self._parts.config
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.federation.seed, number, 0])))
        if isinstance(self._parts.rule, Uniform):  # as `select` does, without a word about each client
            return tuple(choose(list(self._clients), config.selection.goal_count, rng)[0])
        candidates = [
            Candidate(name, counted=client.counts.rounds, refused=client.counts.refused)
            for name, client in self._clients.items()
        ]
        return tuple(select(self._parts.rule, candidates, config.selection.goal_count, rng)[0])


class _NothingCame(Exception):
    """A round without a model; ``reason`` is the code of what its clients, or the server's step, have failed for."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _reason_of(error: TrainingError | ProtocolError) -> str:
    if isinstance(error, ProtocolError):
        return error.reason
    return "diverged" if isinstance(error, DivergedError) else "training"


def _stands_still() -> float:
    return 0.0


def _never() -> bool:
    return False


def _unheard(steps: int, loss: float) -> None:
    pass


def _evaluator(clients: Clients, program: Program, engine: str) -> Evaluator | None:
    examples = clients.checked_evaluation(program)
    if examples is None:
        return None
    if program.kind != "graph":
        raise ConfigurationError(
            f"simulate: evaluation: the model {program.name!r} brings no graph to evaluate; give evaluation=None"
        )
    return Evaluator(program, examples, engine)
