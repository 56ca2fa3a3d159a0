"""What a compiled program is compared with: onnxruntime sessions, and the loss in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_sdk.bundle import Node, NumpyPlan, Program
from edge_sdk.engine.executor import Executor
from edge_sdk.errors import CompileError

__all__ = ["Arrays", "Run", "loss_in_float64", "session_of", "widened"]

Arrays: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Arrays]


def session_of(model: bytes, where: str) -> Run:
    """A function that runs ``model`` on onnxruntime; feeds that the model does not take are left out.

    Raises:
        CompileError: onnxruntime refuses the model; the function raises it where onnxruntime fails on the feeds.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no exception root of its own
        raise CompileError(f"{where}: onnxruntime {onnxruntime.__version__} does not load it: {error}") from error
    inputs = {i.name for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]

    def run(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            values = session.run(outputs, {n: a for n, a in feeds.items() if n in inputs})
        except Exception as error:
            raise CompileError(f"{where}: onnxruntime cannot run it on random examples: {error}") from error
        return dict(zip(outputs, values, strict=True))

    return run


def loss_in_float64(program: Program) -> Callable[[Arrays], float]:
    """The evaluate graph's ``loss_sum``, computed in float64 from inputs that :func:`widened` made."""
    if program.evaluate_plan.outputs:
        executor = Executor(_plan_in_float64(program.evaluate_plan), "evaluate")
        return lambda feeds: float(executor.run(feeds)["loss_sum"])
    evaluator: Any = ReferenceEvaluator(_model_in_float64(onnx.ModelProto.FromString(program.evaluate)))
    names = evaluator.input_names
    return lambda feeds: float(evaluator.run(["loss_sum"], {n: feeds[n] for n in names})[0])


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """A float32 array in float64, another one as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _plan_in_float64(plan: NumpyPlan) -> NumpyPlan:
    constants = {name: widened(array) for name, array in plan.constants.items()}
    nodes = tuple(
        Node(n.op, n.inputs, n.outputs, {**n.attributes, "to": TensorProto.DOUBLE})
        if n.attributes.get("to") == TensorProto.FLOAT
        else n
        for n in plan.nodes
    )
    return NumpyPlan(plan.inputs, plan.outputs, constants, nodes)


def _model_in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(widened(numpy_helper.to_array(tensor)), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return model
