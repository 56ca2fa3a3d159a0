"""Convolutions of any rank, as matrix products over unfolded windows.

A whole batch unfolded would be the largest tensor of the training by far (the kernel's size times the input), so it
is unfolded in blocks of examples that fit into a processor's cache: faster, and the memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_sdk.engine.kernels.arrays import Array, bounded
from edge_sdk.engine.kernels.geometry import Geometry, geometry, pad_spatial
from edge_sdk.errors import TrainingError

__all__ = ["conv", "conv_transpose"]

COLUMNS_BYTES_MAX: Final = 1 << 21


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Array:
    """ONNX Conv: x [N, C, ...], w [M, C/group, ...], b [M] -> [N, M, ...]."""
    if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise TrainingError(f"Conv: input {x.shape}, weight {w.shape} and group {group} do not fit")
    windows = geometry(x.shape[2:], w.shape[2:], pads, strides, dilations, auto_pad=auto_pad)
    count, maps = x.shape[0], w.shape[0]
    places, depth = math.prod(windows.output), math.prod(w.shape[1:])
    weight = w.reshape(group, maps // group, depth)
    result = np.empty(bounded((count, group, maps // group, places)), dtype=x.dtype)
    padded = pad_spatial(x, windows, 0)
    block = max(1, COLUMNS_BYTES_MAX // max(1, group * depth * places * x.itemsize))
    for start in range(0, count, block):
        columns = _unfold(padded[start : start + block], windows, group)
        np.matmul(weight, columns, out=result[start : start + block])
    folded = result.reshape(count, maps, *windows.output)
    if b is not None:
        np.add(folded, b.reshape(-1, *(1,) * len(windows.output)), out=folded)
    return folded


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Array:
    """ONNX ConvTranspose: x [N, C, ...], w [C, M/group, ...], b [M] -> [N, M, ...]; the gradient of a Conv."""
    if x.shape[1] != w.shape[0] or w.shape[0] % group:
        raise TrainingError(f"ConvTranspose: input {x.shape}, weight {w.shape} and group {group} do not fit")
    rank = x.ndim - 2
    steps = tuple(strides) if strides else (1,) * rank
    gaps = tuple(dilations) if dilations else (1,) * rank
    extra = tuple(output_padding) if output_padding else (0,) * rank
    reach = [s * (d - 1) + (k - 1) * g + 1 for s, d, k, g in zip(steps, x.shape[2:], w.shape[2:], gaps, strict=True)]
    full = [r + e for r, e in zip(reach, extra, strict=True)]
    if output_shape:
        full = [max(f, wanted) for f, wanted in zip(full, output_shape[-rank:], strict=True)]
    before, after = _cuts(full, x.shape[2:], steps, pads, output_shape, auto_pad)
    # Every tap adds one slice of `full`; the geometry's "output" is here the input that is spread.
    windows = Geometry(w.shape[2:], steps, gaps, (0,) * rank, (0,) * rank, x.shape[2:])
    spread = _fold(x, w, windows, group, bounded((x.shape[0], w.shape[1] * group, *full)))
    if b is not None:
        np.add(spread, b.reshape(-1, *(1,) * rank), out=spread)
    return spread[(..., *(slice(c, f - a) for c, f, a in zip(before, full, after, strict=True)))]


def _unfold(padded: Array, windows: Geometry, group: int) -> Array:
    """Columns [n, group, C/group * taps, places]: below each place, what its window sees."""
    count, channels = padded.shape[:2]
    places = math.prod(windows.output)
    if math.prod(windows.kernel) == 1 and padded.shape[2:] == windows.output:
        return padded.reshape(count, group, channels // group, places)
    taps = math.prod(windows.kernel)
    columns = np.empty((count, channels, taps, *windows.output), dtype=padded.dtype)
    for tap, where in enumerate(windows.taps()):
        columns[:, :, tap] = padded[(..., *where)]
    return columns.reshape(count, group, channels // group * taps, places)


def _fold(x: Array, w: Array, windows: Geometry, group: int, shape: tuple[int, ...]) -> Array:
    """The sum, over the kernel's taps, of ``x`` times that tap, laid where the tap points."""
    count, channels = x.shape[:2]
    maps, taps = shape[1], math.prod(windows.kernel)
    weight = w.reshape(group, channels // group, maps // group * taps).transpose(0, 2, 1)
    source = x.reshape(count, group, channels // group, -1)
    result: Array = np.zeros(shape, dtype=x.dtype)
    block = max(1, COLUMNS_BYTES_MAX // max(1, maps * taps * source.shape[3] * x.itemsize))
    for start in range(0, count, block):
        columns = np.matmul(weight, source[start : start + block])
        columns = columns.reshape(columns.shape[0], maps, taps, *windows.output)
        part = result[start : start + block]
        for tap, where in enumerate(windows.taps()):
            part[(..., *where)] += columns[:, :, tap]
    return result


def _cuts(
    full: Sequence[int],
    spatial: Sequence[int],
    steps: Sequence[int],
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    auto_pad: str,
) -> tuple[Sequence[int], Sequence[int]]:
    """How much of the full result falls to the padding, before and after, per axis."""
    rank = len(full)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        margins = tuple(pads) if pads else (0,) * (2 * rank)
        return margins[:rank], margins[rank:]
    wanted = output_shape or [d * s for d, s in zip(spatial, steps, strict=True)]
    totals = [f - o for f, o in zip(full, wanted[-rank:], strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
