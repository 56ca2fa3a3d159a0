"""The table of local algorithms that come with the SDK: a new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["FEATURE_STATISTICS", "LOCAL_ALGORITHMS"]

FEATURE_STATISTICS: Final = "feature_statistics"

LOCAL_ALGORITHMS: Final[Mapping[str, str]] = {
    FEATURE_STATISTICS: "edge_sdk.training.algorithms.feature_statistics:FeatureStatistics",
    "plain": "edge_sdk.training.algorithms.plain:Plain",
}
"""Dotted names of the classes, by the name in a plan."""
