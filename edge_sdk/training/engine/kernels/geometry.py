"""Where the windows of a convolution or a pooling lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.kernels.arrays import Array, bounded

__all__ = ["Geometry", "geometry", "pad_spatial"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes per spatial axis: of the kernel, its steps, the padding before and after, and the output."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def has_padding(self) -> bool:
        """Whether any element of a window may lie outside of the input."""
        return any(self.before) or any(self.after)

    def taps(self) -> Iterator[tuple[slice, ...]]:
        """For each kernel position in C order, the slice of the padded input that it meets."""
        axes = [
            [slice(k * d, k * d + s * (o - 1) + 1, s) for k in range(size)]
            for size, s, d, o in zip(self.kernel, self.strides, self.dilations, self.output, strict=True)
        ]
        return product(*axes)


def geometry(
    spatial: Sequence[int],
    kernel: Sequence[int],
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Geometry:
    """The windows over an input of size ``spatial``, as ONNX's Conv and pooling operators define them.

    Raises:
        TrainingError: The attributes disagree with each other or with the input.
    """
    rank = len(spatial)
    steps = tuple(strides) if strides else (1,) * rank
    gaps = tuple(dilations) if dilations else (1,) * rank
    margins = tuple(pads) if pads else (0,) * (2 * rank)
    if not len(kernel) == len(steps) == len(gaps) == rank or len(margins) != 2 * rank:
        raise TrainingError(f"kernel {tuple(kernel)}, strides {steps}, pads {margins} over {rank} axes")
    if min((*kernel, *steps, *gaps)) < 1 or min(margins) < 0:
        raise TrainingError(f"kernel {tuple(kernel)}, strides {steps}, dilations {gaps} or pads {margins} out of range")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
    before, after = margins[:rank], margins[rank:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        before, after = _same(spatial, spans, steps, upper=auto_pad == "SAME_UPPER")
    elif auto_pad == "VALID":
        before = after = (0,) * rank
    output = []
    for i in range(rank):
        room = spatial[i] + before[i] + after[i] - spans[i]
        count = (-(-room // steps[i]) if ceil_mode else room // steps[i]) + 1
        if ceil_mode and (count - 1) * steps[i] >= spatial[i] + before[i]:
            count -= 1  # a window may not start in the padding behind the input
        output.append(count)
    if min(output) < 1:
        raise TrainingError(f"windows {tuple(kernel)} do not fit into an input of size {tuple(spatial)}")
    reach = [(o - 1) * s + span for o, s, span in zip(output, steps, spans, strict=True)]
    # ceil_mode may look past the padding that was asked for.
    after = tuple(max(a, r - d - b) for a, r, d, b in zip(after, reach, spatial, before, strict=True))
    return Geometry(tuple(kernel), steps, gaps, tuple(before), after, tuple(output))


def pad_spatial(x: Array, windows: Geometry, value: float | int) -> Array:
    """``x`` [N, C, ...] with ``value`` around it, or ``x`` itself where nothing is to be added."""
    if not windows.has_padding:
        return x
    inner = x.shape[2:]
    sizes = [b + d + a for b, d, a in zip(windows.before, inner, windows.after, strict=True)]
    padded: Array = np.full(bounded((*x.shape[:2], *sizes)), value, dtype=x.dtype)
    padded[(..., *(slice(b, b + d) for b, d in zip(windows.before, inner, strict=True)))] = x
    return padded


def _same(
    spatial: Sequence[int], spans: Sequence[int], steps: Sequence[int], *, upper: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    totals = [max((-(-d // s) - 1) * s + k - d, 0) for d, s, k in zip(spatial, steps, spans, strict=True)]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if upper else (large, small)
