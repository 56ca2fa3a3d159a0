"""Gradients of normalisations, written in primitive operators.

All of them are ``y = scale (v - mean) r + bias`` with ``r = 1 / sqrt(variance + epsilon)``; what differs is over which
elements mean and variance are taken. With ``xhat = (v - mean) r`` and ``g = scale dy``, means over the same elements:

    dv = r (g - mean(g) - xhat mean(g xhat))

(Ioffe and Szegedy, Batch Normalization, ICML 2015, section 3; Ba et al., Layer Normalization, 2016, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.compile.graph import GraphBuilder, Node, Shape, batch_factor
from coordinator.compile.rules.rule import Gradient, Gradients, Wanted
from edge_sdk.errors import CompileError

__all__ = [
    "Rows",
    "batch_normalization",
    "batch_normalization_training",
    "group_normalization",
    "group_normalization_training",
    "instance_normalization",
    "instance_normalization_training",
    "layer_normalization",
    "layer_normalization_training",
]


def batch_normalization_training(b: GraphBuilder, node: Node) -> None:
    """The node with the buffers of the batch, and the running buffers moved towards them.

    A model in inference form (``training_mode=0``, as every exporter writes it by default) is trained like this as
    well: the source framework would do the same in its training mode. Whoever wants the running buffers to stay what
    they are freezes the running mean and variance by name: then the train graph normalises with them too. A node that
    no trained parameter comes before, and that has none itself, is left alone.

    ``running' = momentum running + (1 - momentum) batch``, where the batch's variance is that of the population for
    normalising, and n / (n - 1) times as large for the running one, as in PyTorch (ONNX's own training form keeps the
    population's). Of a single value the variance stays 0.
    """
    if not _is_training(b, node):
        b.append(node)
        return
    x, scale, bias, *running = node.inputs
    epsilon, momentum = node.attributes["epsilon"], node.attributes["momentum"]
    # Without momentum, what the stock operator calls the new running buffers are those of the batch. onnxruntime
    # writes them over the old ones, whoever else reads these: so it gets a tensor of its own, also where a layer is
    # used twice (equal nodes would be made one).
    scratch = [b.op("Mul", b.buffers.get(name, name), b.scalar(0.0)) for name in running]
    mean, variance = (b.fresh(f"{node.outputs[0]}~{what}") for what in ("mean", "variance"))
    attributes = {"epsilon": epsilon, "momentum": 0.0, "training_mode": 1}
    outputs = (node.outputs[0], mean, variance)
    b.append(Node("BatchNormalization", (x, scale, bias, *scratch), outputs, attributes, node.name))
    count = _count(b, x)
    unbiased = b.op("Div", count, b.op("Max", b.op("Sub", count, b.scalar(1.0)), b.scalar(1.0)))
    for name, batch in zip(running, (mean, b.op("Mul", variance, unbiased)), strict=True):
        kept = b.op("Mul", b.buffers.get(name, name), b.scalar(momentum))
        b.buffers[name] = b.op("Add", kept, b.op("Mul", batch, b.scalar(1 - momentum)))
    b.save(node, mean=mean, r=_reciprocal_root(b, variance, epsilon))


def batch_normalization(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dScale, dB; the buffers are constants where they are frozen, and depend on X where they are a batch's."""
    if any(wanted[3:]):
        raise CompileError(f"{node}: its mean and variance depend on parameters; only initializers can be trained with")
    if not _is_training(b, node):
        return _frozen_batch_normalization(b, node, dy[0], wanted)
    x, scale = node.inputs[:2]
    axes, channels = _batch_axes(b, x)
    mean, r = b.saved(node, "mean"), b.saved(node, "r")
    zeros, ones = (b.constant(np.full(channels, v, np.float32)) for v in (0, 1))
    # Centred before anything is summed: no digits are lost to a large mean.
    centred = _affine_over_channels(b, x, ones, zeros, mean, ones)
    sums = b.op("ReduceSum", dy[0], axes, keepdims=0)
    products = b.op("Mul", b.op("ReduceSum", b.op("Mul", dy[0], centred), axes, keepdims=0), r)
    gradients: list[Gradient | None] = [None, products if wanted[1] else None, sums if wanted[2] else None]
    if wanted[0]:
        count = _count(b, x)
        slope = b.op("Mul", scale, r)
        share = b.op("Neg", b.op("Div", slope, count))
        # slope (dy - mean(dy) - xhat mean(dy xhat)): all but the first term is one affine pass over `centred`.
        factor, offset = b.op("Mul", b.op("Mul", share, products), r), b.op("Mul", share, sums)
        rest = _affine_over_channels(b, centred, factor, offset, zeros, ones)
        gradients[0] = b.op("Add", b.op("Mul", dy[0], _over_channels(b, slope, x)), rest)
    return gradients


def _affine_over_channels(b: GraphBuilder, x: str, factor: str, offset: str, mean: str, ones: str) -> str:
    """``factor (x - mean) + offset`` in one pass over ``x`` [N, C, ...], where three operators would make three."""
    return b.op("BatchNormalization", x, factor, offset, mean, ones, epsilon=0.0, momentum=0.9, training_mode=0)


def _frozen_batch_normalization(b: GraphBuilder, node: Node, g: str, wanted: Wanted) -> Gradients:
    x, scale, _, mean, variance = node.inputs
    axes, _ = _batch_axes(b, x)
    r = _reciprocal_root(b, variance, node.attributes["epsilon"])
    gradients: list[Gradient | None] = [None, None, None]
    if wanted[0]:
        gradients[0] = b.op("Mul", g, _over_channels(b, b.op("Mul", scale, r), x))
    if wanted[1]:
        centred = b.op("Sub", x, _over_channels(b, mean, x))
        gradients[1] = b.op("Mul", b.op("ReduceSum", b.op("Mul", g, centred), axes, keepdims=0), r)
    if wanted[2]:
        gradients[2] = b.op("ReduceSum", g, axes, keepdims=0)
    return gradients


def _is_training(b: GraphBuilder, node: Node) -> bool:
    return all(name in b.model.buffers for name in node.inputs[3:5])


def layer_normalization_training(b: GraphBuilder, node: Node) -> None:
    """The stock operator with its second and third output, mean and 1 / sqrt(variance + epsilon)."""
    given = (*node.outputs, "", "")[:3]
    outputs = tuple(name or f"{node.outputs[0]}~{what}" for name, what in zip(given, ("", "mean", "r"), strict=True))
    b.append(Node(node.op, node.inputs, outputs, node.attributes, node.name))
    b.save(node, mean=outputs[1], r=outputs[2])


def layer_normalization(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dScale, dB, buffers over the axes from ``axis`` on."""
    if any(dy[1:]):
        raise CompileError(f"{node}: its outputs Mean and InvStdDev are used, which has no gradient rule; use Y alone")
    x, scale = node.inputs[:2]
    shape = b.shape(x)
    axis = node.attributes["axis"] % len(shape)
    width = math.prod(int(d) for d in shape[axis:])
    flat, vector = b.ints(1, -1, width), b.ints(-1)
    g, values = (b.op("Reshape", value, flat, allowzero=0) for value in (dy[0], x))
    mean, r = (b.op("Reshape", b.saved(node, key), vector, allowzero=0) for key in ("mean", "r"))
    rows = Rows.of(b, shape[:axis], mean)
    xhat = rows.affine(values, factor=r, mean=mean)
    products = b.op("Mul", g, xhat) if wanted[0] or wanted[1] else ""
    gradients: list[Gradient | None] = [None, None, None]
    if wanted[0]:
        # The mean of `g scale` and of its product with xhat are products with the vector `scale / width`.
        dims = b.ints(*(int(d) for d in shape[axis:]))
        wide = scale if b.shape(scale) == shape[axis:] else b.op("Expand", scale, dims)
        column = b.op("Reshape", b.op("Mul", wide, b.scalar(-1 / width)), b.ints(-1, 1), allowzero=0)
        means = (b.op("Reshape", b.op("MatMul", v, column), vector, allowzero=0) for v in (g, products))
        rest = rows.affine(xhat, offset=next(means), factor=next(means))
        flat_scale = wide if axis == len(shape) - 1 else b.op("Reshape", wide, vector, allowzero=0)
        gradients[0] = b.like(rows.affine(b.op("Add", b.op("Mul", g, flat_scale), rest), factor=r), x)
    for slot, v in ((1, products), (2, g)):
        if slot < len(node.inputs) and wanted[slot]:
            total = b.op("ReduceSum", v, b.ints(0, 1), keepdims=0)
            if axis < len(shape) - 1:
                total = b.op("Reshape", total, b.ints(*(int(d) for d in shape[axis:])), allowzero=0)
            gradients[slot] = b.sum_to(total, shape[axis:], b.shape(node.inputs[slot]))
    return gradients


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a tensor [1, rows, n], as the channels of the operator that has one pass for ``a (x - m) + o``.

    Broadcasting a column over short rows took up to three times as long, for each of the three steps.
    """

    b: GraphBuilder
    zeros: str
    ones: str

    @classmethod
    def of(cls, b: GraphBuilder, dims: Shape, vector: str) -> Rows:
        """Rows as many as the product of ``dims`` and as the elements of ``vector``."""
        factor = batch_factor(dims)
        if not factor:
            zeros = b.op("Mul", vector, b.scalar(0.0))
            return cls(b, zeros, b.op("Add", zeros, b.scalar(1.0)))
        count = b.op("Mul", b.op("Shape", b.model.inputs[0].name, start=0, end=1), b.ints(factor))
        return cls(b, b.op("Expand", b.scalar(0.0), count), b.op("Expand", b.scalar(1.0), count))

    def affine(self, x: str, *, factor: str = "", mean: str = "", offset: str = "") -> str:
        """``factor (x - mean) + offset``, each a vector [rows]."""
        operands = (x, factor or self.ones, offset or self.zeros, mean or self.zeros, self.ones)
        return self.b.op("BatchNormalization", *operands, epsilon=0.0, momentum=0.9, training_mode=0)


def instance_normalization_training(b: GraphBuilder, node: Node) -> None:
    """Statistics of each example and channel."""
    x = node.inputs[0]
    xhat = _normalised(b, node, x, b.ints(*range(2, len(b.shape(x)))))
    _affine(b, node, xhat)


def instance_normalization(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dScale, dB."""
    x = node.inputs[0]
    xhat, r = b.saved(node, "xhat"), b.saved(node, "r")
    axes = b.ints(*range(2, len(b.shape(x))))
    g = b.op("Mul", dy[0], _over_channels(b, node.inputs[1], x)) if wanted[0] else ""
    return [
        _through_statistics(b, g, xhat, r, axes) if wanted[0] else None,
        *_affine_gradients(b, x, xhat, dy[0], wanted),
    ]


def group_normalization_training(b: GraphBuilder, node: Node) -> None:
    """Statistics of each example and group of channels (Wu and He, Group Normalization, ECCV 2018)."""
    x, groups = node.inputs[0], node.attributes["num_groups"]
    grouped = b.op("Reshape", x, b.ints(0, groups, -1), allowzero=0)
    _affine(b, node, b.like(_normalised(b, node, grouped, b.ints(2)), x))


def group_normalization(b: GraphBuilder, node: Node, dy: Sequence[str], wanted: Wanted) -> Gradients:
    """dX, dScale, dB."""
    x, groups = node.inputs[0], node.attributes["num_groups"]
    xhat, r = b.saved(node, "xhat"), b.saved(node, "r")
    gradients = _affine_gradients(b, x, b.like(xhat, x), dy[0], wanted)
    if not wanted[0]:
        return [None, *gradients]
    g = b.op("Mul", dy[0], _over_channels(b, node.inputs[1], x))
    dv = _through_statistics(b, b.op("Reshape", g, b.ints(0, groups, -1), allowzero=0), xhat, r, b.ints(2))
    return [b.like(dv, x), *gradients]


def _normalised(b: GraphBuilder, node: Node, v: str, axes: str) -> str:
    centred = b.op("Sub", v, b.op("ReduceMean", v, axes, keepdims=1))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes, keepdims=1)
    r = _reciprocal_root(b, variance, node.attributes["epsilon"])
    xhat = b.op("Mul", centred, r)
    b.save(node, xhat=xhat, r=r)
    return xhat


def _affine(b: GraphBuilder, node: Node, xhat: str) -> None:
    x, scale, bias = node.inputs
    scaled = b.op("Mul", xhat, _over_channels(b, scale, x))
    b.append(Node("Add", (scaled, _over_channels(b, bias, x)), node.outputs[:1], {}, node.name))


def _affine_gradients(b: GraphBuilder, x: str, xhat: str, g: str, wanted: Wanted) -> list[Gradient | None]:
    axes, _ = _batch_axes(b, x)
    return [
        b.op("ReduceSum", b.op("Mul", g, xhat), axes, keepdims=0) if wanted[1] else None,
        b.op("ReduceSum", g, axes, keepdims=0) if wanted[2] else None,
    ]


def _through_statistics(b: GraphBuilder, g: str, xhat: str, r: str, axes: str) -> str:
    """The module's equation for dv."""
    projection = b.op("Mul", xhat, b.op("ReduceMean", b.op("Mul", g, xhat), axes, keepdims=1))
    rest = b.op("Add", projection, b.op("ReduceMean", g, axes, keepdims=1))
    return b.op("Mul", b.op("Sub", g, rest), r)


def _reciprocal_root(b: GraphBuilder, variance: str, epsilon: float) -> str:
    return b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(epsilon))))


def _batch_axes(b: GraphBuilder, x: str) -> tuple[str, int]:
    """All axes but that of the channels, and the number of channels."""
    shape = b.shape(x)
    return b.ints(0, *range(2, len(shape))), int(shape[1])


def _count(b: GraphBuilder, x: str) -> str:
    """How many values each channel of ``x`` [N, C, ...] has."""
    return b.op("Div", b.op("Cast", b.op("Size", x), to=1), b.scalar(int(b.shape(x)[1])))


def _over_channels(b: GraphBuilder, per_channel: str, x: str) -> str:
    """[C] in the shape that broadcasts over ``x`` [N, C, ...]."""
    return b.op("Reshape", per_channel, b.ints(1, -1, *(1 for _ in b.shape(x)[2:])), allowzero=0)
