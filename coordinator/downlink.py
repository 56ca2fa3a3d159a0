"""What devices get after a round: the model itself, or a step towards it from what they hold
(``edge_sdk/training/model_delta.py``).

The model is what is aggregated, evaluated and exported. What is *published* is what devices hold and train from. With
a compressed downlink it lags behind: each model delta brings the most of what is missing, the rest comes with later
ones.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.store import ModelDeltaRecord, Published
from edge_sdk.codecs import CodecSettings
from edge_sdk.errors import TrainingError
from edge_sdk.training.model_delta import Span, encode_model_delta

__all__ = ["Downlink", "chain_from", "publish"]

logger = logging.getLogger(__name__)

CHAIN_SHARE: Final = 2
"""A chain of deltas has at most the bytes of the whole parameters divided by this."""
WHOLE_BYTES_MIN: Final = 40_000
"""Smaller parameters fit into one message: deltas would save bytes that nobody misses."""


@dataclass(frozen=True, slots=True)
class Downlink:
    """How the model travels to devices.

    Attributes:
        codec: How a model delta is encoded, one of ``MODEL_DELTA_CODECS``; None for no deltas.
        deltas_max: ModelDeltas in a chain; a device that has missed more fetches the whole parameters.
        whole_bytes_min: Bytes of parameters below which there are no deltas.
    """

    codec: CodecSettings | None = None
    deltas_max: int = 16
    whole_bytes_min: int = WHOLE_BYTES_MIN


def publish(
    downlink: Downlink,
    before: bytes,
    model: bytes,
    vector: NDArray[np.float32],
    buffers: Sequence[Span],
    constants: Sequence[Span] = (),
    *,
    before_digest: bytes | None = None,
) -> Published | None:
    """The step from what devices hold to the new model; None where they get the model itself.

    Args:
        downlink: How the model travels.
        before: The parameters blob that was published before.
        model: The new model's parameters blob.
        vector: float32[P], the same as a vector.
        buffers: Where its buffers are.
        constants: Where its constants are.
        before_digest: SHA-256 of ``before``, where it is known.
    """
    if downlink.codec is None or len(model) < downlink.whole_bytes_min:
        return None
    try:
        model_delta, blob = encode_model_delta(
            before, vector, buffers, downlink.codec, constants=constants, base_digest=before_digest
        )
    except TrainingError as error:
        logger.warning("the model travels whole: %s", error)
        return None
    if len(model_delta) * CHAIN_SHARE > len(model):
        return None
    return Published(blob, model_delta, downlink.deltas_max, len(model) // CHAIN_SHARE)


def chain_from(
    deltas: Sequence[ModelDeltaRecord], holds: Collection[bytes]
) -> tuple[bytes, tuple[ModelDeltaRecord, ...]]:
    """The shortest chain from something that a device holds to the newest parameters, and where it starts.

    Args:
        deltas: The whole chain, the oldest model delta first.
        holds: Digests of the parameters that the device has.

    Returns:
        The digest of its base and the deltas, the oldest first; nothing where the device needs the whole parameters or
        has the newest ones.
    """
    if deltas and deltas[-1].target not in holds:
        for at in range(len(deltas) - 1, -1, -1):
            if deltas[at].base in holds:
                return deltas[at].base, tuple(deltas[at:])
    return b"", ()
