"""The frames of one update: one for each group of tensors that are encoded alike.

A plan has one codec for most of the model, and may have another one for tensors whose names match a pattern
(``CodecSettings.tensors``): biases and scales are few and matter, and can be sent denser. A running mean or variance
(BatchNorm) is no gradient: left out or rounded coarsely it would be wrong, not late. So statistics are a group of their
own, float32 as they are, whatever the plan's codec is.

The groups follow from the specification and the plan, so that both sides know them: first the one that no pattern
matches, then one per pattern in their order (a tensor belongs to the first that matches), last the statistics. A
group without elements is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.update import CodecSettings, Decoded, Rotated, decode_update, encode_update, fitted, frame_bytes_max

__all__ = [
    "DecodedParts",
    "EncodedFrames",
    "Group",
    "decode_frames",
    "encode_frames",
    "fitted_frames",
    "frames_bytes_max",
    "groups_of",
    "shared_seed",
    "statistic_mask",
]

DENSE: Final = CodecSettings("dense")
DecodedParts: TypeAlias = tuple[Decoded | Rotated, ...]
"""What the frames say, in the order of the groups."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Elements that are encoded alike.

    Attributes:
        settings: How.
        positions: int64[k], rising, read-only: where they stand among all elements; None for all of them.
        kind: ``main``, ``part`` (matched by a pattern) or ``statistics``.
    """

    settings: CodecSettings
    positions: NDArray[np.int64] | None
    size: int
    kind: str = "main"

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
        frame: The main group's, empty where patterns match everything.
        statistics: The dense one over the statistics, None where the specification has none.
        parts: Those of the patterns' groups.
        residual: float32[trainable elements] for the next update, None where no codec keeps one.
    """

    frame: bytes
    statistics: bytes | None
    parts: tuple[bytes, ...]
    residual: NDArray[np.float32] | None


def encode_frames(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    settings: CodecSettings,
    spec: ParameterSpec,
    *,
    seed: int,
    shared_seed: int | None = None,
) -> EncodedFrames:
    """The frames of ``delta`` (float32[P] of ``spec``).

    Args:
        delta: Local parameters minus global ones; not changed.
        residual: float32[trainable elements] that earlier frames left out, or None.
        settings: The plan's codec.
        spec: Says which elements are statistics.
        seed: See :func:`edge_sdk.update.encode_update`, which also says what is raised.
        shared_seed: See there.
    """
    groups = groups_of(spec, settings)
    before = _spread(residual, spec)
    frames: dict[str, list[bytes]] = {"main": [], "part": [], "statistics": []}
    left: NDArray[np.float32] | None = None
    for number, group in enumerate(groups):
        kept = None if before is None or group.kind == "statistics" else group.taken(before)
        encoded = encode_update(group.taken(delta), kept, group.settings, seed=seed + number, shared_seed=shared_seed)
        frames[group.kind].append(encoded.frame)
        if encoded.residual is not None:
            if group.positions is None:
                left = encoded.residual
            else:
                left = np.zeros(spec.size, dtype=np.float32) if left is None else left
                group.put(left, encoded.residual)
    mask = statistic_mask(spec)
    return EncodedFrames(
        frame=frames["main"][0] if frames["main"] else b"",
        statistics=frames["statistics"][0] if frames["statistics"] else None,
        parts=tuple(frames["part"]),
        residual=left if left is None or mask is None else left[~mask],
    )


def decode_frames(
    frame: bytes,
    statistics: bytes | None,
    settings: CodecSettings,
    spec: ParameterSpec,
    parts: Sequence[bytes] = (),
) -> DecodedParts:
    """What frames that nobody vouches for say, in the order of ``groups_of(spec, settings)``.

    Raises:
        DecodeError: A frame is damaged, missing, or there although the groups have no place for it.
        VersionError: A frame's version is not ours.
    """
    groups = groups_of(spec, settings)
    kinds = [group.kind for group in groups]
    if (statistics is None) == ("statistics" in kinds):
        lacks = "has no frame of statistics" if statistics is None else "has a frame of statistics, the model has none"
        raise DecodeError(f"update: {lacks}", reason="statistics")
    if len(parts) != kinds.count("part"):
        raise DecodeError(f"update: {len(parts)} frames of parts, the plan makes {kinds.count('part')}", reason="parts")
    if frame and "main" not in kinds:
        raise DecodeError("update: a main frame, but all tensors belong to parts", reason="parts")
    sent = [*([frame] if "main" in kinds else []), *parts, *([] if statistics is None else [statistics])]
    return tuple(decode_update(data, group.size, group.settings) for data, group in zip(sent, groups, strict=True))


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


def statistic_mask(spec: ParameterSpec) -> NDArray[np.bool_] | None:
    """bool[P], true where an element is a statistic; None where none is."""
    return None if all(tensor.kind == "trainable" for tensor in spec) else spec.mask("statistic")


def shared_seed(parameters: bytes) -> int:
    """What all devices of a round have in common, as a seed: the SHA-256 of the parameters that they train from."""
    return int.from_bytes(parameters[:8], "little")


@lru_cache(maxsize=8)
def groups_of(spec: ParameterSpec, settings: CodecSettings) -> tuple[Group, ...]:
    """How the elements of ``spec`` are divided under ``settings``; see the module's docstring."""
    plain = replace(settings, tensors=())
    owners = np.empty(spec.size, dtype=np.int64)
    for tensor in spec:
        owners[tensor.offset : tensor.offset + tensor.size] = _owner(tensor.name, tensor.kind, settings)
    kinds = [(plain, "main"), *((rule, "part") for _, rule in settings.tensors), (DENSE, "statistics")]
    groups = []
    for owner, (rule, kind) in enumerate(kinds):
        positions = np.flatnonzero(owners == owner).astype(np.int64)
        if positions.size:
            positions.flags.writeable = False
            whole = positions.size == spec.size
            groups.append(Group(rule, None if whole else positions, positions.size, kind))
    return tuple(groups)


def _owner(name: str, kind: str, settings: CodecSettings) -> int:
    if kind == "statistic":
        return len(settings.tensors) + 1
    matching = (i for i, (pattern, _) in enumerate(settings.tensors, start=1) if fnmatchcase(name, pattern))
    return next(matching, 0)


def _spread(residual: NDArray[np.float32] | None, spec: ParameterSpec) -> NDArray[np.float32] | None:
    """A residual of the trainable elements as float32[P], zero at the statistics."""
    mask = statistic_mask(spec)
    if residual is None or mask is None:
        return residual
    spread = np.zeros(spec.size, dtype=np.float32)
    spread[~mask] = residual
    return spread
