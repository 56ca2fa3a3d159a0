"""Layouts in which published data come, as the plain one: arrays by name, and marks (``marks.py``).

x_train, y_train, x_test, y_test     a published split, of any names that come with both endings; ``is_test`` tells
                                     the parts
signals, window_start, window_len    windows cut from recordings signals[rows, channels], as x[windows, channels,
[, scale] [, subject]                samples]; scale[channels] is the unit of a whole number in the file, and
                                     subject the ``group``
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError

__all__ = ["plain_arrays"]

WINDOW_KEYS: Final = ("signals", "window_start", "window_len")
PARTS: Final = ("_train", "_test")

Arrays = dict[str, NDArray[Any]]


def plain_arrays(arrays: Arrays) -> Arrays:
    """The arrays in the plain layout; those that are in it already are given back as they are.

    Raises:
        ExamplesError: They are in one of the other layouts, and do not fit each other.
    """
    if all(name in arrays for name in WINDOW_KEYS):
        return _cut(arrays)
    split = [name.removesuffix("_train") for name in arrays if name.endswith("_train")]
    split = [name for name in split if name and f"{name}_test" in arrays]
    return _joined(arrays, split) if split else arrays


def _joined(arrays: Arrays, names: list[str]) -> Arrays:
    whole: Arrays = {}
    counts = {}
    for name in names:
        train, test = (arrays[name + part] for part in PARTS)
        if not train.ndim or train.shape[1:] != test.shape[1:] or train.dtype.kind != test.dtype.kind:
            shape = f"{train.dtype}{['n', *train.shape[1:]]}".replace("'n'", "n")
            raise _misfit(f"{name}_test", test, f"{shape} as in '{name}_train'")
        whole[name] = np.concatenate([train, test])
        counts[name] = (len(train), len(test))
    first = counts[names[0]]
    wrong = next((name for name in names if counts[name] != first), None)
    if wrong is not None:
        part = PARTS[counts[wrong][0] == first[0]]
        raise _misfit(wrong + part, arrays[wrong + part], f"as many examples as '{names[0]}{part}'")
    whole["is_test"] = np.arange(sum(first)) >= first[0]
    parts = {name + part for name in names for part in PARTS}
    return {**{name: array for name, array in arrays.items() if name not in parts}, **whole}


def _cut(arrays: Arrays) -> Arrays:
    signals, starts, length = (arrays[name] for name in WINDOW_KEYS)
    if signals.ndim != 2 or signals.dtype.kind not in "iuf":
        raise _misfit("signals", signals, "numbers[rows, channels]")
    samples = int(length) if length.shape == () and length.dtype.kind in "iu" else 0
    if not 0 < samples <= len(signals):
        raise _misfit("window_len", length, f"one whole number in 1..{len(signals)}")
    if starts.ndim != 1 or starts.dtype.kind not in "iu":
        raise _misfit("window_start", starts, "whole numbers[windows]")
    starts = starts.astype(np.int64)
    ascending = bool(np.all(np.diff(starts) >= 0))
    if len(starts) and not (ascending and 0 <= starts[0] <= starts[-1] <= len(signals) - samples):
        raise _misfit("window_start", starts, f"ascending row numbers in 0..{len(signals) - samples}")
    cut = np.lib.stride_tricks.sliding_window_view(signals, samples, axis=0)[starts]
    if "scale" in arrays:
        scale = arrays["scale"]
        if scale.shape != signals.shape[1:] or scale.dtype.kind != "f" or not np.isfinite(scale).all():
            raise _misfit("scale", scale, f"finite floats[{signals.shape[1]}]")
        cut = np.multiply(cut, scale.astype(np.float32)[:, None], dtype=np.float32)
    used = {*WINDOW_KEYS, "scale", "subject"}
    rest = {name: array for name, array in arrays.items() if name not in used}
    if "subject" in arrays:
        rest["group"] = arrays["subject"]
    return {**rest, "x": cut, "overlap": np.array(_overlap(starts, samples))}


def _overlap(starts: NDArray[np.int64], samples: int) -> int:
    """How many windows on a window may still have rows in common with one, at most."""
    after = np.searchsorted(starts, starts + samples, side="left")
    return int(np.max(after - np.arange(len(starts)) - 1, initial=0))


def _misfit(name: str, array: NDArray[Any], expected: str) -> ExamplesError:
    what = f"examples: {name!r} is {array.dtype}{list(array.shape)}, expected {expected}"
    return ExamplesError(what, public=what)
