"""Which rows are taken: ``machine == 3 and (rpm > 0 or state == 'test')``.

    filter     = all {"or" all}
    all        = term {"and" term}
    term       = "(" filter ")" | column operator (number | 'text' | column)
    operator   = "==" | "!=" | "<" | "<=" | ">" | ">="
    column     = a name of letters, digits, "_" and "."; any other one between backquotes: `speed (rpm)`

A column is compared with a number as numbers, with a text as text, and with another column as numbers. An empty cell
fits nothing, but may be asked for: ``label != ''``. Nothing is evaluated as Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.columns import numbers, texts
from edge_sdk.training.data.source import Rows

__all__ = ["RowFilter", "parse_filter"]

CHARACTERS_MAX: Final = 1_000
DEPTH_MAX: Final = 20

TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<column>[^\W\d][\w.]*|`[^`]+`)"
    r"|(?P<sign>==|!=|<=|>=|<|>|\(|\)))"
)
COMPARISONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Matches: TypeAlias = Callable[[Rows], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A filter that has been read.

    Attributes:
        columns: The columns that it asks after.
        matches: Which of some rows fit, bool[n]; raises ExamplesError where a cell is not what it is compared with.
    """

    columns: frozenset[str]
    matches: Matches


def parse_filter(text: str) -> RowFilter:
    """The filter that ``text`` describes.

    Raises:
        ConfigurationError: It is none; says where, and what was expected.
    """
    parser = _Parser(text)
    matches = parser.any_of()
    parser.end()
    return RowFilter(frozenset(parser.columns), matches)


class _Parser:
    """Reads a filter from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        if len(text) > CHARACTERS_MAX:
            raise ConfigurationError(f"{len(text)} characters, at most {CHARACTERS_MAX} are allowed")
        self.columns: set[str] = set()
        self._text = text
        self._at = 0
        self._depth = 0
        self._advance()

    def any_of(self) -> Matches:
        return self._joined("or", self._all_of, np.logical_or)

    def end(self) -> None:
        if self._kind:
            raise self._unexpected("and, or, or the end")

    def _all_of(self) -> Matches:
        return self._joined("and", self._term, np.logical_and)

    def _joined(self, word: str, part: Callable[[], Matches], join: Callable[..., NDArray[np.bool_]]) -> Matches:
        matches = part()
        while self._take("column", word):
            matches = _both(join, matches, part())
        return matches

    def _term(self) -> Matches:
        if not self._take("sign", "("):
            return self._comparison()
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ConfigurationError(f"more than {DEPTH_MAX} parentheses within each other")
        inner = self.any_of()
        if not self._take("sign", ")"):
            raise self._unexpected("a closing parenthesis")
        self._depth -= 1
        return inner

    def _comparison(self) -> Matches:
        left = self._column()
        compare = COMPARISONS.get(self._value) if self._kind == "sign" else None
        if compare is None:
            raise self._unexpected(f"one of {' '.join(COMPARISONS)}")
        self._advance()
        kind, value = self._kind, self._value
        if kind == "number":
            self._advance()
            return _with_number(left, compare, float(value))
        if kind == "text":
            self._advance()
            return _with_text(left, compare, value[1:-1])
        return _with_column(left, compare, self._column("a number, a 'text' or a column"))

    def _column(self, expected: str = "the name of a column") -> str:
        if self._kind != "column" or self._value in ("and", "or"):
            raise self._unexpected(expected)
        name = self._value.strip("`")
        self.columns.add(name)
        self._advance()
        return name

    def _take(self, kind: str, value: str) -> bool:
        if (self._kind, self._value) != (kind, value):
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        rest = self._text[self._at :]
        found = TOKEN.match(rest)
        if found is None and rest.strip():
            raise ConfigurationError(f"{rest.strip()[:20]!r} is no number, 'text', column or comparison")
        self._kind, self._value = ("", "") if found is None else (found.lastgroup or "", found[found.lastgroup or 0])
        self._start = self._at
        self._at += len(rest) if found is None else found.end()

    def _unexpected(self, expected: str) -> ConfigurationError:
        rest = self._text[self._start :].strip()
        return ConfigurationError(f"expected {expected} " + (f"before {rest[:20]!r}" if rest else "at the end"))


def _both(join: Callable[..., NDArray[np.bool_]], left: Matches, right: Matches) -> Matches:
    return lambda rows: join(left(rows), right(rows))


def _with_number(column: str, compare: Callable[[Any, Any], Any], value: float) -> Matches:
    def matches(rows: Rows) -> NDArray[np.bool_]:
        found = numbers(rows, column)
        return np.asarray(compare(found, value) & ~np.isnan(found), np.bool_)

    return matches


def _with_column(column: str, compare: Callable[[Any, Any], Any], other: str) -> Matches:
    def matches(rows: Rows) -> NDArray[np.bool_]:
        left, right = numbers(rows, column), numbers(rows, other)
        return np.asarray(compare(left, right) & ~np.isnan(left) & ~np.isnan(right), np.bool_)

    return matches


def _with_text(column: str, compare: Callable[[Any, Any], Any], value: str) -> Matches:
    def matches(rows: Rows) -> NDArray[np.bool_]:
        found = texts(rows, column)
        return np.fromiter((compare(t, value) and (bool(t) or not value) for t in found), np.bool_, len(rows))

    return matches
