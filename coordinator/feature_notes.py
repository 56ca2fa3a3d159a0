"""What is remarkable about some features, by name: how a round of statistics keeps it, and how it reads. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.training.names import listed

__all__ = ["feature_notes", "remarkable_features"]

CONSTANT: Final = "constant"
"""Where a round's summary names features that never vary."""
CLIPPED: Final = "clipped"
"""Where it says of features by name which share of the values was beyond the range of the sums."""
NAMES_KEPT: Final = 16


def remarkable_features(
    names: Sequence[str], scale: NDArray[np.float32], clipped: NDArray[np.float64]
) -> dict[str, Any]:
    """What is kept in the round's summary, of at most ``NAMES_KEPT`` features of each kind.

    Args:
        names: Of the features.
        scale: float32[features]: 0 where a feature never varies.
        clipped: float64[features]: the share of its values that was clipped.
    """
    most_first = np.argsort(-clipped, kind="stable")[: min(NAMES_KEPT, np.count_nonzero(clipped))]
    found = {
        CONSTANT: [names[i] for i in np.flatnonzero(scale == 0.0)[:NAMES_KEPT].tolist()],
        CLIPPED: {names[i]: float(clipped[i]) for i in most_first.tolist()},
    }
    return {name: kept for name, kept in found.items() if kept}


def feature_notes(summary: Mapping[str, Any]) -> list[str]:
    """What is remarkable about the features, of the summary of a round of statistics; nothing for other rounds."""
    metrics, notes = summary.get("metrics", {}), []
    if metrics.get("features_constant"):
        names = f" ({listed(summary[CONSTANT])})" if CONSTANT in summary else ""
        notes.append(f"{metrics['features_constant']:.0f} of {metrics['features']:.0f} features never vary{names}")
    if CLIPPED in summary:
        shares = listed([f"{name} ({share:.2%})" for name, share in summary[CLIPPED].items()])
        notes.append(f"values beyond model.normalise_clip (if they are no faults, raise it for a new task): {shares}")
    return notes
