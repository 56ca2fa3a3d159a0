"""A regression's values that are large and that nobody normalises: what is to be said of them before training."""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_sdk.training.examples import Examples
from edge_sdk.training.program import Program
from edge_sdk.training.program_sums import target_rows

__all__ = ["large_target"]

LARGE: Final = 10.0
"""A model begins with outputs of about 1, and comes to values this far away in many steps or by large ones."""


def large_target(program: Program, examples: Examples) -> str:
    """A sentence with a remedy, or empty where there is nothing to say."""
    if program.metric == "accuracy" or program.loss == "reconstruction" or program.normalise_target is not None:
        return ""
    values = target_rows(program, examples, 1).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size or max(abs(values.mean()), values.std()) <= LARGE:
        return ""
    return (
        f"the target is {values.mean():.4g} on average, with a standard deviation of {values.std():.4g}: scale it to "
        "values of about 1, or let the model normalise it (model.normalise, model.normalise_target)"
    )
