"""The model that a database was made for, and whether the configuration's is the same one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from coordinator.config import Model
from coordinator.store import StoreReader
from coordinator.task_settings import OPENING_ROUND
from edge_sdk.errors import ConfigurationError, StateError
from edge_sdk.training.bundle import Program
from edge_sdk.training.normalise import Normalise

__all__ = ["check_same_model", "differences", "has_begun_for_nothing", "stored_program"]

ACTIVATIONS: Final = frozenset({"Relu", "Tanh", "Sigmoid"})
NORMALISATION: Final = frozenset({"normalise", "normalise_target", "missing"})
FOLLOWS: Final = frozenset({"activations", "operators", "parameters"})
"""What differs as well where the normalisation does."""
SHOWN_MAX: Final = 160


def stored_program(store: StoreReader, task: str) -> Program | None:
    """The program that the task was started with, None before its start.

    Raises:
        StateError: The database does not hold it, or cannot be read.
    """
    checkpoint = store.latest_checkpoint(task)
    if checkpoint is None:
        return None
    data = store.get_blob(checkpoint.program_digest)
    if data is None:
        raise StateError(f"task {task}: the database has lost its program; put back the backup")
    return Program.decode(data)


def has_begun_for_nothing(store: StoreReader, task: str, configured: Program) -> bool:
    """Whether the task was started with another program and no round of training was committed since.

    Nothing is lost then if it begins anew with ``configured``. The loop of many steps does not count: it may have been
    measured, and comes out otherwise on another day.
    """
    checkpoint, stored = store.latest_checkpoint(task), stored_program(store, task)
    if checkpoint is None or stored is None or checkpoint.round > OPENING_ROUND:
        return False
    return replace(configured, train_loop=b"").digest != replace(stored, train_loop=b"").digest


def check_same_model(model: Model, configured: Program, stored: Program) -> None:
    """Refuse another model than the stored one.

    A model of the zoo may be compiled to other bytes by a newer version: what a person would call the model decides,
    and the stored program goes on. A bundle is what it is: its digest decides.

    Raises:
        ConfigurationError: It is another one; says in what they differ.
    """
    if configured.digest == stored.digest:
        return
    differing = differences(configured, stored)
    if model.bundle is not None and not differing:
        differing = [f"the graphs: program {configured.digest.hex()[:12]}, not {stored.digest.hex()[:12]}"]
    if not differing:
        return
    key = next(f"model.{name}" for name in ("bundle", "onnx", "zoo") if getattr(model, name) is not None)
    raise ConfigurationError(
        f"{key}: the database was made for another model, and has rounds of its training; the configuration's has "
        f"{'; '.join(differing)}. Give the new model a new name (federation.task) or another federation.state_dir, or "
        "put the old model back"
    )


def differences(configured: Program, stored: Program) -> list[str]:
    """In what two programs differ for a person: ``"loss hinge, not softmax_cross_entropy"``.

    What follows from another normalisation (operators, constants) is not listed beside it.
    """
    facts = zip(_facts(configured), _facts(stored), strict=True)
    found = {
        name: f"{name} {_shown(mine)}, not {_shown(theirs)}" for (name, mine), (_, theirs) in facts if mine != theirs
    }
    if found.keys() & NORMALISATION:
        found = {name: text for name, text in found.items() if name not in FOLLOWS}
    return list(found.values())


def _facts(program: Program) -> list[tuple[str, Any]]:
    used = {node.op for node in program.infer_plan.nodes}
    operators = sorted(used & ACTIVATIONS)
    return [
        ("name", program.name),
        ("inputs", ", ".join(f"{i.name} {i.dtype}{list(i.shape[1:])}" for i in program.inputs)),
        ("target", f"{program.target.dtype}{list(program.target.shape[1:])}"),
        ("classes", program.classes),
        ("loss", program.loss),
        ("optimizer", program.optimizer),
        ("scalars", ", ".join(sorted(program.scalars)) or "none"),
        ("activations", ", ".join(operators) or "none"),
        ("operators", ", ".join(sorted(used - ACTIVATIONS)) or "none"),
        ("normalise", _normalised(program.normalise)),
        ("normalise_target", "yes" if program.normalise_target is not None else "no"),
        ("missing", program.missing),
        ("mask", program.mask or "none"),
        ("ignore_index", program.ignore_index),
        ("features", ", ".join(program.features) or "none"),
        ("categories", ", ".join(f"{name} {list(of)}" for name, of in sorted(program.categories.items())) or "none"),
        ("labels", ", ".join(program.labels) or "none"),
        ("parameters", ", ".join(f"{t.name}{list(t.shape)}" for t in program.spec)),
    ]


def _normalised(told: Normalise | None) -> str:
    return "none" if told is None else f"{told.mode} (axis {told.axis}, clip {told.clip:g})"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
