"""Updates as frames of bytes: sparsify, quantise, code the indices, check; and the way back, which trusts nothing.

    encode_update(delta, residual, settings, seed=...) -> Encoded(frame, residual)
    decode_update(frame, size, settings) -> Decoded(size, indices, values), or Rotated(...)

The wire format is described byte by byte in ``docs/wire-format.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_sdk.codecs.codec import MAGNITUDE_MAX, Context, Decoded, Encoded, Rotated
from edge_sdk.codecs.codecs import CODECS
from edge_sdk.codecs.feedback import add_residual
from edge_sdk.codecs.fit import fitted
from edge_sdk.codecs.frame import CODEC_OFFSET, HEADER_BYTES_MAX, VERSION, pack_frame, unpack_frame
from edge_sdk.codecs.index_coding import Matrix
from edge_sdk.codecs.settings import BITS, ROUNDINGS, TENSOR_RULES_MAX, CodecSettings
from edge_sdk.errors import ConfigurationError, DecodeError
from edge_sdk.parameters import ELEMENTS_MAX

__all__ = [
    "BITS",
    "CODECS",
    "MAGNITUDE_MAX",
    "ROUNDINGS",
    "TENSOR_RULES_MAX",
    "VERSION",
    "CodecSettings",
    "Decoded",
    "Encoded",
    "Matrix",
    "Rotated",
    "decode_update",
    "encode_update",
    "fitted",
    "frame_bytes_max",
    "frame_codec",
    "keeps_residual",
]


_NAMES: Final = {wire_id: name for name, codec in CODECS.items() for wire_id in codec.decoders if codec.encode}


def encode_update(
    delta: NDArray[np.float32],
    residual: NDArray[np.float32] | None,
    settings: CodecSettings,
    *,
    seed: int,
    shared_seed: int | None = None,
    matrices: Sequence[Matrix] = (),
    keeps_residual: bool = True,
) -> Encoded:
    """The frame of one update.

    Args:
        delta: float32[P], local parameters minus global ones; not changed.
        residual: float32[P] that earlier frames left out, or None for zeros; not changed. A codec that keeps no
            residual sends a given one too, so that nothing is lost when a plan changes codecs. With momentum
            correction float32[2 P]: the velocity stands behind it.
        settings: The codec and its knobs.
        seed: 64 random bits of this update: stochastic rounding, rotations, what is left out. The same arguments give
            the same bytes.
        shared_seed: The same for all devices of a round: the rotation that they share, if the codec has them share
            one. ``seed`` if not given.
        matrices: First coordinate, rows and columns of tensors that have several of both, in order: their indices may
            be coded by columns. They change no value that is sent.
        keeps_residual: Whether the device can keep what is left out; a codec that chooses asks.

    Returns:
        The frame, and the residual for the next update. What the frame decodes to plus the new residual equals
        ``delta + residual`` up to the rounding of float32.

    Raises:
        ConfigurationError: A vector is not float32[P] with 1..2^28 elements, or the two differ in size.
        TrainingError: ``delta + residual`` is not finite, or above ``MAGNITUDE_MAX`` somewhere.
    """
    _check_vector("delta", delta)
    if residual is not None:
        _check_vector("residual", residual)
        if residual.size not in (delta.size, 2 * delta.size):
            raise ConfigurationError(
                f"residual: {residual.size} elements, the delta has {delta.size}; drop the residual"
            )
    codec = CODECS[settings.name]
    velocity = None if residual is None or residual.size == delta.size else residual[delta.size :]
    residual = None if residual is None else residual[: delta.size]
    shared = seed if shared_seed is None else shared_seed
    context = Context(seed, shared, tuple(matrices), keeps_residual, velocity)
    if codec.choose is not None:
        settings = codec.choose(add_residual(delta, residual), settings, context)
        codec = CODECS[settings.name]
    assert codec.encode is not None
    body, left = codec.encode(delta, residual, settings, context)
    return Encoded(pack_frame(body, delta.size, codec.wire_id), left)


def decode_update(frame: bytes | memoryview, size: int, settings: CodecSettings) -> Decoded | Rotated:
    """What a frame that nobody vouches for says.

    Args:
        frame: The bytes; not referred to by the result.
        size: Number of coordinates of the model's vector.
        settings: The settings that the sender was told to use.

    Raises:
        ConfigurationError: ``size`` is not in 1..2^28.
        DecodeError: The frame is damaged, or not one that an honest sender with these settings can make.
        VersionError: Its version is not ours (says which side to upgrade).
    """
    _check_size(size)
    codec = CODECS[settings.name]
    wire_id, body = unpack_frame(frame, size, codec.body_bytes_max(size, settings))
    decode = codec.decoders.get(wire_id)
    if decode is None:
        raise DecodeError(f"update frame: codec {wire_id}, the plan asked for {settings.name}", reason="codec")
    return decode(body, size, settings)


def frame_bytes_max(size: int, settings: CodecSettings) -> int:
    """Bytes that no honest frame of ``size`` coordinates exceeds; ``decode_update`` refuses longer ones."""
    _check_size(size)
    return HEADER_BYTES_MAX + CODECS[settings.name].body_bytes_max(size, settings)


def frame_codec(frame: bytes) -> str:
    """The name of the codec that a frame says it is in; "unknown" for one that is not known, or no frame."""
    return _NAMES.get(frame[CODEC_OFFSET] if len(frame) > CODEC_OFFSET else -1, "unknown")


def keeps_residual(settings: CodecSettings) -> bool:
    """Whether a device must keep a residual between updates with these settings."""
    return CODECS[settings.name].keeps_residual


def _check_size(size: int) -> None:
    if not 0 < size <= ELEMENTS_MAX:
        raise ConfigurationError(f"size: {size!r} is not a number of coordinates in 1..{ELEMENTS_MAX}")


def _check_vector(name: str, vector: NDArray[np.float32]) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        kind = f"{vector.dtype}{list(vector.shape)}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise ConfigurationError(f"{name}: {kind}, expected a float32 vector (ParameterSpec.flatten makes one)")
    _check_size(vector.size)
