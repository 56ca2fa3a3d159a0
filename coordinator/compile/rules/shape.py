"""Gradients of operators that only move, repeat or cut elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.compile.graph import BATCH, Dim, GraphBuilder, Node, Shape
from coordinator.compile.rules.broadcast import axes_of, constant_of, operand, reduced, reshaped, shape_vector, total
from coordinator.compile.rules.rule import Gradients, Wanted
from edge_sdk.errors import CompileError

__all__ = [
    "concat",
    "cumsum",
    "depth_to_space",
    "expand",
    "identity",
    "pad",
    "reshape",
    "slice_",
    "space_to_depth",
    "split",
    "tile",
    "transpose",
    "trilu",
]

_END: Final = np.iinfo(np.int64).max
_BEGIN: Final = np.iinfo(np.int64).min


def identity(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY."""
    return [dy[0]]


def reshape(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY in the shape of X; also for Flatten, Squeeze and Unsqueeze, whose other operands have no gradient."""
    return [b.like(dy[0], node.inputs[0]), *(None for _ in node.inputs[1:])]


def transpose(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY, axes moved back."""
    rank = len(b.shape(node.inputs[0]))
    permutation = node.attributes.get("perm") or list(range(rank))[::-1]
    back = [int(axis) for axis in np.argsort(permutation)]
    swapped = [*range(rank - 2), rank - 1, rank - 2] if rank > 1 else []
    if swapped and swapped[back[-1]] == rank - 1 and (turned := _turned_product(b, dy[0], swapped)):
        # Rows stay rows: what moves is longer than one element.
        return [b.op("Transpose", turned, perm=[swapped[axis] for axis in back]) if swapped != back else turned]
    return [b.op("Transpose", dy[0], perm=back)]


def _turned_product(b: GraphBuilder, x: str, swapped: list[int]) -> str:
    """``x``, a product of a transposed matrix, with its last two axes swapped: (A^T G)^T = G^T A; "" if it is none."""
    made = b.maker(x)
    if made is not None and made.op == "Mul" and (scalars := [n for n in made.inputs if _is_scalar(b, n)]):
        inner = _turned_product(b, next(n for n in made.inputs if n != scalars[0]), swapped)
        return b.op("Mul", inner, scalars[0]) if inner else ""
    if made is None or made.op != "MatMul":
        return ""
    first = b.maker(made.inputs[0])
    if first is None or first.op != "Transpose" or list(first.attributes["perm"]) != swapped:
        return ""
    return b.op("MatMul", b.op("Transpose", made.inputs[1], perm=swapped), first.inputs[0])


def _is_scalar(b: GraphBuilder, name: str) -> bool:
    return name in b.constants and b.constants[name].ndim == 0


def expand(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY summed over what was stretched."""
    return [reduced(b, node, 0, dy[0])]


def tile(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY summed over the repetitions; their number must be constant."""
    shape = b.shape(node.inputs[0])
    repeats = [int(r) for r in constant_of(b, node, 1, "repeats").ravel()]
    parts: list[Dim] = []
    axes = []
    for size, count in zip(shape, repeats, strict=True):
        if count != 1:
            axes.append(len(parts))
            parts.append(count)
        parts.append(size)
    if not axes:
        return [dy[0]]
    return [b.op("ReduceSum", reshaped(b, dy[0], tuple(parts), node), b.ints(*axes), keepdims=0)]


def concat(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = its part of dY."""
    axis = node.attributes["axis"] % len(b.shape(node.outputs[0]))
    sizes = [b.shape(name)[axis] for name in node.inputs]
    if not all(isinstance(size, int) for size in sizes):
        lengths = [b.op("Shape", name, start=axis, end=axis + 1) for name in node.inputs]
        return list(b.ops("Split", [dy[0], b.op("Concat", *lengths, axis=0)], len(sizes), axis=axis))
    ends = [int(end) for end in np.cumsum([int(size) for size in sizes])]
    if all(wanted):
        return list(b.ops("Split", [dy[0], b.ints(*(int(size) for size in sizes))], len(sizes), axis=axis))
    bounds = zip([0, *ends[:-1]], ends, wanted, strict=True)
    return [b.op("Slice", dy[0], b.ints(s), b.ints(e), b.ints(axis)) if used else None for s, e, used in bounds]


def split(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = the parts' gradients side by side, zeros for parts that nobody uses."""
    x = node.inputs[0]
    shape = b.shape(x)
    axis = node.attributes["axis"] % len(shape)
    parts = list(dy)
    if not all(dy):
        for i, size in enumerate(_split_sizes(b, node, shape[axis])):
            if not parts[i]:
                part: Shape = (*shape[:axis], size, *shape[axis + 1 :])
                parts[i] = b.op("Expand", b.scalar(0.0), shape_vector(b, part, x))
    return [b.op("Concat", *parts, axis=axis), *(None for _ in node.inputs[1:])]


def _split_sizes(b: GraphBuilder, node: Node, size: Dim) -> list[int]:
    if operand(node, 1):
        return [int(s) for s in constant_of(b, node, 1, "lengths").ravel()]
    if not isinstance(size, int):
        raise CompileError(f"{node}: splits the batch; its gradient cannot. Split another dimension")
    count = len(node.outputs)
    length = -(-size // count)
    return [min(length, size - i * length) for i in range(count)]


def slice_(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY where it came from, zeros elsewhere; starts, ends, axes and steps must be constant."""
    x = node.inputs[0]
    shape, g = b.shape(x), dy[0]
    starts, ends = (constant_of(b, node, slot, "starts and ends").ravel().tolist() for slot in (1, 2))
    axes = [int(a) % len(shape) for a in constant_of(b, node, 3, "axes").ravel()] if operand(node, 3) else []
    axes = axes or list(range(len(starts)))
    steps = constant_of(b, node, 4, "steps").ravel().tolist() if operand(node, 4) else [1] * len(starts)
    before, after = [0] * len(shape), [0] * len(shape)
    rest: Shape = tuple(b.shape(node.outputs[0]))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            g = _unsliced_batch(b, node, g, axis, (start, end, step))
            continue
        picked = range(size)[start:end:step]
        first = picked.start
        if step < 0:
            g = b.op("Slice", g, b.ints(-1), b.ints(_BEGIN), b.ints(axis), b.ints(-1))
            first = picked[-1] if picked else 0
        width = abs(step)
        if width > 1:
            g = _spread(b, node, g, rest, axis, width)
            rest = (*rest[:axis], len(picked) * width, *rest[axis + 1 :])
        before[axis] = first
        after[axis] = size - first - len(picked) * width
    if any(before) or any(after):
        g = b.op("Pad", g, b.ints(*before, *after), mode="constant")
    return [g, *(None for _ in node.inputs[1:])]


def _spread(b: GraphBuilder, node: Node, g: str, shape: Shape, axis: int, step: int) -> str:
    """``step - 1`` zeros behind each element along ``axis``."""
    lifted = b.op("Unsqueeze", g, b.ints(axis + 1))
    pads = [0] * (2 * len(shape) + 2)
    pads[-len(shape) + axis] = step - 1
    padded = b.op("Pad", lifted, b.ints(*pads), mode="constant")
    return reshaped(b, padded, (*shape[:axis], int(shape[axis]) * step, *shape[axis + 1 :]), node)


def _unsliced_batch(b: GraphBuilder, node: Node, g: str, axis: int, bounds: tuple[int, int, int]) -> str:
    """Zeros for the examples that a slice along the batch left out."""
    start, end, step = bounds
    if step != 1:
        raise CompileError(f"{node}: takes one of {step} examples of the batch; its gradient cannot")
    if start == 0 and end == _END:
        return g
    size = b.op("Shape", node.inputs[0], start=axis, end=axis + 1)
    kept = b.op("Shape", node.outputs[0], start=axis, end=axis + 1)
    nothing = b.ints(0)
    first = b.ints(start) if start >= 0 else b.op("Max", b.op("Add", size, b.ints(start)), nothing)
    first = b.op("Min", first, size)
    rest = b.op("Sub", b.op("Sub", size, kept), first)
    return b.op("Pad", g, b.op("Concat", first, rest, axis=0), "", b.ints(axis), mode="constant")


def pad(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY without its margins; reflected, repeated or wrapped margins are added where they came from."""
    mode = node.attributes["mode"]
    shape = b.shape(node.inputs[0])
    pads = [int(p) for p in constant_of(b, node, 1, "pads").ravel()]
    axes = axes_of(b, node, len(shape), 3) if operand(node, 3) else list(range(len(shape)))
    if operand(node, 3):
        axes = [int(a) % len(shape) for a in constant_of(b, node, 3, "axes").ravel()]
    before, after = [0] * len(shape), [0] * len(shape)
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    if mode == "constant":
        gradient = b.op("Pad", dy[0], b.ints(*(-p for p in (*before, *after))), mode="constant")
        gradients: list[str | None] = [gradient, None]
        if len(wanted) > 2 and wanted[2]:
            gradients.append(b.like(b.op("Sub", total(b, dy[0]), total(b, gradient)), node.inputs[2]))
        return gradients
    g = dy[0]
    for axis in reversed(range(len(shape))):
        if before[axis] or after[axis]:
            g = _folded_margins(b, node, g, axis, (before[axis], after[axis]))
    return [g, *(None for _ in node.inputs[1:])]


def _folded_margins(b: GraphBuilder, node: Node, g: str, axis: int, margins: tuple[int, int]) -> str:
    """The margins along ``axis`` added to the elements that they repeat."""
    mode = node.attributes["mode"]
    size = b.shape(node.inputs[0])[axis]
    limit = int(size) - (mode == "reflect") if isinstance(size, int) else -1
    if min(margins) < 0 or (mode != "edge" and max(margins) > limit) or not isinstance(size, int):
        raise CompileError(f"{node}: pads {size} elements by {list(margins)} in mode {mode!r}; its gradient cannot")
    begin, end = margins
    cut = b.ints(axis)
    result = b.op("Slice", g, b.ints(begin), b.ints(begin + size), cut)
    for margin, first, at_end in ((begin, 0, False), (end, begin + size, True)):
        if not margin:
            continue
        part = b.op("Slice", g, b.ints(first), b.ints(first + margin), cut)
        if mode == "edge":
            part = b.op("ReduceSum", part, cut, keepdims=1)
            width, offset = 1, size - 1 if at_end else 0
        elif mode == "reflect":
            part = b.op("Slice", part, b.ints(-1), b.ints(_BEGIN), cut, b.ints(-1))
            width, offset = margin, size - 1 - margin if at_end else 1
        else:  # wrap
            width, offset = margin, 0 if at_end else size - margin
        placed = b.op("Pad", part, b.ints(offset, size - width - offset), "", cut, mode="constant")
        result = b.op("Add", result, placed)
    return result


def depth_to_space(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY, blocks put back into channels."""
    block = int(node.attributes["blocksize"])
    if node.attributes["mode"] == "DCR":
        return [b.op("SpaceToDepth", dy[0], blocksize=block)]
    batch, channels, height, width = b.shape(node.inputs[0])
    open_batch = batch if isinstance(batch, int) else BATCH
    kept = int(channels) // block**2
    split_up = reshaped(b, dy[0], (open_batch, kept, int(height), block, int(width), block), node)
    return [b.like(b.op("Transpose", split_up, perm=[0, 1, 3, 5, 2, 4]), node.inputs[0])]


def space_to_depth(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = dY, channels put back into blocks."""
    return [b.op("DepthToSpace", dy[0], blocksize=int(node.attributes["blocksize"]), mode="DCR")]


def cumsum(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = the sums of dY from the other end."""
    exclusive, reverse = node.attributes["exclusive"], node.attributes["reverse"]
    return [b.op("CumSum", dy[0], node.inputs[1], exclusive=exclusive, reverse=1 - reverse), None]


def trilu(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX = the same triangle of dY."""
    return [b.op("Trilu", dy[0], *node.inputs[1:], upper=node.attributes["upper"])]
