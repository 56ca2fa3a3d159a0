"""One piece of work, as it is handed out and as it comes back; what does it is in ``edge_sdk.device.work``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.session.events import StartTraining
from edge_sdk.device.state import Vectors
from edge_sdk.errors import EdgeFedError
from edge_sdk.wire.safe_msgpack import BytesLike

if TYPE_CHECKING:  # an engine's room, which is entered by the first job
    from edge_sdk.training.local import TrainResult

Constants = NDArray[np.float32]
"""Mean and scale of each feature; see ``edge_sdk.training.own_constants``."""

__all__ = ["Cancelled", "OverQuota", "TrainedUpdate", "TrainingJob", "Work", "job_seed"]


class Cancelled(EdgeFedError):
    """The work was called off; nothing of it is kept."""


class OverQuota(EdgeFedError):
    """No update would be small enough; found out before anything is trained."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What is to be done.

    Attributes:
        start: The session's action: ticket, plan, digests.
        program: The program's bytes.
        parameters: The parameters' bytes, empty where the plan does without them.
        vectors: Gives the named vectors that this device keeps for the digest of a spec: what earlier updates did not
            send (``residual``, ``residual.<vector>``), velocities (``velocity``), and what local algorithms keep
            (``local.<algorithm>.<name>``).
        keeps_vectors: Tells whether vectors of so many bytes can be kept.
        seed: Seeds shuffling and stochastic rounding.
        stop: Whether the work was called off; asked at each step, or each run of a few short ones.
        progress: Told steps done and loss, as often.
        frames_bytes_max: Bytes that the update's frames may have together, 0 for no limit.
        received: Bytes of the further vectors that the invite has named, by name.
        constants: Gives what this device keeps for the digest of a program, or else keeps what the function makes.
    """

    start: StartTraining
    program: BytesLike
    parameters: BytesLike
    vectors: Callable[[bytes], Vectors]
    keeps_vectors: Callable[[int], bool]
    seed: int
    stop: Callable[[], bool]
    progress: Callable[[int, float], None]
    frames_bytes_max: int = 0
    received: Mapping[str, BytesLike] = field(default_factory=dict)
    constants: Callable[[bytes, Callable[[], Constants]], Constants] = lambda program, make: make()


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """A finished update: what goes into the outbox, what is kept if it counts, and how training went.

    ``result`` is None where nothing was trained.
    """

    update: PendingUpdate
    vectors_after: Vectors
    result: TrainResult | None


class Work(Protocol):
    """How a device turns a job into an update."""

    def check(self, ticket: bytes, digest: bytes, program: BytesLike) -> None:
        """Loads the local examples for a ticket; raises EdgeFedError where they do not fit the program.

        Args:
            ticket: The piece of work that they are for; :meth:`run` may train on what was loaded here.
            digest: SHA-256 of the program.
            program: Its bytes.
        """
        ...

    def run(self, job: TrainingJob) -> TrainedUpdate:
        """Raises EdgeFedError where there will be no update."""
        ...


def job_seed(parameters: bytes, device: str) -> int:
    """The seed of a piece of work, 64 bits: it shuffles, rounds and rotates.

    It follows from what everybody may know, the digest of the parameters and the device's name, so that a simulation of
    the same devices on the same parameters gives the same update. Noise that is to protect privacy must therefore never
    be drawn from it: who knows the seed can subtract the noise.

    Args:
        parameters: SHA-256 of the parameters that the device trains from.
        device: The device's name.
    """
    import hashlib  # loads OpenSSL

    return int.from_bytes(hashlib.sha256(parameters + device.encode()).digest()[:8], "little")
