"""What devices get after a round: the model itself, or a step towards it from what they hold (``edge_sdk/codecs/model_delta.py``).

The model is what is aggregated, evaluated and exported. What is *published* is what devices hold and train from. With
a compressed downlink it lags behind: each link brings the most of what is missing, the rest comes with later ones.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.store import LinkRecord, Published
from edge_sdk.codecs import CodecSettings
from edge_sdk.codecs.model_delta import Span, encode_link
from edge_sdk.errors import TrainingError

__all__ = ["Downlink", "chain_from", "publish"]

logger = logging.getLogger(__name__)

CHAIN_SHARE: Final = 2
"""A chain of links has at most the bytes of the whole parameters divided by this."""
WHOLE_BYTES_MIN: Final = 40_000
"""Smaller parameters fit into one message: links would save bytes that nobody misses."""


@dataclass(frozen=True, slots=True)
class Downlink:
    """How the model travels to devices.

    Attributes:
        codec: How a link is encoded, one of ``LINK_CODECS``; None for no links.
        links_max: Links in a chain; a device that has missed more fetches the whole parameters.
        whole_bytes_min: Bytes of parameters below which there are no links.
    """

    codec: CodecSettings | None = None
    links_max: int = 16
    whole_bytes_min: int = WHOLE_BYTES_MIN


def publish(
    downlink: Downlink,
    before: bytes,
    model: bytes,
    vector: NDArray[np.float32],
    statistics: Sequence[Span],
    *,
    before_digest: bytes | None = None,
) -> Published | None:
    """The step from what devices hold to the new model; None where they get the model itself.

    Args:
        downlink: How the model travels.
        before: The parameters blob that was published before.
        model: The new model's parameters blob.
        vector: float32[P], the same as a vector.
        statistics: Where its statistics are.
        before_digest: SHA-256 of ``before``, where it is known.
    """
    if downlink.codec is None or len(model) < downlink.whole_bytes_min:
        return None
    try:
        link, blob = encode_link(before, vector, statistics, downlink.codec, base_digest=before_digest)
    except TrainingError as error:
        logger.warning("the model travels whole: %s", error)
        return None
    if len(link) * CHAIN_SHARE > len(model):
        return None
    return Published(blob, link, downlink.links_max, len(model) // CHAIN_SHARE)


def chain_from(links: Sequence[LinkRecord], holds: Collection[bytes]) -> tuple[bytes, tuple[LinkRecord, ...]]:
    """The shortest chain from something that a device holds to the newest parameters, and where it starts.

    Args:
        links: The whole chain, the oldest link first.
        holds: Digests of the parameters that the device has.

    Returns:
        The digest of its base and the links, the oldest first; nothing where the device needs the whole parameters or
        has the newest ones.
    """
    if links and links[-1].target not in holds:
        for at in range(len(links) - 1, -1, -1):
            if links[at].base in holds:
                return links[at].base, tuple(links[at:])
    return b"", ()
