"""What devices get after a round: the model itself, or a step towards it from what they hold
(``edge_sdk/training/model_delta.py``).

The model is what devices hold and train from, and what is evaluated and exported. With a compressed downlink it does
not go all the way to where the server optimiser would have it: each model delta brings the most of what is missing, and
the rest is *owed* and comes with later ones (error feedback; the aggregator remembers it). Of an update of less than a
bit most is noise. What is owed holds it back until it has averaged out, which is why the model itself is judged and not
the sum of both: MNIST's 2NN at 3 % ends .7 points higher so.

How much is sent follows from what the step looks like: as many of the largest coordinates as hold ``share`` of the
energy of what is missing, and at least one in a hundred. Where a tenth of it is brought each round, no more is ever
owed than a few rounds move, whether steps are flat (about 2 % of the coordinates then hold a tenth), steep, or all in
the same direction. A
server optimiser with a memory of its own (momentum) needs more, and forgets a part of what is owed: devices, which do
not have it yet, push there again in the next round, and that memory adds it up a second time. Where an update moves few
coordinates by nature (rows of tables) nobody pushes there again soon: then nothing is forgotten, and more is sent
(``docs/codec-results.md``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.downlink_steps import largest_steps, steps_for_energy
from coordinator.store import ModelDeltaRecord, NewDelta, way_from
from edge_sdk.codecs import Rotated
from edge_sdk.codecs.frames import DecodedParts
from edge_sdk.codecs.grid import GridSteps
from edge_sdk.errors import TrainingError
from edge_sdk.training.bundle import encode_parameters
from edge_sdk.training.model_delta import Span, encode_model_delta, merge_model_deltas
from edge_sdk.wire.messages import short

__all__ = ["ADAPTIVE", "PLAIN", "Downlink", "NextModel", "merged_deltas", "moved_by", "next_model"]

logger = logging.getLogger(__name__)

WHOLE_BYTES_MIN: Final = 512
"""Smaller parameters are hardly more than what stands around the steps of a model delta."""
DENSITY_MAX: Final = 0.5
FEW_MOVED: Final = 0.5
SHARE_OF_FEW: Final = 0.8
DENSITY_MIN: Final = 0.01
"""Where a few coordinates hold most of the energy, the many others must not wait for them."""
COUNT_MIN: Final = 256
"""Coordinates, which fit into half a kilobyte: the messages around them take as much."""


@dataclass(frozen=True, slots=True)
class Downlink:
    """How the model travels to devices.

    Attributes:
        share: Of the energy of what is missing, the part that a model delta brings at least; 0 for no deltas.
        density: Share of the coordinates that a model delta moves, in place of as many as ``share`` needs; 0 for these.
        keeps: Share of what is owed that is still owed a round later.
        deltas_max: Rounds that a device may have missed; after more it fetches the whole parameters.
        whole_bytes_min: Bytes of parameters below which there are no deltas.
    """

    share: float = 0.0
    density: float = 0.0
    keeps: float = 1.0
    deltas_max: int = 64
    whole_bytes_min: int = WHOLE_BYTES_MIN

    def suited(self, moved: float) -> Downlink:
        """The same for a round in which an update has moved so large a share of the coordinates on average."""
        if moved >= FEW_MOVED or self.keeps == 1.0:
            return self
        return replace(self, share=max(self.share, SHARE_OF_FEW), keeps=1.0)

    def choose(self, wanted: NDArray[np.float32], held: NDArray[np.float32]) -> GridSteps:
        """Which of the coordinates move, and how far: from where they are to come and where they are, float32[n] each.

        Raises:
            TrainingError: They are too far apart.
        """
        if self.density:
            return largest_steps(wanted, held, self.density)
        count_min = max(COUNT_MIN, round(DENSITY_MIN * wanted.size))
        return steps_for_energy(wanted, held, self.share, count_min, DENSITY_MAX)


PLAIN: Final = Downlink(share=0.1)
"""Under an optimiser that remembers nothing (FedAvg)."""
ADAPTIVE: Final = Downlink(share=0.6, keeps=0.7)
"""Under one that does."""


@dataclass(frozen=True, slots=True)
class NextModel:
    """The next model, and how devices come to it.

    Attributes:
        parameters: Its parameters blob.
        model_delta: Leads there from the model of before; None where devices fetch it whole.
    """

    parameters: bytes
    model_delta: NewDelta | None = None


def moved_by(parts: DecodedParts) -> int:
    """How many coordinates an update moves; all of those that are rotated."""
    return sum(part.size if isinstance(part, Rotated) or part.indices is None else part.indices.size for part in parts)


def next_model(
    downlink: Downlink,
    before: bytes,
    wanted: NDArray[np.float32],
    buffers: Sequence[Span],
    constants: Sequence[Span] = (),
    *,
    base_digest: bytes | None = None,
) -> NextModel:
    """The next model: as far towards what is wanted as a model delta says it.

    Args:
        downlink: How the model travels.
        before: The parameters blob of the model, which devices hold.
        wanted: float32[P], the parameters that the optimiser has come to.
        buffers: Where its buffers are.
        constants: Where its constants are.
        base_digest: SHA-256 of ``before``, where it is known.
    """
    whole = encode_parameters(wanted)
    if not (downlink.share or downlink.density) or len(whole) < downlink.whole_bytes_min:
        return NextModel(whole)
    try:
        model_delta, parameters = encode_model_delta(
            before, wanted, buffers, downlink.choose, constants=constants, base_digest=base_digest
        )
    except TrainingError as error:
        logger.warning("the model travels whole: %s", error)
        return NextModel(whole)
    if len(model_delta) >= len(whole):
        return NextModel(whole)
    return NextModel(parameters, NewDelta(model_delta, downlink.deltas_max, len(whole) - 1))


def merged_deltas(
    new: NewDelta, number: int, deltas: Sequence[ModelDeltaRecord], blob_of: Callable[[bytes], bytes | None]
) -> NewDelta:
    """The model delta of a round with merged ones, of the last 2, 4, 8, .. rounds where its number is a multiple.

    So each is merged once for every power of two, and a device that has missed n rounds finds about 2 log2(n) of them
    on its way.

    Args:
        new: The model delta of the round.
        number: The round.
        deltas: Those of the rounds before, in their order.
        blob_of: Gives their bytes by their digest.
    """
    if not deltas:
        return new
    newest = b""  # stands for the parameters that this round leads to
    known = [*deltas, ModelDeltaRecord(number, 1, deltas[-1].target, newest, b"", len(new.model_delta))]
    blobs = {b"": new.model_delta}
    rounds = [delta for delta in deltas if delta.rounds == 1]
    made: list[tuple[int, bytes, bytes]] = []
    length = 2
    while number % length == 0 and length <= new.deltas_max:
        within = [delta for delta in rounds if delta.round > number - length]
        if not within or (len(within) == len(rounds) and within[0].round > number - length + 1):
            break  # there are none from that far back
        start, key = within[0].base, b"%d" % length
        way = way_from(known, [short(start)])
        blob = merge_model_deltas([blobs.get(delta.digest) or blob_of(delta.digest) or b"" for delta in way])
        if blob is not None and len(blob) < sum(delta.bytes for delta in way):
            made.append((length, start, blob))
            blobs[key] = blob
            known.append(ModelDeltaRecord(number, length, start, newest, key, len(blob)))
        length *= 2
    return replace(new, merged=tuple(made))
