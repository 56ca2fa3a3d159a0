"""Convolutions of any rank, as matrix products over unfolded windows.

A whole batch unfolded would be the largest tensor of the training by far (the kernel's size times the input), so it
is unfolded in blocks of examples that fit into a processor's cache: faster, and the memory stays bounded.

Unfolding is copying, and copying is fast in long runs. With the channels first, a run is a row of the output; with the
channels last, it is the kernel's width times the channels. The longer one wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded
from edge_sdk.training.engine.kernels.geometry import Geometry, geometry, pad_spatial

__all__ = ["conv", "conv_transpose"]

COLUMNS_BYTES_MAX: Final = 1 << 21
BLOCKS_AT_ONCE: Final = 4
"""Depthwise: input, product and sums of a block, and room, are to fit into the cache together."""


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
    padded = pad_spatial(x, windows, 0)
    if group == w.shape[0] and w.shape[1] == 1 and group > 1:
        folded = _conv_depthwise(padded, w, windows)
    elif group == 1 and w.shape[1] * w.shape[-1] > windows.output[-1]:
        folded = _conv_channels_last(padded, w, windows)
    else:
        folded = _conv_channels_first(padded, w, windows, group)
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
    margins = [(k - 1) * g - c for cut in (before, after) for k, g, c in zip(w.shape[2:], gaps, cut, strict=True)]
    if max(steps) == 1 == group and full == reach and min(margins) >= 0:
        # Without strides it is the convolution with the kernel turned round, and BLAS does the sums.
        turned = np.flip(np.swapaxes(w, 0, 1), tuple(range(2, w.ndim)))
        return conv(x, turned, b, pads=margins, dilations=gaps)
    # Every tap adds one slice of the full result; the windows' "output" is here the input that is spread.
    windows = Geometry(w.shape[2:], steps, gaps, (0,) * rank, (0,) * rank, x.shape[2:])
    depthwise = group == w.shape[0] and w.shape[1] == 1 and group > 1
    spread = (_spread_depthwise if depthwise else _spread)(
        x, w, windows, group, bounded((x.shape[0], w.shape[1] * group, *full))
    )
    if b is not None:
        np.add(spread, b.reshape(-1, *(1,) * rank), out=spread)
    return spread[(..., *(slice(c, f - a) for c, f, a in zip(before, full, after, strict=True)))]


def _blocks(count: int, columns_bytes: int) -> Iterator[slice]:
    """Slices of ``count`` examples whose columns, of ``columns_bytes`` each, stay within the limit."""
    block = max(1, COLUMNS_BYTES_MAX // max(1, columns_bytes))
    return (slice(start, start + block) for start in range(0, count, block))


def _conv_channels_first(padded: Array, w: Array, windows: Geometry, group: int) -> Array:
    count, maps = padded.shape[0], w.shape[0]
    places, depth = math.prod(windows.output), math.prod(w.shape[1:])
    weight = w.reshape(group, maps // group, depth)
    result = np.empty(bounded((count, group, maps // group, places)), dtype=padded.dtype)
    for part in _blocks(count, group * depth * places * padded.itemsize):
        np.matmul(weight, _columns(padded[part], windows, group), out=result[part])
    return result.reshape(count, maps, *windows.output)


def _conv_depthwise(padded: Array, w: Array, windows: Geometry) -> Array:
    """One map a channel: a matrix product would have one row, so each tap is a product of elements.

    The channels go last: then a run of memory is a row of places times the channels.
    """
    count, channels = padded.shape[:2]
    result = np.empty(bounded((count, channels, *windows.output)), dtype=padded.dtype)
    rows = _rows(w, windows.output[-1])
    for part in _blocks(count, math.prod(result.shape[1:]) * padded.itemsize * BLOCKS_AT_ONCE):
        block = np.ascontiguousarray(np.moveaxis(padded[part], 1, -1))
        sums = np.zeros((block.shape[0], *windows.output, channels), dtype=padded.dtype)
        product = np.empty_like(sums)
        for tap, where in enumerate(windows.taps()):
            np.multiply(block[(slice(None), *where)], rows[tap], out=product)
            np.add(sums, product, out=sums)
        result[part] = np.moveaxis(sums, -1, 1)
    return result


def _rows(w: Array, places: int) -> Array:
    """Depthwise weights [taps, places, C]: each tap's repeated along a row, so that NumPy sees one long run."""
    taps = w.reshape(w.shape[0], 1, -1).T
    return np.ascontiguousarray(np.broadcast_to(taps, (taps.shape[0], places, taps.shape[2])))


def _columns(padded: Array, windows: Geometry, group: int) -> Array:
    """Columns [n, group, C/group * taps, places]: below each place, what its window sees."""
    count, channels = padded.shape[:2]
    places, taps = math.prod(windows.output), math.prod(windows.kernel)
    if taps == 1 and padded.shape[2:] == windows.output:
        return padded.reshape(count, group, channels // group, places)
    columns = np.empty((count, channels, taps, *windows.output), dtype=padded.dtype)
    for tap, where in enumerate(windows.taps()):
        columns[:, :, tap] = padded[(..., *where)]
    return columns.reshape(count, group, channels // group * taps, places)


def _conv_channels_last(padded: Array, w: Array, windows: Geometry) -> Array:
    count, maps = padded.shape[0], w.shape[0]
    places, depth = math.prod(windows.output), math.prod(w.shape[1:])
    weight = np.moveaxis(w, 1, -1).reshape(maps, depth).T
    source = np.ascontiguousarray(np.moveaxis(padded, 1, -1))
    result = np.empty(bounded((count, places, maps)), dtype=padded.dtype)
    for part in _blocks(count, depth * places * padded.itemsize):
        rows = np.ascontiguousarray(_windows_last(source[part], windows))
        np.matmul(rows.reshape(-1, depth), weight, out=result[part].reshape(-1, maps))
    return np.ascontiguousarray(np.moveaxis(result.reshape(count, *windows.output, maps), -1, 1))


def _windows_last(source: Array, windows: Geometry) -> Array:
    """A view [n, *output, *kernel, C] of ``source`` [n, *input, C]: what each window sees."""
    count, channels = source.shape[0], source.shape[-1]
    steps = source.strides[1:-1]
    return np.lib.stride_tricks.as_strided(
        source,
        (count, *windows.output, *windows.kernel, channels),
        (
            source.strides[0],
            *(step * s for step, s in zip(steps, windows.strides, strict=True)),
            *(step * d for step, d in zip(steps, windows.dilations, strict=True)),
            source.strides[-1],
        ),
        writeable=False,
    )


def _spread(x: Array, w: Array, windows: Geometry, group: int, shape: tuple[int, ...]) -> Array:
    """The sum, over the kernel's taps, of ``x`` times that tap, laid where the tap points."""
    count, channels = x.shape[:2]
    maps, taps = shape[1], math.prod(windows.kernel)
    weight = w.reshape(group, channels // group, maps // group * taps).transpose(0, 2, 1)
    source = x.reshape(count, group, channels // group, -1)
    result: Array = np.zeros(shape, dtype=x.dtype)
    for part in _blocks(count, maps * taps * source.shape[3] * x.itemsize):
        columns = np.matmul(weight, source[part])
        columns = columns.reshape(columns.shape[0], maps, taps, *windows.output)
        for tap, where in enumerate(windows.taps()):
            result[(part, slice(None), *where)] += columns[:, :, tap]
    return result


def _spread_depthwise(x: Array, w: Array, windows: Geometry, group: int, shape: tuple[int, ...]) -> Array:
    """:func:`_spread` where each channel has its own output, with the channels last."""
    result: Array = np.empty(shape, dtype=x.dtype)
    rows = _rows(w, windows.output[-1])
    for part in _blocks(shape[0], math.prod(shape[1:]) * x.itemsize * BLOCKS_AT_ONCE):
        block = np.ascontiguousarray(np.moveaxis(x[part], 1, -1))
        sums = np.zeros((block.shape[0], *shape[2:], shape[1]), dtype=x.dtype)
        product = np.empty_like(block)
        for tap, where in enumerate(windows.taps()):
            np.multiply(block, rows[tap], out=product)
            view = sums[(slice(None), *where)]
            np.add(view, product, out=view)
        result[part] = np.moveaxis(sums, -1, 1)
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
