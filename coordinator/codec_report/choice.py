"""Which codec settings are worth measuring, and which of the measured ones to take. PURE.

A budget of bytes is kept by the bound on the frames, not by those that were measured: what a device will send later
must fit too. Errors are compared as ``codec_report.py`` says: of a round's mean, at the scale that makes it unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.codec_report.cohort import Cohort
from coordinator.codec_report.report import Measurement, eden_nmse
from coordinator.config.fields import toml_text
from edge_sdk.codecs import CodecSettings, settings_of
from edge_sdk.codecs.auto import SMALL_SIZE, Auto, largest_hold
from edge_sdk.codecs.eden import BITS_MIN, Eden, bits_for
from edge_sdk.codecs.frames import fitted_frames, groups_of
from edge_sdk.codecs.sparse import DENSITY_MIN, Sparse
from edge_sdk.parameters import ParameterSpec

__all__ = ["AutoChoice", "auto_choice", "candidates", "codec_table", "nearer_to", "pick"]

PLAIN: Final = ("dense", "float16", "int8", "int4", "int2")
DENSITIES: Final = (0.1, 0.03, 0.01, 0.001)
BITS: Final = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.09, 0.05, 0.02)
DIGITS: Final = 3
"""Of the numbers that are found to meet a budget: a person will read them."""
PROGRESS_NOISE: Final = 0.05
"""Differences of progress that a trial shows by chance: over eight seeds a codec's values were up to 0.041 apart."""
MARGIN: Final = 0.97
"""Of an error that is to be met: what is drawn makes every measurement a little different."""


def candidates(spec: ParameterSpec, cohort: int, bytes_max: int = 0) -> tuple[CodecSettings, ...]:
    """The settings that are measured: ``auto`` for rounds of ``cohort`` updates, then every codec, and where there is
    a budget of ``bytes_max`` bytes for an update's frames also the most that ``eden`` and ``sparse`` can do in it."""
    found = [CodecSettings("auto", bits=bits_for(cohort)), *map(CodecSettings, PLAIN)]
    found += [CodecSettings("sparse", density=density) for density in DENSITIES]
    found += [CodecSettings("eden", bits=bits) for bits in BITS]
    if bytes_max:
        for most in (Eden(bits=max(BITS)), Sparse(density=1.0)):
            fitting = fitted_frames(spec, CodecSettings(most), bytes_max)
            if fitting is None:
                continue
            if isinstance(fitting.codec, Eden):
                found.append(CodecSettings("eden", bits=max(BITS_MIN, _rounded(fitting.codec.bits, math.floor))))
            elif isinstance(fitting.codec, Sparse):
                density = max(DENSITY_MIN, _rounded(fitting.codec.density, math.floor))
                found.append(CodecSettings("sparse", density=density))
    return tuple(dict.fromkeys(found))


def nearer_to(nmse_max: float, measured: Sequence[Measurement]) -> CodecSettings | None:
    """The least share below a bit with which ``eden`` should keep the error of a mean within ``nmse_max``, by its
    theory and what was measured of it; None where it needs a bit or more, or was measured already."""
    known = {
        each.settings.codec.bits: each.scaled_nmse
        for each in measured
        if isinstance(each.settings.codec, Eden) and each.settings.codec.bits < 1.0
    }
    nearest = min(known, key=lambda bits: abs(math.log(max(known[bits], 1e-12) / nmse_max)))
    averaged = known[nearest] / eden_nmse(nearest)
    if averaged <= 0.0:
        return None
    bits = max(BITS_MIN, _rounded(math.pi / 2.0 / (MARGIN * nmse_max / averaged + 1.0), math.ceil))
    if bits >= 1.0 or bits in known:
        return None
    return CodecSettings("eden", bits=bits)


def pick(
    measured: Sequence[Measurement], *, bytes_max: int = 0, nmse_max: float = 0.0, progress_min: float = 0.0
) -> Measurement | None:
    """The setting to take; the first one of equals.

    Args:
        measured: What there is to choose from.
        bytes_max: Of an update's frames: of those within it the smallest error, among those that the trial does not
            tell from the best. 0 for no budget.
        nmse_max: Of a round's mean, scaled: the fewest bytes within it. 0 for no limit.
        progress_min: Of the trial: the fewest bytes that reach it. 0 for no limit.

    Returns:
        None where none keeps what is asked.
    """
    within = [
        each
        for each in measured
        if (not bytes_max or each.bytes_max <= bytes_max)
        and (not nmse_max or each.scaled_nmse <= nmse_max)
        and (not progress_min or (each.progress is not None and each.progress >= progress_min))
    ]
    if nmse_max or progress_min:
        return min(within, key=lambda each: (each.bytes, each.scaled_nmse), default=None)
    best = max((each.progress for each in within if each.progress is not None), default=-math.inf)
    good = [each for each in within if each.progress is None or each.progress >= best - PROGRESS_NOISE]
    return min(good, key=lambda each: (each.scaled_nmse, each.bytes), default=None)


def codec_table(settings: CodecSettings) -> str:
    """The table of ``federation.toml`` that asks for ``settings``."""
    lines = ["[codec]", f'name = "{settings.name}"']
    for field in settings_of(type(settings.codec)):
        value = getattr(settings.codec, field.name)
        if field.metadata["key"] and (value != field.default or field.metadata["shown"]):
            lines.append(
                f"{field.name} = {value:g}" if isinstance(value, float) else f"{field.name} = {toml_text(value)}"
            )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """What ``auto`` takes, and why.

    Attributes:
        codecs: Those that it took for the measured updates.
        bits: Of ``eden``, by the size of a round.
        small: Whether the vector is so small that heads and scales weigh more than bits.
        largest: Coordinates that ``sparse`` could send in the bytes of ``eden``.
        energy_share: Share of the energy that these hold, mean of the clients.
    """

    codecs: tuple[str, ...]
    bits: float
    small: bool
    largest: int
    energy_share: float


def auto_choice(cohort: Cohort, measured: Measurement) -> AutoChoice:
    """Why ``auto`` took what it did for ``measured``, a measurement of it."""
    settings = measured.settings
    main = groups_of(cohort.spec, settings)[0]
    assert isinstance(settings.codec, Auto)
    eden = Eden(bits=settings.codec.bits)
    holds = []
    for client in range(len(cohort.deltas)):
        total = cohort.wanted(settings, client).astype(np.float32)
        holds.append(largest_hold(main.taken(total), eden))
    share = sum(share for _, share in holds) / len(holds)
    return AutoChoice(measured.codecs, eden.bits, main.size < SMALL_SIZE, holds[0][0], share)


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """``value`` with few digits, none lost in whole numbers."""
    if value >= 1.0:
        return float(int(value))
    scale = 10.0 ** (DIGITS - 1 - math.floor(math.log10(value)))
    return float(f"{towards(value * scale) / scale:.6g}")
