"""Local algorithms: what a device does with a round's parameters and its own examples.

``plain`` is the ordinary training that the plan describes. Another one is named in the plan, gets the vectors that the
coordinator's algorithm broadcasts, may send vectors and numbers beside its delta, and may keep vectors of its own until
it takes part again. An application registers its own by a name (``EdgeClient(algorithms={"name": object})``); no code
ever travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_sdk.training.algorithms.table import LOCAL_ALGORITHMS

if TYPE_CHECKING:
    from edge_sdk.training.algorithms.local_algorithm import (
        LocalAlgorithm,
        LocalResult,
        LocalWork,
        find_local_algorithm,
    )

__all__ = ["LOCAL_ALGORITHMS", "LocalAlgorithm", "LocalResult", "LocalWork", "find_local_algorithm"]


def __getattr__(name: str) -> Any:
    """A device names its algorithms long before it trains: what they are made of comes when it is used."""
    if name in __all__:
        from edge_sdk.training.algorithms import local_algorithm

        return getattr(local_algorithm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
