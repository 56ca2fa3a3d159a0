"""Gradient of Einsum: an Einsum again, of dY and the other operands, with the operand's own subscripts as output."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from coordinator.compile.graph import Dim, GraphBuilder, Node
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError
from edge_sdk.training.engine.kernels.einsum import explicit_terms

__all__ = ["einsum"]


def einsum(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = Einsum(dY, the other operands) in the subscripts of X; a letter that X alone has is stretched."""
    shapes = [b.shape(name) for name in node.inputs]
    terms, out = explicit_terms(str(node.attributes["equation"]), [len(shape) for shape in shapes])
    sizes: dict[str, Dim] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    return [_gradient(b, node, slot, (terms, out), sizes, dy[0]) if use else None for slot, use in enumerate(wanted)]


def _gradient(
    b: GraphBuilder, node: Node, slot: int, subscripts: tuple[tuple[str, ...], str], sizes: dict[str, Dim], g: str
) -> str:
    terms, out = subscripts
    x, shape = node.inputs[slot], b.shape(node.inputs[slot])
    names = [g, *(name for i, name in enumerate(node.inputs) if i != slot)]
    parts = [out, *(term for i, term in enumerate(terms) if i != slot)]
    given: dict[str, Dim] = {letter: sizes[letter] for letter in out}
    for name, term in zip(names[1:], parts[1:], strict=True):
        for letter, size in zip(term, b.shape(name), strict=True):
            if given.get(letter, 1) == 1:
                given[letter] = size
    target = _without_repetition(b, node, terms[slot], (out, terms), sizes, (names, parts, given))
    known = "".join(c for c in target if c in given)
    gradient = b.op("Einsum", *names, equation=f"{','.join(parts)}->{known}")
    missing = [axis for axis, c in enumerate(target) if c not in given]
    if missing:
        gradient = b.op("Unsqueeze", gradient, b.ints(*missing))
    gradient = b.sum_to(
        gradient, tuple(given.get(c, 1) if d == 1 else d for c, d in zip(target, shape, strict=True)), shape
    )
    if any(given.get(c, 1) == 1 and d != 1 for c, d in zip(target, shape, strict=True)):
        gradient = b.op("Expand", gradient, b.op("Shape", x, start=0))
    return gradient


def _without_repetition(
    b: GraphBuilder,
    node: Node,
    term: str,
    subscripts: tuple[str, tuple[str, ...]],
    sizes: dict[str, Dim],
    operands: tuple[list[str], list[str], dict[str, Dim]],
) -> str:
    """``term`` with a new letter for each repeated one, tied to the first by an identity matrix among ``operands``."""
    names, parts, given = operands
    used = set("".join((*subscripts[1], subscripts[0])))
    free = (c for c in string.ascii_letters if c not in used)
    target = ""
    for letter in term:
        if letter not in target:
            target += letter
            continue
        size = sizes[letter]
        if not isinstance(size, int):
            raise CompileError(f"{node}: takes a diagonal along the batch; its gradient cannot")
        twin = next(free)
        names.append(b.constant(np.eye(size, dtype=np.float32)))
        parts.append(letter + twin)
        given.update({letter: size, twin: size})
        target += twin
    return target
