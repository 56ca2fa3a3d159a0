"""Graphs as the compiler sees them: plain nodes and arrays, without the protobuf classes they come from and go to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import CompileError
from edge_sdk.training.normalise import MISSING, Normalise

__all__ = [
    "BATCH",
    "IR_VERSION",
    "OPSET",
    "UNKNOWN",
    "Dim",
    "Graph",
    "GraphBuilder",
    "Model",
    "Node",
    "Product",
    "Role",
    "Shape",
    "Value",
    "batch_factor",
    "captured",
    "prune",
]

OPSET: Final = 21
"""The one opset that the compiler works in; onnxruntime 1.18 and later execute it."""

IR_VERSION: Final = 10
"""The version of the file format that goes with ``OPSET``."""

BATCH: Final = "batch"
"""The name of the one dimension that is not known when compiling."""

COUNTED_OUTPUTS: Final = frozenset({"If", "Loop", "Scan", "Split", "TopK"})
"""Operators that need all of their outputs named; onnxruntime crashes on a Split without."""

UNKNOWN: Final = "?"
"""A dimension that inference could not find."""

Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call of the default domain at ``OPSET``; a left-out optional input is ``""``.

    ``name`` is what the source model calls it, for messages; emitted nodes have none.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return f"node {self.name or next(filter(None, self.outputs), '')!r} ({self.op}, opset {OPSET})"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor's name, NumPy dtype name and shape.

    In ``shape``, ``BATCH`` (or ``"batch*k"``) stands for a dimension that grows with the batch.
    """

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Product:
    """A gradient of the form ``alpha * op(a) @ op(b)`` that is not emitted yet.

    Kept apart so that what is added to it (another gradient, or the parameter itself in a plain SGD step) becomes
    the third operand of the one Gemm that computes it.
    """

    a: str
    b: str
    trans_a: bool
    trans_b: bool
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class Role:
    """What an initializer is: ``parameter``, ``statistics`` or ``constant``; and why, in words.

    ``guessed`` is a constant by its looks, which might be a parameter all the same.
    """

    kind: str
    why: str
    guessed: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """An imported inference model.

    Attributes:
        name: Human name.
        inputs: Model inputs, batch first.
        outputs: Model outputs.
        nodes: In topological order; none is without effect on the outputs.
        parameters: Arrays (float32) by name, in order of first use.
        buffers: Names of parameters that are not trained by gradients but averaged.
        normalise: How an input is normalised, None where none is; mean and scale are among the parameters.
        normalise_target: The same of the target, from which the output then is scaled back to raw units.
        missing: What becomes of NaN in that input.
        constants: Arrays by name that stay what they are.
        values: dtype and shape of every name, where inference found one.
        roles: What each float initializer was taken for, and why, by name.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    parameters: Mapping[str, NDArray[np.float32]]
    buffers: frozenset[str]
    constants: Mapping[str, NDArray[Any]]
    values: Mapping[str, Value]
    normalise: Normalise | None = None
    normalise_target: Normalise | None = None
    missing: str = MISSING[0]
    roles: Mapping[str, Role] = field(default_factory=dict)

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the parameters that training leaves alone: constants whose values come with the others."""
        told = [told for told in (self.normalise, self.normalise_target) if told is not None]
        return frozenset(name for each in told for name in (each.mean, each.scale))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that gradients change, in order."""
        return tuple(name for name in self.parameters if name not in self.buffers | self.fixed)

    def kind(self, name: str) -> str:
        """The kind of a parameter, as a ``ParameterSpec`` has it."""
        return "buffer" if name in self.buffers else "constant" if name in self.fixed else "trainable"


@dataclass(frozen=True, eq=False)
class Graph:
    """A finished graph: what ``emit`` writes as ONNX and as a NumPy plan.

    As an attribute of a Scan it is the body, which may read names of the graph around it (:func:`captured`).
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]]


class GraphBuilder:
    """Appends nodes to a graph; equal nodes and equal constants are made once.

    Args:
        model: The model whose names and shapes the new nodes refer to.

    Attributes:
        buffers: Names that buffer parameters have after the step, by parameter; one that is not here stays.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray[Any]] = dict(model.constants)
        self._names = {"", *model.values, *model.parameters, *model.constants, *(v.name for v in model.inputs)}
        self._freshest = 0  # not the number of names: a model and its export then get the same ones
        self._names.update(name for node in model.nodes for name in node.outputs)
        self._made: dict[Any, tuple[str, ...]] = {}
        self._makers: dict[str, Node] = {}
        self._saved: dict[str, dict[str, str]] = {}
        self._turned: dict[str, tuple[str, list[int]]] = {}
        self.buffers: dict[str, str] = {}

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; the name of that output."""
        return self.ops(op, inputs, 1, **attributes)[0]

    def ops(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Append a node with ``outputs`` outputs; their names."""
        if op == "Reshape" and np.all(self.constants.get(inputs[1], 0)):
            inputs = (self._before_reshape(inputs[0]), inputs[1])
        key = (op, tuple(inputs), outputs, tuple((k, _hashable(attributes[k])) for k in sorted(attributes)))
        if key not in self._made:
            names = tuple(self.fresh(op) for _ in range(outputs))
            self.append(Node(op, tuple(inputs), names, attributes))
            self._made[key] = names
        return self._made[key]

    def transpose(self, x: str, perm: Sequence[int], name: str = "") -> str:
        """The name of ``x`` with its axes in this order; what was turned is not turned twice, but from where it came.

        ``name``, where it is given, is the model's name of the result, which a node is to give in any case.
        """
        source, before = self._turned.get(x, (x, list(range(len(perm)))))
        axes = [before[axis] for axis in perm]
        if name:
            self.append(Node("Transpose", (source,), (name,), {"perm": axes}))
        elif axes == sorted(axes):
            return source
        else:
            name = self.op("Transpose", source, perm=axes)
        self._turned[name] = (source, axes)
        return name

    def append(self, node: Node) -> None:
        """Append a node of the model, its names unchanged."""
        self.nodes.append(node)
        self._makers.update((name, node) for name in node.outputs if name)

    def maker(self, name: str) -> Node | None:
        """The node that computes ``name``; None for what is given from outside."""
        return self._makers.get(name)

    def _before_reshape(self, name: str) -> str:
        while (node := self._makers.get(name)) is not None and node.op == "Reshape":
            name = node.inputs[0]
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """The name of a constant with this value."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            name = self.fresh("constant")
            self.constants[name] = array
            self._made[key] = (name,)
        return self._made[key][0]

    def scalar(self, value: float) -> str:
        """A float32 constant of shape ()."""
        return self.constant(np.array(value, dtype=np.float32))

    def ints(self, *values: int) -> str:
        """An int64 constant of shape [len(values)], as axes, shapes and pads are given."""
        return self.constant(np.array(values, dtype=np.int64))

    def save(self, node: Node, **names: str) -> None:
        """Keep names that the training form of ``node`` computed, for its gradient rule."""
        self._saved.setdefault(node.outputs[0], {}).update(names)

    def saved(self, node: Node, key: str) -> str:
        """A name that was saved under ``key``."""
        return self._saved[node.outputs[0]][key]

    def has_saved(self, node: Node) -> bool:
        """Whether the training form of ``node`` kept anything."""
        return node.outputs[0] in self._saved

    def shape(self, name: str) -> Shape:
        """The shape of a value of the model.

        Raises:
            CompileError: Shape inference did not find it.
        """
        value = self.model.values.get(name)
        if value is None or UNKNOWN in value.shape:
            raise CompileError(
                f"value {name!r}: its shape could not be inferred, and a gradient needs it; "
                "export the model with static shapes (all but the batch)"
            )
        return value.shape

    def materialise(self, gradient: str | Product, addend: str = "") -> str:
        """The name of ``gradient + addend``, computed in one node where it is a product."""
        if isinstance(gradient, Product):
            inputs = (gradient.a, gradient.b, addend) if addend else (gradient.a, gradient.b)
            transposed = {"transA": int(gradient.trans_a), "transB": int(gradient.trans_b)}
            return self.op("Gemm", *inputs, alpha=gradient.alpha, beta=1.0, **transposed)
        return self.op("Add", addend, gradient) if addend else gradient

    def add(self, first: str | Product, second: str | Product) -> str:
        """The name of the sum of two gradients."""
        if isinstance(first, Product):
            return self.materialise(first, self.materialise(second))
        return self.materialise(second, first)

    def sum_to(self, gradient: str, shape: Shape, target: Shape) -> str:
        """Sum a gradient of ``shape`` down to ``target``, from which a forward broadcast made ``shape``."""
        if shape == target:
            return gradient
        leading = len(shape) - len(target)
        stretched = [leading + i for i, d in enumerate(target) if d == 1 and shape[leading + i] != 1]
        if stretched:
            gradient = self.op("ReduceSum", gradient, self.ints(*stretched), keepdims=1)
        if leading:
            gradient = self.op("ReduceSum", gradient, self.ints(*range(leading)), keepdims=0)
        return gradient

    def like(self, gradient: str, value: str) -> str:
        """Reshape ``gradient`` to the shape of the model's value ``value``."""
        shape = self.model.values[value].shape if value in self.model.values else (UNKNOWN, UNKNOWN)
        if sum(isinstance(d, str) for d in shape) > 1:
            return self.op("Reshape", gradient, self.op("Shape", value, start=0), allowzero=0)
        return self.op("Reshape", gradient, self.ints(*(d if isinstance(d, int) else -1 for d in shape)), allowzero=0)

    def fresh(self, stem: str) -> str:
        """A name that nothing has yet."""
        self._freshest += 1
        name = f"{stem}~{self._freshest}"
        while name in self._names:
            name += "~"
        self._names.add(name)
        return name


def batch_factor(dims: Iterable[Dim]) -> int:
    """What the batch is multiplied by in the product of ``dims``; 0 where none or several of them grow with it."""
    factor, grown = 1, 0
    for dim in dims:
        if isinstance(dim, int):
            factor *= dim
            continue
        name, _, times = dim.partition("*")
        if name != BATCH or not (times or "1").isdigit():
            return 0
        factor *= int(times or "1")
        grown += 1
    return factor if grown == 1 else 0


def prune(nodes: Iterable[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that ``outputs`` depend on, in their order; unused optional outputs become ``""`` or are cut."""
    needed = set(outputs)
    kept: list[Node] = []
    for node in reversed(list(nodes)):
        used = [name if name in needed else "" for name in node.outputs]
        if not any(used):
            continue
        needed.update(name for name in node.inputs if name)
        needed.update(_captured(node))
        if node.op in COUNTED_OUTPUTS:
            used = list(node.outputs)
        while not used[-1]:
            used.pop()
        kept.append(Node(node.op, node.inputs, tuple(used), node.attributes, node.name))
    return tuple(reversed(kept))


def captured(body: Graph) -> tuple[str, ...]:
    """Names of the graph around ``body`` that it reads, in order of first use."""
    known = {"", *body.constants, *(v.name for v in body.inputs), *(name for n in body.nodes for name in n.outputs)}
    return tuple(dict.fromkeys(name for node in body.nodes for name in node.inputs if name not in known))


def _captured(node: Node) -> set[str]:
    """Outer names that the node's subgraphs (Loop, If, Scan) may read: too many rather than too few."""
    names: set[str] = set()
    for value in node.attributes.values():
        if isinstance(value, Graph):
            names.update(captured(value))
        for graph in value if isinstance(value, list | tuple) else [value]:
            if hasattr(graph, "node"):
                inner = [Node(n.op_type, tuple(n.input), tuple(n.output), _subgraphs(n)) for n in graph.node]
                for child in inner:
                    names.update(child.inputs)
                    names |= _captured(child)
                names.update(v.name for v in graph.output)
    return names


def _subgraphs(proto: Any) -> dict[str, Any]:
    return {a.name: [a.g, *a.graphs] for a in proto.attribute}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
