"""Data sets: features, labels, whose they are; how they are dealt to devices is in ``partitions``.

A data set is features, labels, and, where the data has them, the key of the person or machine that each example came
from and a mark on the examples that its publisher set aside for testing. Scaling is the least that training needs and
nothing is fitted to the data: unsigned bytes are divided by 255, scikit-learn's digits by 16, everything else keeps
its unit and becomes float32. A device that wants its own mean and variance computes them from its own examples.

Files are NumPy archives without pickled objects. Three layouts are recognised by their keys:

    x, y [, client] [, is_test]                                  one set
    x_train, y_train, x_test, y_test                             a published split (mnist.npz)
    signals, scale, window_start, window_len, y, subject [, is_test]    windows cut from recordings (uci_har_raw.npz)
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from device_sim.stable_random import StableRandom
from edge_sdk.errors import ConfigurationError

__all__ = ["Dataset", "load_dataset", "split_held_out"]

WINDOW_KEYS: Final = ("signals", "scale", "window_start", "window_len", "y", "subject")
SPLIT_KEYS: Final = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples with labels.

    Attributes:
        x: float32[n, ...], the features.
        y: int64[n] class labels, or float32[n, ...] values for regression.
        client: [n] key (integer or text) of the person or machine an example came from; None where nobody knows.
        name: What to call the data in reports.
        held_out: bool[n], true for the examples that the publisher set aside for testing; None for no such mark.

    Raises:
        ConfigurationError: The arrays do not have the same number of examples, or not these types.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    client: NDArray[Any] | None = None
    name: str = "data"
    held_out: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        count = len(self.x) if self.x.ndim >= 2 else -1
        if self.x.dtype != np.float32 or count < 0:
            raise ConfigurationError(
                f"{self.name}: x is {self.x.dtype}{list(self.x.shape)}, expected float32[examples, features...]"
            )
        if self.y.dtype not in (np.int64, np.float32) or self.y.ndim < 1 or len(self.y) != count:
            raise ConfigurationError(
                f"{self.name}: y is {self.y.dtype}{list(self.y.shape)}, "
                f"expected int64[{count}] or float32[{count}, ...]"
            )
        for key, marks in (("client", self.client), ("held_out", self.held_out)):
            if marks is not None and marks.shape != (count,):
                raise ConfigurationError(f"{self.name}: {key} has shape {list(marks.shape)}, expected [{count}]")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64[n] class labels, or None when ``y`` holds values for regression."""
        return self.y if self.y.dtype == np.int64 and self.y.ndim == 1 else None

    @property
    def classes_count(self) -> int:
        """One more than the largest label; 0 for regression or no examples."""
        labels = self.labels
        return int(labels.max()) + 1 if labels is not None and len(labels) else 0

    def subset(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at ``indices`` (int64[m]) in that order; a view when they are one unbroken ascending run."""
        run = slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0)
        unbroken = run.stop - run.start == len(indices) and bool(np.all(np.diff(indices) == 1))
        pick: Any = run if unbroken else indices
        return Dataset(
            x=self.x[pick],
            y=self.y[pick],
            client=None if self.client is None else self.client[pick],
            name=self.name,
            held_out=None if self.held_out is None else self.held_out[pick],
        )

    def reshaped(self, shape: tuple[int, ...]) -> Dataset:
        """The same examples with features of another shape, e.g. ``(784,)`` or ``(1, 28, 28)``; nothing is copied.

        Raises:
            ConfigurationError: The shape has another number of elements.
        """
        if int(np.prod(shape)) != int(np.prod(self.x.shape[1:])):
            raise ConfigurationError(
                f"{self.name}: an example has shape {list(self.x.shape[1:])} and cannot be reshaped to {list(shape)}"
            )
        x = self.x.reshape(len(self.x), *shape)
        return Dataset(x=x, y=self.y, client=self.client, name=self.name, held_out=self.held_out)


def load_dataset(source: str | Path) -> Dataset:
    """Load a data set.

    Args:
        source: ``"digits"`` (1,797 images of 8 x 8 bundled with scikit-learn, as 64 features in 0..1), or the path of
            an ``.npz`` file in one of the layouts above. Windows come as float32[n, channels, samples].

    Raises:
        ConfigurationError: The source is unknown, cannot be read, or a key is missing or has the wrong shape.
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    if path.suffix != ".npz":
        raise ConfigurationError(f"data: {str(source)!r} is neither 'digits' nor the path of an .npz file")
    arrays = _Archive(path)
    if all(key in arrays for key in WINDOW_KEYS):
        return _windows(arrays)
    if all(key in arrays for key in SPLIT_KEYS):
        return _published_split(arrays)
    return Dataset(
        x=_scaled(arrays, "x", arrays["x"]),
        y=_targets(arrays, "y"),
        client=_keys(arrays, "client") if "client" in arrays else None,
        name=arrays.name,
        held_out=_marks(arrays, "is_test"),
    )


def split_held_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split into the examples that devices train on and those that nobody trains on.

    The publisher's own split is kept where there is one, whatever ``share`` says, so that results can be compared.
    Otherwise ``share`` of each class is drawn (of all examples, for regression).

    Args:
        share: Part to hold out, from 0 up to but not including 1.
        seed: Names the draw.

    Returns:
        ``(training, held out)``, both in the order of the data set.

    Raises:
        ConfigurationError: ``share`` is out of range.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigurationError(f"held_out: {share!r} must lie in 0 <= share < 1")
    mask = dataset.held_out
    if mask is None:
        draws = StableRandom(seed, "held out")
        mask = np.zeros(len(dataset), dtype=bool)
        labels = dataset.labels if dataset.labels is not None else np.zeros(len(dataset), dtype=np.int64)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            mask[members[draws.permutation(len(members))[: int(share * len(members) + 0.5)]]] = True
    return dataset.subset(np.flatnonzero(~mask)), dataset.subset(np.flatnonzero(mask))


class _Archive(Mapping[str, NDArray[Any]]):
    """An ``.npz`` file whose every failure is a ConfigurationError that names file and key."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"data: {path} cannot be read as an .npz file: {error}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ConfigurationError(f"data: {path} holds one bare array; save it with numpy.savez(path, x=..., y=...)")
        self._archive = archive

    def __getitem__(self, key: str) -> NDArray[Any]:
        if key not in self._archive:
            raise ConfigurationError(
                f"data: {self._path} has no array {key!r}; it has {sorted(self._archive.files)} and needs 'x' and 'y'"
            )
        try:
            array: NDArray[Any] = self._archive[key]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"data: {self._path}: array {key!r} cannot be read: {error}") from error
        return array

    def __contains__(self, key: object) -> bool:
        return key in self._archive.files

    def __iter__(self) -> Any:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)

    def refuse(self, key: str, array: NDArray[Any], expected: str) -> ConfigurationError:
        return ConfigurationError(
            f"data: {self._path}: array {key!r} is {array.dtype}{list(array.shape)}, expected {expected}"
        )


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError("data: 'digits' needs scikit-learn; install edgefed[sim]") from error
    x, y = load_digits(return_X_y=True)
    return Dataset(x=(x / 16.0).astype(np.float32), y=y.astype(np.int64), name="digits")


def _published_split(arrays: _Archive) -> Dataset:
    train, test = arrays["x_train"], arrays["x_test"]
    if train.ndim < 2 or train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise arrays.refuse("x_test", test, f"{train.dtype} examples of shape {list(train.shape[1:])} as in 'x_train'")
    y_train, y_test = _targets(arrays, "y_train"), _targets(arrays, "y_test")
    if len(y_train) != len(train) or y_train.dtype != y_test.dtype or y_train.shape[1:] != y_test.shape[1:]:
        raise arrays.refuse("y_train", y_train, f"{len(train)} labels of the same kind as 'y_test'")
    held_out = np.arange(len(train) + len(test)) >= len(train)
    # Joined before they are scaled: as bytes the images are a quarter of the size.
    x = _scaled(arrays, "x_train", np.concatenate([train, test]))
    return Dataset(x=x, y=np.concatenate([y_train, y_test]), name=arrays.name, held_out=held_out)


def _windows(arrays: _Archive) -> Dataset:
    signals, scale, starts = arrays["signals"], arrays["scale"], arrays["window_start"]
    if signals.ndim != 2 or signals.dtype.kind not in "iuf":
        raise arrays.refuse("signals", signals, "numbers[rows, channels]")
    if scale.shape != signals.shape[1:] or scale.dtype.kind != "f" or not np.isfinite(scale).all():
        raise arrays.refuse("scale", scale, f"finite floats[{signals.shape[1]}]")
    samples_array = arrays["window_len"]
    samples = int(samples_array) if samples_array.shape == () and samples_array.dtype.kind in "iu" else 0
    if not 0 < samples <= len(signals):
        raise arrays.refuse("window_len", samples_array, f"one integer in 1..{len(signals)}")
    if starts.ndim != 1 or starts.dtype.kind not in "iu":
        raise arrays.refuse("window_start", starts, "integers[windows]")
    starts = starts.astype(np.int64)
    if len(starts) and not 0 <= starts.min() <= starts.max() <= len(signals) - samples:
        raise arrays.refuse("window_start", starts, f"row numbers in 0..{len(signals) - samples}")
    cut = np.lib.stride_tricks.sliding_window_view(signals, samples, axis=0)[starts]
    x = np.multiply(cut, scale.astype(np.float32)[:, None], dtype=np.float32)
    if signals.dtype.kind == "f" and not np.isfinite(x).all():
        raise arrays.refuse("signals", signals, "finite numbers")
    subject, marks = _keys(arrays, "subject"), _marks(arrays, "is_test")
    return Dataset(x=x, y=_targets(arrays, "y"), client=subject, name=arrays.name, held_out=marks)


def _scaled(arrays: _Archive, key: str, array: NDArray[Any]) -> NDArray[np.float32]:
    if array.ndim < 2 or array.dtype.kind not in "buif":
        raise arrays.refuse(key, array, "numbers[examples, features...]")
    if array.dtype == np.uint8:
        scaled: NDArray[np.float32] = np.divide(array, np.float32(255.0), dtype=np.float32)
        return scaled
    features = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(features).all():
        raise arrays.refuse(key, array, "numbers that are finite in float32 (it has NaN or infinity)")
    return features


def _targets(arrays: _Archive, key: str) -> NDArray[Any]:
    array = arrays[key]
    if array.dtype.kind in "bui" and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind == "f" and array.ndim >= 1 and np.isfinite(array).all():
        return array.astype(np.float32)
    raise arrays.refuse(key, array, "integers[examples] or finite floats[examples, ...]")


def _keys(arrays: _Archive, key: str) -> NDArray[Any]:
    array = arrays[key]
    if array.ndim != 1 or array.dtype.kind not in "buiU":
        raise arrays.refuse(key, array, "integers or text[examples]")
    return array


def _marks(arrays: _Archive, key: str) -> NDArray[np.bool_] | None:
    if key not in arrays:
        return None
    array = arrays[key]
    if array.ndim != 1 or array.dtype.kind not in "bui":
        raise arrays.refuse(key, array, "bool[examples]")
    return array.astype(bool)
