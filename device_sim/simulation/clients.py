"""The clients of a simulation: names, and their local examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_sim.datasets import Dataset, load_dataset
from device_sim.held_out import split_held_out
from device_sim.partitions import partition
from edge_sdk.errors import ConfigurationError, ExamplesError
from edge_sdk.training.examples import Examples, ExamplesFile, as_examples, load_examples
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
        examples: Whatever ``as_examples`` takes, or the path of a file, by name.
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
                made[name] = _examples(value, program)
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
            return _examples(self.evaluation, program)
        except ExamplesError as error:
            raise ExamplesError(f"evaluation: {error}") from error


def _examples(value: Any, program: Program) -> Examples:
    """Examples in any form that a device takes, a file or a data set among them."""
    if isinstance(value, Dataset):
        value = value.examples
    return load_examples(value, program) if isinstance(value, str | Path) else as_examples(value, program)


def clients_from(clients: Any, evaluation: Any, *, split: str | None, devices: int | None, seed: int) -> Clients:
    """Clients in any of the forms that ``simulate`` takes.

    Args:
        clients: Examples by name; a list of examples; a :class:`Dataset`, or its arrays by name; or what
            ``load_dataset`` takes.
        evaluation: Examples, or a file of them; None for none. Of a data set also ``"auto"``: those that it sets
            aside, or a fifth of it; a share of it; or ``{"last": 0.2}``, the newest ones.
        split: For a data set: how it is dealt, as of :func:`device_sim.partitions.partition`; None for ``iid``.
        devices: For a data set: how many clients; None: 100, or one for each group of ``split="natural"``.
        seed: Draws split and evaluation.

    Raises:
        ConfigurationError: Not one of these forms, nobody, or a split that the data set does not allow.
    """
    if isinstance(clients, str | Path | ExamplesFile):
        clients = load_dataset(clients)
    elif _are_arrays(clients):
        clients = Dataset(clients)
    if isinstance(clients, Dataset):
        return _dealt(clients, evaluation, split or "iid", devices, seed)
    for name, value in (("split", split), ("devices", devices)):
        if value is not None:
            raise ConfigurationError(f"simulate: {name}={value!r}: goes with a Dataset; these are dealt already")
    named = _named(clients)
    if not named:
        raise ConfigurationError("simulate: clients: there are none; give at least one (x, y)")
    if _share_of(evaluation) is not None and not _is_auto(evaluation):
        raise ConfigurationError(
            f"simulate: evaluation={evaluation!r}: is a part of a Dataset; give examples, or held_out={evaluation!r} "
            "for that part of each client's"
        )
    return Clients(named, None if _is_auto(evaluation) else evaluation)


def _are_arrays(clients: Any) -> bool:
    """Whether this is one data set, by the names of its arrays, and not a client for each name."""
    return isinstance(clients, Mapping) and bool({"x", "y", "target"} & clients.keys())


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
    share, last = _share_of(evaluation) or (0.0, False)
    train, test = split_held_out(data, share, seed, last=last)
    if _share_of(evaluation) is not None:
        evaluation = test.examples if len(test) else None
    if devices is None and not split.startswith("natural"):
        devices = min(DEVICES, len(train))
    parts = partition(train, split, devices, seed)
    return Clients({device_name(n): train.part(part).examples for n, part in enumerate(parts)}, evaluation)


def _share_of(evaluation: Any) -> tuple[float, bool] | None:
    """``(share, last)`` of a data set that is to be held out; None where the evaluation has examples of its own."""
    if _is_auto(evaluation):
        return HELD_OUT_SHARE, False
    if (
        isinstance(evaluation, Mapping)
        and evaluation.keys() == {"last"}
        and isinstance(evaluation["last"], int | float)
    ):
        return float(evaluation["last"]), True
    is_number = isinstance(evaluation, int | float) and not isinstance(evaluation, bool)
    return (float(evaluation), False) if is_number else None


def _is_auto(evaluation: Any) -> bool:
    return isinstance(evaluation, str) and evaluation == AUTO
