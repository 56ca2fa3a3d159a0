"""The clients of a simulation: names, and their local examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_sim.datasets import Dataset, load_dataset, split_held_out
from device_sim.partitions import partition
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.program import Program

__all__ = ["AUTO", "Clients", "clients_from", "device_name"]

AUTO: Final = "auto"
HELD_OUT_SHARE: Final = 0.2
DEVICES: Final = 100


def device_name(number: int) -> str:
    """The name of a client that has only a place in a list, as ``edge-fleet`` names its devices."""
    return f"device-{number:05d}"


@dataclass(frozen=True, slots=True, eq=False)
class Clients(Mapping[str, Any]):
    """Clients by name, in the order in which they were given, and what the model is evaluated on.

    Attributes:
        examples: Whatever ``as_examples`` takes, by name.
        evaluation: The same for the evaluation; None for none.
    """

    examples: Mapping[str, Any]
    evaluation: Any

    def __getitem__(self, name: str) -> Any:
        return self.examples[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    def checked(self, program: Program) -> dict[str, Examples]:
        """All examples, checked against a program.

        Raises:
            ExamplesError: Names the client whose examples do not fit.
        """
        made = {}
        for name, value in self.examples.items():
            try:
                made[name] = as_examples(value, program)
            except ExamplesError as error:
                raise ExamplesError(f"clients[{name!r}]: {error}") from error
        return made

    def checked_evaluation(self, program: Program) -> Examples | None:
        """The examples for the evaluation, checked against a program.

        Raises:
            ExamplesError: They do not fit.
        """
        if self.evaluation is None:
            return None
        try:
            return as_examples(self.evaluation, program)
        except ExamplesError as error:
            raise ExamplesError(f"evaluation: {error}") from error


def clients_from(clients: Any, evaluation: Any, *, split: str | None, devices: int | None, seed: int) -> Clients:
    """Clients in any of the forms that ``simulate`` takes.

    Args:
        clients: Examples by name; a list of examples; a :class:`Dataset`; or what ``load_dataset`` takes.
        evaluation: Examples; ``"auto"``: those that a data set sets aside, or a fifth of it; None for none.
        split: For a data set: how it is dealt, as of :func:`device_sim.partitions.partition`; None for ``iid``.
        devices: For a data set: how many clients; None: 100, or one for each key of ``split="natural"``.
        seed: Draws split and evaluation.

    Raises:
        ConfigurationError: Not one of these forms, nobody, or a split that the data set does not allow.
    """
    if isinstance(clients, str | Path):
        clients = load_dataset(clients)
    if isinstance(clients, Dataset):
        return _dealt(clients, evaluation, split or "iid", devices, seed)
    for name, value in (("split", split), ("devices", devices)):
        if value is not None:
            raise ConfigurationError(f"simulate: {name}={value!r}: goes with a Dataset; these are dealt already")
    named = _named(clients)
    if not named:
        raise ConfigurationError("simulate: clients: there are none; give at least one (x, y)")
    return Clients(named, None if _is_auto(evaluation) else evaluation)


def _named(clients: Any) -> dict[str, Any]:
    if isinstance(clients, Mapping):
        named = {str(name): value for name, value in clients.items()}
        if len(named) < len(clients):
            raise ConfigurationError("simulate: clients: two keys are the same as text; use other names")
        return named
    if isinstance(clients, Sequence):
        if len(clients) == 2 and all(isinstance(part, np.ndarray) for part in clients):
            raise ConfigurationError(
                "simulate: clients: this is one pair of arrays; give a list of pairs, [(x, y), ...], or "
                "Dataset(x, y) with split= and devices="
            )
        return {device_name(number): value for number, value in enumerate(clients)}
    raise ConfigurationError(
        f"simulate: clients: {type(clients).__name__}; give a dictionary or list of (x, y), or a Dataset with split="
    )


def _dealt(data: Dataset, evaluation: Any, split: str, devices: int | None, seed: int) -> Clients:
    train = data
    if _is_auto(evaluation):
        train, test = split_held_out(data, HELD_OUT_SHARE, seed)
        evaluation = (test.x, test.y) if len(test) else None
    elif data.held_out is not None:
        train = data.subset(np.flatnonzero(~data.held_out))
    if devices is None and not split.startswith("natural"):
        devices = min(DEVICES, len(train))
    parts = partition(train, split, devices, seed)
    return Clients({device_name(n): (train.x[part], train.y[part]) for n, part in enumerate(parts)}, evaluation)


def _is_auto(evaluation: Any) -> bool:
    return isinstance(evaluation, str) and evaluation == AUTO
