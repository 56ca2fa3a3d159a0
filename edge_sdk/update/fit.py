"""Settings whose frame fits a limit of bytes: known before anything is trained, since a frame's size has a bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edge_sdk.update.codecs import CODECS
from edge_sdk.update.frame import HEADER_BYTES
from edge_sdk.update.settings import DENSITY_MIN, CodecSettings

__all__ = ["fitted"]

BY_DENSITY: Final = frozenset({"sparse"})
"""Codecs that send less where the density is lower. What they leave out stays in the residual, so nothing is lost."""


def fitted(settings: CodecSettings, size: int, bytes_max: int) -> CodecSettings | None:
    """The settings nearest to ``settings`` with which no frame is above ``bytes_max``.

    A decoder that was told ``settings`` takes what an encoder with the returned ones makes: only less is sent.

    Args:
        settings: What the plan asks for.
        size: Number of coordinates of the vector, 1..2^28.
        bytes_max: Bytes of the largest frame; 0 for no limit.

    Returns:
        ``settings`` themselves where they fit, else with the largest density that does; None where none does.
    """

    def fits(candidate: CodecSettings) -> bool:
        return HEADER_BYTES + CODECS[candidate.name].body_bytes_max(size, candidate) <= bytes_max

    def with_count(count: int) -> CodecSettings:
        return replace(settings, density=max(DENSITY_MIN, min(1.0, count / size)))

    if not bytes_max or fits(settings):
        return settings
    if settings.name not in BY_DENSITY or not fits(with_count(1)):
        return None
    low, high = 1, max(1, round(settings.density * size))  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(with_count(middle)) else (low, middle)
    return with_count(low)
