"""Settings whose frame fits a limit of bytes: known before anything is trained, since a frame's size has a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edge_sdk.codecs.codecs import CODECS
from edge_sdk.codecs.eden import SHARE_ALL
from edge_sdk.codecs.frame import HEADER_BYTES_MAX
from edge_sdk.codecs.settings import BITS_MIN, DENSITY_MIN, CodecSettings

__all__ = ["fitted"]


def fitted(settings: CodecSettings, size: int, bytes_max: int) -> CodecSettings | None:
    """The settings nearest to ``settings`` with which no frame is above ``bytes_max``.

    ``sparse`` sends fewer coordinates (what it leaves out stays in the residual), ``eden`` fewer bits and below one bit
    a smaller share; the others have one size. A decoder that was told ``settings`` takes what an encoder with the
    returned ones makes: only less is sent.

    Args:
        settings: What the plan asks for.
        size: Number of coordinates of the vector, 1..2^28.
        bytes_max: Bytes of the largest frame; 0 for no limit.

    Returns:
        ``settings`` themselves where they fit, else the largest that do; None where none do.
    """

    def fits(candidate: CodecSettings) -> bool:
        return HEADER_BYTES_MAX + CODECS[candidate.name].body_bytes_max(size, candidate) <= bytes_max

    def with_count(count: int) -> CodecSettings:
        return replace(settings, density=max(DENSITY_MIN, min(1.0, count / size)))

    def with_share(share: int) -> CodecSettings:
        return replace(settings, bits=max(BITS_MIN, share / SHARE_ALL))

    if not bytes_max or fits(settings):
        return settings
    if settings.name == "sparse":
        return _largest(with_count, max(1, round(settings.density * size)), fits)
    if settings.name in ("eden", "auto"):
        for bits in range(int(settings.bits) - 1, 0, -1):
            if fits(replace(settings, bits=bits)):
                return replace(settings, bits=bits)
        return _largest(with_share, min(SHARE_ALL, round(settings.bits * SHARE_ALL)), fits)
    return None


def _largest(
    made: Callable[[int], CodecSettings], high: int, fits: Callable[[CodecSettings], bool]
) -> CodecSettings | None:
    """The largest of ``made(1)``, .., ``made(high - 1)`` that fits; ``made(high)`` does not."""
    low = 1
    if not fits(made(low)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(made(middle)) else (low, middle)
    return made(low)
