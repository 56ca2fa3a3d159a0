"""The three graphs of a program, and both forms in which they leave the compiler: ONNX bytes and a NumPy plan."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coordinator.compile.backward import append_forward, differentiate
from coordinator.compile.graph import (
    IR_VERSION,
    OPSET,
    UNKNOWN,
    Graph,
    GraphBuilder,
    Model,
    Node,
    Shape,
    Value,
    captured,
    prune,
)
from coordinator.compile.losses import SMOOTHING, Loss, LossOptions
from coordinator.compile.optimizers import NORM_MAX, STEP, Optimizer, Pulls, clipped, slot_name
from coordinator.compile.raw_inputs import trained_target
from coordinator.compile.rules.dropout import DROPOUT_FACTOR
from coordinator.compile.schema import complete
from edge_sdk.errors import BundleError
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.numpy_plan import Node as PlanNode
from edge_sdk.training.numpy_plan import NumpyPlan
from edge_sdk.training.program import ANCHOR, NEW

__all__ = ["evaluate_graph", "infer_graph", "state_of", "to_onnx", "to_plan", "train_graph"]

_log = logging.getLogger(__name__)


def train_graph(
    model: Model, output: Value, target: Value, loss: Loss, options: LossOptions, optimizer: Optimizer, pulls: Pulls
) -> Graph:
    """One training step: forward, loss (of the normalised target where it is normalised), backward, update."""
    b = GraphBuilder(model)
    append_forward(b, output.name)
    terms = loss.terms(b, output, trained_target(b, output, target), options, True)
    weight = terms.weight or b.op("Cast", b.op("Size", target.name), to=1)
    results = {"loss": b.op("Div", terms.total, weight)}
    scaled = optimizer.scaled and not pulls.clipped
    start = b.op("Mul", "lr", b.scalar(-terms.factor)) if scaled else b.scalar(terms.factor)
    seed = b.op("Mul", terms.slope, b.op("Div", start, weight))
    gradients = differentiate(b, {output.name: seed})
    if pulls.clipped:
        gradients = clipped(b, gradients, optimizer)
    changing = [name for name in model.parameters if name not in model.fixed]
    for name in changing:
        if name not in gradients:
            results[NEW + name] = b.buffers.get(name, name)
            continue
        update = optimizer.update(b, name, gradients[name], pulls)
        results[NEW + name] = update.parameter
        results.update({NEW + slot: value for slot, value in update.state.items()})
    if optimizer.counts:
        results[NEW + STEP] = b.op("Add", STEP, b.scalar(1.0))
    state = state_of(model, optimizer)
    shapes: dict[str, Shape] = {"loss": ()}
    shapes.update({NEW + name: model.parameters[name].shape for name in changing})
    shapes.update({NEW + name: shape for name, shape in state})
    inputs = [*model.inputs, target, *_parameter_values(model)]
    inputs += [Value(name, "float32", shape) for name, shape in state]
    inputs += [Value(name, "float32", ()) for name in scalars_of(model, loss, options, optimizer, pulls)]
    if pulls.proximal:
        inputs += [Value(ANCHOR + name, "float32", model.parameters[name].shape) for name in model.trainable]
    return _finish(b, f"{model.name}/train", inputs, {name: (results[name], shapes[name]) for name in shapes})


def evaluate_graph(model: Model, output: Value, target: Value, loss: Loss, options: LossOptions) -> Graph:
    """Loss and metric, summed over the batch.

    Where not every label counts the same, both are the batch's mean times its examples, so that the caller may always
    divide by the number of examples.
    """
    b = GraphBuilder(model)
    for node in prune(model.nodes, [output.name]):
        b.append(node)
    terms = loss.terms(b, output, target, options, False)
    metric = loss.metric_sum(b, output, target, options, terms)
    results = {
        "loss_sum": (_summed(b, terms.total, terms.weight, target), ()),
        "metric_sum": (_summed(b, metric, terms.counted, target), ()),
    }
    return _finish(b, f"{model.name}/evaluate", [*model.inputs, target, *_parameter_values(model)], results)


def _summed(b: GraphBuilder, total: str, weight: str, target: Value) -> str:
    width = math.prod(int(d) for d in target.shape[1:])
    if not weight:
        return _divided(b, total, width)
    examples = _divided(b, b.op("Cast", b.op("Size", target.name), to=1), width)
    return b.op("Mul", b.op("Div", total, weight), examples)


def infer_graph(model: Model) -> Graph:
    """The source model, parameters as inputs."""
    inputs = (*model.inputs, *_parameter_values(model))
    return Graph(f"{model.name}/infer", inputs, model.outputs, model.nodes, model.constants)


def state_of(model: Model, optimizer: Optimizer) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """``(name, shape)`` of all state tensors."""
    state: list[tuple[str, tuple[int, ...]]] = [(STEP, ())] if optimizer.counts else []
    for slot in optimizer.slots:
        state += [(slot_name(slot, name), model.parameters[name].shape) for name in model.trainable]
    return tuple(state)


def scalars_of(model: Model, loss: Loss, options: LossOptions, optimizer: Optimizer, pulls: Pulls) -> dict[str, float]:
    """Scalar inputs of the train graph and their defaults."""
    scalars = {**optimizer.scalars, **loss.scalars}
    if options.label_smoothing:
        scalars[SMOOTHING] = 0.1
    if pulls.weight_decay:
        scalars.setdefault("weight_decay", 0.0)
    if pulls.proximal:
        scalars["mu"] = 0.0
    if pulls.clipped:
        scalars[NORM_MAX] = 1.0
    if any(node.op == "Dropout" for node in model.nodes):
        scalars[DROPOUT_FACTOR] = 1.0
    return scalars


def _parameter_values(model: Model) -> list[Value]:
    return [Value(name, "float32", array.shape) for name, array in model.parameters.items()]


def _divided(b: GraphBuilder, name: str, by: int) -> str:
    return name if by == 1 else b.op("Mul", name, b.scalar(1 / by))


def _finish(b: GraphBuilder, name: str, inputs: Sequence[Value], results: Mapping[str, tuple[str, Shape]]) -> Graph:
    """Give the results their names. A result that has one already (an input, another result) becomes a copy."""
    nodes = prune(b.nodes, [value for value, _ in results.values()])
    bodies = [value for node in nodes for value in node.attributes.values() if isinstance(value, Graph)]
    inside = {name for body in bodies for name in captured(body)}
    computed = {name for node in nodes for name in node.outputs} - inside
    renamed: dict[str, str] = {}
    copies: list[Node] = []
    for result, (value, _) in results.items():
        if value in computed and value not in renamed and value not in b.model.values:
            renamed[value] = result
        else:
            copies.append(Node("Identity", (renamed.get(value, value),), (result,)))
    nodes = tuple(
        Node(n.op, _rename(n.inputs, renamed), _rename(n.outputs, renamed), n.attributes, n.name) for n in nodes
    )
    used = {name for node in (*nodes, *copies) for name in node.inputs} | inside
    constants = {key: array for key, array in b.constants.items() if key in used}
    outputs = tuple(Value(result, "float32", shape) for result, (_, shape) in results.items())
    return Graph(name, tuple(inputs), outputs, (*nodes, *copies), constants)


def _rename(names: Iterable[str], renamed: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(renamed.get(name, name) for name in names)


def to_onnx(graph: Graph, initializers: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """The graph as an ONNX model; inputs that have a value in ``initializers`` become initializers."""
    opset = [helper.make_opsetid("", OPSET)]
    proto = _graph_proto(graph, initializers or {})
    return helper.make_model(proto, opset_imports=opset, ir_version=IR_VERSION, producer_name="edgefed")


def _graph_proto(graph: Graph, given: Mapping[str, Any]) -> onnx.GraphProto:
    return helper.make_graph(
        [_node_proto(node) for node in graph.nodes],
        graph.name,
        [_value_info(v) for v in graph.inputs if v.name not in given],
        [_value_info(v) for v in graph.outputs],
        [numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in {**graph.constants, **given}.items()],
    )


def to_plan(graph: Graph) -> NumpyPlan:
    """The graph as lists for the NumPy engine, every attribute that has a default written out.

    The plan is empty where the NumPy engine lacks an operator; such a program runs on onnxruntime only.
    """
    plan = _plan(graph, ())
    try:
        Executor(plan, graph.name)
    except BundleError as error:
        _log.info("%s has no NumPy plan: %s", graph.name, error)
        return NumpyPlan()
    return plan


def _plan(graph: Graph, outer: tuple[str, ...]) -> NumpyPlan:
    return NumpyPlan(
        inputs=(*(v.name for v in graph.inputs), *outer),
        outputs=tuple(v.name for v in graph.outputs),
        constants=dict(graph.constants),
        nodes=tuple(_plan_node(complete(node)) for node in graph.nodes),
    )


def _plan_node(node: Node) -> PlanNode:
    """A plan's body reads nothing around it: what it captures becomes the last inputs, of the node and of the body."""
    body = node.attributes.get("body")
    if not isinstance(body, Graph):
        return PlanNode(node.op, node.inputs, node.outputs, node.attributes)
    outer = captured(body)
    attributes = {**node.attributes, "body": _plan(body, outer), "captured": len(outer)}
    return PlanNode(node.op, (*node.inputs, *outer), node.outputs, attributes)


def _node_proto(node: Node) -> onnx.NodeProto:
    proto = helper.make_node(node.op, node.inputs, node.outputs, name=node.name)
    for key in sorted(node.attributes):
        value = node.attributes[key]
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        if isinstance(value, Graph):
            value = _graph_proto(value, {})
        if not isinstance(value, list) or value:  # an empty list has no type, and no meaning anywhere
            proto.attribute.append(helper.make_attribute(key, value))
    return proto


def _value_info(value: Value) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    shape = [None if d == UNKNOWN else d for d in value.shape]
    return helper.make_tensor_value_info(value.name, dtype, shape)
