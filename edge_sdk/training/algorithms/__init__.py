"""Local algorithms: what a device does with a round's parameters and its own examples.

``plain`` is the ordinary training that the plan describes. Another one is named in the plan, gets the vectors that the
coordinator's algorithm broadcasts, may send vectors and numbers beside its delta, and may keep vectors of its own until
it takes part again. An application registers its own by a name (``EdgeClient(algorithms={"name": object})``); no code
ever travels.
"""

from __future__ import annotations

from edge_sdk.training.algorithms.local_algorithm import (
    LOCAL_ALGORITHMS,
    LocalAlgorithm,
    LocalResult,
    LocalWork,
    find_local_algorithm,
)

__all__ = ["LOCAL_ALGORITHMS", "LocalAlgorithm", "LocalResult", "LocalWork", "find_local_algorithm"]
