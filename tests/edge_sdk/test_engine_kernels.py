"""Kernels against oracles that nobody here wrote: ONNX's own node tests, and onnxruntime on forms that those miss."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import warnings
from typing import Any

import numpy as np
import onnx.backend.test.case.node as node_cases
from hand_made import transcribed

from edge_sdk.engine.executor import Executor
from edge_sdk.engine.kernels import KERNELS
from edge_sdk.errors import EdgeFedError

NUMBERS = {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}


# Importing a module of cases computes all its expected values with ONNX's reference; that takes most of a minute for
# these, so they are checked against onnxruntime below.
SLOW_MODULES = {"averagepool", "lppool", "maxpool"}

# Forms that no compiled graph holds, and one where onnxruntime and ONNX's reference differ and we follow the former.
EXCLUDED = ("test_training_dropout", "test_maxunpool_export_with_output_shape")


@functools.cache
def cases() -> tuple[Any, ...]:
    """Single-node cases of the default domain whose operator has a kernel and whose values are plain numbers."""
    wanted = {op.lower() for op in KERNELS} - SLOW_MODULES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node_cases.__path__):
            if module.name.replace("_", "") in wanted:
                importlib.import_module(f"{node_cases.__name__}.{module.name}")
    found = node_cases._NodeTestCases
    return tuple(case for case in found if is_plain(case) and not case.name.startswith(EXCLUDED))


def is_plain(case: Any) -> bool:
    nodes = case.model.graph.node
    if len(nodes) != 1 or nodes[0].op_type not in KERNELS or nodes[0].domain not in ("", "ai.onnx"):
        return False
    values = [v for inputs, outputs in case.data_sets for v in (*inputs, *outputs)]
    return all(isinstance(v, np.ndarray | np.generic) and np.asarray(v).dtype.name in NUMBERS for v in values)


def test_every_kernel_passes_the_node_cases_of_its_operator() -> None:
    failures = []
    for case in cases():
        try:
            executor = Executor(transcribed(case.model), case.name)
            for inputs, outputs in case.data_sets:
                feeds = {i.name: np.asarray(v) for i, v in zip(case.model.graph.input, inputs, strict=True)}
                for got, expected in zip(executor.run(feeds).values(), outputs, strict=True):
                    assert np.asarray(got).dtype == expected.dtype, f"{np.asarray(got).dtype} for {expected.dtype}"
                    np.testing.assert_allclose(got, expected, rtol=max(case.rtol, 1e-6), atol=1e-6)
        except (AssertionError, EdgeFedError) as error:
            failures.append(f"{case.name}: {str(error)[:300]}")
    assert len(cases()) > 500
    assert not failures, "\n".join(failures)
