"""Rotate, keep a seeded share of the coordinates, round each to one of a few levels: unbiased, stateless, linear.

    1 byte      width: bits of a coordinate that is kept, 1 to 8
    LEB128      share: 4096ths of the coordinates that are kept, 1 to 4096; 4096 where the width is above 1
    4 bytes     seed of the rotation, little-endian (``rotation.py``)
    4 bytes     seed of the choice, little-endian; only where the share is below 4096
    scales      one per block: coarse ones where the width is 1, else fine ones (``scales.py``)
    codes       the number of each kept coordinate's level, block after block, as bit planes (``rice.py``)

After the rotation a coordinate is close to normal, whatever the vector was, so that the best levels are known
beforehand (``centroids.py``), and a block has one scale, ``|x|^2 / <z, level>`` over the rotated coordinates z, times
block / kept. It makes the decoded block unbiased: the mean over rotations is x. One bit costs an NMSE of pi/2 - 1, a
share s of the coordinates at one bit pi/(2s) - 1, which is less for the bytes than any other way to spend them.

Kept are the first coordinates of a seeded order (:func:`places_of`), the same in every block of one size.

All devices of a round share the seed of the rotation where less than a bit is sent: what is left out dominates the
error, and each leaves out something else, so that their sum can be taken before it is rotated back, once a round
(:class:`edge_sdk.codecs.codec.Rotated`). From one bit on a device has a rotation of its own: rounding errors under a
common one would be alike, and not average out.

Sources: Vargaftik et al., "DRIVE: one-bit distributed mean estimation", NeurIPS 2021, section 4; "EDEN:
communication-efficient and robust distributed mean estimation", ICML 2022, sections 3 (scale) and 5 (subsampling).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.centroids import levels, nearest_codes
from edge_sdk.codecs.codec import Codec, Context, Kept, Rotated, RotatedBlocks, Vectors, setting
from edge_sdk.codecs.fit import largest_that_fits
from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.codecs.rice import bytes_for_bits, pack_bit_planes, unpack_bit_planes
from edge_sdk.codecs.rotation import Span, hadamard, signs, spans_of
from edge_sdk.codecs.scales import coarse_bytes_max, decode_coarse, decode_fine, encode_coarse, encode_fine
from edge_sdk.codecs.splitmix import random_words
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import number, shown

__all__ = ["BITS_MIN", "SHARE_ALL", "WIDTH_MAX", "Eden", "bits_for", "bits_setting", "fitted_bits", "share_of"]

WIDTH_MAX: Final = 8
SHARE_ALL: Final = 4096
BITS_MIN: Final = 0.001
BITS_AT_TEN: Final = 0.09
BITS_BY_COHORT_MIN: Final = 0.01
BITS_BY_COHORT_MAX: Final = 4.0
ADAPTIVE_FACTOR: Final = 2.75
"""Momentum on the server adds up the noise of several rounds before it averages out; Adam on the devices makes updates
in which small coordinates matter as much as large ones."""
_BITS: Final = number(BITS_MIN, WIDTH_MAX)
_SEED: Final = struct.Struct("<I")
_SEED_MASK: Final = (1 << 32) - 1
_CHUNK_BLOCKS: Final = 64  # 1 MiB of coordinates at a time: what is read again soon stays in the cache


def _check_bits(value: object, where: str) -> float:
    bits: float = _BITS(value, where)
    if bits > 1.0 and bits != int(bits):
        raise DecodeError(f"{where}: {shown(value)} is neither a share below 1 nor a whole number of bits")
    return bits


def bits_setting() -> Any:
    """The setting ``bits`` of a codec; see :func:`edge_sdk.codecs.codec.setting`."""
    return setting(
        _check_bits,
        BITS_AT_TEN,
        "Bits a coordinate: 1, 2, .. 8, or below 1 the share of the coordinates that is sent, at one bit each.",
        allowed="a share at least 0.001, at most 1, or a whole number of bits at most 8",
        shown="by selection.goal_count: 0.09 for 10, 1 for 2, 0.01 from 44 on; more with a server optimiser other "
        "than fedavg, or adam on the devices",
    )


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
    return float(min(BITS_BY_COHORT_MAX, round(bits))) if bits >= 1.0 else max(BITS_BY_COHORT_MIN, round(bits, 3))


@dataclass(frozen=True, slots=True)
class Eden(Codec):
    """Rotated coordinates, each rounded to one of a few levels."""

    name: ClassVar[str] = "eden"
    wire_id: ClassVar[int] = 6
    bits: float = bits_setting()

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        width, share = share_of(self.bits)
        whole = share == SHARE_ALL
        rotation = (context.own if whole else context.shared) & _SEED_MASK
        choice = (context.own >> 32) & _SEED_MASK
        codes, scales = [], []
        for span in spans_of(delta.size):
            places = places_of(choice, span.block, kept_of(span, share))
            for first in range(0, span.count, _CHUNK_BLOCKS):
                count = min(_CHUNK_BLOCKS, span.count - first)
                blocks = _signed(delta, span.start + first * span.block, count, span.block, rotation)
                some_codes, some_scales = _rounded(blocks, places, width)
                codes.append(some_codes.ravel())
                scales.append(some_scales)
        sent, every_scale = np.concatenate(codes), np.concatenate(scales)
        return b"".join(
            (
                bytes((width,)),
                pack_number(share),
                _SEED.pack(rotation),
                b"" if whole else _SEED.pack(choice),
                encode_coarse(every_scale, context.own) if width == 1 else encode_fine(every_scale),
                np.packbits(sent).tobytes() if width == 1 else pack_bit_planes(sent, width),
            )
        ), {}

    def decode(self, body: memoryview, size: int) -> Rotated:
        """See :meth:`Codec.decode`."""
        if len(body) < 1:
            raise DecodeError("update frame: ends before the width", reason="length")
        width = body[0]
        share, rest = unpack_number(body[1:], SHARE_ALL, "the share of the coordinates")
        width_max, share_max = share_of(self.bits)
        # Less than the plan asks for is welcome: a device may have a limit of bytes of its own.
        if not 1 <= width <= width_max or not 1 <= share <= share_max or (width > 1 and share < SHARE_ALL):
            raise DecodeError(
                f"update frame: {width} bits of {share}/4096 of the coordinates, the plan asked for {width_max} of "
                f"{share_max}/4096",
                reason="count",
            )
        seeds_bytes = _SEED.size * (1 if share == SHARE_ALL else 2)
        if len(rest) < seeds_bytes:
            raise DecodeError("update frame: ends within the seeds", reason="length")
        (rotation,) = _SEED.unpack_from(rest)
        choice = 0 if share == SHARE_ALL else _SEED.unpack_from(rest, _SEED.size)[0]
        spans = spans_of(size)
        read_scales = decode_coarse if width == 1 else decode_fine
        scales, data = read_scales(rest[seeds_bytes:], sum(span.count for span in spans))
        codes = unpack_bit_planes(data, _codes_count(size, share), width)
        return Rotated(size, rotation, _parts(spans, codes, scales, width, share, choice))

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        width, share = share_of(self.bits)
        blocks = sum(span.count for span in spans_of(size))
        scales = max(coarse_bytes_max(blocks), 4 * blocks)
        return 3 + 2 * _SEED.size + scales + bytes_for_bits(_codes_count(size, share) * width)

    def fitted(self, size: int, bytes_max: int) -> Self | None:
        """See :meth:`Codec.fitted`: fewer bits, and below one bit a smaller share."""
        return fitted_bits(self, size, bytes_max)

    def smallest(self) -> Self:
        """See :meth:`Codec.smallest`."""
        return replace(self, bits=BITS_MIN)

    @classmethod
    def for_cohort(cls, cohort: int, adaptive: bool) -> dict[str, Any]:
        """See :meth:`Codec.for_cohort`."""
        return {"bits": bits_for(cohort, adaptive)}


C = TypeVar("C", bound=Any)


def fitted_bits(codec: C, size: int, bytes_max: int) -> C | None:
    """The codec, which has ``bits``, with the most of them that fit; see :meth:`Codec.fitted`."""

    def fits(candidate: C) -> bool:
        return bool(candidate.body_bytes_max(size) <= bytes_max)

    def with_bits(bits: float) -> C:
        return replace(codec, bits=bits)

    if fits(codec):
        return codec
    for bits in range(int(codec.bits) - 1, 0, -1):
        if fits(with_bits(bits)):
            return with_bits(bits)
    most = min(SHARE_ALL, round(codec.bits * SHARE_ALL))
    return largest_that_fits(lambda share: with_bits(max(BITS_MIN, share / SHARE_ALL)), most, fits)


def share_of(bits: float) -> tuple[int, int]:
    """Width, and 4096ths of the coordinates that are kept, for ``bits`` per coordinate."""
    return (1, max(1, min(SHARE_ALL, round(bits * SHARE_ALL)))) if bits < 1.0 else (int(bits), SHARE_ALL)


def kept_of(span: Span, share: int) -> int:
    """Coordinates that are kept of a block. Of a filled one fewer, unless all are wanted."""
    return span.block if share == SHARE_ALL else max(1, (span.real * share + SHARE_ALL // 2) // SHARE_ALL)


def places_of(seed: int, block: int, kept: int) -> NDArray[np.int64]:
    """int64[kept]: which rotated coordinates of a block are sent, in the order in which they are.

    All of them in their order; of fewer, those whose words of SplitMix64 are the smallest, by their words.
    """
    if kept == block:
        return np.arange(block)
    words = random_words(seed, block)
    # No two words are alike (the generator is a bijection of a counter), so this is the start of their sorted order.
    smallest = np.argpartition(words, kept)[:kept]
    return smallest[np.argsort(words[smallest])]


def _signed(total: NDArray[np.float32], start: int, count: int, block: int, rotation: int) -> NDArray[np.float32]:
    """Some blocks with their random signs, and zeros behind the last coordinate, float32[count, block]."""
    signed = signs(rotation, start, count * block)
    real = total[start : start + count * block]
    signed[: real.size] *= real
    signed[real.size :] = 0.0
    return signed.reshape(count, block)


def _rounded(
    blocks: NDArray[np.float32], places: NDArray[np.int64], width: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Codes of the kept coordinates, uint8[count, kept], and scales, float64[count]."""
    squares = np.einsum("bp,bp->b", blocks, blocks, dtype=np.float64)
    rotated = hadamard(blocks)
    if width == 1:
        # Over the whole block, not over what is kept: of a few coordinates the sum may be near zero.
        inner = np.abs(rotated).sum(axis=1, dtype=np.float64)
        every = blocks.shape[1]
        negative = (rotated if places.size == every else rotated[:, places]) < 0.0
        return negative.view(np.uint8), _quotients(squares * (every / places.size), inner)
    deviations = np.sqrt(squares).astype(np.float32)[:, None]
    codes = nearest_codes(np.divide(rotated, deviations, out=np.zeros_like(rotated), where=deviations > 0.0), width)
    inner = np.einsum("bp,bp->b", rotated, levels(width)[codes], dtype=np.float64)
    return codes, _quotients(squares, inner)


def _quotients(squares: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(squares, inner, out=np.zeros_like(squares), where=inner > 0.0)


def _parts(
    spans: tuple[Span, ...],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    width: int,
    share: int,
    choice: int,
) -> tuple[RotatedBlocks, ...]:
    among, parts = levels(width), []
    for span in spans:
        kept = kept_of(span, share)
        sent, codes = codes[: span.count * kept], codes[span.count * kept :]
        these, scales = scales[: span.count], scales[span.count :]
        rounded = among[sent].reshape(span.count, kept)
        parts.append(RotatedBlocks(span, places_of(choice, span.block, kept), rounded, these))
    return tuple(parts)


def _codes_count(size: int, share: int) -> int:
    return sum(span.count * kept_of(span, share) for span in spans_of(size))
