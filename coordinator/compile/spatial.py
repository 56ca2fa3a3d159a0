"""Kernel sizes, strides and pads of Conv and pooling nodes, written out.

ONNX lets a node leave most of them away or ask for ``auto_pad``; gradient rules and NumPy kernels then would each
have to repeat the same arithmetic. It is done here, once, when the model is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordinator.compile.graph import Node, Value
from edge_sdk.errors import CompileError

__all__ = ["Window", "explicit_window", "window_of"]

WINDOWED: Final = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel slides over the spatial axes; one entry for each axis.

    ``pads_begin`` and ``pads_end`` are in elements of the input.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements from the first to the last tap of the kernel, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(node: Node) -> Window:
    """The window of a node that :func:`explicit_window` has completed."""
    a = node.attributes
    axes = len(a["kernel_shape"])
    return Window(
        tuple(a["kernel_shape"]),
        tuple(a["strides"]),
        tuple(a["dilations"]),
        tuple(a["pads"][:axes]),
        tuple(a["pads"][axes:]),
    )


def explicit_window(node: Node, values: Mapping[str, Value]) -> Node:
    """``node`` with kernel_shape, strides, dilations and pads written out; other nodes as they are.

    Raises:
        CompileError: ``auto_pad`` needs a size that inference did not find.
    """
    if node.op not in WINDOWED:
        return node
    attributes = dict(node.attributes)
    kernel = attributes.get("kernel_shape") or list(_shape(node, node.inputs[1], values)[2:])
    axes = len(kernel)
    attributes.update(
        kernel_shape=list(kernel),
        strides=list(attributes.get("strides") or [1] * axes),
        dilations=list(attributes.get("dilations") or [1] * axes),
    )
    mode = attributes.get("auto_pad", "NOTSET")
    if node.op == "ConvTranspose":
        _write_out_transposed(node, attributes, mode, values)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        attributes["pads"] = _same_pads(attributes, _shape(node, node.inputs[0], values)[2:], mode)
    elif mode == "VALID" or not attributes.get("pads"):
        attributes["pads"] = [0] * (2 * axes)
    attributes["auto_pad"] = "NOTSET"
    return Node(node.op, node.inputs, node.outputs, attributes, node.name)


def _shape(node: Node, name: str, values: Mapping[str, Value]) -> tuple[int, ...]:
    shape = values[name].shape if name in values else ()
    if len(shape) < 3 or not all(isinstance(d, int) for d in shape[1:]):
        raise CompileError(f"{node}: the shape of {name!r} is not known; export the model with fixed sizes")
    return shape  # type: ignore[return-value]  # ints from the second entry on, and only these are used


def _write_out_transposed(node: Node, attributes: dict[str, Any], mode: str, values: Mapping[str, Value]) -> None:
    """Pads and output_padding of a ConvTranspose, also where ``output_shape`` or SAME says what is to come out."""
    kernel, strides = attributes["kernel_shape"], attributes["strides"]
    extra = attributes["output_padding"] = list(attributes.get("output_padding") or [0] * len(kernel))
    wanted = attributes.pop("output_shape", None)
    if wanted is None and mode in ("NOTSET", "VALID"):
        attributes["pads"] = list(attributes.get("pads") or [0] * (2 * len(kernel)))
        return
    sizes = _shape(node, node.inputs[0], values)[2:]
    wanted = list(wanted or [d * s for d, s in zip(sizes, strides, strict=True)])[-len(kernel) :]
    begins, ends = [], []
    for axis, (size, k, stride, dilation) in enumerate(
        zip(sizes, kernel, strides, attributes["dilations"], strict=True)
    ):
        total = stride * (size - 1) + extra[axis] + (k - 1) * dilation + 1 - wanted[axis]
        if total < 0:  # the output reaches beyond what the windows meet
            extra[axis], total = extra[axis] - total, 0
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    attributes["pads"] = [*begins, *ends]


def _same_pads(attributes: Mapping[str, Any], sizes: Sequence[int], mode: str) -> list[int]:
    window = zip(sizes, attributes["kernel_shape"], attributes["strides"], attributes["dilations"], strict=True)
    begins, ends = [], []
    for size, kernel, stride, dilation in window:
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return [*begins, *ends]
