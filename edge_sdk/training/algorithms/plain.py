"""The ordinary local training: what the plan describes, and a delta."""

from __future__ import annotations

from edge_sdk.training.algorithms.local_algorithm import LocalResult, LocalWork

__all__ = ["Plain"]


class Plain:
    """Sends a delta and nothing beside."""

    vectors: tuple[str, ...] = ()

    def run(self, work: LocalWork) -> LocalResult:
        """See :class:`edge_sdk.training.algorithms.LocalAlgorithm`."""
        return LocalResult(work.train())
