"""One measured figure, its bound, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Figure", "at_least", "at_most", "skipped"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured.

    Attributes:
        name: What it is, with the conditions under which it was measured.
        value: The figure, None where it was skipped.
        unit: Its unit.
        bound: The bound as text, None for a figure that only informs.
        holds: Whether it is within the bound; None where it was skipped or has none.
    """

    name: str
    value: float | None
    unit: str
    bound: str | None = None
    holds: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The figure for ``bench.json``, rounded to what a measurement is worth."""
        return {**asdict(self), "value": None if self.value is None else float(f"{self.value:.5g}")}


def at_most(name: str, value: float, unit: str, bound: float) -> Figure:
    """A figure that must not exceed ``bound``."""
    return Figure(name, value, unit, f"<= {bound:g}", value <= bound)


def at_least(name: str, value: float, unit: str, bound: float) -> Figure:
    """A figure that must reach ``bound``."""
    return Figure(name, value, unit, f">= {bound:g}", value >= bound)


def skipped(name: str, unit: str, bound: str) -> Figure:
    """A figure that cannot be measured here."""
    return Figure(name, None, unit, bound)
