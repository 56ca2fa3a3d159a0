"""Held-out evaluation on the coordinator's side: loss and metric of a model on data that no device has seen."""

from __future__ import annotations

import numpy as np

from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Program, decode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples
from edge_sdk.training.local import EVALUATION_BATCH
from edge_sdk.training.own_constants import own_constants, uses_own_constants, with_constants

__all__ = ["Evaluator"]


class Evaluator:
    """Scores parameters of one program.

    Args:
        program: The task's program, of kind ``graph``.
        examples: Held-out examples; where some are marked ``is_test``, only these.
        engine: ``auto``, ``onnxruntime`` or ``numpy``.

    Raises:
        ExamplesError: They are marked, and none is for testing.
    """

    def __init__(self, program: Program, examples: Examples, engine: str = "auto") -> None:
        if examples.is_test is not None:
            if not examples.is_test.any():
                raise ExamplesError(f"examples: not one of {len(examples)} is marked is_test; leave the mark out")
            examples = examples.part(np.flatnonzero(examples.is_test))
        self._program = program
        self._examples = examples
        self._engine = make_engine(program, engine)
        # Where every device has constants of its own, the held-out examples stand for one more device.
        self._own = own_constants(program, examples) if uses_own_constants(program) else None

    @property
    def examples(self) -> Examples:
        """The held-out examples."""
        return self._examples

    def evaluate(self, blob: bytes) -> dict[str, float]:
        """``loss`` and the program's metric, both means over the held-out examples.

        Args:
            blob: Encoded parameters.
        """
        vector = decode_parameters(blob, self._program.spec)
        if self._own is not None:
            vector = with_constants(self._program, vector, self._own)
        handle = self._engine.load(vector)
        total = len(self._examples)
        loss_sum = metric_sum = 0.0
        for start in range(0, total, EVALUATION_BATCH):
            batch = self._examples.run(self._program, start, start + EVALUATION_BATCH)
            loss, metric = self._engine.evaluate(handle, batch)
            loss_sum += loss
            metric_sum += metric
        return {"loss": loss_sum / total, self._program.metric: metric_sum / total}
