"""What a compiled program is compared with: onnxruntime sessions, and the loss in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from coordinator.compile.batch_size import RunError
from edge_sdk.errors import CompileError
from edge_sdk.training.bundle import Node, NumpyPlan, Program
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.numpy_plan import Attribute

__all__ = ["Arrays", "LossAround", "Run", "loss_in_float64", "session_of", "widened"]

Arrays: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Arrays]
LossAround: TypeAlias = Callable[[str, NDArray[Any]], float]
"""The loss at a point where one parameter, named, has another value (float64)."""


def session_of(model: bytes, where: str) -> Run:
    """A function that runs ``model`` on onnxruntime; feeds that the model does not take are left out.

    Raises:
        CompileError: onnxruntime refuses the model; the function raises RunError where it fails on the feeds.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and said once
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
            raise RunError(f"{where}: onnxruntime cannot run it on random examples: {error}") from error
        return dict(zip(outputs, values, strict=True))

    return run


def loss_in_float64(program: Program) -> Callable[[Arrays], LossAround]:
    """The train graph's ``loss`` in float64, and nothing behind it, around points whose feeds :func:`widened` made.

    What comes back evaluates the loss at a point once, then as a function of one parameter at a time: only what
    depends on that parameter is computed again. ONNX's reference evaluator, which serves where the NumPy engine lacks
    an operator, computes all of it.
    """
    if program.train_plan.outputs:
        return _around(program)
    evaluate = _by_onnx(program)
    return lambda feeds: lambda name, value: evaluate({**feeds, name: value})


def _around(program: Program) -> Callable[[Arrays], LossAround]:
    plan = _plan_in_float64(_loss_alone(program.train_plan))
    behind = {tensor.name: _behind(plan, tensor.name) for tensor in program.spec if tensor.kind == "trainable"}
    executors = {name: Executor(part, "loss") for name, part in behind.items() if part.nodes}
    given = {*plan.inputs, *plan.constants}
    kept = sorted({name for part in behind.values() for name in part.inputs} - given)
    whole = Executor(NumpyPlan(plan.inputs, ("loss", *kept), plan.constants, plan.nodes), "loss")

    def at(feeds: Arrays) -> LossAround:
        found = {**feeds, **whole.run(feeds)}

        def loss(name: str, value: NDArray[Any]) -> float:
            executor = executors.get(name)
            return float(executor.run({**found, name: value})["loss"] if executor else found["loss"])

        return loss

    return at


def _behind(plan: NumpyPlan, name: str) -> NumpyPlan:
    """The part of ``plan`` that depends on ``name``; what else it reads are its inputs, too."""
    reached = {name}
    nodes = []
    for node in plan.nodes:
        if not reached.isdisjoint(node.inputs):
            nodes.append(node)
            reached.update(filter(None, node.outputs))
    computed = {output for node in nodes for output in node.outputs}
    read = {value for node in nodes for value in node.inputs} - computed - set(plan.constants)
    return NumpyPlan(tuple(sorted(filter(None, read))), ("loss",), plan.constants, tuple(nodes))


def _by_onnx(program: Program) -> Callable[[Arrays], float]:
    model = onnx.ModelProto.FromString(program.train)
    kept = _needed([(n.input, n.output) for n in model.graph.node], "loss")
    nodes = tuple(node for node, keep in zip(model.graph.node, kept, strict=True) if keep)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(onnx.helper.make_tensor_value_info("loss", TensorProto.FLOAT, ()))
    evaluator: Any = ReferenceEvaluator(_model_in_float64(model))
    names = evaluator.input_names

    def loss(feeds: Arrays) -> float:
        try:
            return float(evaluator.run(["loss"], {n: feeds[n] for n in names})[0])
        except Exception as error:  # each of its operators fails in its own way
            operators = ", ".join(sorted({node.op_type for node in nodes}))
            raise CompileError(
                f"the train graph: ONNX's reference evaluator cannot run it in float64 to check gradients "
                f"({operators}): {type(error).__name__}: {error}. Freeze the parameters before the operator that it "
                "names"
            ) from error

    return loss


def _loss_alone(plan: NumpyPlan) -> NumpyPlan:
    kept = _needed([(n.inputs, n.outputs) for n in plan.nodes], "loss")
    nodes = tuple(node for node, keep in zip(plan.nodes, kept, strict=True) if keep)
    used = {name for node in nodes for name in node.inputs}
    return NumpyPlan(tuple(name for name in plan.inputs if name in used), ("loss",), plan.constants, nodes)


def _needed(edges: Sequence[tuple[Iterable[str], Iterable[str]]], output: str) -> list[bool]:
    """For each node, in order, whether ``output`` depends on it."""
    names = {output}
    kept = []
    for inputs, outputs in reversed(edges):
        kept.append(not names.isdisjoint(outputs))
        if kept[-1]:
            names.update(inputs)
    return kept[::-1]


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """A float32 array in float64, another one as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _plan_in_float64(plan: NumpyPlan) -> NumpyPlan:
    constants = {name: widened(array) for name, array in plan.constants.items()}
    nodes = tuple(
        Node(n.op, n.inputs, n.outputs, {key: _attribute_in_float64(key, v) for key, v in n.attributes.items()})
        for n in plan.nodes
    )
    return NumpyPlan(plan.inputs, plan.outputs, constants, nodes)


def _attribute_in_float64(key: str, value: Attribute) -> Attribute:
    if isinstance(value, NumpyPlan):
        return _plan_in_float64(value)
    return TensorProto.DOUBLE if key == "to" and value == TensorProto.FLOAT else value


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
