"""The frames of one update: one for each group of tensors that are encoded alike.

A plan has one codec for most of the model, and may have another one for tensors whose names match a pattern
(``CodecSettings.tensors``): biases and scales are few and matter, and can be sent denser. A running mean or variance
(BatchNorm) is no gradient: left out or rounded coarsely it would be wrong, not late. So buffers are a group of their
own, float32 as they are, whatever the plan's codec is. ``auto`` without patterns sets kernels of convolutions apart
(:func:`edge_sdk.codecs.auto.kernels_apart`).

The groups follow from the specification and the plan, so that both sides know them: first the one that no pattern
matches, then one per pattern in their order (a tensor belongs to the first that matches), last the buffers. A
group without elements is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs import (
    CodecSettings,
    Decoded,
    Matrix,
    Rotated,
    decode_update,
    encode_update,
    fitted,
    frame_bytes_max,
)
from edge_sdk.codecs.auto import kernels_apart
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.parameters import ParameterSpec, Tensor

__all__ = [
    "DecodedParts",
    "EncodedFrames",
    "Group",
    "buffer_mask",
    "decode_frames",
    "encode_frames",
    "fitted_frames",
    "frames_bytes_max",
    "groups_of",
    "shared_seed",
]

DENSE: Final = CodecSettings("dense")
BUFFERS: Final = -1
DecodedParts: TypeAlias = tuple[Decoded | Rotated, ...]
"""What the frames say, in the order of the groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Elements that are encoded alike.

    Attributes:
        settings: How.
        positions: int64[k], rising, read-only: where they stand among all elements; None for all of them.
        size: How many they are.
        kind: ``main``, ``part`` (matched by a pattern) or ``buffers``.
        matrices: First element (of the group), rows and columns of its tensors that have several of both.
    """

    settings: CodecSettings
    positions: NDArray[np.int64] | None
    size: int
    kind: str = "main"
    matrices: tuple[Matrix, ...] = ()

    def taken(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The group's elements of a float32[P]; the vector itself where they are all."""
        return vector if self.positions is None else vector[self.positions]

    def put(self, vector: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Writes the group's elements into a float32[P]."""
        if self.positions is None:
            vector[:] = values
        else:
            vector[self.positions] = values


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrames:
    """The frames of an update.

    Attributes:
        frames: One for each group, in the order of the groups.
        residual: float32[trainable elements] for the next update, twice as many with a velocity behind it; None where
            no codec keeps one.
    """

    frames: tuple[bytes, ...]
    residual: NDArray[np.float32] | None


def encode_frames(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    settings: CodecSettings,
    spec: ParameterSpec,
    *,
    seed: int,
    shared_seed: int | None = None,
    keeps_residual: bool = True,
) -> EncodedFrames:
    """The frames of ``delta`` (float32[P] of ``spec``).

    Args:
        delta: Local parameters minus global ones; not changed.
        residual: float32[trainable elements] that earlier frames left out, or None; twice as many elements where a
            velocity stands behind it (momentum correction).
        settings: The plan's codec.
        spec: Says which elements are buffers.
        seed: See :func:`edge_sdk.codecs.encode_update`, which also says what is raised.
        shared_seed: See there.
        keeps_residual: See there.
    """
    groups = groups_of(spec, settings)
    before = _spread(residual, spec)
    frames: list[bytes] = []
    left: NDArray[np.float32] | None = None
    for number, group in enumerate(groups):
        kept = None
        if before is not None and group.kind != "buffers":
            kept = np.concatenate([group.taken(row) for row in before]) if len(before) > 1 else group.taken(before[0])
        encoded = encode_update(
            group.taken(delta),
            kept,
            group.settings,
            seed=seed + number,
            shared_seed=shared_seed,
            matrices=group.matrices,
            keeps_residual=keeps_residual,
        )
        frames.append(encoded.frame)
        if encoded.residual is not None:
            rows = encoded.residual.reshape(-1, group.size)
            if left is None:
                left = rows if group.positions is None else np.zeros((2, spec.size), dtype=np.float32)[: len(rows)]
            elif len(left) < len(rows):
                left = np.concatenate([left, np.zeros_like(left)])
            if group.positions is not None:
                for row, values in zip(left, rows, strict=False):
                    group.put(row, values)
    mask = buffer_mask(spec)
    return EncodedFrames(
        frames=tuple(frames),
        residual=None if left is None else np.ascontiguousarray(left if mask is None else left[:, ~mask]).reshape(-1),
    )


def decode_frames(
    frames: Sequence[bytes],
    settings: CodecSettings,
    spec: ParameterSpec,
) -> DecodedParts:
    """What frames that nobody vouches for say, in the order of ``groups_of(spec, settings)``.

    Raises:
        DecodeError: A frame is damaged, or there are more or fewer of them than groups.
        VersionError: A frame's version is not ours.
    """
    groups = groups_of(spec, settings)
    if len(frames) != len(groups):
        raise DecodeError(f"update: {len(frames)} frames, the plan makes {len(groups)}", reason="frames")
    return tuple(decode_update(data, group.size, group.settings) for data, group in zip(frames, groups, strict=True))


def frames_bytes_max(spec: ParameterSpec, settings: CodecSettings) -> int:
    """Bytes that the frames of an honest update do not exceed together."""
    return sum(frame_bytes_max(group.size, group.settings) for group in groups_of(spec, settings))


def fitted_frames(spec: ParameterSpec, settings: CodecSettings, bytes_max: int) -> CodecSettings | None:
    """The settings nearest to ``settings`` with which all frames together are within ``bytes_max``; see ``fitted``.

    The main group gives way; what a pattern asks for stays.
    """
    main, *others = groups_of(spec, settings)
    if not bytes_max:
        return settings
    left = bytes_max - sum(frame_bytes_max(group.size, group.settings) for group in others)
    found = fitted(main.settings, main.size, left) if left > 0 else None
    return found if found is None or main.kind != "main" else replace(found, tensors=settings.tensors)


def buffer_mask(spec: ParameterSpec) -> NDArray[np.bool_] | None:
    """bool[P], true where an element is a buffer; None where none is."""
    return None if all(tensor.kind == "trainable" for tensor in spec) else spec.mask("buffer")


def shared_seed(parameters: bytes) -> int:
    """What all devices of a round have in common, as a seed: the SHA-256 of the parameters that they train from."""
    return int.from_bytes(parameters[:8], "little")


@lru_cache(maxsize=8)
def groups_of(spec: ParameterSpec, settings: CodecSettings) -> tuple[Group, ...]:
    """How the elements of ``spec`` are divided under ``settings``; see the module's docstring."""
    plain = replace(settings, tensors=())
    rules = [rule for _, rule in settings.tensors]
    owners = np.empty(spec.size, dtype=np.int64)
    for tensor in spec:
        owners[tensor.offset : tensor.offset + tensor.size] = _owner(tensor, settings)
    apart = _kernels_apart(spec, settings) if settings.name == "auto" and not rules else None
    if apart is not None:
        fine, plain = apart
        rules = [fine]
        for tensor in spec:
            if _is_kernel(tensor):
                owners[tensor.offset : tensor.offset + tensor.size] = 1
    owners[owners == BUFFERS] = len(rules) + 1
    kinds = [(plain, "main"), *((rule, "part") for rule in rules), (DENSE, "buffers")]
    groups = []
    for owner, (rule, kind) in enumerate(kinds):
        positions = np.flatnonzero(owners == owner).astype(np.int64)
        if positions.size:
            positions.flags.writeable = False
            whole = positions.size == spec.size
            matrices = _matrices(tensor for tensor in spec if owners[tensor.offset] == owner)
            groups.append(Group(rule, None if whole else positions, positions.size, kind, matrices))
    return tuple(groups)


def _matrices(tensors: Iterable[Tensor]) -> tuple[Matrix, ...]:
    """Tensors of several rows and columns, one behind the other; what follows the first dimension is a row."""
    matrices, start = [], 0
    for tensor in tensors:
        shape = [length for length in tensor.shape if length > 1]
        if len(shape) > 1:
            matrices.append((start, shape[0], tensor.size // shape[0]))
        start += tensor.size
    return tuple(matrices)


def _owner(tensor: Tensor, settings: CodecSettings) -> int:
    """Number of the first pattern that matches, from 1; 0 for none."""
    if tensor.kind == "buffer":
        return BUFFERS
    matching = (i for i, (pattern, _) in enumerate(settings.tensors, start=1) if fnmatchcase(tensor.name, pattern))
    return next(matching, 0)


def _kernels_apart(spec: ParameterSpec, settings: CodecSettings) -> tuple[CodecSettings, CodecSettings] | None:
    trainable = sum(tensor.size for tensor in spec if tensor.kind != "buffer")
    return kernels_apart(settings, sum(tensor.size for tensor in spec if _is_kernel(tensor)), max(trainable, 1))


def _is_kernel(tensor: Tensor) -> bool:
    """Whether a tensor is a convolution's: of three dimensions and more, those of length 1 not counted."""
    return tensor.kind != "buffer" and sum(length > 1 for length in tensor.shape) > 2


def _spread(residual: NDArray[np.float32] | None, spec: ParameterSpec) -> NDArray[np.float32] | None:
    """A residual of the trainable elements, with a velocity behind it or not, as float32[1 or 2, P], zero at the
    buffers."""
    if residual is None:
        return None
    mask = buffer_mask(spec)
    trainable = spec.size if mask is None else spec.size - int(np.count_nonzero(mask))
    if residual.size not in (trainable, 2 * trainable):
        raise ConfigurationError(f"residual: {residual.size} elements, the model trains {trainable}; drop the residual")
    if mask is None:
        return residual.reshape(-1, trainable)
    rows = residual.reshape(-1, trainable)
    spread = np.zeros((len(rows), spec.size), dtype=np.float32)
    spread[:, ~mask] = rows
    return spread
