"""The codec that chooses: for each update the one that fits the round, the vector and the device.

What is chosen, and why (``docs/choosing-a-codec.md`` has the measurements):

* ``eden`` with the bits of the plan, in nearly all cases. Its error is noise that averages out over the devices of a
  round, so the larger the cohort, the fewer bits: :func:`bits_for` has the rule, which a coordinator applies.
* ``sparse`` where the vector is sparse by itself (embeddings, mostly frozen models): where, for no more bytes than
  ``eden`` takes, the largest coordinates hold 95 % of the energy. What they leave out comes with a later update, so the
  device must be able to keep a residual and take part in at least one of twenty rounds; else they must hold 99.9 %.
* Kernels of convolutions apart, with four times the bits: they are few and move far, and the error of ``eden`` is the
  same for all coordinates that it rotates together (:func:`kernels_apart`).
* ``int8`` for vectors of less than 1024 coordinates, where heads and scales weigh more than bits.

A frame says which one it is. All are read whatever the plan's numbers are, within its bound on the bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import Codec, Context, Decoded, Rotated
from edge_sdk.codecs.eden import EDEN
from edge_sdk.codecs.quantised import INT8
from edge_sdk.codecs.select import add_and_select
from edge_sdk.codecs.sparse import SPARSE, largest_count

if TYPE_CHECKING:
    from edge_sdk.codecs.settings import CodecSettings

__all__ = ["AUTO", "SMALL_SIZE", "bits_for", "choose", "kernels_apart", "largest_hold"]

SMALL_SIZE: Final = 1024
ENERGY_SHARE: Final = 0.95
ENERGY_SHARE_ALONE: Final = 0.999
PARTICIPATION_MIN: Final = 0.05
KERNELS_SHARE: Final = 0.15
KERNELS_FACTOR: Final = 4.0
MAIN_BITS_MIN: Final = 0.001  # the least that settings may ask for
BITS_AT_TEN: Final = 0.09
BITS_MIN: Final = 0.01
BITS_MAX: Final = 4.0
ADAPTIVE_FACTOR: Final = 2.75
"""Momentum on the server adds up the noise of several rounds before it averages out; Adam on the devices makes updates
in which small coordinates matter as much as large ones."""


def bits_for(cohort: int, adaptive: bool = False) -> float:
    """Bits per coordinate for rounds of ``cohort`` updates.

    The error of one update is about pi / (2 bits) and that of a mean of m a share 1/m of it; what training bears grows
    with m a little slower than the noise falls. Measured sweet spots were .25 for 5 devices, .09 for 10 and .01 for 50,
    which ``0.09 * (10 / m)^1.5`` meets; two devices get a whole bit.

    Args:
        cohort: Updates of a round, at least 1.
        adaptive: Whether the server optimiser is more than FedAvg, or the devices' one adapts its steps.
    """
    bits = BITS_AT_TEN * (10.0 / cohort) ** 1.5 * (ADAPTIVE_FACTOR if adaptive else 1.0)
    return float(min(BITS_MAX, round(bits))) if bits >= 1.0 else max(BITS_MIN, round(bits, 3))


def kernels_apart(settings: CodecSettings, kernels: int, size: int) -> tuple[CodecSettings, CodecSettings] | None:
    """Settings for a model's kernels and for the rest of it, which take as many bytes as ``settings`` for all.

    Whether they are apart depends on the model alone and not on the bits: a device that sends fewer bits than the plan
    asks for must make the frames that the plan's decoder expects.

    Args:
        settings: Those of the plan, with the name ``auto``.
        kernels: Trainable coordinates of tensors of three dimensions and more.
        size: All trainable coordinates.

    Returns:
        None where they are not apart: there are none, or they are many.
    """
    share = kernels / size
    if not 0.0 < share <= KERNELS_SHARE:
        return None
    if settings.bits >= 1.0:
        return replace(settings, name="eden"), settings
    fine = min(1.0, KERNELS_FACTOR * settings.bits)
    main = max(MAIN_BITS_MIN, (settings.bits - share * fine) / (1.0 - share))
    return replace(settings, name="eden", bits=round(fine, 4)), replace(settings, bits=round(main, 4))


def choose(total: NDArray[np.float32], settings: CodecSettings, context: Context) -> CodecSettings:
    """The settings for one update.

    Args:
        total: float32[P], what is to be sent, residual included.
        settings: Those of the plan, with the name ``auto``.
        context: What the device can do.
    """
    if total.size < SMALL_SIZE:
        return replace(settings, name="int8")
    eden = replace(settings, name="eden")
    count, share = largest_hold(total, eden)
    if count:
        lasting = context.keeps_residual and not 0.0 < settings.participation < PARTICIPATION_MIN
        if share >= (ENERGY_SHARE if lasting else ENERGY_SHARE_ALONE):
            return replace(settings, name="sparse", density=count / total.size)
    return eden


def largest_hold(total: NDArray[np.float32], eden: CodecSettings) -> tuple[int, float]:
    """How many of the largest coordinates ``sparse`` can send in the bytes that ``eden`` takes, and the share of the
    energy of ``total`` (float32[P]) that they hold."""
    count = largest_count(total.size, EDEN.body_bytes_max(total.size, eden))
    if not count:
        return 0, 0.0
    sent, indices = add_and_select(total, None, count)
    energy = float(np.dot(total, total))
    return count, float(np.square(sent[indices], dtype=np.float64).sum()) / energy if energy > 0.0 else 1.0


def _decode_eden(body: memoryview, size: int, settings: CodecSettings) -> Decoded | Rotated:
    return EDEN.decoders[EDEN.wire_id](body, size, settings)


def _decode_sparse(body: memoryview, size: int, settings: CodecSettings) -> Decoded | Rotated:
    return SPARSE.decoders[SPARSE.wire_id](body, size, replace(settings, density=1.0))


def _decode_int8(body: memoryview, size: int, settings: CodecSettings) -> Decoded | Rotated:
    return INT8.decoders[INT8.wire_id](body, size, settings)


def _body_bytes_max(size: int, settings: CodecSettings) -> int:
    return (INT8 if size < SMALL_SIZE else EDEN).body_bytes_max(size, settings)


AUTO: Final = Codec(
    wire_id=255,
    keeps_residual=False,
    encode=None,
    decoders={EDEN.wire_id: _decode_eden, SPARSE.wire_id: _decode_sparse, INT8.wire_id: _decode_int8},
    body_bytes_max=_body_bytes_max,
    choose=choose,
)
