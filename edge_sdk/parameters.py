"""What a model's parameters are called, how they are shaped, and where each stands in one flat float32 vector.

The vector is the only form in which parameters travel, are summed and are stored; arrays by name are views of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError

__all__ = ["ELEMENTS_MAX", "KINDS", "ParameterSpec", "Tensor"]

ELEMENTS_MAX: Final = 1 << 28  # 1 GiB of float32: far above any model that a small computer trains
TENSORS_MAX: Final = 10_000
NAME_BYTES_MAX: Final = 512
RANK_MAX: Final = 8

KINDS: Final = ("trainable", "buffer", "constant")
"""``trainable`` ones are changed by gradients; a ``buffer`` (BatchNorm's running mean) is averaged as it is; a
``constant`` (the mean of a feature) travels with the parameters, but training and updates leave it alone."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named parameter tensor of a model.

    ``offset`` is the position of its first element in the flat vector, in elements; elements are in C order.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class ParameterSpec:
    """The ordered list of a model's parameter tensors.

    Args:
        tensors: ``(name, shape, kind)`` in the order in which they stand in the flat vector; kind is one of ``KINDS``.

    Raises:
        DecodeError: A name, a shape or a kind is not allowed, a name occurs twice, or there are too many elements.
            (A spec comes from the network as often as from a local compile, hence not ``ValueError``.)
    """

    __slots__ = ("_by_name", "size", "tensors")

    def __init__(self, tensors: Iterable[tuple[str, Sequence[int], str]]) -> None:
        entries: list[Tensor] = []
        offset = 0
        for name, shape, kind in tensors:
            _check_tensor(name, shape, kind)
            if len(entries) >= TENSORS_MAX:
                raise DecodeError(f"spec: more than {TENSORS_MAX} tensors", reason="spec")
            tensor = Tensor(name, tuple(int(d) for d in shape), kind, offset)
            offset += tensor.size
            if offset > ELEMENTS_MAX:
                raise DecodeError(f"spec: {offset} elements, at most {ELEMENTS_MAX} are allowed", reason="spec")
            entries.append(tensor)
        self.tensors: tuple[Tensor, ...] = tuple(entries)
        self.size: int = offset
        self._by_name: dict[str, Tensor] = {t.name: t for t in self.tensors}
        if len(self._by_name) != len(self.tensors):
            raise DecodeError("spec: a tensor name occurs twice", reason="spec")

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._by_name[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterSpec) and self.tensors == other.tensors

    def __hash__(self) -> int:
        return hash(self.tensors)

    def __repr__(self) -> str:
        return f"ParameterSpec({len(self.tensors)} tensors, {self.size} elements)"

    def unflatten(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Views of ``vector`` (float32[P]) by tensor name; nothing is copied.

        Raises:
            ValueError: ``vector`` is not one-dimensional with ``size`` elements.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {vector.shape}, the spec has {self.size} elements")
        return {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape) for t in self.tensors}

    def flatten(self, arrays: Mapping[str, Any]) -> NDArray[np.float32]:
        """One new float32[P] from arrays by name.

        Raises:
            ValueError: A tensor is missing or has another shape.
        """
        vector = np.empty(self.size, dtype=np.float32)
        for t in self.tensors:
            if t.name not in arrays:
                raise ValueError(f"parameter {t.name!r} is missing")
            array = np.asarray(arrays[t.name])
            if array.shape != t.shape:
                raise ValueError(f"parameter {t.name!r} has shape {array.shape}, expected {t.shape}")
            vector[t.offset : t.offset + t.size] = array.ravel()
        return vector

    def mask(self, kind: str) -> NDArray[np.bool_]:
        """bool[P], true where an element belongs to a tensor of ``kind``."""
        mask = np.zeros(self.size, dtype=bool)
        for t in self.tensors:
            if t.kind == kind:
                mask[t.offset : t.offset + t.size] = True
        return mask

    def to_wire(self) -> list[list[Any]]:
        """``[[name, [dimensions], kind], ...]``, the form in which a spec stands in a program."""
        return [[t.name, list(t.shape), t.kind] for t in self.tensors]

    @classmethod
    def from_wire(cls, value: object) -> ParameterSpec:
        """The inverse of :meth:`to_wire`, for bytes that nobody vouches for.

        Raises:
            DecodeError: The value is not a well-formed spec.
        """
        if not isinstance(value, list) or not all(isinstance(e, list) and len(e) == 3 for e in value):
            raise DecodeError("spec: expected a list of [name, shape, kind]", reason="spec")
        return cls((name, shape, kind) for name, shape, kind in value)


def _check_tensor(name: object, shape: object, kind: object) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise DecodeError(
            f"spec: tensor name {str(name)[:80]!r} is not a string of 1..{NAME_BYTES_MAX} bytes", reason="spec"
        )
    if not isinstance(shape, list | tuple) or len(shape) > RANK_MAX:
        raise DecodeError(
            f"spec: tensor {name!r}: shape must be a list of at most {RANK_MAX} dimensions", reason="spec"
        )
    for d in shape:
        # numpy integers come from local compiles, plain ones from msgpack; bool is an int in Python and is refused.
        if isinstance(d, bool) or not isinstance(d, int | np.integer) or not 0 < d <= ELEMENTS_MAX:
            raise DecodeError(f"spec: tensor {name!r}: dimension {d!r} is not in 1..{ELEMENTS_MAX}", reason="spec")
    if kind not in KINDS:
        raise DecodeError(f"spec: tensor {name!r}: kind {kind!r} is not one of {KINDS}", reason="spec")
