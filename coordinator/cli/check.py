"""``edge-coordinator check``: everything that can be known before a federation is served, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coordinator.broker_probe import probe_broker
from coordinator.config import FederationConfig, check_files, load_tasks
from coordinator.config.settings import broker_settings, database_path
from coordinator.model_identity import check_same_model, has_begun_for_nothing, stored_program
from coordinator.reports import is_served
from coordinator.setup import build_bundle, load_evaluator, model_notes, pipeline_settings, task_settings
from coordinator.setup_checks import check_not_lost
from coordinator.statistics_round import first_round
from coordinator.store import Store
from coordinator.task_settings import OPENING_ROUND
from edge_sdk.errors import EdgeFedError, StateError
from edge_sdk.training.bundle import Bundle, encode_parameters
from edge_sdk.training.large_target import large_target

__all__ = ["Outcome", "run_checks"]

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"

Verdict = tuple[str, str]
"""A state and what there is to say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found; ``state`` is ``ok``, ``warning``, ``failed`` or ``skipped``."""

    name: str
    state: str
    detail: str
    error: EdgeFedError | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"check": self.name, "state": self.state, "detail": self.detail}


class _Checks:
    """The checks in order; one that needs what an earlier one could not give is skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._configs: tuple[FederationConfig, ...] = ()
        self._config: FederationConfig | None = None
        self._bundle: Bundle | None = None
        self.outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        self._check("configuration", self._configuration)
        for config in self._configs or (None,):
            self._config, self._bundle = config, None
            of = f" of task {config.federation.task}" if config is not None and len(self._configs) > 1 else ""
            self._check(f"files{of}", self._files, needs=config)
            self._check(f"model{of}", self._model, needs=config)
            self._check(f"held-out data{of}", self._held_out, needs=self._bundle)
            self._check(f"database{of}", self._database, needs=self._bundle)
        self._check("broker", self._broker, needs=self._config)
        return self.outcomes

    def _check(self, name: str, check: Callable[[], Verdict], needs: object = True) -> None:
        if needs is None:
            self.outcomes.append(Outcome(name, SKIPPED, "needs what failed above"))
            return
        try:
            self.outcomes.append(Outcome(name, *check()))
        except EdgeFedError as error:
            self.outcomes.append(Outcome(name, FAILED, str(error), error))

    def _configuration(self) -> Verdict:
        self._configs = load_tasks(self._path)
        names = [config.federation.task for config in self._configs]
        of = "task" if len(names) == 1 else "tasks"
        return OK, f"{self._path}: federation {self._configs[0].federation.name}, {of} {', '.join(names)}"

    def _files(self) -> Verdict:
        check_files(self.config)
        return OK, "all files that are named are there"

    def _model(self) -> Verdict:
        bundle = build_bundle(self.config)
        task = task_settings(self.config, bundle.program)
        pipeline_settings(self.config, bundle.program)
        self._bundle = bundle
        spec = bundle.program.spec
        notes = "".join(f"; {note}" for note in model_notes(self.config.model))
        text = (
            f"{bundle.program.name}: {spec.size} parameters; an update has at most {task.update_bytes_max} bytes with "
            f"codec {self.config.codec.name}, dense {task.dense_bytes}{notes}"
        )
        if first_round(bundle.program, bundle.parameters) == OPENING_ROUND:
            opening = task.in_round(OPENING_ROUND)
            text += f"; round {OPENING_ROUND}: {opening.purpose} from {opening.round.minimum_count} devices at least"
        return OK, text

    def _held_out(self) -> Verdict:
        evaluator = load_evaluator(self.config, self.bundle.program)
        if evaluator is None:
            held_out = self.config.evaluation.held_out
            if held_out.share:
                which = "the last of" if held_out.last else "of"
                return OK, f"devices keep {held_out.share:g} {which} their examples to evaluate"
            return WARNING, "nothing is evaluated: set evaluation.data or evaluation.held_out to see the model improve"
        scores = evaluator.evaluate(encode_parameters(self.bundle.parameters))
        text = f"{len(evaluator.examples)} examples; the initial model: " + ", ".join(
            f"{name} {value:.4g}" for name, value in scores.items()
        )
        large = large_target(self.bundle.program, evaluator.examples)
        return (WARNING, f"{text}; {large}") if large else (OK, text)

    def _database(self) -> Verdict:
        path, task = database_path(self.config), self.config.federation.task
        check_not_lost(path)
        if not path.exists():
            _check_writable(path)
            return OK, f"{path}: will be made by the first start"
        with Store.open_readonly(path) as store:
            program, record = stored_program(store, task), store.open_round(task)
            checkpoint = store.latest_checkpoint(task)
            begins_anew = has_begun_for_nothing(store, task, self.bundle.program)
        if program is not None and not begins_anew:
            check_same_model(self.config.model, self.bundle.program, program)
        _check_writable(path)
        if begins_anew:
            return OK, f"{path}: [model] has changed, and no round of training was done: the task begins anew"
        where = f"round {record.number} is open, in {record.phase}" if record else "no round is open"
        served = "; a coordinator is serving it now" if is_served(path) else ""
        return OK, f"{path}: {max(0, checkpoint.round) if checkpoint else 0} rounds done, {where}{served}"

    def _broker(self) -> Verdict:
        found = probe_broker(broker_settings(self.config.broker), self.config.federation.name)
        text = f"{found.address}: logged in, MQTT {found.protocol}, may subscribe and publish"
        taken = [config.federation.task for config in self._configs if config.federation.task in found.online]
        if taken and not is_served(database_path(self.config)):
            return WARNING, (
                f"{text}; another coordinator serves {', '.join(taken)} there, from another database "
                f"({found.online[taken[0]]}): stop it, or give the task another name"
            )
        if not found.echoed:
            return WARNING, (
                f"{text}; a message to itself did not come back: if that is not meant by the broker's ACL, let "
                f"{self.config.broker.username or 'the coordinator'} read and write fl/v1/#"
            )
        return OK, text

    @property
    def config(self) -> FederationConfig:
        assert self._config is not None
        return self._config

    @property
    def bundle(self) -> Bundle:
        assert self._bundle is not None
        return self._bundle


def run_checks(path: Path) -> list[Outcome]:
    """All checks of the configuration in ``path``, in the order in which a mistake would show."""
    return _Checks(path).run()


def _check_writable(path: Path) -> None:
    """Whether a database may be written there; a directory that is missing will be made."""
    directory = next(parent for parent in path.absolute().parents if parent.exists())
    wanted = [directory, path] if path.exists() else [directory]
    for place in wanted:
        if not os.access(place, os.W_OK):
            raise StateError(f"{place}: is not writable; check its owner and mode, or set federation.state_dir")
