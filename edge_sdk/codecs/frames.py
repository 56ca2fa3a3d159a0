"""The frames of one update: one for each group of tensors that are encoded alike.

A plan has one codec for most of the model, and may have another one for tensors whose names match a pattern
(``CodecSettings.tensors``): biases and scales are few and matter, and can be sent denser. A running mean or variance
(BatchNorm) is no gradient: left out or rounded coarsely it would be wrong, not late. So buffers are a group of their
own, float32 as they are, whatever the plan's codec is. Constants never change, so they are in no group and cost no
byte. A codec may ask for kernels of convolutions apart, where there are no patterns
(:meth:`edge_sdk.codecs.codec.Codec.split`).

The groups follow from the specification and the plan, so that both sides know them: first the one that no pattern
matches, then one per pattern in their order (a tensor belongs to the first that matches), last the buffers. A
group without elements is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import RESIDUAL, Decoded, Kept, Rotated, Vectors
from edge_sdk.codecs.dense import Dense
from edge_sdk.codecs.index_coding import Matrix
from edge_sdk.codecs.settings import CodecSettings, fitted
from edge_sdk.codecs.update import decode_update, encode_update, frame_bytes_max
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.parameters import ParameterSpec, Tensor

__all__ = [
    "DecodedParts",
    "EncodedFrames",
    "Group",
    "decode_frames",
    "encode_frames",
    "fitted_frames",
    "frames_bytes_max",
    "groups_of",
    "joined",
    "shared_seed",
    "untrained_mask",
]

DENSE: Final = CodecSettings(Dense())
BUFFERS: Final = -1
NOBODY: Final = -2
DecodedParts: TypeAlias = tuple[Decoded | Rotated, ...]
"""What the frames say, in the order of the groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Elements that are encoded alike.

    Attributes:
        settings: How.
        where: Where they stand among all elements: a slice where they are one piece, else int64[k], rising, read-only.
        size: How many they are.
        whole_size: How many elements there are in all, P.
        kind: ``main``, ``part`` (matched by a pattern) or ``buffers``.
        matrices: First element (of the group), rows and columns of its tensors; one column where a tensor has one
            dimension. Tensors of a single element are left out.
    """

    settings: CodecSettings
    where: slice | NDArray[np.int64]
    size: int
    whole_size: int
    kind: str = "main"
    matrices: tuple[Matrix, ...] = ()

    def taken(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The group's elements of a float32[P]; a view where they are one piece."""
        return vector[self.where]

    def put(self, vector: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Writes the group's elements into a float32[P]."""
        vector[self.where] = values

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the group's elements ``indices`` stand among all elements."""
        return indices + self.where.start if isinstance(self.where, slice) else self.where[indices]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrames:
    """The frames of an update.

    Attributes:
        frames: One for each group, in the order of the groups.
        kept: The vectors to keep for the next update, float32[trainable elements] each, by name.
    """

    frames: tuple[bytes, ...]
    kept: Vectors

    @property
    def residual(self) -> NDArray[np.float32] | None:
        """What the frames left out, float32[trainable elements]; None where no codec keeps a residual."""
        return self.kept.get(RESIDUAL)


def encode_frames(
    delta: NDArray[np.float32],
    kept: Kept | None,
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
        kept: What the frames before gave, float32[trainable elements] each by name, or None.
        settings: The plan's codec.
        spec: Says which elements are buffers or constants.
        seed: See :func:`edge_sdk.codecs.encode_update`, which also says what is raised.
        shared_seed: See there.
        keeps_residual: See there.
    """
    mask = untrained_mask(spec)
    before = {name: _spread(name, vector, spec, mask) for name, vector in (kept or {}).items()}
    frames: list[bytes] = []
    after: Vectors = {}
    for number, group in enumerate(groups_of(spec, settings)):
        mine = {} if group.kind == "buffers" else {name: group.taken(vector) for name, vector in before.items()}
        encoded = encode_update(
            group.taken(delta),
            mine,
            group.settings,
            seed=seed + number,
            shared_seed=shared_seed,
            matrices=group.matrices,
            keeps_residual=keeps_residual,
        )
        frames.append(encoded.frame)
        for name, left in encoded.kept.items():
            if group.size == spec.size:
                after[name] = left
            else:
                if name not in after:
                    after[name] = np.zeros(spec.size, dtype=np.float32)
                group.put(after[name], left)
    if mask is not None:
        after = {name: vector[~mask] for name, vector in after.items()}
    return EncodedFrames(tuple(frames), after)


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
    if not bytes_max or frames_bytes_max(spec, settings) <= bytes_max:
        return settings
    main, *others = groups_of(spec, settings)
    left = bytes_max - sum(frame_bytes_max(group.size, group.settings) for group in others)
    found = fitted(main.settings, main.size, left) if left > 0 and main.kind == "main" else None
    return None if found is None else settings.with_codec(found.codec)


def untrained_mask(spec: ParameterSpec) -> NDArray[np.bool_] | None:
    """bool[P], true where an element is a buffer or a constant; None where none is."""
    return None if all(tensor.kind == "trainable" for tensor in spec) else ~spec.mask("trainable")


def shared_seed(parameters: bytes) -> int:
    """What all devices of a round have in common, as a seed: the SHA-256 of the parameters that they train from."""
    return int.from_bytes(parameters[:8], "little")


@lru_cache(maxsize=8)
def groups_of(spec: ParameterSpec, settings: CodecSettings) -> tuple[Group, ...]:
    """How the elements of ``spec`` are divided under ``settings``; see the module's docstring."""
    plain = CodecSettings(settings.codec)
    rules = [rule for _, rule in settings.tensors]
    owners = np.empty(spec.size, dtype=np.int64)
    for tensor in spec:
        owners[tensor.offset : tensor.offset + tensor.size] = _owner(tensor, settings)
    apart = None if rules else _kernels_apart(spec, settings)
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
            matrices = _matrices(tensor for tensor in spec if owners[tensor.offset] == owner)
            groups.append(Group(rule, _in_one_piece(positions), positions.size, spec.size, kind, matrices))
    return tuple(groups)


def joined(groups: Sequence[Group], values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32[P] from the elements of each group; zero for constants, which are in none.

    Where one group is all of it, its elements are given back as they are.
    """
    if groups[0].size == groups[0].whole_size:
        return values[0]
    vector = np.zeros(groups[0].whole_size, dtype=np.float32)
    for group, elements in zip(groups, values, strict=True):
        group.put(vector, elements)
    return vector


def _in_one_piece(positions: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Rising positions as a slice where there is nothing between them: eight bytes an element less to keep."""
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == positions.size:
        return slice(first, last + 1)
    positions.flags.writeable = False
    return positions


def _matrices(tensors: Iterable[Tensor]) -> tuple[Matrix, ...]:
    """Tensors of several elements, one behind the other; what follows the first dimension is a row."""
    matrices, start = [], 0
    for tensor in tensors:
        shape = [length for length in tensor.shape if length > 1]
        if shape:
            matrices.append((start, shape[0], tensor.size // shape[0]))
        start += tensor.size
    return tuple(matrices)


def _owner(tensor: Tensor, settings: CodecSettings) -> int:
    """Number of the first pattern that matches, from 1; 0 for none."""
    if tensor.kind != "trainable":
        return BUFFERS if tensor.kind == "buffer" else NOBODY
    matching = (i for i, (pattern, _) in enumerate(settings.tensors, start=1) if fnmatchcase(tensor.name, pattern))
    return next(matching, 0)


def _kernels_apart(spec: ParameterSpec, settings: CodecSettings) -> tuple[CodecSettings, CodecSettings] | None:
    trainable = sum(tensor.size for tensor in spec if tensor.kind == "trainable")
    apart = settings.codec.split(sum(tensor.size for tensor in spec if _is_kernel(tensor)), max(trainable, 1))
    return None if apart is None else (CodecSettings(apart[0]), CodecSettings(apart[1]))


def _is_kernel(tensor: Tensor) -> bool:
    """Whether a tensor is a convolution's: of three dimensions and more, those of length 1 not counted."""
    return tensor.kind == "trainable" and sum(length > 1 for length in tensor.shape) > 2


def _spread(
    name: str, vector: NDArray[np.float32], spec: ParameterSpec, mask: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """A kept vector of the trainable elements as float32[P], zero elsewhere."""
    trainable = spec.size if mask is None else spec.size - int(np.count_nonzero(mask))
    if vector.size != trainable:
        raise ConfigurationError(f"{name}: {vector.size} elements, the model trains {trainable}; drop it")
    if mask is None:
        return vector
    spread = np.zeros(spec.size, dtype=np.float32)
    spread[~mask] = vector
    return spread
