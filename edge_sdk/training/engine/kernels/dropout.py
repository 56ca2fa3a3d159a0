"""Dropout, with its own stream of random numbers for each node of a plan."""

from __future__ import annotations

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array

__all__ = ["dropout"]


def dropout(
    x: Array,
    ratio: Array | float | None = None,
    training_mode: Array | None = None,
    *,
    rng: np.random.Generator,
    seed: int = 0,
    output_count: int = 1,
) -> Array | tuple[Array, Array]:
    """ONNX Dropout: in training mode each element is zeroed with probability ``ratio``, the others are scaled up.

    ``rng`` is the node's own; the executor makes it, from ``seed`` where the node has one.
    """
    share = 0.5 if ratio is None else float(ratio)
    if not 0.0 <= share < 1.0:
        raise TrainingError(f"Dropout: ratio {share} is not in [0, 1)")
    if training_mode is None or not bool(training_mode) or share == 0.0:
        return (x, np.ones(x.shape, dtype=bool)) if output_count > 1 else x
    mask = rng.random(x.shape, dtype=np.float32) >= np.float32(share)
    y = np.multiply(x, x.dtype.type(1 / (1 - share)))
    np.multiply(y, mask, out=y)
    return (y, mask) if output_count > 1 else y
