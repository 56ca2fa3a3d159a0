"""Names of columns and classes in a bundle: devices find the columns of their files by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_sdk.errors import CompileError, DecodeError
from edge_sdk.training.bundle import Bundle

__all__ = ["ColumnNames", "with_names"]


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """What columns and classes are called, see :mod:`edge_sdk.training.names`.

    Attributes:
        features: The columns of the model's input, in order.
        categories: Of a column that is a text, the names that it may be.
        labels: The classes, in order.
    """

    features: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @classmethod
    def parse(cls, features: Sequence[str], categories: Sequence[str], labels: Sequence[str]) -> ColumnNames:
        """As on the command line, where a category is written ``fuel=diesel,petrol``.

        Raises:
            CompileError: A category is not written so.
        """
        parts = [text.partition("=") for text in categories]
        for (name, _, values), text in zip(parts, categories, strict=True):
            if not name or "," not in values:
                raise CompileError(f"category {text!r}: write it as NAME=VALUE,VALUE, such as fuel=diesel,petrol")
        return cls(tuple(features), {name: tuple(values.split(",")) for name, _, values in parts}, tuple(labels))


def with_names(bundle: Bundle, names: ColumnNames) -> Bundle:
    """The bundle, whose program says what its columns and classes are called.

    Raises:
        CompileError: The names do not fit the model.
    """
    if names == ColumnNames():
        return bundle
    try:
        program = replace(
            bundle.program, features=names.features, categories=dict(names.categories), labels=names.labels
        )
    except DecodeError as error:  # the checks are those for programs from the network
        raise CompileError(f"model {bundle.program.name!r}: {error}") from error
    return replace(bundle, program=program)
