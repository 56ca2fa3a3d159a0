"""What exporters take apart, put together again: nodes whose gradient needs few passes over large tensors.

Only the training graph is made of the result; for inference onnxruntime finds these patterns itself, but between a
forward and a backward pass that both read what lies inside of a pattern it cannot.

* The exact GELU written with Erf is one Gelu.
* MatMul by one matrix, and then a bias, are one Gemm over all rows.
* Parts of a tensor that are picked one by one along an axis (query, key and value of an attention) are one Split,
  whose gradient is one Concat, on the tensor before it was moved around for the picking.
* Reshape, Transpose, Reshape, with axes merged only to be taken apart again (heads beside the batch), are a Reshape and
  one Transpose, which onnxruntime can then fold into the products that read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.compile.graph import BATCH, Dim, Model, Node, Shape, Value, batch_factor, prune

__all__ = ["simplified"]

MOVES: Final = frozenset({"Squeeze", "Transpose", "Unsqueeze"})


def simplified(model: Model, output: str) -> Model:
    """What leads to ``output`` in fewer nodes; parameters, inputs and ``output`` keep their names."""
    for rewrite in (_with_gelu, _with_gemm, _with_split, _with_moves):
        work = _Work(model, output)
        rewrite(work)
        model = work.finished()
    return model


class _Work:
    """A model's nodes while some of them are replaced."""

    def __init__(self, model: Model, output: str) -> None:
        self.model = model
        self.output = output
        self.values = dict(model.values)
        self.constants = dict(model.constants)
        self.makers = {name: node for node in model.nodes for name in node.outputs if name}
        self.users: dict[str, list[Node]] = {}
        for node in model.nodes:
            for name in set(node.inputs):
                self.users.setdefault(name, []).append(node)
        self._instead: dict[str, list[Node]] = {}

    def instead(self, node: Node, *nodes: Node) -> None:
        """Put ``nodes`` where ``node`` was; what only it needed goes away."""
        self._instead[node.outputs[0]] = list(nodes)

    def finished(self) -> Model:
        nodes = [new for node in self.model.nodes for new in self._instead.get(node.outputs[0], [node])]
        return replace(self.model, nodes=prune(nodes, [self.output]), values=self.values, constants=self.constants)

    def value(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        self.values[name] = Value(name, dtype, shape)
        return name

    def ints(self, name: str, *numbers: int) -> str:
        self.constants[name] = np.array(numbers, np.int64)
        return self.value(name, (len(numbers),), "int64")

    def shape(self, name: str) -> Shape:
        return self.values[name].shape if name in self.values else ("?",)

    def only_user(self, name: str, op: str) -> Node | None:
        """The node that alone reads ``name``, if it is an ``op``."""
        users = self.users.get(name, [])
        alone = len(users) == 1 and name != self.output and users[0].op == op
        return users[0] if alone else None

    def other(self, node: Node, name: str) -> str:
        """The operand of a binary node that is not ``name``."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    def is_scalar(self, name: str, number: float) -> bool:
        array = self.constants.get(name)
        return array is not None and array.size == 1 and math.isclose(float(array.reshape(())), number, rel_tol=1e-6)


def _with_gelu(work: _Work) -> None:
    """``x / sqrt(2) -> Erf -> + 1 -> times x -> times 1/2``, the last two in any order."""
    for erf in work.model.nodes:
        scaling = work.makers.get(erf.inputs[0]) if erf.op == "Erf" else None
        added = work.only_user(erf.outputs[0], "Add") if scaling else None
        product = work.only_user(added.outputs[0], "Mul") if added else None
        if scaling is None or added is None or product is None:
            continue
        x = _scaled_by(work, scaling, math.sqrt(0.5))
        if not x or not work.is_scalar(work.other(added, erf.outputs[0]), 1.0):
            continue
        factor = work.other(product, added.outputs[0])
        last: Node | None = product
        if factor == x:
            last = work.only_user(product.outputs[0], "Mul")
            if last is not None and not work.is_scalar(work.other(last, product.outputs[0]), 0.5):
                last = None
        elif factor not in work.makers or _scaled_by(work, work.makers[factor], 0.5) != x:
            last = None
        if last is not None:
            work.instead(last, Node("Gelu", (x,), last.outputs, {"approximate": "none"}, last.name))


def _scaled_by(work: _Work, node: Node, factor: float) -> str:
    """What ``node`` multiplies by ``factor``, "" if that is not what it does."""
    if node.op == "Div" and work.is_scalar(node.inputs[1], 1 / factor):
        return node.inputs[0]
    if node.op == "Mul":
        return next((node.inputs[1 - i] for i in (0, 1) if work.is_scalar(node.inputs[i], factor)), "")
    return ""


def _with_gemm(work: _Work) -> None:
    for node in work.model.nodes:
        added = work.only_user(node.outputs[0], "Add") if node.op == "MatMul" else None
        if added is None:
            continue
        (x, weight), bias = node.inputs, work.other(added, node.outputs[0])
        before, matrix = work.shape(x), work.shape(weight)
        factor = batch_factor(before[:-1])
        if not factor or len(before) < 3 or len(matrix) != 2 or work.shape(bias) != matrix[1:]:
            continue
        if not all(isinstance(d, int) for d in (*matrix, before[-1])):
            continue
        stem, after, rows = node.outputs[0], (*before[:-1], matrix[1]), _grown(factor)
        flat = work.value(f"{stem}~rows", (rows, matrix[0]))
        made = work.value(f"{stem}~gemm", (rows, matrix[1]))
        shapes = [
            work.ints(f"{stem}~flat", -1, int(matrix[0])),
            work.ints(f"{stem}~shape", *(d if isinstance(d, int) else -1 for d in after)),
        ]
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
        work.instead(
            added,
            Node("Reshape", (x, shapes[0]), (flat,), {"allowzero": 0}),
            Node("Gemm", (flat, weight, bias), (made,), attributes, node.name),
            Node("Reshape", (made, shapes[1]), added.outputs, {"allowzero": 0}),
        )


def _grown(factor: int) -> str:
    return BATCH if factor == 1 else f"{BATCH}*{factor}"


def _with_split(work: _Work) -> None:
    for name, users in work.users.items():
        picks = list(_picks(name, users, work.constants)) if len(users) > 1 and name != work.output else []
        if len(picks) != len(users):
            continue
        rank = len(work.shape(name))
        axes = {node.attributes["axis"] % rank for node in users if rank}
        if len(axes) != 1 or sorted(picks) != list(range(len(picks))):
            continue
        (axis,) = axes
        base, order = _before_moves(work, name)
        shape = work.shape(base)
        if shape[order[axis]] != len(picks) or not all(isinstance(d, int) or d.startswith(BATCH) for d in shape):
            continue
        _split(work, base, order, axis, dict(zip(picks, users, strict=True)))


def _picks(name: str, users: Sequence[Node], constants: Mapping[str, NDArray[Any]]) -> Iterator[int]:
    """Which element each Gather takes along its axis."""
    for node in users:
        index = constants.get(node.inputs[1]) if node.op == "Gather" and node.inputs[0] == name else None
        if index is not None and index.ndim == 0:
            yield int(index)


def _before_moves(work: _Work, name: str) -> tuple[str, list[int]]:
    """The tensor that ``name`` is a transpose of, and which of its axes each axis of ``name`` is."""
    chain: list[Node] = []
    source = name
    while source in work.makers and work.makers[source].op in MOVES and (not chain or _alone(work, source)):
        chain.append(work.makers[source])
        source = chain[-1].inputs[0]
    for length in range(len(chain), 0, -1):
        base = chain[length - 1].inputs[0]
        order = _moved(work, chain[:length][::-1], base)
        if order is not None:
            return base, order
    return name, list(range(len(work.shape(name))))


def _alone(work: _Work, name: str) -> bool:
    return len(work.users.get(name, [])) == 1 and name != work.output


def _moved(work: _Work, moves: Sequence[Node], base: str) -> list[int] | None:
    """The axes of ``base`` in their order after ``moves``; None where one was dropped, added, or is not known."""
    axes: list[int | None] = list(range(len(work.shape(base))))
    for node in moves:
        if node.op == "Transpose":
            order = node.attributes.get("perm") or range(len(axes))[::-1]
            axes = [axes[i] for i in order]
            continue
        numbers = work.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if numbers is None:
            return None
        rank = len(axes) + (numbers.size if node.op == "Unsqueeze" else 0)
        chosen = sorted(int(n) % rank for n in numbers.ravel())
        if node.op == "Unsqueeze":
            for i in chosen:
                axes.insert(i, None)
        else:
            if any(axes[i] is not None for i in chosen):
                return None
            axes = [a for i, a in enumerate(axes) if i not in chosen]
    found = [a for a in axes if a is not None]
    return found if len(found) == len(axes) == len(work.shape(base)) else None


def _split(work: _Work, base: str, order: list[int], axis: int, users: Mapping[int, Node]) -> None:
    shape, along = work.shape(base), order[axis]
    dtype = work.values[base].dtype
    part: Shape = (*shape[:along], 1, *shape[along + 1 :])
    kept: Shape = (*shape[:along], *shape[along + 1 :])
    rest = [a - (a > along) for a in order if a != along]
    names = tuple(work.value(f"{users[i].outputs[0]}~part", part, dtype) for i in sorted(users))
    sizes = work.ints(f"{names[0]}/sizes", *(1 for _ in names))
    where = work.ints(f"{names[0]}/axis", along)
    first = min(users.values(), key=work.model.nodes.index)
    for i, node in users.items():
        nodes = [Node("Split", (base, sizes), names, {"axis": along}, node.name)] if node is first else []
        squeezed = node.outputs[0] if rest == sorted(rest) else work.value(f"{names[i]}/squeezed", kept, dtype)
        nodes.append(Node("Squeeze", (names[i], where), (squeezed,)))
        if squeezed != node.outputs[0]:
            nodes.append(Node("Transpose", (squeezed,), node.outputs, {"perm": rest}))
        work.instead(node, *nodes)


def _with_moves(work: _Work) -> None:
    for node in work.model.nodes:
        before = work.makers.get(node.inputs[0]) if node.op == "Transpose" and _alone(work, node.inputs[0]) else None
        after = work.only_user(node.outputs[0], "Reshape") if before is not None and before.op == "Reshape" else None
        if before is None or after is None:
            continue
        x, merged, result = before.inputs[0], work.shape(node.inputs[0]), work.shape(after.outputs[0])
        order = node.attributes.get("perm") or list(range(len(merged)))[::-1]
        atoms = _atoms(work.shape(x), merged, order, result)
        if atoms is None:
            continue
        stem, dtype = node.outputs[0], work.values[x].dtype
        places = [list(range(len(a))) for a in atoms]
        for i in range(1, len(places)):
            places[i] = [n + sum(map(len, atoms[:i])) for n in places[i]]
        apart: Shape = tuple(d for dims in atoms for d in dims)
        moved: Shape = tuple(d for i in order for d in atoms[i])
        nodes, source = [], x
        if apart != work.shape(x):
            source = work.value(f"{stem}~apart", apart, dtype)
            nodes.append(_reshape(work, x, source, apart))
        target = after.outputs[0] if moved == result else work.value(f"{stem}~moved", moved, dtype)
        nodes.append(
            Node("Transpose", (source,), (target,), {"perm": [n for i in order for n in places[i]]}, node.name)
        )
        if moved != result:
            nodes.append(_reshape(work, target, after.outputs[0], result))
        work.instead(after, *nodes)


def _reshape(work: _Work, x: str, y: str, shape: Shape) -> Node:
    numbers = work.ints(f"{y}~shape", *(d if isinstance(d, int) else -1 for d in shape))
    return Node("Reshape", (x, numbers), (y,), {"allowzero": 0})


def _atoms(source: Shape, merged: Shape, order: Sequence[int], result: Shape) -> list[list[Dim]] | None:
    """Each dimension of ``merged`` in the parts that ``source`` and ``result`` both keep whole."""
    one, other = _groups(merged, source), _groups([merged[i] for i in order], result)
    if one is None or other is None:
        return None
    found = []
    for i, dims in enumerate(one):
        parts = _groups(dims, other[list(order).index(i)])
        if parts is None:
            return None
        found.append([d for part in parts for d in part])
    flat = [d for dims in found for d in dims]
    return (
        found if sum(isinstance(d, str) for d in flat) <= 1 and sum(isinstance(d, str) for d in result) <= 1 else None
    )


def _groups(dims: Sequence[Dim], others: Sequence[Dim]) -> list[list[Dim]] | None:
    """Each of ``dims`` in parts of which ``others``, dimensions of the same elements, are made too."""
    left, right = [[d] for d in dims], list(others)
    groups: list[list[Dim]] = []
    pending = right[::-1]
    for (dim,) in left:
        parts: list[Dim] = []
        rest: Dim | None = dim
        while rest is not None:
            if not pending:
                return None
            common = _common(rest, pending[-1])
            if common is None:
                return None
            part, rest, leftover = common
            pending.pop()
            if leftover is not None:
                pending.append(leftover)
            parts.append(part)
        groups.append(parts)
    return None if pending else groups


def _common(a: Dim, b: Dim) -> tuple[Dim, Dim | None, Dim | None] | None:
    """The leading part that both have, and what is left of each; a batch comes before its factor."""
    if a == b:
        return a, None, None
    if 1 in (a, b):
        return None
    if isinstance(a, int) and isinstance(b, int):
        if b % a == 0:
            return a, None, b // a
        return (b, a // b, None) if a % b == 0 else None
    if isinstance(a, str) and isinstance(b, str):
        factors = batch_factor([a]), batch_factor([b])
        if factors[0] == 1 and factors[1]:
            return BATCH, None, factors[1]
        return (BATCH, factors[0], None) if factors[1] == 1 and factors[0] else None
    return None
