"""What a step of the pipeline is: a small pure object between an update's decoding and the next model.

    decode -> check -> steps -> weigh -> add      for each update, as it comes
    finish -> steps -> optimise -> publish        when the round closes

A step sees each update after it was decoded, and may refuse it or hand on a changed one; it sees what the algorithm
makes of all of them; and it may remember something between rounds. The gate of :mod:`coordinator.pipeline.gate` is
always the first one. ``[[aggregation.step]]`` of the configuration adds others, by a name in ``STEPS`` or by the dotted
name of the user's own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from coordinator.pipeline.memory import PartMemory
from edge_sdk.aggregation.algorithm import State, make_configured
from edge_sdk.codecs.frames import DecodedParts, Group
from edge_sdk.errors import ConfigurationError
from edge_sdk.wire.messages import Update

__all__ = ["STEPS", "Counted", "DecodedUpdate", "Step", "make_step"]

STEPS: Final[Mapping[str, str]] = {
    "clip": "coordinator.pipeline.clip:Clip",
}
"""Dotted names of the steps' classes, by the name in the configuration."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedUpdate:
    """One update on its way through the pipeline.

    Attributes:
        digest: SHA-256 of its bytes.
        update: What its bytes say beside the vectors.
        vectors: The decoded vectors by name, each as parts in the order of ``groups``.
        groups: How each vector is divided.
        weight: At least 1.
        norm: L2 norm of the delta as it was received, buffers not counted.
    """

    digest: bytes
    update: Update
    vectors: Mapping[str, DecodedParts]
    groups: Sequence[Group]
    weight: int
    norm: float = 0.0


class Counted(NamedTuple):
    """What is left of an update once it was added.

    Attributes:
        digest: SHA-256 of its bytes.
        weight: At least 1.
        norm: L2 norm of the delta as it was received.
    """

    digest: bytes
    weight: int
    norm: float


class Step:
    """The base of all steps; each class says what differs."""

    def init(self) -> PartMemory:
        """What it remembers before the first round."""
        return {}

    def begin(self, memory: PartMemory, stalled: int) -> Any:
        """What it needs during one round, from what it remembers; handed to :meth:`admit` and :meth:`finish`.

        ``stalled`` is the number of attempts at this round that have failed because most updates were too long.
        """
        return memory

    def admit(self, update: DecodedUpdate, view: Any) -> DecodedUpdate:
        """The update as it goes on. The same update under the same view must give the same bits.

        Raises:
            ProtocolError: It is refused; nothing of it has been journalled.
        """
        return update

    def finish(self, report: State, counted: Sequence[Counted], view: Any) -> State:
        """What goes on to the server optimiser: float32[P] by name, ``"delta"`` among them.

        ``counted`` are the round's updates, sorted by digest.
        """
        return report

    def remember(self, memory: PartMemory, counted: Sequence[Counted]) -> PartMemory:
        """What it remembers after the round, in which these updates counted (sorted by digest)."""
        return memory


def make_step(name: str, options: Mapping[str, Any]) -> Step:
    """The step of that name, or the user's own class by its dotted name.

    Raises:
        ConfigurationError: Name or option is unknown, or a value is out of range.
    """
    made = make_configured("aggregation.step.name", name, STEPS, options, where=f"aggregation.step ({name})")
    if not isinstance(made, Step):
        raise ConfigurationError(
            f"aggregation.step.name = {name!r}: {type(made).__name__} is no step; derive it from "
            "coordinator.pipeline.step.Step"
        )
    return made
