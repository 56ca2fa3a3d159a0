"""Operators without a rule: the gradient of one node, as the package onnx-ad writes it.

onnx-ad (Joris Gillis, MIT) turns a model into one that also computes its vector-Jacobian product. It gets a model of
the one node, three times, with three batch sizes, since many of its rules need every size. The three results must be
the same graph; an integer in it that grows evenly with the batch is computed from the batch, any other difference is
refused. The nodes are ordinary operators, spliced into the backward pass under fresh names. They are more and slower
than a rule's, so a warning says which node has them; the self-check of the compiler compares them with differences of
the loss like any other gradient.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from coordinator.compile.graph import IR_VERSION, OPSET, Dim, Graph, GraphBuilder, Node, prune
from coordinator.compile.normalise import fold, read_node
from coordinator.compile.rules.rule import Gradients, Wanted
from coordinator.compile.sequences import lower_sequences
from edge_sdk.errors import CompileError

__all__ = ["INSTALL", "fallback_gradient", "fallback_training", "has_fallback"]

_log = logging.getLogger(__name__)

INSTALL: Final = "install onnx-ad, which knows more operators (pip install onnx-ad)"
PROBES: Final = (3, 5, 7)
"""Batch sizes; what is linear in two of them and wrong for a third is no size."""
NODES_MAX: Final = 2000
"""Of one node's gradient; more is no training step for a device."""


def has_fallback() -> bool:
    """Whether onnx-ad is installed."""
    return _reverse() is not None


def fallback_training(b: GraphBuilder, node: Node) -> None:
    """Append a node that has no rule in the form that its gradient shares: itself, or the nodes that onnx-ad writes it
    out in (a LRN, a GridSample), so that they are computed once."""
    unknown = [name for name in (*node.inputs, *node.outputs) if name and name not in b.model.values]
    if unknown:
        raise _refusal(node, f"{unknown[0]!r} is no tensor, or one of unknown shape")
    wanted = [bool(name) and _is_float(b, name) for name in node.inputs]
    given = [bool(name) and _is_float(b, name) for name in node.outputs]
    found = _adjoints(b, node, given, wanted)
    outputs = {f"out{slot}": name for slot, name in enumerate(node.outputs) if name}
    if any(n.op == node.op and set(n.outputs) == set(outputs) for n in found.nodes):
        b.append(node)
        return
    known = {f"in{slot}": name for slot, name in enumerate(node.inputs)}
    _splice(b, node, found, known, list(outputs))
    for made, name in outputs.items():
        b.append(Node("Identity", (known[made],), (name,), {}, node.name))


def fallback_gradient(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """Append the gradients of a node that has no rule.

    Args:
        b: Holds the forward pass, the node in its training form.
        node: At ``OPSET``.
        dy: Gradients of its outputs, ``""`` where one has none.
        wanted: For each input, whether its gradient is needed.

    Returns:
        The gradient of each wanted input, None for the others.

    Raises:
        CompileError: onnx-ad is missing, has no derivative either, or wrote something that cannot be used.
    """
    found = _adjoints(b, node, [bool(name) for name in dy], wanted)
    known = {f"in{slot}": name for slot, name in enumerate(node.inputs)}
    known.update({f"adj_out{slot}": b.op("Unsqueeze", name, b.ints(-1)) for slot, name in enumerate(dy) if name})
    if any(n.op == node.op for n in found.nodes):
        known.update({f"out{slot}": name for slot, name in enumerate(node.outputs) if name})
    goals = [f"adj_in{slot}" for slot, needed in enumerate(wanted) if needed]
    _check_influence(node, found.nodes, goals)
    added = _splice(b, node, found, known, goals)
    _log.warning("%s: no gradient rule; %d nodes by onnx-ad stand in for it, slower than a rule", node, added)
    return [
        b.op("Squeeze", known[f"adj_in{slot}"], b.ints(-1)) if needed else None for slot, needed in enumerate(wanted)
    ]


@dataclass(frozen=True, eq=False)
class _Adjoints:
    """The graph that onnx-ad makes of a node, for each of the ``PROBES``: the nodes are the same, arrays may differ.

    Names are ``in0``... and ``out0``... for the node's operands, ``adj_out0``... for the seeds, ``adj_in0``... for
    what is sought. Gradients have one axis more at the end, for several seeds.
    """

    nodes: tuple[Node, ...]
    arrays: tuple[dict[str, NDArray[Any]], ...]


def _adjoints(b: GraphBuilder, node: Node, seeded: Sequence[bool], wanted: Wanted) -> _Adjoints:
    results = [_adjoint(b, node, seeded, wanted, batch) for batch in PROBES]
    nodes, arrays = results[0][0], tuple(found for _, found in results)
    if any(found != nodes for found, _ in results[1:]) or any(set(found) != set(arrays[0]) for found in arrays[1:]):
        raise _refusal(node, "its graph is another one for another batch size")
    return _Adjoints(tuple(nodes), arrays)


def _adjoint(
    b: GraphBuilder, node: Node, seeded: Sequence[bool], wanted: Wanted, batch: int
) -> tuple[list[Node], dict[str, NDArray[Any]]]:
    reverse = _reverse()
    if reverse is None:
        raise CompileError(f"{node}: this operator has no gradient rule; {INSTALL}, or freeze the parameters before it")
    model = _model(b, node, batch)
    names = {info.name for info in model.graph.input}
    inputs = [f"in{slot}" for slot, needed in enumerate(wanted) if needed and f"in{slot}" in names]
    outputs = [f"out{slot}" for slot, given in enumerate(seeded) if given]
    try:
        found = reverse(model, inputs=inputs, outputs=outputs, prefix="adj_", dim="seeds", layout="onnx")
        lower_sequences(found)
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
        kept = {f"adj_{name}" for name in inputs} | {f"out{slot}" for slot in range(len(node.outputs))}
        nodes = fold((read_node(n) for n in found.graph.node), arrays, kept)
    except Exception as error:  # rules by many hands, each of which may stumble in its own way
        raise _refusal(node, f"it says: {type(error).__name__}: {error}") from error
    foreign = sorted({n.domain for n in found.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise _refusal(node, f"it uses operators of the domain {foreign[0]!r}")
    return nodes, arrays


def _splice(b: GraphBuilder, node: Node, found: _Adjoints, known: dict[str, str], goals: Sequence[str]) -> int:
    """Append what ``goals`` need under fresh names, which are entered in ``known``; the number of nodes."""
    kept = prune([n for n in found.nodes if not set(n.outputs) <= set(known)], goals)
    if len(kept) > NODES_MAX:
        raise _refusal(node, f"it needs {len(kept)} nodes, at most {NODES_MAX} are accepted")
    for n in kept:
        if any(isinstance(value, onnx.GraphProto | Graph) for value in n.attributes.values()):
            raise _refusal(node, f"it needs control flow ({n.op})")
        for name in n.inputs:
            if name in found.arrays[0] and name not in known:
                known[name] = _constant(b, node, [arrays[name] for arrays in found.arrays])
        made = b.ops(n.op, [known[name] if name else "" for name in n.inputs], len(n.outputs), **n.attributes)
        known.update({name: new for name, new in zip(n.outputs, made, strict=True) if name})
    return len(kept)


def _model(b: GraphBuilder, node: Node, batch: int) -> onnx.ModelProto:
    inputs = [f"in{slot}" if name else "" for slot, name in enumerate(node.inputs)]
    outputs = [f"out{slot}" if name else "" for slot, name in enumerate(node.outputs)]
    proto = helper.make_node(node.op, inputs, outputs, name=node.name)
    for key in sorted(node.attributes):
        value = node.attributes[key]
        value = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        if not isinstance(value, list) or value:
            proto.attribute.append(helper.make_attribute(key, value))
    entries, initializers = [], []
    for slot, name in enumerate(node.inputs):
        if name in b.constants:
            initializers.append(numpy_helper.from_array(b.constants[name], f"in{slot}"))
        elif name:
            entries.append(_info(b, node, name, f"in{slot}", batch))
    results = [_info(b, node, name, f"out{slot}", batch) for slot, name in enumerate(node.outputs) if name]
    graph = helper.make_graph([proto], "node", entries, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _info(b: GraphBuilder, node: Node, name: str, called: str, batch: int) -> onnx.ValueInfoProto:
    try:
        shape = [_size(dim, batch) for dim in b.shape(name)]
    except CompileError as error:
        raise _refusal(node, str(error)) from error
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(b.model.values[name].dtype))
    return helper.make_tensor_value_info(called, dtype, shape)


def _size(dim: Dim, batch: int) -> int:
    return dim if isinstance(dim, int) else batch * int(dim.partition("*")[2] or 1)


def _check_influence(node: Node, nodes: Sequence[Node], goals: Sequence[str]) -> None:
    """A gradient that no seed reaches is one that onnx-ad takes for zero, as it does for what it does not know."""
    reached = {name for n in nodes for name in n.inputs if name.startswith("adj_out")}
    for n in nodes:
        if n.op not in ("Shape", "Size") and reached.intersection(n.inputs):
            reached.update(n.outputs)
    if not reached.issuperset(goals):
        raise _refusal(node, "it takes the gradient for zero")


def _constant(b: GraphBuilder, node: Node, arrays: Sequence[NDArray[Any]]) -> str:
    """An array that is the same for all batch sizes, or the integers ``offset + factor batch``."""
    first, second, third = arrays
    if all(np.array_equal(first, other) for other in (second, third)):
        return b.constant(first)
    if first.dtype == np.int64 and first.ndim < 2 and first.shape == second.shape == third.shape:
        factor, rest = np.divmod(second - first, PROBES[1] - PROBES[0])
        offset = first - factor * PROBES[0]
        if not np.any(rest) and np.array_equal(third, offset + factor * PROBES[2]):
            batch = b.op("Shape", b.model.inputs[0].name, start=0, end=1)
            if not first.ndim:
                batch = b.op("Squeeze", batch, b.ints(0))
            grown = b.op("Mul", batch, b.constant(factor))
            return b.op("Add", grown, b.constant(offset)) if np.any(offset) else grown
    raise _refusal(node, f"a table of it ({first.dtype}{list(first.shape)}) depends on the batch size")


def _is_float(b: GraphBuilder, name: str) -> bool:
    return b.model.values[name].dtype == "float32"


def _refusal(node: Node, why: str) -> CompileError:
    return CompileError(
        f"{node}: this operator has no gradient rule, and onnx-ad cannot stand in for one: {why}. Replace it in the "
        "model, freeze the parameters before it, or add a rule to coordinator/compile/rules"
    )


def _reverse() -> Callable[..., onnx.ModelProto] | None:
    try:
        return importlib.import_module("onnx_ad").reverse  # type: ignore[no-any-return]
    except (ImportError, AttributeError):
        return None
