"""The frames of one update: the codec's over the trainable elements, and a dense one over the statistics.

A running mean or variance (BatchNorm) is no gradient: left out or rounded coarsely it would be wrong, not late. So a
specification with statistics gives an update a second frame, float32 as it is, which neither sparsifies nor quantises
and has no residual. Without statistics there is one frame, over all elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DecodeError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.update import CodecSettings, Decoded, decode_update, encode_update, fitted, frame_bytes_max

__all__ = [
    "DecodedFrames",
    "EncodedFrames",
    "decode_frames",
    "encode_frames",
    "fitted_frames",
    "frames_bytes_max",
    "statistic_mask",
]

DENSE: Final = CodecSettings("dense")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrames:
    """The frames of an update.

    Attributes:
        frame: The codec's, over the trainable elements.
        statistics: The dense one over the statistics, None where the specification has none.
        residual: float32[trainable elements] for the next update, None where the codec keeps none.
    """

    frame: bytes
    statistics: bytes | None
    residual: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrames:
    """What the frames of an update say.

    Attributes:
        whole: Over all elements of the specification.
        trainable: The values of ``whole`` that belong to trainable elements.
    """

    whole: Decoded
    trainable: NDArray[np.float32]


def encode_frames(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    settings: CodecSettings,
    spec: ParameterSpec,
    *,
    seed: int,
) -> EncodedFrames:
    """The frames of ``delta`` (float32[P] of ``spec``).

    Args:
        delta: Local parameters minus global ones; not changed.
        residual: float32[trainable elements] that earlier frames left out, or None.
        settings: The codec of the trainable elements.
        spec: Says which elements are statistics.
        seed: See :func:`edge_sdk.update.encode_update`, which also says what is raised.
    """
    places = _places(spec)
    if places is None:
        encoded = encode_update(delta, residual, settings, seed=seed)
        return EncodedFrames(encoded.frame, None, encoded.residual)
    trainable, statistic = places
    encoded = encode_update(delta[trainable], residual, settings, seed=seed)
    return EncodedFrames(encoded.frame, encode_update(delta[statistic], None, DENSE, seed=seed).frame, encoded.residual)


def decode_frames(
    frame: bytes, statistics: bytes | None, settings: CodecSettings, spec: ParameterSpec
) -> DecodedFrames:
    """What two frames that nobody vouches for say.

    Raises:
        DecodeError: A frame is damaged, missing, or there although the specification has no statistics.
        VersionError: A frame's version is not ours.
    """
    places = _places(spec)
    if (statistics is None) != (places is None):
        lacks = "has no frame of statistics" if statistics is None else "has a frame of statistics, the model has none"
        raise DecodeError(f"update: {lacks}", reason="statistics")
    if places is None or statistics is None:
        decoded = decode_update(frame, spec.size, settings)
        return DecodedFrames(decoded, decoded.values)
    trainable, statistic = places
    sent = decode_update(frame, trainable.size, settings)
    dense = decode_update(statistics, statistic.size, DENSE)
    if sent.indices is None:
        values = np.empty(spec.size, dtype=np.float32)
        values[trainable], values[statistic] = sent.values, dense.values
        return DecodedFrames(Decoded(spec.size, None, values), sent.values)
    indices = np.concatenate([trainable[sent.indices], statistic])
    order = np.argsort(indices, kind="stable")
    values = np.concatenate([sent.values, dense.values])[order]
    return DecodedFrames(Decoded(spec.size, indices[order], values), sent.values)


def frames_bytes_max(spec: ParameterSpec, settings: CodecSettings) -> int:
    """Bytes that the frames of an honest update do not exceed together."""
    places = _places(spec)
    if places is None:
        return frame_bytes_max(spec.size, settings)
    trainable, statistic = places
    return frame_bytes_max(trainable.size, settings) + frame_bytes_max(statistic.size, DENSE)


def fitted_frames(spec: ParameterSpec, settings: CodecSettings, bytes_max: int) -> CodecSettings | None:
    """The settings nearest to ``settings`` with which all frames together are within ``bytes_max``; see ``fitted``."""
    places = _places(spec)
    if places is None or not bytes_max:
        return fitted(settings, spec.size, bytes_max)
    trainable, statistic = places
    left = bytes_max - frame_bytes_max(statistic.size, DENSE)
    return fitted(settings, trainable.size, left) if left > 0 else None


def statistic_mask(spec: ParameterSpec) -> NDArray[np.bool_] | None:
    """bool[P], true where an element is a statistic; None where none is."""
    return None if _places(spec) is None else spec.mask("statistic")


@lru_cache(maxsize=8)
def _places(spec: ParameterSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Positions of the trainable elements and of the statistics, ascending; None where there are no statistics."""
    if all(tensor.kind == "trainable" for tensor in spec):
        return None
    mask = spec.mask("statistic")
    places = np.flatnonzero(~mask).astype(np.int64), np.flatnonzero(mask).astype(np.int64)
    for array in places:
        array.flags.writeable = False
    return places
