"""Arithmetic with constants and shapes, done once instead of in every step.

Exporters write a flatten as Shape, Gather, Concat, Reshape, and positions as a Range whose ends are cast from floats;
ONNX's own inference gives up somewhere on that way. Here such values are computed for real, for two batch sizes. What
comes out the same both times is a constant; in the shape of a Reshape, the one entry that follows the batch is written
as -1. Floats are replaced only where no parameter can be meant: scalars that come from constants alone, and what says
how an operator works (the scales of a Resize). A parameter that takes part in arithmetic stays one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from coordinator.compile.graph import OPSET
from coordinator.compile.shapes import PROBES, inferred

__all__ = ["fold_shape_arithmetic", "open_fixed_batch"]

ELEMENTS_MAX: Final = 1024
"""A tensor above this is no shape."""

INTEGERS: Final = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)

ARITHMETIC: Final = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "CastLike",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "CumSum",
        "Div",
        "Equal",
        "Exp",
        "Expand",
    }
    | {"Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod"}
    | {"Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"}
    | {"Reshape", "Round", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose"}
    | {"Unsqueeze", "Where"}
)
SETTINGS: Final = {"Dropout": (1,), "OneHot": (2,), "Range": (0, 1, 2), "Resize": (1, 2)}
"""Operator -> slots whose floats say how it works; they have no gradient."""


def open_fixed_batch(model: onnx.ModelProto) -> None:
    """Make a batch size that the exporter wrote into Reshape nodes follow the input instead, in place.

    Only where every input has the same fixed first dimension; ``[1, 64]`` becomes ``[0, 64]`` (0 copies a dimension).
    That the entry meant the batch is a guess, which verification against the source model confirms or refuses.
    """
    sizes = {info.type.tensor_type.shape.dim[0].dim_value for info in model.graph.input}
    fixed = sizes.pop() if len(sizes) == 1 else 0
    shapes = _constants(model)
    for node in model.graph.node:
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if fixed and shape is not None and shape.size > 1 and shape[0] == fixed and not np.any(shape == 0):
            _set_shape(model, node, np.array([0, *shape[1:]], dtype=np.int64))


def fold_shape_arithmetic(model: onnx.ModelProto, where: str) -> tuple[dict[str, NDArray[Any]], ...]:
    """Replace values that constants and shapes determine by constants, in place.

    Args:
        model: At the working opset, batch first in every input.
        where: What is compiled, for messages.

    Returns:
        The computed values that stay, by name, for each of the ``PROBES``; ONNX's own inference cannot follow all of
        them.

    Raises:
        BatchError: Two shapes contradict each other.
    """
    (first, first_shapes), (second, second_shapes) = (_computed(model, batch, where) for batch in PROBES)
    replaceable = _replaceable(model, first)
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        names = [name for name in node.output if name]
        same = all(n in first and n in second and np.array_equal(first[n], second[n]) for n in names)
        if names and same and replaceable.issuperset(names):
            model.graph.initializer.extend(numpy_helper.from_array(first[n], n) for n in names)
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in first and node.output[0] in first_shapes:
            shape = _with_open_entry(first_shapes[node.output[0]], second_shapes.get(node.output[0], ()))
            if shape is not None:
                _set_shape(model, node, shape)
    left = {name for node in kept for name in node.output}
    return tuple({name: array for name, array in known.items() if name in left} for known in (first, second))


def _with_open_entry(first: tuple[int, ...], second: tuple[int, ...]) -> NDArray[np.int64] | None:
    differing = [axis for axis, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if len(first) != len(second) or len(differing) != 1:
        return None
    return np.array([-1 if axis in differing else d for axis, d in enumerate(first)], dtype=np.int64)


def _set_shape(model: onnx.ModelProto, node: onnx.NodeProto, shape: NDArray[np.int64]) -> None:
    name = f"{node.output[0]}/shape"
    model.graph.initializer.append(numpy_helper.from_array(shape, name))
    node.input[1] = name
    for attribute in [a for a in node.attribute if a.name == "allowzero"]:
        node.attribute.remove(attribute)


def _replaceable(model: onnx.ModelProto, computed: Mapping[str, NDArray[Any]]) -> set[str]:
    """Of the computed values, the integers, the scalars that no parameter takes part in, and settings of operators."""
    held = {t.name for t in model.graph.initializer if len(t.dims) and t.data_type not in INTEGERS}
    chosen: set[str] = set()
    for node in model.graph.node:
        if held.intersection(node.input) and node.op_type not in ("Shape", "Size"):
            held.update(node.output)
        chosen.update(name for slot, name in enumerate(node.input) if slot in SETTINGS.get(node.op_type, ()))
    return {n for n, a in computed.items() if a.dtype.kind != "f" or n in chosen or (not a.ndim and n not in held)}


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Initializers and Constant nodes that are small enough to be shapes or settings."""
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if _is_small(t)}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            value = helper.get_attribute_value(attribute)
            if attribute.name in ("value_int", "value_ints"):
                values[node.output[0]] = np.array(value, dtype=np.int64)
            elif attribute.name in ("value_float", "value_floats"):
                values[node.output[0]] = np.array(value, dtype=np.float32)
            elif attribute.name == "value" and _is_small(value):
                values[node.output[0]] = numpy_helper.to_array(value)
    return values


def _is_small(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (*INTEGERS, *FLOATS) and int(np.prod(tensor.dims)) <= ELEMENTS_MAX


def _computed(
    model: onnx.ModelProto, batch: int, where: str
) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[int, ...]]]:
    """For one batch size, every small value that is computed from shapes and constants, and every shape."""
    constants = _constants(model)
    computed: dict[str, NDArray[Any]] = {}
    while True:
        before = len(computed)
        shapes = inferred(model, batch, where, computed)
        for node in model.graph.node:
            if not any(name in computed for name in node.output):
                computed.update(_evaluated(node, {**constants, **computed}, shapes))
        if len(computed) == before:
            return computed, shapes


def _evaluated(
    node: onnx.NodeProto, known: dict[str, NDArray[Any]], shapes: dict[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """The node's outputs, if it is arithmetic and everything in it is known."""
    if node.op_type in ("Shape", "Size"):
        if node.input[0] not in shapes:
            return {}
        shape = np.array(shapes[node.input[0]], dtype=np.int64)
        if node.op_type == "Size":
            return {node.output[0]: np.asarray(np.prod(shape))}
        bounds = {a.name: a.i for a in node.attribute}
        return {node.output[0]: shape[bounds.get("start", 0) : bounds.get("end", len(shape))]}
    if node.op_type not in ARITHMETIC or not all(name in known for name in node.input if name):
        return {}
    if any(name in shapes and np.prod(shapes[name]) > ELEMENTS_MAX for name in node.output):
        return {}
    evaluator: Any = ReferenceEvaluator(node, opsets={"": OPSET})
    with np.errstate(all="ignore"):
        values = evaluator.run(None, {name: known[name] for name in node.input if name})
    found = {name: np.asarray(value) for name, value in zip(node.output, values, strict=True) if name}
    return found if all(v.size <= ELEMENTS_MAX and v.dtype.kind in "iubf" for v in found.values()) else {}
