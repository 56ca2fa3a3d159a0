"""The updates that are measured with: a Gaussian vector of a million, and those of a real federation of MNIST."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_codec import cohort_vectors
from benchmarks.processes import ROOT

__all__ = ["DENSITY", "GAUSSIAN_MODEL", "MNIST_MODEL", "data_file", "gaussian", "mnist_file", "real"]

DENSITY: Final = 0.01
GAUSSIAN_MODEL: Final = {"zoo": "softmax_regression", "inputs": [99_999], "outputs": 10}
"""Exactly 1,000,000 parameters."""
MNIST_MODEL: Final = {"zoo": "mlp", "inputs": [784], "outputs": 10, "hidden": [1000, 200]}
"""987,210 parameters: 3.9 MB of float32."""


def gaussian(size: int = 1_000_000, seed: int = 0) -> NDArray[np.float32]:
    """float32[size] of scale 0.01: the hardest case for a coder of positions, since nothing is structured."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.float32(0.01) * rng.standard_normal(size, dtype=np.float32)


def data_file(name: str) -> Path:
    """Where a published file is, if it is: in ``EDGEFED_TEST_DATA``, or ``shared/data`` beside the repository."""
    named = os.environ.get("EDGEFED_TEST_DATA")
    return (Path(named) if named else ROOT.parent / "shared" / "data") / name


def mnist_file() -> Path | None:
    """``mnist.npz``; None where it is not."""
    path = data_file("mnist.npz")
    return path if path.is_file() else None


def real() -> list[NDArray[np.float32]] | None:
    """``delta + residual`` of the ten clients of the 20th round on MNIST, seed 0; None without the data."""
    path = mnist_file()
    return None if path is None else cohort_vectors(path, seed=0)
