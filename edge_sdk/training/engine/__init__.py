"""Engines run a program on this device: on the ``onnxruntime`` wheel where there is one, on NumPy everywhere.

>>> engine = make_engine(bundle.program)
>>> handle = engine.load(bundle.parameters)
>>> loss = engine.step(handle, {"x": x, "target": y}, {"lr": 0.1})
"""

from __future__ import annotations

import logging
from typing import Final

from edge_sdk.errors import BundleError, ConfigurationError, TrainingError
from edge_sdk.training.engine.base import Batch, Engine, Handle, merged_scalars
from edge_sdk.training.program import Program

__all__ = ["CAPABILITIES", "ENGINES", "Batch", "Engine", "Handle", "make_engine", "merged_scalars"]

log = logging.getLogger(__name__)

ENGINES: Final = ("auto", "onnxruntime", "numpy")

CAPABILITIES: Final[frozenset[str]] = frozenset()
"""What a program may ask for in ``requires`` and this version has."""


def make_engine(program: Program, engine: str = "auto", threads: int = 1) -> Engine:
    """An engine for ``program``.

    Args:
        program: A checked program of kind ``"graph"``.
        engine: ``"onnxruntime"``, ``"numpy"``, or ``"auto"``: onnxruntime if it can be imported and loads the program,
            else NumPy.
        threads: Threads inside of one operator. One is best on small boards: more of them spin while they wait.

    Raises:
        ConfigurationError: There is no engine of that name.
        BundleError: The program cannot run on this device, or is not what it says.
        TrainingError: onnxruntime was asked for and is missing, broken, or refuses the program.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine is {engine!r}, expected one of {ENGINES}")
    _check_runnable(program)
    if engine == "numpy":
        return _numpy(program, threads)
    try:
        from edge_sdk.training.engine.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(program, threads)
    except TrainingError as error:
        if engine == "onnxruntime":
            raise
        missing = isinstance(error.__cause__, ModuleNotFoundError)  # as on devices that were installed without it
        log.log(logging.INFO if missing else logging.WARNING, "falling back to the NumPy engine: %s", error)
        return _numpy(program, threads)


def _numpy(program: Program, threads: int) -> Engine:
    from edge_sdk.training.engine.numpy_engine import NumpyEngine

    return NumpyEngine(program, threads)


def _check_runnable(program: Program) -> None:
    if program.kind != "graph":
        raise BundleError(
            f"program {program.name!r} has no graphs (kind {program.kind!r}): "
            "give the client a trainer with a fit method"
        )
    missing = sorted(set(program.requires) - CAPABILITIES)
    if missing:
        raise BundleError(
            f"program {program.name!r} requires {missing}, which this version lacks: pip install -U edgefed"
        )
