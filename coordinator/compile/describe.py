"""What a bundle is made of, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import onnx

from coordinator.compile.cost import step_cost
from coordinator.compile.freezing import frozen_names
from coordinator.compile.graph import Role
from coordinator.compile.import_ import import_model, read_onnx
from coordinator.compile.lora import is_adapter
from coordinator.compile.notes import notes_of
from edge_sdk.training.bundle import Bundle, Program, encode_parameters

__all__ = ["describe"]

BATCH_SIZE: Final = 32
"""For which a step is counted."""


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a person wants to know about a bundle.

    Returns:
        Plain values that JSON can hold: ``name``, ``kind``, ``inputs`` and ``target`` (dtype, shape with the batch as
        None), ``outputs`` (name -> shape), ``loss``, ``metric``, ``optimizer``, ``scalars`` (name -> default),
        ``mask`` (the input that says which positions count, or empty), ``normalise`` (input, axis, features, mode and
        missing, or None), ``features``, ``categories``, ``labels`` (names, see ``naming``), ``parameters`` (a list of
        name, shape, kind, elements, and why it is one, where the bundle holds its source), ``parameter_count``,
        ``operators`` (of the train graph, name -> count), ``train_nodes``, ``classes``, ``model_operators`` (of the
        inference graph), ``frozen`` (those parameters that stay in the graph), ``initializers`` (those of the source
        that are no parameters, and why), ``notes`` (sentences about the source), ``step`` (batch_size, flops,
        activation_bytes_peak: an estimate), ``runs_on`` (engines), ``loop`` (whether it holds a graph of many steps),
        ``program_bytes``, ``parameters_bytes``, ``update_bytes_dense`` (an update before any compression) and
        ``program_digest`` (hex).
    """
    program = bundle.program
    graph = onnx.ModelProto.FromString(program.train).graph
    infer = onnx.ModelProto.FromString(program.infer).graph
    operators = [node.op_type for node in graph.node]
    has_plans = bool(program.train_plan.outputs and program.evaluate_plan.outputs)
    return {
        "name": program.name,
        "kind": program.kind,
        "inputs": {i.name: {"dtype": i.dtype, "shape": list(i.shape)} for i in program.inputs},
        "target": {"dtype": program.target.dtype, "shape": list(program.target.shape)},
        "outputs": {o.name: [d.dim_value or None for d in o.type.tensor_type.shape.dim] for o in infer.output},
        "classes": program.classes,
        "mask": program.mask,
        "normalise": _described(program),
        "features": list(program.features),
        "categories": {name: list(names) for name, names in program.categories.items()},
        "labels": list(program.labels),
        "loss": program.loss,
        "metric": program.metric,
        "optimizer": program.optimizer,
        "scalars": dict(program.scalars),
        **_tensors(bundle, infer),
        "parameter_count": program.spec.size,
        "operators": {op: operators.count(op) for op in sorted(set(operators))},
        "model_operators": dict(sorted(Counter(node.op_type for node in infer.node).items())),
        "train_nodes": len(operators),
        "step": asdict(step_cost(program.train, BATCH_SIZE)) if program.train else {},
        "runs_on": ["onnxruntime", "numpy"] if has_plans else ["onnxruntime"],
        "loop": bool(program.train_loop),
        "program_bytes": len(program.encode()),
        "parameters_bytes": len(encode_parameters(bundle.parameters)),
        "update_bytes_dense": 4 * sum(t.size for t in program.spec if t.kind != "constant"),
        "program_digest": program.digest.hex(),
    }


def _described(program: Program) -> dict[str, Any] | None:
    told = program.normalise
    if told is None:
        return None
    return {
        "input": told.input,
        "axis": told.axis,
        "features": told.features,
        "mode": told.mode,
        "target": program.normalise_target is not None,
        "missing": program.missing,
    }


def _tensors(bundle: Bundle, infer: onnx.GraphProto) -> dict[str, Any]:
    """Every tensor of the model: what it is, and why."""
    source = read_onnx(bundle.source, "the bundle's source") if bundle.source else None
    roles = {} if source is None else import_model(source, name=bundle.program.name).roles
    parameters = [
        {"name": t.name, "shape": list(t.shape), "kind": t.kind, "elements": t.size, "why": _why(t.name, t.kind, roles)}
        for t in bundle.program.spec
    ]
    known = {entry["name"] for entry in parameters}
    frozen = [
        {"name": t.name, "shape": list(t.dims), "kind": "frozen", "elements": math.prod(t.dims)}
        for t in infer.initializer
        if t.name in frozen_names(infer) and _role(t.name, roles).kind != "constant"
    ]
    known.update(str(entry["name"]) for entry in frozen)
    others = [] if source is None else [t for t in source.graph.initializer if t.name not in known]
    return {
        "parameters": parameters,
        "frozen": frozen,
        "initializers": [
            {"name": t.name, "shape": list(t.dims), "kind": "constant", "elements": math.prod(t.dims), "why": why}
            for t, why in ((t, _why_constant(t, roles)) for t in others)
        ],
        "notes": [] if source is None else notes_of(source, roles),
    }


def _role(name: str, roles: Mapping[str, Role]) -> Role:
    return roles.get(name, Role("parameter", ""))


def _why(name: str, kind: str, roles: Mapping[str, Role]) -> str:
    if is_adapter(name):
        return "a low-rank adapter"
    if kind == "constant":
        return "statistics of the examples"
    role = _role(name, roles)
    return "asked for by its name" if role.kind == "constant" else role.why


def _why_constant(tensor: onnx.TensorProto, roles: Mapping[str, Role]) -> str:
    if tensor.name in roles:
        return roles[tensor.name].why
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return "folded into others, or without effect" if tensor.data_type in floats else "whole numbers"
