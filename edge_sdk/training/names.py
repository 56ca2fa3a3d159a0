"""The names that a model's columns and classes have in the world: by them devices find what they need in their files.

``features`` are the columns of an input in order. One of them may be a *category*, a text out of a list: it becomes as
many numbers as the list has names, 1 for the name that stands there and 0 for the others. A category that is called
like an input of whole numbers is that input, and a text becomes its position in the list. ``labels`` are the classes
in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, cast

from edge_sdk.errors import DecodeError
from edge_sdk.wire import fields

__all__ = ["LABELS_OF_TWO", "NAMES_MAX", "check_names", "column_names", "features_width", "listed", "names_from_wire"]

NAMES_MAX: Final = 10_000
CHARACTERS_MAX: Final = 200
SHOWN_MAX: Final = 8
"""Names in one sentence."""
LABELS_OF_TWO: Final = ("binary_cross_entropy", "hinge")
"""Losses over two classes that a program does not count."""

_NAME: Final = fields.text(CHARACTERS_MAX, 1)
_NAMES: Final = fields.list_of(_NAME, NAMES_MAX)
_CATEGORIES: Final = fields.map_of(_NAMES, NAMES_MAX, _NAME)


def names_from_wire(source: Mapping[str, Any]) -> dict[str, Any]:
    """``features``, ``categories`` and ``labels`` of a program, for bytes that nobody vouches for.

    Raises:
        DecodeError: They are no lists of names.
    """
    return {
        "features": tuple(_NAMES(source.get("features", []), "program.features")),
        "categories": {
            name: tuple(listed)
            for name, listed in _CATEGORIES(source.get("categories", {}), "program.categories").items()
        },
        "labels": tuple(_NAMES(source.get("labels", []), "program.labels")),
    }


def features_width(features: Sequence[str], categories: Mapping[str, Sequence[str]]) -> int:
    """How many numbers the features are in a row."""
    return sum(len(categories[name]) if name in categories else 1 for name in features)


def column_names(features: Sequence[str], categories: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """A name for each of ``count`` numbers in a row: that of its column (``fuel=diesel``), else ``feature 3``."""
    names = [f"{name}={value}" if value else name for name in features for value in categories.get(name, [""])]
    return names if len(names) == count else [f"feature {i}" for i in range(count)]


def listed(names: Sequence[str]) -> str:
    """``a, b and 12 others``: at most ``SHOWN_MAX`` names."""
    shown = ", ".join(names[:SHOWN_MAX])
    return shown if len(names) <= SHOWN_MAX else f"{shown} and {len(names) - SHOWN_MAX} others"


def check_names(
    features: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    *,
    inputs: Mapping[str, tuple[str, tuple[int | None, ...]]],
    classes: int,
    loss: str,
) -> None:
    """Raise DecodeError unless the names fit each other and the program.

    Args:
        features, categories, labels: See above.
        inputs: Dtype and shape of each input by its name.
        classes: Number of classes, 0 where the target is no class or the loss is over two.
        loss: The loss.
    """
    _check_each(features, "features")
    _check_each(labels, "labels")
    whole = {name for name, (dtype, _) in inputs.items() if dtype in ("int64", "int32", "uint8")}
    for name, listed in categories.items():
        _check_each(listed, f"categories[{name[:40]!r}]")
        if len(listed) < 2:
            raise DecodeError(f"program.categories[{name[:40]!r}]: a category needs at least two names")
        if name not in features and name not in whole:
            known = [*features, *sorted(whole)][:20]
            raise DecodeError(f"program.categories: {name[:40]!r} is neither a feature nor an integer input; {known}")
    if features:
        _check_width(features, categories, inputs)
    named = classes or (2 if loss in LABELS_OF_TWO else 0)
    if labels and len(labels) != named:
        expected = f"the model has {named} classes" if named else "the model has no classes"
        raise DecodeError(f"program.labels: {len(labels)} names, {expected}")


def _check_each(names: Sequence[str], where: str) -> None:
    for name in cast("tuple[str, ...]", _NAMES(list(names), f"program.{where}")):
        if name != name.strip():
            raise DecodeError(f"program.{where}: {name[:40]!r} has blanks around it")
    if len(set(names)) != len(names):
        raise DecodeError(f"program.{where}: a name stands there twice")


def _check_width(
    features: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    inputs: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> None:
    """The features are the columns of an input, or of each row of a window of several."""
    width = features_width(features, categories)
    taking = [shape for dtype, shape in inputs.values() if len(inputs) == 1 or dtype == "float32"]
    sizes = [prod(d or 1 for d in shape) for shape in taking]
    if not any(size % width == 0 for size in sizes):
        numbers = f"{len(features)} features" + (f" of {width} numbers" if width != len(features) else "")
        raise DecodeError(f"program.features: {numbers} do not fit an input of {sizes} elements")
