"""The largest coordinates by magnitude, with error feedback.

What is not sent, and the rounding error of what is, stays in the residual and is added to the next delta.

    LEB128      k, the number of coordinates sent; if it is 0, nothing follows
    indices     ``index_coding.py``
    4 bytes     base, float32 little-endian, above 0
    4 bytes     step, float32 little-endian, 0 or at least 2^-126
    signs       a bit per coordinate, 1 for negative
    quotients   per coordinate q in unary (``rice.py``); all q together are at most k

The magnitude of a coordinate is base + q * step in float32: a product, rounded, and a sum, rounded.
The encoder takes as step the mean excess of the magnitudes over the smallest one, q = floor(excess / step), and as base
what makes the mean error zero. Excesses of such tails are close to exponential, for which unary codes of steps of the
mean excess are within 6 % of the entropy; their sum is at most k by the choice of the step, so a magnitude is never
clipped (a saturating quantiser lets outliers grow in the residual) and a decoder knows a bound on the length.

With momentum correction the device keeps a velocity too, u = momentum * u + delta, adds that to the residual instead of
the delta, and forgets it where a coordinate is sent (Lin et al., "Deep gradient compression", 2018, section 3).

Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", 2018, algorithm 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, RESIDUAL, VELOCITY, Codec, Context, Decoded, Kept, Vectors, setting
from edge_sdk.codecs.fit import largest_that_fits
from edge_sdk.codecs.index_coding import decode_indices, encode_indices, indices_bytes_max
from edge_sdk.codecs.leb128 import pack_number, unpack_number
from edge_sdk.codecs.rice import bytes_for_bits, pack_unary, unpack_terminators
from edge_sdk.codecs.select import add_and_select
from edge_sdk.errors import DecodeError
from edge_sdk.wire.fields import number

__all__ = ["DENSITY_MIN", "Sparse", "largest_count"]

DENSITY_MIN: Final = 1e-6
_COUNT_BYTES_MAX: Final = 4  # of a number up to 2^28 in LEB128
_LEVELS: Final = struct.Struct("<ff")
_SIGN_BIT: Final = 1 << 31
_STEP_MIN: Final = 2.0**-126  # the smallest normal float32: a denormal step would be zero where these are flushed


@dataclass(frozen=True, slots=True)
class Sparse(Codec):
    """The largest coordinates, with error feedback."""

    name: ClassVar[str] = "sparse"
    wire_id: ClassVar[int] = 3
    keeps: ClassVar[tuple[str, ...]] = (RESIDUAL, VELOCITY)
    sends_all: ClassVar[bool] = False
    density: float = setting(
        number(DENSITY_MIN, 1.0),
        0.03,
        "Share of the coordinates that is sent.",
        allowed="a number at least 1e-06, at most 1",
    )
    momentum: float = setting(
        number(0.0, 0.999),
        0.0,
        "Momentum correction: devices send a running sum of deltas that forgets; 0 for none.",
        allowed="a number at least 0, at most 0.999",
    )

    def encode(self, delta: NDArray[np.float32], kept: Kept, context: Context) -> tuple[bytes, Vectors]:
        """See :meth:`Codec.encode`."""
        velocity = self._velocity(delta, kept)
        moved = delta if velocity is None else velocity
        left, indices = add_and_select(moved, kept.get(RESIDUAL), self._count_max(delta.size))
        after = {RESIDUAL: left} if velocity is None else {RESIDUAL: left, VELOCITY: velocity}
        if indices.size == 0:
            return pack_number(0), after
        section, order = encode_indices(indices, delta.size, context.matrices)
        if order is not None:
            indices = indices[order]
        sent = left[indices]
        base, step, quotients = _quantise(np.abs(sent))
        body = b"".join(
            (
                pack_number(indices.size),
                section,
                _LEVELS.pack(base, step),
                np.packbits(sent < 0.0).tobytes(),
                pack_unary(quotients),
            )
        )
        sent -= np.copysign(_magnitudes(quotients, base, step), sent)
        left[indices] = sent
        if velocity is not None:
            velocity[indices] = 0.0
        return body, after

    def decode(self, body: memoryview, size: int) -> Decoded:
        """See :meth:`Codec.decode`."""
        count, rest = unpack_number(body, self._count_max(size), "the number of coordinates sent")
        if count == 0:
            if len(rest):
                raise DecodeError("update frame: bytes behind an update of no coordinates", reason="length")
            return Decoded(size, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        indices, order, rest = decode_indices(rest, count, size)
        values = _decode_values(rest, count)
        return Decoded(size, indices, values) if order is None else Decoded(size, indices[order], values[order])

    def body_bytes_max(self, size: int) -> int:
        """See :meth:`Codec.body_bytes_max`."""
        return _bytes_max(self._count_max(size), size)

    def fitted(self, size: int, bytes_max: int) -> Self | None:
        """See :meth:`Codec.fitted`: fewer coordinates; what is left out stays in the residual."""
        if self.body_bytes_max(size) <= bytes_max:
            return self

        def fits(density: float) -> bool:
            return replace(self, density=density).body_bytes_max(size) <= bytes_max

        most = max(1, round(self.density * size))
        density = largest_that_fits(lambda count: max(DENSITY_MIN, min(1.0, count / size)), most, fits)
        return None if density is None else replace(self, density=density)

    def smallest(self) -> Self:
        """See :meth:`Codec.smallest`."""
        return replace(self, density=DENSITY_MIN)

    def _count_max(self, size: int) -> int:
        return min(size, max(1, round(self.density * size)))

    def _velocity(self, delta: NDArray[np.float32], kept: Kept) -> NDArray[np.float32] | None:
        """The running sum of deltas that is sent instead of the delta, None without momentum correction."""
        if not self.momentum:
            return None
        before = kept.get(VELOCITY)
        velocity = np.zeros_like(delta) if before is None else np.float32(self.momentum) * before
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by the selection
            velocity += delta
        return velocity


def largest_count(size: int, bytes_max: int) -> int:
    """The most coordinates of ``size`` that fit into a body of ``bytes_max`` bytes, whatever they are; 0 if none do."""
    low, high = 0, size + 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _bytes_max(middle, size) <= bytes_max else (low, middle)
    return low


def _quantise(magnitudes: NDArray[np.float32]) -> tuple[np.float32, np.float32, NDArray[np.int64]]:
    """Base, step and int64[k] quotients of magnitudes, all above zero."""
    exact = magnitudes.astype(np.float64)
    smallest = exact.min()
    excess = exact - smallest
    mean = excess.sum() / excess.size
    if mean == 0.0:
        return magnitudes[0], np.float32(0.0), np.zeros(magnitudes.size, dtype=np.int64)
    # Rounded up, so that all quotients together cannot exceed k.
    step = np.nextafter(np.float32(max(mean, _STEP_MIN)), np.float32(np.inf))
    quotients = excess / np.float64(step)
    np.floor(quotients, out=quotients)
    base = (exact.sum() - quotients.sum() * np.float64(step)) / exact.size
    return np.float32(max(base, smallest)), step, quotients.astype(np.int64)


def _magnitudes(quotients: NDArray[np.int64], base: np.float32, step: np.float32) -> NDArray[np.float32]:
    magnitudes = quotients.astype(np.float32)
    magnitudes *= step
    magnitudes += base
    return magnitudes


def _decode_values(section: memoryview, count: int) -> NDArray[np.float32]:
    signs_end = _LEVELS.size + bytes_for_bits(count)
    unary_bytes = len(section) - signs_end
    if not 0 < unary_bytes <= bytes_for_bits(2 * count):
        raise DecodeError(f"update frame: {len(section)} bytes cannot be {count} values", reason="length")
    base, step = _LEVELS.unpack_from(section)
    # Written so that a NaN, which is neither above nor below, is refused.
    if not 0.0 < base <= MAGNITUDE_MAX or not (step == 0.0 or _STEP_MIN <= step <= MAGNITUDE_MAX):
        raise DecodeError(f"update frame: base {base:g} or step {step:g} is out of range", reason="values")
    signs = section[_LEVELS.size : signs_end]
    if count & 7 and signs[-1] & (0xFF >> (count & 7)):
        raise DecodeError("update frame: unused bits are set", reason="values")
    ends = unpack_terminators(section[signs_end:], count)
    quotients = ends.copy()
    quotients[1:] -= ends[:-1]
    quotients[1:] -= 1
    # No quotient exceeds the number of bits, which settles it for all but absurd steps.
    if 8.0 * unary_bytes * step > MAGNITUDE_MAX and int(quotients.max()) * step > 2.0 * MAGNITUDE_MAX:
        raise DecodeError(f"update frame: a value is above {2.0 * MAGNITUDE_MAX:g}", reason="values")
    magnitudes = _magnitudes(quotients, np.float32(base), np.float32(step))
    negative = np.unpackbits(np.frombuffer(signs, dtype=np.uint8), count=count).astype(np.uint32)
    negative *= np.uint32(_SIGN_BIT)
    values = magnitudes.view(np.uint32)
    values |= negative
    return magnitudes


def _bytes_max(count: int, size: int) -> int:
    return (
        _COUNT_BYTES_MAX
        + indices_bytes_max(count, size)
        + _LEVELS.size
        + bytes_for_bits(count)
        + bytes_for_bits(2 * count)
    )
