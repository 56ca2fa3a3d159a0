"""What the parts of a pipeline remember between rounds, and its bytes in a checkpoint.

Each part (the algorithm, the server optimiser, each step) has a name and a few vectors of its own. All of it is one
blob, committed with the round: a coordinator that starts again remembers exactly what it would have remembered.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import StateError

__all__ = ["Memory", "PartMemory", "pack_memory", "unpack_memory"]

PartMemory: TypeAlias = dict[str, NDArray[Any]]
"""One part's vectors by name: float32, float64 or int64, of one dimension."""

Memory: TypeAlias = dict[str, PartMemory]
"""What all parts remember, by the part's name."""

_TYPES: Final = {"<f4": np.float32, "<f8": np.float64, "<i8": np.int64}


def pack_memory(memory: Memory) -> bytes:
    """The memory as bytes for a checkpoint.

    Raises:
        StateError: A vector is of a type that is not stored.
    """
    packed: bytes = msgpack.packb(
        {part: {name: _packed(part, name, vector) for name, vector in own.items()} for part, own in memory.items()}
    )
    return packed


def unpack_memory(data: bytes) -> Memory:
    """The inverse of :func:`pack_memory`; our own bytes, from our own database.

    Raises:
        StateError: They are not.
    """
    if not data:
        return {}
    try:
        return {
            part: {name: np.frombuffer(raw, dtype=_TYPES[kind]) for name, (kind, raw) in own.items()}
            for part, own in msgpack.unpackb(data).items()
        }
    except Exception as error:
        raise StateError(f"checkpoint: what the pipeline remembers cannot be read ({error})") from error


def _packed(part: str, name: str, vector: NDArray[Any]) -> tuple[str, bytes]:
    kind = vector.dtype.newbyteorder("<").str
    if kind not in _TYPES or vector.ndim != 1:
        raise StateError(
            f"{part} wants to remember {name} as {vector.dtype}{list(vector.shape)}; expected a vector of float32, "
            "float64 or int64"
        )
    return kind, np.ascontiguousarray(vector, dtype=_TYPES[kind]).tobytes()
