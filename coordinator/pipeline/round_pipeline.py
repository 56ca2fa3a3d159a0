"""What makes something of the updates of one round, whatever they hold: what the worker drives. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from coordinator.pipeline.memory import Memory
from coordinator.store import NewDelta
from edge_sdk.training.program import Program
from edge_sdk.wire.plan import Plan

__all__ = ["Examined", "Finished", "RoundPipeline"]


class Examined(Protocol):
    """An update that was let in."""

    @property
    def weight(self) -> int:
        """At least 1."""


E = TypeVar("E", bound=Examined)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """What came of a round.

    Attributes:
        parameters: The next model's parameters blob.
        vector: float32[P], the same as a vector.
        memory: What the parts remember from now on.
        model_delta: Leads there from the model of before; None where devices fetch it whole.
        broadcast: Blobs of the vectors that devices get beside it, by name.
        metrics: What the devices reported.
        about: What else is kept of the round, JSON values by name.
        warnings: What somebody should look at, in sentences.
    """

    parameters: bytes
    vector: NDArray[np.float32]
    memory: Memory
    model_delta: NewDelta | None
    broadcast: dict[str, bytes]
    metrics: dict[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class RoundPipeline(Protocol[E]):
    """From the bytes of a round's updates to what the next round begins from.

    The same updates give the same bits in any order, so that a restart that replays a journal ends where it would have
    ended (rule 9).

    Attributes:
        program: The task's program.
        plan: What devices are asked to do.
    """

    program: Program
    plan: Plan

    def begin(self, parameters: bytes, memory: Memory, base: bytes | None = None, stalled: int = 0) -> None:
        """A round begins, with nothing added.

        Args:
            parameters: The model's parameters blob.
            memory: What was remembered at the end of the round before.
            base: Its SHA-256, where it is known.
            stalled: How many attempts at this round have failed because most updates were too long.
        """

    def examine(self, payload: bytes, digest: bytes | None = None, pending_weight: int = 0) -> E:
        """One update, decoded and checked; nothing is added yet.

        Args:
            payload: The update's bytes, which nobody vouches for.
            digest: Their SHA-256, where it is known.
            pending_weight: Weights of updates that were examined and are not added yet.

        Raises:
            ProtocolError: It is refused.
        """

    def again(self, payload: bytes) -> E:
        """An update that was examined and journalled before a crash.

        Raises:
            StateError: The configuration has changed so much that it cannot be used any more.
        """

    def add(self, update: E) -> None:
        """Adds an update that :meth:`examine` has let in."""

    def finish(self) -> Finished:
        """What comes of all updates that were added.

        Raises:
            EdgeFedError, ValueError: Nothing was added, or nothing can come of it.
        """

    def close(self) -> None:
        """Gives up what an unfinished round holds."""
