"""Einsum as products of matrices.

NumPy's own einsum leaves batched products to a plain loop. Here two operands at a time are brought into the form
[batch, rows, inner] x [batch, inner, columns], which BLAS multiplies; which two come first is planned once for each
equation and shapes.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded

__all__ = ["einsum", "explicit_terms"]


def einsum(*operands: Array, equation: str) -> Array:
    """ONNX Einsum."""
    terms, out, steps = _plan(equation, tuple(value.shape for value in operands))
    if steps is None:
        return np.einsum(f"{','.join(terms)}->{out}", *operands)
    values = list(operands)
    named = list(terms)
    for first, second, keep in steps:
        right, right_term = values.pop(second), named.pop(second)
        left, left_term = values.pop(first), named.pop(first)
        value, term = _product(left, left_term, right, right_term, keep)
        values.append(value)
        named.append(term)
    return values[0] if named[0] == out else np.einsum(f"{named[0]}->{out}", values[0])


def explicit_terms(equation: str, ranks: Sequence[int]) -> tuple[tuple[str, ...], str]:
    """The subscripts of every operand and of the output, with letters in place of an ellipsis.

    Raises:
        TrainingError: The equation does not fit operands of these ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    letters = [term.replace("...", "") for term in terms]
    used = set("".join(letters)) | set(right.replace("...", ""))
    hidden = [rank - len(term) for rank, term in zip(ranks, letters, strict=False)]
    free = [c for c in string.ascii_letters if c not in used]
    fits = len(terms) == len(ranks) and used <= set(string.ascii_letters)
    if not fits or any(
        h < 0 or (h > 0 and "..." not in t) or h > len(free) for h, t in zip(hidden, terms, strict=True)
    ):
        raise TrainingError(f"Einsum: the equation {equation[:80]!r} does not fit operands of rank {list(ranks)[:8]}")
    ellipsis = "".join(free[: max(hidden, default=0)])
    full = tuple(t.replace("...", ellipsis[len(ellipsis) - h :]) for t, h in zip(terms, hidden, strict=True))
    if not arrow:
        counted = "".join(letters)
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in used if counted.count(c) == 1))
    return full, right.replace("...", ellipsis)


Steps = tuple[tuple[int, int, frozenset[str]], ...]


@lru_cache(maxsize=256)
def _plan(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, ...], str, Steps | None]:
    """Explicit subscripts and, in order, pairs to multiply with the letters to keep; None where NumPy must do it."""
    terms, out = explicit_terms(equation, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return terms, out, None  # a dimension of 1 that is broadcast
    bounded(sizes[letter] for letter in out)
    if len(terms) == 1:
        return terms, out, ()
    order = [(0, 1)]
    if len(terms) > 2:
        shaped = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
        path = np.einsum_path(f"{','.join(terms)}->{out}", *shaped, optimize="greedy")[0][1:]
        order = _in_pairs(path, len(terms))
    named, steps = list(terms), []
    for first, second in order:
        right, left = named.pop(second), named.pop(first)
        keep = frozenset("".join(named) + out)
        named.append("".join(dict.fromkeys(c for c in left + right if c in keep)))
        steps.append((first, second, keep))
    return terms, out, tuple(steps)


def _in_pairs(path: Sequence[Sequence[int]], count: int) -> list[tuple[int, int]]:
    """NumPy's path, a step of which may multiply more than two operands (or one), as products of two."""
    pairs = []
    for step in path:
        chosen = sorted(step)
        while len(chosen) > 1:
            second, first = chosen.pop(), chosen.pop()
            pairs.append((first, second))
            count -= 1
            chosen.append(count - 1)  # where the product is put
    return pairs


def _product(a: Array, a_term: str, b: Array, b_term: str, keep: frozenset[str]) -> tuple[Array, str]:
    a, a_term = _summed(a, a_term, keep | set(b_term))
    b, b_term = _summed(b, b_term, keep | set(a_term))
    batch = [c for c in a_term if c in b_term and c in keep]
    inner = [c for c in a_term if c in b_term and c not in keep]
    rows = [c for c in a_term if c not in b_term]
    columns = [c for c in b_term if c not in a_term]
    size = {**dict(zip(a_term, a.shape, strict=True)), **dict(zip(b_term, b.shape, strict=True))}
    lengths = [[size[c] for c in group] for group in (batch, rows, inner, columns)]
    n, m, k, p = (math.prod(group) for group in lengths)
    left = np.transpose(a, [a_term.index(c) for c in (*batch, *rows, *inner)]).reshape(n, m, k)
    right = np.transpose(b, [b_term.index(c) for c in (*batch, *inner, *columns)]).reshape(n, k, p)
    product = np.matmul(left, right) if inner else left * right
    return product.reshape([*lengths[0], *lengths[1], *lengths[3]]), "".join((*batch, *rows, *columns))


def _summed(x: Array, term: str, needed: frozenset[str] | set[str]) -> tuple[Array, str]:
    """``x`` without repeated letters and summed over those that nobody needs."""
    kept = "".join(dict.fromkeys(c for c in term if c in needed))
    return (x, term) if kept == term else (np.einsum(f"{term}->{kept}", x), kept)
