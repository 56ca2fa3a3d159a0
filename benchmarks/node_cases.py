"""ONNX's own test cases of single nodes, on the NumPy engine: ``python -m benchmarks.node_cases``.

All of ``onnx.backend.test.case.node`` whose operator the NumPy engine has and whose values are plain numbers (devices
have no half floats, strings, sequences or optionals). Where a case fails, onnxruntime is asked: what neither passes is
no fault of ours (a mask drawn at random, three forms where onnxruntime and ONNX's reference differ and we follow the
former) and is counted apart.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import warnings
from typing import Any, Final

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.figures import Figure, at_least
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.engine.kernels import KERNELS
from edge_sdk.training.numpy_plan import Node, NumpyPlan

__all__ = ["cases", "fails_on_numpy", "fails_on_onnxruntime", "measure", "transcribed"]

NUMBERS: Final = frozenset(
    {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}
)
SCAN_OPSET_MIN: Final = 9
"""Scan was another operator before."""
TOLERANCE: Final = 1e-6


@functools.cache
def cases() -> tuple[Any, ...]:
    """Cases of the default domain whose operators have kernels and whose values are plain numbers."""
    wanted = {op.lower() for op in KERNELS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node_cases.__path__):  # importing one computes its expected values
            if module.name.replace("_", "") in wanted:
                importlib.import_module(f"{node_cases.__name__}.{module.name}")
    return tuple(case for case in node_cases._NodeTestCases if _is_plain(case))


def _is_plain(case: Any) -> bool:
    nodes = case.model.graph.node
    if any(node.op_type not in KERNELS or node.domain not in ("", "ai.onnx") for node in nodes):
        return False
    if nodes[0].op_type == "Scan" and case.model.opset_import[0].version < SCAN_OPSET_MIN:
        return False
    values = [v for inputs, outputs in case.data_sets for v in (*inputs, *outputs)]
    return all(isinstance(v, np.ndarray | np.generic) and np.asarray(v).dtype.name in NUMBERS for v in values)


def fails_on_numpy(case: Any) -> str:
    """Why a case fails on the NumPy engine, in a line; empty where it passes."""
    try:
        executor = Executor(transcribed(case.model), case.name)
        for inputs, outputs in case.data_sets:
            feeds = {i.name: np.asarray(v) for i, v in zip(case.model.graph.input, inputs, strict=True)}
            _compare(executor.run(feeds).values(), outputs, case.rtol)
    except Exception as error:
        return f"{case.name}: {' '.join(str(error).split())[:300]}"
    return ""


def fails_on_onnxruntime(case: Any) -> str:
    """Why a case fails on the stock onnxruntime, in a line; empty where it passes."""
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options)
        for inputs, outputs in case.data_sets:
            feeds = {i.name: np.asarray(v) for i, v in zip(case.model.graph.input, inputs, strict=True)}
            _compare(session.run(None, feeds), outputs, case.rtol)
    except Exception as error:
        return f"{case.name}: {' '.join(str(error).split())[:300]}"
    return ""


def _compare(found: Any, outputs: Any, tolerance: float) -> None:
    for got, expected in zip(found, outputs, strict=True):
        if np.asarray(got).dtype != expected.dtype:
            raise AssertionError(f"{np.asarray(got).dtype} for {expected.dtype}")
        np.testing.assert_allclose(got, expected, rtol=max(tolerance, TOLERANCE), atol=TOLERANCE)


def transcribed(model: onnx.ModelProto) -> NumpyPlan:
    """The NumPy plan of a model; a body in it must read nothing from around it."""
    return _graph(model.graph)


def _graph(graph: onnx.GraphProto) -> NumpyPlan:
    return NumpyPlan(
        tuple(i.name for i in graph.input),
        tuple(o.name for o in graph.output),
        {t.name: numpy_helper.to_array(t) for t in graph.initializer},
        tuple(
            Node(n.op_type, tuple(n.input), tuple(n.output), {a.name: _attribute_value(a) for a in n.attribute})
            for n in graph.node
        ),
    )


def _attribute_value(proto: onnx.AttributeProto) -> Any:
    """An ONNX attribute as a plan holds it."""
    value = helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.GraphProto):
        return _graph(value)
    return value if isinstance(value, int | float) else [v.decode() if isinstance(v, bytes) else v for v in value]


def measure() -> list[Figure]:
    """The share that passes, without and with those that onnxruntime fails too."""
    failed = [case for case in cases() if fails_on_numpy(case)]
    ours = [case for case in failed if not fails_on_onnxruntime(case)]
    count, passed = len(cases()), len(cases()) - len(failed)
    what = "ONNX node test cases of claimed ops"
    return [
        at_least(
            f"{what} that pass, but for what onnxruntime fails too",
            passed / (passed + len(ours)),
            "",
            1.0,
        ),
        Figure(f"{what} that pass, of all", passed / count, ""),
        Figure(f"{what}: number", count, ""),
        Figure("ops that the NumPy engine claims", len(KERNELS), ""),
    ]


def main() -> None:
    for case in cases():
        if reason := fails_on_numpy(case):
            print(f"{reason}\n  onnxruntime: {fails_on_onnxruntime(case) or 'passes'}")
    for figure in measure():
        print(f"{figure.name}: {figure.value:.4g} {figure.bound or ''}".rstrip())


if __name__ == "__main__":
    main()
