"""Six pumps and their sensors, as files that an engineer would find: readings in raw units, some with faults.

The readings are made, so that nothing has to be downloaded. A faulty pump vibrates more, runs warmer, draws more
current and moves less. Each pump has an operating point of its own, as pumps at different places have.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "LABELS", "PUMPS", "readings", "write_csv", "write_pumps"]

COLUMNS: Final = ("rpm", "temperature", "pressure", "vibration", "current", "flow")
UNITS: Final = ("1/min", "degree Celsius", "bar", "mm/s", "A", "m3/h")
LABELS: Final = ("ok", "fault")
PUMPS: Final = ("pump-1", "pump-2", "pump-3", "gaps", "swapped", "flipped")
"""Three that are well kept; one whose temperature probe fails at times; one whose logger writes the columns in
another order; and one that was labelled the wrong way round."""

_USUAL: Final = np.array([1480.0, 58.0, 4.2, 2.2, 7.5, 31.0])
_SPREAD: Final = np.array([12.0, 2.5, 0.15, 0.35, 0.35, 1.0])
_BETWEEN_PUMPS: Final = np.array([8.0, 1.5, 0.10, 0.15, 0.20, 0.6])
_FAULT: Final = np.array([-10.0, 5.5, -0.30, 1.0, 0.7, -2.2])


def readings(seed: int, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Readings of one pump, float64[rows, 6] in ``UNITS``, and int64[rows]: 1 where it is faulty."""
    rng = np.random.Generator(np.random.PCG64([2026, seed]))
    usual = _USUAL + rng.normal(size=6) * _BETWEEN_PUMPS
    fault = (rng.random(rows) < 0.5).astype(np.int64)
    severity = (fault * rng.uniform(0.7, 1.6, rows))[:, None]
    return usual + rng.normal(size=(rows, 6)) * _SPREAD + severity * _FAULT, fault


def write_csv(
    path: Path, values: NDArray[np.float64], fault: NDArray[np.int64], columns: tuple[str, ...] = COLUMNS
) -> None:
    """A file with a header row, ``columns`` in that order and the label in words; NaN is an empty cell."""
    order = [COLUMNS.index(name) for name in columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*columns, "state"])
        for row, label in zip(values[:, order], fault, strict=True):
            rows.writerow([*("" if np.isnan(value) else f"{value:.4g}" for value in row), LABELS[label]])


def write_pumps(folder: Path, rows: int = 600) -> None:
    """``<pump>.csv`` of each pump, and ``held-out.csv`` of pumps that take no part."""
    for seed, name in enumerate(PUMPS):
        values, fault = readings(seed, rows)
        columns = COLUMNS
        if name == "gaps":
            values[::5, COLUMNS.index("temperature")] = np.nan
        elif name == "swapped":
            columns = (COLUMNS[3], COLUMNS[0], *COLUMNS[4:], *COLUMNS[1:3])
        elif name == "flipped":
            fault = 1 - fault
        write_csv(folder / f"{name}.csv", values, fault, columns)
    strangers = [readings(seed, 400) for seed in range(100, 105)]
    write_csv(
        folder / "held-out.csv", np.concatenate([v for v, _ in strangers]), np.concatenate([f for _, f in strangers])
    )


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "pumps")
    target.mkdir(parents=True, exist_ok=True)
    write_pumps(target)
    print(f"{target}: a file for each of {', '.join(PUMPS)}, and held-out.csv")
