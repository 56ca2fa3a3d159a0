"""What a device says of its raw examples before anything is trained: count, sum and sum of squares of each feature."""

from __future__ import annotations

from edge_sdk.errors import TrainingError
from edge_sdk.training.algorithms.local_algorithm import LocalResult, LocalWork
from edge_sdk.training.feature_sums import sums_of_examples
from edge_sdk.training.local import split_by_plan

__all__ = ["FeatureStatistics"]


class FeatureStatistics:
    """Sends the sums of :mod:`edge_sdk.training.feature_sums`; needs no parameters and trains nothing.

    Examples that are held out for evaluation have no part in them.
    """

    vectors: tuple[str, ...] = ()

    def run(self, work: LocalWork) -> LocalResult:
        """See :class:`edge_sdk.training.algorithms.LocalAlgorithm`.

        Raises:
            TrainingError: The program normalises no input.
            ExamplesError: A value is infinite, or no example is to be trained on, or all of their positions are masked.
        """
        normalise = work.program.normalise
        if normalise is None:
            raise TrainingError(f"the plan asks for statistics of features, and {work.program.name!r} normalises none")
        train, _ = split_by_plan(work.examples, work.plan)
        examples = work.examples if len(train) == len(work.examples) else work.examples.part(train)
        sums = sums_of_examples(examples, work.program, normalise)
        return LocalResult(None, arrays=sums.encode(), examples=len(examples))
