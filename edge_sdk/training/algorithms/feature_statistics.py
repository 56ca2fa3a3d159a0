"""What a device says of its raw examples before anything is trained: count, sum and sum of squares of each feature."""

from __future__ import annotations

from edge_sdk.errors import TrainingError
from edge_sdk.training.algorithms.local_algorithm import LocalResult, LocalWork
from edge_sdk.training.local import split_by_plan
from edge_sdk.training.program_sums import encode_sums, program_sums

__all__ = ["FeatureStatistics"]


class FeatureStatistics:
    """Sends the sums of :mod:`edge_sdk.training.program_sums`; needs no parameters and trains nothing.

    Examples that are held out for evaluation have no part in them.
    """

    vectors: tuple[str, ...] = ()

    def run(self, work: LocalWork) -> LocalResult:
        """See :class:`edge_sdk.training.algorithms.LocalAlgorithm`.

        Raises:
            TrainingError: The program normalises no input.
            ExamplesError: A value is infinite, or no example is to be trained on, or all of their positions are masked.
        """
        program = work.program
        if not program.normalised:
            raise TrainingError(f"the plan asks for statistics of features, and {program.name!r} normalises none")
        train, _ = split_by_plan(work.examples, work.plan)
        examples = work.examples if len(train) == len(work.examples) else work.examples.part(train)
        arrays = encode_sums(program, program_sums(program, examples))
        return LocalResult(None, arrays=arrays, examples=len(examples))
